"""Large files on a small disk: what has no room waits in S3, and is the file's as if it lay here."""

import dataclasses
import errno
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import PreconditionFailed, Unavailable, Unsupported
from s3mgrd.fs.writing import streaming
from s3mgrd.fs.writing.parts import MIB
from s3mgrd.journal.extents import Extents
from tests.unit.fs.conftest import Lab
from tests.unit.fs.writing.test_streaming import begin

SIZE = 61 * MIB + 77
BODY = random.Random(6).randbytes(SIZE)  # noqa: S311 - content, not a secret
LIMIT = 20 * MIB
"""Four parts: the least that is kept here."""
SLACK = 2 * MIB


@pytest.fixture
def small(lab: Lab) -> Lab:
    """A lab with little room for what is being written."""
    lab.settings = dataclasses.replace(lab.settings, staging_size_bytes=LIMIT)
    return lab


async def write(lab: Lab, inode: Inode, start: int, stop: int, body: bytes = BODY) -> int:
    """Write a range as the kernel does; returns the most that the staging file took meanwhile."""
    most = 0
    for offset in range(start, stop, MIB):
        await lab.fs.write(inode, offset, body[offset : min(offset + MIB, stop)])
        most = max(most, taken(lab, inode))
    await wait_all_tasks_blocked()
    return most


def taken(lab: Lab, inode: int) -> int:
    """Return what a staging file takes on the disk."""
    return os.stat(lab.directory / "staging" / str(inode)).st_blocks * 512


def parked(lab: Lab) -> list[str]:
    return [key for key in lab.stored() if key.startswith(".s3mgr-")]


def forget_database(directory: Path) -> None:
    for file in directory.glob("mount.db*"):
        file.unlink()


async def clean(lab: Lab) -> None:
    """Check that nothing is left in S3, or here, but files."""
    await lab.settle()
    assert parked(lab) == []
    assert await lab.store.list_multiparts("") == []
    assert list(lab.fs.volume.database.execute("SELECT * FROM parked")) == []
    assert list(lab.fs.volume.database.execute("SELECT * FROM parts")) == []
    assert lab.fs.syncer.left().is_nothing


async def test_a_file_larger_than_the_room_for_it_is_written(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        assert await write(small, inode, 0, SIZE) <= LIMIT + SLACK
        assert len(parked(small)) >= 8
        assert await small.ls() == ["big"], "what is parked is nobody's file"
        assert await small.read_inode(inode) == BODY
        small.store.stats.sent_bytes = 0
        await small.fs.commit(inode)
        assert small.store.stats.sent_bytes <= 6 * MIB, "the tail alone"
        assert small.data("big") == BODY
        assert taken(small, inode) == 0
        assert await small.read_inode(inode) == BODY
        await clean(small)


async def test_most_of_it_is_sent_once(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        await small.fs.commit(inode)
        assert small.store.stats.sent_bytes <= SIZE + 10 * MIB


@pytest.mark.parametrize("offset", [7, 22 * MIB, 24 * MIB - 3, 40 * MIB])
async def test_what_is_parked_may_be_written_over(small: Lab, offset: int) -> None:
    body = BODY[:offset] + b"changed" + BODY[offset + 7 :]
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        await write(small, inode, offset, offset + 7, body)
        assert await small.read_inode(inode) == body
        await small.fs.commit(inode)
        assert small.data("big") == body
        await write(small, inode, SIZE, SIZE + 5, body + b"after")
        await small.fs.commit(inode)
        assert small.data("big") == body + b"after"
        await clean(small)


@pytest.mark.parametrize("size", [0, 9 * MIB, 23 * MIB + 1, 40 * MIB])
async def test_what_is_parked_may_be_cut(small: Lab, size: int) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        small.fs.stages.truncate(inode, size)
        small.fs.stages.truncate(inode, size + 3 * MIB)
        expected = BODY[:size] + bytes(3 * MIB)
        assert await small.read_inode(inode) == expected
        await small.fs.commit(inode)
        assert small.data("big") == expected
        await clean(small)


async def test_all_of_it_written_twice_is_the_second(small: Lab) -> None:
    body = BODY[::-1]
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        await write(small, inode, 0, SIZE, body)
        assert await small.read_inode(inode) == body
        await small.fs.commit(inode)
        assert small.data("big") == body
        await clean(small)


async def test_the_next_worker_has_what_is_parked(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, 45 * MIB)
        small.held = {inode}
    async with small.mounted():
        assert await small.read_inode(inode) == BODY[: 45 * MIB]
        assert await write(small, inode, 45 * MIB, SIZE) <= LIMIT + SLACK
        await small.fs.commit(inode)
        assert small.data("big") == BODY
        await clean(small)


async def test_a_mount_after_a_crash_of_everything_uploads_what_is_parked(small: Lab) -> None:
    async with small.mounted():
        await write(small, await begin(small, "big"), 0, SIZE)
    async with small.mounted("second"):
        await small.settle()
        assert small.data("big") == BODY
        await clean(small)


async def test_what_was_being_parked_when_the_worker_died_is_deleted(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, 13 * MIB)
        with small.store.hold("copy_part") as hold:
            await write(small, inode, 13 * MIB, 20 * MIB)
            assert hold.waiting
            assert parked(small)
            small.held = {inode}
    async with small.mounted():
        assert await small.read_inode(inode) == BODY[: 20 * MIB]
        assert await small.ls() == ["big"]
        await small.fs.commit(inode)
        assert small.data("big") == BODY[: 20 * MIB]
        await clean(small)


async def test_it_may_be_renamed(small: Lab) -> None:
    async with small.mounted():
        await small.mkdir("d")
        await small.settle()
        inode = await begin(small, "d/big")
        await write(small, inode, 0, SIZE)
        await small.rename("d/big", "d/other")
        await small.rename("d", "e")
        await small.fs.commit(inode)
        assert small.data("e/other") == BODY
        await clean(small)
        assert small.stored() == ["e/", "e/other"]


async def test_room_is_made_again_after_a_close_that_failed(small: Lab) -> None:
    async with small.mounted(sync=False):
        inode = await begin(small, "big")
        await write(small, inode, 0, 40 * MIB)
        await small.rename("big", "other")
        small.store.fail_next("create_multipart", Unavailable("away"))
        with pytest.raises(Unavailable):
            await small.fs.commit(inode)
        assert await write(small, inode, 40 * MIB, SIZE) <= LIMIT + SLACK
        await small.fs.commit(inode)
        assert small.data("other") == BODY


async def test_it_may_be_removed_and_read_by_who_has_it_open(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        small.held = {inode}
        await small.unlink("big")
        await small.settle()
        assert await small.read_inode(inode) == BODY
        small.held = set()
        small.fs.closed(inode)
        await clean(small)
        assert small.stored() == []


async def test_a_conflict_copy_is_complete_and_may_be_restored(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big", exclusive=True)
        await write(small, inode, 0, SIZE)
        small.store.insert("big", b"theirs")
        with pytest.raises(PreconditionFailed):
            await small.fs.commit(inode)
        await small.settle()
        assert await small.read_inode(inode) == BODY
        small.fs.closed(inode)
    async with small.mounted("second"):
        row = small.fs.volume.journal.conflict(inode)
        assert row is not None
        assert row.missing == 0
        assert small.fs.syncer.left().is_nothing
        await small.fs.conflicts.restore(inode, "mine", partial=False)
        await small.settle()
        assert small.data("mine") == BODY
        assert small.data("big") == b"theirs"
        await clean(small)


async def test_a_conflict_copy_that_is_discarded_leaves_nothing(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big", exclusive=True)
        await write(small, inode, 0, SIZE)
        small.store.insert("big", b"theirs")
        with pytest.raises(PreconditionFailed):
            await small.fs.commit(inode)
        await small.fs.conflicts.discard(inode)
        await clean(small)
        assert small.stored() == ["big"]


async def test_everything_discarded_leaves_nothing(small: Lab) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        small.fs.discard()
        await clean(small)
        assert small.stored() == []


async def test_what_is_parked_is_found_without_mount_db(small: Lab) -> None:
    async with small.mounted():
        await write(small, await begin(small, "big"), 0, SIZE)
    forget_database(small.directory)
    async with small.mounted("second", is_database_lost=True):
        assert await small.ls() == [], "what is parked is nobody's file"
        (row,) = small.fs.volume.journal.conflicts(after=0, limit=9)
        assert (row.reason, row.missing) == ("recovered", 0)
        await small.fs.conflicts.restore(row.inode, "saved", partial=False)
        await small.settle()
        assert small.data("saved") == BODY
        parts = small.fs.volume.database.execute("SELECT count(*) FROM parked").fetchone()
        assert parts == (0,)


async def test_writers_wait_for_room(small: Lab, autojump_clock: MockClock) -> None:
    async with small.mounted():
        inode = await begin(small, "big")
        with small.store.hold("put") as hold:
            with trio.move_on_after(60) as scope:
                await write(small, inode, 0, SIZE)
            assert scope.cancelled_caught
            assert taken(small, inode) <= LIMIT + SLACK
            hold.release()
        await write(small, inode, 0, SIZE)
        await small.fs.commit(inode)
        assert small.data("big") == BODY


@pytest.mark.parametrize("write_mode", ["close", "writeback"])
async def test_who_cannot_get_room_because_s3_is_away_hears_of_it_or_waits(
    small: Lab, write_mode: str, autojump_clock: MockClock
) -> None:
    small.settings = dataclasses.replace(small.settings, write_mode=write_mode)
    async with small.mounted():
        inode = await begin(small, "big")
        small.store.fail_next("put", Unavailable("down"), times=12)
        if write_mode == "close":
            with pytest.raises(Unavailable):
                await write(small, inode, 0, SIZE)
            small.store._failures.clear()
            await trio.sleep(streaming.REST_S)
        await write(small, inode, 0, SIZE)
        assert taken(small, inode) <= LIMIT + SLACK
        await small.fs.commit(inode)
        assert small.data("big") == BODY


async def test_a_store_that_copies_no_parts_needs_the_disk(small: Lab) -> None:
    async with small.mounted():
        small.store.fail_next("copy_part", Unsupported("no"), times=99)
        inode = await begin(small, "big")
        await write(small, inode, 0, SIZE)
        assert taken(small, inode) > LIMIT
        await small.fs.commit(inode)
        assert small.data("big") == BODY
        await clean(small)


async def test_a_full_disk_is_relieved(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is far away; the disk is not."""
    async with lab.mounted():
        inode = await begin(lab, "big")
        stage = lab.fs.stages.get(inode)
        assert stage is not None
        real = stage.file.put

        def put_if_there_is_room(offset: int, data: bytes | memoryview) -> None:
            if taken(lab, inode) + len(data) > 30 * MIB:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(offset, data)

        monkeypatch.setattr(stage.file, "put", put_if_there_is_room)
        await write(lab, inode, 0, SIZE)
        await lab.fs.commit(inode)
        assert lab.data("big") == BODY
        await clean(lab)


async def test_a_full_disk_of_which_nothing_can_be_freed_refuses_the_write(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.mounted():
        inode = await begin(lab, "small")
        stage = lab.fs.stages.get(inode)
        assert stage is not None

        def refuse(offset: int, data: bytes | memoryview) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(stage.file, "put", refuse)
        with pytest.raises(OSError, match="No space left"):
            await lab.fs.write(inode, 0, b"x")


async def test_several_files_share_the_room(small: Lab) -> None:
    async with small.mounted():
        first, second = await begin(small, "a"), await begin(small, "b")
        most = 0
        for offset in range(0, SIZE, MIB):
            for inode in (first, second):
                await small.fs.write(inode, offset, BODY[offset : offset + MIB])
            most = max(most, taken(small, first) + taken(small, second))
        assert most <= LIMIT + 2 * SLACK
        for inode in (first, second):
            await small.fs.commit(inode)
        assert small.data("a") == small.data("b") == BODY
        await clean(small)


def test_ranges_may_be_taken_out() -> None:
    rng = random.Random(3)  # noqa: S311 - no secret
    extents, here = Extents(), set[int]()
    for _ in range(3000):
        start = rng.randrange(60)
        stop = start + rng.randrange(12)
        if rng.random() < 0.5:
            extents.add(start, stop)
            here |= set(range(start, stop))
        else:
            extents.remove(start, stop)
            here -= set(range(start, stop))
        assert {n for a, b in extents for n in range(a, b)} == here
        ranges = list(extents)
        assert all(a < b for a, b in ranges)
        assert all(one[1] < two[0] for one, two in pairwise(ranges))
