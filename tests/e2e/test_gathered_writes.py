"""The kernel gathers small writes before the worker sees them: what that may not change."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.e2e.posix import next_tick_ns
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

KIB = 1 << 10
WRITE_AND_WAIT = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in range(256):
    os.write(fd, number.to_bytes(1, "big") * 1000)
print("written", flush=True)
sys.stdin.read()
os.close(fd)
"""
WRITTEN = b"".join(number.to_bytes(1, "big") * 1000 for number in range(256))


class Site:
    """One bucket, mounted as ``m``, and somebody else who uses the bucket."""

    def __init__(self, daemon: Daemon, endpoint: Endpoint, bucket: str) -> None:
        self.daemon = daemon
        self.bucket = bucket
        self.client = endpoint.boto3()
        self.mount = daemon.mount(endpoint, bucket, "m")

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def calls(self, operation: str) -> int:
        counts = self.daemon.api.mount_stats("m").fuse
        return sum(count.count for count in counts if count.name == operation)


@pytest.fixture
def site(lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    site = Site(lab.daemon(), ministack, bucket)
    try:
        yield site
    finally:
        remove_bucket(client, bucket)


def writer(path: Path) -> subprocess.Popen[str]:
    """Start a program that writes `WRITTEN` and keeps the file open until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_small_writes_reach_the_worker_as_few_large_ones(site: Site) -> None:
    with (site.mount / "a").open("wb", buffering=0) as file:
        for _ in range(512):
            file.write(b"x" * 4 * KIB)
    assert site.calls("write") <= 8
    assert site.get("a") == b"x" * 512 * 4 * KIB


def test_what_the_kernel_gathered_survives_the_worker(site: Site) -> None:
    program = writer(site.mount / "log")
    for _ in range(2):
        site.daemon.wait_replaced(site.daemon.kill_worker())
    assert (site.mount / "log").stat().st_size == len(WRITTEN)
    assert (site.mount / "log").read_bytes() == WRITTEN
    program.communicate()
    assert program.returncode == 0
    assert site.get("log") == WRITTEN


def test_what_the_kernel_gathered_and_nobody_can_keep_is_missed_by_close(site: Site) -> None:
    """When all processes die: the program hears of it, and what is there has no hole and no other bytes."""
    program = writer(site.mount / "log")
    site.daemon.kill_all()
    _, error = program.communicate()
    assert program.returncode != 0
    assert "not connected" in error
    site.daemon.start()
    site.daemon.wait_state("mounted")
    assert WRITTEN.startswith((site.mount / "log").read_bytes())
    site.daemon.flush()


def test_what_is_still_open_is_uploaded_when_the_daemon_stops(site: Site) -> None:
    """Also what no worker ever knew of: the one that saw the file opened is dead."""
    program = writer(site.mount / "log")
    site.daemon.wait_replaced(site.daemon.kill_worker())
    site.daemon.stop()
    assert site.get("log") == WRITTEN
    program.kill()
    program.communicate()


def test_what_is_still_open_is_uploaded_by_a_flush(site: Site) -> None:
    """Also what no worker ever knew of: the one that saw the file opened is dead."""
    site.put("log", b"")
    program = writer(site.mount / "log")
    site.daemon.wait_replaced(site.daemon.kill_worker())
    site.daemon.flush()
    assert site.get("log") == WRITTEN
    program.kill()
    program.communicate()


def test_a_file_has_the_time_of_its_last_write_here_and_in_s3(site: Site) -> None:
    """And no request beyond the upload."""
    path = site.mount / "a"
    began_ns = next_tick_ns()
    with path.open("wb", buffering=0) as file:
        file.write(b"one")
        first_ns = next_tick_ns()
        file.write(b"two")
        last_ns = next_tick_ns()
    status = path.stat()
    assert began_ns < first_ns < status.st_mtime_ns <= last_ns
    head = site.client.head_object(Bucket=site.bucket, Key="a")
    seconds, _, fraction = head["Metadata"]["mtime"].partition(".")
    assert int(seconds) * 10**9 + int(fraction.ljust(9, "0")) == status.st_mtime_ns
    os.utime(path, ns=(5, 6))
    path.rename(site.mount / "b")
    site.daemon.flush()
    assert (site.mount / "b").stat().st_mtime_ns == 6
    assert (
        site.client.head_object(Bucket=site.bucket, Key="b")["Metadata"]["mtime"] == "0.000000006"
    )
    site.daemon.wait_replaced(site.daemon.kill_worker())
    assert (site.mount / "b").stat().st_mtime_ns == 6


def test_a_truncation_to_the_size_that_a_file_has_changes_no_time(site: Site) -> None:
    """Neither in the kernel, which keeps the time, nor in S3, which tells the next mount."""
    path = site.mount / "a"
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 6))
    site.daemon.flush()
    os.truncate(path, 3)
    assert path.stat().st_mtime_ns == 6
    site.daemon.flush()
    head = site.client.head_object(Bucket=site.bucket, Key="a")
    assert head["Metadata"]["mtime"] == "0.000000006"


def test_writes_to_a_file_that_another_writer_replaced_become_a_conflict_copy(site: Site) -> None:
    """Although the name already led to what the other wrote when the first of them reached the worker."""
    site.put("a", b"theirs, before")
    site.daemon.run("invalidate", "m")
    file = (site.mount / "a").open("r+b", buffering=0)
    file.write(b"OURS")
    site.put("a", b"theirs, after")
    site.daemon.run("invalidate", "m")
    assert (site.mount / "a").read_bytes() == b"theirs, after"
    with pytest.raises(OSError, match="Stale") as failure:
        file.close()
    assert failure.value.errno == errno.ESTALE
    assert site.get("a") == b"theirs, after"
    (copy,) = site.daemon.api.list_conflicts("m").items
    assert (copy.path, copy.reason) == ("a", "replaced")
    site.daemon.api.restore_conflict("m", copy.id, path="b", partial=True)
    site.daemon.flush()
    assert site.get("b")[:4] == b"OURS"
