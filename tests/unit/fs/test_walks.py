"""Walks: a tree is learned from few flat listings, exactly as from a listing of each directory."""

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.namespace import Entry
from tests.unit.fs.conftest import Lab


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
