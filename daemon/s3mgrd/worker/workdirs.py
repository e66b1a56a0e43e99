"""Where a worker's files are, who owns them, and how a control socket is reached however long its path is.

    <state-dir>/mounts/<mount>/   0700, the worker user's: mount.db, staging
    <state-dir>/run/<mount>.sock  0600, the daemon's: control socket
    <state-dir>/run/<mount>.keep  0600, the daemon's: socket of the keeper (`worker.keeper`)
    <state-dir>/logs/<mount>.log  0640, the daemon's: what the worker says (and .1, what it said before)
    <cache-dir>/<mount>/          0700, the worker user's: what can be fetched again

Everything here blocks for a moment on the local disk; call it in a thread.
"""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3mgrd.errors import Unavailable
from s3mgrd.worker.privileges import Identity

LOG_LIMIT_BYTES: Final = 16 << 20
BACKLOG: Final = 8
"""Supervisors that wait to be accepted; there is one."""


@dataclass(frozen=True, slots=True)
class WorkDirs:
    """The directories of all workers. `identity` None: they run as the daemon's own user."""

    state_dir: Path
    cache_dir: Path
    identity: Identity | None

    def mount_dir(self, mount: str) -> Path:
        """Where mount.db and the staged files are."""
        return self.state_dir / "mounts" / mount

    def mount_cache_dir(self, mount: str) -> Path:
        """Where fetched data is kept."""
        return self.cache_dir / mount

    def log_path(self, mount: str) -> Path:
        """Where the worker's words go."""
        return self.state_dir / "logs" / f"{mount}.log"

    @property
    def run_dir(self) -> Path:
        """Where the control sockets are."""
        return self.state_dir / "run"

    def prepare(self) -> None:
        """Make the directories that all workers share."""
        for directory in (self.state_dir / "mounts", self.state_dir / "logs", self.run_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def prepare_mount(self, mount: str) -> None:
        """Make the directories of *mount* and give them to the worker user."""
        for directory in (self.mount_dir(mount), self.mount_cache_dir(mount)):
            directory.mkdir(mode=0o700, exist_ok=True)
            if self.identity is not None and directory.stat().st_uid != self.identity.uid:
                _give_to(directory, self.identity)

    def open_log(self, mount: str) -> int:
        """Open the log for appending, after cutting it if it has grown too large; the caller closes it."""
        path = self.log_path(mount)
        rotate_log(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o640)

    def listen(self, mount: str) -> socket.socket:
        """Bind and listen at the control socket of *mount*, in the place of a dead worker's."""
        return self._listen(f"{mount}.sock")

    def connect(self, mount: str) -> socket.socket | None:
        """Connect to the control socket of *mount*; None: nobody listens there."""
        return self._connect(f"{mount}.sock", f"the worker of {mount!r}")

    def listen_keeper(self, mount: str) -> socket.socket:
        """Bind and listen at the socket of the next keeper of *mount*; see `replace_keeper`."""
        return self._listen(_keeper_name(mount, is_new=True))

    def connect_keeper(self, mount: str, *, is_new: bool = False) -> socket.socket | None:
        """Connect to the keeper of *mount*, or to the next one that is not in its place yet; None: nobody listens."""
        try:
            return self._connect(_keeper_name(mount, is_new=is_new), f"the keeper of {mount!r}")
        except Unavailable:  # it has more to do than anybody could ask of it
            return None

    def replace_keeper(self, mount: str) -> None:
        """Give the next keeper of *mount* the place of the one before."""
        os.rename(
            self.run_dir / _keeper_name(mount, is_new=True),
            self.run_dir / _keeper_name(mount, is_new=False),
        )

    def drop_keeper(self, mount: str, *, is_new: bool = False) -> None:
        """Remove the name of a keeper's socket; what is not there is no error."""
        (self.run_dir / _keeper_name(mount, is_new=is_new)).unlink(missing_ok=True)

    def kept_mounts(self) -> list[str]:
        """Names of the mounts that have, or had, a keeper."""
        return sorted(path.name.removesuffix(".keep") for path in self.run_dir.glob("*.keep"))

    def _listen(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.fchmod(sock.fileno(), 0o600)
            with self._socket_address(name) as address:
                with suppress(FileNotFoundError):
                    os.unlink(address)
                sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as exc:
            sock.close()
            raise Unavailable(
                f"cannot make the control socket in {self.run_dir}: {exc.strerror}",
                hint="the state directory must be on a local file system that has sockets",
            ) from exc
        return sock

    def _connect(self, name: str, whom: str) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)  # a unix socket connects at once or not at all
        try:
            with self._socket_address(name) as address:
                sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except OSError as exc:
            sock.close()
            raise Unavailable(f"cannot connect to {whom}: {exc.strerror}") from exc
        return sock

    @contextmanager
    def _socket_address(self, name: str) -> Iterator[str]:
        """Name the socket by a descriptor of its directory: a unix socket's address holds 107 bytes only."""
        fd = os.open(self.run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/{name}"
        finally:
            os.close(fd)

    def log_paths(self) -> list[Path]:
        """All logs that are there."""
        return list((self.state_dir / "logs").glob("*.log"))

    def forget(self, mount: str) -> None:
        """Remove everything that is kept for *mount*; what is not there is no error."""
        for directory in (self.mount_dir(mount), self.mount_cache_dir(mount)):
            with suppress(FileNotFoundError):
                shutil.rmtree(directory)
        logs = (self.log_path(mount), _rotated(self.log_path(mount)))
        for path in (*logs, self.run_dir / f"{mount}.sock"):
            path.unlink(missing_ok=True)
        self.drop_keeper(mount)


def _keeper_name(mount: str, *, is_new: bool) -> str:
    # No mount's control socket can have either name: those end in .sock.
    return f"{mount}.keep.new" if is_new else f"{mount}.keep"


def _rotated(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def rotate_log(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> bool:
    """Copy a log that is over the limit to ``.1`` and empty it; whoever appends to it goes on.

    What is written between the copy and the cut is lost: a worker keeps its log open, so it cannot be renamed away.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(path, _rotated(path), follow_symlinks=False)
    os.truncate(path, 0)
    return True


def _give_to(directory: Path, identity: Identity) -> None:
    """Change the owner of a tree that belonged to another worker user.

    That user may have put anything there: no link is followed, and a file with a second name is left alone.
    """
    for _, directories, files, fd in os.fwalk(directory):
        for name in (*directories, *files):
            status = os.lstat(name, dir_fd=fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                continue
            os.chown(name, identity.uid, identity.gid, dir_fd=fd, follow_symlinks=False)
    os.chown(directory, identity.uid, identity.gid, follow_symlinks=False)
