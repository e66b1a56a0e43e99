"""Walks: a tree is learned from few flat listings, exactly as from a listing of each directory."""

import pytest
import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import Unavailable
from s3mgrd.fs.learning.namespace import Entry
from tests.unit.fs.conftest import Lab, settings


async def find(lab: Lab, path: str = "") -> list[str]:
    """Walk a tree as find does: all of a directory's entries, then each directory inside."""
    inode = (await lab.get(path)).id
    return await _find(lab, inode, path)


async def _find(lab: Lab, inode: Inode, path: str) -> list[str]:
    entries: list[Entry] = []
    while page := await lab.fs.namespace.entries(inode, entries[-1].node.id if entries else 0, 256):
        entries += page
    found = []
    for node, _ in entries:
        below = f"{path}/{node.name}".lstrip("/")
        found.append(below + ("/" if node.is_directory else ""))
        if node.is_directory:
            found += await _find(lab, node.id, below)
    return found


def plant(lab: Lab, directories: int = 100, files: int = 2000) -> list[str]:
    """Make a tree two levels deep; returns what find shows of it."""
    paths = {f"t/d{i % directories:02d}/e{i % 7}/f{i:06d}" for i in range(files)}
    for path in paths:
        lab.store.insert(path, b"abc")
    above = {p.rsplit("/", n)[0] + "/" for p in paths for n in (1, 2)}
    return sorted(paths | above)


async def test_a_walk_costs_a_request_for_each_page_and_not_for_each_directory(lab: Lab) -> None:
    paths = plant(lab)
    async with lab.mounted(sync=False):
        await lab.ls()
        before = lab.store.calls["list_page"]
        assert sorted(await find(lab, "t")) == paths
        assert lab.store.calls["list_page"] - before <= 4
        assert sorted(await find(lab, "t")) == paths
        assert lab.store.calls["list_page"] - before <= 4


async def test_a_walk_after_the_ttl_costs_what_the_first_one_did(lab: Lab) -> None:
    paths = plant(lab)
    async with lab.mounted(sync=False):
        await find(lab, "t")
        lab.later(60)
        lab.store.remove("t/d03/e3/f000003")
        lab.store.insert("t/d03/e9/new", b"n")
        before = lab.store.calls["list_page"]
        again = sorted(await find(lab, "t"))
        assert lab.store.calls["list_page"] - before <= 5
        changed = {*paths, "t/d03/e9/", "t/d03/e9/new"} - {"t/d03/e3/f000003"}
        assert again == sorted(changed)


async def test_a_new_worker_asks_nothing_of_a_tree_that_was_walked(lab: Lab) -> None:
    """Neither does the next mount: reading, looking names up, and names that are not there."""
    paths = plant(lab, directories=10, files=300)
    async with lab.mounted("first", sync=False):
        await find(lab)
        before = lab.store.calls.total()
    for connection in ("first", "second"):
        async with lab.mounted(connection, sync=False):
            lab.later(5)
            assert [p for p in sorted(await find(lab, "t")) if p != "t/"] == paths
            assert (await lab.get("t/d03/e3/f000003")).size == 3
            assert await lab.find("t/d03/e3/absent") is None
            assert await lab.find("t/d03/e3/made") is None
        assert lab.store.calls.total() == before


@pytest.mark.parametrize("files", [2, 30])
async def test_a_walk_that_goes_backwards_costs_little_more_than_one_that_goes_forwards(
    lab: Lab, files: int
) -> None:
    """A program that keeps a stack takes the last directory first."""
    paths = [f"t/d{d:03d}/f{f}" for d in range(300) for f in range(files)]
    for path in paths:
        lab.store.insert(path, b"abc")
    async with lab.mounted(sync=False):
        await lab.ls()
        before = lab.store.calls["list_page"]
        found: list[str] = []
        waiting = ["t"]
        while waiting:
            below = waiting.pop()
            for name in await lab.ls(below):
                path = f"{below}/{name}"
                waiting += [path.rstrip("/")] if path.endswith("/") else []
                found += [] if path.endswith("/") else [path]
        assert sorted(found) == sorted(paths)
        pages = -(-len(paths) // 1000)
        assert lab.store.calls["list_page"] - before <= 2 * pages + 3


async def test_a_walk_that_nobody_follows_asks_for_one_page(
    lab: Lab, autojump_clock: object
) -> None:
    plant(lab, files=5000)
    async with lab.mounted(sync=False):
        await lab.ls("t")
        before = lab.store.calls["list_page"]
        assert await lab.ls("t/d00") == [f"e{i}/" for i in range(7)]
        await trio.sleep(60)
        assert lab.store.calls["list_page"] - before == 1
        lab.later(20)
        assert await lab.ls("t/d99") == [f"e{i}/" for i in range(7)]
        assert lab.store.calls["list_page"] - before == 2


async def test_directories_with_much_below_are_listed_by_themselves(lab: Lab) -> None:
    """Who wants only the names at the top does not pay for all that lies below."""
    for i in range(5):
        for j in range(10_000):
            lab.store.insert(f"t/d{i}/sub/f{j:05}", b"")
    async with lab.mounted(sync=False):
        await lab.ls("t")
        before = lab.store.calls["list_page"]
        for i in range(5):
            assert await lab.ls(f"t/d{i}") == ["sub/"]
        assert lab.store.calls["list_page"] - before <= 15


async def test_a_large_directory_on_the_way_is_left_to_a_listing_of_its_own(lab: Lab) -> None:
    """It is read to its end, and the walk goes on behind it."""
    for i in range(12_000):
        lab.store.insert(f"t/b/f{i:05}", b"")
    small = [f"t/{d}/{i}" for d in ("a", "c", "d", "e", "f", "g", "h") for i in range(3)]
    for path in small:
        lab.store.insert(path, b"")
    async with lab.mounted(sync=False):
        await lab.ls("t")
        before = lab.store.calls["list_page"]
        found = await find(lab, "t")
        assert len([p for p in found if p.startswith("t/b/f")]) == 12_000
        assert set(small) <= set(found)
        assert lab.store.calls["list_page"] - before <= 25


async def test_without_a_time_to_live_every_directory_is_asked_for(lab: Lab) -> None:
    """What a page tells ahead would be too old when somebody asks."""
    lab.settings = settings(metadata_ttl_s=0.0)
    paths = plant(lab, directories=5, files=50)
    async with lab.mounted(sync=False):
        assert [p for p in sorted(await find(lab)) if p != "t/"] == paths
        lab.store.insert("t/d00/e0/new", b"")
        assert "t/d00/e0/new" in await find(lab)


async def test_a_walk_that_fails_is_no_failure_of_a_directory(lab: Lab) -> None:
    """The directory somebody waits for is then listed by itself."""
    plant(lab, directories=5, files=50)
    async with lab.mounted(sync=False):
        await lab.ls("t")
        lab.store.fail_next("list_page", Unavailable("down"))
        assert len(await lab.ls("t/d00")) == 7


async def test_forgetting_ends_what_a_walk_would_tell(lab: Lab) -> None:
    """A page that was asked for before somebody said that things have changed is not believed."""
    plant(lab, directories=5, files=50)
    async with lab.mounted(sync=False) as fs:
        await lab.ls("t")
        directory = await lab.get("t/d00")
        with lab.store.hold("list_page") as hold:
            listing = fs.lister.start(directory)
            await hold.arrived()
            fs.namespace.outdate()
            lab.store.remove("t/d00/e0/f000000")
            hold.release()
            await listing.finished()
        assert "f000000" not in await lab.ls("t/d00/e0")


async def test_a_walk_that_paused_does_not_finish_a_directory_with_what_it_saw_long_ago(
    lab: Lab,
) -> None:
    for i in range(1500):
        lab.store.insert(f"t/a/f{i:04}", b"")
    lab.store.insert("t/0/x", b"")
    async with lab.mounted(sync=False):
        await lab.ls("t")
        await lab.ls("t/0")
        lab.later(31)
        lab.store.remove("t/a/f0000")
        assert len(await lab.ls("t/a")) == 1499
