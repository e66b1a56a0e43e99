"""What the next daemon makes of what the last one left: stored wishes, living workers, dead mounts."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import Unavailable
from s3mgrd.state.store import StateStore, memory_store
from s3mgrd.worker.protocol import Configure, Drain, GetStats, Serve, SetOptions
from tests.fakes.control import ROOT, Control, control, make_request
from tests.fakes.descriptors import FakeDescriptorStore
from tests.fakes.kernel import FakeKernel
from tests.fakes.workers import FakeWorker, FakeWorkers


@pytest.fixture
def store() -> Iterator[StateStore]:
    with memory_store() as opened:
        yield opened


def leave(workers: FakeWorkers, name: str = "data", **state: object) -> FakeWorker:
    """A worker of an earlier daemon."""
    worker = FakeWorker(workers, name, 77)
    worker.connection_id = "old-connection"
    for key, value in state.items():
        setattr(worker, key, value)
    workers.left_behind[name] = worker
    return worker


@asynccontextmanager
async def crashed_with_a_mount(store: StateStore, *, persist: bool = True) -> AsyncIterator[None]:
    """A daemon mounted `data` and was killed."""
    async with control(store=store, stop=False) as c:
        await c.mount(persist=persist)
        await trio.sleep(1)
    yield


async def test_stored_mounts_come_back_by_themselves(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with control(store=store) as c:
        await c.mount("one")
        await c.mount("two")
    async with control(store=store) as c:
        await c.manager.wait_reconciled()
        assert [(m.name, m.status.state) for m in c.manager.list_mounts(ROOT).items] == [
            ("one", "mounted"),
            ("two", "mounted"),
        ]
        assert c.manager.readiness().ready


async def test_a_killed_daemon_leaves_its_workers_alone(
    autojump_clock: MockClock, store: StateStore
) -> None:
    workers, kernel = FakeWorkers(), FakeKernel()
    async with control(store=store, workers=workers, kernel=kernel, stop=False) as c:
        await c.mount()
    assert workers.alive() == ["data"]
    assert kernel.is_mounted("data")
    assert kernel.connections[0].closed  # our descriptors only


async def test_a_living_worker_is_adopted_and_nobody_notices(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store):
        workers = FakeWorkers()
        worker = leave(workers, serving=True)
        async with control(store=store, workers=workers) as c:
            mount = await c.wait_state("mounted")
            assert mount.status.reason == "adopted"
            assert mount.status.worker_pid == 77
            assert c.kernel.log == ["adopt data"]
            assert c.kernel.live("data").id == "old-connection"
            assert worker.asked(Configure) == []
            await trio.sleep(1)
            assert len(worker.asked(SetOptions)) == 1  # it may have missed a change
            await c.manager.mount_stats(ROOT, "data")
            assert worker.asked(GetStats)
            worker.die()
            await c.wait_state("degraded")
            await c.wait_state("mounted")
            configure = workers.live("data").configured
            assert configure is not None
            assert configure.connection_id == "old-connection"


async def test_an_unmount_that_nobody_saw_is_respected(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store):
        workers = FakeWorkers()
        worker = leave(workers, ended=True)
        async with control(store=store, workers=workers) as c:
            mount = await c.wait_state("unmounted")
            assert (mount.status.reason, mount.desired) == ("unmounted-outside", "unmounted")
            assert worker.asked(Drain)
            assert not worker.is_alive
            assert not c.kernel.is_mounted("data")
    async with control(store=store) as c:
        await c.manager.wait_reconciled()
        mount = c.get()
        assert (mount.status.state, mount.status.reason) == ("unmounted", "unmounted-outside")


async def test_a_connection_that_outlived_its_worker_gets_another_one(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store):
        workers, kernel = FakeWorkers(), FakeKernel()
        workers.kept_behind["data"] = "old-connection"
        kernel.stale.add("/mnt/data")
        leave(workers)  # one that had not begun to serve it
        async with control(store=store, workers=workers, kernel=kernel) as c:
            mount = await c.wait_state("mounted")
            assert mount.status.reason == "resumed"
            worker = workers.live("data")
            (serve,) = worker.asked(Serve)
            assert (serve.resumed, serve.resend) == (True, True)
            assert worker.connection_id == "old-connection"
            assert kernel.log == ["adopt data"]
            assert workers.keepers == {"data": 1}
            kernel.log.clear()
        assert kernel.log == ["unmount data"]
        assert workers.keepers == {}


async def test_a_kept_connection_gets_a_worker_when_the_credentials_service_is_down(
    autojump_clock: MockClock, store: StateStore
) -> None:
    """The worker asks again before its first request; a try that fails would end with programs that are aborted."""
    async with crashed_with_a_mount(store):
        workers = FakeWorkers()
        workers.kept_behind["data"] = "old-connection"
        workers.grant_errors = [Unavailable("no answer from 169.254.169.254")]
        async with control(store=store, workers=workers) as c:
            await c.wait_state("mounted")
            assert len(workers.started) == 1
            configure = workers.live("data").configured
            assert configure is not None
            assert configure.credentials is not None
            assert configure.credentials.has_expired(datetime.now(UTC))
            assert c.kernel.log == ["adopt data"]


async def test_a_connection_that_the_service_manager_held_gets_a_worker(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store):
        descriptors = FakeDescriptorStore(data="old-connection", gone="another")
        async with control(store=store, descriptors=descriptors) as c:
            mount = await c.wait_state("mounted")
            assert mount.status.reason == "resumed"
            assert c.workers.live("data").connection_id == "old-connection"
            assert c.kernel.log == ["adopt data"]
            assert descriptors.held == {"data": "old-connection"}
        assert descriptors.held == {}


async def test_the_service_manager_holds_what_is_mounted(
    autojump_clock: MockClock, store: StateStore
) -> None:
    descriptors = FakeDescriptorStore()
    async with control(store=store, descriptors=descriptors, stop=False) as c:
        await c.mount()
        held = {"data": c.kernel.live("data").id}
        assert descriptors.held == held
    assert descriptors.held == held  # it was killed


async def test_a_connection_that_no_worker_could_resume_is_not_held(
    autojump_clock: MockClock, store: StateStore
) -> None:
    """Programs would wait for what cannot come."""
    descriptors, kernel = FakeDescriptorStore(), FakeKernel()
    kernel.can_resend = False
    async with control(store=store, descriptors=descriptors, kernel=kernel) as c:
        await c.mount()
        assert descriptors.held == {}


async def test_a_connection_that_outlived_its_worker_is_unmounted_if_nobody_wants_it(
    autojump_clock: MockClock, store: StateStore
) -> None:
    """And served meanwhile: the kernel may have writes for it."""
    async with control(store=store, stop=False) as c:
        await c.mount()
        c.kernel.connections[0].hang = True
        await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=600)
        await trio.sleep(1)
    workers = FakeWorkers()
    workers.kept_behind["data"] = "old-connection"
    workers.dirty["data"] = (1, 10)
    async with control(store=store, workers=workers) as c:
        await c.wait_gone()
        assert c.kernel.log == ["adopt data", "unmount data"]
        assert workers.started[-1].asked(Drain)
        assert workers.keepers == {}


async def test_a_killed_daemon_lets_nobody_let_go(
    autojump_clock: MockClock, store: StateStore
) -> None:
    workers = FakeWorkers()
    async with control(store=store, workers=workers, stop=False) as c:
        await c.mount()
    assert workers.keepers == {"data": 1}


async def test_a_worker_that_never_served_is_ended_and_a_dead_mount_removed(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store):
        workers, kernel = FakeWorkers(), FakeKernel()
        worker = leave(workers)
        kernel.stale.add("/mnt/data")
        async with control(store=store, workers=workers, kernel=kernel) as c:
            await c.wait_state("mounted")
            assert not worker.is_alive
            assert kernel.log == ["clean /mnt/data", "mount data"]


async def test_an_adoption_that_fails_ends_in_a_fresh_mount(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store):
        workers = FakeWorkers()
        worker = leave(workers, serving=True)

        async def refuse() -> None:
            raise Unavailable("no descriptors")

        worker.descriptors = refuse  # type: ignore[method-assign,assignment]  # a failing port
        async with control(store=store, workers=workers) as c:
            await c.wait_state("mounted")
            assert not worker.is_alive
            assert c.kernel.log == ["mount data"]


async def test_a_mount_without_persist_is_drained_and_forgotten_by_the_next_daemon(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store, persist=False):
        workers = FakeWorkers()
        workers.dirty["data"] = (1, 10)
        async with control(store=store, workers=workers) as c:
            await c.wait_gone()
            assert workers.started[-1].asked(Drain)
            assert c.kernel.log == []


async def test_what_such_a_mount_holds_is_never_lost_when_s3_is_away(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with crashed_with_a_mount(store, persist=False):
        workers = FakeWorkers()
        workers.dirty["data"] = (1, 10)
        workers.start_errors = [Unavailable("no memory")] * 100
        async with control(store=store, workers=workers) as c:
            mount = await c.wait_state("unmounted")
            assert mount.status.reason == "undrained"
            assert workers.forgotten == []


async def test_a_delete_that_a_crash_interrupted_goes_on(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with control(store=store, stop=False) as c:
        await c.mount()
        c.workers.live("data").stuck = True
        c.workers.dirty["data"] = (1, 10)
        await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=600)
        await trio.sleep(1)
    workers = FakeWorkers()
    leave(workers, ended=True)
    async with control(store=store, workers=workers) as c:
        assert c.manager.list_operations(ROOT)[-1].state == "failed"
        await c.wait_gone()


async def test_operations_of_a_dead_daemon_are_failed_and_those_that_ended_remembered(
    autojump_clock: MockClock, store: StateStore
) -> None:
    async with control(store=store, stop=False) as c:
        await c.mount("one")
        c.workers.start_errors = [Unavailable("no memory")]
        await c.manager.put_mount(ROOT, "two", make_request("two"), keep_on_failure=True)
        await trio.sleep(0.5)
        await c.manager.restart_mount(ROOT, "one")
    async with control(store=store) as c:
        states = {(o.kind, o.target): o.state for o in c.manager.list_operations(ROOT)}
        assert states == {
            ("mount", "one"): "succeeded",
            ("mount", "two"): "failed",
            ("restart", "one"): "failed",
        }


async def test_ready_although_a_bucket_hangs(autojump_clock: MockClock, store: StateStore) -> None:
    async with control(store=store) as c:
        await c.mount("one")
        await c.mount("two")

    async def hang(worker: FakeWorker, message: object) -> None:
        await trio.sleep_forever()

    workers = FakeWorkers()
    workers.scripts["two"] = hang
    async with control(store=store, workers=workers) as c:
        assert not c.manager.readiness().ready
        start = trio.current_time()
        await c.manager.wait_reconciled()
        assert trio.current_time() - start <= 30
        assert c.manager.readiness().ready
        assert c.get("one").status.state == "mounted"


async def test_a_bug_in_one_mount_costs_that_mount_only(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def explode(worker: FakeWorker, message: object) -> None:
        if isinstance(message, Configure):
            raise ZeroDivisionError("a bug")

    async with control() as c:
        await c.mount("one")
        c.workers.scripts["two"] = explode
        _, _, operation = await c.manager.put_mount(ROOT, "two", make_request("two"))
        assert operation is not None
        assert (await c.manager.wait_operation(operation.id)).state == "failed"
        mount = c.get("two")
        assert (mount.status.state, mount.status.reason) == ("failed", "internal")
        assert c.get("one").status.state == "mounted"
        assert "a bug" in caplog.text
        await _delete(c, "two")


async def _delete(c: Control, name: str) -> None:
    operation = await c.manager.delete_mount(ROOT, name, mode="discard", timeout_s=1)
    assert operation is not None
    assert (await c.manager.wait_operation(operation.id)).state == "succeeded"
