"""The unix socket's path: taken over when stale, never when live, and given back at the end."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from s3mgrd.errors import Conflict, InvalidConfig

# sizeof(sockaddr_un.sun_path) is 108, less the NUL that ends it.
SUN_PATH_MAX: Final = 107
BACKLOG: Final = 128

EVERYBODY: Final = 0o666
"""Mode of the system's socket: whoever connects is known by peer credentials, and the domain decides what they may do, so
that any local user can list mounts and manage their own without being in a group."""

OWNER_ONLY: Final = 0o600
"""Mode of a user's own daemon's socket: nobody else has business there."""


@contextlib.contextmanager
def listening_socket(path: Path, *, mode: int, gid: int | None) -> Iterator[socket.socket]:
    """Bind and listen on *path*; remove it at the end, unless it has become somebody else's.

    Mode and group are set between bind and listen: until then every connection is refused, so that no umask and no
    moment lets anyone in too early.

    Args:
        path: where; the caller holds the instance lock.
        mode: permissions of the socket.
        gid: its group; None leaves the process's.

    Raises:
        InvalidConfig: the path is too long, is no socket, or its directory is missing or not writable.
        Conflict: somebody serves a socket there.
    """
    length = len(os.fsencode(path))
    if length > SUN_PATH_MAX:
        raise InvalidConfig(
            f"the path of the socket has {length} bytes, and {SUN_PATH_MAX} is the most: {path}",
            hint="choose a shorter one with --socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            _remove_stale(path)
            listening.bind(os.fspath(path))
            bound = os.lstat(path)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        try:
            try:
                _set_access(path, mode=mode, gid=gid)
                listening.listen(BACKLOG)
            except OSError as exc:
                raise _unusable(path, exc) from exc
            yield listening
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), bound):
                    os.unlink(path)


def _unusable(path: Path, exc: OSError) -> InvalidConfig:
    return InvalidConfig(
        f"cannot listen on {path}: {exc.strerror or exc}",
        hint="its directory must exist and be writable; choose another with --socket",
    )


def _set_access(path: Path, *, mode: int, gid: int | None) -> None:
    if gid is not None:
        # Refused to a user's own daemon that is not in the group; there the group of the socket means nothing.
        with contextlib.suppress(PermissionError):
            os.chown(path, -1, gid)
    os.chmod(path, mode)


def _remove_stale(path: Path) -> None:
    """Remove a socket that a daemon left behind.

    The instance lock is per state directory, so another daemon with another one may still serve this very path.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InvalidConfig(
            f"{path} exists and is not a socket", hint="remove it, or choose another with --socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(os.fspath(path))
    # EAGAIN: somebody listens, and its backlog is full.
    if refused in (0, errno.EAGAIN):
        raise Conflict(
            f"another daemon already serves {path}",
            hint="stop it first, or choose another socket with --socket",
        )
    os.unlink(path)
