"""The retry policy: what is tried again, how often, and how long it waits."""

from itertools import pairwise
from random import Random

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import Denied, TimedOut, Unavailable
from s3mgrd.s3.retry import MAX_DELAY_S, CallFailed, RetryPolicy


class Largest(Random):
    """Draws the upper bound, so that waits are known."""

    def uniform(self, a: float, b: float) -> float:
        return b


def failure(**flags: object) -> CallFailed:
    return CallFailed(Unavailable("broken"), code="X", **{"retryable": True, **flags})  # type: ignore[arg-type]  # flags of any type


class Attempts:
    """Fails as often as it is told, and notes when it was called."""

    def __init__(self, *failures: CallFailed | float) -> None:
        self.failures = list(failures)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(trio.current_time())
        while self.failures:
            first = self.failures.pop(0)
            if isinstance(first, CallFailed):
                raise first
            await trio.sleep(first)
        return "done"


def waits(times: list[float]) -> list[float]:
    return [round(b - a, 3) for a, b in pairwise(times)]


async def test_a_success_is_not_repeated(autojump_clock: MockClock) -> None:
    attempts = Attempts()
    assert await RetryPolicy(60).run(attempts) == "done"
    assert len(attempts.times) == 1


async def test_waits_double_up_to_a_limit(autojump_clock: MockClock) -> None:
    attempts = Attempts(*(failure() for _ in range(9)))
    assert await RetryPolicy(600, Largest()).run(attempts) == "done"
    assert waits(attempts.times) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, MAX_DELAY_S, MAX_DELAY_S]


async def test_a_server_that_is_busy_gets_more_time(autojump_clock: MockClock) -> None:
    attempts = Attempts(failure(throttled=True), failure(throttled=True))
    await RetryPolicy(60, Largest()).run(attempts)
    assert waits(attempts.times) == [0.5, 1.0]


async def test_waits_are_drawn_from_the_whole_interval(autojump_clock: MockClock) -> None:
    policy = RetryPolicy(60, Random(1))  # noqa: S311 a known sequence
    drawn = [policy.delay_s(failure(), 3) for _ in range(500)]
    assert all(0 <= d <= 0.8 for d in drawn)
    assert min(drawn) < 0.05
    assert max(drawn) > 0.75


async def test_what_is_not_retryable_fails_at_once(autojump_clock: MockClock) -> None:
    attempts = Attempts(CallFailed(Denied("no"), code="AccessDenied"))
    with pytest.raises(CallFailed) as caught:
        await RetryPolicy(60).run(attempts)
    assert isinstance(caught.value.error, Denied)
    assert len(attempts.times) == 1


async def test_the_last_attempt_is_at_the_deadline(autojump_clock: MockClock) -> None:
    attempts = Attempts(*(failure() for _ in range(100)))
    with pytest.raises(CallFailed):
        await RetryPolicy(10, Largest()).run(attempts)
    assert attempts.times[-1] - attempts.times[0] == pytest.approx(10)


async def test_the_deadline_counts_from_the_first_failure(autojump_clock: MockClock) -> None:
    """A transfer of an hour that breaks at its end is tried again like any other."""
    attempts = Attempts(3600.0, failure(), failure())
    assert await RetryPolicy(1, Largest()).run(attempts) == "done"


async def test_a_deadline_of_zero_means_one_attempt(autojump_clock: MockClock) -> None:
    attempts = Attempts(failure())
    with pytest.raises(CallFailed):
        await RetryPolicy(0).run(attempts)
    assert len(attempts.times) == 1


async def test_the_servers_wish_is_honoured(autojump_clock: MockClock) -> None:
    attempts = Attempts(failure(retry_after_s=7.0))
    await RetryPolicy(60, Largest()).run(attempts)
    assert waits(attempts.times) == [7.0]


async def test_a_wish_beyond_the_deadline_ends_the_call(autojump_clock: MockClock) -> None:
    attempts = Attempts(failure(retry_after_s=61.0))
    with pytest.raises(CallFailed):
        await RetryPolicy(60).run(attempts)
    assert attempts.times == [pytest.approx(trio.current_time())]


async def test_the_deadline_can_be_changed_under_way(autojump_clock: MockClock) -> None:
    policy = RetryPolicy(3600, Largest())
    attempts = Attempts(*(failure() for _ in range(10_000)))

    async def shorten() -> None:
        await trio.sleep(20)
        policy.deadline_s = 0

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shorten)
        with pytest.raises(CallFailed):
            await policy.run(attempts)
    assert trio.current_time() - started < 20 + MAX_DELAY_S + 0.1


async def test_a_failure_tells_whether_an_earlier_one_was_ambiguous(
    autojump_clock: MockClock,
) -> None:
    last = CallFailed(TimedOut("late"), code="X")
    with pytest.raises(CallFailed):
        await RetryPolicy(60).run(Attempts(failure(), last))
    assert not last.after_ambiguous
    last = CallFailed(TimedOut("late"), code="X", ambiguous=True)
    with pytest.raises(CallFailed):
        await RetryPolicy(60).run(Attempts(failure(ambiguous=True), failure(), last))
    assert last.after_ambiguous


async def test_waiting_can_be_cancelled(autojump_clock: MockClock) -> None:
    attempts = Attempts(failure(retry_after_s=50.0))
    with trio.move_on_after(1) as scope:
        await RetryPolicy(60).run(attempts)
    assert scope.cancelled_caught


async def test_the_caller_hears_of_each_retry(autojump_clock: MockClock) -> None:
    heard: list[float] = []
    attempts = Attempts(failure(), failure())
    await RetryPolicy(60, Largest()).run(
        attempts, on_retry=lambda _, delay_s: heard.append(delay_s)
    )
    assert heard == [0.1, 0.2]
