"""Damaged bytes of objects that are fetched in ranges: noticed at the end, told to who has read them, and fetched again."""

import logging
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import Unavailable
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.kernel.handles import Handles
from s3mgrd.fs.reading.comparing import SERIALS
from s3mgrd.fs.reading.patterns import MIB
from s3mgrd.fs.reading.sums import ASK_AFTER, Sums
from s3mgrd.s3.algorithms import CRC32C, CRC64NVME, Algorithm, Checksum
from tests.unit.fs.conftest import Lab
from tests.unit.fs.reading.test_reader import content, read_at, read_through, wait_for_cache

SIZE = 12 * MIB + 5


class Damage:
    """Flips a bit in the range that has byte `at`, so many times."""

    def __init__(self, at: int, times: int = 1) -> None:
        self.at = at
        self.left = times

    def __call__(self, key: str, start: int, data: bytes) -> bytes:
        if self.left and start <= self.at < start + len(data):
            self.left -= 1
            changed = bytearray(data)
            changed[self.at - start] ^= 0x10
            return bytes(changed)
        return data


@pytest.mark.parametrize("at", [0, 5 * MIB, SIZE - 1])
async def test_nobody_gets_to_the_end_of_damaged_bytes(
    cached: Lab, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader gets an error, the kernel is told to forget, nothing stays in the cache; the next reader gets the right bytes."""
    body = content(SIZE)
    cached.store.insert("big", body)
    cached.store.damage = Damage(at)
    told: list[tuple[Inode, bool]] = []
    is_told = trio.Event()
    async with cached.mounted() as fs:

        async def tell(inodes: Sequence[tuple[Inode, bool]]) -> None:
            told.extend(inodes)
            is_told.set()

        fs.reader.comparer.tell_inodes = tell
        node = await cached.get("big")
        handles = fs.reader.comparer.ages = Handles()
        first, unused = handles.make(node.id), handles.make(node.id)
        with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="Input/output"):
            await read_through(cached, "big", handle=first)
        with trio.fail_after(30):
            await is_told.wait()
        assert "damaged" in caplog.text
        assert "'big'" in caplog.text
        assert told == [(node.id, True)]
        assert cached.blocks is not None
        assert cached.blocks.used_bytes == 0
        await left(fs, node)
        for old in (first, unused):
            with pytest.raises(OSError, match="Input/output"):
                await fs.read(node.id, 0, 1, handle=old)
            assert fs.reader.read_now(node, node.etag or "", SIZE, 0, 1, handle=old) is None
        assert await read_through(cached, "big", handle=handles.make(node.id)) == body
        assert fs.reader.comparer.damaged == 1
        await wait_for_cache(cached, len(body))


async def left(fs: FileSystem, node: Node) -> None:
    """Wait until nobody has the damaged bytes."""
    with trio.fail_after(30):
        while fs.reader.comparer.is_leaving((node.id, node.etag or "")):
            await trio.lowlevel.checkpoint()


async def test_bytes_that_are_not_what_s3_has_a_checksum_of_are_an_error_each_time(
    cached: Lab,
) -> None:
    """Whoever damages them, nobody gets them as a whole; not even who comes before they are forgotten."""
    cached.store.insert("big", content(SIZE))
    cached.store.damage = Damage(7 * MIB, times=1000)
    async with cached.mounted() as fs:
        node = await cached.get("big")
        handles = fs.reader.comparer.ages = Handles()
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                await read_through(cached, "big", handle=handles.make(node.id))
            with pytest.raises(OSError, match="Input/output"):
                await fs.read(node.id, 0, 1, handle=handles.make(node.id))
            await left(fs, node)
        assert fs.reader.comparer.damaged == 2


async def test_handles_are_told_apart_for_as_long_as_their_numbers_can_be(cached: Lab) -> None:
    """An error for ever after, for handles whose numbers happen to come again, would be one too many."""
    body = content(SIZE)
    cached.store.insert("big", body)
    cached.store.damage = Damage(MIB)
    async with cached.mounted() as fs:
        node = await cached.get("big")
        handles = fs.reader.comparer.ages = Handles()
        with pytest.raises(OSError, match="Input/output"):
            await read_through(cached, "big", handle=handles.make(node.id))
        await left(fs, node)
        for _ in range(SERIALS // 2 - 2):
            newest = handles.make(node.id)
        assert await read_through(cached, "big", handle=newest) == body
        for _ in range(3):
            newest = handles.make(node.id)
        assert await read_through(cached, "big", handle=newest) == body


async def test_s3_is_asked_once_and_only_of_what_is_read_as_a_whole(cached: Lab) -> None:
    """Not of small objects, nor where a part is read, nor of what the cache on disk has."""
    big, small = content(SIZE), content(1000)
    cached.store.insert("big", big)
    cached.store.insert("small", small)
    async with cached.mounted():
        assert await read_through(cached, "small") == small
        for handle in range(3):
            await read_at(cached, "big", handle * 3 * MIB, 1000, handle=handle)
        assert cached.store.calls["checksum"] == 0
        assert await read_through(cached, "big") == big
        assert cached.store.calls["checksum"] == 1
        await wait_for_cache(cached, len(big))
    async with cached.mounted("second"):
        assert await read_through(cached, "big") == big
        assert cached.store.calls["checksum"] == 1


@pytest.mark.parametrize(
    ("size", "enough"), [(4 * ASK_AFTER, ASK_AFTER), (ASK_AFTER, ASK_AFTER // 2)]
)
async def test_s3_is_asked_when_half_of_it_or_much_is_on_its_way(size: int, enough: int) -> None:
    """Where it has no checksum, nothing is computed of what comes."""
    asked: list[int] = []

    async def ask() -> None:
        asked.append(1)

    async with trio.open_nursery() as nursery:
        sums = Sums(size, ask, nursery, lambda *_: None)
        sums.begin()
        sums.expect(enough - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked
        sums.expect(1)
        await trio.testing.wait_all_tasks_blocked()
        assert asked
        assert sums.is_over


async def test_a_store_that_does_not_say_is_believed(cached: Lab) -> None:
    """Reading does not fail where comparing does."""
    body = content(SIZE)
    cached.store.insert("big", body)
    cached.store.fail_next("checksum", Unavailable("down"), times=5)
    async with cached.mounted() as fs:
        assert await read_through(cached, "big") == body
        assert fs.reader.comparer.damaged == 0


@pytest.mark.parametrize("algorithm", [CRC64NVME, CRC32C])
async def test_ranges_count_in_any_order_and_overlapping_ones_do_no_harm(
    algorithm: Algorithm,
) -> None:
    """What arrived twice is compared once; a gap between overlapping ranges is compared when it is filled."""
    body = content(10_000)
    found: list[tuple[Checksum, Checksum]] = []

    async def ask() -> Checksum:
        return Checksum.of(algorithm, body)

    async with trio.open_nursery() as nursery:
        sums = Sums(len(body), ask, nursery, lambda a, b: found.append((a, b)))
        for start, stop in ((6000, 10_000), (0, 3000), (2000, 6000), (0, 3000)):
            sums.expect(stop - start)
            sums.begin()
            await sums.arrived(start, stop - start, body[start:stop])
        assert not sums.is_over
        await sums.settled(len(body))
        sums.expect(3000)
        await sums.arrived(3000, 3000, body[3000:6000])
        await trio.testing.wait_all_tasks_blocked()
        assert sums.is_over
    assert not found
