"""The log that small new files share, so that making, writing and forgetting one costs no file of its own.

It lies in the mount's ``staging`` directory, in segments ``shared.<number>``. A record carries what `s3mgrd.journal.staging`
would append to a file's own log, the bytes that were written with it, and the time; it is acknowledged once pwritev has
returned, and is then in the kernel's hands. A checksum tells a torn end, which was never acknowledged.

Segment, ours: `MAGIC`, then records, little-endian: CRC-32 of the rest of the head; inode; time (ns); length of the log's records, or
`_GONE`; length of the data; CRC-32 of both; then both. `_GONE` says that the file is not here (any more): it was removed, or has files
of its own now. So what the disk changed costs no other file: a head says how far its record goes, and where it cannot be believed the
next one is looked for. Segments without `MAGIC` are of the first version, whose heads had one CRC of everything; they are read, and never
written.

Segments are deleted oldest first, once none of their files is here any more: so what a later segment says of a file is never lost
before what it takes back. Who keeps a file here for long is asked to move it (`crowding`).

A file that goes must be able to say so also on a full disk: after a crash it would come back, and what S3 has long since would be kept as
a conflict copy. So the last segment always has the disk's room for one `_GONE` of each file that is here, allocated beyond its end;
whatever else is appended is refused before it takes that. A file system that cannot allocate has none.

Concurrency: one thread appends; `sync` may run in another.
"""

import logging
import os
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from threading import Lock
from typing import Final, NamedTuple

from s3mgrd.journal.staging import allocate

PREFIX: Final = "shared."
SEGMENT_BYTES: Final = 8 << 20
KEPT_SEGMENTS: Final = 4
"""More, and the files that keep the oldest alive have to move."""

RESERVE_BYTES: Final = 256 << 10
"""Allocated at a time, more than has to be."""

MAGIC: Final = b"s3mgrsl2"

_HEAD: Final = struct.Struct("<IQqIII")
_FIRST_HEAD: Final = struct.Struct("<IQqII")
_CRC: Final = struct.Struct("<I")
_GONE: Final = (1 << 32) - 1
_MAYBE_HEAD: Final = re.compile(
    rb"(?=.{4}(?!\x00{8}).{16}(?:..\x00\x00|\xff{4})..\x00\x00)", re.DOTALL
)
"""Where a record may begin: no inode is 0, and neither what is said of a file at a time nor its data is as long as 64 KiB."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Segment:
    """One file of the log."""

    number: int
    fd: int
    end: int = 0
    allocated: int = 0
    """So much of the disk it is known to have."""
    is_first_version: bool = False
    synced: int = 0
    """So much of it is on the disk."""
    noted: int = 0
    """The end of the last record which says that a file is gone."""
    live: set[int] = field(default_factory=set)
    """The inodes that are here and have records in it."""


class Place(NamedTuple):
    """Where bytes lie in the log."""

    segment: Segment
    position: int


class Held(NamedTuple):
    """A segment that is to be synced up to an end, by a descriptor of its own."""

    segment: Segment
    fd: int
    end: int


class Entry(NamedTuple):
    """What the log says of a file: records as in a log of its own, and where the data is that belongs to them.

    `record` None: it cannot be read, because the disk changed it or something before.
    """

    record: bytes | None
    place: Place
    time_ns: int


class _Record(NamedTuple):
    """A record of a segment, up to *stop*. `said` None: the file is gone. `data`: where it begins."""

    inode: int
    time_ns: int
    said: bytes | None
    data: int
    stop: int
    is_sound: bool


def _record_at(segment: Segment, position: int) -> _Record | None:
    """Read a record; None: what lies there is none. One that goes beyond the end of the segment is not sound."""
    head_bytes = (_FIRST_HEAD if segment.is_first_version else _HEAD).size
    head = os.pread(segment.fd, head_bytes, position)
    if len(head) < head_bytes:
        return None
    if segment.is_first_version:
        crc, inode, time_ns, said, data = _FIRST_HEAD.unpack(head)
        begun = zlib.crc32(head[_CRC.size :])
    else:
        of_head, inode, time_ns, said, data, crc = _HEAD.unpack(head)
        begun = 0
        if zlib.crc32(head[_CRC.size :]) != of_head:
            return None
    if not inode:  # a power loss took the bytes and not the size: no file has that number
        return None
    start = position + head_bytes
    length = 0 if said == _GONE else said
    body = os.pread(segment.fd, length + data, start)
    return _Record(
        inode,
        time_ns,
        None if said == _GONE else body[:said],
        start + length,
        start + length + data,
        len(body) == length + data and zlib.crc32(body, begun) == crc,
    )


def _open_segment(number: int, fd: int) -> Segment:
    """Find out of which version a segment is."""
    segment = Segment(number, fd, len(MAGIC))
    if os.pread(fd, len(MAGIC), 0) != MAGIC:
        first = Segment(number, fd, is_first_version=True)
        if _record_at(first, 0) is not None and _record_at(segment, segment.end) is None:
            return first
        with suppress(OSError):  # the disk changed it, or had no room for it
            os.pwrite(fd, MAGIC, 0)
    return segment


def _next_record(segment: Segment, position: int, size: int) -> tuple[int, _Record] | None:
    """Return the record at *position*, or where there is none the next, and where it begins; None: the end, which may be torn.

    After something that is no record only what goes on to the very end of the segment counts: a torn end may hold the data of a file
    that looks like records.
    """
    if position >= size:
        return None
    record = _record_at(segment, position)
    if record is not None:
        return position, record
    if segment.is_first_version:
        return None
    rest = os.pread(segment.fd, size - position, position)
    seen: set[int] = set()
    """Where records begin that do not go on to the end."""
    for match in _MAYBE_HEAD.finditer(rest, 1):
        at = start = position + match.start()
        while at < size and at not in seen and (record := _record_at(segment, at)) is not None:
            seen.add(at)
            at = record.stop
        if at == size:
            return _next_record(segment, start, size)
    return None


class SharedLog:
    """The log of one mount. Every method that writes raises OSError (ENOSPC, EDQUOT, EIO) with nothing acknowledged.

    Args:
        directory_fd: of the staging directory; stays the caller's.
    """

    def __init__(self, directory_fd: int) -> None:
        self._directory = directory_fd
        self._segments: list[Segment] = []
        self._files: dict[int, list[Segment]] = {}
        self._can_reserve = True
        self._lock: Final = Lock()
        """Held while a descriptor is closed, or taken by who is about to use it in another thread."""

    def load(self) -> dict[int, list[Entry]]:
        """Read what the last worker left: for each file that is here what was said of it, in order."""
        numbers = [
            int(name.removeprefix(PREFIX))
            for name in os.listdir(self._directory)
            if name.startswith(PREFIX) and name.removeprefix(PREFIX).isdecimal()
        ]
        found: dict[int, list[Entry]] = {}
        for number in sorted(numbers):
            flags = os.O_RDWR | os.O_CLOEXEC
            fd = os.open(f"{PREFIX}{number}", flags, dir_fd=self._directory)
            segment = _open_segment(number, fd)
            self._segments.append(segment)
            self._read(segment, found, is_last=number == max(numbers))
        for inode, entries in found.items():
            self._files[inode] = list(dict.fromkeys(entry.place.segment for entry in entries))
            for segment in self._files[inode]:
                segment.live.add(inode)
        self._release()
        if self._segments and not self._segments[-1].is_first_version:
            # On a full disk what the last worker reserved is there in any case.
            with suppress(OSError):
                self._reserve(self._segments[-1], self._segments[-1].end, len(self._files))
        return found

    def _read(self, segment: Segment, found: dict[int, list[Entry]], *, is_last: bool) -> None:
        size = os.fstat(segment.fd).st_size
        unsure: set[int] = set()
        """Files of which something may have been said where nothing can be read."""
        lost = 0
        while (next_one := _next_record(segment, segment.end, size)) is not None:
            position, record = next_one
            if position > segment.end:
                lost += position - segment.end
                segment.end = position
                unsure = set(found)
            if not record.is_sound and _next_record(segment, record.stop, size) is None:
                break  # torn
            segment.end = record.stop
            if record.said is None and record.is_sound:
                segment.noted = segment.end
                found.pop(record.inode, None)
                continue
            said = record.said if record.is_sound and record.inode not in unsure else None
            entry = Entry(said, Place(segment, record.data), record.time_ns)
            found.setdefault(record.inode, []).append(entry)
        if is_last:  # and the only one that anybody can have been writing
            if size > segment.end:  # else it would only give back what is reserved
                os.ftruncate(segment.fd, segment.end)
        else:
            lost += size - segment.end
        if lost:
            log.warning(
                "%d bytes of staged small files cannot be read: the disk changed %s%d",
                lost, PREFIX, segment.number,
            )  # fmt: skip

    @property
    def files(self) -> int:
        """How many files are here."""
        return len(self._files)

    def append(
        self, inode: int, record: bytes, data: bytes | memoryview = b"", *, time_ns: int
    ) -> Place:
        """Say something of a file; returns where *data* lies."""
        segment = self._append(inode, time_ns, len(record), record, data)
        if inode not in segment.live:
            segment.live.add(inode)
            self._files.setdefault(inode, []).append(segment)
        return Place(segment, segment.end - len(data))

    def drop(self, inode: int, *, time_ns: int) -> None:
        """Say that a file is not here any more; nothing where it is not."""
        if inode in self._files:
            self._note_gone(inode, time_ns)
            self._leave(inode)

    def forget(self, inode: int, *, time_ns: int) -> None:
        """As `drop`, of a file that nobody wants: where the disk does not take the note, it is looked at again after a crash."""
        if inode in self._files:
            with suppress(OSError):
                self._note_gone(inode, time_ns)
            self._leave(inode)

    def _note_gone(self, inode: int, time_ns: int) -> None:
        segment = self._append(inode, time_ns, _GONE, b"", b"", is_reserved=True)
        segment.noted = segment.end

    def _leave(self, inode: int) -> None:
        for segment in self._files.pop(inode):
            segment.live.discard(inode)
        self._release()

    def _append(
        self,
        inode: int,
        time_ns: int,
        length: int,
        record: bytes,
        data: bytes | memoryview,
        *,
        is_reserved: bool = False,
    ) -> Segment:
        """Append a record. *is_reserved*: it may take what is reserved, and goes where that is."""
        size = _HEAD.size + len(record) + len(data)
        last = self._segments[-1] if self._segments else None
        is_full = last is not None and last.end >= SEGMENT_BYTES and not is_reserved
        begins = last is None or last.is_first_version or is_full
        segment = last if last is not None and not begins else self._begin()
        if not is_reserved:
            files = len(self._files) + (inode not in self._files)
            try:
                self._reserve(segment, segment.end + size, files)
            except OSError:
                if begins:
                    self._delete(segment)  # its predecessor has room for what has to be said
                raise
            if last is not None and begins:
                os.ftruncate(last.fd, last.end)  # gives back what was reserved there
        crc = zlib.crc32(data, zlib.crc32(record))
        head = _HEAD.pack(0, inode, time_ns, length, len(data), crc)[_CRC.size :]
        whole = (_CRC.pack(zlib.crc32(head)), head, record, data)
        # At a position of ours: what a full disk left half-way is overwritten by the next.
        if os.pwritev(segment.fd, whole, segment.end) != size:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        segment.end += size
        return segment

    def _begin(self) -> Segment:
        number = self._segments[-1].number + 1 if self._segments else 0
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(f"{PREFIX}{number}", flags, 0o600, dir_fd=self._directory)
        # A full disk may not take it: a segment without it is known by its records.
        with suppress(OSError):
            os.pwrite(fd, MAGIC, 0)
        segment = Segment(number, fd, len(MAGIC))
        self._segments.append(segment)
        return segment

    def _reserve(self, segment: Segment, end: int, files: int) -> None:
        """Have room for what is going to be appended up to *end*, and to say of so many files that they are gone.

        Raises OSError (ENOSPC, EDQUOT).
        """
        needed = end + files * _HEAD.size
        if needed <= segment.allocated or not self._can_reserve:
            return
        for stop in (needed + RESERVE_BYTES, needed):
            try:
                allocate(segment.fd, segment.end, stop - segment.end)
            except OSError as error:
                if error.errno not in (ENOSPC, EDQUOT):
                    self._can_reserve = False
                    return
                if stop == needed:
                    raise
            else:
                segment.allocated = stop
                return

    def _release(self) -> None:
        """Delete the oldest segments that nobody needs; the last one is kept until it is full."""
        while self._segments and not self._segments[0].live:
            if len(self._segments) == 1 and self._segments[0].end < SEGMENT_BYTES:
                return
            self._delete(self._segments[0])

    def _delete(self, segment: Segment) -> None:
        os.unlink(f"{PREFIX}{segment.number}", dir_fd=self._directory)
        with self._lock:
            self._segments.remove(segment)
            os.close(segment.fd)

    def crowding(self) -> int | None:
        """Return a file that should move, because it keeps an old segment alive; None: there is none."""
        if len(self._segments) <= KEPT_SEGMENTS:
            return None
        return next(iter(self._segments[0].live), None)

    @staticmethod
    def read(place: Place, length: int) -> bytes:
        """Read bytes of a file that is here."""
        return os.pread(place.segment.fd, length, place.position)

    def hold(self, inode: int) -> list[Held]:
        """Return what has yet to be synced of all that was said of a file, for `sync`; may run in a thread."""
        with self._lock:
            return [
                Held(segment, os.dup(segment.fd), segment.end)
                for segment in self._files.get(inode, ())
                if segment.synced < segment.end
            ]

    def hold_notes(self) -> list[Held]:
        """As `hold`, of what says that files are gone: without it, a power loss would bring them back.

        And in the place of what a file has in files of its own since.
        """
        with self._lock:
            return [
                Held(segment, os.dup(segment.fd), segment.noted)
                for segment in self._segments
                if segment.synced < segment.noted
            ]

    @staticmethod
    def sync(held: list[Held]) -> None:
        """Bring to the disk what `hold` or `hold_notes` gave; may run in a thread. What others have synced meanwhile is there."""
        try:
            for segment, fd, end in held:
                if segment.synced < end:
                    os.fdatasync(fd)
                    segment.synced = end
        finally:
            for _, fd, _ in held:
                os.close(fd)

    def close(self) -> None:
        """Close the descriptors; the segments stay where a file is in them."""
        while self._segments and not self._files:
            self._delete(self._segments[0])
        with self._lock:
            for segment in self._segments:
                os.close(segment.fd)
            self._segments.clear()
            self._files.clear()
