"""mount.db stays below its limit on a real mount, while programs list more than it has room for."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.lab import Daemon, wait_for
from tests.e2e.wire import ask
from tests.servers.endless import EndlessBucket
from tests.servers.endpoint import Endpoint
from tests.servers.threaded import run_scripted

LIMIT = 1 << 20
OBJECTS = 12_000
"""About 1.5 MB of names."""
KEEP_OPEN = """
import os, sys
with open(sys.argv[1], "rb") as file:
    number = os.fstat(file.fileno()).st_ino
    print(number, flush=True)
    sys.stdin.readline()
    assert os.fstat(file.fileno()).st_ino == os.stat(sys.argv[1]).st_ino == number
print("same", flush=True)
"""


def size(daemon: Daemon) -> int:
    return daemon.api.mount_cache("m").metadata_bytes


def test_a_small_limit_holds_and_every_listing_is_complete(daemon: Daemon) -> None:
    """What a program has open keeps its inode meanwhile; what was forgotten comes back from S3 under another."""
    with run_scripted(EndlessBucket(OBJECTS)) as server:
        endpoint = Endpoint("ministack", server.url, "key", "secret")
        directory = daemon.mount(endpoint, "any", "m", "-o", "metadata_ttl_s=3600") / "flat"
        with subprocess.Popen(
            [sys.executable, "-c", KEEP_OPEN, str(directory / "f0001400")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            number = int(program.stdout.readline())
            before = inodes(directory)
            assert len(before) == OBJECTS
            assert size(daemon) > LIMIT
            ask(daemon, "PATCH", "/v1/mounts/m", {"options": {"metadata_size_bytes": LIMIT}})
            for _ in range(2):
                wait_for("mount.db is small", lambda: size(daemon) <= LIMIT)
                assert len(inodes(directory)) == OBJECTS
            after = inodes(directory)
            assert after["f0001400"] == before["f0001400"] == number
            assert len(set(after.values()) - set(before.values())) > OBJECTS // 4
            print(file=program.stdin, flush=True)
            assert program.stdout.readline() == "same\n"
        daemon.run("unmount", "m")


def inodes(directory: Path) -> dict[str, int]:
    """Return the inode number of every entry."""
    with os.scandir(directory) as entries:
        return {entry.name: entry.inode() for entry in entries}
