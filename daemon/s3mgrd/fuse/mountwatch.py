"""The kernel's mount table, watched for changes.

Concurrency: `MountWatch` runs one thread while somebody waits. It polls /proc/self/mountinfo, which the kernel
reports as changed by POLLPRI, and wakes the waiting tasks through trio's token. The nested-epoll alternative loses
events: each poll of the file consumes its change, and trio polls when it arms.
"""

import select
import socket
import threading
from collections.abc import Callable

import trio

from s3mgrd.fuse.mountinfo import MOUNTINFO, MountEntry, read_mountinfo


class MountWatch:
    """Wakes tasks when the mount table changes. One per process is enough; used within one trio run."""

    def __init__(self) -> None:
        self._waiting: set[trio.Event] = set()
        self._entries: list[MountEntry] | None = None
        self._users = 0
        self._stop: socket.socket | None = None

    def __enter__(self) -> "MountWatch":
        """Begin to watch; changes after this are seen by the next `changed`."""
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
