"""Partial uploads: what was changed is sent, the rest is copied by S3, and the result is the file."""

import errno
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from s3mgrd.errors import PreconditionFailed, Unavailable, Unsupported
from s3mgrd.fs.kernel.errnos import errno_of
from s3mgrd.fs.reading.segments import Superseded
from s3mgrd.fs.writing import filling, parts
from s3mgrd.fs.writing.parts import MIB, make_plan, part_size_for, single_put_bytes, to_fetch
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.staging import StagedFile
from s3mgrd.s3.port import (
    MAX_COPY_BYTES,
    MAX_OBJECT_BYTES,
    MAX_PARTS,
    MAX_PUT_BYTES,
    MIN_PART_BYTES,
    Condition,
    Part,
    Written,
)
from tests.unit.fs.conftest import Lab

PART = 5 * MIB
SIZE = 40 * MIB + 12345


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[StagingDirectory]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield StagingDirectory(fd)
    os.close(fd)


@pytest.fixture
def partial(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab that copies parts of objects of some MiB, as it does of larger ones otherwise."""
    monkeypatch.setattr(parts, "COPY_FROM", PART)
    monkeypatch.setattr(parts, "COPY_STEP", 2 * PART)
    return lab


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - content, not a secret


BODY = content(SIZE)


async def edit(lab: Lab, path: str, *writes: tuple[int, bytes], size: int | None = None) -> None:
    node = await lab.get(path)
    for offset, data in writes:
        await lab.fs.stages.write(node.id, offset, data)
    if size is not None:
        lab.fs.stages.truncate(node.id, size)
    await lab.fs.commit(node.id)


@given(
    base_size=st.integers(0, 60 * MIB),
    changes=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 70 * MIB), st.integers(1, 12 * MIB)),
            st.tuples(st.just("truncate"), st.integers(0, 70 * MIB), st.just(0)),
        ),
        max_size=6,
    ),
)
def test_every_byte_is_in_one_part_and_comes_from_where_it_is(
    base_size: int, changes: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryFile() as data, tempfile.TemporaryFile() as log:
        file = StagedFile(data.fileno(), log.fileno(), base_size)
        for what, offset, length in changes:
            if what == "write":
                file.record(offset, length)
            else:
                file.truncate(offset)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "COPY_FROM", PART)
            plan = make_plan(file, PART, may_copy=True)
            position = 0
            for piece in plan.pieces:
                assert piece.start == position < piece.stop
                position = piece.stop
                assert piece.stop - piece.start >= MIN_PART_BYTES or piece.stop == file.size
            assert position == file.size
            assert [p.number for p in plan.pieces] == list(range(1, len(plan.pieces) + 1))
            lacking = file.missing()
            for piece in plan.pieces:
                if piece.is_copied:
                    assert any(a <= piece.start and piece.stop <= b for a, b in lacking)
            for start, stop in to_fetch(file, plan):
                file.record(start, stop - start)
            sent = [p for p in plan.pieces if not p.is_copied]
            assert not any(a < p.stop and p.start < b for p in sent for a, b in file.missing())
            assert make_plan(file, PART, may_copy=True) == plan, "what was fetched changes nothing"


def test_the_largest_object_has_few_enough_parts(staging: StagingDirectory) -> None:
    file = staging.create(7, MAX_OBJECT_BYTES)
    file.record(MAX_OBJECT_BYTES // 2, 4096)
    plan = make_plan(file, part_size_for(MAX_OBJECT_BYTES, 8 * MIB), may_copy=True)
    assert len(plan.pieces) <= MAX_PARTS
    assert max(p.stop - p.start for p in plan.pieces if p.is_copied) <= MAX_COPY_BYTES
    fetched = sum(stop - start for start, stop in to_fetch(file, plan))
    assert fetched < plan.part_size
    file.close()


def test_a_small_change_of_ten_gibibytes_moves_less_than_twenty_mebibytes(
    staging: StagingDirectory,
) -> None:
    file = staging.create(7, 10 << 30)
    file.record((5 << 30) - 100, 4096)
    plan = make_plan(file, part_size_for(10 << 30, 8 * MIB), may_copy=True)
    sent = sum(p.stop - p.start for p in plan.pieces if not p.is_copied)
    assert sent <= 6 * MIB
    assert sum(stop - start for start, stop in to_fetch(file, plan)) + sent <= 12 * MIB
    assert len(plan.pieces) <= 40, "each copy is a request"
    file.close()


def test_changes_all_over_a_huge_object_need_no_more_parts_than_there_may_be(
    staging: StagingDirectory,
) -> None:
    file = staging.create(7, 1 << 40)
    for offset in range(0, 1 << 40, 64 * MIB):
        file.record(offset, 4096)
    plan = make_plan(file, part_size_for(1 << 40, 8 * MIB), may_copy=True)
    assert len(plan.pieces) <= MAX_PARTS
    file.close()


@pytest.mark.parametrize(
    ("writes", "size"),
    [
        ([(20 * MIB + 77, b"x" * 4096)], None),
        ([(SIZE, b"appended")], None),
        ([(0, b"first")], None),
        ([(PART - 2, b"over the edge")], None),
        ([(3 * MIB, b"a"), (30 * MIB, b"b")], None),
        ([(SIZE + 9 * MIB, b"after a hole")], None),
        ([], SIZE - 7 * MIB),
        ([], SIZE + 7 * MIB),
        ([(1, b"x")], 33 * MIB + 5),
    ],
)
async def test_the_object_is_the_file(
    partial: Lab, writes: list[tuple[int, bytes]], size: int | None
) -> None:
    partial.store.insert("big", BODY, metadata={"color": "red"}, content_type="image/png")
    expected = bytearray(BODY)
    for offset, data in writes:
        expected.extend(bytes(max(0, offset + len(data) - len(expected))))
        expected[offset : offset + len(data)] = data
    if size is not None:
        expected = expected[:size].ljust(size, b"\0")
    async with partial.mounted() as fs:
        await edit(partial, "big", *writes, size=size)
        assert partial.data("big") == bytes(expected)
        assert partial.store.calls["copy_part"] > 0
        assert fs.volume.store.stats.sent_bytes <= 4 * PART
        assert fs.volume.store.stats.received_bytes <= 4 * PART
        head = partial.store.objects["big"].head
        assert (head.metadata["color"], head.content_type) == ("red", "image/png")
        assert await partial.read("big") == bytes(expected)
        await edit(partial, "big", (11 * MIB, b"again"))
        expected[11 * MIB : 11 * MIB + 5] = b"again"
        assert partial.data("big") == bytes(expected)
        assert fs.syncer.left().is_nothing
    assert not partial.staging_files()


async def test_a_file_that_is_open_goes_on_from_the_new_version(partial: Lab) -> None:
    partial.store.insert("big", BODY)
    expected = bytearray(BODY)
    async with partial.mounted() as fs:
        node = await partial.get("big")
        fs.stages.opened(node.id)
        for step in range(3):
            offset = 7 * MIB * (step + 1)
            await fs.stages.write(node.id, offset, b"step")
            expected[offset : offset + 4] = b"step"
            await fs.commit(node.id)
            assert partial.data("big") == bytes(expected)
            assert await partial.read_inode(node.id, handle=step + 1) == bytes(expected)


async def test_what_was_not_changed_is_read_while_s3_puts_the_new_version_in_place_of_the_old(
    partial: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 has the new one, and no more the old one, before we hear of it."""
    partial.store.insert("big", BODY)
    done, heard = trio.Event(), trio.Event()
    complete = partial.store.complete_multipart
    found: list[bytes] = []

    async def complete_slowly(*arguments: Any, condition: Condition) -> Written:  # noqa: ANN401
        written = await complete(*arguments, condition=condition)
        done.set()
        await heard.wait()
        return written

    async def read() -> None:
        while not found:
            with suppress(Superseded):
                found.append(bytes(await partial.fs.read(node.id, 15 * MIB, 50, handle=1)))

    monkeypatch.setattr(partial.store, "complete_multipart", complete_slowly)
    async with partial.mounted() as fs, trio.open_nursery() as nursery:
        node = await partial.get("big")
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 30 * MIB, b"new")
        nursery.start_soon(fs.commit, node.id)
        await done.wait()
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        heard.set()
    assert found == [BODY[15 * MIB :][:50]]


async def test_s3_copies_while_what_has_to_be_sent_is_on_its_way_here(partial: Lab) -> None:
    """And of all that is sent the checksum is known, so that nothing is read again from the local disk."""
    partial.store.insert("big", BODY)
    async with partial.mounted() as fs:
        node = await partial.get("big")
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 20 * MIB + 100, b"new")
        async with trio.open_nursery() as nursery:
            with partial.store.hold("get_range", "big") as hold:
                nursery.start_soon(fs.commit, node.id)
                await hold.arrived()
                await wait_all_tasks_blocked()
                assert partial.store.calls["copy_part"] == 4
                assert partial.store.calls["upload_part"] == 0
        stage = fs.stages.get(node.id)
        assert stage is not None
        assert stage.file.entered.of(20 * MIB, 25 * MIB) is not None
    assert partial.data("big") == BODY[: 20 * MIB + 100] + b"new" + BODY[20 * MIB + 103 :]


async def test_another_writer_between_the_copies_is_noticed(partial: Lab) -> None:
    partial.store.insert("big", BODY)
    other = content(SIZE, 2)
    async with partial.mounted() as fs:
        node = await partial.get("big")
        await fs.stages.write(node.id, 9, b"mine")

        def replace(operation: str, _: str) -> None:
            if operation == "copy_part" and partial.store.calls["copy_part"] == 2:
                partial.store.insert("big", other)

        partial.store.before = replace
        with pytest.raises(PreconditionFailed) as caught:
            await fs.commit(node.id)
        assert errno_of(caught.value) == errno.ESTALE
        assert partial.data("big") == other


@pytest.mark.parametrize("renamed", [False, True])
async def test_a_store_that_heeds_no_condition_on_parts_mixes_nothing(
    partial: Lab, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    partial.store.insert("big", BODY)
    other = content(SIZE, 2)
    copy_part = partial.store.copy_part

    async def careless(*arguments: Any, if_source_match: str) -> Part:  # noqa: ANN401 - the port's own
        source = partial.store.objects[arguments[3]].head.etag
        part = await copy_part(*arguments, if_source_match=source)
        partial.store.insert(arguments[3], other)
        return part

    monkeypatch.setattr(partial.store, "copy_part", careless)
    async with partial.mounted(sync=False) as fs:
        node = await partial.get("big")
        if renamed:
            await partial.rename("big", "moved")
        await fs.stages.write(node.id, 9, b"mine")
        with pytest.raises(PreconditionFailed):
            await fs.commit(node.id)
        assert partial.data("big") == other
        assert "moved" not in partial.stored()


async def test_a_store_that_copies_no_parts_gets_the_whole_file(partial: Lab) -> None:
    partial.store.insert("big", BODY)
    async with partial.mounted():
        partial.store.fail_next("copy_part", Unsupported("no"), times=9)
        await edit(partial, "big", (9, b"mine"))
        assert partial.data("big") == BODY[:9] + b"mine" + BODY[13:]
        partial.store.calls.clear()
        await edit(partial, "big", (9, b"self"))
        assert partial.store.calls["copy_part"] == 0
        await partial.settle()
        assert await partial.store.list_multiparts("") == []


async def test_an_interrupted_partial_upload_is_taken_up(partial: Lab) -> None:
    partial.store.insert("big", BODY)
    async with partial.mounted() as fs:
        node = await partial.get("big")
        await fs.stages.write(node.id, 22 * MIB, b"mine")
        partial.store.fail_next("complete_multipart", Unavailable("down"))
        with pytest.raises(Unavailable):
            await fs.commit(node.id)
        uploads = await partial.store.list_multiparts("")
    partial.store.calls.clear()
    async with partial.mounted():
        await partial.settle()
        assert partial.data("big") == BODY[: 22 * MIB] + b"mine" + BODY[22 * MIB + 4 :]
        assert partial.store.calls["create_multipart"] == 0
        assert partial.store.calls["copy_part"] == partial.store.calls["upload_part"] == 0
        assert len(uploads) == 1
        assert await partial.store.list_multiparts("") == []


@pytest.mark.parametrize("again", [False, True])
async def test_what_was_not_changed_is_read_after_the_upload_was_completed_unseen(
    partial: Lab, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The version that it is a change of is gone from S3, and the worker died before it heard of the new one."""
    partial.store.insert("big", BODY)
    complete = partial.store.complete_multipart

    async def unseen(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        await complete(*args, **kwargs)
        raise Unavailable("no answer came")

    async with partial.mounted(sync=False):
        node = await partial.get("big")
        await partial.fs.stages.write(node.id, 5 * MIB, b"mine")
        with monkeypatch.context() as patch:
            patch.setattr(partial.store, "complete_multipart", unseen)
            with pytest.raises(Unavailable):
                await partial.fs.commit(node.id)
    expected = BODY[: 5 * MIB] + b"mine" + BODY[5 * MIB + 4 :]
    async with partial.mounted(sync=False) as fs:
        if again:
            await fs.stages.write(node.id, 6 * MIB, b"more")
            expected = expected[: 6 * MIB] + b"more" + expected[6 * MIB + 4 :]
        with pytest.raises(Superseded):
            await fs.read(node.id, 30 * MIB, 100, handle=1)
        assert await fs.read(node.id, 30 * MIB, 100, handle=1) == expected[30 * MIB :][:100]
        sent = partial.store.calls["upload_part"]
        await fs.commit(node.id)
        assert again == (partial.store.calls["upload_part"] > sent)
        assert partial.data("big") == expected


async def test_a_file_just_renamed_is_changed_where_its_object_still_is(partial: Lab) -> None:
    partial.store.insert("d/big", BODY)
    async with partial.mounted(sync=False) as fs:
        await partial.rename("d/big", "d/moved")
        await edit(partial, "d/moved", (5 * MIB, b"mine"))
        assert partial.data("d/moved") == BODY[: 5 * MIB] + b"mine" + BODY[5 * MIB + 4 :]
        assert partial.store.calls["copy_part"] > 0
        fs.syncer.wake()


def test_fetches_are_small_enough_for_the_memory() -> None:
    assert filling.FETCH_BYTES * 16 <= 32 * MIB


def test_no_more_goes_with_one_put_than_s3_takes() -> None:
    assert single_put_bytes(8 * MIB) == 16 * MIB
    assert single_put_bytes(3 << 30) == MAX_PUT_BYTES
