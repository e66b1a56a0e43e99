"""What is in memory, or on its way there, of one version of an object: ranges of its bytes.

Who fetches them, and when they go, is `s3mgrd.fs.reading.reader`'s business.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.reading.sums import Sums

VersionKey = tuple[Inode, str]
"""Inode and ETag."""


class Superseded(Exception):
    """This mount itself wrote another version of the inode meanwhile: read again, from that one."""


@dataclass(eq=False, slots=True)
class Segment:
    """Bytes [start, stop) of a version: `data` once they are here, or the error that kept them away."""

    start: int
    stop: int
    data: bytes | memoryview | None = None
    error: Exception | None = None
    ready: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waiters: int = 0
    touched_at: int = 0
    """The reader's clock when it was asked for, and since when it was last read."""
    served: int = 0
    """Bytes that were given to readers."""
    is_being_kept: bool = False
    """The block cache is writing it."""
    is_guess: bool = False
    """Nobody asked for it yet: a small file that will probably be opened."""
    is_ahead: bool = False
    """Asked for before anybody read it."""
    sums: Sums | None = None
    """Where it is noted that it came; None: it is the whole version, of which S3 says the checksum with the bytes."""
    is_from_disk: bool = False
    """All of it was in the block cache."""

    @property
    def size(self) -> int:
        """Bytes it holds or will hold."""
        return self.stop - self.start

    @property
    def is_spent(self) -> bool:
        """Whether all of it was read."""
        return self.served >= self.size

    def part(self, offset: int, stop: int) -> memoryview:
        """Return what [offset, stop) shares with it, and count that as read. It has its data."""
        start, stop = max(0, offset - self.start), min(stop, self.stop) - self.start
        self.served += stop - start
        return memoryview(self.data or b"")[start:stop]


@dataclass(eq=False, slots=True)
class Version:
    """The segments of one version, sorted by start, disjoint."""

    starts: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    handles: int = 0
    random_reads: int = 0
    credit: int = 0
    """Bytes that may be fetched in the background; see `s3mgrd.fs.reading.reader`."""
    filled: int = 0
    """Everything below was looked at for that."""
    fillers: int = 0
    sums: Sums | None = None
    """Whether what arrives is what S3 has; None: nothing came yet."""

    def find(self, position: int) -> Segment | None:
        """Return the segment that has the byte at *position*, here or on its way."""
        index = bisect_right(self.starts, position) - 1
        if index >= 0 and self.segments[index].stop > position:
            return self.segments[index]
        return None

    def ready(self, start: int, stop: int) -> list[Segment] | None:
        """Return the segments that cover [start, stop); None: some of it is not here."""
        found: list[Segment] = []
        while start < stop:
            segment = self.find(start)
            if segment is None or segment.data is None:
                return None
            found.append(segment)
            start = segment.stop
        return found

    def previous_stop(self, position: int) -> int:
        """Return where the segment ends that begins at *position* or before; 0: there is none."""
        index = bisect_right(self.starts, position) - 1
        return self.segments[index].stop if index >= 0 else 0

    def next_start(self, position: int) -> int | None:
        """Return where the next segment behind *position* begins."""
        index = bisect_right(self.starts, position)
        return self.starts[index] if index < len(self.starts) else None

    def add(self, segment: Segment) -> None:
        """Enter a segment of bytes that no other has."""
        index = bisect_right(self.starts, segment.start)
        self.starts.insert(index, segment.start)
        self.segments.insert(index, segment)

    def remove(self, segment: Segment) -> None:
        """Take a segment out, if it is in."""
        index = bisect_right(self.starts, segment.start) - 1
        if 0 <= index < len(self.segments) and self.segments[index] is segment:
            del self.starts[index], self.segments[index]
