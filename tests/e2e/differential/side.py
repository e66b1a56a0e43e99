"""One of two trees on which the same is done: each method is a call, and returns what both must agree on."""

import ctypes
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.e2e.differential.steps import RECENT_NS, Step, content

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.read.restype = _LIBC.write.restype = ctypes.c_ssize_t
_AT_FDCWD: Final = -100
_MS_SYNC: Final = 4
DEVICE: Final = os.makedev(240, 7)
RECENT: Final = "recent"

Result = tuple[str, object]


def shown_time(time_ns: int) -> int | str:
    """Return a time that was set; all others are of the moment, and no two clocks read the same."""
    return time_ns if time_ns < RECENT_NS else RECENT


def shown(status: os.stat_result, *, times: bool = True) -> tuple[object, ...]:
    """Return what is promised of attributes. Of directories, neither size, links nor times are."""
    common = (status.st_mode, status.st_uid, status.st_gid)
    if stat.S_ISDIR(status.st_mode):
        return common
    return (
        *common,
        status.st_size,
        status.st_nlink,
        status.st_rdev,
        shown_time(status.st_mtime_ns) if times else None,
    )


def digest(data: bytes) -> str:
    """Return few letters that stand for many bytes."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:12]}"


class _File(NamedTuple):
    fd: int
    flags: int


class Side:
    """One tree, and the files that the program has open in it.

    Args:
        is_mount: it is a mount: where S3 makes something impossible, the other side answers as it does.
        gathers: the mount's kernel gathers writes. So it keeps a file's times, and truncate(2) to the size that a file has
            changes none, as POSIX allows.
    """

    def __init__(self, root: Path, *, is_mount: bool, gathers: bool) -> None:
        self.root: Final = root
        self._is_mount: Final = is_mount
        self._gathers: Final = gathers
        self._open: dict[int, _File] = {}

    def do(self, step: Step) -> Result:
        """Do a step; returns its result or errno."""
        method: Any = getattr(self, step.name)  # Any: one method a step
        try:
            return "ok", method(*step.arguments)
        except OSError as error:
            return "errno", error.errno

    def close_all(self) -> list[Result]:
        """Close everything; returns what each close said."""
        return [self.do(Step("close", (slot,))) for slot in sorted(self._open)]

    def slots(self, *, reads: bool = False, writes: bool = False) -> list[int]:
        """Return the slots with a file that is open for reading, and for writing, if that is wanted."""
        without = {os.O_WRONLY} if reads else set()
        without |= {os.O_RDONLY} if writes else set()
        return sorted(
            slot for slot, file in self._open.items() if file.flags & os.O_ACCMODE not in without
        )

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _fd(self, slot: int) -> int:
        try:
            return self._open[slot].fd
        except KeyError:
            raise OSError(errno.EBADF, "nothing is open there") from None

    def _opened(self, path: str, flags: int, mode: int = 0o644) -> int:
        is_file = os.path.isfile(self._at(path))
        if not self._is_mount and (is_file or not os.path.exists(self._at(path))):
            flags &= ~os.O_DIRECT  # which in a mount needs no alignment
        try:
            return os.open(self._at(path), flags | os.O_NONBLOCK, mode)
        except OSError as error:
            # A mount is nodev; the device that the other side may open does not exist.
            if not self._is_mount and error.errno == errno.ENXIO:
                status = os.stat(self._at(path))
                if stat.S_ISCHR(status.st_mode):
                    raise OSError(errno.EACCES, "a device") from error
            raise

    # Files by name

    def write(self, path: str, truncate: bool, length: int, seed: int, offset: int) -> object:
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if truncate else 0)
        fd = self._opened(path, flags)
        try:
            os.pwrite(fd, content(length, seed), offset)
            return digest(os.pread(fd, 70_000, max(0, offset - 100))), shown(os.fstat(fd))
        finally:
            os.close(fd)

    def append(self, path: str, length: int, seed: int) -> object:
        fd = self._opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return os.write(fd, content(length, seed)) if _is_file(fd) else None
        finally:
            os.close(fd)

    def read(self, path: str) -> object:
        fd = self._opened(path, os.O_RDONLY)
        try:
            return digest(os.pread(fd, 200_000, 0))
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> object:
        before = os.stat(self._at(path))
        os.truncate(self._at(path), size)
        if self._gathers and not self._is_mount and before.st_size == size:
            os.utime(self._at(path), ns=(before.st_atime_ns, before.st_mtime_ns))
        return shown(os.stat(self._at(path)))

    def exclusive(self, path: str, mode: int) -> object:
        os.close(self._opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        return shown(os.stat(self._at(path)))

    # Open files

    def open(self, slot: int, path: str, flags: int, mode: int) -> object:
        fd = self._opened(path, flags, mode)
        if slot in self._open:
            os.close(self._open.pop(slot).fd)
        self._open[slot] = _File(fd, flags)
        return shown(os.fstat(fd))

    def pwrite(self, slot: int, length: int, seed: int, offset: int) -> object:
        written = os.pwrite(self._fd(slot), content(length, seed), offset)
        return written, shown(os.fstat(self._fd(slot)))

    def pread(self, slot: int, length: int, offset: int) -> object:
        return digest(os.pread(self._fd(slot), length, offset))

    def ftruncate(self, slot: int, size: int) -> object:
        os.ftruncate(self._fd(slot), size)
        return shown(os.fstat(self._fd(slot)))

    def map_write(self, slot: int, length: int, seed: int, offset: int) -> object:
        """Write through a shared mapping, as far as the file reaches."""
        fd = self._fd(slot)
        size = os.fstat(fd).st_size
        if not size or not _is_file(fd):
            return None
        with _mapped(fd, size, mmap.MAP_SHARED) as address:
            data = content(length, seed)[: max(0, size - offset)]
            _fill(address + offset, data)
            if _LIBC.msync(ctypes.c_void_p(address), ctypes.c_size_t(size), _MS_SYNC):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return digest(_copied(address, size))

    def map_read(self, slot: int) -> object:
        """Read through a mapping."""
        fd = self._fd(slot)
        size = os.fstat(fd).st_size
        if not size or not _is_file(fd):
            return None
        with _mapped(fd, size, mmap.MAP_PRIVATE) as address:
            return digest(_copied(address, size))

    def copy_range(self, source: int, target: int, length: int, start: int, to: int) -> object:
        """Copy from one open file to another, or within one, without a buffer of the program's."""
        copied = os.copy_file_range(self._fd(source), self._fd(target), length, start, to)
        return copied, shown(os.fstat(self._fd(target)))

    def fsync(self, slot: int, only_data: bool) -> None:
        (os.fdatasync if only_data else os.fsync)(self._fd(slot))

    def fstat(self, slot: int) -> object:
        return shown(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> object:
        os.fchmod(self._fd(slot), mode)
        return shown(os.fstat(self._fd(slot)))

    def futime(self, slot: int, atime_ns: int, mtime_ns: int) -> object:
        os.utime(self._fd(slot), ns=(atime_ns, mtime_ns))
        status = os.fstat(self._fd(slot))
        return status.st_atime_ns, status.st_mtime_ns

    def fsetxattr(self, slot: int, name: str, length: int, flags: int) -> object:
        os.setxattr(self._fd(slot), name, content(length, flags), flags)
        return sorted(os.listxattr(self._fd(slot)))

    def close(self, slot: int) -> object:
        fd = self._fd(slot)
        del self._open[slot]
        os.close(fd)
        return None

    # Names

    def mkdir(self, path: str, mode: int) -> object:
        os.mkdir(self._at(path), mode)
        return shown(os.stat(self._at(path)))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, old: str, new: str, flags: int) -> object:
        names = os.fsencode(self._at(old)), os.fsencode(self._at(new))
        if _LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return None

    def link(self, path: str, new: str) -> object:
        """Link, which a mount refuses."""
        os.link(self._at(path), self._at(new), follow_symlinks=False)
        if not self._is_mount:
            os.unlink(self._at(new))
            raise OSError(errno.EPERM, "an object has one key")
        return None

    def symlink(self, path: str, target: str) -> object:
        os.symlink(target, self._at(path))
        return shown(os.lstat(self._at(path)), times=False)

    def readlink(self, path: str) -> object:
        return os.readlink(self._at(path))

    def mknod(self, path: str, kind: int, mode: int) -> object:
        os.mknod(self._at(path), kind | mode, DEVICE if kind == stat.S_IFCHR else 0)
        return shown(os.lstat(self._at(path)))

    def listdir(self, path: str) -> object:
        with os.scandir(self._at(path)) as entries:
            return sorted(
                (e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries
            )

    # Attributes

    def chmod(self, path: str, mode: int) -> object:
        os.chmod(self._at(path), mode)
        return shown(os.stat(self._at(path)))

    def chown(self, path: str, uid: int, gid: int, follows: bool) -> object:
        os.chown(self._at(path), uid, gid, follow_symlinks=follows)
        return shown(os.stat(self._at(path), follow_symlinks=follows))

    def utime(self, path: str, atime_ns: int, mtime_ns: int, follows: bool) -> object:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=follows)
        status = os.stat(self._at(path), follow_symlinks=follows)
        return status.st_atime_ns, status.st_mtime_ns

    def setxattr(self, path: str, name: str, length: int, flags: int) -> object:
        os.setxattr(self._at(path), name, content(length, flags), flags)
        return None

    def getxattr(self, path: str, name: str) -> object:
        return os.getxattr(self._at(path), name)

    def listxattr(self, path: str) -> object:
        return sorted(os.listxattr(self._at(path)))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name)

    def stat(self, path: str) -> object:
        return shown(os.lstat(self._at(path)))


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


@contextmanager
def _mapped(fd: int, size: int, flags: int) -> Iterator[int]:
    """Map a file's first *size* bytes; gives the address."""
    with mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE) as area:
        anchor = ctypes.c_char.from_buffer(area)
        try:
            yield ctypes.addressof(anchor)
        finally:
            del anchor


# By system calls from and to a file in memory: a page that cannot be had is EFAULT to these, and SIGBUS to anything else.
# And by the C library, which is called without the interpreter's lock: what serves a page fault may need it.


def _fill(address: int, data: bytes) -> None:
    with _memory() as fd:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        _whole(_LIBC.read, fd, address, len(data))


def _copied(address: int, size: int) -> bytes:
    with _memory() as fd:
        _whole(_LIBC.write, fd, address, size)
        return os.pread(fd, size, 0)


@contextmanager
def _memory() -> Iterator[int]:
    fd = os.memfd_create("copy")
    try:
        yield fd
    finally:
        os.close(fd)


def _whole(call: Callable[..., int], fd: int, address: int, size: int) -> None:
    done = 0
    while done < size:
        count = call(fd, ctypes.c_void_p(address + done), ctypes.c_size_t(size - done))
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        done += count
