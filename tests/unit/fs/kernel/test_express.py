"""Requests that mount.db answers without a task: the bytes that the kernel gets, and what is left to the usual way."""

import errno
import os
import random
import stat
import struct

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.nodes import ROOT, Inode, Kind
from s3mgrd.fs import attributes
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.kernel import replies
from s3mgrd.fs.kernel.express import Answer
from s3mgrd.fs.kernel.handles import Handles
from s3mgrd.fs.volume import NS
from s3mgrd.fs.writing import pace
from s3mgrd.fs.writing.streaming import Streams
from tests.unit.fs.conftest import Lab
from tests.unit.fs.kernel.listings import (
    ATTRIBUTES,
    DIRENT,
    ENTRY,
    PAGE,
    Shown,
    entries,
    express_of,
    opened,
)


async def test_a_name_is_answered_once_it_is_known(lab: Lab) -> None:
    """With what stat shows, and for as long as the name may be believed."""
    await lab.store.put("d/a", b"12345", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = await lab.get("d")
        assert express.lookup(directory.id, b"a") is None
        await fs.namespace.ensure_listed(directory.id)
        lab.later(10)
        answer = express.lookup(directory.id, b"a")
        assert isinstance(answer, bytes)
        node = await lab.get("d/a")
        inode, _, valid, attr_valid, *_ = ENTRY.unpack_from(answer)
        assert (inode, valid, attr_valid) == (node.id, 20, 20)
        found = ATTRIBUTES.unpack_from(answer, ENTRY.size)
        mtime = divmod(node.mtime_ns, NS)
        assert found[:6] == (node.id, 5, 1, mtime[0], mtime[0], mtime[0])
        assert found[6:9] == (mtime[1],) * 3
        assert found[9:] == (stat.S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0)
        assert len(answer) == ENTRY.size + ATTRIBUTES.size
        shown = express.getattr(node.id)
        assert isinstance(shown, bytes)
        assert shown[16:] == answer[ENTRY.size :]
        lab.later(21)
        assert express.lookup(directory.id, b"a") is None


async def test_what_lies_in_the_stage_is_what_is_shown(lab: Lab) -> None:
    """S3 has nothing of it yet."""
    async with lab.mounted():
        express = express_of(lab)
        await lab.write("a", b"hello", close=False)
        answer = express.lookup(ROOT, b"a")
        assert isinstance(answer, bytes)
        assert ATTRIBUTES.unpack_from(answer, ENTRY.size)[1] == 5


async def test_a_name_that_is_not_there_is_answered_with_how_long_that_holds(lab: Lab) -> None:
    """Or, where the kernel may not remember it, with ENOENT."""
    async with lab.mounted() as fs:
        express = express_of(lab)
        await fs.namespace.ensure_listed(ROOT)
        answer = express.lookup(ROOT, b"absent")
        assert isinstance(answer, bytes)
        assert ENTRY.unpack_from(answer)[:4] == (0, 0, 30, 0)
        assert len(answer) == ENTRY.size + ATTRIBUTES.size
        lab.settings.negative_ttl_s = 0
        assert express.lookup(ROOT, b"absent") == errno.ENOENT


async def test_a_directory_is_given_piece_by_piece_and_then_ends(lab: Lab) -> None:
    """Each piece as large as there is room for, every name once, in the order of their positions."""
    names = {f"{'n' * (i % 60)}{i}" for i in range(100)} | {"ü" * 100}
    for name in names:
        await lab.store.put(f"d/{name}", b"x" * 7, metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = (await lab.get("d")).id
        handle = opened(express, directory)
        assert express.readdir(handle, 0, PAGE) is None
        await fs.namespace.ensure_listed(directory)
        found: list[Shown] = []
        while piece := list(
            entries(express.readdir(handle, found[-1].position if found else 0, PAGE))
        ):
            found += piece
        assert sorted(shown.name for shown in found) == sorted(names)
        assert [shown.position for shown in found] == sorted(shown.inode for shown in found)
        assert {shown.mode for shown in found} == {stat.S_IFREG | 0o644}
        assert {shown.size for shown in found} == {7}
        assert {shown.valid_s for shown in found} == {30.0}
        assert express.releasedir(handle) == 0


async def test_an_end_that_was_found_is_looked_for_again_once_anything_changed(lab: Lab) -> None:
    """A name that came after the last piece was given is shown by the next."""
    await lab.store.put("d/a", b"1", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = (await lab.get("d")).id
        await fs.namespace.ensure_listed(directory)
        handle = opened(express, directory)
        (first,) = entries(express.readdir(handle, 0, PAGE))
        assert express.readdir(handle, first.position, PAGE) == b""
        late = fs.volume.nodes.insert(directory, "late", Kind.FILE, 1, etag='"1"')
        assert [
            shown.inode for shown in entries(express.readdir(handle, first.position, PAGE))
        ] == [late]


async def test_an_empty_directory_has_two_dots_and_then_ends(lab: Lab) -> None:
    """Nothing at all would be kept by the kernel for good."""
    await lab.store.put("d/", b"", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = (await lab.get("d")).id
        await fs.namespace.ensure_listed(directory)
        handle = opened(express, directory)
        answer = express.readdir(handle, 0, PAGE)
        assert isinstance(answer, bytes)
        numbers = [
            DIRENT.unpack_from(answer, at + ENTRY.size + ATTRIBUTES.size)[0]
            for at in (0, len(answer) // 2)
        ]
        assert numbers == [directory, ROOT]
        assert list(entries(answer)) == []
        assert express.readdir(handle, 1, PAGE) == b""


async def test_a_listing_under_way_is_waited_for_by_the_usual_way(lab: Lab) -> None:
    """Its entries come page by page."""
    await lab.store.put("d/a", b"1", metadata={})
    async with lab.mounted() as fs:
        express = express_of(lab)
        directory = await lab.get("d")
        await fs.namespace.ensure_listed(directory.id)
        handle = opened(express, directory.id)
        lab.later(31)
        listing = fs.lister.start(fs.volume.directory(directory.id))
        assert express.readdir(handle, 0, PAGE) is None
        await listing.finished()
        assert [shown.name for shown in entries(express.readdir(handle, 0, PAGE))] == ["a"]


@pytest.mark.parametrize("name", [b"\xff", b"n" * 256])
async def test_what_fails_is_left_to_the_handler_that_can_say_so(lab: Lab, name: bytes) -> None:
    """An inode that nobody knows, a file where a directory is needed, a name that cannot be."""
    await lab.store.put("a", b"1", metadata={})
    async with lab.mounted():
        express = express_of(lab)
        file = (await lab.get("a")).id
        assert express.lookup(ROOT, name) is None
        assert express.lookup(file, b"b") is None
        assert express.getattr(Inode(999)) is None
        assert express.opendir(file) is None
        assert express.readdir(999, 0, PAGE) is None


async def test_what_was_answered_is_counted_once(lab: Lab) -> None:
    """What goes the usual way is counted there."""
    async with lab.mounted() as fs:
        express = express_of(lab)
        assert express.lookup(ROOT, b"absent") is None
        await fs.namespace.ensure_listed(ROOT)
        assert express.lookup(ROOT, b"absent") is not None
        express.answered()
        express.answered()
        assert {name: c.count for name, c in fs.counters.calls.items()} == {"lookup": 1}


async def test_a_handle_that_nobody_got_is_forgotten(lab: Lab) -> None:
    """Who opened the directory was killed before the reply: it reads nothing, so it spoils no cache."""
    async with lab.mounted() as fs:
        express = express_of(lab)
        await fs.namespace.ensure_listed(ROOT)
        answer = express.opendir(ROOT)
        assert isinstance(answer, bytes)
        express.interrupted(answer)
        assert not express._caches._readers


def joined(answer: object) -> bytes:
    """Return the bytes of an answer to a read."""
    assert isinstance(answer, list)
    return b"".join(answer)


async def test_what_is_in_memory_is_read_without_waiting(cached: Lab) -> None:
    """From what was read ahead, or the block cache; what is in neither must be asked for the usual way."""
    body = bytes(range(256)) * 4096
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        node = await cached.get("a")
        express = express_of(cached)
        answer = express.open(node.id, os.O_RDONLY)
        assert isinstance(answer, bytes)
        handle, flags, _ = replies.OPEN_OUT.unpack(answer)
        assert flags == replies.KEEP_CACHE | replies.NO_FLUSH
        assert express.read(handle, 0, 4096) is None
        assert bytes(await fs.read(node.id, 0, 4096, handle=handle)) == body[:4096]
        assert joined(express.read(handle, 100, 50)) == body[100:150]
        await cached.read("a")
        assert cached.blocks is not None
        await cached.blocks.written()
        await wait_all_tasks_blocked()
        assert joined(express.read(handle, 500_000, 99)) == body[500_000:500_099]
        assert express.read(handle, len(body), 10) == []
        assert express.flush(handle) == 0
        assert express.release(handle) == 0


async def test_opens_that_may_write_and_errors_go_the_usual_way(lab: Lab) -> None:
    lab.store.insert("a", b"x")
    async with lab.mounted():
        node = await lab.get("a")
        express = express_of(lab)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            assert express.open(node.id, flags) is None
        assert express.open(node.id + 1000, os.O_RDONLY) is None
        assert express.open(ROOT, os.O_RDONLY) is None
        assert express.read(node.id + 1000, 0, 1) is None
        handle = Handles().make(node.id, writes=True)
        assert express.flush(handle) is None
        assert express.release(handle) == 0


async def test_a_handle_is_counted_once_however_its_release_fails(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual way does all of it again; who else writes to the file goes on doing so."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"1", close=False)
        express, handle = express_of(lab), Handles().make(node.id, writes=True)
        before = fs.stages._writers.get(node.id, 0)
        fs.stages.opened(node.id)
        fs.stages.opened(node.id)
        with monkeypatch.context() as broken:
            broken.setattr(fs.stages, "queue", _fail)
            assert express.release(handle) is None
        assert fs.stages._writers[node.id] == before + 2
        assert express.release(handle) == 0
        assert fs.stages._writers[node.id] == before + 1


def _fail(_: Inode) -> bool:
    raise OSError(errno.EIO, "the disk fails")


async def test_what_is_staged_is_not_read_from_what_s3_has(cached: Lab) -> None:
    body = bytes(range(256)) * 4096
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        node = await cached.get("a")
        express = express_of(cached)
        assert bytes(await fs.read(node.id, 0, 9, handle=node.id)) == body[:9]
        assert joined(express.read(node.id, 0, 9)) == body[:9]
        await fs.stages.write(node.id, 3, b"new")
        assert express.read(node.id, 0, 9) is None
        await fs.commit(node.id)
        found = express.read(node.id, 0, 9)
        assert found is None or joined(found) == body[:3] + b"new" + body[6:9]


def taken(answer: object) -> int | None:
    """Return how many bytes a reply to WRITE says were taken."""
    if answer is None:
        return None
    assert isinstance(answer, bytes)
    size, padding = struct.unpack("=II", answer)
    assert padding == 0
    return int(size)


async def test_a_write_is_taken_at_once_and_sent_as_any_other(lab: Lab) -> None:
    """What is given is the buffer that the next request comes in: nothing keeps it."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"", close=False)
        express, handle = express_of(lab), Handles().make(node.id, writes=True)
        buffer = bytearray(random.Random(1).randbytes(1 << 20))  # noqa: S311 - content, not a secret
        body = bytes(buffer) + b"tail"
        assert taken(express.write(handle, 0, memoryview(buffer))) == 1 << 20
        buffer[:4] = b"tail"
        assert taken(express.write(handle, 1 << 20, memoryview(buffer)[:4])) == 4
        buffer[:] = bytes(1 << 20)
        assert await lab.read_inode(node.id) == body
        assert fs.counters.written_bytes == len(body)
        await fs.commit(node.id)
        assert lab.data("a") == body


async def test_a_write_that_has_to_wait_goes_the_usual_way(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For whoever holds the file, for room, for a conflict copy, or because it fails: nothing is written then."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello", close=False)
        express, handle = express_of(lab), Handles().make(node.id, writes=True)
        data = memoryview(b"J")
        async with fs.volume.locks.holding(("inode", node.id)):
            assert express.write(handle, 0, data) is None
        with monkeypatch.context() as patched:
            patched.setattr(Streams, "is_full", True)
            assert express.write(handle, 0, data) is None
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", lambda *_: 1 // 0)
            assert express.write(handle, 0, data) is None
        assert express.write(Handles().make(Inode(4711), writes=True), 0, data) is None
        assert await lab.read_inode(node.id) == b"hello"
        await fs.commit(node.id)
        fs.volume.detach(fs.volume.node(node.id))
        assert fs.stages.get(node.id) is None
        assert express.write(handle, 0, data) is None


async def test_a_slow_disk_is_given_large_writes_by_a_thread_for_a_while(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with lab.mounted():
        node = await lab.write("a", b"", close=False)
        express, handle = express_of(lab), Handles().make(node.id, writes=True)
        large, small = memoryview(bytes(64 << 10)), memoryview(b"small")
        with monkeypatch.context() as patched:
            patched.setattr(pace, "SLOW_S", 0.0)
            assert taken(express.write(handle, 0, large)) == len(large)
        assert express.write(handle, 0, large) is None
        assert taken(express.write(handle, 0, small)) == len(small)
        await trio.sleep(pace.SLOW_FOR_S)
        assert taken(express.write(handle, 0, large)) == len(large)


async def test_a_file_to_be_uploaded_later_is_closed_at_once(lab: Lab) -> None:
    """Unless close() has to wait: for S3, or for room."""
    lab.settings.write_mode = "writeback"
    async with lab.mounted(sync=False) as fs:
        express = express_of(lab)
        node = await lab.write("a", b"hello", close=False)
        fs.stages.opened(node.id)
        handle = Handles().make(node.id, writes=True)
        assert express.flush(handle) == 0
        assert express.release(handle) == 0
        assert fs.stages.backlog.files == 1
        lab.settings.dirty_limit_bytes = 4
        assert express.flush(handle) is None
        lab.settings.write_mode = "close"
        assert express.flush(handle) is None


async def test_the_time_of_a_write_is_taken_from_the_kernel(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs:
        express = express_of(lab)
        node = await lab.write("a", b"hello", close=False)
        later_ns = lab.now_ns + 5

        def kept(mtime_ns: int, ctime_ns: int) -> Answer:
            return express.setattr(node.id, AttributeChange(mtime_ns=mtime_ns, ctime_ns=ctime_ns))

        assert isinstance(kept(later_ns, later_ns), bytes)
        assert fs.stages.mtime_ns(fs.volume.node(node.id)) == later_ns
        await fs.commit(node.id)
        assert isinstance(kept(later_ns, later_ns + 9), bytes)
        assert fs.volume.node(node.id).ctime_ns == later_ns + 9
        assert not fs.volume.node(node.id).attributes_dirty


async def test_modes_and_times_are_set_at_once(lab: Lab) -> None:
    """As rsync sets them, of a file that has yet to be uploaded and of one that S3 has."""
    async with lab.mounted() as fs:
        express = express_of(lab)
        node = await lab.write("a", b"hello", close=False)
        times = AttributeChange(atime_ns=8 * NS, mtime_ns=7 * NS, ctime_ns=9 * NS)
        assert isinstance(express.setattr(node.id, times), bytes)
        assert isinstance(express.setattr(node.id, AttributeChange(mode=0o600)), bytes)
        # utimensat without an access time looks like a time that the kernel kept.
        again = AttributeChange(mtime_ns=6 * NS, ctime_ns=9 * NS)
        assert isinstance(express.setattr(node.id, again), bytes)
        await fs.commit(node.id)
        told = attributes.decode(lab.store.objects["a"].head.metadata)
        assert (told.mode, told.mtime_ns) == (0o600, 6 * NS)
        assert lab.store.calls["copy"] == 0
        found = fs.volume.node(node.id)
        assert (found.mode, found.mtime_ns, found.atime_ns) == (0o600, 6 * NS, 8 * NS)

        assert isinstance(express.setattr(node.id, AttributeChange(mode=0o640)), bytes)
        await lab.settle()
        assert attributes.decode(lab.store.objects["a"].head.metadata).mode == 0o640
        assert lab.store.calls["copy"] == 1


async def test_attributes_for_which_s3_has_to_be_asked_are_set_by_a_task(lab: Lab) -> None:
    """Nothing is changed here: those that are not known, those of what is archived, and where nothing may be changed."""
    lab.store.insert("other", b"x")
    lab.store.insert("cold", b"x", storage_class="GLACIER")
    change = AttributeChange(mode=0o600)
    async with lab.mounted(sync=False) as fs:
        express = express_of(lab)
        other, cold = await lab.get("other"), await lab.get("cold")
        fs.volume.nodes.update(other.id, attributes_known=0)
        fs.volume.nodes.update(cold.id, attributes_known=1)
        for node in (other, cold):
            before = fs.volume.node(node.id)
            assert express.setattr(node.id, change) is None
            assert fs.volume.node(node.id) == before
        lab.settings.read_only = True
        fs.volume.nodes.update(other.id, attributes_known=1)
        assert express.setattr(other.id, change) is None
