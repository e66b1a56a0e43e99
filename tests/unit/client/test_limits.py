"""What limits a mount is told by its counters alone: one clear case of each answer, and what an interval is."""

import msgspec
import pytest

from s3mgr.limits import Limit, what_limits, what_limits_now
from s3mgr.schema import LatencyBucket, MountStats, OperationCount, RequestCount
from s3mgr.schema.stats import percentile_s, since


def made(**figures: object) -> MountStats:
    base = MountStats(worker_pid=1, uptime_s=10.0, memory_bytes=1, busy_s=10.0, concurrency=16)
    return msgspec.structs.replace(base, **figures)


def reads(*, s3_s: float = 0.0, disk_s: float = 0.0) -> list[OperationCount]:
    return [
        OperationCount(name="read", count=100, errors=0, seconds=40.0, s3_s=s3_s, disk_s=disk_s)
    ]


def gets(**figures: object) -> list[RequestCount]:
    base = RequestCount(name="GetObject", count=100, errors=0, seconds=20.0)
    return [msgspec.structs.replace(base, **figures)]


WAITED = {"waiting_s": 9.0, "s3_busy_s": 9.0, "fuse": reads(s3_s=36.0)}


@pytest.mark.parametrize(
    ("limit", "stats"),
    [
        ("nothing", made(busy_s=0.1)),
        ("nothing", made(uptime_s=0.0)),
        ("worker", made(loop_cpu_s=9.5, **WAITED)),
        (
            "mixed",
            made(busy_s=2.0, waiting_s=0.5, s3_busy_s=9.0, loop_cpu_s=2.0, fuse=reads(s3_s=1.0)),
        ),
        ("disk", made(waiting_s=9.0, fuse=reads(disk_s=30.0, s3_s=5.0))),
        ("mixed", made(waiting_s=2.0, loop_cpu_s=4.0, fuse=reads(s3_s=5.0))),
        ("mixed", made(waiting_s=9.0)),
        ("s3-errors", made(s3=gets(first_s=18.0), s3_retries=11, **WAITED)),
        ("concurrency", made(s3=gets(first_s=18.0, queued_s=21.0), **WAITED)),
        ("s3-latency", made(s3=gets(first_s=18.0), **WAITED)),
        ("network", made(s3=gets(first_s=2.0, received_bytes=1 << 30), **WAITED)),
        (
            "network",
            made(s3=gets(name="UploadPart", first_s=20.0, sent_bytes=800 << 20), **WAITED),
        ),
        ("s3-latency", made(s3=gets(name="PutObject", first_s=20.0, sent_bytes=4096), **WAITED)),
    ],
)
def test_the_figures_say_what_limits(limit: Limit, stats: MountStats) -> None:
    assert what_limits(stats).limit == limit


def test_programs_that_hardly_wait_limit_themselves() -> None:
    """Of an interval that is so; since the start, the mount may just have been idle."""
    stats = made(
        busy_s=3.0, waiting_s=2.7, s3_busy_s=3.0, fuse=reads(s3_s=2.7), s3=gets(first_s=18.0)
    )
    assert what_limits(stats).limit == "s3-latency"
    verdict = what_limits_now(stats)
    assert verdict.limit == "programs"
    assert "30 % of the time; of that, S3's latency" in verdict.text
    assert what_limits_now(made(busy_s=6.0, waiting_s=1.0)).limit == "mixed"
    assert what_limits_now(made(busy_s=0.0)).limit == "nothing"


def test_an_interval_is_the_difference_of_counters_and_the_latest_of_the_rest() -> None:
    def look(count: int, *, up: float) -> MountStats:
        latency = [LatencyBucket(upper_s=0.001, count=count), LatencyBucket(upper_s=0.1, count=2)]
        call = OperationCount(
            name="read", count=count + 2, errors=0, seconds=0.5 * count, latency=latency
        )
        still = OperationCount(name="open", count=1, errors=0, seconds=0.1)
        return made(uptime_s=up, fuse=[call, still], memory_bytes=count, s3_sent_bytes=count)

    between = since(look(8, up=12.0), look(3, up=10.0))
    assert (between.uptime_s, between.memory_bytes, between.s3_sent_bytes) == (2.0, 8, 5)
    (call,) = between.fuse
    assert (call.name, call.count, call.seconds) == ("read", 5, 2.5)
    assert call.latency == [LatencyBucket(upper_s=0.001, count=5)]


def test_another_worker_begins_anew() -> None:
    before = made(read_bytes=100, uptime_s=500.0)
    for now in (made(read_bytes=3, worker_pid=2, uptime_s=900.0), made(read_bytes=3, uptime_s=1.0)):
        assert since(now, before) is now


def test_a_percentile_is_what_that_many_calls_took_less_than() -> None:
    latency = [LatencyBucket(upper_s=0.001, count=98), LatencyBucket(upper_s=2.0, count=2)]
    assert percentile_s(latency, 0.5) == 0.001
    assert percentile_s(latency, 0.98) == 0.001
    assert percentile_s(latency, 0.99) == 2.0
    assert percentile_s([], 0.5) == 0.0
