"""`s3mgr stats` on a real mount: the figures are those of what was done."""

import os
from pathlib import Path

import pytest

from s3mgr.schema import MountStats
from s3mgr.schema.stats import since
from tests.e2e.lab import Daemon
from tests.servers.endpoint import Endpoint

MIB = 1 << 20


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


def call(stats: MountStats, name: str) -> int:
    return sum(found.count for found in stats.fuse if found.name == name)


def read_whole(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()


def test_the_figures_are_those_of_what_was_done(
    daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    body = os.urandom(4 * MIB)
    client = s3_endpoint.boto3()
    client.put_object(Bucket=bucket, Key="file", Body=body)
    client.close()
    mount = daemon.mount(s3_endpoint, bucket, "m")
    before = daemon.api.mount_stats("m")
    assert read_whole(mount / "file") == body
    (mount / "new").write_bytes(b"x" * 1000)
    assert not (mount / "absent").exists()
    now = daemon.api.mount_stats("m")
    done = since(now, before)

    assert (done.read_bytes, done.written_bytes) == (4 * MIB, 1000)
    assert call(done, "read") >= 4
    assert (call(done, "create"), call(done, "write"), call(done, "open")) == (1, 1, 1)
    gets = next(found for found in done.s3 if found.name == "GetObject")
    assert gets.received_bytes == 4 * MIB
    assert sum(bucket.count for bucket in gets.latency) == gets.count
    assert 0 < gets.first_s <= gets.seconds
    put = next(found for found in done.s3 if found.name == "PutObject")
    assert (put.count, put.sent_bytes, put.errors) == (1, 1000, 0)
    reads = next(found for found in done.fuse if found.name == "read")
    assert 0 < reads.s3_s <= reads.seconds
    assert done.disk_cache.miss_bytes == 4 * MIB
    assert done.ahead_used_bytes <= done.ahead_bytes
    assert 0 < done.waiting_s <= done.busy_s < done.uptime_s
    assert 0 < done.loop_cpu_s <= done.cpu_s

    read_whole(mount / "file")
    again = since(daemon.api.mount_stats("m"), now)
    assert not any(found.name == "GetObject" for found in again.s3)
    shown = daemon.run("stats", "m").stdout
    assert shown.splitlines()[-1].startswith("limits:  ")
    assert "GetObject" in shown
