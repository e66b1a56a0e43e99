"""Staging files: where a write lands before S3 has it.

For each inode two files in the mount's ``staging`` directory: ``<inode>`` holds the bytes at their final
offsets, sparse; ``<inode>.log`` holds which of them are ours. A write is acknowledged once its bytes are in the first
and its record is in the second; both are then in the kernel's hands and outlive the process (not a power loss:
for that, fsync() waits for S3).

Log format, ours: records of 16 bytes, two unsigned 64-bit little-endian numbers. (offset, length) is a write, with
2**63 added to the length if the bytes are the base version's and no change; (size, 2**64-1) is a truncation to *size*;
(n, 2**64-2) is followed by a `Description` in n bytes of JSON, padded to whole records, and n = 0 says that S3 need not get
the data (any more); (n, 2**64-3) is followed by a `Parked` in the same way; (0, 2**64-4) says that mount.db has the time of the
last change; (0, 2**64-5) that some of it cannot be read, because the disk changed it. A torn record at the end was never acknowledged and is ignored. The last description counts: with it, what was not
uploaded can be told and saved when mount.db is lost.

The content of a staged file of *size* bytes: what the records cover comes from the staging file, but for what was parked
in S3 since, for want of room on the disk; other bytes below `base_size` come from the base version in S3; the rest is zeros, which the sparse staging file has too.
"""

import ctypes
import errno
import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from s3mgrd.journal.entered import Entered, Run, sum_up
from s3mgrd.journal.extents import Extents

_RECORD: Final = struct.Struct("<QQ")
_TRUNCATE: Final = (1 << 64) - 1
_DESCRIPTION: Final = (1 << 64) - 2
_PARKED: Final = (1 << 64) - 3
_TIME_SET: Final = (1 << 64) - 4
_DAMAGED: Final = (1 << 64) - 5
_OF_BASE: Final = 1 << 63
_MAX_DESCRIPTION_BYTES: Final = 64 << 10
_LOG_READ_BYTES: Final = 1 << 20
_KEEP_SIZE: Final = 0x01
_PUNCH: Final = _KEEP_SIZE | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (linux/falloc.h)."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What staged data was to become; true when it was written, whatever was renamed around it since.

    Attributes:
        path: relative to the mount.
        base_key: where S3 had the version that unwritten ranges come from; None: there is none.
        base_etag: which version that was.
        condition: what the upload must find.
    """

    path: str
    base_key: str | None
    base_etag: str | None
    base_size: int
    condition: str


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes [start, stop) of a staged file that lie in an object of their own: from *offset* on in version *etag* of *key*."""

    start: int
    stop: int
    key: str
    etag: str
    offset: int = 0

    def part(self, start: int, stop: int) -> "Parked":
        """Return what of it lies in [start, stop)."""
        low = max(start, self.start)
        return msgspec.structs.replace(
            self, start=low, stop=min(stop, self.stop), offset=self.offset + low - self.start
        )


class Piece(NamedTuple):
    """A part of a read: from the staging file, from the base version in S3 (`is_base`), or from where it is parked."""

    start: int
    stop: int
    is_base: bool
    parked: Parked | None = None


class Lacking:
    """What S3 lacks of many staged files: how many they are, and their bytes."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0


class StagedFile:
    """The staging files of one inode, open. Not synchronised: the caller holds the inode's lock.

    Every method that writes raises OSError (ENOSPC, EDQUOT, EIO) with nothing acknowledged and nothing lost.
    """

    def __init__(self, data_fd: int, log_fd: int, base_size: int) -> None:
        self._data_fd = data_fd
        self.entered: Final = Entered()
        """Checksums of the bytes as they came in."""
        self._put: Final[dict[tuple[int, int], list[Run]]] = {}
        """Those of what was put and is not recorded yet, by offset and length."""
        self._log_fd = log_fd
        self._log_end = 0
        self.base_size = base_size
        self.size = base_size
        self.extents = Extents()
        self.description: Description | None = None
        """What the data was to become; None: S3 need not get it, or nothing was ever said."""
        self.is_described = False
        self.is_changed = False
        """Whether anything was written or truncated since mount.db got the time of the last change."""
        self.is_closed = False
        self.is_small = False
        """Whether it has no files of its own (`s3mgrd.journal.small`)."""
        self.parked: list[Parked] = []
        """What lies in S3 and not here, in order, disjoint; bytes that were written over it since count."""
        self.moves = 0
        """How often bytes that were here went elsewhere: what was planned before must be planned again."""
        self._counted_in: Lacking | None = None

    @property
    def data_fd(self) -> int:
        """The descriptor of the bytes."""
        self.settle()
        return self._data_fd

    def settle(self) -> None:
        """Have files of its own, which most staged files always have. Raises OSError (ENOSPC …): it stays where it is."""

    def prepare(self, stop: int) -> None:
        """Be ready for a `put` up to *stop* that runs in a thread."""

    def count_in(self, lacking: Lacking | None) -> None:
        """Count this file, whatever its size becomes, in *lacking* and nowhere else."""
        before, self._counted_in = self._counted_in, lacking
        for counts, sign in ((before, -1), (lacking, 1)):
            if counts is not None:
                counts.files += sign
                counts.bytes += sign * self.size

    def replay(self) -> None:
        """Read the log: afterwards size and extents are as they were acknowledged. Raises OSError(EIO): the disk changed it."""
        while chunk := os.pread(self._log_fd, _LOG_READ_BYTES, self._log_end):
            used = self._replay_chunk(chunk)
            if not used:
                return
            self._log_end += used

    def _replay_chunk(self, chunk: bytes) -> int:
        """Apply the records that are whole; return how many bytes these have."""
        position = 0
        while position + _RECORD.size <= len(chunk):
            first, second = _RECORD.unpack_from(chunk, position)
            after = position + _RECORD.size
            if second == _TRUNCATE:
                self._apply_truncate(first)
            elif second == _TIME_SET:
                self.is_changed = False
            elif second == _DAMAGED:
                raise damaged()
            elif second in (_DESCRIPTION, _PARKED):
                payload = chunk[after : after + first]
                if first > _MAX_DESCRIPTION_BYTES or len(payload) < first:
                    break  # its end is in the next chunk, or was never written
                if second == _DESCRIPTION:
                    self._apply_description(payload)
                else:
                    self._apply_parked(msgspec.json.decode(payload, type=Parked))
                after += _padded(first)
            elif second & _OF_BASE:
                self.extents.add(first, first + (second & ~_OF_BASE))
            else:
                self._apply_write(first, first + second)
            position = after
        return position

    @property
    def has_records(self) -> bool:
        """Whether the log says anything."""
        return self._log_end > 0

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that do not count yet; the one method that may run in a thread beside the loop."""
        self.note_put(offset, data)
        view = memoryview(data)
        while view:
            written = os.pwrite(self._data_fd, view, offset)
            view, offset = view[written:], offset + written

    def note_put(self, offset: int, data: bytes | memoryview) -> None:
        """Sum up bytes that are being put."""
        self._put[offset, len(data)] = sum_up(offset, data)

    def record(self, offset: int, length: int) -> None:
        """Acknowledge bytes that `put` wrote: they are the file's from here on."""
        self._note_entered(offset, length)
        self._append(self.pack_record(offset, length))
        self._apply_write(offset, offset + length)

    def record_base(self, offset: int, length: int) -> None:
        """Take note of bytes of the base version that `put` wrote, so that they need not come from there: no change."""
        self.settle()
        self._note_entered(offset, length)
        self._append(self.pack_record(offset, length | _OF_BASE))
        self.extents.add(offset, offset + length)

    def _note_entered(self, offset: int, length: int) -> None:
        runs = self._put.pop((offset, length), None)
        self.entered.forget(offset, offset + length) if runs is None else self.entered.add(runs)

    def note_time_set(self) -> None:
        """Note that mount.db has the time of the last change, which may be what somebody said."""
        self._append(self.pack_record(0, _TIME_SET))
        self.is_changed = False

    def truncate(self, size: int) -> None:
        """Set the size; what grows is zeros."""
        self.settle()
        self.entered.forget(min(size, self.size), max(size, self.size))
        os.ftruncate(self._data_fd, size)
        self._append(self.pack_record(size, _TRUNCATE))
        self._apply_truncate(size)

    def describe(self, description: Description | None) -> None:
        """Note what the data is to become; None: S3 need not get it (any more)."""
        if (description, self.description) != (None, None) or not self.is_described:
            self._append(self._description_record(description))
        self.description, self.is_described = description, True

    def park(self, parked: Parked) -> None:
        """Acknowledge that bytes which are here lie in S3, too: from here on they are read there."""
        self.settle()
        payload = msgspec.json.encode(parked)
        self._append(
            self.pack_record(len(payload), _PARKED, payload.ljust(_padded(len(payload)), b" "))
        )
        self._apply_parked(parked)

    def sync_log(self) -> None:
        """Bring the log to the disk; may run in a thread."""
        os.fdatasync(self._log_fd)

    def punch(self, start: int, stop: int) -> None:
        """Give the disk back what bytes that were parked took, but for what was written over them since."""
        self.settle()
        for first, last in self.extents.missing(start, stop):
            punch_hole(self._data_fd, first, last)

    def become_base(self) -> None:
        """Forget all that is here: the base version, as `rebase` declared it, has everything."""
        self.settle()
        os.ftruncate(self._log_fd, 0)
        self._log_end = 0
        self.moves += 1
        self.extents, self.parked, self.is_described = Extents(), [], False
        os.ftruncate(self._data_fd, 0)

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """Split a read of [start, stop) by where its bytes are; clipped to the size."""
        stop = min(stop, self.size)
        if self.parked:
            return list(self._pieces(start, stop))
        pieces = []
        position = start
        for first, last in self.extents.missing(start, min(stop, self.base_size)):
            if position < first:
                pieces.append(Piece(position, first, is_base=False))
            pieces.append(Piece(first, last, is_base=True))
            position = last
        if position < stop:
            pieces.append(Piece(position, stop, is_base=False))
        return pieces

    def _pieces(self, start: int, stop: int) -> Iterator[Piece]:
        position = start
        for first, last in self.extents.missing(start, stop):
            if position < first:
                yield Piece(position, first, is_base=False)
            position = first
            for parked in self.parked_in(first, last):
                yield from self._beside(position, parked.start)
                yield Piece(parked.start, parked.stop, is_base=False, parked=parked)
                position = parked.stop
            yield from self._beside(position, last)
            position = last
        if position < stop:
            yield Piece(position, stop, is_base=False)

    def _beside(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield what nobody wrote: of the base version, and zeros."""
        middle = min(stop, max(start, self.base_size))
        if start < middle:
            yield Piece(start, middle, is_base=True)
        if middle < stop:
            yield Piece(middle, stop, is_base=False)

    def parked_in(self, start: int, stop: int) -> list[Parked]:
        """Return what was ever parked of [start, stop), though it may have been written over."""
        index = bisect_right(self.parked, start, key=lambda parked: parked.stop)
        found = []
        for parked in self.parked[index:]:
            if parked.start >= stop:
                break
            found.append(parked.part(start, stop))
        return found

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes that are no base's; zeros where nothing was written."""
        data = os.pread(self._data_fd, stop - start, start)
        return data if len(data) == stop - start else data.ljust(stop - start, b"\0")

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges that only the base version has."""
        stop = min(self.base_size, self.size)
        if self.parked:
            return [(p.start, p.stop) for p in self._pieces(0, stop) if p.is_base]
        return list(self.extents.missing(0, stop))

    def missing_bytes(self) -> int:
        """Count the bytes that only the base version has."""
        return sum(stop - start for start, stop in self.missing())

    def rebase(self, base_size: int) -> None:
        """Declare the present content to be a version of S3: the base from now on."""
        self.base_size = base_size

    def mtime_ns(self) -> int:
        """When the staging file was last written."""
        return os.fstat(self._data_fd).st_mtime_ns

    def set_mtime_ns(self, mtime_ns: int) -> None:
        """Say when the content changed, for whoever asks `mtime_ns` after this process."""
        with suppress(OSError):
            os.utime(self._data_fd, ns=(mtime_ns, mtime_ns))

    def sync(self) -> None:
        """Bring bytes and log to the disk; may run in a thread."""
        os.fdatasync(self._data_fd)
        os.fdatasync(self._log_fd)

    def close(self) -> None:
        """Close the descriptors; the files stay."""
        self.is_closed = True
        os.close(self._data_fd)
        os.close(self._log_fd)

    def _apply_write(self, start: int, stop: int) -> None:
        self.extents.add(start, stop)
        self.is_changed = True
        if stop > self.size:
            self._resize(stop)

    def _apply_parked(self, parked: Parked) -> None:
        self.extents.remove(parked.start, parked.stop)
        self.moves += 1
        kept = [p.part(0, parked.start) for p in self.parked if p.start < parked.start]
        kept += [p.part(parked.stop, p.stop) for p in self.parked if p.stop > parked.stop]
        self.parked = sorted([*kept, parked], key=lambda p: p.start)

    def _apply_truncate(self, size: int) -> None:
        self.extents.clip(size)
        if self.parked:
            self.parked = [p.part(0, size) for p in self.parked if p.start < size]
        self.base_size = min(self.base_size, size)
        self.is_changed = True
        self._resize(size)

    def _resize(self, size: int) -> None:
        if self._counted_in is not None:
            self._counted_in.bytes += size - self.size
        self.size = size

    def _apply_description(self, payload: bytes) -> None:
        self.is_described = True
        try:
            self.description = msgspec.json.decode(payload, type=Description) if payload else None
        except msgspec.MsgspecError:  # damaged like the database may be: the data is still ours
            self.description, self.is_described = None, False

    def log_of(self, writes: Iterable[tuple[int, int]]) -> bytes:
        """Return a log that says what is known of this file, to which *writes* (offset, length) were made and nothing else."""
        log = self._description_record(self.description) if self.is_described else b""
        written = [self.pack_record(offset, length) for offset, length in writes]
        if written and not self.is_changed:
            written.append(self.pack_record(0, _TIME_SET))
        return log + b"".join(written)

    def _description_record(self, description: Description | None) -> bytes:
        payload = b"" if description is None else msgspec.json.encode(description)
        return self.pack_record(len(payload), _DESCRIPTION, payload.ljust(_padded(len(payload))))

    @staticmethod
    def pack_record(first: int, second: int, payload: bytes = b"") -> bytes:
        """Return a record of the log."""
        return _RECORD.pack(first, second) + payload

    @staticmethod
    def written_by(record: bytes) -> tuple[int, int] | None:
        """Return offset and length of the bytes of which a record of `pack_record` says that they were written, if it does."""
        if len(record) != _RECORD.size:
            return None
        offset, length = _RECORD.unpack(record)
        return (offset, length) if length < _OF_BASE else None

    def _append(self, record: bytes) -> None:
        # At a position of ours, not O_APPEND: half a record that a full disk left is overwritten by the next.
        written = os.pwrite(self._log_fd, record, self._log_end)
        if written != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._log_end += written


def damaged() -> OSError:
    """Return what is raised where the disk changed staged data."""
    return OSError(errno.EIO, "what was staged has changed on the disk")


def log_of_damaged() -> bytes:
    """Return the log of a file of which some cannot be read."""
    return StagedFile.pack_record(0, _DAMAGED)


def punch_hole(fd: int, start: int, stop: int) -> None:
    """Give the disk back what a range of a file takes. A file system that cannot keeps it."""
    _libc.fallocate(fd, _PUNCH, ctypes.c_longlong(start), ctypes.c_longlong(stop - start))


def allocate(fd: int, start: int, length: int) -> None:
    """Have the disk set room aside for a range of a file, also beyond its end. Raises OSError: ENOSPC, or it cannot."""
    offset, size = ctypes.c_longlong(start), ctypes.c_longlong(length)
    if _libc.fallocate(fd, _KEEP_SIZE, offset, size) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _padded(length: int) -> int:
    """Round up to whole records."""
    return -(-length // _RECORD.size) * _RECORD.size
