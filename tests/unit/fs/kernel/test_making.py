"""Making and writing small files without a task: what is acknowledged stays, whenever the worker dies."""

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from pyfuse3 import FileHandleT, FileInfo, FlagT, InodeT, ModeT

from s3mgrd.cache.nodes import ROOT, Inode, Node
from s3mgrd.fs.changing.tree import RENAME_EXCHANGE, RENAME_NOREPLACE, Creator
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.kernel import replies
from s3mgrd.fs.kernel.express import Answer, Caller, Express
from s3mgrd.fs.kernel.operations import Operations
from s3mgrd.fs.kernel.repeats import Call, Opcode
from s3mgrd.fuse.abi import Resent
from s3mgrd.fuse.connection import make_ring
from s3mgrd.worker.ring import Ring
from tests.unit.fs.conftest import Lab, settings

THREAD = 7
CALLER = Caller(uid=1000, gid=1001, thread=THREAD, mode=stat.S_IFREG | 0o640)
DATA = b"some bytes" * 20
CREATE = Resent(Opcode.CREATE, int(ROOT), b"a", THREAD)


class Context:
    """What the handlers look at of a `RequestContext`."""

    pid, uid, gid, umask = THREAD, 1000, 1001, 0


CTX: Any = Context()  # Any: pyfuse3 makes no contexts outside of requests


class Killed(BaseException):
    """The worker is dead from here on."""


class Steps:
    """Counts what the kernel is given to keep, and dies at one of these steps."""

    def __init__(self, last: int) -> None:
        self._left = last

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed

    def wrap(self, function: Any) -> Any:  # noqa: ANN401 - any function
        def stepping(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        return stepping


class Connection:
    """A connection of SQLite each commit of which is a step."""

    def __init__(self, connection: Any, steps: Steps) -> None:  # noqa: ANN401
        self._connection = connection
        self._execute = steps.wrap(connection.execute)

    def execute(self, query: str, *arguments: Any) -> Any:  # noqa: ANN401
        execute = self._execute if query == "COMMIT" else self._connection.execute
        return execute(query, *arguments)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._connection, name)


@pytest.fixture
def writeback(lab: Lab) -> Lab:
    lab.settings = settings(write_mode="writeback")
    return lab


@contextmanager
def dying(lab: Lab, last: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    steps = Steps(last)
    database = lab.fs.volume.database
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", steps.wrap(os.pwritev))
        patched.setattr(database, "_connection", Connection(database._connection, steps))
        yield


def operations_of(lab: Lab, memory: int, *calls: Resent) -> Operations:
    ring = Ring(memory)
    ring.resume(calls)
    return Operations(lab.fs, ring)


def handle_of(answer: object) -> int:
    assert isinstance(answer, bytes)
    handle, flags, _ = replies.OPEN_OUT.unpack(answer[replies.ENTRY_OUT.size :])
    assert flags == replies.KEEP_CACHE
    return int(handle)


def inode_of(answer: object) -> Inode:
    assert isinstance(answer, bytes)
    return Inode(replies.ENTRY_OUT.unpack_from(answer)[0])


def create(express: Express, name: bytes = b"a", flags: int = os.O_WRONLY) -> object:
    answer = express.create(ROOT, name, flags, CALLER)
    express.answered()
    return answer


async def test_a_worker_that_dies_at_any_step_loses_nothing_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """What the program was told is done is in S3 in the end; what it was not told is asked again, and done once."""
    for last in count():
        lab = Lab(tmp_path / str(last), settings=settings(write_mode="writeback"))
        lab.directory.mkdir()
        memory = make_ring()
        told: list[object] = []
        async with lab.mounted(sync=False) as fs:
            await lab.ls()
            express = operations_of(lab, memory).express
            with dying(lab, last, monkeypatch):
                try:
                    told.append(create(express, flags=os.O_WRONLY | os.O_EXCL))
                    told.append(express.write(handle_of(told[0]), 0, memoryview(DATA)))
                    released = express.release(handle_of(told[0]))
                    express.when_kept(lambda: told.append(released))  # noqa: B023 - called in this turn
                    express.settle()
                except Killed:
                    pass
            assert None not in told
        async with lab.mounted() as fs:
            operations = operations_of(lab, memory, *(() if told else (CREATE,)))
            if told:
                inode, handle = inode_of(told[0]), handle_of(told[0])
            else:
                flags = os.O_WRONLY | os.O_EXCL
                made = await operations.create(
                    cast(InodeT, ROOT),
                    b"a",
                    ModeT(0o640),
                    flags,
                    CTX,
                )
                info: FileInfo = made[0]
                inode, handle = Inode(made[1].st_ino), int(info.fh)
            lab.held.add(inode)
            if len(told) < 2:
                await operations.write(FileHandleT(handle), 0, DATA)
            assert await lab.read("a") == DATA
            if len(told) < 3:
                await operations.release(FileHandleT(handle))
            await lab.settle()
            assert lab.data("a") == DATA
            assert lab.stored() == ["a"]
            assert not fs.volume.journal.conflicts(after=0, limit=1)
            assert (await lab.get("a")).id == inode
        async with lab.mounted("second"):
            assert not lab.staging_files()
        os.close(memory)
        if len(told) == 3:
            break
    assert last >= 8, "there are steps to die at"


async def test_a_worker_that_dies_at_any_step_of_an_upload_uploads_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Also where S3 has the file and nobody knows; what is made with O_EXCL does not lose against itself."""
    for last in count():
        lab = Lab(tmp_path / str(last), settings=settings(write_mode="writeback"))
        lab.directory.mkdir()
        memory = make_ring()
        died = False
        async with lab.mounted(sync=False) as fs:
            await lab.ls()
            express = operations_of(lab, memory).express
            answer = create(express, flags=os.O_WRONLY | os.O_EXCL)
            express.write(handle_of(answer), 0, memoryview(DATA))
            express.release(handle_of(answer))
            with dying(lab, last, monkeypatch):
                try:
                    await fs.commit(inode_of(answer))
                except Killed:
                    died = True
            lab.held.add(inode_of(answer))
        async with lab.mounted() as fs:
            assert await lab.read("a") == DATA
            await lab.settle()
            assert (lab.stored(), lab.data("a")) == (["a"], DATA)
            assert not fs.volume.journal.conflicts(after=0, limit=1)
            assert fs.syncer.left().is_nothing
            assert (await lab.get("a")).id == inode_of(answer)
            assert not lab.staging_files()
        os.close(memory)
        if not died:
            break
    assert last >= 8, "there are steps to die at"


@asynccontextmanager
async def making(lab: Lab, *, sync: bool = True) -> AsyncIterator[tuple[FileSystem, Express]]:
    """Mount a bucket whose root is listed."""
    memory = make_ring()
    async with lab.mounted(sync=sync) as fs:
        await lab.ls()
        yield fs, operations_of(lab, memory).express
    os.close(memory)


async def test_a_small_file_is_made_written_and_uploaded_without_a_task(writeback: Lab) -> None:
    async with making(writeback) as (fs, express):
        answer = create(express)
        handle = handle_of(answer)
        assert express.write(handle, 0, memoryview(DATA)) == replies.WRITE_OUT.pack(len(DATA), 0)
        assert express.write(handle, 5, memoryview(b"PATCH")) == replies.WRITE_OUT.pack(5, 0)
        node = await writeback.get("a")
        assert (node.mode, node.uid, node.gid) == (0o640, 1000, 1001)
        assert fs.stages.size(node) == len(DATA)
        assert express.release(handle) == 0
        await writeback.settle()
        assert writeback.data("a") == DATA[:5] + b"PATCH" + DATA[10:]
        assert fs.counters.written_bytes == len(DATA) + 5
        assert not writeback.staging_files()


async def test_a_close_is_kept_with_the_next_change_and_acknowledged_then(writeback: Lab) -> None:
    """Not before: the next worker asks the kernel again, or the file would wait for its upload for ever."""
    async with making(writeback, sync=False) as (fs, express):
        told: list[Inode] = []
        for name in (b"a", b"b", b"c"):
            answer = create(express, name)
            assert express.release(handle_of(answer)) == 0
            express.when_kept(partial(told.append, inode_of(answer)))
            is_due = {row.inode: row.retry_ns is not None for row in fs.volume.journal.all_staged()}
            assert is_due.pop(inode_of(answer)) is False
            assert list(is_due) == told
            assert all(is_due.values())
        with pytest.raises(OSError, match="full"):
            fs.tree.mkdir_now(ROOT, "d", Creator(0, 0, 0o755), _full)
        assert len(told) == 2, "what is rolled back takes nothing along"
        express.settle()
        assert len(told) == 3
        express.when_kept(told.clear)
        assert not told, "nothing is left to be kept"
        assert all(row.retry_ns is not None for row in fs.volume.journal.all_staged())


async def test_a_close_that_the_disk_had_no_room_for_is_kept_without_another_change(
    writeback: Lab, autojump_clock: object
) -> None:
    async with making(writeback) as (_, express):
        answer = create(express)
        assert express.write(handle_of(answer), 0, memoryview(DATA)) is not None
        assert express.release(handle_of(answer)) == 0  # and `settle` finds the disk full
        await trio.sleep(5)
        assert writeback.data("a") == DATA


async def test_a_file_that_s3_refused_meanwhile_is_not_queued_by_its_close(writeback: Lab) -> None:
    """Its row is not as it was made any more."""
    async with making(writeback, sync=False) as (fs, express):
        answer = create(express)
        fs.volume.journal.fail_staged(inode_of(answer), "too large", conflict=True, retry_ns=None)
        fs.stages.failed(inode_of(answer), None)
        assert express.release(handle_of(answer)) == 0
        express.settle()
        assert inode_of(answer) not in fs.stages.backlog


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "full")


async def test_of_changes_only_what_may_be_a_repeat_goes_the_usual_way(writeback: Lab) -> None:
    """Whoever made the former call may be dead; all others must not be slower for that."""
    memory = make_ring()
    Ring(memory).begin(Call(CREATE.op, CREATE.parent, CREATE.name, CREATE.thread))
    async with writeback.mounted():
        await writeback.ls()
        express = operations_of(writeback, memory, CREATE).express
        assert create(express, b"a") is None
        assert create(express, b"b") is not None
        assert express.mkdir(ROOT, b"a", CALLER) is not None
    os.close(memory)


async def test_a_directory_is_made_without_a_task(writeback: Lab) -> None:
    async with making(writeback) as (_, express):
        answer = express.mkdir(ROOT, b"d", CALLER._replace(mode=0o751))
        express.answered()
        inner = express.create(inode_of(answer), b"f", os.O_WRONLY, CALLER)
        assert handle_of(inner)
        assert (await writeback.get("d")).mode == 0o751
        assert await writeback.ls("d") == ["f"]
        assert express.mkdir(ROOT, b"d", CALLER) is None, "the usual way says that it exists"


async def test_a_file_is_removed_without_a_task(lab: Lab) -> None:
    """Who has it open goes on reading it; a directory, and a name that S3 was not asked for, go the usual way."""
    memory = make_ring()
    lab.store.insert("d/a", DATA)
    lab.store.insert("d/b", DATA)
    async with lab.mounted() as fs:
        directory = (await lab.get("d")).id
        express = operations_of(lab, memory).express
        assert express.unlink(directory, b"a", THREAD) is None
        node = await lab.get("d/a")
        lab.held.add(node.id)
        assert express.unlink(directory, b"a", THREAD) == 0
        express.answered()
        assert await lab.ls("d") == ["b"]
        assert await lab.read_inode(node.id) == DATA
        assert express.unlink(directory, b"a", THREAD) is None, "the usual way says that it is gone"
        assert express.unlink(ROOT, b"d", THREAD) is None
        fs.volume.settings.read_only = True
        await lab.get("d/b")
        assert express.unlink(directory, b"b", THREAD) is None
        assert set(fs.counters.calls) == {"unlink"}
    os.close(memory)


async def test_a_file_is_renamed_without_a_task(lab: Lab) -> None:
    """Also onto another. Directories, exchanges, and names that S3 was not asked for go the usual way."""
    memory = make_ring()
    for key in ("d/a", "d/b", "e/c", "cold"):
        lab.store.insert(key, key.encode(), storage_class="GLACIER" if key == "cold" else None)
    async with lab.mounted() as fs:
        d, e = (await lab.get("d")).id, (await lab.get("e")).id
        express = operations_of(lab, memory).express

        def rename(parent: Inode, name: bytes, to: Inode, new: bytes, flags: int = 0) -> Answer:
            answer = express.rename(parent, name, to, new, flags, THREAD)
            express.answered()
            return answer

        await lab.get("d/a")
        assert rename(d, b"a", e, b"n") is None, "S3 was not asked for the new name"
        for path in ("", "d", "e"):
            await lab.ls(path)
        assert rename(d, b"a", e, b"n") == 0
        assert rename(d, b"a", e, b"m") is None, "the usual way says that it is gone"
        assert rename(d, b"b", e, b"c", RENAME_NOREPLACE) is None, "… that it is there"
        assert rename(d, b"b", e, b"c", RENAME_EXCHANGE) is None
        assert rename(d, b"b", d, b"b") is None
        assert rename(d, b"b", ROOT, b"e") is None, "… that it is a directory"
        assert rename(ROOT, b"d", ROOT, b"f") is None
        assert rename(ROOT, b"cold", ROOT, b"f") is None
        assert rename(d, b"b", e, b"c") == 0
        assert rename(e, b"n", ROOT, b"o", RENAME_NOREPLACE) == 0
        assert (await lab.ls("d"), await lab.ls("e")) == ([], ["c"])
        fs.volume.settings.read_only = True
        assert rename(e, b"c", e, b"x") is None
        fs.volume.settings.read_only = False
        await lab.settle()
        assert (lab.data("o"), lab.data("e/c")) == (b"d/a", b"d/b")
        assert lab.stored() == ["cold", "d/", "e/c", "o"]
    os.close(memory)


@dataclass(frozen=True)
class Once:
    """A change of names that must not be made twice: how it is asked for, and again, and what S3 has after it."""

    resent: Resent
    express: Callable[[Express], Answer]
    operations: Callable[[Operations], Awaitable[object]]
    left: dict[str, bytes]


_ROOT = cast(InodeT, ROOT)
REMOVAL = Once(
    Resent(Opcode.UNLINK, int(ROOT), b"a", THREAD),
    lambda express: express.unlink(ROOT, b"a", THREAD),
    lambda operations: operations.unlink(_ROOT, b"a", CTX),
    {"b": b"other"},
)
RENAME = Once(
    Resent(Opcode.RENAME2, int(ROOT), b"a", THREAD, (ROOT, b"b")),
    lambda express: express.rename(ROOT, b"a", ROOT, b"b", 0, THREAD),
    lambda operations: operations.rename(_ROOT, b"a", _ROOT, b"b", FlagT(0), CTX),
    {"b": DATA},
)


@pytest.mark.parametrize("change", [REMOVAL, RENAME], ids=["removal", "rename"])
async def test_a_worker_that_dies_at_any_step_of_a_change_makes_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, change: Once
) -> None:
    """Asked again, it does not say that there is no such file."""
    for last in count():
        lab = Lab(tmp_path / str(last), settings=settings(write_mode="writeback"))
        lab.directory.mkdir()
        lab.store.insert("a", DATA)
        lab.store.insert("b", b"other")
        memory = make_ring()
        answer = None
        async with lab.mounted(sync=False):
            await lab.ls()
            express = operations_of(lab, memory).express
            with dying(lab, last, monkeypatch):
                try:
                    answer = change.express(express)
                    assert answer == 0
                    express.answered()
                except Killed:
                    pass
        async with lab.mounted():
            if answer is None:
                operations = operations_of(lab, memory, change.resent)
                # A new call of the same would be made at once; this one may have been made already.
                assert change.express(operations.express) is None
                await change.operations(operations)
            assert await lab.ls() == list(change.left)
            await lab.settle()
            assert {key: lab.data(key) for key in lab.stored()} == change.left
        os.close(memory)
        if answer is not None:
            break
    assert last == 2, "before and after the commit"


async def test_what_may_need_more_than_mount_db_goes_the_usual_way(writeback: Lab) -> None:
    memory = make_ring()
    async with writeback.mounted() as fs:
        express = operations_of(writeback, memory).express
        assert create(express) is None, "S3 was not asked for the name"
        await writeback.ls()
        await writeback.write("there", b"x" * 10)
        assert create(express, b"there") is None
        assert create(express, b"a", os.O_RDONLY) is None
        assert create(express, b"\xff") is None, "no UTF-8"
        fs.volume.settings.read_only = True
        assert create(express) is None
        fs.volume.settings.read_only = False
        handle = handle_of(create(express))
        inode = (await writeback.get("a")).id
        async with fs.volume.locks.holding(("inode", inode)):
            assert express.write(handle, 0, memoryview(b"somebody uploads it")) is None
        assert operations_of(writeback, memory, CREATE).express.mkdir(ROOT, b"e", CALLER)
    os.close(memory)


async def test_a_file_whose_maker_was_killed_is_not_open(writeback: Lab) -> None:
    """The kernel takes no answer then, and will not close what it does not know to be open."""
    async with making(writeback) as (fs, express):
        answer = create(express)
        assert isinstance(answer, bytes)
        express.not_created(answer)
        assert not fs.stages.writing() or not fs.stages.is_open(inode_of(answer))
        await writeback.settle()
        assert writeback.data("a") == b""


async def test_only_user_attributes_are_looked_for(writeback: Lab) -> None:
    async with writeback.mounted():
        memory = make_ring()
        express = operations_of(writeback, memory).express
        assert express.getxattr(b"security.capability") == errno.EOPNOTSUPP
        assert express.getxattr(b"user.a") is None
        os.close(memory)


async def test_a_file_that_was_made_and_cannot_be_opened_is_not_made_once_more(
    writeback: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_EXCL would be told that it exists, though nobody else made it."""
    async with writeback.mounted() as fs:
        await writeback.ls()
        express = operations_of(writeback, make_ring()).express

        def fail(_: Node) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(fs.stages, "take_up", fail)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        assert express.create(int(ROOT), b"a", flags, CALLER) == errno.EMFILE
        express.answered()
        assert not fs.stages.writing()
