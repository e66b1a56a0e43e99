"""Directories that change places while others are on their way inside of them, around them, or from one to the other."""

import trio
from trio.testing import MockClock

from s3mgrd.fs.changing.tree import RENAME_EXCHANGE
from tests.unit.fs.conftest import Lab, settings


async def test_directories_change_places_around_one_that_goes_from_one_to_the_other(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """Each waits for another: the inner one for the move around it, that for the inner one to leave where it goes to."""
    for key in ("a/x/1", "a/2", "b/3"):
        lab.store.insert(key, key.encode())
    async with lab.mounted():
        inner = (await lab.get("a/x")).id
        await lab.rename("a/x", "b/x")
        await lab.rename("a", "b", RENAME_EXCHANGE)
        with trio.fail_after(30):
            await lab.settle()
        assert (await lab.get("a/x")).id == inner
        assert await lab.ls() == ["a/", "b/"]
        assert await lab.ls("a") == ["3", "x/"]
    assert {key: lab.data(key) for key in lab.stored()} == {
        "a/3": b"b/3",
        "a/x/1": b"a/x/1",
        "b/2": b"a/2",
    }


async def test_a_directory_takes_the_name_below_which_another_inside_of_it_still_is(
    lab: Lab, autojump_clock: MockClock
) -> None:
    for key in ("a/x/1", "b/3", "c/4"):
        lab.store.insert(key, key.encode())
    async with lab.mounted():
        await lab.ls("b")
        await lab.rename("a/x", "b/x")
        await lab.rename("b", "c", RENAME_EXCHANGE)
        await lab.mkdir("d")
        await lab.rename("a", "d", RENAME_EXCHANGE)
        await lab.rename("c", "d", RENAME_EXCHANGE)
        with trio.fail_after(30):
            await lab.settle()
        assert await lab.ls("d") == ["3", "x/"]
    assert {key: lab.data(key) for key in lab.stored() if not key.endswith("/")} == {
        "b/4": b"c/4", "d/3": b"b/3", "d/x/1": b"a/x/1",
    }  # fmt: skip


async def test_directories_change_places_inside_of_one_that_is_on_its_way(
    lab: Lab, autojump_clock: MockClock
) -> None:
    for key in ("d/x/f", "d/x/g", "d/y/f", "d/y/h"):
        lab.store.insert(key, key.encode())
    async with lab.mounted():
        await lab.ls("d/x")
        await lab.ls("d/y")
        await lab.rename("d", "e")
        await lab.rename("e/x", "e/y", RENAME_EXCHANGE)
        await lab.settle()
        assert await lab.read("e/x/f") == b"d/y/f"
        assert await lab.read("e/y/f") == b"d/x/f"
    assert {key: lab.data(key) for key in lab.stored()} == {
        "e/x/f": b"d/y/f", "e/x/h": b"d/y/h", "e/y/f": b"d/x/f", "e/y/g": b"d/x/g",
    }  # fmt: skip


async def test_what_a_directory_has_is_seen_where_another_is_to_go_once_it_has_left(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """A directory goes into one that takes this one's place: nothing of it is there yet, what is there is this one's."""
    for key in ("a/x/1", "b/2", "c/3"):
        lab.store.insert(key, key.encode())
    lab.settings = settings(metadata_ttl_s=0, negative_ttl_s=0)
    async with lab.mounted():
        await lab.get("a/x")
        with lab.store.hold("copy"):
            await lab.rename("c", "b/x")
            await lab.rename("a", "b", RENAME_EXCHANGE)
            await lab.get("b/x/1")
            assert [await lab.ls(path) for path in ("a", "b")] == [["2", "x/"], ["x/"]]
            assert [await lab.ls(path) for path in ("a/x", "b/x")] == [["3"], ["1"]]
        await lab.settle()
    assert {key: lab.data(key) for key in lab.stored()} == {
        "a/2": b"b/2", "a/x/3": b"c/3", "b/x/1": b"a/x/1",
    }  # fmt: skip
