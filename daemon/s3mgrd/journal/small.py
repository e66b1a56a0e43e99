"""A staging file that has no files of its own: a new file lies in the log that all such share, as long as it is small.

It is a `StagedFile` in every respect. What the shared log cannot do (a hole, a truncation, a part that is sent by descriptor) gives it
files of its own first (`settle`), with the same records and bytes, and from then on it is like all others.
"""

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Final, NamedTuple, Protocol

from s3mgrd.journal.shared import Entry, Place, SharedLog
from s3mgrd.journal.staging import StagedFile, damaged

SMALL_BYTES: Final = 32 << 10
MAX_WRITES: Final = 64
"""Of one file, in the shared log."""


class Home(Protocol):
    """Where files of one's own are."""

    def make_files(self, inode: int) -> tuple[int, int]:
        """Make files for an inode, empty, and return the descriptors of data and log."""

    def drop_files(self, inode: int) -> None:
        """Take these away again."""

    def settled(self, inode: int) -> None:
        """Note that an inode has files of its own from now on."""

    def sync(self) -> None:
        """Bring to the disk which files there are."""


class _Written(NamedTuple):
    """Bytes from *offset* on, and where they are."""

    offset: int
    length: int
    place: Place


class SmallFile(StagedFile):
    """A new file in the shared log. As `StagedFile`, not synchronised, but for `sync`, which may run in a thread.

    Args:
        inode: whose it is.
        shared: where it lies.
        home: where it gets files of its own.
    """

    def __init__(
        self,
        inode: int,
        shared: SharedLog,
        home: Home,
    ) -> None:
        super().__init__(-1, -1, 0)
        self._inode: Final = inode
        self._shared: Final = shared
        self._home: Final = home
        self._data: dict[tuple[int, int], bytes | memoryview] = {}
        """What was put and is not recorded yet, by offset and length."""
        self._written: list[_Written] = []
        self._time_ns = time.time_ns()
        self._moving: Final = Lock()
        """Held while the bytes go elsewhere, and by who is about to sync them."""
        self._must_stay = False
        """They may have been promised to outlive a power loss."""
        self.is_small = True

    def load(self, entries: Sequence[Entry]) -> None:
        """Take over what the last worker wrote. Raises OSError(EIO): the disk changed it."""
        self._must_stay = True
        is_begun = False
        for record, place, time_ns in entries:
            # What begins with a write has lost what was said first: that it was made, and perhaps more.
            if record is None or not (is_begun or self.written_by(record) is None):
                raise damaged()
            is_begun = True
            self._replay_chunk(record)
            if (written := self.written_by(record)) is not None:
                self._written.append(_Written(*written, place))
            self._time_ns = time_ns

    def prepare(self, stop: int) -> None:
        """Give it files of its own where a `put` up to *stop* needs them."""
        if self.is_small and (stop > SMALL_BYTES or len(self._written) >= MAX_WRITES):
            self.settle()

    @property
    def has_records(self) -> bool:
        """Whether the log says anything."""
        return self.is_small or super().has_records

    def replay(self) -> None:
        """Read the log of its own, if it has one."""
        if not self.is_small:
            super().replay()

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Keep bytes that do not count yet."""
        self.prepare(offset + len(data))
        if not self.is_small:
            self._data.pop((offset, len(data)), None)  # of a put that was given up
            super().put(offset, data)
            return
        self.note_put(offset, data)
        self._data[offset, len(data)] = data

    def record(self, offset: int, length: int) -> None:
        """Acknowledge bytes that `put` keeps: with one write of both."""
        data = self._data.pop((offset, length), None)
        if data is None or not self.is_small:
            if data is None:
                self.settle()
            else:  # it was put before there were files to put it into
                super().put(offset, data)
            super().record(offset, length)
            return
        record, self._time_ns = self.pack_record(offset, length), time.time_ns()
        place = self._shared.append(self._inode, record, data, time_ns=self._time_ns)
        self._written.append(_Written(offset, length, place))
        self._note_entered(offset, length)
        self._apply_write(offset, offset + length)

    def sync_log(self) -> None:
        """Bring what was said of it to the disk; may run in a thread."""
        self.sync()

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes; zeros where nothing was written."""
        if not self.is_small:
            return super().read(start, stop)
        if len(self._written) == 1 and self._written[0].offset == 0:
            stop_here = min(stop, self._written[0].length)
            place = self._written[0].place
            data = self._shared.read(
                Place(place.segment, place.position + start), max(0, stop_here - start)
            )
            return data.ljust(stop - start, b"\0")
        return bytes(self._whole()[start:stop].ljust(stop - start, b"\0"))

    def _whole(self) -> bytearray:
        whole = bytearray(self.size)
        for offset, length, place in self._written:
            whole[offset : offset + length] = self._shared.read(place, length)
        return whole

    def mtime_ns(self) -> int:
        """When it was last written."""
        return self._time_ns if self.is_small else super().mtime_ns()

    def set_mtime_ns(self, mtime_ns: int) -> None:
        """Say when the content changed, for the next worker."""
        if not self.is_small:
            super().set_mtime_ns(mtime_ns)
            return
        with suppress(OSError):
            self._time_ns = mtime_ns
            self._shared.append(self._inode, b"", time_ns=mtime_ns)

    def sync(self) -> None:
        """Bring bytes and log to the disk; may run in a thread."""
        with self._moving:
            is_small = self.is_small
            self._must_stay = True
            held = self._shared.hold(self._inode) if is_small else []
        if is_small:
            self._shared.sync(held)
        else:
            super().sync()

    def close(self) -> None:
        """Close the descriptors it has."""
        if self.is_small:
            return  # it has no descriptors
        super().close()

    def _append(self, record: bytes) -> None:
        if self.is_small:
            self._shared.append(self._inode, record, time_ns=self._time_ns)
        else:
            super()._append(record)

    def settle(self) -> None:
        """As of any staged file: here it makes them."""
        if not self.is_small:
            return
        with self._moving:
            data_fd, log_fd = self._home.make_files(self._inode)
            try:
                whole, log = self._whole(), self.log_of((w.offset, w.length) for w in self._written)
                _write(data_fd, whole)
                _write(log_fd, log)
                os.utime(data_fd, ns=(self._time_ns, self._time_ns))
                if self._must_stay:
                    os.fdatasync(data_fd)
                    os.fdatasync(log_fd)
                    self._home.sync()
                self._shared.drop(self._inode, time_ns=self._time_ns)
            except OSError:
                os.close(data_fd)
                os.close(log_fd)
                self._home.drop_files(self._inode)
                raise
            self._data_fd, self._log_fd, self._log_end = data_fd, log_fd, len(log)
            self.is_small = False
        self._written.clear()
        self._home.settled(self._inode)

    def forget(self) -> None:
        """Leave the shared log: nobody wants it any more."""
        self._shared.forget(self._inode, time_ns=self._time_ns)


def _write(fd: int, content: bytes | bytearray) -> None:
    if os.pwrite(fd, content, 0) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
