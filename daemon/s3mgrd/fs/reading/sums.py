"""Whether the ranges that were fetched of a version are, all together, what S3 has the checksum of.

S3 says no checksum of a range, only that of the whole object. But the CRCs of neighbouring ranges combine: once every byte
of a version came, in whatever ranges and order, what arrived is compared. That is late for who has read the bytes before; the
last read waits for it, so that nobody gets to the end of damaged bytes without an error.

Nothing is computed of objects that are fetched with one request, which S3 says the checksum of. Each piece is summed up after
its readers have it. S3 is asked for its checksum, once, when half of the object is on its way, or `ASK_AFTER` of it: where it has
none, summing up ends with the answer, so who reads a large object learns that before the first piece is here. What comes before
the answer is summed up by each algorithm that S3 may name.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from s3mgrd.errors import S3mgrError
from s3mgrd.s3.algorithms import SUMMED_UP, Algorithm, Checksum

log = logging.getLogger(__name__)

MAX_RANGES: Final = 65_536
"""Of one version; one that is read in so many is not compared."""
ASK_AFTER: Final = 32 << 20
"""One HEAD for so much is next to nothing."""
INLINE_BYTES: Final = 512 << 10
"""Up to so many bytes a checksum takes less of the one thread that decides everything than changing threads twice."""

_Found = dict[Algorithm, int]


def _sum_up(algorithms: Sequence[Algorithm], data: bytes | memoryview) -> _Found:
    return {algorithm: algorithm.of(data) for algorithm in algorithms}


class Sums:
    """What arrived of one version, as checksums of ranges. Changes between awaits only.

    Args:
        size: of the version.
        ask: asks S3 for the checksum of the whole; None: it has none. May raise S3mgrError or OSError.
        nursery: where S3 is asked.
        damaged: told once, with what arrived and what should have.
    """

    def __init__(
        self,
        size: int,
        ask: Callable[[], Awaitable[Checksum | None]],
        nursery: trio.Nursery,
        damaged: Callable[[Checksum, Checksum], None],
    ) -> None:
        self._size: Final = size
        self._ask: Final = ask
        self._nursery: Final = nursery
        self._damaged: Final = damaged
        self._algorithms: tuple[Algorithm, ...] = SUMMED_UP
        self._ranges: dict[int, tuple[int, _Found]] = {}
        """By start: stop and checksums."""
        self._covered = 0
        self._coming = 0
        self._expected: Checksum | None = None
        self._is_needed = False
        self._is_asking = False
        self._was_asked = False
        self.is_over = False
        """Nothing more is to be found out: it was compared, or cannot be."""
        self._changed = trio.Event()

    def expect(self, size: int) -> None:
        """Note that so many bytes are being fetched."""
        self._coming += size
        self._ask_in_time()

    def begin(self) -> None:
        """Note that something of it is fetched from S3, and not all from the disk, which has checksums of its own."""
        self._is_needed = True
        self._ask_in_time()

    def _ask_in_time(self) -> None:
        is_due = self._covered + self._coming >= min(self._size / 2, ASK_AFTER)
        if self._is_needed and is_due and not self._was_asked:
            self._was_asked = self._is_asking = True
            self._nursery.start_soon(self._learn)

    async def arrived(self, start: int, size: int, data: bytes | memoryview | None) -> None:
        """Sum up what came of the bytes that were expected; None: they did not."""
        try:
            if self._is_needed and not self.is_over and data is not None:
                if size <= INLINE_BYTES:
                    found = _sum_up(self._algorithms, data)
                else:
                    found = await trio.to_thread.run_sync(_sum_up, self._algorithms, data)
                self._add(start, start + size, found)
        finally:
            self._coming -= size
            self._compare()
            self._note_change()

    async def settled(self, stop: int) -> None:
        """Wait, at the end of the version, until it is compared, if all of it is here or on its way."""
        if stop < self._size:
            return
        while self._may_tell():
            await self._changed.wait()

    def may_end_now(self, stop: int) -> bool:
        """Whether `settled` would return at once."""
        return stop < self._size or not self._may_tell()

    def _may_tell(self) -> bool:
        return (
            self._is_needed
            and not self.is_over
            and (self._coming > 0 or self._is_asking)
            and self._covered + self._coming >= self._size
        )

    def _add(self, start: int, stop: int, found: _Found) -> None:
        known = self._ranges.get(start)
        if known is not None and known[0] >= stop:
            return
        self._covered += stop - (start if known is None else known[0])
        self._ranges[start] = (stop, found)
        if len(self._ranges) > MAX_RANGES:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self._ranges.clear()

    async def _learn(self) -> None:
        try:
            self._expected = await self._ask()
        except (S3mgrError, OSError) as error:
            log.debug("S3 does not say the checksum of what is read: %s", error)
        self._is_asking = False
        if self._expected is None:
            self._end()
        else:
            self._algorithms = (self._expected.algorithm,)
        self._compare()
        self._note_change()

    def _compare(self) -> None:
        if self.is_over or self._expected is None or self._covered < self._size:
            return
        algorithm = self._expected.algorithm
        whole = position = 0
        while position < self._size:
            found = self._ranges.get(position)
            if found is None:
                return  # ranges overlap; a later one may fill the gap
            whole = algorithm.combine(whole, found[1][algorithm], found[0] - position)
            position = found[0]
        self._end()
        if whole != self._expected.value:
            self._damaged(Checksum(algorithm, whole), self._expected)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
