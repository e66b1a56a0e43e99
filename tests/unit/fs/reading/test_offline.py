"""While S3 cannot be reached what it said last is shown, for no longer than that, and nothing that it never said."""

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from s3mgrd.cache.blockindex import BLOCK_BYTES
from s3mgrd.cache.blocks import open_block_cache
from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.errors import Unavailable
from s3mgrd.fs.filesystem import FileSystem
from tests.unit.fs.conftest import Lab

DOWN = Unavailable("down")
TTL_S = 30.0


def go_offline(lab: Lab) -> int:
    """Begin an outage, long after everything that is known went out of date; returns how often S3 was asked before."""
    lab.store.outage.watch(is_watched=True)
    lab.later(10 * TTL_S)
    lab.store.outage.begin(DOWN)
    return lab.store.calls.total()


async def test_what_was_known_is_shown_without_asking_and_believed_for_no_time(lab: Lab) -> None:
    lab.store.insert("a", b"1")
    lab.store.insert("d/b", b"22")
    async with lab.mounted() as fs:
        assert await lab.ls() == ["a", "d/"]
        assert await lab.ls("d") == ["b"]
        assert await lab.find("absent") is None
        asked = go_offline(lab)
        assert await lab.ls() == ["a", "d/"]
        assert await lab.ls("d") == ["b"]
        for path in ("a", "d/b"):
            assert fs.namespace.valid_for_s(await lab.get(path)) == 0
        for name in ("absent", "never asked for"):
            assert await lab.find(name) is None
            assert fs.namespace.tell_absent(ROOT, name) == 0
        root = fs.volume.directory(ROOT)
        assert fs.namespace.knows_entries(root, 0)
        entries = fs.namespace.known_entries(root, 0, 10)
        assert {entry.valid_s for entry in entries} == {0.0}
        assert lab.store.calls.total() == asked

        lab.store.insert("a", b"333")
        lab.store.insert("absent", b"4")
        lab.store.outage.note_answer()
        assert (await lab.get("a")).size == 3
        assert await lab.ls() == ["a", "absent", "d/"]


async def test_what_was_never_known_is_not_said_to_be_absent(lab: Lab) -> None:
    lab.store.insert("d/b", b"22")
    async with lab.mounted() as fs:
        assert await lab.ls() == ["d/"]
        directory = await lab.get("d")
        asked = go_offline(lab)
        assert not fs.namespace.knows_entries(directory, 0)
        for look in (lab.find("d/b"), lab.find("d/x"), lab.ls("d")):
            with pytest.raises(Unavailable, match="not known here: down"):
                await look
        assert lab.store.objects.keys() == {"d/b"}
        lab.store.outage.note_answer()
        assert await lab.ls("d") == ["b"]
        assert asked > 0


async def test_who_asks_when_the_outage_begins_is_answered_with_what_is_known(lab: Lab) -> None:
    """Names, listings and attributes, each on its way to S3."""
    for number in range(3):
        lab.store.insert(f"d/{number}", b"x")

    def fail(*_: object) -> None:
        lab.store.outage.begin(DOWN)
        raise DOWN

    async with lab.mounted():
        assert await lab.ls("d") == ["0", "1", "2"]
        lab.store.outage.watch(is_watched=True)
        for look in (lambda: lab.find("d/1"), lambda: lab.ls("d"), lambda: lab.find("d/absent")):
            lab.store.outage.note_answer()
            lab.later(2 * TTL_S)
            lab.store.before = fail
            found = await look()
            assert found is None or found
            assert lab.store.outage.is_on
            lab.store.before = None


async def test_without_the_option_the_error_of_asking_is_the_answer(lab: Lab) -> None:
    lab.store.insert("a", b"1")
    async with lab.mounted():
        assert await lab.ls() == ["a"]
        lab.later(2 * TTL_S)
        lab.store.outage.begin(DOWN)
        lab.store.fail_next("list_page", DOWN, times=10)
        lab.store.fail_next("head", DOWN, times=10)
        with pytest.raises(Unavailable):
            await lab.find("a")


@pytest.fixture
def caching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A mount with a cache on disk, whose threads no clock of a test sees; its memory forgets what nobody has open."""
    monkeypatch.setattr("s3mgrd.fs.reading.reader.LINGER_S", 0.0)
    return Lab(tmp_path)


async def test_cached_bytes_are_read_though_what_is_fetched_with_them_cannot_be_had(
    caching: Lab, tmp_path: Path
) -> None:
    """One segment covers both: it fails, and what is here of it does not."""
    lab = caching
    lab.blocks = open_block_cache(tmp_path, owner="me", limit_bytes=64 << 20)
    assert lab.blocks is not None
    body = os.urandom(1 << 20)
    lab.store.insert("a", body)
    found: list[bytes] = []

    async def read_later(fs: FileSystem, inode: Inode) -> None:
        found.append(bytes(await fs.read(inode, 4 * BLOCK_BYTES, 4096, handle=2)))

    async with lab.mounted() as fs:
        node = await lab.get("a")
        assert node.etag is not None
        for block in (0, 4):
            start = block * BLOCK_BYTES
            data = memoryview(body)[start : start + BLOCK_BYTES]
            assert await lab.blocks.keep(node.id, node.etag, start, data, len(body))
        with lab.store.hold("get_range") as hold:
            assert bytes(await fs.read(node.id, 0, 4096, handle=2)) == body[:4096]
            await hold.arrived()  # read ahead, from the block that is not here on
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_later, fs, node.id)
                await trio.testing.wait_all_tasks_blocked()
                assert not found, "it waits for what is fetched ahead"
                go_offline(lab)
                hold.release()
        assert found == [body[4 * BLOCK_BYTES :][:4096]]
        with pytest.raises(Unavailable):
            await fs.read(node.id, BLOCK_BYTES, 4096, handle=2)
        fs.reader.close(2)
    lab.blocks.close()


async def test_a_version_that_is_gone_is_read_from_the_cache(caching: Lab, tmp_path: Path) -> None:
    lab = caching
    lab.blocks = open_block_cache(tmp_path, owner="me", limit_bytes=64 << 20)
    assert lab.blocks is not None
    lab.store.insert("a", b"x" * 100_000)
    async with lab.mounted() as fs:
        node = await lab.get("a")
        await fs.read(node.id, 0, 100_000, handle=1)
        await lab.blocks.written()
        lab.store.insert("a", b"y" * 100_000)
        assert bytes(await fs.read(node.id, 0, 100_000, handle=1)) == b"x" * 100_000
        await lab.blocks.evict_all()
        fs.reader.close(1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError) as gone:  # noqa: PT011 - its errno is looked at
            await fs.read(node.id, 0, 100_000, handle=2)
        assert gone.value.errno == errno.ESTALE
        fs.reader.close(2)
    lab.blocks.close()


async def test_changes_go_on_and_s3_follows(lab: Lab) -> None:
    for key in ("a", "d/b", "d/c", "e/f"):
        lab.store.insert(key, key.encode())
    async with lab.mounted():
        for path in ("", "d", "e"):
            await lab.ls(path)
        go_offline(lab)
        await lab.mkdir("new")
        await lab.unlink("d/b")
        await lab.rename("a", "d/a")
        await lab.rename("d/c", "new/c")
        await lab.write("new/written", b"offline", close=False)
        assert await lab.ls("d") == ["a"]
        assert await lab.ls("new") == ["c", "written"]
        assert await lab.read("new/written") == b"offline"
        with pytest.raises(Unavailable):
            await lab.rmdir("e")
        lab.store.outage.note_answer()
        await lab.settle()
        assert lab.stored() == ["d/a", "e/f", "new/", "new/c", "new/written"]
        assert lab.data("new/c") == b"d/c"


async def test_an_upload_that_the_outage_kept_is_tried_when_it_ends(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """Its next try would be later, and no time passes for it here."""
    lab.settings.write_mode = "writeback"
    async with lab.mounted() as fs:
        assert await lab.ls() == []
        go_offline(lab)
        lab.store.fail_next("put", DOWN)
        node = await lab.write("w", b"x", close=False)
        fs.closed(node.id)
        await trio.sleep(60)
        assert lab.store.calls["put"] == 1
        lab.store.outage.note_answer()
        await trio.sleep(5)
        assert lab.stored() == ["w"]
