"""What tests of POSIX rules share: things of every type, other users, and the errno of a call.

The rules are those of POSIX and of Linux's local file systems; the tables that use this run as root on one mount.
"""

import ctypes
import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CLOCK_REALTIME_COARSE: Final = 5
FREE: Final = 0
"""The errno of what is allowed."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a call is made as. `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE: Final = User(2001, 3001, (3001, 3003))
BOB: Final = User(2002, 3002)

_libc = ctypes.CDLL(None, use_errno=True)
_SETGROUPS, _SETRESGID, _SETRESUID = {
    "x86_64": (116, 119, 117),
    "aarch64": (159, 149, 147),
}[os.uname().machine]
"""The system calls change one thread; libc's functions of these names change all threads."""


def refusal(call: Callable[..., object], *arguments: object, user: User | None = None) -> int:
    """Return the errno of what a call raises, `FREE` if it succeeds; made as *user*, without root's capabilities."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            if user is not None:
                _become(user)
            call(*arguments)
        except BaseException as error:  # noqa: BLE001 - handed over to the calling thread below
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not caught:
        return FREE
    if isinstance(caught[0], OSError) and caught[0].errno is not None:
        return caught[0].errno
    raise caught[0]


def allowed(call: Callable[..., object], *arguments: object, user: User | None = None) -> None:
    """Make a call as *user*; it must succeed."""
    number = refusal(call, *arguments, user=user)
    assert number == FREE, errno.errorcode[number]


def _become(user: User) -> None:
    groups = (ctypes.c_uint32 * len(user.groups))(*user.groups)
    for number, *arguments in (
        (_SETGROUPS, len(user.groups), groups),
        (_SETRESGID, user.gid, user.gid, user.gid),
        (_SETRESUID, user.uid, user.uid, user.uid),
    ):
        if _libc.syscall(number, *arguments):
            raise RuntimeError(os.strerror(ctypes.get_errno()))


# Things of every type


def make_file(path: Path) -> None:
    """Make an empty regular file."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def make_socket(path: Path) -> None:
    """Make a socket that nobody listens on, by bind(2), whose paths are short."""
    directory = os.open(path.parent, os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.chmod(path, 0o644)
    finally:
        os.close(directory)


MAKERS: Final[dict[str, Callable[[Path], None]]] = {
    "file": make_file,
    "directory": lambda path: os.mkdir(path, 0o755),
    "fifo": lambda path: os.mkfifo(path, 0o644),
    "socket": make_socket,
    "block": lambda path: os.mknod(path, 0o644 | stat.S_IFBLK, os.makedev(259, 70_000)),
    "char": lambda path: os.mknod(path, 0o644 | stat.S_IFCHR, os.makedev(1, 7)),
    "symlink": lambda path: os.symlink("nowhere", path),
}
TYPES: Final = tuple(MAKERS)
NO_LINKS: Final = tuple(kind for kind in TYPES if kind != "symlink")
NO_DIRECTORIES: Final = tuple(kind for kind in TYPES if kind != "directory")

TYPE_BITS: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
    "symlink": stat.S_IFLNK,
}


def make(kind: str, path: Path, owner: User | None = None) -> Path:
    """Make a thing at *path*, and give it to *owner*."""
    MAKERS[kind](path)
    if owner is not None:
        os.lchown(path, owner.uid, owner.gid)
    return path


def remove(path: Path) -> None:
    """Remove a thing, whatever it is."""
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()


def times(path: Path) -> tuple[int, int]:
    """Return mtime and ctime, in ns."""
    status = path.lstat()
    return status.st_mtime_ns, status.st_ctime_ns


def next_tick_ns() -> int:
    """Wait until what is changed now is newer than all before, by the clock of files; return its time.

    It ticks every few milliseconds, as it does for ext4.
    """
    now_ns = time.time_ns()
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= now_ns:
        time.sleep(0.0005)
    return now_ns
