"""After `warm`, a store opens no file of the Python installation and imports nothing."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

PROGRAM = """
import os, sys, threading

from s3mgrd.s3.warm import warm

before = sorted(os.listdir("/proc/self/fd"))
warm()
assert sorted(os.listdir("/proc/self/fd")) == before, "descriptors are left open"
assert len(os.listdir("/proc/self/task")) == 1, "threads are left"

import tempfile
import trio
from s3mgrd.errors import S3mgrError
from s3mgrd.s3.client import open_store
from s3mgrd.s3.port import Condition, FileSlice
from s3mgrd.s3.settings import StoreSettings
from s3mgrd.worker.protocol import CredentialGrant

url, bucket, key, secret = sys.argv[1:]
roots = tuple(os.path.realpath(p) for p in (sys.prefix, sys.base_prefix + "/lib/python3", {checkout!r}))
seen = []


def audit(event, args):
    if event == "import":
        seen.append(f"import {{args[0]}}")
    elif event == "open" and isinstance(args[0], str) and os.path.realpath(args[0]).startswith(roots):
        seen.append(f"open {{args[0]}}")


async def grant():
    return CredentialGrant(access_key=key, secret_key=secret)


async def use(url, anonymous, everything):
    settings = StoreSettings(
        bucket=bucket, region="us-east-1", endpoint_url=url, anonymous=anonymous, credentials=grant,
        retry_deadline_s=0.2, connect_timeout_s=1.0, read_timeout_s=10.0,
    )
    file = tempfile.TemporaryFile()
    file.write(b"x" * 100_000)
    file.flush()

    async with open_store(settings) as store:
        async def attempt(method, *args, **more):
            try:
                return await method(*args, **more)
            except S3mgrError:
                return None

        await attempt(store.probe, "")
        if not everything:
            await attempt(store.put, "k", b"x", metadata={{}})
            return
        await attempt(store.put, "k", FileSlice(file.fileno(), 0, 100_000), metadata={{"m": "\\u00e4"}})
        await attempt(store.put, "k", b"x" * 100_000, metadata={{}}, condition=Condition(absent=True))
        await attempt(store.head, "k")
        await attempt(store.head, "absent")
        await attempt(store.get_range, "k", 0, 100_000)
        await attempt(store.get_range, "k", 1 << 30, 1 << 31)
        await attempt(store.list_page, "", delimited=True)
        await attempt(store.copy, "k", "l", source_size=100_000, if_source_match="0")
        await attempt(store.copy, "k", "l", source_size=100_000, metadata={{}})
        upload = await attempt(store.create_multipart, "m", metadata={{}}) or "none"
        part = await attempt(store.upload_part, "m", upload, 1, FileSlice(file.fileno(), 0, 9))
        await attempt(store.list_parts, "m", upload)
        await attempt(store.list_multiparts, "")
        await attempt(store.complete_multipart, "m", upload, [part] if part else [])
        await attempt(store.abort_multipart, "m", upload)
        await attempt(store.delete_many, ["k", "l", "\\x01"])
        await attempt(store.delete, "m")


sys.addaudithook(audit)
for anonymous in (False, True):
    trio.run(use, url.replace("127.0.0.1", "localhost"), anonymous, True)
    trio.run(use, "http://127.0.0.1:1", anonymous, False)  # refuses
    trio.run(use, url.replace("http:", "https:"), anonymous, False)  # speaks no TLS
print("\\n".join(seen))
"""


@pytest.mark.parametrize("server", ["ministack", "radosgw"])
def test_a_warm_process_needs_no_installation(server: str, request: pytest.FixtureRequest) -> None:
    endpoint = request.getfixturevalue(server)
    assert isinstance(endpoint, Endpoint)
    client = endpoint.boto3()
    bucket = make_bucket(client)
    checkout = str(Path(__file__).resolve().parents[3])
    program = textwrap.dedent(PROGRAM).format(checkout=checkout)
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                program,
                endpoint.url,
                bucket,
                endpoint.access_key,
                endpoint.secret_key,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        remove_bucket(client, bucket)
        client.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], done.stdout
