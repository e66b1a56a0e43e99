"""One daemon per state directory.

A POSIX record lock, not flock(2): a flock belongs to the open file and is inherited by fork, so that a worker,
which outlives its supervisor on purpose, would keep the next supervisor out. A record lock belongs to the
process, is gone with it however it ends, and F_GETLK tells the pid of its holder. Its trap: closing *any*
descriptor of the file releases it, so nothing but this module opens that file.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from s3mgrd.errors import Conflict, Denied, S3mgrError, Unavailable

LOCK_NAME: Final = "lock"
# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = struct.Struct("@hhqqi4x")


def prepare_directory(path: str, *, what: str) -> None:
    """Make *path* a directory of mode 0700; *what* is its configuration key.

    Raises:
        Denied: this user may not.
        Unavailable: it cannot be made for another reason.
    """
    try:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)
    except OSError as error:
        raise _failure(f"cannot use the directory {path} ({what})", error) from error


@contextmanager
def instance_lock(state_dir: str) -> Iterator[None]:
    """Hold the lock of *state_dir*, which exists, until the context is left.

    Raises:
        Conflict: another daemon holds it; the message names its pid.
        Denied, Unavailable: the file cannot be opened.
    """
    path = f"{state_dir}/{LOCK_NAME}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _failure(f"cannot open {path}", error) from error
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            pid = _holder(fd)
            who = f"process {pid}" if pid else "a process that cannot be seen from here"
            raise Conflict(
                f"another s3mgrd runs on {state_dir}: {who}",
                hint="Stop it first, or give this one directories of its own with --state-dir, --cache-dir and --socket.",
            ) from error
        yield
    finally:
        os.close(fd)


def holder(state_dir: str) -> int | None:
    """Return the pid of the daemon that holds the lock of *state_dir*, 0 if it is in another pid namespace; None: nobody.

    Disturbs no daemon that starts meanwhile. Not for a process that has the lock: it would lose it.
    """
    try:
        fd = os.open(f"{state_dir}/{LOCK_NAME}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> int | None:
    """Return the pid of who holds the lock, 0 if it lives in another pid namespace; None: nobody does any more."""
    query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _failure(what: str, error: OSError) -> S3mgrError:
    if isinstance(error, PermissionError):
        return Denied(
            f"{what}: {error.strerror}",
            hint="Run s3mgrd as root, or choose directories of your own with --state-dir and --cache-dir.",
        )
    return Unavailable(f"{what}: {error.strerror}")
