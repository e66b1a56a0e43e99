"""The kernel's mount table: read as text, watched for changes. Nothing here touches a mounted tree.

Concurrency: `MountWatch` runs one thread while somebody waits. It polls /proc/self/mountinfo, which the kernel
reports as changed by POLLPRI, and wakes the waiting tasks through trio's token. The nested-epoll alternative loses
events: each poll of the file consumes its change, and trio polls when it arms.
"""

import re
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

FILESYSTEM_TYPE: Final = "fuse.s3mgr"
MOUNTINFO: Final = "/proc/self/mountinfo"

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo. `device` is ``major:minor``; `super_options` belong to the file system, not the mount."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    options: str
    fs_type: str
    source: str
    super_options: str

    @property
    def is_ours(self) -> bool:
        """Whether it is a mount of s3mgr, dead or alive, of this daemon or another."""
        return self.fs_type == FILESYSTEM_TYPE

    @property
    def connection(self) -> int:
        """The number of its FUSE connection below /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])

    @property
    def user_id(self) -> int | None:
        """Who mounted it, as the kernel's FUSE knows; None for other file systems."""
        return self._number("user_id")

    @property
    def group_id(self) -> int | None:
        """The group of who mounted it, as the kernel's FUSE knows; None for other file systems."""
        return self._number("group_id")

    @property
    def is_private(self) -> bool:
        """Whether the kernel's FUSE lets nobody but `user_id` with `group_id` in, root included."""
        return self.user_id is not None and "allow_other" not in self.super_options.split(",")

    def _number(self, name: str) -> int | None:
        for option in self.super_options.split(","):
            if option.startswith(f"{name}="):
                return int(option.removeprefix(f"{name}="))
        return None


def _unescape(field: bytes) -> str:
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return raw.decode("utf-8", "surrogateescape")


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """Parse the whole of mountinfo (proc_pid_mountinfo(5)); lines that are not whole are left out."""
    entries = []
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        try:
            # Optional fields, of any number, end at a field that is a single hyphen.
            dash = fields.index(b"-", 6)
            mount_id, parent_id, device, root, mountpoint, options = fields[:6]
            fs_type, source, super_options = fields[dash + 1 : dash + 4]
            entry = MountEntry(
                int(mount_id),
                int(parent_id),
                device.decode("ascii"),
                _unescape(root),
                _unescape(mountpoint),
                _unescape(options),
                _unescape(fs_type),
                _unescape(source),
                _unescape(super_options),
            )
        except ValueError:
            continue
        entries.append(entry)
    return entries


def read_mountinfo() -> list[MountEntry]:
    """Read the mount table of this process; a fraction of a millisecond, no disk."""
    with open(MOUNTINFO, "rb") as file:
        return parse_mountinfo(file.read())


def mount_of(fd: int, entries: Sequence[MountEntry]) -> MountEntry | None:
    """Return the mount that *fd* lies in, by the kernel's word (fdinfo), without touching it.

    While *fd* is open the mount's number is given to no other. None: it was detached.
    """
    with open(f"/proc/self/fdinfo/{fd}") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                mount_id = int(line.split()[1])
                return next((entry for entry in entries if entry.mount_id == mount_id), None)
    return None


def topmost(entries: Sequence[MountEntry], mountpoint: str) -> MountEntry | None:
    """Return the mount that is seen at *mountpoint*: the one on top where several are stacked."""
    there = [entry for entry in entries if entry.mountpoint == mountpoint]
    covered = {entry.parent_id for entry in there}
    return next((entry for entry in reversed(there) if entry.mount_id not in covered), None)


class MountWatch:
    """Wakes tasks when the mount table changes. One per process is enough; used within one trio run."""

    def __init__(self) -> None:
        self._waiting: set[trio.Event] = set()
        self._entries: list[MountEntry] | None = None
        self._users = 0
        self._stop: socket.socket | None = None

    def __enter__(self) -> "MountWatch":
        """Begin to watch: what happened before is in `entries`, what comes later sets the events of who subscribed."""
        # A change that this user knows of, its own mount above all, may not have been told to the users before it.
        self._entries = None
        self._users += 1
        if self._users == 1:
            ours, theirs = socket.socketpair()
            self._stop = ours
            token = trio.lowlevel.current_trio_token()
            threading.Thread(
                target=_watch,
                args=(theirs, lambda: token.run_sync_soon(self._notify, idempotent=True)),
                name="mount-watch",
                daemon=True,
            ).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; the thread ends by itself when the last user has gone."""
        self._users -= 1
        if self._users == 0 and self._stop is not None:
            self._stop.close()
            self._stop = None
            self._entries = None

    def subscribe(self) -> trio.Event:
        """Return an event that is set at the next change. Subscribe first, then read the table."""
        event = trio.Event()
        self._waiting.add(event)
        return event

    def unsubscribe(self, event: trio.Event) -> None:
        """Forget an event that nobody waits for any more."""
        self._waiting.discard(event)

    def entries(self) -> list[MountEntry]:
        """Return the mount table, parsed once per change: any change since then sets the subscribers' events."""
        if self._entries is None:
            self._entries = read_mountinfo()
        return self._entries

    def _notify(self) -> None:
        self._entries = None
        waiting, self._waiting = self._waiting, set()
        for event in waiting:
            event.set()


def _watch(stop: socket.socket, notify: Callable[[], None]) -> None:
    """Body of the thread: call *notify* for each change until the other end of *stop* is closed."""
    with stop, open(MOUNTINFO, "rb") as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        poll.register(stop, select.POLLIN)
        try:
            # A change between the caller's subscription and this thread's start has been missed: begin with one.
            notify()
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if stop.fileno() in ready:
                    return
                notify()
        except trio.RunFinishedError:
            return
