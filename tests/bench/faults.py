"""Every path of the file system through a network that fails, at a larger scale than the tests.

Run: ``python -m tests.bench.faults --endpoint URL [--share 0.01] [--large-mib 256] [--rounds 3]``. The endpoint is a server that
injects faults when it is told so at ``/_bench/fault?op=*&kind=KIND&p=SHARE`` (kinds 503, reset, truncate, hang, and corrupt for the bytes of
objects), and with ``?clear`` no more. Each kind and both write modes: files are written, edited, copied, renamed, removed and read
back by a mount that has nothing cached, and the bucket is compared. Exit status 1 when a byte was lost or is another.
"""

import argparse
import sys
import time
import uuid
from typing import Final
from urllib.request import urlopen

from tests.bench.meter import MIB
from tests.e2e import faults
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint

KINDS: Final = ("503", "reset", "truncate", "hang", "corrupt")
CHECKED_BYTES: Final = MIB // 2
"""Of ranges of larger objects the server says no checksum: damage in them is noticed only by who reads the whole
(`tests/e2e/test_faults.py`), and there is looked at in parts, too."""


def inject(endpoint: Endpoint, kind: str | None, share: float = 0.0) -> None:
    """Have the server fail a share of its requests; None: none."""
    op = "GET" if kind == "corrupt" else "*"
    query = "clear" if kind is None else f"op={op}&kind={kind}&p={share}"
    with urlopen(f"{endpoint.url}/_bench/fault?{query}") as answer:  # noqa: S310 what the user gave
        answer.read()


def go(daemon: Daemon, endpoint: Endpoint, kind: str, mode: str, share: float, large: int) -> str:
    """Do all of it once; returns what went wrong, or nothing."""
    client = endpoint.boto3()
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    options = f"read_timeout_s=2,write_mode={mode}"
    contents = faults.Contents(seed=1)
    mount = daemon.mount(endpoint, bucket, "w", "-o", options)
    inject(endpoint, kind, share)
    try:
        size = CHECKED_BYTES if kind == "corrupt" else large
        faults.work(mount, contents, large_bytes=size)
        faults.look(mount, contents)
        daemon.flush("w")
        daemon.run("unmount", "w")
        fresh = daemon.mount(endpoint, bucket, "r", "-o", options + ",cache_size_bytes=0")
        faults.look(fresh, contents)
        daemon.run("unmount", "r")
        inject(endpoint, None)
        faults.check_bucket(client, bucket, contents)
    except (AssertionError, OSError) as error:
        return str(error)
    finally:
        inject(endpoint, None)
        for name in ("w", "r"):
            daemon.run("unmount", name, "--discard", "--yes", check=False)
    return ""


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--large-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    endpoint = Endpoint("ministack", chosen.endpoint, "bench", "bench-secret")
    lab, bad = Lab(), 0
    try:
        daemon = lab.daemon()
        for kind in KINDS:
            for mode in ("close", "writeback"):
                begun, wrong = time.monotonic(), ""
                for _ in range(chosen.rounds):
                    large = chosen.large_mib * MIB
                    wrong = wrong or go(daemon, endpoint, kind, mode, chosen.share, large)
                bad += bool(wrong)
                seconds = time.monotonic() - begun
                print(
                    f"{kind:10} {mode:10} {seconds:7.1f} s  {wrong or 'every byte right'}",
                    flush=True,
                )
    finally:
        lab.end()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
