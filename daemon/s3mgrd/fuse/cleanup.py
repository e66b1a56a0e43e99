"""Dead mounts: which are dead, and how they are taken away; ``s3mgrd --cleanup``.

Only for processes that hold no connection, so that they may ask a mount whether it is alive: a dead connection answers
ENOTCONN at once, and stays dead. One that merely waits for a worker (its descriptor rests with somebody who will be
back) does not answer, and is left alone. Everything here blocks, and forks.
"""

import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from s3mgrd.fuse import syscalls
from s3mgrd.fuse.mountinfo import MountEntry, mount_id_of, read_mountinfo
from s3mgrd.fuse.syscalls import FUSERMOUNT

PROBE_TIMEOUT_S: Final = 2.0
KILL_TIMEOUT_S: Final = 0.5
FUSERMOUNT_TIMEOUT_S: Final = 60.0
# Without following a link or triggering an automount; sends no request to a mount that is at the path itself.
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def cleanup(*, user_mode: bool) -> list[str]:
    """Lazily unmount every dead mount of s3mgr (in user mode: of this user) and return their mountpoints."""
    cleaned: list[str] = []
    spared: set[int] = set()
    while True:  # each round looks at what is on top at each path
        entries = {
            entry.mountpoint: entry
            for entry in read_mountinfo()
            if entry.is_ours and (not user_mode or entry.user_id == os.getuid())
        }
        found = [entry for entry in entries.values() if entry.mount_id not in spared]
        dead = dead_among(found)
        spared |= {entry.mount_id for entry in found if entry not in dead}
        for entry in reversed(dead):
            try:
                detach(entry, user_mode=user_mode)
            except (OSError, subprocess.SubprocessError):
                spared.add(entry.mount_id)
            else:
                cleaned.append(entry.mountpoint)
        if not dead:
            return cleaned


def dead_among(entries: Sequence[MountEntry]) -> list[MountEntry]:
    """Return those of *entries*, each the topmost at its path, whose connection has ended.

    All are asked at once: one that waits for a worker takes its time.
    """
    probes = [Probe(entry) for entry in entries]
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    for probe in probes:
        probe.wait(deadline - time.monotonic())
        probe.end()
        probe.close()
    return [probe.entry for probe in probes if probe.is_dead]


def detach(entry: MountEntry, *, user_mode: bool) -> None:
    """Lazily unmount *entry*, which is the topmost at its path.

    Raises:
        OSError, SubprocessError: it cannot be unmounted, or something else is at its path by now.
    """
    fd = os.open(entry.mountpoint, _LOOK)
    try:
        if mount_id_of(fd) != entry.mount_id:
            raise OSError(errno.EBUSY, "something else is mounted there", entry.mountpoint)
        if not user_mode:
            syscalls.detach_at(fd)
            return
    finally:
        os.close(fd)
    subprocess.run(
        [FUSERMOUNT, "-u", "-z", "--", entry.mountpoint],
        check=True,
        cwd="/",
        timeout=FUSERMOUNT_TIMEOUT_S,
        capture_output=True,
    )


class Probe:
    """A process that asks one mount for its size, since the one that asks may hang.

    Attributes:
        entry: which mount; the topmost at its path.
        has_ended: whether the process has.
        is_dead: whether the mount turned out to be.
    """

    def __init__(self, entry: MountEntry) -> None:
        self.entry: Final = entry
        self.has_ended = False
        self.is_dead = False
        self._pid: Final = os.fork()
        if self._pid == 0:
            code = 0
            try:
                _ask(entry)
            except OSError as exc:
                code = exc.errno or 0
            finally:
                os._exit(code)
        self._pidfd: Final = os.pidfd_open(self._pid)

    def wait(self, timeout_s: float) -> None:
        """Wait for what the mount says."""
        if self.has_ended:
            return
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(max(0.0, timeout_s) * 1000):
            _, status = os.waitpid(self._pid, 0)
            self.has_ended = True
            self.is_dead = os.waitstatus_to_exitcode(status) == errno.ENOTCONN

    def end(self) -> None:
        """Ask no longer. Whoever asks a worker that has read the question and died without an answer cannot be killed."""
        if not self.has_ended:
            os.kill(self._pid, signal.SIGKILL)
            self.wait(KILL_TIMEOUT_S)

    def close(self) -> None:
        """Forget the process."""
        os.close(self._pidfd)


def _ask(entry: MountEntry) -> None:
    fd = os.open(entry.mountpoint, _LOOK)
    if entry.is_private and os.geteuid() == 0 and entry.user_id is not None:
        # The kernel answers others by itself, as if all were well.
        group = entry.group_id or 0
        os.setresgid(group, group, group)
        os.setresuid(entry.user_id, entry.user_id, entry.user_id)
    os.fstatvfs(fd)
