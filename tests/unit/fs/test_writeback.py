"""write_mode=writeback: close() returns at once, S3 follows in a good order, and nothing is lost on the way."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.errors import Unavailable
from s3mgrd.fs.volume import NS
from s3mgrd.fs.writing.backlog import HOLD_S, MAX_BONUS_S, SMALL_BYTES, due_ns
from s3mgrd.fs.writing.stages import SETTLED_S
from tests.unit.fs.conftest import WHO, Lab, settings

MIB = 1 << 20


@pytest.fixture
def writeback(lab: Lab) -> Lab:
    lab.settings = settings(write_mode="writeback", dirty_limit_bytes=10 * MIB, concurrency=1)
    return lab


async def close(lab: Lab, path: str, data: bytes) -> int:
    """Write a file and close it, as the kernel's handlers do."""
    fs = lab.fs
    parent, name = await lab._parent(path)
    node = await fs.tree.create(parent, name, WHO, lab.record, exclusive=False)
    fs.stages.take_up(node)
    fs.stages.opened(node.id)
    if fs.stages.size(node):
        fs.stages.truncate(node.id, 0)
    await fs.stages.write(node.id, 0, data)
    await fs.flush(node.id)
    fs.closed(node.id)
    return node.id


async def test_close_does_not_wait_for_s3(writeback: Lab, autojump_clock: MockClock) -> None:
    async with writeback.mounted() as fs:
        with writeback.store.hold("put"):
            await close(writeback, "a", b"hello")
            assert writeback.stored() == []
            assert await writeback.read("a") == b"hello"
            assert (fs.stages.backlog.files, fs.stages.backlog.bytes) == (1, 5)
            assert fs.syncer.left().files == 1
        await trio.sleep(1)
        assert writeback.data("a") == b"hello"
        assert fs.stages.backlog.files == 0
        assert fs.syncer.left().is_nothing
    assert not writeback.staging_files()


async def test_what_was_closed_survives_a_crash_of_everything(writeback: Lab) -> None:
    async with writeback.mounted(sync=False):
        await close(writeback, "a", b"one")
        await close(writeback, "b", b"two")
    assert writeback.stored() == []
    async with writeback.mounted("second"):
        await writeback.settle()
        assert (writeback.data("a"), writeback.data("b")) == (b"one", b"two")


async def test_a_worker_that_takes_over_goes_on_with_the_queue(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted(sync=False):
        await close(writeback, "a", b"one")
    async with writeback.mounted() as fs:
        assert fs.stages.backlog.files == 1
        await trio.sleep(2)
        assert writeback.data("a") == b"one"


async def change(lab: Lab, inode: Inode) -> None:
    """Write a byte into a file and close it."""
    lab.fs.stages.opened(inode)
    await lab.fs.stages.write(inode, 7, b"!")
    await lab.fs.flush(inode)
    lab.fs.closed(inode)


async def test_a_change_of_a_large_object_is_sent_at_once(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """Only the first for a while, and only where nothing else waits: what follows is gathered as everything else."""
    for key in ("a", "b"):
        writeback.store.insert(key, bytes(SMALL_BYTES + 1))
    async with writeback.mounted() as fs:
        a, b = (await writeback.get("a")).id, (await writeback.get("b")).id
        await trio.sleep(1)
        began = trio.current_time()
        with writeback.store.hold("put") as hold:
            await change(writeback, a)
            await hold.arrived()
            assert trio.current_time() == began
        await wait_all_tasks_blocked()
        await change(writeback, a)
        await wait_all_tasks_blocked()
        assert writeback.store.calls["put"] == 1
        await change(writeback, b)
        await wait_all_tasks_blocked()
        assert writeback.store.calls["put"] == 1
        await trio.sleep(2 * SETTLED_S)
        assert writeback.store.calls["put"] == 3
        with writeback.store.hold("put") as hold:
            began = trio.current_time()
            await change(writeback, a)
            await hold.arrived()
            assert trio.current_time() == began
        await trio.sleep(1)
        assert fs.syncer.left().is_nothing


async def test_what_is_rewritten_renamed_or_removed_is_sent_once_or_never(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted() as fs:
        with writeback.store.hold("put"):
            await close(writeback, "first", b"keeps the one transfer busy")
            await trio.sleep(1)
            await close(writeback, "a", b"old")
            await close(writeback, "a", b"new")
            await close(writeback, "part", b"whole")
            await writeback.rename("part", "whole")
            await close(writeback, "gone", b"never")
            await writeback.unlink("gone")
            writeback.store.calls.clear()
        await writeback.settle()
        assert writeback.stored() == ["a", "first", "whole"]
        assert writeback.data("a") == b"new"
        assert writeback.store.calls["put"] == 2
        assert fs.stages.backlog.bytes == 0


async def test_a_file_that_is_being_written_again_is_not_sent_half(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted() as fs:
        with writeback.store.hold("put"):
            await close(writeback, "first", b"keeps the one transfer busy")
            await trio.sleep(1)
            inode = await close(writeback, "a", b"complete")
            node = fs.volume.node(inode)
            fs.stages.opened(node.id)
            fs.stages.truncate(node.id, 0)
            await fs.stages.write(node.id, 0, b"ha")
        await trio.sleep(5)
        assert writeback.stored() == ["first"]
        await fs.stages.write(node.id, 2, b"lf and whole")
        fs.closed(node.id)
        await trio.sleep(5)
        assert writeback.data("a") == b"half and whole"


async def test_a_file_is_not_sent_while_another_handle_writes(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted() as fs:
        parent, name = await writeback._parent("a")
        node = await fs.tree.create(parent, name, WHO, writeback.record, exclusive=False)
        fs.stages.take_up(node)
        fs.stages.opened(node.id)
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 0, b"one ")
        await fs.flush(node.id)
        fs.closed(node.id)
        await trio.sleep(3)
        assert writeback.stored() == []
        await fs.stages.write(node.id, 4, b"two")
        fs.closed(node.id)
        await trio.sleep(3)
        assert writeback.data("a") == b"one two"


def test_small_files_go_first_and_large_ones_are_not_starved() -> None:
    now = 1_000_000 * NS
    assert due_ns(now, 10) < due_ns(now, 5 * MIB) < due_ns(now, 100 * MIB) <= now
    later = now + (MAX_BONUS_S + 1) * NS
    assert due_ns(now, 1 << 40) < due_ns(later, 10)


async def test_the_queue_is_sent_in_its_order(writeback: Lab, autojump_clock: MockClock) -> None:
    order: list[str] = []
    writeback.settings.dirty_limit_bytes = 100 * MIB
    writeback.store.before = lambda op, key: order.append(key) if op == "put" else None
    async with writeback.mounted(sync=False) as fs:
        await close(writeback, "large", bytes(9 * MIB))
        await close(writeback, "medium", bytes(3 * MIB))
        await close(writeback, "small", bytes(SMALL_BYTES + 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.syncer.run)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
    assert order == ["small", "medium", "large"]


async def test_writers_wait_while_too_much_is_queued(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    writeback.settings.dirty_limit_bytes = 40_000
    closed: list[str] = []

    async def write(name: str) -> None:
        await close(writeback, name, bytes(30_000))
        closed.append(name)

    async with writeback.mounted() as fs:
        with writeback.store.hold("put"):
            async with trio.open_nursery() as nursery:
                await write("a")
                await write("b")
                nursery.start_soon(write, "c")
                await wait_all_tasks_blocked()
                assert closed == ["a", "b"]
                assert fs.stages.backlog.waiting == 1
                for hold in writeback.store._holds["put"]:
                    hold.release()
        assert closed == ["a", "b", "c"]
        assert fs.stages.backlog.waiting == 0
        await writeback.settle()
        assert writeback.stored() == ["a", "b", "c"]


async def test_what_s3_does_not_take_stays_queued_and_is_tried_again(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    async with writeback.mounted() as fs:
        writeback.store.fail_next("put", Unavailable("down"), times=3)
        await close(writeback, "a", b"x")
        await trio.sleep(2)
        assert fs.stages.backlog.files == 1
        row = fs.volume.journal.dirty_staged()[0]
        assert (row.error, row.tries) == ("down", 1)
        for _ in range(10):
            writeback.later(300)
            await trio.sleep(400)
        assert writeback.data("a") == b"x"


@pytest.mark.parametrize(("fsync", "stored"), [("local", []), ("remote", ["a"])])
async def test_fsync_waits_for_what_it_is_told_to(
    writeback: Lab, fsync: str, stored: list[str]
) -> None:
    writeback.settings.fsync = fsync
    async with writeback.mounted(sync=False) as fs:
        parent, name = await writeback._parent("a")
        node = await fs.tree.create(parent, name, WHO, writeback.record, exclusive=False)
        fs.stages.take_up(node)
        await fs.stages.write(node.id, 0, b"x")
        await fs.fsync(node.id)
        assert writeback.stored() == stored


async def test_a_truncate_by_name_is_queued(writeback: Lab) -> None:
    writeback.store.insert("a", b"hello")
    async with writeback.mounted() as fs:
        node = await writeback.get("a")
        fs.stages.truncate(node.id, 2)
        await fs.truncated(node.id)
        assert fs.stages.backlog.files == 1
        await writeback.settle()
        assert writeback.data("a") == b"he"


async def test_what_s3_lacks_is_counted_whatever_happens_to_the_files(writeback: Lab) -> None:
    """The status asks twice a second, so nobody may go through all files for it."""

    def check() -> None:
        fs = writeback.fs
        nodes = fs.volume.nodes
        stages = [
            stage
            for inode, stage in fs.stages._stages.items()
            if stage.dirty and (node := nodes.get(inode)) is not None and not node.is_detached
        ]
        lacking = fs.stages.lacking
        assert (lacking.files, lacking.bytes) == (
            len(stages),
            sum(stage.file.size for stage in stages),
        )
        counts = fs.volume.journal.counts()
        execute = fs.volume.database.execute
        for kind, query in (
            ("staged", "FROM staged WHERE dirty = 1"),
            ("deletes", "FROM deletes WHERE holder IS NULL"),
            ("held", "FROM deletes WHERE holder IS NOT NULL"),
            ("renames", "FROM inodes WHERE remote_key IS NOT NULL AND name IS NOT NULL"),
        ):
            assert counts[kind] == execute(f"SELECT count(*) {query}").fetchone()[0], kind

    async with writeback.mounted(sync=False) as fs:
        for name in ("a", "b", "c", "d"):
            await close(writeback, name, name.encode() * 10)
        check()
        assert (fs.stages.lacking.files, fs.stages.lacking.bytes) == (4, 40)
        node = await writeback.get("a")
        async with fs.volume.locks.holding(("inode", node.id)):
            await fs.stages.write(node.id, 95, b"12345")
            fs.stages.truncate((await writeback.get("b")).id, 3)
        assert fs.stages.lacking.bytes == 100 + 3 + 20
        for name in ("a", "b"):
            await fs.commit((await writeback.get(name)).id)
        check()
        await fs.tree.rename(ROOT, "a", ROOT, "e", 0, writeback.record)
        writeback.held.add((await writeback.get("b")).id)
        for name in ("b", "c"):
            await fs.tree.unlink(ROOT, name, writeback.record)
        check()
    async with writeback.mounted() as fs:
        check()
        await writeback.settle()
        check()
        assert fs.stages.lacking.files == 0
        await writeback.write("d", b"new", close=False)
        assert (fs.stages.lacking.files, fs.stages.lacking.bytes) == (1, 3)
        fs.discard()
        assert (fs.stages.lacking.files, fs.stages.lacking.bytes) == (0, 0)


async def test_large_uploads_leave_room_for_small_files(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """Large ones fill the network, small ones wait for S3: as many of each as serve that."""
    writeback.settings.dirty_limit_bytes = 100 * MIB
    async with writeback.mounted() as fs:
        with writeback.store.hold("put"):
            await close(writeback, "large 1", bytes(MIB))
            await close(writeback, "large 2", bytes(MIB))
            await trio.sleep(70)  # nothing overtakes them any more
            for name in "abcdef":
                await close(writeback, name, b"x")
            await trio.sleep(1)
            under_way = {fs.volume.node(inode).name for inode in fs.uploader.running}
            assert under_way == {"large 1", "a", "b", "c", "d"}
        await trio.sleep(1)
        assert len(writeback.stored()) == 8


async def test_the_next_upload_begins_when_one_ends(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """A thousand small files take as long as S3 takes for them, not as often as the queue is looked at."""
    async with writeback.mounted():
        for number in range(400):
            await close(writeback, f"f{number}", b"x")
        put = writeback.store.put

        async def delayed(*args: object, **kwargs: object) -> object:
            await trio.sleep(0.02)
            return await put(*args, **kwargs)  # type: ignore[arg-type] # passed on as they came

        writeback.store.put = delayed  # type: ignore[method-assign,assignment] # the latency of a region
        await trio.sleep(400 / 4 * 0.02 + 0.5)
        assert len(writeback.stored()) == 400


async def test_small_files_wait_while_more_of_them_come_but_not_for_long(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """Who makes them waits for each; what was queued first is sent after half a second at the latest."""
    writeback.settings.concurrency = 100
    async with writeback.mounted():
        sent_after = None
        for number in range(100):
            await close(writeback, f"f{number:02}", b"x")
            await trio.sleep(0.01)
            if writeback.stored() and sent_after is None:
                sent_after = (number + 1) * 0.01
        assert sent_after is not None
        assert HOLD_S <= sent_after < HOLD_S + 0.2
        await trio.sleep(0.2)
        assert len(writeback.stored()) == 100


async def test_who_waits_for_a_small_file_to_be_sent_changes_what_s3_has(
    writeback: Lab, autojump_clock: MockClock
) -> None:
    """What was staged is not forgotten under a writer's hands, nor what was removed or renamed meanwhile."""
    async with writeback.mounted() as fs:
        with writeback.store.hold("put") as hold:
            inode = Inode(await close(writeback, "a", b"hello"))
            await trio.sleep(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.write, inode, 1, b"E")
                await wait_all_tasks_blocked()
                hold.release()
        await writeback.settle()
        assert writeback.data("a") == b"hEllo"
        with writeback.store.hold("put"):
            await close(writeback, "old", b"renamed")
            gone = await close(writeback, "gone", b"removed")
            writeback.held.add(gone)
            await trio.sleep(1)
            await writeback.rename("old", "new")
            await writeback.unlink("gone")
        await writeback.settle()
        assert writeback.data("new") == b"renamed"
        assert writeback.stored() == ["a", "gone", "new"]
        assert await writeback.read_inode(Inode(gone)) == b"removed"
        writeback.held.clear()
        await writeback.settle()
        assert writeback.stored() == ["a", "new"]
    assert not writeback.staging_files()
