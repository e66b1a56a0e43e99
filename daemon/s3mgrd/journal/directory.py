"""All staging files of a mount: those that have files of their own, and small new ones in the log they share."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

from s3mgrd.journal.shared import Entry, SharedLog
from s3mgrd.journal.small import SmallFile
from s3mgrd.journal.staging import Description, StagedFile, damaged, log_of_damaged

MAX_SMALL: Final = 16_384
"""Files in the shared log; each costs some memory, and reading the log after a crash some time."""


class StagingDirectory:
    """The directory of all staging files of a mount, by descriptor: no path is needed after it was opened."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd
        self._open_files: WeakValueDictionary[int, StagedFile] = WeakValueDictionary()
        self._shared: Final = SharedLog(directory_fd)
        self._small: dict[int, SmallFile] = {}
        """In the shared log."""
        self._unreadable: set[int] = set()
        """In the shared log, too, but the disk changed what it says of them."""
        for inode, entries in self._shared.load().items():
            file = SmallFile(inode, self._shared, self)
            try:
                file.load(entries)
            except OSError:
                self._unreadable.add(inode)
                self._set_aside(inode, entries)
            else:
                self._small[inode] = self._open_files[inode] = file

    def _set_aside(self, inode: int, entries: Sequence[Entry]) -> None:
        """Give a file that cannot be read files of its own: it stays, and must not keep the log, which would only grow."""
        with suppress(OSError):  # a full disk: another worker does it
            data_fd, log_fd = self.make_files(inode)
            try:
                # What can be read of it, one after another: for people, who may know what it was.
                for record, place, _ in entries:
                    written = StagedFile.written_by(record) if record is not None else None
                    if written is not None:
                        os.write(data_fd, self._shared.read(place, written[1]))
                os.write(log_fd, log_of_damaged())
                os.fdatasync(data_fd)
                os.fdatasync(log_fd)
            finally:
                os.close(data_fd)
                os.close(log_fd)
            os.fsync(self._fd)
            self._shared.drop(inode, time_ns=0)
            self._unreadable.remove(inode)

    def create_small(self, inode: int) -> StagedFile:
        """Make a staging file for an inode that is new: without files of its own, as long as it is small."""
        if inode in self._small or inode in self._unreadable:
            self.remove(inode)  # of a transaction that was rolled back
        self._relieve()
        if len(self._small) >= MAX_SMALL:
            return self.create(inode, 0)
        file = SmallFile(inode, self._shared, self)
        self._small[inode] = self._open_files[inode] = file
        return file

    def make_files(self, inode: int) -> tuple[int, int]:
        """Make empty files for an inode, and return their descriptors."""
        return self._open_descriptors(inode, os.O_CREAT | os.O_TRUNC)

    def settled(self, inode: int) -> None:
        """Note that a file which was in the shared log is in files of its own."""
        self._small.pop(inode, None)

    def _small_file(self, inode: int) -> SmallFile | None:
        """Return the file of an inode that lies in the shared log. Raises OSError(EIO): the disk changed it."""
        if inode in self._unreadable:
            raise damaged()
        return self._small.get(inode)

    def _relieve(self) -> None:
        """Have a file leave the shared log that keeps it large; one at a time, when another comes."""
        inode = self._shared.crowding()
        if inode is None:
            return
        with suppress(OSError):  # a full disk: later, then
            file = self._small_file(inode)
            if file is not None:
                file.settle()

    def create(self, inode: int, base_size: int) -> StagedFile:
        """Make empty staging files for an inode; what an earlier life left under that number is emptied."""
        return self._open(inode, base_size, os.O_CREAT | os.O_TRUNC)

    def open(self, inode: int, base_size: int) -> StagedFile:
        """Open existing staging files and replay the log. Raises FileNotFoundError."""
        small = self._small_file(inode)
        if small is not None:
            return small
        staged = self._open(inode, base_size, 0)
        try:
            staged.replay()
        except OSError:
            staged.close()
            raise
        return staged

    def adopt(self, inode: int, base_size: int) -> StagedFile:
        """As `open`, for files that no journal speaks of. Data without any record is taken for written, all of it."""
        small = self._small_file(inode)
        if small is not None:
            return small
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
        small = self._small_file(inode)
        if small is not None:
            small.settle()
        for ending in (".log", ""):  # what has data has a log
            os.link(
                f"{inode}{ending}", f"{other}{ending}", src_dir_fd=self._fd, dst_dir_fd=self._fd
            )

    def remove(self, inode: int) -> None:
        """Delete the files of an inode; missing ones are fine."""
        small = self._small.pop(inode, None)
        if small is not None:
            small.forget()
            return
        if inode in self._unreadable:
            self._unreadable.remove(inode)
            self._shared.drop(inode, time_ns=0)
        self.drop_files(inode)

    def drop_files(self, inode: int) -> None:
        """Delete the files that an inode has of its own; missing ones are fine."""
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
        own = {int(name) for name in os.listdir(self._fd) if name.isdecimal()}
        return own | self._small.keys() | self._unreadable

    def free_bytes(self) -> int:
        """Return how much its disk would take now."""
        disk = os.fstatvfs(self._fd)
        return disk.f_bavail * disk.f_frsize

    def sync(self) -> None:
        """Bring the directory itself to the disk, which files there are, and which are in the shared log no more; may run in a thread."""
        self._shared.sync(self._shared.hold_notes())
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the directory."""
        self._shared.close()
        os.close(self._fd)

    def _open(self, inode: int, base_size: int, flags: int) -> StagedFile:
        file = StagedFile(*self._open_descriptors(inode, flags), base_size)
        self._open_files[inode] = file
        return file

    def _open_descriptors(self, inode: int, flags: int) -> tuple[int, int]:
        flags |= os.O_RDWR | os.O_CLOEXEC
        data_fd = os.open(str(inode), flags, 0o600, dir_fd=self._fd)
        try:
            return data_fd, os.open(f"{inode}.log", flags, 0o600, dir_fd=self._fd)
        except OSError:
            os.close(data_fd)
            raise
