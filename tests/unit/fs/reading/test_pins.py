"""Pins: what is at their paths is in the cache and stays there, as far as there is room, whatever happens meanwhile."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mgrd.cache.blocks import BlockCache, open_block_cache
from s3mgrd.errors import Conflict, NotFound, Unavailable
from s3mgrd.fs.reading.warming import Warming
from tests.unit.fs.conftest import Lab

MIB = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A mount whose threads no clock of a test sees."""
    return Lab(tmp_path)


@asynccontextmanager
async def cached(lab: Lab, limit_bytes: int = 64 * MIB) -> AsyncIterator[BlockCache]:
    blocks = lab.blocks = open_block_cache(lab.directory, owner="me", limit_bytes=limit_bytes)
    assert blocks is not None
    try:
        async with lab.mounted():
            yield blocks
    finally:
        blocks.close()


async def cached_bytes(lab: Lab, blocks: BlockCache, path: str) -> int:
    return blocks.stored_bytes((await lab.get(path)).id)


async def is_pinned(lab: Lab, blocks: BlockCache, path: str) -> bool:
    node = await lab.get(path)
    return blocks.is_pinned(node.id, node.etag or "")


async def test_the_version_before_makes_room_where_both_do_not_fit(lab: Lab) -> None:
    lab.store.insert("a", os.urandom(2 * MIB))
    async with cached(lab, 3 * MIB) as blocks:
        await lab.fs.pins.pin(["a"], Warming())
        before = await lab.get("a")
        lab.store.insert("a", os.urandom(2 * MIB))
        lab.later(60)
        await lab.fs.pins.follow()
        assert await cached_bytes(lab, blocks, "a") == 2 * MIB == blocks.pinned_bytes
        assert blocks.stored_bytes(before.id) <= MIB


async def test_what_has_no_room_is_not_fetched_again_and_again(lab: Lab) -> None:
    lab.store.insert("d/1", os.urandom(MIB))
    async with cached(lab, 2 * MIB) as blocks:
        await lab.fs.pins.pin(["d"], Warming())
        for number in (2, 3, 4):
            lab.store.insert(f"d/{number}", os.urandom(MIB))
        lab.later(60)
        with pytest.raises(Conflict, match="no room left"):
            await lab.fs.pins.follow()
        assert blocks.pinned_bytes == 2 * MIB
        fetched = lab.store.calls["get_range"]
        with pytest.raises(Conflict, match="no room left"):
            await lab.fs.pins.follow()
        assert lab.store.calls["get_range"] == fetched
        with pytest.raises(Conflict, match="do not fit"):
            await lab.fs.pins.pin(["d"], Warming())


async def test_a_pass_does_not_undo_what_is_pinned_meanwhile(lab: Lab) -> None:
    for key in ("a", "b"):
        lab.store.insert(key, os.urandom(MIB))
    async with cached(lab) as blocks, trio.open_nursery() as nursery:
        await lab.fs.pins.pin(["a"], Warming())
        await blocks.evict_inode((await lab.get("a")).id)
        lab.store.insert("a", os.urandom(MIB))
        lab.later(60)
        with lab.store.hold("get_range") as hold:
            nursery.start_soon(lab.fs.pins.follow)
            await hold.arrived()
            nursery.start_soon(lab.fs.pins.pin, ["b"], Warming())
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert await is_pinned(lab, blocks, "b")


async def test_unpinning_lets_go_of_what_no_other_pin_means(lab: Lab) -> None:
    for key in ("d/1", "d/e/2", "x"):
        lab.store.insert(key, os.urandom(MIB))
    async with cached(lab) as blocks:
        await lab.fs.pins.pin(["d", "d/e", "x"], Warming())
        for path, reason in (("d/1", "pinned with 'd'"), ("y", "is not pinned")):
            with pytest.raises(Conflict, match=reason):
                await lab.fs.pins.unpin(path)
        assert await lab.fs.pins.unpin("d/e") == ["d/e"]
        assert await is_pinned(lab, blocks, "d/e/2")
        assert await lab.fs.pins.unpin("d") == ["d"]
        assert not await is_pinned(lab, blocks, "d/e/2")
        assert await is_pinned(lab, blocks, "x")
        assert await lab.fs.pins.unpin("") == ["x"]
        assert blocks.pinned_bytes == 0
        assert await cached_bytes(lab, blocks, "x") == MIB, "it goes when its turn comes"


async def test_pins_are_remembered_and_nothing_is_pinned_that_is_not_there(lab: Lab) -> None:
    lab.store.insert("a", os.urandom(MIB))
    async with cached(lab):
        with pytest.raises(NotFound):
            await lab.fs.pins.pin(["a", "absent"], Warming())
        assert lab.fs.pins.paths == []
        await lab.fs.pins.pin(["a"], Warming())
    async with cached(lab) as blocks:
        assert lab.fs.pins.paths == ["a"]
        assert blocks.pinned_bytes == MIB
        lab.store.remove("a")
        lab.later(60)
        await lab.fs.pins.follow()
        assert blocks.pinned_bytes == 0
        assert lab.fs.pins.paths == ["a"]


async def test_a_file_that_changes_meanwhile_is_left_out_and_counted_once(lab: Lab) -> None:
    lab.store.insert("a", os.urandom(9 * MIB))
    lab.store.insert("b", os.urandom(MIB))
    async with cached(lab) as blocks:
        plan = await lab.fs.warmer.plan(["a", "b"])
        lab.store.insert("a", os.urandom(9 * MIB))
        warming = Warming()
        await lab.fs.warmer.fetch(plan, warming)
        assert warming.skipped == 1
        assert await cached_bytes(lab, blocks, "b") == MIB


async def test_what_was_pinned_of_another_bucket_is_let_go(lab: Lab) -> None:
    lab.store.insert("a", os.urandom(MIB))
    async with cached(lab):
        await lab.fs.pins.pin(["a"], Warming())
    lab.bucket = "another"
    async with cached(lab) as blocks, trio.open_nursery() as nursery:
        assert lab.fs.pins.paths == []
        assert blocks.pinned_bytes == MIB
        nursery.start_soon(lab.fs.pins.run)
        await trio.testing.wait_all_tasks_blocked()
        assert blocks.pinned_bytes == 0
        nursery.cancel_scope.cancel()


async def test_what_s3_did_not_deliver_is_fetched_by_a_later_pass(lab: Lab) -> None:
    lab.store.insert("a", os.urandom(MIB))
    async with cached(lab) as blocks, trio.open_nursery() as nursery:
        lab.store.fail_next("get_range", Unavailable("down"))
        with pytest.raises(Unavailable):
            await lab.fs.pins.pin(["a"], Warming())
        assert lab.fs.pins.paths == ["a"]
        nursery.start_soon(lab.fs.pins.run)
        with trio.fail_after(10):
            while blocks.pinned_bytes < MIB:
                await trio.testing.wait_all_tasks_blocked()
        assert lab.fs.pins.problem == ""
        nursery.cancel_scope.cancel()
