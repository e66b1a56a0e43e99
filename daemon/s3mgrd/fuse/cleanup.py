"""Dead mounts: which are dead, and how they are taken away; ``s3mgrd --cleanup``.

Only for processes that hold no connection, so that they may ask a mount whether it is alive: a dead connection answers
ENOTCONN at once, and never lives again. One that merely waits for a worker (its descriptor rests with somebody who will
be back) does not answer, and is left alone. Everything here blocks, and forks.

What was asked is held by a descriptor from before the question until it is taken away. Paths, mount numbers and
connection numbers lead to another mount as soon as the one before is gone; the descriptor does not.
"""

import errno
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from typing import Final

from s3mgrd.fuse import syscalls
from s3mgrd.fuse.connection import FUSERMOUNT
from s3mgrd.fuse.mountinfo import mount_of, read_mountinfo, topmost

PROBE_TIMEOUT_S: Final = 2.0
KILL_TIMEOUT_S: Final = 0.5
FUSERMOUNT_TIMEOUT_S: Final = 60.0
# Follows no link, triggers no automount, and sends no request to a mount that is at the path itself.
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def cleanup(*, user_mode: bool) -> list[str]:
    """Lazily unmount every dead mount of s3mgr (in user mode: of this user) and return their mountpoints."""
    cleaned: list[str] = []
    paths = {
        entry.mountpoint
        for entry in read_mountinfo()
        if entry.is_ours and (not user_mode or entry.user_id == os.getuid())
    }
    while paths:  # what was below is on top then
        removed = remove_dead(paths, user_mode=user_mode, timeout_s=PROBE_TIMEOUT_S)
        paths = {path for path, error in removed.items() if error is None}
        cleaned += paths
    return cleaned


def remove_dead(
    paths: Iterable[str], *, user_mode: bool, timeout_s: float
) -> dict[str, Exception | None]:
    """Ask what is on top at each of *paths*, all at once, and lazily unmount what is a dead mount of s3mgr.

    Args:
        paths: mountpoints.
        user_mode: unmount through fusermount3.
        timeout_s: how long they have to answer.

    Returns:
        For each dead one why it cannot be unmounted; None: it was.
    """
    probes = [_Probe(path) for path in paths]
    deadline = time.monotonic() + timeout_s
    found: dict[str, Exception | None] = {}
    for probe in probes:
        fd = probe.finish(deadline - time.monotonic())
        if fd is None:
            continue
        try:
            found[probe.path] = None
            _detach(fd, probe.path, user_mode=user_mode)
        except (OSError, subprocess.SubprocessError) as error:
            found[probe.path] = error
        finally:
            os.close(fd)
    return found


def _detach(fd: int, path: str, *, user_mode: bool) -> None:
    entries = read_mountinfo()
    entry = mount_of(fd, entries)
    if entry is None:  # somebody else did it
        return
    if topmost(entries, path) != entry:
        raise OSError(errno.EBUSY, "something else is mounted there by now", path)
    if not user_mode:
        syscalls.detach_at(fd)
        return
    subprocess.run(
        [FUSERMOUNT, "-u", "-z", "--", path],  # which knows no descriptors
        check=True,
        cwd="/",
        timeout=FUSERMOUNT_TIMEOUT_S,
        capture_output=True,
    )


class _Probe:
    """A process that asks what is on top at *path*, since whoever asks may hang; from its making until `finish`."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid: Final = os.fork()
        if self._pid == 0:
            try:
                _ask(path, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def finish(self, timeout_s: float) -> int | None:
        """Wait for the answer, and end the process.

        Returns:
            If a dead mount of s3mgr is there, a descriptor of its root, which is the caller's.
        """
        with self._socket:
            fds: list[int] = []
            if _is_readable(self._socket.fileno(), timeout_s):
                _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        pidfd = os.pidfd_open(self._pid)
        try:
            os.kill(self._pid, signal.SIGKILL)
            # Who asked a worker that read the question, and died before it answered, cannot be killed.
            if _is_readable(pidfd, KILL_TIMEOUT_S):
                os.waitpid(self._pid, 0)
        finally:
            os.close(pidfd)
        return fds[0] if fds else None


def _ask(path: str, answer: socket.socket) -> None:
    try:
        fd = os.open(path, _LOOK)
    except OSError:  # nothing that can be entered is there
        return
    entry = mount_of(fd, read_mountinfo())
    if entry is None or not entry.is_ours:
        return
    if entry.is_private and os.geteuid() == 0 and entry.user_id is not None:
        # The kernel answers others by itself, as if all were well.
        group = entry.group_id or 0
        os.setresgid(group, group, group)
        os.setresuid(entry.user_id, entry.user_id, entry.user_id)
    try:
        os.fstatvfs(fd)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            socket.send_fds(answer, [b"!"], [fd])


def _is_readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))
