"""``s3mgr stats`` against the daemon's real HTTP API on a fake domain."""

import json

import msgspec

from s3mgr.schema import MountStats, OperationCount, RequestCount
from tests.fakes.service import FakeService

from .conftest import Command


def look(number: int) -> MountStats:
    return MountStats(
        worker_pid=7,
        uptime_s=10.0 * number,
        memory_bytes=50 << 20,
        busy_s=5.0 * number,
        waiting_s=4.0 * number,
        s3_busy_s=4.0 * number,
        loop_cpu_s=0.5 * number,
        fuse=[OperationCount(name="read", count=100 * number, errors=1, seconds=5.0 * number, s3_s=4.0 * number)],
        s3=[RequestCount(name="GetObject", count=10 * number, errors=0, seconds=4.0 * number, first_s=0.4 * number)],
        s3_received_bytes=number << 20,
    )  # fmt: skip


async def test_the_counters_are_shown_and_the_last_line_says_what_limits(
    served: FakeService, command: Command
) -> None:
    served.stats = [look(1)]
    shown = await command("stats", "logs")
    lines = shown.out.splitlines()
    assert lines[1].split()[:4] == ["read", "100", "1", "10.0"]
    assert lines[1].split()[-6:] == ["80", "%", "0", "%", "20", "%"]
    assert any(line.split()[:2] == ["GetObject", "10"] for line in lines)
    assert lines[-1].startswith("limits:     the network, or S3's bandwidth: ")
    found = json.loads((await command("stats", "logs", "--json")).out)
    assert msgspec.convert(found, MountStats) == look(1)


async def test_watching_shows_what_happened_in_each_interval(
    served: FakeService, command: Command
) -> None:
    served.stats = [look(1), look(2), look(4)]
    shown = await command("stats", "logs", "-w", "-i", "10ms", "--count", "2", "--json")
    first, second = (json.loads(line) for line in shown.out.splitlines())
    assert (first["uptime_s"], second["uptime_s"]) == (10.0, 20.0)
    assert (first["fuse"][0]["count"], second["fuse"][0]["count"]) == (100, 200)
    assert (await command("stats", "logs", "-w", "-i", "0s")).code == 2


async def test_a_mount_that_nobody_uses_is_limited_by_nothing(
    served: FakeService, command: Command
) -> None:
    served.stats = [MountStats(worker_pid=7, uptime_s=10.0, memory_bytes=1)]
    shown = await command("stats", "logs")
    assert shown.out.splitlines()[-1].startswith("limits:     nothing here: ")
