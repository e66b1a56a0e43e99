"""Small changes of mount.db that many tasks have to make: a few share a transaction, and everything else gets its turn in between.

Uploads of small files wait for S3 together, so they wake together, too. If each committed a transaction of its own then, a program
that makes the next file would wait for all of them with every request. So they take turns: a few make their changes in one
transaction, then the loop looks at everything else before the next few do.

Concurrency: there is no task of its own. The first of those who wait makes the changes of a turn, and wakes the next to do the
same; who is cancelled hands that on.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import trio

from s3mgrd.cache.database import MountDatabase
from s3mgrd.errors import S3mgrError

T = TypeVar("T")

TURN: Final = 16
"""Changes, about a tenth of a millisecond each; whoever they are made for sends a request or ends right after it. With 16 instead of 4
an upload costs an eighth less of the processor's time, with 48 hardly less than that. A request may have to wait for one turn."""


class _Waiting:
    """A change that a task waits for. Any: it is of the type that the task knows."""

    def __init__(self, change: Callable[[], Any], follow: Callable[[Any], object]) -> None:
        self.change: Final = change
        self.follow: Final = follow
        self.woken: Final = trio.Event()
        self.is_made = False
        self.result: Any = None
        self.error: S3mgrError | OSError | None = None


class Turns:
    """The turns of one database."""

    def __init__(self, database: MountDatabase) -> None:
        self._database = database
        self._waiting: deque[_Waiting] = deque()
        self._is_led = False
        """Somebody is about to make the changes of the next turn."""

    async def make(self, change: Callable[[], T], follow: Callable[[T], object]) -> T:
        """Make a change in a transaction that others may share; once it is committed do what *follows*. Returns what *change* did.

        Neither may have a checkpoint; there is none between the commit and *follow*. *change* may be called twice, if the first
        transaction is rolled back: it leaves nothing behind but rows. Cancelled, both were done, or neither.

        Raises:
            S3mgrError, OSError: what one of the two raised, or the commit.
        """
        own = _Waiting(change, follow)
        self._waiting.append(own)
        try:
            if self._is_led:
                await own.woken.wait()
            else:
                self._is_led = True
                await trio.lowlevel.checkpoint()  # others come meanwhile
                own.woken.set()
        except trio.Cancelled:
            if own in self._waiting:
                leads = own is self._waiting[0]
                self._waiting.remove(own)
                if leads:
                    self._hand_on()
            raise
        if self._waiting and self._waiting[0] is own:
            self._take_turn()
        if not own.is_made:  # in company it failed, perhaps for another's sake
            with self._database.transaction():
                own.result = change()
            follow(own.result)
        if own.error is not None:
            raise own.error
        result: T = own.result
        return result

    def _take_turn(self) -> None:
        turn = [self._waiting.popleft() for _ in range(min(TURN, len(self._waiting)))]
        try:
            with suppress(S3mgrError, OSError):
                with self._database.transaction():
                    for waiting in turn:
                        waiting.result = waiting.change()
                for waiting in turn:
                    waiting.is_made = True
            for waiting in turn:
                if waiting.is_made:
                    _follow(waiting)
        finally:
            for waiting in turn:
                waiting.woken.set()
            self._hand_on()

    def _hand_on(self) -> None:
        """Let the next of those who wait make the changes of the next turn."""
        self._is_led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].woken.set()


def _follow(waiting: _Waiting) -> None:
    try:
        waiting.follow(waiting.result)
    except (S3mgrError, OSError) as error:
        waiting.error = error
