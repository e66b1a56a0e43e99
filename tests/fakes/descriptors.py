"""A service manager's store of descriptors, in memory: names without descriptors."""

from collections.abc import Collection

import trio

from s3mgrd.worker.protocol import Descriptors


class FakeDescriptorStore:
    """The port. `held`: ids of connections by mount; what a test puts there was left by an earlier daemon."""

    def __init__(self, **held: str) -> None:
        self.held: dict[str, str] = held

    async def put(self, mount: str, described: Descriptors, fuse_fd: int, ring_fd: int) -> None:
        await trio.lowlevel.checkpoint()
        self.held[mount] = described.connection_id

    def take(self, mount: str) -> tuple[Descriptors, int, int] | None:
        if mount not in self.held:
            return None
        return (
            Descriptors(connection_id=self.held[mount], flags=1, flags2=2, max_write=1, minor=45),
            100,
            101,
        )

    async def remove(self, mount: str) -> None:
        await trio.lowlevel.checkpoint()
        self.held.pop(mount, None)

    async def keep_only(self, mounts: Collection[str]) -> None:
        await trio.lowlevel.checkpoint()
        for mount in set(self.held) - set(mounts):
            del self.held[mount]
