"""What was just written is read back from the block cache, if there is room, and only if it is what was written."""

import os
import random

import pytest
from trio.testing import wait_all_tasks_blocked

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.writing.parts import MIB
from s3mgrd.fs.writing.retaining import PIECE_BYTES
from tests.unit.fs.conftest import Lab
from tests.unit.fs.writing.test_streaming import begin, write

BODY = random.Random(8).randbytes(13 * MIB + 77)  # noqa: S311 - content, not a secret


async def close(lab: Lab, inode: Inode) -> None:
    """Close a file, and wait until it is kept as far as it will be."""
    await lab.fs.commit(inode)
    lab.fs.stages.closed(inode)
    assert lab.fs.stages.get(inode) is None
    await wait_all_tasks_blocked()
    async with lab.fs.retainer._at_work:
        assert lab.fs.retainer._waiting_bytes == 0


def has(lab: Lab, inode: Inode, start: int, stop: int) -> bool:
    node = lab.fs.volume.node(inode)
    assert lab.blocks is not None
    assert node.etag is not None
    return lab.blocks.has(inode, node.etag, start, stop)


async def test_a_file_that_was_written_is_read_without_s3(cached: Lab) -> None:
    async with cached.mounted():
        inode = await begin(cached)
        await write(cached, inode, 0, len(BODY), BODY)
        await close(cached, inode)
        assert has(cached, inode, 0, len(BODY))
        assert await cached.read_inode(inode) == BODY
        assert cached.store.calls["get_range"] == 0


async def test_what_the_disk_changed_is_not_kept(cached: Lab) -> None:
    """S3 has what was written."""
    async with cached.mounted():
        inode = await begin(cached)
        await write(cached, inode, 0, len(BODY), BODY)
        await cached.fs.commit(inode)
        stage = cached.fs.stages.get(inode)
        assert stage is not None
        os.pwrite(stage.file.data_fd, b"\0\0\0\0", 3 * MIB + 5)
        await close(cached, inode)
        assert not has(cached, inode, 3 * MIB, PIECE_BYTES)
        assert has(cached, inode, PIECE_BYTES, len(BODY))
        assert await cached.read_inode(inode) == BODY


async def test_what_has_no_checksum_of_when_it_came_is_not_kept(cached: Lab) -> None:
    """Bytes that were written over: their block has none, its neighbours do."""
    async with cached.mounted():
        inode = await begin(cached)
        await write(cached, inode, 0, len(BODY), BODY)
        await write(cached, inode, 5 * MIB + 5, 5 * MIB + 9, BODY)
        await close(cached, inode)
        assert not has(cached, inode, 5 * MIB, 6 * MIB)
        assert has(cached, inode, 0, 5 * MIB)
        assert has(cached, inode, 6 * MIB, len(BODY))


async def test_of_a_changed_object_what_was_changed_is_kept(cached: Lab) -> None:
    cached.store.insert("big", bytes(len(BODY)))
    async with cached.mounted():
        inode = (await cached.get("big")).id
        await cached.fs.write(inode, 2 * MIB, BODY[2 * MIB : 3 * MIB])
        await cached.fs.commit(inode)
        cached.fs.stages.opened(inode)
        await close(cached, inode)
        assert has(cached, inode, 2 * MIB, 3 * MIB)
        assert await cached.read_inode(inode) == (
            bytes(2 * MIB) + BODY[2 * MIB : 3 * MIB] + bytes(len(BODY) - 3 * MIB)
        )


@pytest.mark.parametrize("case", ["too large", "small", "removed", "off"])
async def test_what_would_drive_out_itself_is_small_or_is_gone_is_not_kept(
    cached: Lab, case: str
) -> None:
    assert cached.blocks is not None
    async with cached.mounted() as fs:
        inode = await begin(cached)
        await write(cached, inode, 0, 1 if case == "small" else len(BODY), BODY)
        if case in ("too large", "off"):
            await cached.blocks.set_limit(13 * MIB if case == "too large" else 0)
        await fs.commit(inode)
        if case == "removed":
            fs.volume.detach(fs.volume.node(inode))
        fs.stages.closed(inode)
        await wait_all_tasks_blocked()
        async with fs.retainer._at_work:
            assert cached.blocks.used_bytes == 0


async def test_what_is_removed_while_it_is_being_kept_is_not_kept_any_further(cached: Lab) -> None:
    assert cached.blocks is not None
    async with cached.mounted() as fs:
        inode = await begin(cached)
        await write(cached, inode, 0, len(BODY), BODY)
        await fs.commit(inode)
        async with fs.retainer._at_work:
            fs.stages.closed(inode)
            await wait_all_tasks_blocked()
            fs.volume.detach(fs.volume.node(inode))
        await wait_all_tasks_blocked()
        assert cached.blocks.used_bytes == 0
        assert fs.retainer._waiting_bytes == 0
