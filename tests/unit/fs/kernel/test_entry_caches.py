"""What opendir tells the kernel of the entries that it keeps."""

import pytest

from s3mgrd.cache.nodes import ROOT, Inode, Kind, Node
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.kernel import entry_caches
from s3mgrd.fs.kernel.entry_caches import EntryCaches
from s3mgrd.fs.kernel.handles import Handles
from s3mgrd.fs.kernel.replies import CACHE_DIR, KEEP_CACHE
from tests.unit.fs.conftest import Lab

CACHE = CACHE_DIR
KEEP = CACHE_DIR | KEEP_CACHE
NEITHER = 0


class Programs:
    """Programs that list one directory, seen as the kernel's requests."""

    def __init__(self, fs: FileSystem, inode: Inode = ROOT) -> None:
        self.fs = fs
        self.inode = inode
        self.caches = EntryCaches(fs.volume.nodes, fs.lister.is_fresh)
        self._handles = Handles()

    @property
    def node(self) -> Node:
        return self.fs.volume.directory(self.inode)

    def open(self) -> tuple[int, int]:
        """Return a handle and what the kernel is told."""
        handle = self._handles.make(self.inode)
        return handle, self.caches.opened(self.node, handle)

    async def read(self, handle: int, position: int = 0) -> None:
        await self.fs.namespace.entries(self.inode, position, 100)
        self.caches.reading(self.node, handle, position)

    async def list(self) -> int:
        """Do what `ls` does; returns what the kernel was told."""
        handle, told = self.open()
        if told != KEEP:
            await self.read(handle)
            await self.read(handle, self.fs.volume.nodes.last_inode())
        self.caches.released(handle)
        return told


async def test_entries_are_kept_while_nothing_changed(lab: Lab) -> None:
    """The first opening knows nothing; those after the first reading need no other."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        assert [await programs.list() for _ in range(3)] == [CACHE, KEEP, KEEP]


async def test_entries_are_read_again_once_the_listing_is_out_of_date(lab: Lab) -> None:
    """Even when the next listing says the same, or the kernel would not learn how long to believe the names."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        await programs.list()
        lab.later(31)
        assert await programs.list() == CACHE
        await fs.namespace.ensure_listed(ROOT)
        assert await programs.list() == KEEP
        lab.later(31)
        await fs.namespace.ensure_listed(ROOT)
        assert await programs.list() == CACHE


@pytest.mark.parametrize("change", ["insert", "detach", "rename", "kind", "distrust"])
async def test_no_change_of_names_is_kept_from_a_program(lab: Lab, change: str) -> None:
    """Whatever changed them."""
    await lab.store.put("a", b"1", metadata={})
    await lab.store.put("d/b", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        await programs.list()
        assert await programs.list() == KEEP
        nodes = fs.volume.nodes
        node = await lab.get("a")
        if change == "insert":
            nodes.insert(ROOT, "new", Kind.FILE, 1)
        elif change == "detach":
            fs.volume.detach(node)
        elif change == "rename":
            nodes.update(node.id, parent=(await lab.get("d")).id)
        elif change == "kind":
            nodes.update(node.id, kind=int(Kind.SYMLINK))
        else:
            fs.volume.distrust(ROOT)
        assert await programs.list() == CACHE


async def test_a_name_that_arrives_from_elsewhere_is_no_longer_kept_from_both_directories(
    lab: Lab,
) -> None:
    """A rename changes two directories."""
    await lab.store.put("a", b"1", metadata={})
    await lab.store.put("d/b", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs, (await lab.get("d")).id)
        await programs.list()
        assert await programs.list() == KEEP
        fs.volume.nodes.update((await lab.get("a")).id, parent=programs.inode)
        assert await programs.list() == CACHE


async def test_a_reader_from_before_a_change_never_mixes_into_what_is_kept(lab: Lab) -> None:
    """While it has the directory open, nothing is kept; afterwards everything is read anew."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        await fs.namespace.ensure_listed(ROOT)
        slow, told = programs.open()
        assert told == CACHE
        await programs.read(slow)
        fs.volume.nodes.insert(ROOT, "new", Kind.FILE, 1)
        assert [await programs.list() for _ in range(2)] == [NEITHER, NEITHER]
        await programs.read(slow, 2)
        programs.caches.released(slow)
        assert [await programs.list() for _ in range(2)] == [CACHE, KEEP]


async def test_what_the_first_listing_finds_late_does_not_spoil_what_was_read_before(
    lab: Lab,
) -> None:
    """New names come after all that were read, so a program that reads on has them all; but none may go."""
    for name in ("a", "b"):
        await lab.store.put(name, b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        early, _ = programs.open()
        await programs.read(early)
        late = fs.volume.nodes.insert(ROOT, "c", Kind.FILE, 1, etag='"1"')
        await programs.read(early, late)
        assert await programs.list() == KEEP
        programs.caches.released(early)
        fs.volume.nodes.update(ROOT, listed_ns=0)
        early, _ = programs.open()
        programs.caches.reading(programs.node, early, 0)
        fs.volume.nodes.detach(late)
        assert await programs.list() == NEITHER


async def test_two_readers_of_the_same_entries_fill_one_cache(lab: Lab) -> None:
    """Nothing changed between them, so either may finish it."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        await fs.namespace.ensure_listed(ROOT)
        (first, _), (second, told) = programs.open(), programs.open()
        assert told == CACHE
        await programs.read(first)
        await programs.read(second)
        programs.caches.released(first)
        assert await programs.list() == KEEP


async def test_entries_read_from_the_middle_on_are_not_kept(lab: Lab) -> None:
    """The kernel may have the part before from a time of which nothing is known."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        await fs.namespace.ensure_listed(ROOT)
        handle, _ = programs.open()
        await programs.read(handle, 1)
        assert await programs.list() == NEITHER
        programs.caches.released(handle)
        assert await programs.list() == CACHE


async def test_the_next_worker_keeps_nothing(lab: Lab) -> None:
    """It does not know what the kernel has; handles of the last worker mean nothing to it."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs)
        handle, _ = programs.open()
        await programs.read(handle)
        successor = Programs(fs)
        successor.caches.released(handle)
        assert await successor.list() == CACHE


async def test_of_too_many_directories_the_last_are_remembered(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_caches, "MAX_DIRECTORIES", 1)
    for name in ("one/1", "two/1"):
        await lab.store.put(name, b"1", metadata={})
    async with lab.mounted() as fs:
        programs = Programs(fs, (await lab.get("one")).id)
        assert [await programs.list() for _ in range(2)] == [CACHE, KEEP]
        one, programs.inode = programs.inode, (await lab.get("two")).id
        assert [await programs.list() for _ in range(2)] == [CACHE, KEEP]
        programs.inode = one
        assert await programs.list() == CACHE
