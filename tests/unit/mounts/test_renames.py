"""Directory renames that S3 has yet to follow are operations, whatever dies meanwhile."""

from datetime import UTC, datetime

from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgr.schema import Operation, PendingRename
from s3mgrd.state.store import memory_store
from tests.fakes.control import ROOT, Control, control
from tests.fakes.workers import FakeWorkers, status_event
from tests.unit.mounts.test_restart_of_daemon import leave

SINCE = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


def pending(**fields: object) -> PendingRename:
    """Return the rename of d to e."""
    values = {"id": "7-1", "source": "d/", "target": "e/", "since": SINCE}
    return PendingRename(**(values | fields))  # type: ignore[arg-type] # names and types are its own


def renames(c: Control) -> list[Operation]:
    """Return the operations that are renames."""
    return [o for o in c.manager.list_operations(ROOT) if o.kind == "rename"]


async def test_a_rename_is_an_operation_until_s3_has_followed(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        worker.emit(status_event(renames=[pending()]))
        await wait_all_tasks_blocked()
        (operation,) = renames(c)
        assert (operation.state, operation.target) == ("running", "data")
        assert (operation.detail, operation.created_at) == ("d/ to e/", SINCE)
        assert operation.progress is not None
        assert (operation.progress.done, operation.progress.total) == (0, None)
        figures = {"objects_done": 3, "objects_total": 9, "bytes_done": 30, "bytes_total": 90}
        worker.emit(status_event(renames=[pending(error="no", **figures)]))
        await wait_all_tasks_blocked()
        operation = c.manager.get_operation(ROOT, operation.id)
        assert operation.progress is not None
        assert (operation.progress.done, operation.progress.total) == (3, 9)
        assert (operation.progress.bytes_done, operation.progress.bytes_total) == (30, 90)
        assert operation.message == "no"
        mount = c.manager.get_mount(ROOT, "data")
        assert mount.status.renames == [pending(error="no", **figures)]
        worker.emit(status_event())
        done = await c.manager.wait_operation(operation.id)
        assert done.state == "succeeded"
        assert c.manager.get_mount(ROOT, "data").status.renames == []


async def test_it_goes_on_when_the_worker_dies(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.live("data").emit(status_event(renames=[pending()]))
        await wait_all_tasks_blocked()
        c.workers.live("data").die()
        await c.wait_state("degraded")
        await c.wait_state("mounted")
        assert [o.state for o in renames(c)] == ["running"]
        c.workers.live("data").emit(status_event(renames=[pending(objects_done=5)]))
        await wait_all_tasks_blocked()
        (operation,) = renames(c)
        assert operation.progress is not None
        assert operation.progress.done == 5


async def test_it_is_taken_up_again_by_the_next_daemon(autojump_clock: MockClock) -> None:
    with memory_store() as store:
        async with control(store=store, stop=False) as c:
            await c.mount()
            c.workers.live("data").emit(status_event(renames=[pending()]))
            await wait_all_tasks_blocked()
            (before,) = renames(c)
        workers = FakeWorkers()
        worker = leave(workers, serving=True)
        async with control(store=store, workers=workers) as c:
            await c.wait_state("mounted")
            worker.emit(status_event(renames=[pending()]))
            await wait_all_tasks_blocked()
            assert [(o.id, o.state) for o in renames(c)] == [(before.id, "running")]


async def test_an_unmount_ends_it_and_a_mount_takes_it_up_again(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.live("data").emit(status_event(renames=[pending()]))
        await wait_all_tasks_blocked()
        (first,) = renames(c)
        operation = await c.manager.delete_mount(
            ROOT, "data", mode="clean", timeout_s=60, keep=True
        )
        assert operation is not None
        await c.manager.wait_operation(operation.id)
        (ended,) = renames(c)
        assert ended.state == "failed"
        assert ended.error is not None
        await c.mount()
        c.workers.live("data").emit(status_event(renames=[pending()]))
        await wait_all_tasks_blocked()
        assert [(o.id, o.state) for o in renames(c)] == [(first.id, "running")]
