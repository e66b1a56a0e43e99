"""A manager on fakes, with a store in memory: for tests of the domain and of what is built on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio

from s3mgr.schema import Credentials, LogTail, Mount, MountOptions, MountRequest, MountSpec
from s3mgrd.api.problems import describe
from s3mgrd.config import Config
from s3mgrd.mounts.manager import Identity, Manager
from s3mgrd.mounts.service import Principal
from s3mgrd.state.store import StateStore, memory_store
from tests.fakes.descriptors import FakeDescriptorStore
from tests.fakes.kernel import FakeKernel
from tests.fakes.workers import FakeWorkers

ROOT = Principal(uid=0, gid=0, groups=frozenset({0}), pid=1, is_admin=True)
ALICE = Principal(uid=1001, gid=1001, groups=frozenset({1001}), pid=2, is_admin=False)
BOB = Principal(uid=1002, gid=1002, groups=frozenset({1002}), pid=3, is_admin=False)
KEYS = Credentials(access_key="AKIATEST", secret_key="s3cr3t-value")


def make_config(**changes: object) -> Config:
    base = Config(
        state_dir="/state", cache_dir="/cache", socket="/run/s.sock", worker_user="nobody"
    )
    return msgspec.structs.replace(base, **changes)


def make_spec(bucket: str = "data", /, **changes: object) -> MountSpec:
    """A spec; *changes* are fields of it or of its options."""
    options = {k: changes.pop(k) for k in list(changes) if k in MountOptions.__struct_fields__}
    spec = MountSpec(
        bucket=bucket,
        mountpoint=f"/mnt/{bucket}",
        options=msgspec.structs.replace(MountOptions(), **options),
    )
    return msgspec.structs.replace(spec, **changes)


def make_request(
    bucket: str = "data", /, *, credentials: Credentials | None = None, **changes: object
) -> MountRequest:
    """A request; *changes* as for `make_spec`."""
    return MountRequest(spec=make_spec(bucket, **changes), credentials=credentials)


@dataclass
class Control:
    """A running manager and what surrounds it."""

    manager: Manager
    kernel: FakeKernel
    workers: FakeWorkers
    store: StateStore

    async def mount(
        self, name: str = "data", credentials: Credentials | None = None, **changes: object
    ) -> Mount:
        """Mount a bucket of that name, wait for it, and fail loudly if it fails."""
        request = MountRequest(spec=make_spec(name, **changes), credentials=credentials)
        _, _, operation = await self.manager.put_mount(ROOT, name, request)
        if operation is not None:
            ended = await self.manager.wait_operation(operation.id)
            assert ended.state == "succeeded", ended.error
        return self.get(name)

    def get(self, name: str = "data") -> Mount:
        return self.manager.get_mount(ROOT, name)

    def names(self) -> list[str]:
        return [m.name for m in self.manager.list_mounts(ROOT).items]

    async def wait_state(self, state: str, name: str = "data", timeout_s: float = 10_000) -> Mount:
        """Wait until the mount is in *state*."""
        with trio.fail_after(timeout_s):
            async with self.manager.subscribe(ROOT, since=None) as events:
                while self.get(name).status.state != state:
                    await anext(events)
        return self.get(name)

    async def wait_gone(self, name: str = "data", timeout_s: float = 10_000) -> None:
        """Wait until the mount is forgotten."""
        with trio.fail_after(timeout_s):
            async with self.manager.subscribe(ROOT, since=None) as events:
                while name in self.names():
                    await anext(events)


async def no_log(path: str, lines: int, offset: int | None) -> LogTail:
    await trio.lowlevel.checkpoint()
    return LogTail(lines=[f"last words in {path}"], offset=1)


@asynccontextmanager
async def control(
    *,
    kernel: FakeKernel | None = None,
    workers: FakeWorkers | None = None,
    store: StateStore | None = None,
    descriptors: FakeDescriptorStore | None = None,
    config: Config | None = None,
    stop: bool = True,
) -> AsyncIterator[Control]:
    """Run a manager; *stop* False: it ends as by SIGKILL. A given *store* stays open."""
    kernel, workers = kernel or FakeKernel(), workers or FakeWorkers()
    owned = memory_store() if store is None else None
    used = owned.__enter__() if owned is not None else store
    assert used is not None
    try:
        manager = Manager(
            config=config or make_config(),
            identity=Identity(boot_id="boot", user_mode=False, warnings=("careful",)),
            kernel=kernel,
            workers=workers,
            descriptors=descriptors or FakeDescriptorStore(),
            store=used,
            describe=describe,
            read_log=no_log,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            yield Control(manager, kernel, workers, used)
            if stop:
                await manager.stop()
            else:
                nursery.cancel_scope.cancel()
    finally:
        if owned is not None:
            owned.__exit__(None, None, None)
