"""Objects that are read at random are fetched whole, in the background, where that pays.

An object that fits the block cache several times over: `FILL_FIRST` bytes on trial, then `FILL_PER_HIT` for each random read
that found its bytes here. Soon no read waits, and what is fetched in vain is bounded by what was of use.
"""

import logging
from typing import Final, Protocol

import trio

from s3mgrd.cache.blocks import BlockCache
from s3mgrd.cache.nodes import Node
from s3mgrd.errors import S3mgrError
from s3mgrd.fs.reading.patterns import MIB
from s3mgrd.fs.reading.segments import Superseded, Version, VersionKey
from s3mgrd.fs.volume import Volume

log = logging.getLogger(__name__)

FILL_AFTER: Final = 3
"""Random reads of a version before more of it is fetched than they ask for."""
FILL_FIRST: Final = 64 * MIB
FILL_PER_HIT: Final = 32 * MIB
FILL_STEP: Final = 4 * MIB
FILL_TASKS: Final = 8
FILL_SHARE: Final = 4
"""An object larger than one part in so many of the block cache is not fetched whole."""


class Fetcher(Protocol):
    """Fetches ranges of versions within a bound on memory."""

    held_bytes: int

    def hold(self, size: int) -> bool:
        """Count *size* more bytes as held, if there is room for them."""

    async def fetch(self, node: Node, etag: str, start: int, stop: int) -> bytes | memoryview:
        """Fetch a range of a version. Raises S3mgrError, OSError or `Superseded`."""


class Filler:
    """Fills the block cache of one volume with what *fetcher* fetches, in tasks of *nursery*."""

    def __init__(self, volume: Volume, nursery: trio.Nursery, fetcher: Fetcher) -> None:
        self._volume: Final = volume
        self._nursery: Final = nursery
        self._fetcher: Final = fetcher

    def read(
        self, node: Node, key: VersionKey, version: Version, size: int, *, is_hit: bool
    ) -> None:
        """Note a random read; fetch more of the object in the background where that will pay."""
        blocks = self._volume.blocks
        version.random_reads += 1
        if is_hit:
            version.credit = min(version.credit + FILL_PER_HIT, size)
        if (
            blocks is None
            or size > blocks.limit_bytes // FILL_SHARE
            or version.random_reads < FILL_AFTER
        ):
            return
        steps = -(-min(version.credit, size - version.filled) // FILL_STEP)
        for _ in range(min(FILL_TASKS - version.fillers, steps)):
            version.fillers += 1
            self._nursery.start_soon(self._fill_some, blocks, node, key, version, size)

    async def _fill_some(
        self, blocks: BlockCache, node: Node, key: VersionKey, version: Version, size: int
    ) -> None:
        try:
            while version.credit > 0 and version.filled < size:
                start = version.filled
                stop = min(start + FILL_STEP, size)
                if blocks.has(*key, start, stop):
                    version.filled = stop
                    continue
                if not self._fetcher.hold(stop - start):
                    return
                version.filled = stop
                version.credit -= stop - start
                try:
                    data = await self._fetcher.fetch(node, key[1], start, stop)
                    await blocks.keep(*key, start, memoryview(data), size, is_patient=True)
                finally:
                    self._fetcher.held_bytes -= stop - start
        except (S3mgrError, OSError, Superseded) as error:
            log.debug("inode %d is not fetched whole: %s", node.id, error)
            version.filled = size
        finally:
            version.fillers -= 1
