"""Mount system calls that Python does not have. They raise `OSError`; they may block, so call them in a thread."""

import ctypes
import os
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

# Numbers above 423 are the same on every architecture but Alpha (asm-generic/unistd.h).
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
FSOPEN_CLOEXEC: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSMOUNT_CLOEXEC: Final = 1

FUSECTL: Final = "/sys/fs/fuse/connections"

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return result


def mount(source: str, target: str, fs_type: str, flags: int, options: str) -> None:
    """Attach a file system to the directory *target*."""
    encode = os.fsencode
    result = _libc.mount(
        encode(source), encode(target), encode(fs_type), ctypes.c_ulong(flags), encode(options)
    )
    _check(result, target)


def unmount(target: str, *, lazy: bool) -> None:
    """Detach what is mounted on *target*; never follow a symbolic link at the end of *target*."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    _check(_libc.umount2(os.fsencode(target), flags), target)


def detach_at(fd: int) -> None:
    """Detach the mount whose root the descriptor *fd* is, whatever is at its path by now."""
    # The link leads to the root itself: UMOUNT_NOFOLLOW would look at the link.
    path = f"/proc/self/fd/{fd}"
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH), path)


def sync_tree(mountpoint: str, device: str) -> None:
    """Have the kernel send what it has gathered of writes to the file system *device* (``major:minor``) at *mountpoint*.

    Returns when all of it is on its way, not when it has arrived.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(mountpoint, flags)
    try:
        number = os.fstat(fd).st_dev
        if f"{os.major(number)}:{os.minor(number)}" == device:
            _check(_libc.syncfs(fd), mountpoint)
    finally:
        os.close(fd)


def _open_fusectl() -> int:
    """Return a directory descriptor of the FUSE control file system.

    Where nobody mounted it (containers), root mounts it for itself, attached to nothing: it goes when the descriptor
    is closed.
    """
    if os.path.isdir(FUSECTL) and os.listdir(FUSECTL):
        return os.open(FUSECTL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    context = _check(_libc.syscall(SYS_FSOPEN, b"fusectl", FSOPEN_CLOEXEC), "fusectl")
    try:
        created = _libc.syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        _check(created, "fusectl")
        mounted = _check(_libc.syscall(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, 0), "fusectl")
    finally:
        os.close(context)
    try:  # fsmount gives an O_PATH descriptor
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    finally:
        os.close(mounted)


def abort_connection(number: int) -> None:
    """Make the kernel fail every request of FUSE connection *number*; one that is gone is a success.

    Raises:
        OSError: not permitted, or no control file system and no privilege to reach it.
    """
    control = _open_fusectl()
    try:
        fd = os.open(f"{number}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
    except FileNotFoundError:
        return
    finally:
        os.close(control)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
