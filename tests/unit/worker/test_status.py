"""What a worker says of itself while uploads are held back, or too many are queued."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.errors import Unavailable
from s3mgrd.fs.inspecting.queue import QueueControl
from s3mgrd.worker.status import status_of
from tests.unit.fs.conftest import Lab, settings
from tests.unit.fs.test_writeback import close


@pytest.fixture
def lab(tmp_path: Path, autojump_clock: MockClock) -> Lab:
    return Lab(tmp_path, settings=settings(write_mode="writeback", dirty_limit_bytes=10))


async def test_a_pause_is_said_until_it_ends(lab: Lab) -> None:
    async with lab.mounted() as fs:
        assert (status_of(fs, None).health, status_of(fs, None).uploads_paused) == ("ok", False)
        QueueControl(fs).pause()
        await close(lab, "a", b"12345")
        status = status_of(fs, None)
        assert (status.health, status.reason) == ("degraded", "uploads-paused")
        assert status.message == (
            "uploads in the background are paused; queued: 1 file with 5 bytes"
        )
        assert (status.uploads_paused, status.dirty_files) == (True, 1)
        QueueControl(fs).resume()
        assert status_of(fs, None).reason == ""


async def test_writers_that_wait_are_counted_whatever_makes_them_wait(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        await close(lab, "a", bytes(20))
        nursery.start_soon(close, lab, "b", b"x")
        await wait_all_tasks_blocked()
        status = status_of(fs, None)
        assert status.reason == "dirty-limit"
        assert (
            status.message == "waiting for room: 1 writer; queued for upload: 1 file with 20 bytes"
        )
        QueueControl(fs).pause()
        assert status_of(fs, None).message.endswith("; waiting for room: 1 writer")
        nursery.cancel_scope.cancel()


async def test_that_s3_is_away_is_worse_than_a_pause(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs:
        QueueControl(fs).pause()
        fs.health.note(Unavailable("down"))
        status = status_of(fs, None)
        assert (status.reason, status.uploads_paused) == ("s3-unavailable", True)
