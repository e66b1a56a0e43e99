"""Staging files: where a write lands before S3 has it.

For each inode two files in the mount's ``staging`` directory: ``<inode>`` holds the bytes at their final
offsets, sparse; ``<inode>.log`` holds which of them are ours. A write is acknowledged once its bytes are in the first
and its record is in the second; both are then in the kernel's hands and outlive the process (not a power loss:
for that, fsync() waits for S3).

Log format, ours: records of 16 bytes, two unsigned 64-bit little-endian numbers. (offset, length) is a write;
(size, 2**64-1) is a truncation to *size*; (n, 2**64-2) is followed by a `Description` in n bytes of JSON, padded to whole
records, and n = 0 says that S3 need not get the data (any more). A torn record at the end was never acknowledged and is
ignored. The last description counts: with it, what was not uploaded can be told and saved when mount.db is lost.

The content of a staged file of *size* bytes: what the records cover comes from the staging file; other bytes below
`base_size` come from the base version in S3; the rest is zeros, which the sparse staging file has too.
"""

import errno
import os
import struct
from contextlib import suppress
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from s3mgrd.journal.extents import Extents

_RECORD: Final = struct.Struct("<QQ")
_TRUNCATE: Final = (1 << 64) - 1
_DESCRIPTION: Final = (1 << 64) - 2
_MAX_DESCRIPTION_BYTES: Final = 64 << 10
_LOG_READ_BYTES: Final = 1 << 20


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


class Piece(NamedTuple):
    """A part of a read: from the staging file, or (`is_base`) from the base version in S3."""

    start: int
    stop: int
    is_base: bool


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
        self.data_fd: Final = data_fd
        self._log_fd = log_fd
        self._log_end = 0
        self.base_size = base_size
        self.size = base_size
        self.extents = Extents()
        self.description: Description | None = None
        """What the data was to become; None: S3 need not get it, or nothing was ever said."""
        self.is_described = False
        self.is_closed = False
        self._counted_in: Lacking | None = None

    def count_in(self, lacking: Lacking | None) -> None:
        """Count this file, whatever its size becomes, in *lacking* and nowhere else."""
        before, self._counted_in = self._counted_in, lacking
        for counts, sign in ((before, -1), (lacking, 1)):
            if counts is not None:
                counts.files += sign
                counts.bytes += sign * self.size

    def replay(self) -> None:
        """Read the log: afterwards size and extents are as they were acknowledged."""
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
            elif second == _DESCRIPTION:
                payload = chunk[after : after + first]
                if first > _MAX_DESCRIPTION_BYTES or len(payload) < first:
                    break  # its end is in the next chunk, or was never written
                self._apply_description(payload)
                after += _padded(first)
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
        view = memoryview(data)
        while view:
            written = os.pwrite(self.data_fd, view, offset)
            view, offset = view[written:], offset + written

    def record(self, offset: int, length: int) -> None:
        """Acknowledge bytes that `put` wrote: they are the file's from here on."""
        self._append(offset, length)
        self._apply_write(offset, offset + length)

    def truncate(self, size: int) -> None:
        """Set the size; what grows is zeros."""
        os.ftruncate(self.data_fd, size)
        self._append(size, _TRUNCATE)
        self._apply_truncate(size)

    def describe(self, description: Description | None) -> None:
        """Note what the data is to become; None: S3 need not get it (any more)."""
        payload = b"" if description is None else msgspec.json.encode(description)
        if payload or self.description is not None or not self.is_described:
            self._append(len(payload), _DESCRIPTION, payload.ljust(_padded(len(payload)), b" "))
        self.description, self.is_described = description, True

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """Split a read of [start, stop) by where its bytes are; clipped to the size."""
        stop = min(stop, self.size)
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

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes that are no base's; zeros where nothing was written."""
        data = os.pread(self.data_fd, stop - start, start)
        return data if len(data) == stop - start else data.ljust(stop - start, b"\0")

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges that only the base version has."""
        return list(self.extents.missing(0, min(self.base_size, self.size)))

    def missing_bytes(self) -> int:
        """Count the bytes that only the base version has."""
        return sum(stop - start for start, stop in self.missing())

    def rebase(self, base_size: int) -> None:
        """Declare the present content to be a version of S3: the base from now on."""
        self.base_size = base_size

    def mtime_ns(self) -> int:
        """When the staging file was last written."""
        return os.fstat(self.data_fd).st_mtime_ns

    def sync(self) -> None:
        """Bring bytes and log to the disk."""
        os.fsync(self.data_fd)
        os.fsync(self._log_fd)

    def close(self) -> None:
        """Close the descriptors; the files stay."""
        self.is_closed = True
        os.close(self.data_fd)
        os.close(self._log_fd)

    def _apply_write(self, start: int, stop: int) -> None:
        self.extents.add(start, stop)
        if stop > self.size:
            self._resize(stop)

    def _apply_truncate(self, size: int) -> None:
        self.extents.clip(size)
        self.base_size = min(self.base_size, size)
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

    def _append(self, first: int, second: int, payload: bytes = b"") -> None:
        # At a position of ours, not O_APPEND: half a record that a full disk left is overwritten by the next.
        record = _RECORD.pack(first, second) + payload
        written = os.pwrite(self._log_fd, record, self._log_end)
        if written != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._log_end += written


def _padded(length: int) -> int:
    """Round up to whole records."""
    return -(-length // _RECORD.size) * _RECORD.size


class StagingDirectory:
    """The directory of all staging files of a mount, by descriptor: no path is needed after it was opened."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd
        self._open_files: WeakValueDictionary[int, StagedFile] = WeakValueDictionary()

    def create(self, inode: int, base_size: int) -> StagedFile:
        """Make empty staging files for an inode; what an earlier life left under that number is emptied."""
        return self._open(inode, base_size, os.O_CREAT | os.O_TRUNC)

    def open(self, inode: int, base_size: int) -> StagedFile:
        """Open existing staging files and replay the log. Raises FileNotFoundError."""
        staged = self._open(inode, base_size, 0)
        try:
            staged.replay()
        except OSError:
            staged.close()
            raise
        return staged

    def adopt(self, inode: int, base_size: int) -> StagedFile:
        """As `open`, for files that no journal speaks of. Data without any record is taken for written, all of it."""
        staged = self._open(inode, base_size, os.O_CREAT)
        try:
            staged.replay()
            size = os.fstat(staged.data_fd).st_size
            if size and not staged.has_records:
                staged.record(0, size)
        except OSError:
            staged.close()
            raise
        return staged

    def link(self, inode: int, other: int) -> None:
        """Let the files of *inode* be those of *other*, too."""
        for ending in (".log", ""):  # what has data has a log
            os.link(
                f"{inode}{ending}", f"{other}{ending}", src_dir_fd=self._fd, dst_dir_fd=self._fd
            )

    def remove(self, inode: int) -> None:
        """Delete the files of an inode; missing ones are fine."""
        for name in (str(inode), f"{inode}.log"):
            try:
                os.unlink(name, dir_fd=self._fd)
            except FileNotFoundError:
                continue

    def describe(self, inode: int, description: Description | None) -> None:
        """Note what the data of an inode is to become (`StagedFile.describe`), if it has any.

        Where the disk does not take the note, an older one stands: it only matters if mount.db is lost, too.
        """
        with suppress(OSError):
            file = self._open_files.get(inode)
            if file is not None and not file.is_closed:
                file.describe(description)
                return
            file = self.open(inode, 0)
            try:
                file.describe(description)
            finally:
                file.close()

    def inodes(self) -> set[int]:
        """Return the inode numbers that have a staging file."""
        return {int(name) for name in os.listdir(self._fd) if name.isdecimal()}

    def free_bytes(self) -> int:
        """Return how much its disk would take now."""
        disk = os.fstatvfs(self._fd)
        return disk.f_bavail * disk.f_frsize

    def sync(self) -> None:
        """Bring the directory itself to the disk: which files there are."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def _open(self, inode: int, base_size: int, flags: int) -> StagedFile:
        flags |= os.O_RDWR | os.O_CLOEXEC
        data_fd = os.open(str(inode), flags, 0o600, dir_fd=self._fd)
        try:
            log_fd = os.open(f"{inode}.log", flags, 0o600, dir_fd=self._fd)
        except OSError:
            os.close(data_fd)
            raise
        self._open_files[inode] = file = StagedFile(data_fd, log_fd, base_size)
        return file
