"""Staged data whose mount.db is lost: saved as conflict copies, complete where S3 still has the rest."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from s3mgrd.errors import Unavailable
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.staging import Description
from s3mgrd.journal.tables import ConflictRow
from tests.unit.fs.conftest import Lab

MIB = 1 << 20


@asynccontextmanager
async def after_losing_the_database(
    lab: Lab, connection: str = "first"
) -> AsyncIterator[FileSystem]:
    """Mount again without what mount.db said."""
    for path in lab.directory.glob("mount.db*"):
        path.unlink()
    async with lab.mounted(connection, is_database_lost=True) as fs:
        await fs.completer.run()
        yield fs


def copies(fs: FileSystem) -> list[ConflictRow]:
    return fs.volume.journal.conflicts(after=0, limit=100)


@pytest.mark.parametrize("connection", ["first", "second"])
async def test_new_data_is_saved_in_full(lab: Lab, connection: str) -> None:
    async with lab.mounted():
        await lab.mkdir("d")
        await lab.write("d/new", b"all of it", close=False)
    async with after_losing_the_database(lab, connection) as fs:
        (copy,) = copies(fs)
        assert (copy.path, copy.reason, copy.missing) == ("d/new", "recovered", 0)
        await fs.conflicts.restore(copy.inode, "again", partial=False)
        assert await lab.read("again") == b"all of it"
        await lab.settle()
    assert lab.data("again") == b"all of it"
    async with lab.mounted(connection) as fs:
        assert not copies(fs)
        assert not lab.staging_files()


async def test_a_change_is_completed_from_the_version_that_it_changed(lab: Lab) -> None:
    old = bytes(i % 251 for i in range(20 * MIB))
    lab.store.insert("large", old)
    async with lab.mounted():
        node = await lab.get("large")
        await lab.fs.stages.write(node.id, 9 * MIB, b"changed")
        lab.fs.stages.truncate(node.id, 19 * MIB)
    async with after_losing_the_database(lab) as fs:
        (copy,) = copies(fs)
        assert copy.missing == 0
        await fs.conflicts.restore(copy.inode, "copy", partial=False)
        expected = old[: 9 * MIB] + b"changed" + old[9 * MIB + 7 : 19 * MIB]
        assert await lab.read("copy") == expected
        assert await lab.read("large") == old


async def test_what_nobody_has_any_more_is_said_to_be_missing(lab: Lab) -> None:
    lab.store.insert("file", b"0123456789")
    async with lab.mounted():
        node = await lab.get("file")
        await lab.fs.stages.write(node.id, 2, b"AB")
    lab.store.insert("file", b"another")
    async with after_losing_the_database(lab) as fs:
        (copy,) = copies(fs)
        assert copy.missing == 8
        await fs.conflicts.restore(copy.inode, "part", partial=True)
        assert await lab.read("part") == b"\0\0AB\0\0\0\0\0\0"


async def test_a_copy_that_s3_did_not_let_complete_is_completed_later(lab: Lab) -> None:
    lab.store.insert("file", b"0123456789")
    async with lab.mounted():
        node = await lab.get("file")
        await lab.fs.stages.write(node.id, 2, b"AB")
    lab.store.fail_next("get_range", Unavailable("the network is gone"))
    async with after_losing_the_database(lab) as fs:
        assert copies(fs)[0].missing == 8
    async with lab.mounted() as fs:
        await fs.completer.run()
        assert copies(fs)[0].missing == 0


async def test_what_s3_has_or_nobody_wants_is_not_saved(lab: Lab) -> None:
    async with lab.mounted():
        lab.fs.stages.opened((await lab.write("uploaded", b"x")).id)
        await lab.write("uploaded", b"xx")  # and still open
        lab.held.add((await lab.write("removed", b"y", close=False)).id)
        await lab.unlink("removed")
        await lab.write("discarded", b"z", close=False)
        lab.fs.volume.staging.describe((await lab.get("discarded")).id, None)
        assert len(lab.staging_files()) == 4
    async with after_losing_the_database(lab) as fs:
        assert not copies(fs)
        assert not lab.staging_files()


async def test_the_name_that_a_file_was_renamed_to_is_known(lab: Lab) -> None:
    async with lab.mounted():
        await lab.write("temporary", b"x", close=False)
        await lab.rename("temporary", "final")
    async with after_losing_the_database(lab) as fs:
        assert [copy.path for copy in copies(fs)] == ["final"]


async def test_a_file_changed_again_after_its_upload_is_saved(lab: Lab) -> None:
    async with lab.mounted():
        node = await lab.write("file", b"first version")
        await lab.fs.stages.write(node.id, 0, b"SECOND")
    async with after_losing_the_database(lab) as fs:
        (copy,) = copies(fs)
        assert copy.missing == 0
        await fs.conflicts.restore(copy.inode, "x", partial=False)
        assert await lab.read("x") == b"SECONDversion"


async def test_an_open_file_s_number_leads_nowhere_afterwards(lab: Lab) -> None:
    """The kernel may hold it: it answers ESTALE, and what is written through it destroys no copy."""
    async with lab.mounted():
        node = await lab.write("new", b"precious", close=False)
        lab.held.add(node.id)
    async with after_losing_the_database(lab) as fs:
        with pytest.raises(OSError, match="Stale"):
            await fs.stages.write(node.id, 0, b"more")
        with pytest.raises(OSError, match="Stale"):
            await fs.read(node.id, 0, 10, handle=1)
        (copy,) = copies(fs)
        assert copy.inode != node.id
        await fs.conflicts.restore(copy.inode, "x", partial=False)
        assert await lab.read("x") == b"precious"


async def test_data_from_a_version_that_left_no_note_is_saved(lab: Lab) -> None:
    """Its path is not known, nor whether S3 has it."""
    (lab.directory / "staging").mkdir()
    _stage(lab.directory / "staging", 7, b"old data")
    async with after_losing_the_database(lab) as fs:
        assert [(c.path, c.missing) for c in copies(fs)] == [("inode-7", 0)]


async def test_data_without_its_log_is_saved_whole(lab: Lab) -> None:
    (lab.directory / "staging").mkdir()
    (lab.directory / "staging" / "9").write_bytes(b"bytes")
    async with after_losing_the_database(lab) as fs:
        (copy,) = copies(fs)
        await fs.conflicts.restore(copy.inode, "x", partial=False)
        assert await lab.read("x") == b"bytes"


async def test_the_end_of_the_journal_may_be_lost_alone(lab: Lab) -> None:
    """As after a loss of power: a sound but older database, and staging files that it does not know."""
    async with lab.mounted():
        await lab.write("known", b"x")
    _stage(lab.directory / "staging", 7777, b"data", Description(
        path="late", base_key=None, base_etag=None, base_size=0, condition="absent"
    ))  # fmt: skip
    _stage(lab.directory / "staging", 7778, b"")  # what a crash in the middle of create() leaves
    async with lab.mounted() as fs:
        assert [c.path for c in copies(fs)] == ["late"]
        assert await lab.ls() == ["known"]
        assert "7778" not in lab.staging_files()


@pytest.mark.parametrize("cut", range(0, 200, 7))
async def test_a_log_may_end_anywhere(tmp_path: Path, cut: int) -> None:
    """What was acknowledged before is there; half a note is none."""
    _stage(tmp_path, 5, b"data", Description(
        path="p", base_key="k", base_etag="e", base_size=100, condition="match"
    ))  # fmt: skip
    log = tmp_path / "5.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:cut])
    staging = StagingDirectory(os.open(tmp_path, os.O_RDONLY))
    file = staging.open(5, 100)
    if cut < len(whole) - 16 - 15:
        assert file.description is None
    file.record(50, 10)
    file.close()
    again = staging.open(5, 100)
    assert (50, 60) in list(again.extents)
    assert again.description == file.description
    again.close()
    staging.close()


def _stage(
    directory: Path, number: int, data: bytes, description: Description | None = None
) -> None:
    fd = os.open(directory, os.O_RDONLY)
    staging = StagingDirectory(fd)
    file = staging.create(number, 0)
    if description is not None:
        file.describe(description)
    if data:
        file.put(0, data)
        file.record(0, len(data))
    file.close()
    staging.close()
