"""Pruning: mount.db stays small, and nothing that is only there is forgotten."""

from collections.abc import Sequence

import pytest

from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.learning import pruning
from tests.unit.fs.conftest import Lab, settings

PER_DIRECTORY = 40


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every directory take several steps."""
    monkeypatch.setattr(pruning, "STEP_ROWS", 16)
    monkeypatch.setattr(pruning, "STEP_DIRECTORIES", 2)


async def fill(lab: Lab, *directories: str) -> None:
    """Put objects into directories of the bucket."""
    for directory in directories:
        for number in range(PER_DIRECTORY):
            await lab.store.put(f"{directory}/f{number:03}", b"x", metadata={})


async def look(lab: Lab, *directories: str) -> None:
    """List directories one after the other, as a program does."""
    for directory in directories:
        inode = (await lab.get(directory)).id
        await lab.fs.namespace.ensure_listed(inode)
        lab.fs.pruner.note_use(inode)
        lab.later(3)


async def prune(lab: Lab, *, spare: int = 0) -> None:
    """Prune as if the file were too large until *spare* entries were forgotten; 0: all that can be."""
    pruner = lab.fs.pruner
    limit = spare or 1 << 30

    def excess(share: float) -> float:
        return share * (limit - pruner.dropped)

    # A file of a megabyte would take thousands of objects.
    pruner._excess = excess  # type: ignore[method-assign]
    await pruner.prune()


def known(fs: FileSystem, directory: Inode) -> int:
    return fs.volume.nodes.count_children(directory, limit=1000)


async def test_a_pruned_directory_is_listed_again_when_it_is_looked_at(lab: Lab) -> None:
    """It is as if it had never been seen; other directories and the way to it stay."""
    await fill(lab, "a/b")
    async with lab.mounted() as fs:
        inode = (await lab.get("a/b")).id
        await look(lab, "a", "a/b")
        lab.held |= {inode, (await lab.get("a")).id}
        await prune(lab)
        assert known(fs, inode) == 0
        assert fs.pruner.dropped == PER_DIRECTORY
        await lab.store.put("a/b/new", b"x", metadata={})
        assert len(await lab.ls("a/b")) == PER_DIRECTORY + 1
        assert (await lab.get("a/b")).id == inode


async def test_what_was_not_used_for_longest_goes_first(lab: Lab) -> None:
    """By the last look, not only by the last listing."""
    directories = ["a", "b", "c", "d"]
    await fill(lab, *directories)
    async with lab.mounted() as fs:
        await look(lab, *directories)
        inodes = {name: (await lab.get(name)).id for name in directories}
        lab.held |= set(inodes.values())
        fs.pruner._used = {inodes["a"]: lab.now_ns - 3 * 10**9}
        await prune(lab, spare=2 * PER_DIRECTORY)
        assert [known(fs, inodes[name]) for name in directories] == [40, 0, 0, 40]


async def test_what_was_looked_at_a_moment_ago_stays(lab: Lab) -> None:
    """The kernel may not have read the reply that tells it of an inode."""
    await fill(lab, "a")
    async with lab.mounted() as fs:
        inode = (await lab.get("a")).id
        await look(lab, "a")
        fs.pruner.note_use(inode)
        await prune(lab)
        assert known(fs, inode) == PER_DIRECTORY
        lab.later(3)
        await prune(lab)
        assert known(fs, inode) == 0


async def test_inodes_that_the_kernel_holds_stay_and_it_is_asked_to_let_them_go(lab: Lab) -> None:
    """Their numbers must mean the same as long as somebody may use them."""
    await fill(lab, "a")
    asked: set[Inode] = set()

    async def let_go(inodes: Sequence[Inode]) -> None:
        asked.update(inodes)

    async with lab.mounted() as fs:
        fs.pruner.let_go = let_go
        directory = (await lab.get("a")).id
        await look(lab, "a")
        held = {(await lab.get(f"a/f{number:03}")).id for number in (0, 17, 39)}
        lab.held |= {*held, directory}
        await prune(lab)
        assert {node.id for node in fs.volume.nodes.children(directory)} == held
        assert held <= asked
        assert len(await lab.ls("a")) == PER_DIRECTORY
        assert {(await lab.get(f"a/f{number:03}")).id for number in (0, 17, 39)} == held


async def test_what_s3_does_not_have_stays(lab: Lab) -> None:
    """New and renamed files, changed attributes, removed ones, and directories that nobody made in S3 yet."""
    await fill(lab, "a")
    async with lab.mounted(sync=False):
        await look(lab, "a")
        await lab.write("a/new", b"mine", close=False)
        await lab.mkdir("a/made")
        await lab.rename("a/f000", "a/moved")
        await lab.unlink("a/f001")
        lab.later(60)
        await prune(lab)
        names = set(await lab.ls("a"))
        assert {"new", "made/", "moved"} <= names
        assert names.isdisjoint({"f000", "f001"})
        assert len(names) == PER_DIRECTORY + 1
        assert await lab.read("a/new") == b"mine"


async def test_a_directory_in_which_a_request_may_have_written_stays_whole(lab: Lab) -> None:
    """A key that such a request wrote and that no name leads to counts as ours to delete."""
    await fill(lab, "a")
    async with lab.mounted(sync=False) as fs:
        await look(lab, "a")
        inode = (await lab.get("a")).id
        fs.volume.journal.begin_write("a/f000", size=1)
        lab.later(3)
        await prune(lab)
        assert known(fs, inode) == PER_DIRECTORY
        fs.volume.journal.end_writes("a/f000")
        await prune(lab)
        assert known(fs, inode) == 0


async def test_trees_go_from_their_leaves(lab: Lab) -> None:
    """A directory with anything below it stays for now; one pass after the other takes what has become a leaf."""
    await fill(lab, "a/b/c")
    async with lab.mounted() as fs:
        await look(lab, "a", "a/b", "a/b/c")
        await fs.namespace.ensure_listed(ROOT)
        for _ in range(4):
            lab.later(3)
            await prune(lab)
        assert fs.volume.nodes.count_children(ROOT, limit=10) == 0
        assert len(await lab.ls("a/b/c")) == PER_DIRECTORY


async def test_the_file_shrinks(lab: Lab) -> None:
    """What was freed goes back to the disk, and the size stays below the limit from then on."""
    lab.settings = settings(metadata_size_bytes=1)
    await fill(lab, *(f"d{number}" for number in range(40)))
    async with lab.mounted() as fs:
        await look(lab, *(f"d{number}" for number in range(40)))
        await fs.volume.database.checkpoint()
        before = fs.volume.database.size_bytes()
        assert not await fs.pruner.prune()
        await fs.volume.database.checkpoint()
        assert fs.volume.database.size_bytes() < before / 2
        assert (lab.directory / "mount.db").stat().st_size < before / 2
        lab.settings.metadata_size_bytes = 1 << 20
        assert await fs.pruner.prune()
