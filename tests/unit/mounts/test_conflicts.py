"""Conflict copies, seen from the control plane: they outlive the mount, and keep its definition until the user decides."""

import pytest
import trio
from trio.testing import MockClock

from s3mgr.schema import ConflictCopy, ConflictList, Operation, RestoredConflict
from s3mgrd.errors import Denied, DirtyData, NotMounted
from s3mgrd.worker.protocol import (
    Configure,
    ConflictEvent,
    DiscardConflict,
    GetConflicts,
    Ok,
    Reply,
    RestoreConflict,
    SupervisorRequest,
)
from tests.fakes.control import BOB, ROOT, Control, control, make_request
from tests.fakes.service import EPOCH
from tests.fakes.workers import FakeWorker, FakeWorkers, report, status_event

COPY = ConflictCopy(id=7, path="a/b", size_bytes=3, mtime=EPOCH, lost_at=EPOCH, reason="replaced")


async def unmount(c: Control, mode: str = "clean") -> Operation:
    operation = await c.manager.delete_mount(ROOT, "data", mode=mode, timeout_s=60.0)  # type: ignore[arg-type] # test data
    assert operation is not None
    return await c.manager.wait_operation(operation.id)


async def answer(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
    await trio.lowlevel.checkpoint()
    match message:
        case GetConflicts():
            return report(ConflictList(total=1, total_bytes=3, items=[COPY]))
        case RestoreConflict():
            return report(RestoredConflict(path=message.path or "a/b.conflict", size_bytes=3))
        case DiscardConflict():
            return Ok()
        case _:
            return None


async def test_copies_do_not_hold_an_unmount_up_but_keep_the_definition(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        c.workers.conflicts["data"] = 2
        start = trio.current_time()
        ended = await unmount(c)
        assert trio.current_time() - start < 1
        assert ended.state == "succeeded"
        status = c.get().status
        assert (status.state, status.reason) == ("unmounted", "conflicts-kept")
        assert status.conflicts == 2
        assert "2 conflict copies" in status.message
        assert c.workers.forgotten == []
        assert (await c.mount()).status.state == "mounted"


async def test_an_unmounted_mount_is_looked_into_before_it_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    """The definition can go once the copies are gone, or on the word discard."""
    async with control() as c:
        await c.mount()
        c.workers.conflicts["data"] = 1
        await unmount(c)
        await unmount(c)
        assert c.get().status.conflicts == 1
        configure = [r for w in c.workers.started for r in w.asked(Configure)][-1]
        assert not configure.probe
        c.workers.conflicts["data"] = 0
        assert (await unmount(c)).state == "succeeded"
        assert c.names() == []
        assert c.workers.forgotten == ["data"]


async def test_discard_throws_copies_away_with_everything_else(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.conflicts["data"] = 1
        await unmount(c)
        assert (await unmount(c, "discard")).state == "succeeded"
        assert c.names() == []
        assert set(c.workers.forgotten) == {"data"}


async def test_another_bucket_is_not_mounted_over_copies(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.conflicts["data"] = 1
        await unmount(c)
        with pytest.raises(DirtyData):
            await c.manager.put_mount(ROOT, "data", make_request("other", mountpoint="/mnt/data"))


async def test_copies_are_remembered_by_the_next_daemon(autojump_clock: MockClock) -> None:
    workers = FakeWorkers()
    async with control(workers=workers) as c:
        await c.mount()
        workers.conflicts["data"] = 1
        await c.manager.stop()
        assert (await c.store.load()).mounts[0].may_be_dirty


async def test_the_status_counts_copies_and_an_event_tells_of_each(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        async with c.manager.subscribe(ROOT, since=None) as events:
            worker.emit(status_event(conflicts=1, conflict_bytes=3))
            worker.emit(
                ConflictEvent(action="kept", id=7, path="a/b", size_bytes=3, reason="replaced")
            )
            event = await anext(events)
        assert (event.type, event.mount) == ("mount.conflict", "data")
        assert event.data == {
            "action": "kept",
            "id": 7,
            "path": "a/b",
            "size_bytes": 3,
            "reason": "replaced",
        }
        assert (c.get().status.conflicts, c.get().status.conflict_bytes) == (1, 3)
        assert c.get().status.state == "mounted"


async def test_copies_are_listed_restored_and_discarded_by_the_worker(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        c.workers.script = answer
        assert (await c.manager.list_conflicts(ROOT, "data", cursor="6", limit=5)).items == [COPY]
        restored = await c.manager.restore_conflict(ROOT, "data", 7, path="x", partial=True)
        assert restored.path == "x"
        await c.manager.discard_conflict(ROOT, "data", 7)
        worker = c.workers.live("data")
        assert worker.asked(GetConflicts) == [GetConflicts(cursor="6", limit=5)]
        assert worker.asked(RestoreConflict) == [RestoreConflict(id=7, path="x", partial=True)]
        assert worker.asked(DiscardConflict) == [DiscardConflict(id=7)]


async def test_only_who_manages_the_mount_sees_and_changes_its_copies(
    autojump_clock: MockClock,
) -> None:
    """Paths and data are those of the mount's owner."""
    async with control() as c:
        await c.mount()
        c.workers.script = answer
        with pytest.raises(Denied):
            await c.manager.list_conflicts(BOB, "data", cursor=None, limit=5)
        with pytest.raises(Denied):
            await c.manager.restore_conflict(BOB, "data", 7, path=None, partial=False)
        with pytest.raises(Denied):
            await c.manager.discard_conflict(BOB, "data", 7)
        c.workers.script = None
        c.workers.conflicts["data"] = 1
        await unmount(c)
        with pytest.raises(NotMounted):
            await c.manager.list_conflicts(ROOT, "data", cursor=None, limit=5)
