"""Reads of versions in S3: ranged GETs with If-Match, read ahead while a handle reads in some order.

A version's bytes are held in segments: ranges that are being fetched or are here. Readers of one version share them.
What a handle will want next is told by `s3mgrd.fs.reading.patterns`; several requests of a window are in flight at once, because one
connection alone does not fill a network. What was fetched goes to the block cache on disk (`s3mgrd.cache.blocks`), and is
looked for there first. The kernel keeps the pages it was given, so what was read and lies in the block cache goes at once.

Random reads fetch the blocks they touch and no more; what else comes of an object that is read so, see
`s3mgrd.fs.reading.filling`.

Memory: `Reader.held_bytes` is what all segments hold or will hold, and what is fetched in the background. Reading ahead stops
at the limit; what a program waits for is fetched always (the kernel bounds it: max_background requests of 1 MiB). Room is made
of what was read, and not of what was read ahead and is about to be wanted: many readers have small windows, not vain ones.

Concurrency: state changes between awaits only. A fetch is a task of the reader's nursery, so that it goes on
when the read that wanted it is interrupted. What was read ahead of a version is cancelled when its last handle is closed; what is
here stays for `LINGER_S`, because many programs open a file again for each read.
"""

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from s3mgrd import buffers
from s3mgrd.cache.blockindex import BLOCK_BYTES
from s3mgrd.cache.blocks import BlockCache
from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import NotFound, PreconditionFailed, Unavailable
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.reading.comparing import Comparer
from s3mgrd.fs.reading.filling import FILL_FIRST, Filler
from s3mgrd.fs.reading.patterns import MIB, Stream, step_bytes
from s3mgrd.fs.reading.segments import Segment, Superseded, Version, VersionKey
from s3mgrd.fs.volume import Volume
from s3mgrd.s3.counting import Waiting
from s3mgrd.s3.port import LIGHT_FACTOR, LIGHT_RANGE_BYTES

log = logging.getLogger(__name__)

WHOLE_BYTES: Final = MIB // 2
"""Up to here an object is fetched whole: S3 says no checksum of less. At 90 MB/s a connection, three more blocks take 5 ms."""
LINGER_S: Final = 5.0
STALE_AFTER: Final = 2
"""What was read ahead is given up unread when as many times the memory limit was asked for since: its reader went elsewhere."""


class Reader:
    """Reads of one volume."""

    def __init__(
        self,
        volume: Volume,
        metadata: Metadata,
        nursery: trio.Nursery,
        version_gone: Callable[[Node], None],
    ) -> None:
        self._volume = volume
        self._metadata = metadata
        self._nursery = nursery
        self._version_gone = version_gone
        self.comparer: Final = Comparer(volume, nursery, self._drop_data)
        self._filler: Final = Filler(volume, nursery, self)
        self._versions: dict[VersionKey, Version] = {}
        self._streams: dict[tuple[int, VersionKey], Stream] = {}
        self._idle: dict[VersionKey, float] = {}
        """Versions that nobody has open, and when they are dropped; soonest first."""
        self._guesses = trio.CapacityLimiter(1)
        self._light_guesses = trio.CapacityLimiter(1)
        self._starting: Final[deque[tuple[Node, VersionKey, Version, Segment, int]]] = deque()
        self._clock = 0
        """Bytes that were ever asked for."""
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0
        self.ahead_bytes = 0
        """What was asked for before somebody read it; of that, what somebody did read, and what was given up unread."""
        self.ahead_used_bytes = 0
        self.ahead_wasted_bytes = 0

    async def read(
        self, node: Node, etag: str, size: int, offset: int, length: int, *, handle: int
    ) -> bytes | memoryview:
        """Read from version *etag* of *size* bytes; fewer bytes than *length* only at its end.

        Raises:
            OSError(ESTALE): the version is gone from S3 and these bytes are not held.
            Superseded: ask again with the row as it is now.
            S3mgrError: S3 did not deliver.
        """
        stop = min(offset + length, size)
        if offset >= stop:
            return b""
        key: VersionKey = (node.id, etag)
        self.comparer.check(handle, key)
        version = self._version(key)
        stream = self._stream(handle, key)
        in_order = stream.follow(offset, stop, limit=self._window_limit())
        misses = self.misses
        wanted = self._cover(node, key, version, offset, stop, size)
        is_hit = self.misses == misses
        if in_order:
            if not is_hit:
                stream.reached = 0  # what was asked for is gone again, perhaps more of it
            self._read_ahead(node, key, version, stream, stop, size)
        else:
            self._filler.read(node, key, version, size, is_hit=is_hit)
        try:
            data = await self._collect(version, wanted, offset, stop)
        except (Unavailable, OSError):
            # What was fetched with it cannot be had; these bytes alone may be here.
            here = await self._from_disk(key, offset, stop)
            if here is None:
                raise
            return here
        if version.sums is not None:
            await version.sums.settled(stop)
        self.comparer.check(handle, key)
        return data

    async def _from_disk(self, key: VersionKey, start: int, stop: int) -> memoryview | None:
        """Read [start, stop) from the block cache; None: not all of it is there."""
        blocks = self._volume.blocks
        found = blocks.find(*key, start, stop) if blocks is not None else None
        if blocks is None or found is None or self.comparer.is_leaving(key):
            return None
        data = await blocks.read(found, start, stop)
        if data is None or len(data) < stop - start:
            return None
        blocks.count(*key, hit=len(data))
        return data

    def read_now(
        self, node: Node, etag: str, size: int, offset: int, length: int, *, handle: int
    ) -> list[memoryview] | None:
        """Return what `read` would, in pieces, if it is in memory, the kernel's of the block cache included.

        None: it is not. The pieces are good until the next call.
        """
        stop = min(offset + length, size)
        if offset >= stop:
            return []
        key: VersionKey = (node.id, etag)
        version = self._versions.get(key)
        if self.comparer.must_wait(handle, key, version, stop):
            return None
        ready = version.ready(offset, stop) if version is not None else None
        if version is None or ready is None:
            blocks = self._volume.blocks
            data = blocks.read_now(*key, offset, stop) if blocks is not None else None
            if data is None:
                return None
            version, ready = self._version(key), []
            pieces = [data]
        else:
            pieces = self._take(version, ready, offset, stop)
        self.hits += 1
        log.debug("cache hit: inode %d at %d", node.id, offset)
        stream = self._stream(handle, key)
        if not stream.follow(offset, stop, limit=self._window_limit()):
            self._filler.read(node, key, version, size, is_hit=True)
        elif ready:
            self._read_ahead(node, key, version, stream, stop, size)
        return pieces

    async def read_range(
        self, node: Node, etag: str, size: int, start: int, stop: int
    ) -> bytes | memoryview:
        """Read [start, stop) and nothing ahead; raises as `read`."""
        key: VersionKey = (node.id, etag)
        version = self._version(key)
        wanted = self._cover(node, key, version, start, stop, size)
        try:
            return await self._collect(version, wanted, start, stop)
        finally:
            if not version.handles and key in self._versions:
                self._linger(key)

    def prefetch(self, node: Node) -> bool:
        """Fetch a whole small file before anybody asks; whether there is memory for it."""
        if node.etag is None:
            return True
        key: VersionKey = (node.id, node.etag)
        blocks = self._volume.blocks
        if key in self._versions or (blocks and blocks.has(*key, 0, node.size)):
            return True
        if not self._make_room(node.size):
            return False
        self._fetch(
            node, key, self._version(key), 0, node.size, node.size, is_ahead=True, is_guess=True
        )
        self._linger(key)
        return True

    def close(self, handle: int) -> None:
        """Forget how a handle read; with the last one of a version goes what was being read ahead of it."""
        for stream_key in [k for k in self._streams if k[0] == handle]:
            del self._streams[stream_key]
            version = self._versions[stream_key[1]]
            version.handles -= 1
            if not version.handles:
                self._linger(stream_key[1])

    def holds(self, inode: Inode) -> int:
        """Count the bytes held of an inode's versions."""
        return sum(
            s.size
            for (i, _), v in self._versions.items()
            if i == inode
            for s in v.segments
            if s.data is not None
        )

    def _version(self, key: VersionKey) -> Version:
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = Version(credit=FILL_FIRST)
        return version

    def _stream(self, handle: int, key: VersionKey) -> Stream:
        stream = self._streams.get((handle, key))
        if stream is None:
            stream = self._streams[handle, key] = Stream()
            self._versions[key].handles += 1
            self._idle.pop(key, None)
        return stream

    # Versions that nobody has open

    def _linger(self, key: VersionKey) -> None:
        """Keep what is here of a version for a while."""
        version = self._versions[key]
        for segment in list(version.segments):
            if segment.data is None and not segment.waiters and not segment.is_guess:
                segment.scope.cancel()
                self._evict(version, segment)
        is_watched = bool(self._idle)
        self._idle.pop(key, None)
        self._idle[key] = trio.current_time() + LINGER_S
        if not is_watched:
            self._nursery.start_soon(self._drop_idle)

    async def _drop_idle(self) -> None:
        while self._idle:
            key, due = next(iter(self._idle.items()))
            await trio.sleep_until(due)
            if self._idle.get(key) == due:
                del self._idle[key]
                self._drop_version(key)
        if not self._versions:
            buffers.trim()

    # Reading ahead

    def _window_limit(self) -> int:
        return self._volume.settings.memory_limit_bytes * 2 // (3 * max(1, len(self._streams)))

    def _read_ahead(
        self, node: Node, key: VersionKey, version: Version, stream: Stream, stop: int, size: int
    ) -> None:
        is_ours = stream.is_forward
        for start, end in stream.ahead(stop, size, step=step_bytes(self._volume.settings)):
            position, end = self._rounded(start, end, size)
            while position < end:
                segment = version.find(position)
                if segment is not None:
                    # What another handle asked for may be gone when it has read it: look again.
                    is_ours = is_ours and segment.start < stop
                    position = segment.stop
                    continue
                following = version.next_start(position)
                until = end if following is None else min(end, following)
                if not self._make_room(until - position):
                    return
                self._fetch(node, key, version, position, until, size, is_ahead=True)
                position = until
            if is_ours:
                stream.reached = position

    def _rounded(self, start: int, stop: int, size: int) -> tuple[int, int]:
        """Widen a range to what is fetched together: a small object, or whole blocks where they can be kept."""
        if size <= WHOLE_BYTES:
            return 0, size
        if self._volume.blocks is None:
            return start, stop
        start -= start % BLOCK_BYTES
        return start, min(stop + -stop % BLOCK_BYTES, size)

    def _cover(
        self, node: Node, key: VersionKey, version: Version, start: int, stop: int, size: int
    ) -> list[Segment]:
        """Return the segments that cover [start, stop), fetching what is missing."""
        wanted = []
        while start < stop:
            segment = version.find(start)
            if segment is None:
                self.misses += 1
                log.debug("cache miss: inode %d at %d", node.id, start)
                begin, end = self._gap(version, *self._rounded(start, stop, size), start)
                self._make_room(end - begin)
                segment = self._fetch(node, key, version, begin, end, size)
            else:
                self.hits += 1
                log.debug("cache hit: inode %d at %d", node.id, start)
            segment.waiters += 1
            wanted.append(segment)
            start = segment.stop
        return wanted

    def _gap(self, version: Version, start: int, stop: int, position: int) -> tuple[int, int]:
        """Return what of [start, stop) around *position* no segment has."""
        following = version.next_start(position)
        before = version.previous_stop(position)
        return max(start, before), stop if following is None else min(stop, following)

    async def _collect(
        self, version: Version, wanted: list[Segment], offset: int, stop: int
    ) -> bytes | memoryview:
        try:
            for segment in wanted:
                if segment.data is None:
                    with Waiting() as waiting:
                        await segment.ready.wait()
                        waiting.for_disk = segment.is_from_disk
                if segment.error is not None:
                    raise segment.error
                if segment.data is None:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        finally:
            for segment in wanted:
                segment.waiters -= 1
        parts = self._take(version, wanted, offset, stop)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(
        self, version: Version, segments: list[Segment], offset: int, stop: int
    ) -> list[memoryview]:
        """Return [offset, stop) out of the segments that cover it."""
        parts = []
        for segment in segments:
            segment.touched_at = self._clock
            if segment.is_ahead and not segment.served:
                self.ahead_used_bytes += segment.size
            parts.append(segment.part(offset, stop))
            self._let_go(version, segment)
        return parts

    # Memory

    def hold(self, size: int) -> bool:
        """Count *size* more bytes as held, if there is room for them; `held_bytes` is the caller's to lower again."""
        has_room = self._make_room(size)
        if has_room:
            self.held_bytes += size
        return has_room

    def _make_room(self, size: int) -> bool:
        """Evict until *size* more bytes fit; whether they do."""
        limit = self._volume.settings.memory_limit_bytes
        if self.held_bytes + size <= limit:
            return True
        stale_at = self._clock - STALE_AFTER * limit
        may_go = [
            (not s.is_spent, s.touched_at, id(s), v, s)
            for v in self._versions.values()
            for s in v.segments
            if s.data is not None
            and not s.waiters
            # The rest of what was read ahead is about to be wanted: taking it away would fetch it twice.
            and not (s.is_ahead and not s.is_spent and v.handles and s.touched_at > stale_at)
        ]
        may_go.sort(key=lambda item: item[:3])
        for *_, version, segment in may_go:
            if self.held_bytes + size <= limit:
                break
            self._evict(version, segment)
        return self.held_bytes + size <= limit

    def _let_go(self, version: Version, segment: Segment) -> None:
        """Drop a segment that was read to its end, if the block cache has it, or has had the chance to."""
        blocks = self._volume.blocks
        if (
            blocks is not None
            and blocks.limit_bytes
            and segment.is_spent
            and not segment.waiters
            and not segment.is_being_kept
            and version.find(segment.start) is segment
        ):
            self._evict(version, segment)

    def _evict(self, version: Version, segment: Segment) -> None:
        version.remove(segment)
        self.held_bytes -= segment.size
        if segment.is_ahead and not segment.served and segment.data is not None:
            self.ahead_wasted_bytes += segment.size

    def _drop_version(self, key: VersionKey) -> None:
        version = self._versions.pop(key)
        for segment in list(version.segments):
            if segment.data is None:
                segment.scope.cancel()
            self._evict(version, segment)

    def _drop_data(self, key: VersionKey) -> None:
        """Drop what is here of a version, and what is known of it."""
        version = self._versions.get(key)
        if version is not None:
            version.sums = None
            for segment in [s for s in version.segments if s.data is not None]:
                self._evict(version, segment)

    # Fetching

    def _fetch(
        self,
        node: Node,
        key: VersionKey,
        version: Version,
        start: int,
        stop: int,
        size: int,
        *,
        is_ahead: bool = False,
        is_guess: bool = False,
    ) -> Segment:
        self._clock += stop - start
        segment = Segment(start, stop, touched_at=self._clock, is_guess=is_guess, is_ahead=is_ahead)
        version.add(segment)
        if segment.size < size:
            segment.sums = self.comparer.sums(node, key, version, size)
            segment.sums.expect(segment.size)
        self.held_bytes += segment.size
        if is_ahead:
            self.ahead_bytes += segment.size
        self._starting.append((node, key, version, segment, size))
        self._nursery.start_soon(self._run_next)
        return segment

    async def _run_next(self) -> None:
        """Run what was to be fetched first: trio begins tasks in any order, and what is wanted last would come first."""
        await self._run(*self._starting.popleft())

    async def _run(
        self, node: Node, key: VersionKey, version: Version, segment: Segment, size: int
    ) -> None:
        with segment.scope:
            try:
                if segment.is_guess:
                    async with self._guessing(segment.size):
                        segment.data = await self._get(node, key, version, segment, size)
                else:
                    segment.data = await self._get(node, key, version, segment, size)
            except Exception as error:  # noqa: BLE001 - handed to whoever waits; the table of errnos judges it
                segment.error = error
                if segment in version.segments:
                    self._evict(version, segment)
        segment.ready.set()
        if segment.sums is not None:
            await segment.sums.arrived(segment.start, segment.size, segment.data)

    def _guessing(self, size: int) -> trio.CapacityLimiter:
        """Return what bounds guesses of *size* bytes: half of what may be asked for at a time is left to those who wait."""
        concurrency = self._volume.settings.concurrency
        if size <= LIGHT_RANGE_BYTES:
            limiter, most = self._light_guesses, LIGHT_FACTOR * concurrency
        else:
            limiter, most = self._guesses, concurrency
        limiter.total_tokens = max(1, most // 2)
        return limiter

    async def _get(
        self, node: Node, key: VersionKey, version: Version, segment: Segment, size: int
    ) -> bytes | memoryview:
        """Fetch a range: what the block cache has of its beginning from there, the rest from S3."""
        blocks = self._volume.blocks
        if self.comparer.is_leaving(key):
            blocks = None
        parts: list[bytes | memoryview] = []
        if blocks is not None:
            parts = await self._beginning(blocks, key, segment, size)
        start = segment.start + sum(map(len, parts))
        if start < segment.stop:
            if segment.sums is not None:
                segment.sums.begin()
            fetched = await self.fetch(node, key[1], start, segment.stop)
            parts.append(fetched)
            if blocks is not None:
                blocks.count(*key, missed=len(fetched))
                skipped = -start % BLOCK_BYTES
                kept = memoryview(fetched)[skipped:]
                if len(kept) and blocks.wants(len(kept)):
                    segment.is_being_kept = True
                    self._nursery.start_soon(
                        self._keep, blocks, key, version, segment, start + skipped, kept, size
                    )
        else:
            segment.is_from_disk = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _beginning(
        self, blocks: BlockCache, key: VersionKey, segment: Segment, size: int
    ) -> list[bytes | memoryview]:
        """Read what the block cache has of a segment, up to the first block that is not there or damaged; of a small object all or nothing."""
        parts: list[bytes | memoryview] = []
        start = segment.start
        while start < segment.stop:
            found = blocks.find(*key, start, segment.stop)
            data = await blocks.read(found, start, segment.stop) if found is not None else None
            if data is None:
                break
            parts.append(data)
            start += len(data)
        if segment.size == size <= WHOLE_BYTES and start < segment.stop:
            return []
        blocks.count(*key, hit=start - segment.start)
        return parts

    async def _keep(
        self,
        blocks: BlockCache,
        key: VersionKey,
        version: Version,
        segment: Segment,
        start: int,
        data: memoryview,
        size: int,
    ) -> None:
        await blocks.keep(*key, start, data, size)
        segment.is_being_kept = False
        self._let_go(version, segment)

    async def fetch(self, node: Node, etag: str, start: int, stop: int) -> bytes | memoryview:
        """Fetch a range of a version, following the object when it is moved meanwhile."""
        key = self._volume.key_in_s3(node)
        is_whole = (start, stop, etag) == (0, node.size, node.etag)
        while True:
            try:
                found = await self._volume.store.get_range(
                    key, start, stop, if_match=etag, is_whole=is_whole
                )
            except (NotFound, PreconditionFailed) as error:
                current = self._volume.nodes.get(node.id)
                if current is not None and current.etag != etag:
                    raise Superseded from error
                lies_at = self._volume.key_in_s3(current) if current is not None else key
                if lies_at == key:
                    log.info("version %s of %s is gone from S3", etag, key)
                    self._version_gone(node)
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from error
                key = lies_at
                continue
            if not node.attributes_known:
                current = self._volume.nodes.get(node.id)
                if current is not None and not current.is_detached:
                    self._metadata.learn(current, found.head)
            return found.data
