"""Uploads that begin while their file is being written: close() waits for the tail, and no byte is one that changed."""

import dataclasses
import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import NotFound, PreconditionFailed, Unavailable
from s3mgrd.fs import attributes
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.following.upload import TOLERANCE_S
from s3mgrd.fs.volume import NS
from s3mgrd.fs.writing.parts import EVEN_PARTS, MIB, Grid
from s3mgrd.fs.writing.streaming import HOLD_S
from s3mgrd.s3.port import MAX_COPY_BYTES, MAX_OBJECT_BYTES, MAX_PARTS
from tests.unit.fs.conftest import WHO, Lab

PART = 5 * MIB
BODY = random.Random(5).randbytes(27 * MIB + 99)  # noqa: S311 - content, not a secret


async def begin(lab: Lab, path: str = "big", *, exclusive: bool = False) -> Inode:
    """Make a new file, open for writing."""
    parent, name = await lab._parent(path)
    node = await lab.fs.tree.create(parent, name, WHO, lab.record, exclusive=exclusive)
    lab.fs.stages.take_up(node)
    lab.fs.stages.opened(node.id)
    return node.id


async def write(lab: Lab, inode: Inode, start: int, stop: int, body: bytes = BODY) -> None:
    """Write a range as the kernel does, and let what it set off go as far as it can."""
    for offset in range(start, stop, MIB):
        async with lab.fs.volume.locks.holding(("inode", inode)):
            await lab.fs.stages.write(inode, offset, body[offset : min(offset + MIB, stop)])
    await wait_all_tasks_blocked()


def sent(lab: Lab) -> int:
    return lab.store.calls["upload_part"]


@pytest.mark.parametrize("part_size", [5 * MIB, 8 * MIB, 64 * MIB, 5 << 30])
def test_parts_of_a_file_of_any_size_are_few_and_touch_each_other(part_size: int) -> None:
    grid = Grid(part_size)
    last = grid.number_at(MAX_OBJECT_BYTES - 1)
    assert last <= MAX_PARTS
    stop = 0
    for number in range(1, last + 1):
        start, end = grid.bounds(number)
        assert start == stop < end <= start + MAX_COPY_BYTES
        assert grid.number_at(start) == grid.number_at(end - 1) == number
        assert number > EVEN_PARTS or end - start == part_size
        stop = end
    assert stop >= MAX_OBJECT_BYTES


async def test_a_large_file_is_uploaded_while_it_is_written(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 10 * MIB)
        assert lab.store.calls["create_multipart"] == 0, "it may turn out to be small"
        await write(lab, inode, 10 * MIB, 26 * MIB)
        assert sent(lab) == 5
        await write(lab, inode, 26 * MIB, len(BODY))
        assert "big" not in lab.stored()
        await lab.fs.commit(inode)
        assert sent(lab) == 6, "the tail alone"
        assert lab.data("big") == BODY
        assert await lab.read("big") == BODY
        lab.fs.closed(inode)
        assert lab.fs.syncer.left().is_nothing
    assert not lab.staging_files()


async def test_a_small_file_is_one_put(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 10 * MIB)
        await lab.fs.commit(inode)
        assert (lab.store.calls["put"], lab.store.calls["create_multipart"]) == (1, 0)


async def test_close_waits_for_parts_under_way_and_sends_none_twice(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        with lab.store.hold("upload_part") as hold:
            await write(lab, inode, 0, len(BODY))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lab.fs.commit, inode)
                await wait_all_tasks_blocked()
                assert "big" not in lab.stored()
                hold.release()
        assert sent(lab) == 6
        assert lab.data("big") == BODY


@pytest.mark.parametrize("is_under_way", [False, True])
async def test_a_part_that_changes_after_it_was_sent_is_sent_again(
    lab: Lab, is_under_way: bool
) -> None:
    changed = BODY[:100] + b"changed" + BODY[107:]
    async with lab.mounted():
        inode = await begin(lab)
        with lab.store.hold("upload_part") as hold:
            if not is_under_way:
                hold.release()
            await write(lab, inode, 0, len(BODY))
            await write(lab, inode, 100, 107, changed)
        await lab.fs.commit(inode)
        assert lab.data("big") == changed
        assert sent(lab) == 7


@pytest.mark.parametrize("size", [0, 3 * MIB, 12 * MIB, 22 * MIB + 5])
async def test_a_file_that_is_cut_while_it_is_sent_is_whole(lab: Lab, size: int) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 26 * MIB)
        async with lab.fs.volume.locks.holding(("inode", inode)):
            lab.fs.stages.truncate(inode, size)
            lab.fs.stages.truncate(inode, size + 6 * MIB)
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY[:size] + bytes(6 * MIB)
        await lab.settle()
        assert await lab.store.list_multiparts("") == []


async def test_who_writes_all_over_the_file_is_not_followed(lab: Lab) -> None:
    body = bytearray(BODY)
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, len(BODY))
        for round_ in range(40):
            offset = (round_ % 5) * PART + 7
            body[offset : offset + 3] = b"abc"
            await write(lab, inode, offset, offset + 3, bytes(body))
        assert sent(lab) < 12
        await lab.fs.commit(inode)
        assert lab.data("big") == bytes(body)


async def test_the_next_worker_goes_on_with_the_parts_that_s3_has(lab: Lab) -> None:
    """One was changed after it was sent: S3's is of old bytes, and the next worker knows."""
    changed = BODY[:100] + b"changed" + BODY[107:]
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 26 * MIB)
        with lab.store.hold("upload_part"):
            await write(lab, inode, 100, 107, changed)
            before = sent(lab)
            lab.held = {inode}
    async with lab.mounted():
        lab.store.calls.clear()
        await write(lab, inode, 26 * MIB, len(BODY), changed)
        await lab.fs.commit(inode)
        assert lab.data("big") == changed
        assert lab.store.calls["create_multipart"] == 0
        assert sent(lab) == 2, "the changed one and the tail"
        assert before >= 5
    assert await lab.store.list_multiparts("") == []


async def test_a_part_that_a_dead_worker_sent_later_is_not_taken_for_the_right_one(
    lab: Lab,
) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 26 * MIB)
        lab.held = {inode}
    (upload,) = await lab.store.list_multiparts("")
    await lab.store.upload_part("big", upload.upload_id, 2, b"late" * (PART // 4))
    async with lab.mounted():
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY[: 26 * MIB]


async def test_an_upload_that_is_gone_from_s3_begins_again(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 20 * MIB)
        for upload in await lab.store.list_multiparts(""):
            await lab.store.abort_multipart(upload.key, upload.upload_id)
        await write(lab, inode, 20 * MIB, len(BODY))
        with pytest.MonkeyPatch.context():
            try:
                await lab.fs.commit(inode)
            except NotFound:
                await lab.settle()
        assert lab.data("big") == BODY
        await lab.settle()
        assert await lab.store.list_multiparts("") == []


async def test_close_reports_what_could_not_be_sent_and_keeps_it(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        lab.store.fail_next("upload_part", Unavailable("down"), times=99)
        await write(lab, inode, 0, len(BODY))
        with pytest.raises(Unavailable):
            await lab.fs.commit(inode)
        assert await lab.read("big") == BODY
        lab.store._failures.clear()
        await lab.settle()
        assert lab.data("big") == BODY


async def test_a_write_after_a_failed_close_is_in_what_is_sent_next(lab: Lab) -> None:
    changed = BODY[:100] + b"changed" + BODY[107:]
    async with lab.mounted(sync=False):
        inode = await begin(lab)
        await write(lab, inode, 0, len(BODY))
        lab.store.fail_next("complete_multipart", Unavailable("down"))
        with pytest.raises(Unavailable):
            await lab.fs.commit(inode)
        await write(lab, inode, 100, 107, changed)
        await lab.fs.commit(inode)
        assert lab.data("big") == changed


async def test_an_upload_completed_unseen_is_recognised_by_the_next_worker(lab: Lab) -> None:
    complete = lab.store.complete_multipart

    async def complete_and_die(*args: object, **options: object) -> None:
        await complete(*args, **options)  # type: ignore[arg-type] # the port's own
        raise Unavailable("no answer")

    async with lab.mounted(sync=False):
        inode = await begin(lab, exclusive=True)
        await write(lab, inode, 0, len(BODY))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lab.store, "complete_multipart", complete_and_die)
            with pytest.raises(Unavailable):
                await lab.fs.commit(inode)
    lab.store.calls.clear()
    async with lab.mounted():
        await lab.settle()
        assert lab.data("big") == BODY
        assert lab.fs.volume.journal.count_conflicts() == (0, 0)
        assert sent(lab) == 0
        await lab.settle()
        assert await lab.store.list_multiparts("") == []


async def test_a_file_renamed_while_it_is_sent_gets_its_new_name_alone(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 20 * MIB)
        await lab.rename("big", "moved")
        await write(lab, inode, 20 * MIB, len(BODY))
        await lab.fs.commit(inode)
        assert lab.stored() == ["moved"]
        assert lab.data("moved") == BODY
        await lab.settle()
        assert await lab.store.list_multiparts("") == []


async def test_a_file_renamed_while_its_lost_upload_is_begun_anew_is_whole(lab: Lab) -> None:
    """Whoever completes an upload has locked one key: it begins under that one."""
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, len(BODY))
    for upload in await lab.store.list_multiparts(""):
        await lab.store.abort_multipart(upload.key, upload.upload_id)
    async with lab.mounted():
        with lab.store.hold("list_parts") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lab.fs.commit, inode)
                await hold.arrived()
                await lab.rename("big", "moved")
                hold.release()
        await lab.settle()
        assert lab.stored() == ["moved"]
        assert lab.data("moved") == BODY
        assert await lab.read("moved") == BODY


async def test_a_file_removed_while_it_is_sent_leaves_nothing(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 20 * MIB)
        lab.held = {inode}
        await lab.unlink("big")
        await write(lab, inode, 20 * MIB, len(BODY))
        assert inode not in lab.fs.streams._streams, "others need not make room for it"
        assert await lab.read_inode(inode) == BODY
        lab.held = set()
        lab.fs.closed(inode)
        await lab.settle()
        assert lab.stored() == []
        assert await lab.store.list_multiparts("") == []
    assert not lab.staging_files()


async def test_who_loses_the_race_has_all_its_data_in_the_conflict_copy(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab, exclusive=True)
        await write(lab, inode, 0, len(BODY))
        lab.store.insert("big", b"theirs")
        with pytest.raises(PreconditionFailed):
            await lab.fs.commit(inode)
        assert lab.data("big") == b"theirs"
        row = lab.fs.volume.journal.conflict(inode)
        assert row is not None
        assert row.missing == 0
        await lab.fs.conflicts.restore(inode, "mine", partial=False)
        await lab.settle()
        assert lab.data("mine") == BODY
        assert await lab.store.list_multiparts("") == []


async def test_nothing_is_sent_ahead_while_uploads_are_paused(lab: Lab) -> None:
    async with lab.mounted():
        lab.fs.stages.backlog.is_paused = True
        inode = await begin(lab)
        await write(lab, inode, 0, len(BODY))
        assert sent(lab) == 0
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY


async def test_an_overwritten_file_is_uploaded_while_it_is_written(lab: Lab) -> None:
    lab.store.insert("big", b"old" * 1000)
    async with lab.mounted():
        inode = (await lab.get("big")).id
        lab.fs.stages.truncate(inode, 0)
        await write(lab, inode, 0, len(BODY))
        assert sent(lab) == 5
        assert lab.data("big") == b"old" * 1000
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY


@pytest.mark.parametrize("is_late", [False, True])
async def test_its_time_is_when_the_upload_began_unless_that_is_long_ago(
    lab: Lab, is_late: bool
) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 20 * MIB)
        begun_ns = lab.now_ns
        lab.later(TOLERANCE_S + 1 if is_late else 1)
        await write(lab, inode, 20 * MIB, len(BODY))
        written_ns = lab.now_ns
        await lab.fs.commit(inode)
        await lab.settle()
        shown = lab.fs.volume.node(inode).mtime_ns
        assert shown == (written_ns if is_late else begun_ns)
        told = attributes.decode(lab.store.objects["big"].head.metadata)
        assert told.mtime_ns == shown
        assert lab.store.calls["copy"] == int(is_late)


async def test_attributes_set_while_it_is_written_follow_in_one_copy(lab: Lab) -> None:
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, len(BODY))
        await lab.fs.attributes.change(inode, AttributeChange(mode=0o600, uid=7, mtime_ns=5 * NS))
        stage = lab.fs.stages.get(inode)
        assert stage is not None
        stage.mtime_ns = None
        await lab.fs.commit(inode)
        await lab.settle()
        assert lab.store.calls["copy"] == 1
        told = attributes.decode(lab.store.objects["big"].head.metadata)
        assert (told.mode, told.uid, told.mtime_ns) == (0o600, 7, 5 * NS)
        assert lab.data("big") == BODY


async def test_many_files_share_the_transfers(lab: Lab, autojump_clock: MockClock) -> None:
    lab.settings = dataclasses.replace(lab.settings, concurrency=3)
    async with lab.mounted():
        first, second = await begin(lab, "a"), await begin(lab, "b")
        with lab.store.hold("upload_part") as hold:
            await write(lab, first, 0, len(BODY))
            await write(lab, second, 0, len(BODY))
            assert hold.waiting == 3
        await wait_all_tasks_blocked()
        assert sent(lab) == 10
        await lab.fs.commit(first)
        await lab.fs.commit(second)
        assert lab.data("a") == lab.data("b") == BODY


def writeback(lab: Lab) -> None:
    lab.settings = dataclasses.replace(lab.settings, write_mode="writeback")


@pytest.mark.parametrize("goes_on", [True, False])
async def test_with_writeback_nothing_is_sent_for_a_moment(
    lab: Lab, autojump_clock: MockClock, goes_on: bool
) -> None:
    """The writer has the machine to itself. Then what is there is sent, though nobody writes on."""
    writeback(lab)
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 17 * MIB)
        await trio.sleep(HOLD_S / 2)
        await write(lab, inode, 17 * MIB, 22 * MIB)
        assert lab.store.calls["create_multipart"] == 0
        await trio.sleep(HOLD_S)
        await wait_all_tasks_blocked()
        assert sent(lab) == 4
        if goes_on:
            await write(lab, inode, 22 * MIB, 26 * MIB)
            assert sent(lab) == 5
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY[: 26 * MIB if goes_on else 22 * MIB]


async def test_with_writeback_what_is_renamed_at_once_is_not_sent_under_both_names(
    lab: Lab,
) -> None:
    """As rsync does."""
    writeback(lab)
    async with lab.mounted():
        inode = await begin(lab, "temporary")
        await write(lab, inode, 0, len(BODY))
        lab.fs.closed(inode)
        await lab.rename("temporary", "big")
        await lab.settle()
        assert lab.data("big") == BODY
        assert lab.store.calls["create_multipart"] == 1
        assert sent(lab) == 6


async def test_with_writeback_what_takes_much_of_the_disk_is_sent_at_once(lab: Lab) -> None:
    writeback(lab)
    lab.settings = dataclasses.replace(lab.settings, staging_size_bytes=40 * MIB)
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 20 * MIB)
        assert sent(lab) == 0
        await write(lab, inode, 20 * MIB, 26 * MIB)
        assert sent(lab) == 5
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY[: 26 * MIB]


async def test_with_writeback_what_is_held_stays_where_uploads_are_paused(
    lab: Lab, autojump_clock: MockClock
) -> None:
    writeback(lab)
    async with lab.mounted():
        inode = await begin(lab)
        await write(lab, inode, 0, 22 * MIB)
        lab.fs.stages.backlog.is_paused = True
        await trio.sleep(2 * HOLD_S)
        await write(lab, inode, 22 * MIB, len(BODY))
        assert sent(lab) == 0
        lab.fs.stages.backlog.is_paused = False
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY
