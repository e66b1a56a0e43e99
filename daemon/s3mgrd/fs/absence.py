"""Which names the kernel was told not to be there: it believes so for a time, and asks nobody.

Whoever invalidates a name has to tell the kernel each of them, also those that a worker told it that has died since: the
kernel has no word for "all names that are not in this directory", and dropping everything it knows would drop mounts
inside of this one with it. So each is noted in a file before the kernel hears of it. That costs one write into
the page cache, which outlives the process; a crash of the machine takes the kernel's memory along.

There are two files, of which one is empty while nothing is rewritten: what counts is what either of them says, so a worker
may die at any point. A file begins with the kernel connection that it is about. Nothing is ever taken out: telling
the kernel a name that it does not remember costs microseconds.
"""

import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from s3mgrd.cache.nodes import Inode

MAX_ABSENT: Final = 65_536
FILES: Final = "absent.0", "absent.1"
LEAST_BYTES: Final = 1 << 20
"""A file is not rewritten before it is as large."""
_MAGIC: Final = b"s3mgrab1"
_LENGTH: Final = struct.Struct("<H")
_RECORD: Final = struct.Struct("<QqH")
"""Directory; until when (ns since the epoch) the kernel believes it; bytes of the name, which follows."""

Key = tuple[Inode, str]


class ToldAbsent:
    """The names, and until when the kernel believes that they lead to nothing.

    Args:
        fds: two files, open for appending and reading, which become this object's; None: nothing needs to outlive it.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        self._fds = fds
        self._active = 0
        self._size = 0
        self._limit = LEAST_BYTES
        self._head = b""
        self.ends: dict[Key, int] = {}
        """Time (ns), by directory and name."""

    @classmethod
    def open(cls, directory: Path) -> "ToldAbsent":
        """Open or create the two files in *directory*."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        first, second = (os.open(directory / name, flags, 0o600) for name in FILES)
        return cls((first, second))

    def adopt(self, connection_id: str) -> None:
        """Go on with what the kernel was told through this connection; of another it remembers nothing."""
        text = connection_id.encode()
        self._head = _MAGIC + _LENGTH.pack(len(text)) + text
        self.ends.clear()
        if self._fds is None:
            return
        sizes = [self._load(fd) for fd in self._fds]
        self._active = 1 if sizes[1] and not sizes[0] else 0
        self._size = sizes[self._active]
        if all(sizes):
            self._rewrite_to(self._active)

    def _load(self, fd: int) -> int:
        """Take what one file says; returns the size of that, to which the file is cut."""
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        at = 0
        if content.startswith(self._head):
            at = len(self._head)
            for key, end_ns, end in _records(content, at):
                self.ends[key] = max(end_ns, self.ends.get(key, 0))
                at = end
        if at != len(content):
            os.ftruncate(fd, at)
        return at

    def note(self, directory: Inode, name: str, end_ns: int, now_ns: int) -> bool:
        """Note what the kernel is about to be told; False: there is no room, so it must not be told."""
        key = directory, name
        if len(self.ends) >= MAX_ABSENT and key not in self.ends:
            self._drop_expired(now_ns)
            if len(self.ends) >= MAX_ABSENT:
                return False
        if self._fds is not None:
            if self._size > self._limit:
                self._drop_expired(now_ns)
                self._rewrite_to(1 - self._active)
            if not self._append(_record(key, end_ns)):
                return False
        self.ends[key] = end_ns
        return True

    def take(self, directories: Collection[Inode], name: str | None = None) -> list[Key]:
        """Return the names (or that one name) in *directories* that the kernel was told of, which it is told anew now."""
        told = [key for key in self.ends if key[0] in directories and name in (None, key[1])]
        for key in told:
            del self.ends[key]
        return told

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds or ():
            os.close(fd)
        self._fds = None

    def _drop_expired(self, now_ns: int) -> None:
        self.ends = {key: end_ns for key, end_ns in self.ends.items() if end_ns > now_ns}

    def _append(self, record: bytes) -> bool:
        assert self._fds is not None, "only what has files"  # noqa: S101 - a bug, not an input
        fd = self._fds[self._active]
        record = record if self._size else self._head + record
        try:
            written = os.write(fd, record)
        except OSError:
            return False
        if written != len(record):  # the disk is full
            os.ftruncate(fd, self._size)
            return False
        self._size += written
        return True

    def _rewrite_to(self, target: int) -> None:
        """Bring everything that holds into one file, and empty the other."""
        assert self._fds is not None, "only what has files"  # noqa: S101 - a bug, not an input
        before = self._active, self._size
        self._active, self._size = target, os.fstat(self._fds[target]).st_size
        everything = b"".join(_record(key, end_ns) for key, end_ns in self.ends.items())
        if self._append(everything):
            os.ftruncate(self._fds[1 - target], 0)
            self._limit = max(LEAST_BYTES, 2 * self._size)
        else:
            self._active, self._size = before


def _record(key: Key, end_ns: int) -> bytes:
    name = key[1].encode()
    return _RECORD.pack(key[0], end_ns, len(name)) + name


def _records(content: bytes, at: int) -> Iterator[tuple[Key, int, int]]:
    """Yield what a file says, up to a record that was cut off, and where each record ends."""
    while at + _RECORD.size <= len(content):
        directory, end_ns, length = _RECORD.unpack_from(content, at)
        start = at + _RECORD.size
        at = start + length
        if at <= len(content):
            yield (Inode(directory), content[start:at].decode()), end_ns, at
