"""The queue of uploads, seen from the control plane: the worker answers, the owner asks, the status shows a pause."""

import pytest
import trio
from trio.testing import MockClock

from s3mgr.schema import UploadQueue
from s3mgrd.errors import Denied
from s3mgrd.worker.protocol import (
    GetQueue,
    HurryUpload,
    PauseQueue,
    Reply,
    ResumeQueue,
    SupervisorRequest,
)
from tests.fakes.control import BOB, ROOT, control
from tests.fakes.workers import FakeWorker, report, status_event


async def answer(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
    await trio.lowlevel.checkpoint()
    if not isinstance(message, GetQueue | HurryUpload | PauseQueue | ResumeQueue):
        return None
    return report(
        UploadQueue(
            total_files=1,
            total_bytes=3,
            dirty_limit_bytes=9,
            is_paused=isinstance(message, PauseQueue),
            writers_waiting=0,
        )
    )


async def test_the_worker_is_asked_and_the_status_shows_a_pause_at_once(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        c.workers.script = answer
        found = await c.manager.mount_queue(ROOT, "data", cursor="6.1", limit=5)
        assert (found.total_files, found.total_bytes) == (1, 3)
        assert (await c.manager.pause_queue(ROOT, "data")).is_paused
        assert c.get().status.uploads_paused
        assert not (await c.manager.resume_queue(ROOT, "data")).is_paused
        assert not c.get().status.uploads_paused
        await c.manager.hurry_upload(ROOT, "data", path="a/b")
        worker = c.workers.live("data")
        assert worker.asked(GetQueue) == [GetQueue(cursor="6.1", limit=5)]
        assert worker.asked(HurryUpload) == [HurryUpload(path="a/b")]


async def test_a_pause_that_the_worker_remembers_is_shown(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        worker.emit(
            status_event(
                health="degraded", reason="uploads-paused", message="m", uploads_paused=True
            )
        )
        await trio.sleep(1)
        status = c.get().status
        assert (status.state, status.reason, status.uploads_paused) == (
            "degraded",
            "uploads-paused",
            True,
        )
        worker.emit(status_event())
        await trio.sleep(1)
        assert (c.get().status.state, c.get().status.uploads_paused) == ("mounted", False)


async def test_only_who_manages_the_mount_sees_and_changes_its_queue(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        c.workers.script = answer
        with pytest.raises(Denied):
            await c.manager.mount_queue(BOB, "data", cursor=None, limit=5)
        with pytest.raises(Denied):
            await c.manager.pause_queue(BOB, "data")
        with pytest.raises(Denied):
            await c.manager.resume_queue(BOB, "data")
        with pytest.raises(Denied):
            await c.manager.hurry_upload(BOB, "data", path="a")
        assert c.workers.live("data").asked(PauseQueue) == []
