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
from typing import Final

from s3mgrd.fuse import syscalls
from s3mgrd.fuse.connection import FUSERMOUNT
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo

PROBE_TIMEOUT_MS: Final = 2000


def cleanup(*, user_mode: bool) -> list[str]:
    """Lazily unmount every dead mount of s3mgr (in user mode: of this user) and return their mountpoints.

    Blocking, and forks: only for a process that does nothing else.
    """
    cleaned = []
    for entry in reversed(read_mountinfo()):  # the top of a stack first
        if not entry.is_ours or (user_mode and entry.user_id != os.getuid()):
            continue
        if not _is_dead(entry):
            continue
        try:
            _unmount(entry.mountpoint, user_mode=user_mode)
        except (OSError, subprocess.SubprocessError):
            continue
        cleaned.append(entry.mountpoint)
    return cleaned


def _is_dead(entry: MountEntry) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            os.statvfs(entry.mountpoint)
        except OSError as exc:
            code = exc.errno or 0
        os._exit(code)
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(PROBE_TIMEOUT_MS):
            os.kill(pid, signal.SIGKILL)
            # A request that was read but not answered cannot be killed: do not wait without limit.
            if not poll.poll(PROBE_TIMEOUT_MS):
                return False
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(status) == errno.ENOTCONN


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
