"""Takes mounts away that nobody serves, and nobody can serve any more, when the daemon that made them is dead.

A daemon leaves no dead mount behind as long as it lives. When it has died, workers serve on, and keepers
(`s3mgrd.worker.keeper`) and systemd hold what the next daemon may take up. But if no other comes, because its
configuration is broken, or its state, or nobody starts it, then a worker may die meanwhile, a keeper's time runs out,
and systemd gives the service up. The kernel ends the connection in that moment, and everybody who enters the tree would
meet ENOTCONN until somebody cleans up. None of those processes may unmount. The zygote may, and notes the daemon's end:
it starts this program, which has nothing else to do. While a daemon lives there is none, and it costs nothing.

What is taken away is a mount of s3mgr, at one of the daemon's own mountpoints, whose connection has ended: that never
comes back, so the next daemon could not have used it (`s3mgrd.fuse.cleanup` says how it is made sure that it is no other
by then). What the mount's journal holds stays there for that one. As long as another daemon holds the state directory,
it is that one's turn; who held it for `HANDED_OVER_S` has taken up all there was, and has a zygote of its own. Where daemons
die one after the other, the last one's undertaker knows all mounts, and those before it end.
"""

import logging
import os
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from s3mgrd import logs
from s3mgrd.errors import S3mgrError
from s3mgrd.fuse.cleanup import remove_dead
from s3mgrd.fuse.mountinfo import read_mountinfo
from s3mgrd.state.lock import holder
from s3mgrd.worker.privileges import name_process

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 5.0
ASK_TIMEOUT_S: Final = 0.1
"""A dead mount answers at once. Who asks one that waits for a worker is in the way of an unmount for as long."""
HANDED_OVER_S: Final = 120.0
NAME: Final = "s3mgr:undertake"  # no more than 15 bytes
PID_NAME: Final = "undertaker.pid"
"""In the state directory: which undertaker was started last."""


def take_over(state_dir: str) -> None:
    """Start the undertaker of *state_dir* if anything is left to be seen to; called where its daemon is dead."""
    # Here, because it needs much that the undertaker itself does not.
    from s3mgrd.state.opening import read_mountpoints

    ours = _ours()
    if not ours:
        return
    try:
        left = ours & read_mountpoints(state_dir)
    except S3mgrError as error:
        print(f"dead mounts are not taken away: {error.detail}", file=sys.stderr)
        return
    if left:
        command = [sys.executable, "-P", "-m", "s3mgrd.undertaker", state_dir, *sorted(left)]
        os.posix_spawn(sys.executable, command, os.environ)


def bury(state_dir: str, mountpoints: Collection[str], *, user_mode: bool) -> None:
    """Take away what is dead at *mountpoints* until nothing is left there, or somebody else sees to it."""
    mine = set(mountpoints)
    last_holder, since = holder(state_dir), time.monotonic()
    with suppress(OSError):
        Path(state_dir, PID_NAME).write_text(str(os.getpid()))
    while (mine := mine & _ours()) and _is_last(state_dir):
        now_holder = holder(state_dir)
        if now_holder != last_holder:
            last_holder, since = now_holder, time.monotonic()
        if now_holder is None:
            _remove_dead(mine, user_mode=user_mode)
        elif time.monotonic() - since > HANDED_OVER_S:
            return
        time.sleep(LOOK_INTERVAL_S)


def _remove_dead(mine: set[str], *, user_mode: bool) -> None:
    for path, error in remove_dead(mine, user_mode=user_mode, timeout_s=ASK_TIMEOUT_S).items():
        if error is None:
            log.warning("removed a dead mount from %s; no daemon is there", path)
        else:
            log.warning("the dead mount at %s cannot be removed: %s", path, error)
            mine.remove(path)


def _is_last(state_dir: str) -> bool:
    try:
        last = Path(state_dir, PID_NAME).read_text()
    except OSError:
        return True
    return last in (str(os.getpid()), "")  # empty: is being written, or could not be


def _ours() -> set[str]:
    return {entry.mountpoint for entry in read_mountinfo() if entry.is_ours}


def main(arguments: Sequence[str]) -> None:
    """Be the undertaker of the state directory and the mountpoints that *arguments* are."""
    state_dir, *mountpoints = arguments
    name_process(NAME)
    logs.setup("info", "text")
    bury(state_dir, mountpoints, user_mode=os.geteuid() != 0)


if __name__ == "__main__":
    main(sys.argv[1:])
