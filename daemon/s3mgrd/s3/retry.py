"""The one retry policy of the project: exponential backoff with full jitter, until a deadline.

What may be retried is decided in `s3mgrd.s3.failures`; botocore's own retries are off.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeVar

import trio

from s3mgrd.errors import S3mgrError

T = TypeVar("T")
log = logging.getLogger("s3mgrd.s3")

FIRST_DELAY_S: Final = 0.1
"""Upper bound of the first wait: a connection that the server closed while it was idle costs next to nothing."""
THROTTLED_DELAY_S: Final = 0.5
"""The same when the server asked to slow down."""
MAX_DELAY_S: Final = 8.0


class CallFailed(Exception):
    """One attempt at a call failed. Lives inside `s3mgrd.s3`; its `error` is what leaves.

    Attributes:
        error: what to raise when this was the last attempt.
        retryable: another attempt may succeed.
        throttled: the server asked for fewer requests.
        retry_after_s: the server's own wish, in seconds.
        ambiguous: S3 may have done it nevertheless.
        code: S3's error code, or a word of ours for failures below HTTP.
        status: the HTTP status, 0 where there was no answer.
        after_ambiguous: set by the caller's loop: an earlier attempt of the same call was ambiguous.
    """

    def __init__(
        self,
        error: S3mgrError,
        *,
        code: str,
        status: int = 0,
        retryable: bool = False,
        throttled: bool = False,
        retry_after_s: float | None = None,
        ambiguous: bool = False,
    ) -> None:
        super().__init__(error.detail)
        self.error: Final = error
        self.code: Final = code
        self.status: Final = status
        self.retryable = retryable
        self.throttled: Final = throttled
        self.retry_after_s: Final = retry_after_s
        self.ambiguous: Final = ambiguous
        self.after_ambiguous = False


@dataclass(slots=True)
class RetryPolicy:
    """How long and how often a failing call is tried again.

    `deadline_s` may be changed at any time and holds for calls that are being retried, too. It counts from the
    first failure of a call, so that a long transfer that breaks late is tried again like a short one; and it bounds
    the start of attempts, not their length: what makes progress is not cut off. Zero: never try again.
    """

    deadline_s: float
    random: Random = field(default_factory=Random)

    def delay_s(self, failure: CallFailed, retries: int) -> float:
        """Choose how long to wait after *failure*, *retries* of the call having been made already."""
        first = THROTTLED_DELAY_S if failure.throttled else FIRST_DELAY_S
        # The exponent is bounded because 2.0 ** 1024 overflows.
        ceiling = min(MAX_DELAY_S, first * 2.0 ** min(retries, 16))
        return max(self.random.uniform(0.0, ceiling), failure.retry_after_s or 0.0)

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        deadline_s: float | None = None,
        on_retry: Callable[[CallFailed, float], None] | None = None,
        limit: Callable[[CallFailed, float, float], float] | None = None,
    ) -> T:
        """Call *attempt* until it succeeds, fails for good, or the deadline has passed.

        Args:
            attempt: raises `CallFailed`; anything else passes through at once.
            deadline_s: instead of the policy's own.
            limit: told of each failure, of when the first one was and of the deadline; returns the deadline that holds for it.
            on_retry: told of each failure that is followed by another attempt, and of the wait before it.

        Raises:
            CallFailed: the last failure.
        """
        first_failure: float | None = None
        retries = 0
        ambiguous = False
        while True:
            try:
                return await attempt()
            except CallFailed as failure:
                failure.after_ambiguous = ambiguous
                ambiguous = ambiguous or failure.ambiguous
                now = trio.current_time()
                if first_failure is None:
                    first_failure = now
                limit_s = self.deadline_s if deadline_s is None else deadline_s
                if limit is not None:
                    limit_s = limit(failure, first_failure, limit_s)
                left_s = first_failure + limit_s - now
                if not failure.retryable or left_s <= 0 or (failure.retry_after_s or 0) > left_s:
                    raise
                # The last attempt is made at the deadline rather than skipped because its wait was drawn too long.
                delay_s = min(self.delay_s(failure, retries), left_s)
                if on_retry is not None:
                    on_retry(failure, delay_s)
            retries += 1
            await trio.sleep(delay_s)
