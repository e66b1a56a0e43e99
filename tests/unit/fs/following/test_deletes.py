"""Removed names: few requests for many, and no lies about what S3 keeps."""

import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import Denied
from tests.unit.fs.conftest import Lab

FILES = 3000


async def test_many_files_are_deleted_by_few_requests(lab: Lab, autojump_clock: MockClock) -> None:
    for i in range(FILES):
        lab.store.insert(f"d/{i:04d}")
    async with lab.mounted():
        names = await lab.ls("d")
        before = lab.store.calls.total()
        for name in names:
            await lab.unlink(f"d/{name}")
        await lab.rmdir("d")
        await lab.settle()
        assert lab.stored() == []
        assert lab.store.calls.total() - before <= 8


async def test_what_s3_refuses_to_delete_comes_back(
    lab: Lab, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        lab.store.insert(f"d/{name}", name.encode())
    lab.store.kept["d/b"] = "AccessDenied"
    expired: list[tuple[int, str]] = []
    async with lab.mounted() as fs:

        async def expire(names: Sequence[tuple[int, str]]) -> None:
            expired.extend(names)

        fs.volume.expire_names = expire
        await lab.ls("d")
        for name in "abc":
            await lab.unlink(f"d/{name}")
        assert await lab.ls("d") == []
        await lab.settle()
        assert await lab.ls("d") == ["b"]
        assert await lab.read("d/b") == b"b"
        assert expired == [((await lab.get("d")).id, "b")]
        assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
            "d/b is not deleted and shown again: AccessDenied it stays"
        ]
        assert [(r.key, r.reason) for r in fs.syncer.deleter.refused()] == [
            ("d/b", "AccessDenied it stays")
        ]
        asked = lab.store.calls["delete_many"]
        await trio.sleep(3600)
        assert lab.store.calls["delete_many"] == asked
        lab.later(3600)
        assert fs.syncer.deleter.refused() == []
        lab.store.kept.clear()
        await lab.unlink("d/b")
        await lab.settle()
        assert "d/b" not in lab.stored()


async def test_a_removed_tree_comes_back_as_far_as_s3_keeps_it(
    lab: Lab, autojump_clock: MockClock
) -> None:
    for key in ("d/e/", "d/e/a", "d/e/b", "d/f"):
        lab.store.insert(key)
    lab.store.kept["d/e/a"] = "AccessDenied"
    async with lab.mounted():
        for name in ("d/e/a", "d/e/b", "d/f"):
            await lab.unlink(name)
        await lab.rmdir("d/e")
        await lab.rmdir("d")
        assert await lab.ls() == []
        await lab.settle()
        assert await lab.ls() == ["d/"]
        assert await lab.ls("d/e") == ["a"]


async def test_what_fails_for_a_while_is_deleted_later(lab: Lab, autojump_clock: MockClock) -> None:
    for name in "abc":
        lab.store.insert(name)
    lab.store.kept["b"] = "SlowDown"
    async with lab.mounted() as fs:
        for name in "abc":
            await lab.unlink(name)
        await lab.settle()
        assert (lab.stored(), await lab.ls()) == (["b"], [])
        assert "1 of 3 objects were not deleted; b: SlowDown" in fs.syncer.errors()[0]
        lab.store.kept.clear()
        await trio.sleep(10)
        assert lab.stored() == []
        assert fs.syncer.errors() == []


async def test_a_batch_that_is_refused_as_a_whole_comes_back(
    lab: Lab, autojump_clock: MockClock
) -> None:
    for name in "ab":
        lab.store.insert(name)
    lab.store.fail_next("delete_many", Denied("nothing may be deleted here"))
    async with lab.mounted() as fs:
        await lab.unlink("a")
        await lab.unlink("b")
        await lab.settle()
        assert await lab.ls() == ["a", "b"]
        assert fs.syncer.left().is_nothing


async def test_the_old_name_of_a_directory_comes_back_where_s3_keeps_the_sources(
    lab: Lab, autojump_clock: MockClock
) -> None:
    for name in "ab":
        lab.store.insert(f"d/{name}", name.encode())
    lab.store.kept["d/a"] = "AccessDenied"
    async with lab.mounted():
        await lab.rename("d", "e")
        await lab.settle()
        assert await lab.ls() == ["d/", "e/"]
        assert (await lab.ls("d"), await lab.ls("e")) == (["a"], ["a", "b"])


async def test_what_came_while_a_batch_waited_is_deleted_as_the_version_it_is(lab: Lab) -> None:
    """A key may be written and removed again between the choice of a batch and its turn: the condition must be the latest."""
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        journal = fs.volume.journal
        for key in ("a", "held"):
            first = lab.store.insert(key, b"first").etag
            journal.add_delete(key, etag=first, holder=None, now_ns=lab.now_ns)
        async with fs.volume.locks.holding(("key", "a")):
            nursery.start_soon(fs.syncer.deleter.delete, journal.deletes())
            await trio.testing.wait_all_tasks_blocked()
            for key, holder in (("a", None), ("held", 7)):
                second = lab.store.insert(key, b"second").etag
                journal.add_delete(key, etag=second, holder=holder, now_ns=lab.now_ns)
        await trio.testing.wait_all_tasks_blocked()
        assert lab.stored() == ["held"]
        assert [row.key for row in journal.held_deletes()] == ["held"]
