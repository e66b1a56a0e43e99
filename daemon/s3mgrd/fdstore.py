"""Kernel connections in systemd's file descriptor store, where they outlive every process of ours.

systemd holds a descriptor for a service (sd_notify(3), ``FDSTORE=1``), gives it back to the next main process of the
service (sd_listen_fds(3)), and closes it when the service is stopped for good. What the next daemon must know to serve
the connection is in the descriptors' names: ``kind,mount,connection,flags,flags2,max_write,minor``, the numbers in
hexadecimal. Without systemd nothing is kept and nothing is found.

``FDPOLL=0``: watching a connection would wake systemd for each request of the mount, so the daemon removes what has ended.

Concurrency: what concerns one mount is only called by that mount's task.
"""

import logging
import os
import select
from collections.abc import Collection
from typing import Final

import trio

from s3mgrd.notify import Notifier
from s3mgrd.worker.protocol import Descriptors

log = logging.getLogger(__name__)

FUSE: Final = "fuse"
RING: Final = "ring"
_FIELDS: Final = 7


def name_of(kind: str, mount: str, described: Descriptors) -> str:
    """Name a descriptor; `parse_name` reads it again. Fits in the 255 bytes of a name whatever the mount is called."""
    numbers = (described.flags, described.flags2, described.max_write, described.minor)
    return ",".join((kind, mount, described.connection_id, *(f"{n:x}" for n in numbers)))


def parse_name(name: str) -> tuple[str, str, Descriptors] | None:
    """Return kind, mount and description; None: this is no name of ours."""
    fields = name.split(",")
    if len(fields) != _FIELDS or fields[0] not in (FUSE, RING):
        return None
    kind, mount, connection_id, *numbers = fields
    try:
        flags, flags2, max_write, minor = (int(n, 16) for n in numbers)
    except ValueError:
        return None
    return (
        kind,
        mount,
        Descriptors(
            connection_id=connection_id,
            flags=flags,
            flags2=flags2,
            max_write=max_write,
            minor=minor,
        ),
    )


class SystemdStore:
    """Implements `s3mgrd.mounts.ports.DescriptorStore`.

    Args:
        notifier: speaks to systemd; what it was given is owned from here on.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier: Final = notifier
        self._names: Final[dict[str, set[str]]] = {}
        """What systemd has of each mount."""
        self._given: Final[dict[str, int]] = {}
        """Descriptors that came with the start and were not taken, by name."""
        self._unknown: Final[set[str]] = set()
        for name, fd in notifier.take_descriptors():
            parsed = parse_name(name)
            if parsed is None:
                self._unknown.add(name)
                os.close(fd)
                continue
            self._names.setdefault(parsed[1], set()).add(name)
            if name in self._given:
                os.close(fd)
            else:
                self._given[name] = fd

    async def put(self, mount: str, described: Descriptors, fuse_fd: int, ring_fd: int) -> None:
        """Have the connection of *mount* kept, in the place of what is kept for it; the descriptors stay the caller's."""
        if not self._notifier.is_heard:
            return
        wanted = {
            name_of(FUSE, mount, described): fuse_fd,
            name_of(RING, mount, described): ring_fd,
        }
        if self._names.get(mount) == set(wanted):
            self._drop_given(mount)  # it has them from the daemon before
            return
        await self.remove(mount)
        self._names[mount] = set(wanted)
        for name, fd in wanted.items():
            await trio.to_thread.run_sync(self._notifier.store_descriptor, name, fd)

    def take(self, mount: str) -> tuple[Descriptors, int, int] | None:
        """Return what was kept of *mount*'s connection, which the caller owns then; None: nothing, or it has ended."""
        found: dict[str, dict[str, int]] = {}
        for name in self._names.get(mount, ()):
            parsed = parse_name(name)
            if parsed is not None and name in self._given:
                found.setdefault(parsed[2].connection_id, {})[parsed[0]] = self._given[name]
                described = parsed[2]
        # More than one connection: which of them programs use nobody knows any more.
        if len(found) != 1 or set(*found.values()) != {FUSE, RING}:
            return None
        (fds,) = found.values()
        if _is_dead(fds[FUSE]):
            return None
        for name in (name_of(FUSE, mount, described), name_of(RING, mount, described)):
            del self._given[name]
        return described, fds[FUSE], fds[RING]

    async def remove(self, mount: str) -> None:
        """Have nothing of *mount* kept any more."""
        self._drop_given(mount)
        for name in sorted(self._names.pop(mount, ())):
            await trio.to_thread.run_sync(self._notifier.remove_descriptor, name)

    async def keep_only(self, mounts: Collection[str]) -> None:
        """Have nothing kept but what belongs to *mounts*."""
        for mount in sorted(set(self._names) - set(mounts)):
            log.warning("systemd kept a connection of %r, which is no mount any more", mount)
            await self.remove(mount)
        for name in sorted(self._unknown):
            log.warning("systemd gave a descriptor that is none of ours: %r", name)
            await trio.to_thread.run_sync(self._notifier.remove_descriptor, name)
        self._unknown.clear()

    def _drop_given(self, mount: str) -> None:
        for name in self._names.get(mount, ()):
            fd = self._given.pop(name, None)
            if fd is not None:
                os.close(fd)


def _is_dead(fuse_fd: int) -> bool:
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return bool(poll.poll(0))
