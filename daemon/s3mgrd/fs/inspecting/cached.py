"""What is in the block cache, file by file and pin by pin, for people to see; and giving files up."""

from collections.abc import Iterable
from typing import Final, Literal

from s3mgr.schema import CachedFile, CachedFiles, EvictReport, Pin, PinList
from s3mgrd.cache.nodes import Node
from s3mgrd.fs.filesystem import FileSystem

PAGE_BYTES: Final = 64 << 10
"""Bytes of paths in one answer: a message to the supervisor has a limit."""

Order = Literal["bytes", "hits", "misses"]


async def files(fs: FileSystem, *, by: Order, limit: int) -> CachedFiles:
    """List the files of which most is in the cache, or that were read most from there or past it since the worker began."""
    blocks = fs.volume.blocks
    if blocks is None:
        return CachedFiles()
    counted = blocks.counted()
    leading: Iterable[tuple[int, str]]
    if by == "bytes":
        leading = await blocks.largest(2 * limit)  # some are not known by name any more
    else:
        column = 0 if by == "hits" else 1
        leading = sorted(counted, key=lambda version: -counted[version][column])
    items: list[CachedFile] = []
    room = PAGE_BYTES
    for inode, etag in leading:
        node = fs.volume.nodes.get(inode)
        if node is None or node.is_detached or node.etag != etag:
            continue
        hits, misses = counted.get((inode, etag), (0, 0))
        if by != "bytes" and not (hits, misses)[column]:
            break
        path = fs.volume.path(node)
        room -= len(path.encode())
        if len(items) == limit or room < 0:
            break
        items.append(
            CachedFile(
                path=path,
                size_bytes=node.size,
                cached_bytes=blocks.stored_bytes(inode),
                is_pinned=blocks.is_pinned(inode, etag),
                hit_bytes=hits,
                miss_bytes=misses,
            )
        )
    return CachedFiles(items=items)


async def pins(fs: FileSystem) -> PinList:
    """List the pins, with what is known of their files."""
    items = []
    for path in fs.pins.paths:
        found: list[int] = [0, 0, 0]
        async for file in fs.warmer.known_files(path, ignore_missing=True):
            _add(fs, found, file)
        items.append(Pin(path=path, files=found[0], size_bytes=found[1], cached_bytes=found[2]))
    return PinList(items=items, problem=fs.pins.problem)


def _add(fs: FileSystem, found: list[int], file: Node) -> None:
    blocks = fs.volume.blocks
    found[0] += 1
    found[1] += file.size
    found[2] += blocks.stored_bytes(file.id) if blocks is not None else 0


async def evict(fs: FileSystem, paths: Iterable[str]) -> EvictReport:
    """Give up what is in the cache of the files at *paths* and below, unless they are pinned.

    Raises:
        NotFound: nothing is known of a path.
        Conflict: there is no cache.
    """
    blocks = fs.warmer.cache()
    files = freed = pinned = 0
    for path in paths:
        async for file in fs.warmer.known_files(path):
            bytes_here = await blocks.evict_inode(file.id)
            files += bytes_here > 0
            freed += bytes_here
            pinned += file.etag is not None and blocks.is_pinned(file.id, file.etag)
        if not path:
            freed += await blocks.evict_all()  # what is not known by name any more
    return EvictReport(files=files, bytes=freed, pinned_files=pinned)
