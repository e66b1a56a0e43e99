"""Forgetting: the next look asks S3, the kernel is told at once, and nothing else changes."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.fs.learning import forgetting
from s3mgrd.fs.learning.forgetting import Forgetter, Forgotten
from tests.unit.fs.conftest import Lab


class Kernel:
    """Takes note of what the kernel is told."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.names: list[tuple[Inode, str]] = []
        self.inodes: dict[Inode, bool] = {}
        self.longest = 0

    async def _tell_names(self, names: Sequence[tuple[Inode, str]]) -> None:
        await trio.lowlevel.checkpoint()
        self.names += names
        self.longest = max(self.longest, len(names))

    async def _tell_inodes(self, inodes: Sequence[tuple[Inode, bool]]) -> None:
        await trio.lowlevel.checkpoint()
        self.inodes |= dict(inodes)

    async def forget(self, path: str) -> Forgotten:
        self.names.clear()
        self.inodes.clear()
        forgetter = Forgetter(
            self.lab.fs.volume,
            self.lab.fs.namespace,
            tell_names=self._tell_names,
            tell_inodes=self._tell_inodes,
        )
        return await forgetter.forget(path)


@pytest.fixture
def kernel(lab: Lab) -> Kernel:
    return Kernel(lab)


async def test_a_directory_and_everything_below_is_asked_for_again(
    lab: Lab, kernel: Kernel
) -> None:
    lab.store.insert("d/a", b"1")
    lab.store.insert("d/sub/b", b"2")
    async with lab.mounted(sync=False):
        await lab.ls("d")
        await lab.ls("d/sub")
        directory = (await lab.get("d")).id
        sub = (await lab.get("d/sub")).id
        lab.store.remove("d/a")
        lab.store.insert("d/new", b"3")
        assert await lab.ls("d") == ["a", "sub/"]
        done = await kernel.forget("d")
        assert (done.listings, done.names) == (2, 4)
        assert set(kernel.names) == {(ROOT, "d"), (directory, "a"), (directory, "sub"), (sub, "b")}
        assert kernel.inodes == {ROOT: True, directory: True, sub: True}
        assert await lab.ls("d") == ["new", "sub/"]


async def test_that_a_name_was_not_there_is_taken_back(lab: Lab, kernel: Kernel) -> None:
    """The kernel remembers absent names, too: they are told, with and without a listing, until they expire."""
    lab.store.insert("d/a", b"1")
    async with lab.mounted(sync=False) as fs:
        directory = (await lab.get("d")).id
        assert await lab.find("d/new") is None
        assert fs.namespace.tell_absent(directory, "new") == 30
        await lab.ls("d")
        assert await lab.find("d/other") is None
        assert fs.namespace.tell_absent(directory, "other") == 30
        lab.store.insert("d/new", b"3")
        assert set(fs.namespace.absent(directory)) == {"new", "other"}
        await kernel.forget("")
        assert {(directory, "new"), (directory, "other")} <= set(kernel.names)
        assert await lab.find("d/new") is not None
        assert not fs.namespace.absent(directory)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("d/never", "never"),
        ("d/never/looked/at", "never"),
        ("d/a/below/a/file", "a"),
        ("d/\n", "\n"),
        ("d/ ", " "),
        ("d/é", "é"),
    ],
)
async def test_a_path_of_which_nothing_is_known_is_forgotten_as_far_as_it_was_looked_at(
    lab: Lab, kernel: Kernel, path: str, name: str
) -> None:
    lab.store.insert("d/a", b"1")
    async with lab.mounted(sync=False):
        await lab.ls("d")
        directory = (await lab.get("d")).id
        assert (await kernel.forget(path)).names == 1
        assert kernel.names == [(directory, name)]
        lab.store.insert(path, b"now there")
        first = await lab.get(f"d/{name}")
        assert first.is_directory == (path != f"d/{name}")


async def test_a_file_is_looked_at_alone_and_another_version_is_another_inode(
    lab: Lab, kernel: Kernel
) -> None:
    for name in ("a", "b", "c"):
        lab.store.insert(name, b"x")
    async with lab.mounted(sync=False):
        await lab.ls()
        old, same = await lab.get("a"), await lab.get("b")
        lab.store.insert("a", b"new content")
        assert (await lab.get("a")).id == old.id
        done = await kernel.forget("a")
        assert (done.listings, done.names) == (0, 1)
        assert kernel.names == [(ROOT, "a")]
        assert kernel.inodes == {ROOT: True, old.id: False}
        new = await lab.get("a")
        assert (new.id != old.id, new.size) == (True, 11)
        assert (await lab.get("b")).id == same.id


async def test_what_s3_confirms_keeps_its_inode_and_its_attributes(
    lab: Lab, kernel: Kernel
) -> None:
    lab.store.insert("d/a", b"1", metadata={"mode": "33188", "mtime": "5"})
    async with lab.mounted(sync=False):
        await lab.ls("d")
        before = await lab.get("d/a")
        heads = lab.store.calls["head"]
        await kernel.forget("")
        await lab.ls("d")
        after = await lab.get("d/a")
        assert (after.id, after.mtime_ns) == (before.id, before.mtime_ns)
        assert lab.store.calls["head"] == heads


async def test_what_was_written_here_stays(lab: Lab, kernel: Kernel) -> None:
    async with lab.mounted(sync=False):
        await lab.mkdir("d")
        await lab.write("d/open", b"not in S3 yet", close=False)
        await kernel.forget("")
        assert await lab.ls("d") == ["open"]
        assert await lab.read("d/open") == b"not in S3 yet"


async def test_a_listing_that_is_under_way_is_not_believed(lab: Lab, kernel: Kernel) -> None:
    """S3 may have answered it before what made somebody invalidate."""
    lab.store.insert("d/a", b"1")
    async with lab.mounted(sync=False) as fs:
        directory = await lab.get("d")
        await wait_all_tasks_blocked()  # it is listed ahead
        with lab.store.hold("list_page") as hold:
            listing = fs.lister.start(directory)
            await hold.arrived()
            await kernel.forget("d")
            hold.release()
            await listing.finished()
        assert not fs.lister.is_fresh(fs.volume.node(directory.id))


async def test_a_large_directory_is_passed_in_pieces(
    lab: Lab, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "PIECE", 100)
    for i in range(450):
        lab.store.insert(f"d/{i:03}", b"x")
    async with lab.mounted(sync=False):
        await lab.ls("d")
        await lab.get("d/007")
        done = await kernel.forget("d")
        assert done.names == 451
        assert kernel.longest == 100
        assert all(not n.seen_ns for n in lab.fs.volume.nodes.children((await lab.get("d")).id))
