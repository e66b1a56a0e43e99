"""The block cache: bytes of versions that were fetched once, on the local disk, across restarts.

One sparse file, ``blocks.data``, holds blocks of `BLOCK_BYTES` in slots; `s3mgrd.cache.blockindex` says which is which, so
a restart scans nothing. Every block is verified against its checksum when it is read; the checksum also covers which
version and block it belongs to, so no crash, lost write or flipped bit can show anything but the right bytes. What does
not verify is forgotten, counted and fetched again.

The disk is shared with others: besides `limit_bytes`, `free_share` of the file system stays free whatever the limit says. A
disk that is full, or fails, only means that nothing is cached: reads go on.

Concurrency: the index is used on the trio thread; bytes are read, written and hashed in threads. One writer at a time.
"""

import ctypes
import errno
import logging
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio
from xxhash import xxh3_64_intdigest

from s3mgrd.buffers import lend
from s3mgrd.cache.blockindex import (
    BLOCK_BYTES,
    PINNED,
    Block,
    BlockIndex,
    Freed,
    occupied,
    open_index,
)

log = logging.getLogger(__name__)

FREE_SHARE: Final = 0.05
"""Of the file system, what stays free."""
LOOK_S: Final = 10.0
"""Between two looks at what others have left of the disk."""
REST_S: Final = 30.0
"""After the disk refused a write, nothing is cached for so long."""
MAX_WAITING_BYTES: Final = 32 << 20
"""Bytes that wait to be written, at most; what comes beyond is not cached. They are shared with the reader's memory."""
MAX_COUNTED: Final = 10_000
"""Versions whose hits are counted one by one."""
EVICT_BATCH: Final = 1024
"""Blocks that go in one step."""
_PUNCH: Final = 0x03
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (linux/falloc.h)."""
_MAX_UNSIGNED: Final = (1 << 64) - 1
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Found(NamedTuple):
    """Blocks of one version that are here, in a row, from `first` on."""

    version: int
    blocks: list[Block]


class BlockCache:
    """The block cache of one mount.

    Args:
        index: see `s3mgrd.cache.blockindex`.
        data_fd: the data file, open for reading and writing; the cache's own from here on.
        limit_bytes: most that all blocks may take on disk; 0: nothing is cached.
    """

    def __init__(self, index: BlockIndex, data_fd: int, *, limit_bytes: int) -> None:
        self._index = index
        self._fd = data_fd
        self.limit_bytes = limit_bytes
        self.free_share = FREE_SHARE
        self._writing = trio.Lock()
        self._aside = trio.Lock()
        self._waiting_bytes = 0
        self._rests_until = 0.0
        self.hit_bytes = 0
        """What reads took from here, and what S3 had to be asked for."""
        self.miss_bytes = 0
        self._files: OrderedDict[tuple[int, str], list[int]] = OrderedDict()
        """The same by version: hits, misses."""
        self._scratch = bytearray()
        self.corrupt_blocks = 0
        self.evicted_blocks = 0
        self.refused_blocks = 0
        """Not cached: the disk was full, or slower than S3."""

    @property
    def used_bytes(self) -> int:
        """What is on disk."""
        return self._index.total_bytes

    @property
    def pinned_bytes(self) -> int:
        """What of that is not evicted."""
        return self._index.bytes[PINNED]

    def count(self, inode: int, etag: str, *, hit: int = 0, missed: int = 0) -> None:
        """Count bytes that a read took from here, or that S3 had to be asked for."""
        self.hit_bytes += hit
        self.miss_bytes += missed
        counts = self._files.get((inode, etag))
        if counts is None:
            counts = self._files[inode, etag] = [0, 0]
            if len(self._files) > MAX_COUNTED:
                self._files.popitem(last=False)
        counts[0] += hit
        counts[1] += missed

    def counted(self) -> dict[tuple[int, str], tuple[int, int]]:
        """Return the bytes by version: hits and misses, since the worker began; of many versions, the newest."""
        return {version: (hit, missed) for version, (hit, missed) in self._files.items()}

    def stored_bytes(self, inode: int) -> int:
        """Count the bytes that are here of an inode."""
        return self._index.stored_bytes(inode)

    # Reading

    def find(self, inode: int, etag: str, start: int, stop: int) -> Found | None:
        """Return the blocks of [start, stop) that are here from *start* on, as many as there are in a row; None: none."""
        try:
            version = self._index.version(inode, etag)
            if version is None:
                return None
            first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
            here = self._index.find(version, first, last)
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        row = []
        for number in range(first, last + 1):
            block = here.get(number)
            if block is None:
                break
            row.append(block)
        return Found(version, row) if row else None

    def has(self, inode: int, etag: str, start: int, stop: int) -> bool:
        """Whether all of [start, stop) is here."""
        found = self.find(inode, etag, start, stop)
        return found is not None and len(found.blocks) == (stop - 1) // BLOCK_BYTES - start // BLOCK_BYTES + 1  # fmt: skip

    def read_now(self, inode: int, etag: str, start: int, stop: int) -> memoryview | None:
        """Return [start, stop), verified, if all of it is in the kernel's memory; good until the next call. None: it is not."""
        found = self.find(inode, etag, start, stop)
        if found is None:
            return None
        begin = found.blocks[0].number * BLOCK_BYTES
        if begin + sum(block.size for block in found.blocks) < stop:
            return None
        if len(self._scratch) < stop - begin + BLOCK_BYTES:
            self._scratch = bytearray(stop - begin + BLOCK_BYTES)
        view, position = memoryview(self._scratch), 0
        for block in found.blocks:
            part = view[position : position + block.size]
            try:
                read = os.preadv(self._fd, [part], block.slot * BLOCK_BYTES, os.RWF_NOWAIT)
            except OSError:
                return None  # it would have to be waited for, or this file system cannot tell
            if read != block.size or _checksum(part, found.version, block.number) != block.checksum:
                return None  # `read` looks closer
            position += block.size
        self._index.used(found.blocks)
        self.count(inode, etag, hit=stop - start)
        return view[start - begin : stop - begin]

    def favour(self, inode: int, etag: str, start: int, stop: int) -> bool:
        """Whether all of [start, stop) is here; if so it stays as long as what is kept now as favoured."""
        found = self.find(inode, etag, start, stop)
        if found is None or not self.has(inode, etag, start, stop):
            return False
        self._index.favour(found.blocks)
        return True

    async def read(self, found: Found, start: int, stop: int) -> memoryview | None:
        """Read and verify blocks; returns the bytes from *start* to *stop* or to the end of the last block.

        None: a block was not what it should be, and is forgotten; or it was given up meanwhile.
        """
        try:
            data, bad = await trio.to_thread.run_sync(self._read, found)
        except OSError as error:
            log.warning("the block cache cannot be read: %s", error)
            return None
        if bad is not None:
            self._forget(bad, found.version)
            return None
        self._index.used(found.blocks)
        begin = found.blocks[0].number * BLOCK_BYTES
        return data[start - begin : stop - begin]

    def _read(self, found: Found) -> tuple[memoryview, Block | None]:
        """Read the blocks into one buffer; returns it, and the first one that does not verify."""
        data = lend(sum(block.size for block in found.blocks))
        position = 0
        for block in found.blocks:
            part = data[position : position + block.size]
            read = os.preadv(self._fd, [part], block.slot * BLOCK_BYTES)
            if read != block.size or _checksum(part, found.version, block.number) != block.checksum:
                return data, block
            position += block.size
        return data, None

    def _forget(self, block: Block, version: int) -> None:
        try:
            if not self._index.is_current(block, version):
                return  # evicted, and perhaps overwritten, while it was being read
            self._index.drop(block, version)
        except sqlite3.Error as error:
            self._give_up(error)
            return
        self.corrupt_blocks += 1
        log.warning(
            "a block of the cache on disk was damaged (slot %d); it is fetched again", block.slot
        )

    # Keeping

    def wants(self, size: int) -> bool:
        """Whether *size* bytes may be given to `keep` now."""
        return self._waiting_bytes + size <= MAX_WAITING_BYTES and self._is_open(size)

    def _is_open(self, size: int) -> bool:
        return occupied(size) <= self.limit_bytes and trio.current_time() >= self._rests_until

    async def keep(
        self,
        inode: int,
        etag: str,
        start: int,
        data: memoryview,
        size: int,
        *,
        favoured: bool = False,
        is_patient: bool = False,
    ) -> bool:
        """Keep bytes of a version of *size* bytes. *start* begins a block; a block that *data* holds in part is left out.

        Returns when they are on disk (True), or when they are not going to be: a cache does not fail. *favoured*: somebody
        asked for them to be here, and bounds what waits; see `BlockIndex.put`. *is_patient*: they wait though many others
        do, and the caller bounds how many.
        """
        if not favoured and not (self._is_open(len(data)) if is_patient else self.wants(len(data))):
            self.refused_blocks += -(-len(data) // BLOCK_BYTES)
            return False
        counted = 0 if is_patient else len(data)
        self._waiting_bytes += counted
        try:
            async with self._writing:
                return await self._keep(inode, etag, start, data, size, favoured=favoured)
        except sqlite3.Error as error:
            self._give_up(error)
        except OSError as error:
            self._rests_until = trio.current_time() + REST_S
            if error.errno not in _DISK_FULL:
                log.warning("the block cache cannot be written: %s", error)
            else:
                log.info("the disk of the block cache is full; reads go on without it")
        finally:
            self._waiting_bytes -= counted
        return False

    async def written(self) -> None:
        """Wait until all that was given to `keep` before is on disk, or is not going to be."""
        async with self._writing:  # a trio.Lock is fair
            return

    async def _keep(
        self, inode: int, etag: str, start: int, data: memoryview, size: int, *, favoured: bool
    ) -> bool:
        number, views = start // BLOCK_BYTES, []
        for begin in range(0, len(data), BLOCK_BYTES):
            view = data[begin : begin + BLOCK_BYTES]
            if len(view) == BLOCK_BYTES or start + begin + len(view) == size:
                views.append(view)
        need = sum(occupied(len(view)) for view in views)
        freed = self._make_room(need)
        if self.used_bytes + need > self.limit_bytes or not views:
            await self._punch(freed)
            self.refused_blocks += len(views)
            return not views
        version = self._index.add_version(inode, etag)
        slots = self._index.free_slots(len(views))
        blocks = await trio.to_thread.run_sync(self._write, freed, version, number, slots, views)
        self._index.put(version, blocks, favoured=favoured)
        return True

    def _write(
        self,
        freed: Sequence[Freed],
        version: int,
        number: int,
        slots: Sequence[int],
        views: Sequence[memoryview],
    ) -> list[Block]:
        self._punch_now(freed)
        blocks = []
        for slot, view in zip(slots, views, strict=True):
            if os.pwrite(self._fd, view, slot * BLOCK_BYTES) != len(view):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            blocks.append(Block(slot, number, len(view), _checksum(view, version, number)))
            number += 1
        return blocks

    # Room

    def _make_room(self, size: int) -> list[Freed]:
        """Evict until *size* bytes fit under the limit and the disk keeps its share; returns the slots given up."""
        over = self.used_bytes + size - self.limit_bytes
        short = self._short(size)
        missing = max(over, min(short, self.used_bytes))
        if short > self.used_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if missing <= 0:
            return []
        freed = self._index.evict(missing, self.limit_bytes)
        self.evicted_blocks += len(freed)
        return freed

    def _short(self, size: int) -> int:
        """Return by how much the disk would have less than its share free with *size* bytes more; negative: it has more."""
        status = os.fstatvfs(self._fd)
        reserve = int(status.f_blocks * status.f_frsize * self.free_share)
        return reserve + size - status.f_bavail * status.f_frsize

    async def set_limit(self, limit_bytes: int) -> None:
        """Change the limit; what is too much goes now."""
        self.limit_bytes = limit_bytes
        await self.shrink()

    async def shrink(self) -> None:
        """Give up what is over the limit, and what others need of the disk; what is pinned stays."""
        async with self._writing:
            try:
                over = max(self.used_bytes - self.limit_bytes, min(self._short(0), self.used_bytes))
                freed = self._index.evict(over, self.limit_bytes) if over > 0 else []
            except OSError as error:
                log.warning("the disk of the block cache cannot be looked at: %s", error)
                return
            except sqlite3.Error as error:
                self._give_up(error)
                return
            if freed:
                log.info("the block cache gave up %d blocks to make room on its disk", len(freed))
            self.evicted_blocks += len(freed)
            await self._punch(freed)

    async def watch_disk(self) -> None:
        """Give way to others who fill the disk, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            await self.shrink()

    async def evict_inode(self, inode: int) -> int:
        """Give up what is here of an inode and not pinned; returns how many bytes that were."""
        return await self._evict(lambda: self._index.drop_inode(inode))

    async def drop_damaged(self, inode: int, etag: str) -> None:
        """Give up all that is here of a version, pinned or not: it is not what S3 has, so it is fetched again."""

        def drop() -> list[Freed]:
            version = self._index.version(inode, etag)
            freed = self._index.drop_version(version) if version is not None else []
            self.corrupt_blocks += len(freed)
            return freed

        await self._evict(drop)

    async def evict_all(self) -> int:
        """Give up everything that is not pinned; returns how many bytes that were."""
        total = 0
        while done := await self._evict(lambda: self._index.drop_some(EVICT_BATCH)):
            total += done
        return total

    async def _evict(self, drop: Callable[[], list[Freed]]) -> int:
        async with self._writing:
            try:
                freed = drop()
            except sqlite3.Error as error:
                self._give_up(error)
                return 0
            await self._punch(freed)
        return sum(slot.size for slot in freed)

    @property
    def room_bytes(self) -> int:
        """How much may be here in all: under the limit, and with what others have left of the disk."""
        free = self.used_bytes - self._short(0)
        return max(0, min(self.limit_bytes, free))

    # Pins: which versions are wanted is decided in `s3mgrd.fs.reading.pins`

    def pin(self, inode: int, etag: str, mark: int) -> None:
        """Keep a version's blocks from being evicted, those to come too; *mark* 0: no longer."""
        try:
            if mark or self._index.version(inode, etag) is not None:
                self._index.pin(self._index.add_version(inode, etag), mark)
        except sqlite3.Error as error:
            self._give_up(error)

    def is_pinned(self, inode: int, etag: str) -> bool:
        """Whether a version's blocks are not evicted."""
        try:
            version = self._index.version(inode, etag)
            return version is not None and self._index.mark(version) > 0
        except sqlite3.Error as error:
            self._give_up(error)
            return False

    def pinned_bytes_of(self, inode: int, etag: str) -> int:
        """Count the bytes of a version that are here and pinned."""
        return self._index.stored_bytes(inode) if self.is_pinned(inode, etag) else 0

    def unpin_older(self, mark: int) -> None:
        """Let go of all that is pinned with an earlier mark: it was not found to be wanted any more."""
        try:
            for version in self._index.pinned_before(mark):
                self._index.pin(version, 0)
        except sqlite3.Error as error:
            self._give_up(error)

    def last_mark(self) -> int:
        """Return the highest mark that something is pinned with."""
        try:
            return self._index.last_mark()
        except sqlite3.Error as error:
            self._give_up(error)
            return 0

    async def largest(self, limit: int) -> list[tuple[int, str]]:
        """Return inode and ETag of the versions of which most is here."""
        async with self._aside:
            try:
                return await trio.to_thread.run_sync(self._index.largest, limit)
            except sqlite3.Error as error:
                self._give_up(error)
                return []

    async def _punch(self, freed: Sequence[Freed]) -> None:
        if freed:
            await trio.to_thread.run_sync(self._punch_now, freed)

    def _punch_now(self, freed: Sequence[Freed]) -> None:
        """Give the disk back what slots held. A file system that cannot keeps it for the next block."""
        for slot, size in freed:
            _libc.fallocate(
                self._fd,
                _PUNCH,
                ctypes.c_longlong(slot * BLOCK_BYTES),
                ctypes.c_longlong(occupied(size)),
            )

    # The end

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without a cache: the index does not work. The next worker makes a new one if it is damaged."""
        if self.limit_bytes:
            log.warning("the block cache is off until the next start: %s", error)
        self.limit_bytes = 0

    def close(self) -> None:
        """Close the files."""
        self._index.close()
        os.close(self._fd)


def _checksum(data: memoryview, version: int, number: int) -> int:
    """Return XXH3-64 of a block, seeded with what it is a block of, as the signed number that SQLite holds."""
    seed = (version << 26 ^ number) & _MAX_UNSIGNED  # 5 TiB have fewer than 2**26 blocks
    value = xxh3_64_intdigest(data, seed)
    return value - (1 << 64) if value >> 63 else value


def open_block_cache(directory: Path, *, owner: str, limit_bytes: int) -> BlockCache | None:
    """Open the block cache in *directory*, with what the last worker left. None, and a line in the log: it cannot be used.

    *owner* is the identity of the mount.db whose inode numbers are meant: what belongs to another is forgotten.
    """
    try:
        index = open_index(directory / "blocks.db", owner=owner)
        fd = os.open(directory / "blocks.data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, sqlite3.Error) as error:
        log.warning("no block cache in %s: %s", directory, error)
        return None
    if not index.total_bytes:
        os.ftruncate(fd, 0)
    return BlockCache(index, fd, limit_bytes=limit_bytes)
