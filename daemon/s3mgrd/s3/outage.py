"""Whether S3 can be reached at all, as requests find out: for mounts that would rather do without it than wait.

A mount with `offline_ok` goes on with what it has while S3 cannot be reached. Then it must not find that out anew, by a minute
of retries, for every name that is looked up. So: when requests that read fail in a way that says nothing about what they
asked for (no connection, no answer, 5xx), and nothing at all has been answered for `PATIENCE_S`, an outage *begins*. From then on
such requests are refused at once, and one prober asks (`s3mgrd.fs.health`); any answer to anybody *ends* it.

Requests that write are never refused: what a program waits for is tried as long as ever.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

import trio

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.s3.retry import CallFailed

log = logging.getLogger("s3mgrd.s3")

PATIENCE_S: Final = 5.0
"""A restart of a proxy, or a lost packet or two, take less."""
ANSWER_S: Final = 10.0
"""A request that reads is answered sooner, or it counts as not answered, while an outage would help."""
UNANSWERED: Final = "Timeout"
"""The code of a request that was not answered in time: it has been patient enough."""
READS: Final = frozenset({"GetObject", "HeadObject", "ListObjectsV2"})
_MAY_BE_DOWN: Final = frozenset({"ServiceUnavailable", "503"})
"""What is called throttling, but is also what a proxy says when there is nobody behind it."""


def _nothing() -> None:
    """Tell nobody."""


class Outage:
    """What is known of one store. Used on the trio thread; no checkpoints.

    Attributes:
        is_watched: somebody can do without S3 (`offline_ok`); otherwise no outage ever begins.
        since_ns: when the outage began; None: there is none.
        begun, ended: called when it does.
    """

    def __init__(self) -> None:
        self.is_watched = False
        self.since_ns: int | None = None
        self.begun: Callable[[S3mgrError], None] = lambda _: None
        self.ended: Callable[[], None] = _nothing
        self._cause: S3mgrError | None = None
        self._answered_at = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether S3 cannot be reached."""
        return self.since_ns is not None

    def watch(self, *, is_watched: bool) -> None:
        """Let outages begin, or never again."""
        self.is_watched = is_watched
        if not is_watched:
            self.note_answer()

    def refusal(self) -> Unavailable:
        """Return what to answer instead of asking S3."""
        return Unavailable(
            f"S3 cannot be reached, and this is not known here: {self._cause}",
            hint="the mount goes on with what it has until S3 is back",
        )

    def limit_s(self, failure: CallFailed, first_failure: float, limit_s: float) -> float:
        """Return for how long to try a request that reads again, *limit_s* being the limit in general."""
        if self.is_watched and is_silence(failure) and self._answered_at < first_failure:
            return 0.0 if failure.code == UNANSWERED else min(PATIENCE_S, limit_s)
        return limit_s

    def note_given_up(self, failure: CallFailed, limit_s: float) -> None:
        """Note that a request that reads was given up, *limit_s* being the limit of retries in general."""
        silent_s = trio.current_time() - self._answered_at
        if self.is_watched and is_silence(failure) and silent_s >= min(PATIENCE_S, limit_s):
            self.begin(failure.error)

    def begin(self, cause: S3mgrError) -> None:
        """Note that S3 cannot be reached."""
        if self.is_on or not self.is_watched:
            return
        self.since_ns, self._cause = time.time_ns(), cause
        log.warning(
            "S3 cannot be reached (%s): the mount goes on with what it has, and asks whether S3 is back",
            cause.detail,
        )
        self.begun(cause)

    def note_answer(self) -> None:
        """Note that S3 answered something."""
        self._answered_at = trio.current_time()
        if self.since_ns is not None:
            log.warning("S3 is back after %.0f s", (time.time_ns() - self.since_ns) / 1e9)
            self.since_ns = self._cause = None
            self.ended()


def is_silence(failure: CallFailed) -> bool:
    """Whether a failure says nothing about what was asked for: as far as it tells, S3 is not there."""
    if not isinstance(failure.error, Unavailable) or 0 < failure.status < 500:
        return False
    return not failure.throttled or failure.code in _MAY_BE_DOWN
