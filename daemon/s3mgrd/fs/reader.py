"""Reads of versions in S3: ranged GETs with If-Match, read ahead while a handle reads in order.

A version's bytes are held in segments: ranges that are being fetched or are here. Readers of one version share them.
The window of a handle grows while it reads in order and is lost when it jumps; several requests of a window
are in flight at once, because one connection alone does not fill a network. The kernel keeps the pages it was
given, so a segment that was read to its end is the first to go.

Memory: `Reader.held_bytes` is what all segments hold or will hold. Reading ahead stops at the limit; what a
program waits for is fetched always (the kernel bounds it: max_background requests of 1 MiB).

Concurrency: state changes between awaits only. A fetch is a task of the reader's nursery, so that it goes on
when the read that wanted it is interrupted; it is cancelled when the last handle of its version is closed.
"""

import errno
import logging
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import NotFound, PreconditionFailed
from s3mgrd.fs.metadata import Metadata
from s3mgrd.fs.volume import Volume

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
FIRST_WINDOW: Final = 1 * MIB
MAX_WINDOW: Final = 64 * MIB
MIN_SEGMENT: Final = 1 * MIB
MAX_SEGMENT: Final = 8 * MIB
NEARBY: Final = 8 * MIB
"""How far from where a handle is a read still counts as in order: the kernel sends parallel requests in any order."""


class Superseded(Exception):
    """This mount itself wrote another version of the inode meanwhile: read again, from that one."""


@dataclass(eq=False, slots=True)
class Segment:
    """Bytes [start, stop) of a version: `data` once they are here, or the error that kept them away."""

    start: int
    stop: int
    data: bytes | None = None
    error: Exception | None = None
    ready: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waiters: int = 0
    used_at: int = 0
    is_consumed: bool = False

    @property
    def size(self) -> int:
        """Bytes it holds or will hold."""
        return self.stop - self.start


@dataclass(eq=False, slots=True)
class _Version:
    """The segments of one version, sorted by start, disjoint."""

    starts: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    handles: int = 0

    def find(self, position: int) -> Segment | None:
        index = bisect_right(self.starts, position) - 1
        if index >= 0 and self.segments[index].stop > position:
            return self.segments[index]
        return None

    def next_start(self, position: int) -> int | None:
        index = bisect_right(self.starts, position)
        return self.starts[index] if index < len(self.starts) else None

    def add(self, segment: Segment) -> None:
        index = bisect_right(self.starts, segment.start)
        self.starts.insert(index, segment.start)
        self.segments.insert(index, segment)

    def remove(self, segment: Segment) -> None:
        index = bisect_right(self.starts, segment.start) - 1
        if 0 <= index < len(self.segments) and self.segments[index] is segment:
            del self.starts[index], self.segments[index]


@dataclass(eq=False, slots=True)
class _Stream:
    """How one handle reads."""

    position: int = 0
    window: int = 0
    is_new: bool = True


VersionKey = tuple[Inode, str]


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
        self._versions: dict[VersionKey, _Version] = {}
        self._streams: dict[tuple[int, VersionKey], _Stream] = {}
        self._clock = 0
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0

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
        version = self._version(key)
        stream = self._stream(handle, key)
        self._follow(stream, offset, stop)
        wanted = self._cover(node, key, version, offset, stop, size)
        self._read_ahead(node, key, version, stream, stop, size)
        return await self._collect(version, wanted, offset, stop)

    def close(self, handle: int) -> None:
        """Forget how a handle read; the last one of a version frees what was read ahead of it."""
        for stream_key in [k for k in self._streams if k[0] == handle]:
            del self._streams[stream_key]
            version = self._versions[stream_key[1]]
            version.handles -= 1
            if not version.handles:
                self._drop_version(stream_key[1])

    def holds(self, inode: Inode) -> int:
        """Count the bytes held of an inode's versions."""
        return sum(
            s.size
            for (i, _), v in self._versions.items()
            if i == inode
            for s in v.segments
            if s.data is not None
        )

    def _version(self, key: VersionKey) -> _Version:
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = _Version()
        return version

    def _stream(self, handle: int, key: VersionKey) -> _Stream:
        stream = self._streams.get((handle, key))
        if stream is None:
            stream = self._streams[handle, key] = _Stream()
            self._versions[key].handles += 1
        return stream

    # Reading ahead

    def _follow(self, stream: _Stream, offset: int, stop: int) -> None:
        """Note where a handle reads and adapt its window."""
        in_order = abs(offset - stream.position) <= NEARBY and (not stream.is_new or offset == 0)
        if not in_order:
            stream.window = 0
            stream.position = stop
        elif stop > stream.position:
            limit = self._volume.settings.memory_limit_bytes // (2 * max(1, len(self._streams)))
            stream.window = min(
                max(2 * stream.window, FIRST_WINDOW), MAX_WINDOW, max(limit, FIRST_WINDOW)
            )
            stream.position = stop
        stream.is_new = False

    def _read_ahead(
        self, node: Node, key: VersionKey, version: _Version, stream: _Stream, start: int, size: int
    ) -> None:
        end = min(start + stream.window, size)
        step = max(MIN_SEGMENT, min(stream.window // 4, MAX_SEGMENT))
        while start < end:
            segment = version.find(start)
            if segment is not None:
                start = segment.stop
                continue
            following = version.next_start(start)
            stop = min(start + step, size if following is None else following)
            if not self._make_room(stop - start):
                return
            self._fetch(node, key, version, start, stop)
            start = stop

    def _cover(
        self, node: Node, key: VersionKey, version: _Version, start: int, stop: int, size: int
    ) -> list[Segment]:
        """Return the segments that cover [start, stop), fetching what is missing."""
        wanted = []
        while start < stop:
            segment = version.find(start)
            if segment is None:
                self.misses += 1
                log.debug("cache miss: inode %d at %d", node.id, start)
                following = version.next_start(start)
                end = min(stop, size if following is None else following)
                self._make_room(end - start)
                segment = self._fetch(node, key, version, start, end)
            else:
                self.hits += 1
                log.debug("cache hit: inode %d at %d", node.id, start)
            segment.waiters += 1
            wanted.append(segment)
            start = segment.stop
        return wanted

    async def _collect(
        self, version: _Version, wanted: list[Segment], offset: int, stop: int
    ) -> bytes | memoryview:
        parts = []
        try:
            for segment in wanted:
                if segment.data is None:
                    await segment.ready.wait()
                if segment.error is not None:
                    raise segment.error
                if segment.data is None:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._clock += 1
                segment.used_at = self._clock
                view = memoryview(segment.data)
                parts.append(view[max(0, offset - segment.start) : stop - segment.start])
                if stop >= segment.stop:
                    segment.is_consumed = True
        finally:
            for segment in wanted:
                segment.waiters -= 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # Memory

    def _make_room(self, size: int) -> bool:
        """Evict until *size* more bytes fit; whether they do."""
        limit = self._volume.settings.memory_limit_bytes
        if self.held_bytes + size <= limit:
            return True
        idle = [
            (not s.is_consumed, s.used_at, id(s), v, s)
            for v in self._versions.values()
            for s in v.segments
            if s.data is not None and not s.waiters
        ]
        idle.sort(key=lambda item: item[:3])
        for is_fresh, _, _, version, segment in idle:
            if self.held_bytes + size <= limit:
                break
            if is_fresh and segment.used_at == 0:
                continue  # read ahead and not read yet: taking it away would fetch it twice
            self._evict(version, segment)
        return self.held_bytes + size <= limit

    def _evict(self, version: _Version, segment: Segment) -> None:
        version.remove(segment)
        self.held_bytes -= segment.size

    def _drop_version(self, key: VersionKey) -> None:
        for segment in self._versions.pop(key).segments:
            if segment.data is None:
                segment.scope.cancel()
            self.held_bytes -= segment.size

    # Fetching

    def _fetch(
        self, node: Node, key: VersionKey, version: _Version, start: int, stop: int
    ) -> Segment:
        segment = Segment(start, stop)
        version.add(segment)
        self.held_bytes += segment.size
        self._nursery.start_soon(self._run, node, key, version, segment)
        return segment

    async def _run(self, node: Node, key: VersionKey, version: _Version, segment: Segment) -> None:
        with segment.scope:
            try:
                segment.data = await self._get(node, key[1], segment.start, segment.stop)
            except Exception as error:  # noqa: BLE001 - handed to whoever waits; the table of errnos judges it
                segment.error = error
                if segment in version.segments:
                    self._evict(version, segment)
        segment.ready.set()

    async def _get(self, node: Node, etag: str, start: int, stop: int) -> bytes:
        """Fetch a range of a version, following the object when it is moved meanwhile."""
        key = self._volume.key_in_s3(node)
        while True:
            try:
                found = await self._volume.store.get_range(key, start, stop, if_match=etag)
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
