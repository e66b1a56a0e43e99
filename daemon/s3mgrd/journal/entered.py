"""Checksums of staged bytes as they came from the kernel, so that what changes on the local disk afterwards is not uploaded.

Kept in memory, for runs that do not cross the borders of blocks of `BLOCK_BYTES`: a part of an upload, which begins and ends on
such borders, has the sum that they combine to. What was written in another order than forwards, or before the worker began, has
none; its sum is computed when it is sent.
"""

from typing import Final, NamedTuple

from s3mgrd.s3.algorithms import ENTERED, Checksum

BLOCK_BYTES: Final = 1 << 20
MAX_BLOCKS: Final = 65_536
"""The oldest go: 16 MB of memory at most, for 64 GiB that wait."""


class Run(NamedTuple):
    """Bytes [start, stop) of one block, and their checksum by the algorithm `ENTERED`."""

    start: int
    stop: int
    checksum: int


def sum_up(offset: int, data: bytes | memoryview) -> list[Run]:
    """Compute the checksums of *data*, block by block. May run in a thread, and releases the GIL."""
    view = memoryview(data)
    runs = []
    position, end = offset, offset + len(view)
    while position < end:
        stop = min(end, position - position % BLOCK_BYTES + BLOCK_BYTES)
        runs.append(Run(position, stop, ENTERED.of(view[position - offset : stop - offset])))
        position = stop
    return runs


class Entered:
    """What is known of one file: at most one run a block."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}

    def add(self, runs: list[Run]) -> None:
        """Note what was written; what it overlaps is known no more, what it continues becomes one run with it."""
        for run in runs:
            block = run.start // BLOCK_BYTES
            known = self._runs.pop(block, None)
            if known is not None and known.stop == run.start:
                checksum = ENTERED.combine(known.checksum, run.checksum, run.stop - run.start)
                run = Run(known.start, run.stop, checksum)
            elif known is not None and known.start == run.stop:
                checksum = ENTERED.combine(run.checksum, known.checksum, known.stop - known.start)
                run = Run(run.start, known.stop, checksum)
            self._runs[block] = run
        while len(self._runs) > MAX_BLOCKS:
            del self._runs[next(iter(self._runs))]

    def forget(self, start: int, stop: int) -> None:
        """Know nothing any more of blocks that [start, stop) touches."""
        if stop - start > len(self._runs) * BLOCK_BYTES:
            kept = {b: r for b, r in self._runs.items() if r.stop <= start or r.start >= stop}
            self._runs = kept
            return
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            self._runs.pop(block, None)

    def of(self, start: int, stop: int) -> Checksum | None:
        """Return the checksum of [start, stop); None: it is not known."""
        whole, position = 0, start
        while position < stop:
            run = self._runs.get(position // BLOCK_BYTES)
            if run is None or run.start != position or run.stop > stop:
                return None
            whole = ENTERED.combine(whole, run.checksum, run.stop - run.start)
            position = run.stop
        return Checksum(ENTERED, whole)
