"""The queue of uploads is shown as it is, held back, let go on and reordered, and remembers that across workers."""

import pytest
import trio
from trio.testing import MockClock

from s3mgr.schema import UploadQueue
from s3mgrd.errors import Conflict, NotFound, TooLarge, Unavailable, UserError
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting.queue import QueueControl
from s3mgrd.fs.writing.backlog import SMALL_BYTES
from tests.unit.fs.conftest import WHO, Lab, settings
from tests.unit.fs.test_writeback import close

MIB = 1 << 20


@pytest.fixture
def writeback(lab: Lab) -> Lab:
    lab.settings = settings(write_mode="writeback", dirty_limit_bytes=10 * MIB, concurrency=1)
    return lab


def shown(fs: FileSystem) -> list[tuple[str, str]]:
    """Return path and state of all that is queued."""
    return [(item.path, item.state) for item in queue(fs).items]


def queue(fs: FileSystem, cursor: str | None = None, limit: int = 100) -> UploadQueue:
    return QueueControl(fs).report(cursor, limit)


async def test_the_queue_is_shown_in_its_order(writeback: Lab) -> None:
    async with writeback.mounted(sync=False) as fs:
        assert queue(fs) == UploadQueue(
            total_files=0,
            total_bytes=0,
            dirty_limit_bytes=10 * MIB,
            is_paused=False,
            writers_waiting=0,
        )
        await writeback.mkdir("d")
        await close(writeback, "d/large", bytes(9 * MIB))
        await close(writeback, "small", b"x")
        await writeback.write("open", b"y", close=False)
        found = queue(fs)
        assert [item.path for item in found.items] == ["small", "d/large"]
        assert [item.size_bytes for item in found.items] == [1, 9 * MIB]
        assert (found.total_files, found.total_bytes) == (2, 9 * MIB + 1)
        assert found.cursor is None
        small = found.items[0]
        assert (small.state, small.tries, small.error, small.retry_at) == ("waiting", 0, None, None)
        assert small.since.timestamp() == writeback.now_ns / 1e9


async def test_pages_follow_one_another(writeback: Lab) -> None:
    """Also through files of the same moment, and on to what S3 refused for good."""
    async with writeback.mounted(sync=False) as fs:
        for name in "abcde":
            await close(writeback, name, b"x")
        refused = await writeback.get("c")
        fs.volume.journal.fail_staged(refused.id, "too large", conflict=True, retry_ns=None)
        fs.stages.failed(refused.id, None)
        found: list[tuple[str, str]] = []
        cursor = None
        for _ in range(3):
            page = queue(fs, cursor, 2)
            assert (page.total_files, page.total_bytes) == (5, 5)
            found += [(item.path, item.state) for item in page.items]
            cursor = page.cursor
        assert cursor is None
        assert [path for path, _ in found] == ["a", "b", "d", "e", "c"]
        assert found[-1] == ("c", "failed")
        assert queue(fs, None, 0).items == []
        for bad in ("x", "1", "1.x", "-.1", "refused.-1", "9" * 19 + ".1", "1." + "9" * 19):
            with pytest.raises(UserError):
                queue(fs, bad)


async def test_a_page_fits_into_a_message(writeback: Lab) -> None:
    async with writeback.mounted(sync=False) as fs:
        directory = "d" * 250
        await writeback.mkdir(directory)
        for number in range(100):
            await close(writeback, f"{directory}/{number:0250}", b"x")
        first = queue(fs)
        assert 1 < len(first.items) < 100
        second = queue(fs, first.cursor)
        assert second.items[0].path > first.items[-1].path


async def test_a_pause_holds_everything_back_until_it_ends(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted() as fs:
        assert QueueControl(fs).pause().is_paused
        await close(writeback, "a", b"one")
        await close(writeback, "b", b"two")
        writeback.later(1000)
        await trio.sleep(1000)
        assert writeback.stored() == []
        assert shown(fs) == [("a", "paused"), ("b", "paused")]
        assert not QueueControl(fs).resume().is_paused
        await trio.sleep(2)
        assert writeback.stored() == ["a", "b"]
        assert shown(fs) == []


async def test_what_is_being_uploaded_goes_on(writeback: Lab, autojump_clock: MockClock) -> None:
    async with writeback.mounted() as fs:
        with writeback.store.hold("put"):
            await close(writeback, "a", b"one")
            await trio.sleep(1)
            await close(writeback, "b", b"two")
            QueueControl(fs).pause()
            assert shown(fs) == [("a", "uploading"), ("b", "paused")]
        await trio.sleep(5)
        assert writeback.stored() == ["a"]


@pytest.mark.parametrize("connection", ["first", "second"])
async def test_a_paused_queue_survives_worker_and_daemon(
    writeback: Lab, autojump_clock: MockClock, connection: str
) -> None:
    async with writeback.mounted() as fs:
        QueueControl(fs).pause()
        await close(writeback, "large", bytes(3 * MIB))
        await close(writeback, "small", b"x")
    async with writeback.mounted(connection) as fs:
        await trio.sleep(10)
        assert writeback.stored() == []
        assert shown(fs) == [("small", "paused"), ("large", "paused")]
        assert queue(fs).total_files == 2
        QueueControl(fs).resume()
        await trio.sleep(10)
        assert writeback.stored() == ["large", "small"]
    async with writeback.mounted(connection) as fs:
        assert not queue(fs).is_paused


async def test_a_pause_is_not_taken_to_another_bucket(writeback: Lab) -> None:
    async with writeback.mounted() as fs:
        QueueControl(fs).pause()
    writeback.bucket = "other"
    async with writeback.mounted("second") as fs:
        assert not queue(fs).is_paused


async def test_flush_and_drain_upload_in_spite_of_a_pause(writeback: Lab) -> None:
    async with writeback.mounted() as fs:
        QueueControl(fs).pause()
        await close(writeback, "a", b"x")
        await fs.syncer.flush()
        assert writeback.stored() == ["a"]
        assert queue(fs).is_paused


async def test_who_waits_for_s3_does_not_wait_for_the_pause(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """fsync=remote, and close() with write_mode=close."""
    async with writeback.mounted() as fs:
        QueueControl(fs).pause()
        writeback.settings.fsync = "remote"
        node = await writeback.write("a", b"x", close=False)
        await fs.fsync(node.id)
        assert writeback.stored() == ["a"]
        writeback.settings.write_mode = "close"
        await close(writeback, "b", b"y")
        assert writeback.stored() == ["a", "b"]


async def test_the_hurried_one_is_the_next(writeback: Lab, autojump_clock: MockClock) -> None:
    order: list[str] = []
    writeback.store.before = lambda op, key: order.append(key) if op == "put" else None
    async with writeback.mounted(sync=False) as fs:
        for name in "abcd":
            await close(writeback, name, bytes(SMALL_BYTES + 1))
        QueueControl(fs).hurry("c")
        QueueControl(fs).hurry("d")
        assert [path for path, _ in shown(fs)] == ["d", "c", "a", "b"]
    async with writeback.mounted("second") as fs:
        await trio.sleep(5)
    assert order == ["d", "c", "a", "b"]


async def test_a_file_is_hurried_past_a_pause(writeback: Lab, autojump_clock: MockClock) -> None:
    """Once: where that fails, it is held back again."""
    async with writeback.mounted() as fs:
        control = QueueControl(fs)
        control.pause()
        for name in "abc":
            await close(writeback, name, b"x")
        control.hurry("b")
        assert shown(fs)[0] == ("b", "waiting")
        await trio.sleep(2)
        assert writeback.stored() == ["b"]
        writeback.store.fail_next("put", Unavailable("down"), times=1)
        control.hurry("c")
        await trio.sleep(2)
        writeback.later(1000)
        await trio.sleep(1000)
        assert writeback.stored() == ["b"]
        assert shown(fs) == [("a", "paused"), ("c", "paused")]
        assert queue(fs).items[1].error == "down"


@pytest.mark.parametrize("write_mode", ["close", "writeback"])
async def test_what_failed_is_listed_and_can_be_hurried(
    lab: Lab, autojump_clock: MockClock, write_mode: str
) -> None:
    lab.settings.write_mode = write_mode
    async with lab.mounted() as fs:
        lab.store.fail_next("put", Unavailable("down"), times=1)
        if write_mode == "close":
            with pytest.raises(Unavailable):
                await lab.write("a", b"x")
        else:
            await close(lab, "a", b"x")
        await trio.sleep(1)
        (item,) = queue(fs).items
        assert (item.state, item.tries, item.error) == ("failed", 1, "down")
        assert item.retry_at is not None
        assert queue(fs).total_bytes == 1
        assert lab.stored() == []
        QueueControl(fs).hurry("a")
        assert queue(fs).items[0].retry_at is None
        await trio.sleep(1)
        assert lab.data("a") == b"x"
        assert queue(fs).total_files == 0


async def test_what_s3_never_takes_makes_nobody_wait(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted() as fs:
        writeback.store.fail_next("put", TooLarge("more than S3 takes"), times=1)
        await close(writeback, "a", b"x")
        await trio.sleep(1)
        (item,) = queue(fs).items
        assert (item.state, item.retry_at) == ("failed", None)
        assert (queue(fs).total_files, fs.stages.backlog.files) == (1, 0)
        with pytest.raises(Conflict, match="S3 takes no such file"):
            QueueControl(fs).hurry("a")
    async with writeback.mounted() as fs:
        assert fs.stages.backlog.files == 0


async def test_only_what_waits_can_be_hurried(writeback: Lab) -> None:
    writeback.store.insert("stored", b"x")
    async with writeback.mounted(sync=False) as fs:
        await writeback.get("stored")
        await writeback.mkdir("d")
        for path in ("stored", "d", "none", "d/none", "stored/x"):
            with pytest.raises(NotFound):
                QueueControl(fs).hurry(path)
        await writeback.write("open", b"x", close=False)
        with pytest.raises(Conflict, match="still being written"):
            QueueControl(fs).hurry("open")


async def test_a_file_that_failed_while_it_is_open_is_not_sent_half(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """An fsync that waits for S3 fails; its retry waits until who goes on writing is done."""
    writeback.settings.fsync = "remote"
    async with writeback.mounted() as fs:
        parent, name = await writeback._parent("a")
        node = await fs.tree.create(parent, name, WHO, writeback.record, exclusive=False)
        fs.stages.take_up(node)
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 0, b"ha")
        writeback.store.fail_next("put", Unavailable("down"), times=1)
        with pytest.raises(Unavailable):
            await fs.fsync(node.id)
        await fs.stages.write(node.id, 2, b"lf")
        writeback.later(1000)
        await trio.sleep(1000)
        assert writeback.stored() == []
        fs.closed(node.id)
        await trio.sleep(5)
        assert writeback.data("a") == b"half"


async def test_a_restored_conflict_copy_is_queued(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    writeback.store.insert("a", b"old")
    async with writeback.mounted() as fs:
        node = await writeback.get("a")
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 0, b"mine")
        writeback.store.insert("a", b"theirs")
        fs.closed(node.id)
        await trio.sleep(5)
        QueueControl(fs).pause()
        await fs.conflicts.restore(node.id, "mine", partial=True)
        assert shown(fs) == [("mine", "paused")]
        assert queue(fs).total_files == 1
        await fs.syncer.flush()
        assert writeback.data("mine") == b"mine"
