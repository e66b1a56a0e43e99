"""Staging files: where a write lands before S3 has it.

For each inode two files in the mount's ``staging`` directory: ``<inode>`` holds the bytes at their final
offsets, sparse; ``<inode>.log`` holds which of them are ours. A write is acknowledged once its bytes are in the first
and its record is in the second; both are then in the kernel's hands and outlive the process (not a power loss:
for that, fsync() waits for S3).

Log format, ours: records of 16 bytes, two unsigned 64-bit little-endian numbers. (offset, length) is a write;
(size, 2**64-1) is a truncation to *size*. A torn record at the end was never acknowledged and is ignored.

The content of a staged file of *size* bytes: what the records cover comes from the staging file; other bytes below
`base_size` come from the base version in S3; the rest is zeros, which the sparse staging file has too.
"""

import errno
import os
import struct
from typing import Final, NamedTuple

from s3mgrd.journal.extents import Extents

_RECORD: Final = struct.Struct("<QQ")
_TRUNCATE: Final = (1 << 64) - 1
_LOG_READ_BYTES: Final = 1 << 20


class Piece(NamedTuple):
    """A part of a read: from the staging file, or (`is_base`) from the base version in S3."""

    start: int
    stop: int
    is_base: bool


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

    def replay(self) -> None:
        """Read the log: afterwards size and extents are as they were acknowledged."""
        while chunk := os.pread(self._log_fd, _LOG_READ_BYTES, self._log_end):
            whole = len(chunk) - len(chunk) % _RECORD.size
            if not whole:
                return
            for first, second in _RECORD.iter_unpack(chunk[:whole]):
                if second == _TRUNCATE:
                    self._apply_truncate(first)
                else:
                    self._apply_write(first, first + second)
            self._log_end += whole

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

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the base is needed any more."""
        return next(self.extents.missing(0, min(self.base_size, self.size)), None) is None

    def rebase(self, base_size: int) -> None:
        """Declare the present content to be a version of S3: the base from now on."""
        self.base_size = base_size

    def mtime_ns(self) -> int:
        """When the staging file was last written."""
        return os.fstat(self.data_fd).st_mtime_ns

    def close(self) -> None:
        """Close the descriptors; the files stay."""
        os.close(self.data_fd)
        os.close(self._log_fd)

    def _apply_write(self, start: int, stop: int) -> None:
        self.extents.add(start, stop)
        self.size = max(self.size, stop)

    def _apply_truncate(self, size: int) -> None:
        self.extents.clip(size)
        self.base_size = min(self.base_size, size)
        self.size = size

    def _append(self, first: int, second: int) -> None:
        # At a position of ours, not O_APPEND: half a record that a full disk left is overwritten by the next.
        written = os.pwrite(self._log_fd, _RECORD.pack(first, second), self._log_end)
        if written != _RECORD.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._log_end += written


class StagingDirectory:
    """The directory of all staging files of a mount, by descriptor: no path is needed after it was opened."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd

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

    def remove(self, inode: int) -> None:
        """Delete the files of an inode; missing ones are fine."""
        for name in (str(inode), f"{inode}.log"):
            try:
                os.unlink(name, dir_fd=self._fd)
            except FileNotFoundError:
                continue

    def inodes(self) -> set[int]:
        """Return the inode numbers that have a staging file."""
        return {int(name) for name in os.listdir(self._fd) if name.isdecimal()}

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
        return StagedFile(data_fd, log_fd, base_size)
