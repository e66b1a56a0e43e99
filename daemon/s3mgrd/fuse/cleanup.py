"""``s3mgrd --cleanup``: unmount what a daemon and its workers left behind when all of them are dead.

A process of its own that holds no connection, so it may ask a mount whether it is alive: a dead connection answers
ENOTCONN at once. One that merely waits for a worker (its descriptor rests with somebody who will be back) does not
answer, and is left alone.
"""

import errno
import os
import select
import signal
import subprocess
import time
from contextlib import ExitStack
from typing import Final, Self

from s3mgrd.fuse import syscalls
from s3mgrd.fuse.connection import FUSERMOUNT
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo

PROBE_TIMEOUT_MS: Final = 2000


def cleanup(*, user_mode: bool) -> list[str]:
    """Lazily unmount every dead mount of s3mgr (in user mode: of this user) and return their mountpoints.

    Blocking, and forks: only for a process that does nothing else.
    """
    cleaned: list[str] = []
    spared: set[int] = set()
    while True:  # each round looks at what is on top at each path
        entries = {
            entry.mountpoint: entry
            for entry in read_mountinfo()
            if entry.is_ours and (not user_mode or entry.user_id == os.getuid())
        }
        found = [entry for entry in entries.values() if entry.mount_id not in spared]
        dead = _dead(found)
        spared |= {entry.mount_id for entry in found if entry not in dead}
        for entry in reversed(dead):
            try:
                _unmount(entry.mountpoint, user_mode=user_mode)
            except (OSError, subprocess.SubprocessError):
                spared.add(entry.mount_id)
            else:
                cleaned.append(entry.mountpoint)
        if not dead:
            return cleaned


def _dead(entries: list[MountEntry]) -> list[MountEntry]:
    """Ask all of them at once: one that waits for a worker takes its time."""
    with ExitStack() as asked:
        probes = [(entry, asked.enter_context(_Probe(entry.mountpoint))) for entry in entries]
        deadline = time.monotonic() + PROBE_TIMEOUT_MS / 1000
        return [entry for entry, probe in probes if probe.errno(deadline) == errno.ENOTCONN]


class _Probe:
    """A process that asks one mount for its size, since the one that asks may hang."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._pid = os.fork()
        if self._pid == 0:
            code = 0
            try:
                os.statvfs(self._path)
            except OSError as exc:
                code = exc.errno or 0
            os._exit(code)
        self._pidfd = os.pidfd_open(self._pid)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)

    def errno(self, deadline: float) -> int | None:
        """Wait for what the mount says, and end; None: it does not answer."""
        if not self._has_ended(deadline - time.monotonic()):
            os.kill(self._pid, signal.SIGKILL)
            # A request that was read but not answered cannot be killed: do not wait without limit.
            if not self._has_ended(PROBE_TIMEOUT_MS / 1000):
                return None
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _has_ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))


def _unmount(path: str, *, user_mode: bool) -> None:
    if user_mode:
        subprocess.run(
            [FUSERMOUNT, "-u", "-z", "--", path],
            check=True,
            cwd="/",
            timeout=60,
            capture_output=True,
        )
    else:
        syscalls.unmount(path, lazy=True)
