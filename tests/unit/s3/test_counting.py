"""Counters: durations land in the right bucket, and who waits for S3 is who asked, not what goes on behind it."""

from itertools import pairwise

import pytest
import trio
import trio.testing

from s3mgrd.s3 import counting
from s3mgrd.s3.counting import BUCKETS, Asked, Busy, Waiting, asked, bucket_of, upper_s


def test_each_duration_is_below_the_end_of_its_bucket_and_not_below_the_one_before() -> None:
    for us in [*range(3000), *(10**n for n in range(4, 9)), 2**30 - 1]:
        bucket = bucket_of((us + 0.5) / 1e6)
        assert us < upper_s(bucket) * 1e6, us
        assert bucket == 0 or us >= round(upper_s(bucket - 1) * 1e6), us


def test_buckets_are_never_wider_than_a_quarter_of_what_they_hold() -> None:
    """So a percentile is off by a quarter at most; below 8 us by one."""
    ends = [upper_s(bucket) for bucket in range(BUCKETS)]
    assert all(low < high for low, high in pairwise(ends))
    assert all(high / low <= 1.25 + 1e-9 for low, high in pairwise(ends[7:]))
    assert bucket_of(1e9) == BUCKETS - 1


def test_what_runs_side_by_side_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy()
    busy.enter(10.0)
    busy.enter(11.0)
    busy.leave(12.0)
    busy.leave(14.0)
    assert busy.total_s == 4.0
    busy.enter(20.0)
    monkeypatch.setattr(counting, "perf_counter", lambda: 21.5)
    assert busy.seconds() == 5.5


async def test_a_request_waits_while_its_own_task_does_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """What is fetched ahead for it goes on in other tasks, which inherit its context: that is not its waiting."""
    now = 0.0
    monkeypatch.setattr(counting, "perf_counter", lambda: now)
    waiting = Busy()
    request = Asked(waiting)
    asked.set(request)
    behind = trio.Event()

    async def fetch(event: trio.Event) -> None:
        with Waiting():
            await event.wait()

    nursery.start_soon(fetch, behind)
    await trio.testing.wait_all_tasks_blocked()
    with Waiting():
        now = 3.0
        with Waiting():  # inside another: not twice
            now = 5.0
    now = 50.0
    with Waiting() as wait:
        now = 51.0
        wait.for_disk = True
    assert (request.s3_s, request.disk_s) == (5.0, 1.0)
    assert waiting.seconds() == 6.0
    behind.set()
    await trio.testing.wait_all_tasks_blocked()
    assert waiting.seconds() == 6.0
    asked.set(None)
