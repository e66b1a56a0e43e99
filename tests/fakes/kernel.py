"""A kernel that mounts in memory: scripted failures, busy trees, unmounts from outside."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from s3mgr.schema import KernelInfo, MountSpec
from s3mgrd.errors import Conflict, S3mgrError
from s3mgrd.mounts.ports import Connection
from s3mgrd.worker.protocol import Descriptors


@dataclass(eq=False)
class FakeConnection:
    """One connection. `busy`: an unmount that is not lazy is refused. `hang`: it never returns. `stall_s`: the next takes so long."""

    id: str
    name: str
    kernel: "FakeKernel"
    fuse_fd: int = 100
    ring_fd: int = 101
    flags: int = 1
    flags2: int = 2
    max_write: int = 1 << 20
    minor: int = 45
    can_resend: bool = True
    busy: bool = False
    hang: bool = False
    stall_s: float = 0.0
    mounted: bool = True
    aborted: bool = False
    closed: bool = False
    lazily: bool = False
    over: trio.Event = field(default_factory=trio.Event)

    async def ended(self) -> None:
        await self.over.wait()

    async def sync(self) -> None:
        await trio.lowlevel.checkpoint()

    async def unmount(self, *, lazy: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.kernel.log.append(f"unmount {self.name}" + (" lazily" if lazy else ""))
        if not self.mounted:
            return
        stall_s, self.stall_s = self.stall_s, 0.0
        await trio.sleep(stall_s)
        if self.hang and not lazy:
            await trio.sleep_forever()
        if self.busy and not lazy:
            raise Conflict("target is busy")
        self.lazily = lazy
        self.mounted = False
        self.over.set()

    def unmount_outside(self) -> None:
        """What `umount` in a shell does."""
        self.mounted = False
        self.over.set()

    def abort(self) -> None:
        self.kernel.log.append(f"abort {self.name}")
        self.aborted = True
        self.over.set()

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class FakeKernel:
    """The kernel port. `refuse` maps mountpoints to what `check_mountpoint` raises."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.connections: list[FakeConnection] = []
        self.refuse: dict[str, S3mgrError] = {}
        self.mount_errors: list[S3mgrError] = []
        self.stale: set[str] = set()
        self.owners: dict[str, int] = {}
        self.can_resend = True

    async def check_mountpoint(self, path: str, *, owner_uid: int, nonempty: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.owners[path] = owner_uid
        if path in self.refuse:
            raise self.refuse[path]

    async def mount(self, spec: MountSpec, *, name: str, connection_id: str) -> Connection:
        await trio.lowlevel.checkpoint()
        if self.mount_errors:
            raise self.mount_errors.pop(0)
        self.log.append(f"mount {name}")
        return self._connect(name, connection_id)

    async def adopt(
        self, spec: MountSpec, *, name: str, descriptors: Descriptors, fuse_fd: int, ring_fd: int
    ) -> Connection:
        await trio.lowlevel.checkpoint()
        self.log.append(f"adopt {name}")
        return self._connect(name, descriptors.connection_id)

    async def clean_stale(self, mountpoints: Mapping[str, str]) -> list[str]:
        await trio.lowlevel.checkpoint()
        cleaned = [path for path in mountpoints if path in self.stale]
        self.stale -= set(cleaned)
        self.log += [f"clean {path}" for path in cleaned]
        return cleaned

    def info(self) -> KernelInfo:
        return KernelInfo(release="6.18-fake", fuse_minor=45, resend=self.can_resend)

    def live(self, name: str) -> FakeConnection:
        """The connection of *name* that is mounted."""
        found = [c for c in self.connections if c.name == name and c.mounted and not c.aborted]
        assert len(found) == 1, f"{name} has {len(found)} live connections"
        return found[0]

    def is_mounted(self, name: str) -> bool:
        """Whether *name* is mounted."""
        return any(c.mounted and c.name == name for c in self.connections)

    def _connect(self, name: str, connection_id: str) -> FakeConnection:
        assert connection_id, "a connection has an id"
        connection = FakeConnection(
            id=connection_id, name=name, kernel=self, can_resend=self.can_resend
        )
        self.connections.append(connection)
        return connection
