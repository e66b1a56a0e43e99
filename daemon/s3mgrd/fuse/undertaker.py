"""Takes mounts away that nobody serves, and nobody can serve any more, when the daemon that made them is dead.

A daemon leaves no dead mount behind as long as it lives. When it has died, workers serve on, and keepers
(`s3mgrd.worker.keeper`) and systemd hold what the next daemon may take up. But if no other comes, because its
configuration is broken, or its state, or nobody starts it, then a worker may die meanwhile, a keeper's time runs out,
and systemd gives the service up. The kernel ends the connection in that moment, and everybody who enters the tree would
meet ENOTCONN until somebody cleans up. None of those processes may unmount. So the daemon forks, as its first act, one
that may, and has nothing to do but to outlive it.

A connection that has ended never comes back, so nothing is taken away that the next daemon could use; what the mount's
journal holds stays there for it.

The daemon says by a pipe what it has mounted. The pipe's end is the daemon's end. As long as another daemon holds the
state directory, it is that one's turn; who held it for `HANDED_OVER_S` has taken up all there was, and has an undertaker
of its own.
"""

import gc
import logging
import os
import subprocess
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Final, NoReturn

from s3mgrd.fuse.cleanup import Probe, detach
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo, topmost

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 2.0
"""Between two looks, after the daemon's death."""
PROBE_TIMEOUT_S: Final = 0.2
"""A dead mount answers at once. Who asks one that waits for a worker keeps umount(8) from it for as long."""
HANDED_OVER_S: Final = 120.0
PRUNE_AT: Final = 1024
"""Mounts that were noted, gone ones included, before it is looked which are still there."""
NAME: Final = "s3mgr:undertake"  # no more than 15 bytes
FIRST_FD: Final = 3

Key = tuple[int, str, int]
"""A mount's number, its device, and a sum of its path: the kernel gives both numbers to another as soon as it is gone."""
Holder = Callable[[], int | None]
"""Says which process has the state directory; None: nobody. The number changes when another one has."""


class Undertaker:
    """The daemon's end. `start` it before the process has a thread or an open file."""

    def __init__(self, pipe: int) -> None:
        self._pipe: Final = pipe

    @classmethod
    def start(cls, holder: Holder, *, user_mode: bool) -> "Undertaker":
        """Fork the undertaker."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            _be_undertaker(theirs, holder, user_mode=user_mode)
        os.close(theirs)
        os.set_blocking(ours, False)
        return cls(ours)

    def note(self, entry: MountEntry) -> None:
        """Have *entry* taken away when it is dead and this process, too."""
        try:
            os.write(self._pipe, "{} {} {}\n".format(*_key(entry)).encode())
        except OSError as error:
            log.warning("who takes dead mounts away has gone: %s", error.strerror)


def _be_undertaker(pipe: int, holder: Holder, *, user_mode: bool) -> NoReturn:
    try:
        os.setsid()  # Ctrl-C is for the daemon
        os.chdir("/")
        # Connections that systemd gave among them: this process must not hold any.
        os.closerange(FIRST_FD, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        with open("/proc/self/comm", "w") as file:
            file.write(NAME)
        gc.freeze()  # a collection would copy every page that is shared with the daemon
        gc.disable()
        noted = _listen(pipe)
        _bury(noted, holder, user_mode=user_mode)
    except Exception:
        log.exception("dead mounts are not taken away any more")
    finally:
        os._exit(0)


def _listen(pipe: int) -> set[Key]:
    """Note what the daemon mounts until it is dead."""
    noted: set[Key] = set()
    with open(pipe) as lines:
        for line in lines:
            mount_id, device, path = line.split()
            noted.add((int(mount_id), device, int(path)))
            if len(noted) >= PRUNE_AT:
                noted &= {_key(entry) for entry in read_mountinfo()}
    return noted


def _bury(noted: Collection[Key], holder: Holder, *, user_mode: bool) -> None:
    """Take away what is dead until nothing is left of *noted*, or another daemon sees to it."""
    spared: set[Key] = set()
    asking: dict[Key, Probe] = {}
    last_holder: int | None = None
    since = time.monotonic()
    while True:
        entries = read_mountinfo()
        left = [e for e in entries if e.is_ours and _key(e) in noted and _key(e) not in spared]
        if not left:
            return
        now_holder = holder()
        if now_holder != last_holder:
            last_holder, since = now_holder, time.monotonic()
        if now_holder is None:
            on_top = [e for e in left if topmost(entries, e.mountpoint) == e]
            for entry in reversed(_dead_among(on_top, asking)):
                if not _take_away(entry, user_mode=user_mode):
                    spared.add(_key(entry))
        elif time.monotonic() - since > HANDED_OVER_S:
            return
        time.sleep(LOOK_INTERVAL_S)


def _dead_among(entries: Iterable[MountEntry], asking: dict[Key, Probe]) -> list[MountEntry]:
    """Find out which mounts are dead. Who cannot be killed stays in *asking*, and nobody else asks that mount meanwhile."""
    for entry in entries:
        if _key(entry) not in asking:
            asking[_key(entry)] = Probe(entry)
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    for probe in asking.values():
        probe.wait(deadline - time.monotonic())
    for probe in asking.values():
        probe.end()
    ended = {key: probe for key, probe in asking.items() if probe.has_ended}
    for key, probe in ended.items():
        del asking[key]
        probe.close()
    return [probe.entry for probe in ended.values() if probe.is_dead]


def _take_away(entry: MountEntry, *, user_mode: bool) -> bool:
    try:
        detach(entry, user_mode=user_mode)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the dead mount at %s cannot be removed: %s", entry.mountpoint, error)
        return False
    log.warning("removed a dead mount from %s; no daemon is there", entry.mountpoint)
    return True


def _key(entry: MountEntry) -> Key:
    return entry.mount_id, entry.device, zlib.crc32(os.fsencode(entry.mountpoint))
