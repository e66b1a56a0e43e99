"""Bringing files into a cache is an operation: a worker does it, whichever lives, until it is done or stopped."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgr.schema import WarmProgress, WarmReport
from s3mgrd.errors import Conflict, UserError
from s3mgrd.worker.protocol import Reply, StopWarming, SupervisorRequest, Warm
from tests.fakes.control import ROOT, Control, control
from tests.fakes.workers import FakeWorker, report, status_event


def hold_warming(c: Control) -> trio.Event:
    """Have every worker's warming go on until the event is set."""
    done = trio.Event()

    async def script(_: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if not isinstance(message, Warm):
            return None
        await done.wait()
        return report(WarmReport(files=2, bytes=300, skipped=1))

    c.workers.script = script
    return done


async def test_it_tells_how_far_it_is_and_survives_its_worker(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        done = hold_warming(c)
        operation = await c.manager.pin_cache(ROOT, "data", paths=["a", ""])
        await wait_all_tasks_blocked()
        worker = c.workers.live("data")
        (asked,) = worker.asked(Warm)
        assert (asked.id, asked.paths, asked.pin) == (operation.id, ["a", ""], True)
        progress = WarmProgress(id=operation.id, bytes_done=100, bytes_total=300)
        worker.emit(status_event(warming=[progress, WarmProgress(id="unknown")]))
        await wait_all_tasks_blocked()
        operation = c.manager.get_operation(ROOT, operation.id)
        assert (operation.kind, operation.detail) == ("pin", "a, /")
        assert operation.progress is not None
        assert (operation.progress.done, operation.progress.total) == (100, 300)

        worker.die()
        await c.wait_state("mounted")
        await wait_all_tasks_blocked()
        assert c.workers.live("data").asked(Warm) == [asked]
        done.set()
        ended = await c.manager.wait_operation(operation.id)
        assert ended.progress is not None
        assert (ended.state, ended.progress.done) == ("succeeded", 300)
        assert ended.message.endswith("archive: 1")


async def test_a_warming_can_be_stopped_and_a_pin_cannot(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        hold_warming(c)
        operation = await c.manager.warm_cache(ROOT, "data", paths=["a"])
        await wait_all_tasks_blocked()
        stopped = await c.manager.cancel_operation(ROOT, operation.id)
        assert stopped.state == "cancelled"
        assert [asked.id for asked in c.workers.live("data").asked(StopWarming)] == [operation.id]
        pinning = await c.manager.pin_cache(ROOT, "data", paths=["a"])
        await wait_all_tasks_blocked()
        with pytest.raises(Conflict):
            await c.manager.cancel_operation(ROOT, pinning.id)


async def test_it_fails_with_what_the_worker_says(autojump_clock: MockClock) -> None:
    async def refuse(_: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if isinstance(message, Warm):
            raise Conflict("it does not fit")
        return None

    async with control() as c:
        await c.mount()
        c.workers.script = refuse
        operation = await c.manager.warm_cache(ROOT, "data", paths=["a"])
        ended = await c.manager.wait_operation(operation.id)
        assert ended.error is not None
        assert (ended.state, ended.error.detail) == ("failed", "it does not fit")


async def test_more_paths_than_a_message_holds_are_refused(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        paths = ["x" * 1000] * 100
        with pytest.raises(UserError, match="so many paths"):
            await c.manager.warm_cache(ROOT, "data", paths=paths)
        with pytest.raises(UserError, match="so many paths"):
            await c.manager.evict_cache(ROOT, "data", paths=paths)
        assert not c.manager.list_operations(ROOT, mount="data")[1:]


async def test_an_unmount_ends_it(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        hold_warming(c)
        operation = await c.manager.warm_cache(ROOT, "data", paths=["a"])
        await wait_all_tasks_blocked()
        await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=1.0)
        ended = await c.manager.wait_operation(operation.id)
        assert ended.state == "failed"
