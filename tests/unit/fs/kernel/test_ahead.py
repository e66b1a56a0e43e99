"""Pieces of listings that are made before somebody asks for them: which ones, and that they are what would be given now."""

import struct

import pytest

from s3mgrd.cache.nodes import Inode, Kind
from s3mgrd.fs.kernel.express import Express
from tests.unit.fs.conftest import Lab
from tests.unit.fs.kernel.listings import PAGE, Shown, entries, express_of, opened


def made(express: Express) -> list[Inode]:
    """Return the directories of which a piece is ready."""
    return [inode for inode, made in express._ahead._made.items() if made.piece is not None]


@pytest.mark.parametrize("change", ["nothing", "insert", "stage", "write", "later", "other"])
async def test_what_was_prepared_is_given_only_while_it_is_what_there_is(
    lab: Lab, change: str
) -> None:
    """A directory that was opened a moment ago is about to be read."""
    await lab.store.put("d/a", b"1", metadata={})
    await lab.store.put("d/b", b"22", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = (await lab.get("d")).id
        await fs.namespace.ensure_listed(directory)
        if change == "write":
            await lab.write("d/a", b"hello", close=False)
        answer = express.opendir(directory)
        assert isinstance(answer, bytes)
        express.prepare(answer)
        assert made(express) == ([] if change == "write" else [directory])
        handle = struct.unpack_from("=Q", answer)[0]
        expected = {"a": (1, 30.0), "b": (2, 30.0)}
        if change == "insert":
            fs.volume.nodes.insert(directory, "c", Kind.FILE, 1, size=3, etag='"1"')
            expected["c"] = (3, 30.0)
        elif change == "stage":
            await lab.write("d/a", b"hello", close=False)
            expected["a"] = (5, 30.0)
        elif change == "write":
            stage = fs.stages.get((await lab.get("d/a")).id)
            assert stage is not None
            await fs.stages.write((await lab.get("d/a")).id, 5, b"!")
            expected["a"] = (6, 30.0)
        elif change == "later":
            lab.later(10)
            expected = {name: (size, 20.0) for name, (size, _) in expected.items()}
        elif change == "other":
            handle = opened(express, directory)
        shown = entries(express.readdir(handle, 0, PAGE))
        assert {s.name: (s.size, s.valid_s) for s in shown} == expected


async def test_a_walk_finds_what_it_saw_at_hand(lab: Lab) -> None:
    """A directory whose parent was just read costs no statement of its own, and shows what it would show without."""
    for key in ("d/a/1", "d/a/2", "d/b/3", "d/c"):
        await lab.store.put(key, b"1", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = (await lab.get("d")).id
        inside = {name: (await lab.get(f"d/{name}")).id for name in ("a", "b")}
        for inode in (directory, *inside.values()):
            await fs.namespace.ensure_listed(inode)

        def walked(inode: int) -> list[str]:
            answer = express.opendir(inode)
            assert isinstance(answer, bytes)
            express.prepare(answer)
            handle = struct.unpack_from("=Q", answer)[0]
            shown = sorted(e.name for e in entries(express.readdir(handle, 0, PAGE)))
            express.look_ahead()
            return shown

        assert walked(directory) == ["a", "b", "c"]
        asked: list[str] = []
        fs.volume.database._connection.set_trace_callback(asked.append)
        assert walked(inside["a"]) == ["1", "2"]
        assert made(express) == [inside["b"]]
        assert walked(inside["b"]) == ["3"]
        assert made(express) == []
        assert asked == []
        fs.volume.database._connection.set_trace_callback(None)
        fs.volume.nodes.insert(inside["a"], "new", Kind.FILE, 1, size=3, etag='"1"')
        assert walked(inside["a"]) == ["1", "2", "new"]


class Program:
    """Reads directories as the kernel does for a program, and sees what was ready when it asked."""

    def __init__(self, express: Express, room: int = 8 * PAGE) -> None:
        self.express = express
        self.room = room
        self.ready: list[str] = []
        """The first name of each piece that was ready before the directory was opened, or before it was asked for."""

    def read(self, inode: int) -> list[str]:
        express = self.express
        was_made = made(express)
        answer = express.opendir(inode)
        assert isinstance(answer, bytes)
        express.prepare(answer)
        handle = struct.unpack_from("=Q", answer)[0]
        found: list[Shown] = []
        while True:
            piece = list(
                entries(express.readdir(handle, found[-1].position if found else 0, self.room))
            )
            if piece and inode in was_made:
                self.ready.append(piece[0].name)
            if not piece:
                break
            found += piece
            express.look_ahead()
            was_made = made(express)
        assert express.releasedir(handle) == 0
        return [shown.name for shown in found]


@pytest.mark.parametrize("count", [5, 70])
@pytest.mark.parametrize("is_backwards", [False, True])
async def test_what_a_walk_opens_next_is_ready(lab: Lab, is_backwards: bool, count: int) -> None:
    """Whether it takes the first of the directories that it was shown or the last, few or many, and on every level."""
    names = [f"{number:03}" for number in range(count)]
    for name in names:
        for key in ("file", "sub/one", "sub/two"):
            await lab.store.put(f"d/{name}/{name}{key}", b"1", metadata={})
    async with lab.mounted() as fs:
        program = Program(express_of(lab))
        way = {}
        for path in ("d", *(f"d/{name}" for name in names), *(f"d/{n}/{n}sub" for n in names)):
            directory = (await lab.get(path)).id
            await fs.namespace.ensure_listed(directory)
            way[path] = directory
        expected = []
        program.read(way["d"])
        for name in reversed(names) if is_backwards else names:
            assert program.read(way[f"d/{name}"]) == [f"{name}file", f"{name}sub"]
            assert program.read(way[f"d/{name}/{name}sub"]) == ["one", "two"]
            expected += [f"{name}file", "one"]
        steps = 2 * (count - 3)  # which way it goes, the first tell
        assert program.ready[-steps:] == expected[-steps:]


async def test_the_next_piece_of_a_large_directory_is_ready(lab: Lab) -> None:
    """A program that got one asks for it."""
    names = [f"{number:03}" for number in range(300)]
    for name in names:
        await lab.store.put(f"d/{name}", b"1", metadata={})
    async with lab.mounted() as fs:
        program = Program(express_of(lab), PAGE)
        directory = (await lab.get("d")).id
        await fs.namespace.ensure_listed(directory)
        assert program.read(directory) == names
        pieces = -(-300 // (PAGE // 160))
        assert len(program.ready) >= pieces - 3


async def test_nothing_is_made_for_who_follows_no_order(lab: Lab) -> None:
    """A guess costs as much as a listing."""
    names = [f"{number:03}" for number in range(20)]
    for name in names:
        await lab.store.put(f"d/{name}/file", b"1", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        program = Program(express)
        inodes = []
        for name in names:
            inodes.append((await lab.get(f"d/{name}")).id)
            await fs.namespace.ensure_listed(inodes[-1])
        for number in (3, 9, 1, 15, 7, 18, 5, 11):
            assert program.read(inodes[number]) == ["file"]
            assert made(express) == []
        assert program.ready == []
        for number in (12, 13):  # whose order shows again
            program.read(inodes[number])
        assert made(express) == [inodes[14]]


async def test_nothing_is_made_for_who_only_opens_directories(lab: Lab) -> None:
    """To have them synced, or to begin paths there."""
    await lab.store.put("d/a/file", b"1", metadata={})
    await lab.store.put("d/b/file", b"1", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        first, second = [(await lab.get(path)).id for path in ("d/a", "d/b")]
        for directory in (first, second):
            await fs.namespace.ensure_listed(directory)
            answer = express.opendir(directory)
            assert isinstance(answer, bytes)
            express.prepare(answer)
            assert made(express) == [first]
        assert Program(express).read(second) == ["file"]
