"""Uploads that meet the rename of a directory between two of its steps."""

from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import Unavailable
from s3mgrd.fs.changing.tree import RENAME_EXCHANGE
from s3mgrd.fs.following.move import Mover
from tests.unit.fs.conftest import Lab, settings
from tests.unit.fs.following.test_moves import contents, fill


@pytest.mark.parametrize("fails", [False, True])
async def test_a_file_that_is_sent_again_as_its_directorys_rename_ends_leaves_nothing_behind(
    lab: Lab, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """After the last look at the old place, where its copy was still good, and before the switch."""
    fill(lab, "d/a", "d/b")
    really = Mover._look
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        node = await lab.get("d/a")
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 0, b"D")
        with lab.store.hold("put", "e/a") as puts:

            async def look(mover: Mover, look: Any, *, is_first: bool) -> None:  # noqa: ANN401 - passed on
                await really(mover, look, is_first=is_first)
                if not is_first:
                    nursery.start_soon(commit)
                    await puts.arrived()

            async def commit() -> None:
                with suppress(Unavailable):
                    await fs.commit(node.id)

            monkeypatch.setattr(Mover, "_look", look)
            await lab.rename("d", "e")
            (moved,) = fs.volume.moving.values()
            await moved.wait()
            assert puts.waiting
            if fails:
                lab.store.fail_next("put", Unavailable("no"))
        await lab.settle()
        assert contents(lab) == {"e/a": b"D/a", "e/b": b"d/b"}


async def test_a_file_that_gets_a_place_that_a_move_still_copies_from_overwrites_nothing(
    lab: Lab, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload had begun under another name, for which nothing had to be waited for."""
    fill(lab, "d/f", "e/f", "g")
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        assert [await lab.ls(path) for path in ("", "d", "e")] == [["d/", "e/", "g"], ["f"], ["f"]]
        node = await lab.get("g")
        fs.stages.opened(node.id)
        await fs.stages.write(node.id, 0, b"G")
        really = fs.uploader._sender.complete
        with lab.store.hold("copy") as copies:

            async def complete(*args: Any) -> None:  # noqa: ANN401 - passed on
                monkeypatch.undo()
                await lab.rename("d", "e", RENAME_EXCHANGE)
                await lab.rename("g", "d/f", RENAME_EXCHANGE)
                await copies.arrived()
                await really(*args)

            monkeypatch.setattr(fs.uploader._sender, "complete", complete)
            nursery.start_soon(fs.commit, node.id)
            await copies.arrived()
            await trio.sleep(1)
            assert lab.data("d/f") == b"d/f"
        await lab.settle()
        assert contents(lab) == {"d/f": b"G", "e/f": b"d/f", "g": b"e/f"}


async def test_a_file_that_comes_back_to_a_name_that_a_move_still_copies_from_overwrites_nothing(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """Its object was about to be moved there, and only waited for an upload, when the names around it changed."""
    fill(lab, "d/f", "e/f", "g")
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        assert [await lab.ls(path) for path in ("", "d", "e")] == [["d/", "e/", "g"], ["f"], ["f"]]
        newer = await lab.get("d/f")
        fs.stages.opened(newer.id)
        await fs.stages.write(newer.id, 0, b"D")
        with lab.store.hold("put") as puts:
            nursery.start_soon(fs.commit, newer.id)
            await puts.arrived()
            await lab.rename("g", "d/f", RENAME_EXCHANGE)
            nursery.start_soon(fs.syncer._objects.place, (await lab.get("d/f")).id)
            await trio.sleep(1)
            await lab.rename("d", "e", RENAME_EXCHANGE)
            await lab.rename("e/f", "g", RENAME_EXCHANGE)
            await lab.rename("g", "d/f", RENAME_EXCHANGE)
        await trio.sleep(1)
        assert lab.data("d/f") == b"D/f"
        nursery.start_soon(fs.syncer.run)
        await lab.settle()
        assert contents(lab) == {"d/f": b"g", "e/f": b"D/f", "g": b"e/f"}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("listed", [True, False])
async def test_a_file_that_is_looked_at_while_its_directory_moves_is_the_same_afterwards(
    lab: Lab, autojump_clock: MockClock, listed: bool
) -> None:
    """S3 gives the copy a later date, as it would to one whose metadata were replaced."""
    lab.store.clock = lambda: lab.now_ns
    lab.settings = settings(metadata_ttl_s=0)
    fill(lab, "d/f", "d/g")
    async with lab.mounted() as fs:
        fs.volume.are_times_kept = lambda _: True
        node = await lab.get("d/f")
        lab.later(5)
        with lab.store.hold("copy", "e/g") as copies:
            await lab.rename("d", "e")
            await copies.arrived()
            assert "e/f" in lab.stored()
            if listed:
                assert await lab.ls("e") == ["f", "g"]
            assert (await lab.get("e/f")).id == node.id
            new = await lab.get("e/g")
        await lab.settle()
        for _ in range(2):
            assert [(await lab.get(path)).id for path in ("e/f", "e/g")] == [node.id, new.id]
            assert await lab.ls("e") == ["f", "g"]
