"""Bytes of the version that a staged file is a change of, brought to where its own bytes lie."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.writing.pace import Pace
from s3mgrd.journal.entered import BLOCK_BYTES
from s3mgrd.journal.staging import StagedFile

FETCH_BYTES: Final = 2 << 20
LEAST_FETCH_BYTES: Final = BLOCK_BYTES
"""Few bytes are fetched in smaller pieces, as many at a time as may be: a connection gives so much a second. Whole blocks of checksums
are: of what arrives in any order, each block's is known then, and nothing is read again to be sent."""

ReadBase = Callable[[int, int], Awaitable[bytes | memoryview]]


async def fill(
    file: StagedFile, ranges: Sequence[tuple[int, int]], read: ReadBase, *, at_once: int
) -> None:
    """Read *ranges* of the base version, *at_once* pieces at the same time; they are the file's own from then on.

    The caller holds the inode's lock. What arrived before a failure stays.

    Raises:
        OSError: the disk is full.
        Exception: what *read* raises.
    """
    limiter, pace = trio.CapacityLimiter(at_once), Pace()
    share = sum(last - first for first, last in ranges) // at_once
    share = -(-share // LEAST_FETCH_BYTES) * LEAST_FETCH_BYTES
    length = min(max(share, LEAST_FETCH_BYTES), FETCH_BYTES)

    async def fetch(start: int, stop: int) -> None:
        try:
            data = await read(start, stop)
            if pace.takes_at_once(len(data)):
                pace.put(file, start, data)
            else:
                await trio.to_thread.run_sync(file.put, start, data)
            file.record_base(start, len(data))
        finally:
            limiter.release_on_behalf_of(start)

    changed_ns = file.mtime_ns()
    try:
        async with side_by_side() as nursery:
            for first, last in ranges:
                while first < last:
                    stop = min(first - first % length + length, last)
                    await limiter.acquire_on_behalf_of(first)
                    nursery.start_soon(fetch, first, stop)
                    first = stop
    finally:
        file.set_mtime_ns(changed_ns)
