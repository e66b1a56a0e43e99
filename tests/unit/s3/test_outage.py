"""An outage begins when nothing at all is answered for a while, and ends with any answer."""

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import Denied, NotFound, S3mgrError, TimedOut, Unavailable
from s3mgrd.s3.outage import PATIENCE_S, Outage, is_silence
from s3mgrd.s3.retry import CallFailed, RetryPolicy

DOWN = Unavailable("refused")


def failed(
    error: S3mgrError = DOWN, *, code: str = "ConnectionRefused", status: int = 0, throttled: bool = False
) -> CallFailed:  # fmt: skip
    return CallFailed(error, code=code, status=status, retryable=True, throttled=throttled)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (failed(), True),
        (failed(TimedOut("silent"), code="Timeout"), True),
        (failed(code="InternalError", status=500), True),
        (failed(code="ServiceUnavailable", status=503, throttled=True), True),
        (failed(code="SlowDown", status=503, throttled=True), False),
        (failed(code="429", status=429, throttled=True), False),
        (failed(Denied("no"), code="AccessDenied", status=403), False),
        (failed(NotFound("no"), code="NoSuchKey", status=404), False),
    ],
)
def test_silence_is_what_says_nothing_about_the_request(
    failure: CallFailed, *, expected: bool
) -> None:
    assert is_silence(failure) is expected


def watched() -> tuple[Outage, list[str]]:
    outage, told = Outage(), list[str]()
    outage.begun = lambda error: told.append(error.detail)
    outage.ended = lambda: told.append("back")
    outage.watch(is_watched=True)
    return outage, told


async def give_up(outage: Outage, failure: CallFailed) -> float:
    """Make a request that fails like that until it is given up; returns how long that took."""
    begun = trio.current_time()

    async def attempt() -> None:
        await trio.lowlevel.checkpoint()
        raise failure

    with pytest.raises(CallFailed):
        await RetryPolicy(60.0).run(attempt, limit=outage.limit_s)
    outage.note_given_up(failure, 60.0)
    return trio.current_time() - begun


async def test_an_outage_begins_when_a_request_is_given_up_early(autojump_clock: MockClock) -> None:
    outage, told = watched()
    assert await give_up(outage, failed()) == pytest.approx(PATIENCE_S)
    assert outage.is_on
    assert "refused" in outage.refusal().detail
    outage.note_answer()
    assert (outage.is_on, told) == (False, ["refused", "back"])


async def test_a_request_that_was_not_answered_has_waited_long_enough(
    autojump_clock: MockClock,
) -> None:
    outage, _ = watched()
    await trio.sleep(PATIENCE_S)
    assert await give_up(outage, failed(TimedOut("silent"), code="Timeout")) == 0
    assert outage.is_on


async def test_what_fails_while_others_are_answered_is_no_outage(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """It is tried as long as without the option."""
    outage, told = watched()

    async def others() -> None:
        while True:
            outage.note_answer()
            await trio.sleep(1)

    nursery.start_soon(others)
    assert await give_up(outage, failed(code="InternalError", status=500)) == pytest.approx(60.0)
    assert (outage.is_on, told) == (False, [])
    nursery.cancel_scope.cancel()


async def test_throttling_is_waited_out(autojump_clock: MockClock) -> None:
    outage, _ = watched()
    throttled = failed(code="SlowDown", status=503, throttled=True)
    assert await give_up(outage, throttled) == pytest.approx(60.0)
    assert not outage.is_on


async def test_nothing_changes_for_who_cannot_do_without_s3(autojump_clock: MockClock) -> None:
    outage = Outage()
    assert await give_up(outage, failed()) == pytest.approx(60.0)
    outage.begin(DOWN)
    assert not outage.is_on


async def test_switching_it_off_ends_an_outage() -> None:
    outage, told = watched()
    outage.begin(DOWN)
    outage.watch(is_watched=False)
    assert (outage.is_on, told) == (False, ["refused", "back"])
