"""The block cache: right bytes or none, across restarts, damage, full disks and scans."""

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3mgrd.cache.blockindex import BLOCK_BYTES
from s3mgrd.cache.blocks import BlockCache, open_block_cache

MIB = 1 << 20
ETAG = '"one"'


@contextmanager
def opened(
    directory: Path, *, limit_bytes: int = 64 * MIB, owner: str = "owner"
) -> Iterator[BlockCache]:
    cache = open_block_cache(directory, owner=owner, limit_bytes=limit_bytes)
    assert cache is not None
    try:
        yield cache
    finally:
        cache.close()


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - content, not a secret


async def keep(
    cache: BlockCache, data: bytes, *, inode: int = 5, start: int = 0, size: int | None = None
) -> None:
    await cache.keep(inode, ETAG, start, memoryview(data), size or len(data))


async def get(
    cache: BlockCache, start: int, stop: int, *, inode: int = 5, etag: str = ETAG
) -> bytes | None:
    found = cache.find(inode, etag, start, stop)
    if found is None:
        return None
    data = await cache.read(found, start, stop)
    return None if data is None else bytes(data)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (0, MIB), (BLOCK_BYTES - 1, BLOCK_BYTES + 1), (300_000, 900_000), (MIB, MIB + 77)],
)
async def test_what_was_kept_is_there_after_a_restart(
    tmp_path: Path, start: int, stop: int
) -> None:
    data = content(MIB + 77)
    with opened(tmp_path) as cache:
        await keep(cache, data)
    with opened(tmp_path) as cache:
        assert await get(cache, start, stop) == data[start:stop]
        assert cache.stored_bytes(5) == len(data)


async def test_another_version_or_inode_is_not_there(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        await keep(cache, content(1000))
        assert await get(cache, 0, 1000, etag='"two"') is None
        assert await get(cache, 0, 1000, inode=6) is None


async def test_only_the_blocks_in_a_row_are_found(tmp_path: Path) -> None:
    size = 4 * BLOCK_BYTES
    data = content(size)
    with opened(tmp_path) as cache:
        await keep(cache, data[:BLOCK_BYTES], size=size)
        await keep(cache, data[2 * BLOCK_BYTES :], start=2 * BLOCK_BYTES, size=size)
        assert await get(cache, 10, size) == data[10:BLOCK_BYTES]
        assert await get(cache, BLOCK_BYTES, size) is None
        assert not cache.has(5, ETAG, 0, size)
        assert cache.has(5, ETAG, 2 * BLOCK_BYTES, size)


async def test_a_part_of_a_block_is_not_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        await keep(cache, content(BLOCK_BYTES + 100), size=10 * BLOCK_BYTES)
        assert cache.stored_bytes(5) == BLOCK_BYTES


async def test_a_flipped_bit_is_noticed_counted_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(3 * BLOCK_BYTES)
    with opened(tmp_path) as cache:
        await keep(cache, data)
        file = bytearray((tmp_path / "blocks.data").read_bytes())
        file[BLOCK_BYTES + 5] ^= 1
        (tmp_path / "blocks.data").write_bytes(file)
        assert await get(cache, 0, len(data)) is None
        assert cache.corrupt_blocks == 1
        assert "damaged" in caplog.text
        assert await get(cache, 0, len(data)) == data[:BLOCK_BYTES]
        await keep(cache, data)
        assert await get(cache, 0, len(data)) == data


async def test_a_block_in_the_wrong_slot_does_not_verify(tmp_path: Path) -> None:
    """The same bytes as another block of the same version: only the seed of the checksum tells them apart."""
    data = content(2 * BLOCK_BYTES)
    with opened(tmp_path) as cache:
        await keep(cache, data)
        file = (tmp_path / "blocks.data").read_bytes()
        (tmp_path / "blocks.data").write_bytes(file[BLOCK_BYTES:] + file[:BLOCK_BYTES])
        assert await get(cache, 0, BLOCK_BYTES) is None


async def test_the_limit_holds_and_the_disk_gets_its_space_back(tmp_path: Path) -> None:
    limit = 4 * MIB
    with opened(tmp_path, limit_bytes=limit) as cache:
        for inode in range(10, 30):
            await keep(cache, content(MIB, inode), inode=inode)
            assert cache.used_bytes <= limit
        assert cache.evicted_blocks
        on_disk = os.stat(tmp_path / "blocks.data").st_blocks * 512
        assert on_disk <= limit + MIB
        await cache.set_limit(MIB)
        assert cache.used_bytes <= MIB
        assert os.stat(tmp_path / "blocks.data").st_blocks * 512 <= 2 * MIB


async def test_one_large_scan_does_not_empty_it(tmp_path: Path) -> None:
    limit = 8 * MIB
    with opened(tmp_path, limit_bytes=limit) as cache:
        loved = content(4 * MIB)
        await keep(cache, loved)
        for _ in range(2):
            assert await get(cache, 0, len(loved)) == loved
        for number in range(64):
            await keep(cache, content(MIB, number), inode=9, start=number * MIB, size=64 * MIB)
        assert await get(cache, 0, len(loved)) == loved


async def test_what_comes_back_soon_stays_through_the_next_scan(tmp_path: Path) -> None:
    limit = 4 * MIB
    with opened(tmp_path, limit_bytes=limit) as cache:
        data = content(MIB)
        for round_ in range(2):
            await keep(cache, data)
            for number in range(8):
                start = (round_ * 8 + number) * MIB
                await keep(cache, content(MIB, number), inode=9, start=start, size=64 * MIB)
        assert await get(cache, 0, len(data)) == data


async def test_a_pinned_version_stays_whatever_comes(tmp_path: Path) -> None:
    with opened(tmp_path, limit_bytes=4 * MIB) as cache:
        data = content(MIB)
        await keep(cache, data)
        cache.pin(5, ETAG, 1)
        for inode in range(10, 40):
            await keep(cache, content(MIB, inode), inode=inode)
        assert cache.has(5, ETAG, 0, MIB)
        cache.pin(5, ETAG, 0)
        for inode in range(40, 80):
            await keep(cache, content(MIB, inode), inode=inode)
        assert await get(cache, 0, MIB) is None


async def test_an_evicted_inode_gives_its_space_back(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        await keep(cache, content(MIB))
        assert await cache.evict_inode(5) == MIB
        assert cache.used_bytes == 0
        assert await get(cache, 0, 1) is None
        assert os.stat(tmp_path / "blocks.data").st_blocks == 0


async def test_a_full_disk_only_means_that_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with opened(tmp_path) as cache:
        monkeypatch.setattr(os, "pwrite", full)
        await keep(cache, content(MIB))
        assert cache.used_bytes == 0
        assert not cache.wants(MIB), "it tries again later, not at once"
        monkeypatch.undo()
        assert await get(cache, 0, MIB) is None


async def test_a_share_of_the_disk_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstatvfs

    def nearly_full(fd: int) -> os.statvfs_result:
        values = list(real(fd))
        values[4] = values[2] // 25  # f_bavail of f_blocks
        return os.statvfs_result(values)

    with opened(tmp_path) as cache:
        await keep(cache, content(MIB))
        monkeypatch.setattr(os, "fstatvfs", nearly_full)
        await keep(cache, content(MIB, 2), inode=6)
        assert cache.used_bytes <= MIB
        assert cache.stored_bytes(6) == 0


async def test_the_cache_gives_way_when_others_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not anybody reads; what is pinned stays."""
    real = os.fstatvfs
    missing = 0

    def filled(fd: int) -> os.statvfs_result:
        values = list(real(fd))
        values[4] = int(values[2] * 0.05) + 1 - missing // values[1]
        return os.statvfs_result(values)

    with opened(tmp_path) as cache:
        for inode in range(5, 9):
            await keep(cache, content(MIB, inode), inode=inode)
        cache.pin(5, ETAG, 1)
        monkeypatch.setattr(os, "fstatvfs", filled)
        await cache.shrink()
        assert cache.used_bytes == 4 * MIB
        missing = MIB
        await cache.shrink()
        assert cache.used_bytes == 3 * MIB
        assert 2 * MIB <= cache.room_bytes < 2 * MIB + BLOCK_BYTES
        missing = 100 * MIB
        await cache.shrink()
        assert cache.used_bytes == cache.stored_bytes(5) == MIB


async def test_what_was_here_already_is_favoured_too(tmp_path: Path) -> None:
    with opened(tmp_path, limit_bytes=8 * MIB) as cache:
        await keep(cache, content(MIB))
        assert cache.favour(5, ETAG, 0, MIB)
        assert not cache.favour(5, ETAG, 0, MIB + 1)
        for inode in range(10, 40):
            await keep(cache, content(MIB, inode), inode=inode)
        assert await get(cache, 0, MIB) == content(MIB)


async def test_what_somebody_asked_for_outlives_what_was_read(tmp_path: Path) -> None:
    """Though everything else was read again and again, and all of it would fit but for the rest."""
    with opened(tmp_path, limit_bytes=8 * MIB) as cache:
        for inode in range(10, 18):
            await keep(cache, content(MIB, inode), inode=inode)
        for _ in range(4):
            for inode in range(10, 18):
                assert await get(cache, 0, MIB, inode=inode) is not None
        for inode in range(20, 27):
            data = memoryview(content(MIB, inode))
            assert await cache.keep(inode, ETAG, 0, data, MIB, favoured=True)
        assert [cache.stored_bytes(inode) for inode in range(20, 27)] == 7 * [MIB]


@pytest.mark.parametrize("junk", [b"", b"junk" * 5000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_damaged_index_is_made_anew(tmp_path: Path, junk: bytes) -> None:
    with opened(tmp_path) as cache:
        await keep(cache, content(MIB))
    (tmp_path / "blocks.db").write_bytes(junk)
    with opened(tmp_path) as cache:
        assert cache.used_bytes == 0
        await keep(cache, content(MIB))
        assert await get(cache, 0, MIB) == content(MIB)


async def test_the_cache_of_another_mount_db_is_forgotten(tmp_path: Path) -> None:
    """Inode numbers mean something else there."""
    with opened(tmp_path) as cache:
        await keep(cache, content(MIB))
    with opened(tmp_path, owner="another") as cache:
        assert await get(cache, 0, MIB) is None
        assert os.stat(tmp_path / "blocks.data").st_blocks == 0


async def test_versions_of_which_nothing_is_left_are_forgotten_at_the_next_start(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, limit_bytes=MIB) as cache:
        for inode in range(10, 30):
            await keep(cache, content(MIB, inode), inode=inode)
        cache.pin(5, ETAG, 1)
        assert cache._index._one("SELECT count(*) FROM versions") == 21
    with opened(tmp_path, limit_bytes=MIB) as cache:
        assert cache._index._one("SELECT count(*) FROM versions") == 2, "one kept, one pinned"
        assert cache.has(29, ETAG, 0, MIB)


async def test_a_worker_killed_while_it_wrote_leaks_no_slot(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        await keep(cache, content(BLOCK_BYTES))
        assert cache._index.free_slots(4) == [1, 2, 3, 4], "where it was about to write"
    with opened(tmp_path) as cache:
        await keep(cache, content(2 * BLOCK_BYTES), inode=7)
        assert cache._index.free_slots(2) == [3, 4]


async def test_slots_are_used_again(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        await keep(cache, content(2 * BLOCK_BYTES))
        await keep(cache, content(BLOCK_BYTES, 7), inode=7)
        await cache.evict_inode(5)
        assert sorted(cache._index.free_slots(3)) == [0, 1, 3]
        await keep(cache, content(2 * BLOCK_BYTES))
        assert await get(cache, 0, 2 * BLOCK_BYTES) == content(2 * BLOCK_BYTES)
        assert cache._index.free_slots(1) == [3]


async def test_a_directory_that_cannot_be_written_means_no_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blocks.db").mkdir()
    assert open_block_cache(tmp_path, owner="owner", limit_bytes=MIB) is None
    assert "no block cache" in caplog.text


async def test_random_work_against_a_model(tmp_path: Path) -> None:
    """Whatever is found is right, whatever was evicted in between."""
    rng = random.Random(42)  # noqa: S311 - the same steps each time
    limit = 3 * MIB
    sizes = {inode: rng.randrange(1, MIB) for inode in range(1, 12)}
    datas = {inode: content(size, inode) for inode, size in sizes.items()}
    hits = 0
    cache = open_block_cache(tmp_path, owner="owner", limit_bytes=limit)
    assert cache is not None
    for step in range(600):
        inode = rng.choice(list(sizes))
        size, data = sizes[inode], datas[inode]
        start = rng.randrange(0, size)
        stop = rng.randrange(start, size) + 1
        if rng.random() < 0.5:
            found = await get(cache, start, stop, inode=inode)
            if found is not None:
                hits += 1
                assert found == data[start : start + len(found)]
        else:
            begin = start // BLOCK_BYTES * BLOCK_BYTES
            await keep(cache, data[begin:stop], inode=inode, start=begin, size=size)
        assert cache.used_bytes <= limit
        if step % 150 == 149:
            cache.close()
            cache = open_block_cache(tmp_path, owner="owner", limit_bytes=limit)
            assert cache is not None
    assert hits > 50
    assert cache.corrupt_blocks == 0
    cache.close()
