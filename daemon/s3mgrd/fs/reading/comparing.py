"""What becomes of versions of which damaged bytes arrived: they are forgotten everywhere, and who has read them is told.

A program cannot be told to forget what it has read. So an open file of which damaged bytes may have been read gives nothing but EIO from
then on; opened again, it is fetched again. When bytes are damaged is found out by `s3mgrd.fs.reading.sums`.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.fs.reading.segments import Version, VersionKey
from s3mgrd.fs.reading.sums import Sums
from s3mgrd.fs.volume import Volume
from s3mgrd.s3.algorithms import Checksum

log = logging.getLogger(__name__)

SERIALS: Final = 1 << 16
TellInodes = Callable[[Sequence[tuple[Inode, bool]]], Awaitable[None]]


class Ages(Protocol):
    """Tells which of two handles was opened first, by numbers from 0 to `SERIALS` - 1 that begin anew after that."""

    def newest(self) -> int:
        """Return the number of the last handle."""

    def of(self, handle: int) -> int:
        """Return the number of a handle."""


class NoAges:
    """Nobody opens anything."""

    def newest(self) -> int:
        """See `Ages`."""
        return 0

    def of(self, handle: int) -> int:
        """See `Ages`."""
        return 0


async def _no_kernel(_: Sequence[tuple[Inode, bool]]) -> None:
    """Nobody has anything to forget."""


class Comparer:
    """Compares what one reader fetches with what S3 has.

    Args:
        drop: drops what is in memory of a version.

    Attributes:
        tell_inodes: has the kernel forget inodes, and what it has of the content of those with True beside them.
        ages: of handles.
        damaged: versions of which damaged bytes arrived, since the worker began.
    """

    def __init__(
        self, volume: Volume, nursery: trio.Nursery, drop: Callable[[VersionKey], None]
    ) -> None:
        self._volume: Final = volume
        self._nursery: Final = nursery
        self._drop: Final = drop
        self._told: Final[dict[VersionKey, int]] = {}
        """Versions of which damaged bytes were given out; handles that are no newer than this get nothing more."""
        self._leaving: Final[set[VersionKey]] = set()
        """Versions whose damaged bytes are still in the block cache or with the kernel."""
        self.tell_inodes: TellInodes = _no_kernel
        self.ages: Ages = NoAges()
        self.damaged = 0

    def sums(self, node: Node, key: VersionKey, version: Version, size: int) -> Sums:
        """Return the checksums of what arrived of a version."""
        if version.sums is not None:
            return version.sums

        async def ask() -> Checksum | None:
            return await self._volume.store.checksum(self._volume.key_in_s3(node), key[1])

        def damaged(found: Checksum, expected: Checksum) -> None:
            log.warning(
                "what arrived of %r (version %s, %d bytes) is damaged: it has the %s %s, in S3 it has %s; "
                "it is fetched again, and programs that have it open get an error",
                self._volume.key_in_s3(node), key[1], size, found.algorithm.title, found, expected,
            )  # fmt: skip
            self.damaged += 1
            self._drop(key)
            if key not in self._leaving:
                self._leaving.add(key)
                self._nursery.start_soon(self._forget, key)

        version.sums = Sums(size, ask, self._nursery, damaged)
        return version.sums

    async def _forget(self, key: VersionKey) -> None:
        blocks = self._volume.blocks
        if blocks is not None:
            await trio.lowlevel.checkpoint()  # what is to be kept of it stands in line by then
            await blocks.drop_damaged(*key)
        await self.tell_inodes([(key[0], True)])
        # Whoever was opened until now may have read of the kernel's pages, without a word to us.
        self._told[key] = self.ages.newest()
        self._leaving.remove(key)

    def check(self, handle: int, key: VersionKey) -> None:
        """Raise OSError(EIO) where damaged bytes may have been read.

        It does not wait until they are gone: before the kernel forgets pages, it waits for reads that are under way.
        """
        if key in self._leaving or self._is_told(handle, key):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _is_told(self, handle: int, key: VersionKey) -> bool:
        last = self._told.get(key)
        if last is None:
            return False
        if (self.ages.newest() - last) % SERIALS >= SERIALS // 2:
            del self._told[key]  # older and newer ones cannot be told apart any more
            return False
        return not 0 < (self.ages.of(handle) - last) % SERIALS < SERIALS // 2

    def is_leaving(self, key: VersionKey) -> bool:
        """Whether the block cache may have damaged bytes of a version. Nobody waits for the end of that: see `check`."""
        return key in self._leaving

    def must_wait(self, handle: int, key: VersionKey, version: Version | None, stop: int) -> bool:
        """Whether a read up to *stop* fails, or has to wait for a comparison."""
        if key in self._leaving or self._is_told(handle, key):
            return True
        return (
            version is not None and version.sums is not None and not version.sums.may_end_now(stop)
        )
