"""fsync() to the local disk: who waits at the same time shares a sync, and nobody is told too early."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.durability import LocalDisk
from s3mgrd.fs.filesystem import FileSystem
from tests.unit.fs.conftest import WHO, Lab, settings

WRITERS = 64


@pytest.fixture
def writeback(lab: Lab) -> Lab:
    lab.settings = settings(write_mode="writeback")
    return lab


async def written(lab: Lab, name: str) -> Inode:
    fs = lab.fs
    parent, _ = await lab._parent(name)
    node = await fs.tree.create(parent, name, WHO, lab.record, exclusive=False)
    fs.stages.take_up(node)
    await fs.stages.write(node.id, 0, name.encode())
    return node.id


def checkpoints(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count how often mount.db is synced."""
    made: list[None] = []
    original = fs.volume.database.checkpoint

    async def counted() -> None:
        made.append(None)
        await original()

    monkeypatch.setattr(fs.volume.database, "checkpoint", counted)
    return made


async def test_many_who_call_fsync_at_once_share_the_syncs(
    writeback: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of small files, the directory and mount.db are synced once or twice for all."""
    synced: dict[str, int] = {}

    def counted(fd: int, *, of: str) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        key = of if of == "directory" else name
        synced[key] = synced.get(key, 0) + 1

    monkeypatch.setattr("os.fdatasync", lambda fd: counted(fd, of="file"))
    monkeypatch.setattr("os.fsync", lambda fd: counted(fd, of="directory"))
    async with writeback.mounted(sync=False) as fs:
        made = checkpoints(fs, monkeypatch)
        inodes = [await written(writeback, f"f{number}") for number in range(WRITERS)]
        async with trio.open_nursery() as nursery:
            for inode in inodes:
                nursery.start_soon(fs.fsync, inode)
        assert fs.disk.syncs <= 2
        assert len(made) == fs.disk.syncs
        assert synced.pop("directory") == fs.disk.syncs
        assert synced == {"shared.0": 1}, "all of them are small"


async def test_who_asks_while_a_sync_runs_waits_for_the_next(
    writeback: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that runs may have begun before the data of who asks was there."""
    async with writeback.mounted(sync=False) as fs:
        began, goes_on = trio.Event(), trio.Event()

        async def slow() -> None:
            began.set()
            await goes_on.wait()

        monkeypatch.setattr(fs.volume.database, "checkpoint", slow)
        first, second = await written(writeback, "a"), await written(writeback, "b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.fsync, first)
            await began.wait()
            nursery.start_soon(fs.fsync, second)
            await trio.testing.wait_all_tasks_blocked()
            assert fs.disk.syncs == 0
            goes_on.set()
        assert fs.disk.syncs == 2


async def test_who_waited_with_one_that_failed_tries_for_itself(
    writeback: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writeback.mounted(sync=False) as fs:
        disk: LocalDisk = fs.disk
        failures = [OSError(5, "the disk is sick")]
        original = fs.volume.staging.sync

        def fail_once() -> None:
            if failures:
                raise failures.pop()
            original()

        monkeypatch.setattr(fs.volume.staging, "sync", fail_once)
        inodes = [await written(writeback, name) for name in ("a", "b")]
        outcomes: list[str] = []

        async def sync(inode: Inode) -> None:
            try:
                await fs.fsync(inode)
            except OSError as error:
                outcomes.append(str(error.errno))
            else:
                outcomes.append("synced")

        async with trio.open_nursery() as nursery:
            for inode in inodes:
                nursery.start_soon(sync, inode)
        assert sorted(outcomes) == ["5", "synced"]
        assert disk.syncs == 1
