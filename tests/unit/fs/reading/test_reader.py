"""Reads: few requests, bounded memory, the block cache, and guesses that stop when they are wrong."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.blockindex import BLOCK_BYTES
from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import Unavailable
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.reading.filling import FILL_AFTER, FILL_FIRST, FILL_STEP
from s3mgrd.fs.reading.patterns import MIB
from s3mgrd.fs.reading.prefetch import MAX_WINDOW
from s3mgrd.fs.reading.reader import LINGER_S, WHOLE_BYTES
from s3mgrd.s3.port import RangeRead
from tests.unit.fs.conftest import Lab, settings

STEP = 128 << 10


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - content, not a secret


async def read_at(lab: Lab, path: str, offset: int, length: int, *, handle: int) -> bytes:
    node = await lab.get(path)
    try:
        return bytes(await lab.fs.read(node.id, offset, length, handle=handle))
    finally:
        lab.fs.reader.close(handle)


async def read_through(lab: Lab, path: str, *, step: int = MIB, handle: int = 1) -> bytes:
    node, data = await lab.get(path), b""
    while part := bytes(await lab.fs.read(node.id, len(data), step, handle=handle)):
        data += part
    lab.fs.reader.close(handle)
    return data


async def open_and_read(lab: Lab, path: str, *, handle: int = 1) -> bytes:
    node = await lab.get(path)
    lab.fs.prefetcher.opened(node)
    return await read_at(lab, path, 0, node.size, handle=handle)


async def test_a_sequential_reader_asks_for_every_byte_once(cached: Lab) -> None:
    body = content(20 * MIB + 5)
    cached.store.insert("big", body)
    async with cached.mounted() as fs:
        assert await read_through(cached, "big") == body
        assert fs.volume.store.stats.received_bytes == len(body)
        assert fs.reader.held_bytes <= cached.settings.memory_limit_bytes


async def test_what_is_wanted_first_is_asked_for_first(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trio begins new tasks in one order or its reverse, by chance; more may be wanted than there are connections."""
    starts: list[int] = []
    for number in range(8):
        lab.store.insert(f"big-{number}", content(8 * MIB))
    async with lab.mounted() as fs:
        get_range = fs.volume.store.get_range

        async def noted(key: str, start: int, stop: int, **options: Any) -> RangeRead:  # noqa: ANN401 as given
            starts.append(start)
            return await get_range(key, start, stop, **options)

        monkeypatch.setattr(fs.volume.store, "get_range", noted)
        for number in range(8):
            starts.clear()
            await read_at(lab, f"big-{number}", 0, MIB, handle=number)
            assert len(starts) > 4
            assert starts == sorted(starts)


async def test_what_was_read_is_read_again_without_s3_even_after_a_restart(cached: Lab) -> None:
    body = content(3 * MIB + 5)
    cached.store.insert("big", body)
    async with cached.mounted():
        assert await read_through(cached, "big") == body
        await wait_for_cache(cached, len(body))
    cached.store.calls.clear()
    async with cached.mounted("second"):
        assert await read_through(cached, "big", step=300_000) == body
        assert not cached.store.calls["get_range"]


async def wait_for_cache(lab: Lab, size: int) -> None:
    """Wait until what was read is on disk."""
    assert lab.blocks is not None
    for _ in range(1 + size // FILL_STEP):  # what is written lets the next step begin
        await wait_all_tasks_blocked()
        await lab.blocks.written()
    assert lab.blocks.used_bytes >= size


async def test_cached_data_is_read_while_s3_is_away(cached: Lab, autojump_clock: MockClock) -> None:
    body = content(MIB)
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        assert await read_through(cached, "a") == body
        await wait_for_cache(cached, len(body))
        await trio.sleep(LINGER_S + 1)
        assert fs.reader.held_bytes == 0
        cached.store.fail_next("get_range", Unavailable("down"), times=100)
        assert await read_through(cached, "a") == body


async def test_a_damaged_block_is_fetched_again(
    cached: Lab, tmp_path: Path, autojump_clock: MockClock
) -> None:
    body = content(MIB)
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        await read_through(cached, "a")
        await wait_for_cache(cached, len(body))
        await trio.sleep(LINGER_S + 1)
        file = bytearray((tmp_path / "blocks.data").read_bytes())
        file[3 * BLOCK_BYTES] ^= 1
        (tmp_path / "blocks.data").write_bytes(file)
        assert await read_through(cached, "a") == body
        assert cached.blocks is not None
        assert cached.blocks.corrupt_blocks == 1
        assert fs.reader.misses


async def test_a_changed_object_is_never_answered_from_the_cache_of_the_old(cached: Lab) -> None:
    cached.store.insert("a", content(MIB))
    async with cached.mounted():
        await read_through(cached, "a")
        cached.store.insert("a", content(MIB, 2))
        cached.later(31)
        assert await read_through(cached, "a") == content(MIB, 2)


async def test_a_random_read_fetches_the_blocks_it_touches(cached: Lab) -> None:
    body = content(8 * MIB)
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        assert (
            await read_at(cached, "a", 3 * MIB + 77, 4096, handle=1) == body[3 * MIB + 77 :][:4096]
        )
        assert fs.volume.store.stats.received_bytes == BLOCK_BYTES


async def test_a_small_object_is_read_whole_however_little_is_wanted_so_that_it_can_be_verified(
    lab: Lab,
) -> None:
    body = content(WHOLE_BYTES)
    lab.store.insert("a", body)
    async with lab.mounted() as fs:
        assert await read_at(lab, "a", 70_000, 4096, handle=1) == body[70_000:][:4096]
        assert fs.volume.store.stats.received_bytes == len(body)


async def test_of_a_small_object_of_which_a_block_is_not_cached_all_is_fetched_again(
    cached: Lab, tmp_path: Path, autojump_clock: MockClock
) -> None:
    body = content(WHOLE_BYTES)
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        await read_through(cached, "a")
        await wait_for_cache(cached, len(body))
        await trio.sleep(LINGER_S + 1)
        with (tmp_path / "blocks.data").open("r+b") as file:
            file.seek(BLOCK_BYTES)
            file.write(b"damaged")
        node = await cached.get("a")
        assert cached.blocks is not None
        assert node.etag is not None
        found = cached.blocks.find(node.id, node.etag, BLOCK_BYTES, 2 * BLOCK_BYTES)
        assert found is not None
        assert await cached.blocks.read(found, BLOCK_BYTES, 2 * BLOCK_BYTES) is None
        assert cached.blocks.has(node.id, node.etag, 0, BLOCK_BYTES)
        assert await read_through(cached, "a") == body
        assert fs.volume.store.stats.received_bytes == 2 * len(body)


async def test_an_edited_file_is_completed_from_the_right_blocks(cached: Lab) -> None:
    """What is staged ends inside a block: a piece of a block must not be kept as the whole."""
    body = content(MIB + 777)
    cached.store.insert("a", body)
    async with cached.mounted() as fs:
        node = await cached.get("a")
        await fs.stages.write(node.id, 200_000, b"x")
        expected = body[:200_000] + b"x" + body[200_001:]
        assert bytes(await fs.read(node.id, 199_990, 20, handle=1)) == expected[199_990:200_010]
        assert bytes(await fs.read(node.id, 0, 200_000, handle=2)) == body[:200_000]
        await fs.commit(node.id)
        assert cached.data("a") == expected
        assert await read_through(cached, "a", handle=3) == expected


async def test_an_object_read_at_random_again_and_again_is_fetched_whole(
    cached: Lab, autojump_clock: MockClock
) -> None:
    body = content(8 * MIB)
    cached.store.insert("a", body)
    async with cached.mounted():
        for number in range(FILL_AFTER + 4):
            offset = number * 7919 * 41 % (7 * MIB)
            assert await read_at(cached, "a", offset, 4096, handle=number) == body[offset:][:4096]
        await wait_for_cache(cached, len(body))
        await trio.sleep(LINGER_S + 1)
        cached.store.calls.clear()
        assert await read_at(cached, "a", 6 * MIB + 5, 100, handle=99) == body[6 * MIB + 5 :][:100]
        assert not cached.store.calls["get_range"]


async def test_what_is_fetched_in_vain_is_bounded_by_what_was_of_use(
    cached: Lab, autojump_clock: MockClock
) -> None:
    """Reads that never find their bytes here get no more than the trial."""
    cached.settings = settings(memory_limit_bytes=64 * MIB)
    assert cached.blocks is not None
    await cached.blocks.set_limit(400 * MIB)
    cached.store.insert("a", bytes(90 * MIB))
    reads = FILL_AFTER + 9
    async with cached.mounted() as fs:
        node = await cached.get("a")
        await fs.read(node.id, 0, 1, handle=1000)  # and stays open
        for number in range(reads):
            await read_at(cached, "a", (89 - number) * MIB + 9, 100, handle=number)
        await wait_for_cache(cached, FILL_FIRST + reads * BLOCK_BYTES)
        received = fs.volume.store.stats.received_bytes
        assert received <= FILL_FIRST + reads * BLOCK_BYTES + 2 * MIB  # read ahead of the first
        found = fs.reader.read_now(node, node.etag or "", node.size, 9 * MIB + 9, 100, handle=1001)
        assert found is not None
        assert b"".join(found) == bytes(100)
        await wait_for_cache(cached, 90 * MIB)


async def test_memory_is_given_back_after_the_last_close(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.store.insert("a", content(4 * MIB))
    async with lab.mounted() as fs:
        await read_through(lab, "a")
        assert fs.reader.held_bytes
        await trio.sleep(LINGER_S + 1)
        assert fs.reader.held_bytes == 0


async def test_what_was_read_and_is_on_disk_is_not_held_in_memory(cached: Lab) -> None:
    """The kernel has its pages; what was read ahead and is still wanted stays."""
    cached.store.insert("a", content(4 * MIB))
    async with cached.mounted() as fs:
        await read_through(cached, "a")
        await wait_all_tasks_blocked()
        assert cached.blocks is not None
        await cached.blocks.written()
        await wait_all_tasks_blocked()
        assert fs.reader.held_bytes == 0


@asynccontextmanager
async def little_room_and_two_objects(
    lab: Lab, body: bytes
) -> AsyncIterator[tuple[FileSystem, Inode, Inode]]:
    """Mount a bucket with *body* as two objects, and 4 MiB for reading ahead."""
    lab.settings = settings(memory_limit_bytes=4 * MIB)
    lab.store.insert("a", body)
    lab.store.insert("b", body)
    async with lab.mounted() as fs:
        yield fs, (await lab.get("a")).id, (await lab.get("b")).id


async def read_in_steps(
    fs: FileSystem, inode: Inode, start: int, stop: int, *, handle: int
) -> None:
    for offset in range(start, stop, STEP):
        await fs.read(inode, offset, STEP, handle=handle)


async def test_what_was_read_ahead_and_in_part_stays_for_its_reader(lab: Lab) -> None:
    """Its rest is about to be wanted. What others wait for then exceeds the limit by what the kernel asks at a time."""
    body, step = content(8 * MIB), STEP
    async with little_room_and_two_objects(lab, body) as (fs, first, second):
        await read_in_steps(fs, first, 0, 3 * step, handle=1)
        await wait_all_tasks_blocked()
        await read_in_steps(fs, second, 4 * MIB, 8 * MIB, handle=2)  # more than there is room for
        before = fs.volume.store.stats.received_bytes
        rest = bytes(await fs.read(first, 3 * step, MIB - 3 * step, handle=1))
        assert rest == body[3 * step : MIB]
        await wait_all_tasks_blocked()
        assert fs.volume.store.stats.received_bytes == before, "it was thrown away"


async def test_who_follows_another_reader_waits_no_more_than_the_first(cached: Lab) -> None:
    """What the first has asked for goes when it has read it; the second asks again, and in time."""
    cached.settings = settings(memory_limit_bytes=12 * MIB)
    body = content(32 * MIB)
    cached.store.insert("big", body)
    async with cached.mounted() as fs:
        node = (await cached.get("big")).id
        misses = []
        for position in range(-2, 32):
            for handle, offset in ((1, position + 2), (2, position)):
                if 0 <= offset < 32:
                    before = fs.reader.misses
                    read = bytes(await fs.read(node, offset * MIB, MIB, handle=handle))
                    assert read == body[offset * MIB : (offset + 1) * MIB]
                    if fs.reader.misses > before:
                        misses.append((handle, offset))
            await wait_all_tasks_blocked()
            await wait_for_cache(cached, 0)
        assert misses == [(1, 0), (2, 0)]


async def test_what_was_read_ahead_for_nobody_goes_when_others_read_on(lab: Lab) -> None:
    """A reader that went elsewhere in its file does not hold memory for as long as it has the file open."""
    async with little_room_and_two_objects(lab, content(16 * MIB)) as (fs, first, second):
        await read_in_steps(fs, first, 0, 8 * STEP, handle=1)
        await wait_all_tasks_blocked()
        held = fs.reader.holds(first)
        await read_in_steps(fs, second, 4 * MIB, 16 * MIB, handle=2)
        assert fs.reader.holds(first) < held // 2
        assert fs.reader.held_bytes <= 5 * MIB


async def test_a_reader_that_comes_back_is_read_ahead_of_again(lab: Lab) -> None:
    async with little_room_and_two_objects(lab, content(16 * MIB)) as (fs, first, second):
        await read_in_steps(fs, first, 0, 8 * STEP, handle=1)
        await read_in_steps(fs, second, 0, 16 * MIB, handle=2)
        fs.reader.close(2)
        await wait_all_tasks_blocked()
        before = fs.reader.misses
        for offset in range(8 * STEP, 24 * STEP, STEP):
            await fs.read(first, offset, STEP, handle=1)
            await wait_all_tasks_blocked()
        assert fs.reader.misses == before + 1


async def small_files(lab: Lab, count: int) -> list[str]:
    names = [f"d/s{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        lab.store.insert(name, content(2000, number))
    return names


async def test_the_next_small_files_are_on_their_way(lab: Lab) -> None:
    names = await small_files(lab, 100)
    async with lab.mounted() as fs:
        assert len(await lab.ls("d")) == 100
        lab.store.calls.clear()
        for name in names[:4]:
            await open_and_read(lab, name)
        await wait_all_tasks_blocked()
        assert lab.store.calls["get_range"] > 8, "more than were asked for"
        assert lab.store.calls["get_range"] <= 4 + MAX_WINDOW
        misses = fs.reader.misses
        for number, name in enumerate(names[4:], 4):
            assert await open_and_read(lab, name) == content(2000, number)
        assert fs.reader.misses == misses, "each was there or on its way"
        assert lab.store.calls["get_range"] == 100, "and none was fetched twice"


async def test_the_order_of_names_is_followed_where_inodes_come_otherwise(lab: Lab) -> None:
    names = await small_files(lab, 60)
    async with lab.mounted():
        for name in reversed(names):  # asked for one by one, so numbered backwards
            await lab.get(name)
        await lab.ls("d")
        lab.store.calls.clear()
        for name in names[:5]:
            await open_and_read(lab, name)
        await wait_all_tasks_blocked()
        assert lab.store.calls["get_range"] > 10


async def test_files_opened_in_no_order_are_not_guessed(lab: Lab) -> None:
    names = await small_files(lab, 60)
    async with lab.mounted():
        await lab.ls("d")
        lab.store.calls.clear()
        for number in [7, 40, 2, 55, 30, 16, 48, 21]:
            await open_and_read(lab, names[number])
        await wait_all_tasks_blocked()
        assert lab.store.calls["get_range"] == 8


async def test_guesses_that_are_not_wanted_come_to_an_end(lab: Lab) -> None:
    """Somebody reads a few files in a row here and there: most of what is fetched ahead is for nothing."""
    names = await small_files(lab, 2000)
    async with lab.mounted():
        await lab.ls("d")
        lab.store.calls.clear()
        for start in range(0, 2000, 50):
            for name in names[start : start + 4]:
                await open_and_read(lab, name)
            await wait_all_tasks_blocked()
        assert lab.store.calls["get_range"] < 4 * 40 + 8 * MAX_WINDOW


async def test_guesses_keep_within_their_memory(lab: Lab) -> None:
    for number in range(100):
        lab.store.insert(f"d/s{number:04d}", bytes(900_000))
    async with lab.mounted() as fs:
        await lab.ls("d")
        for number in range(6):
            await open_and_read(lab, f"d/s{number:04d}")
            await wait_all_tasks_blocked()
            assert fs.reader.held_bytes <= lab.settings.memory_limit_bytes
