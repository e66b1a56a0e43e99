"""Bringing whole files into the block cache before anybody reads them, as far as it has room.

A *plan* names what a path means: the files at it and below, by listings that are asked for where they are out of date. It is
made in full before anything is fetched, so that what cannot fit is refused and not half done.

Concurrency: tasks of the caller. A file that changes meanwhile is left out; who wants the new version asks again.
"""

import errno
import logging
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from s3mgrd.cache.blockindex import BLOCK_BYTES, occupied
from s3mgrd.cache.blocks import BlockCache
from s3mgrd.cache.nodes import ROOT, Inode, Kind, Node
from s3mgrd.errors import Archived, Conflict, NotFound
from s3mgrd.fs.learning.listing import Lister
from s3mgrd.fs.learning.namespace import Namespace
from s3mgrd.fs.reading.reader import Reader
from s3mgrd.fs.reading.segments import Superseded
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import Volume

log = logging.getLogger(__name__)

STEP_BYTES: Final = 2 << 20
"""One request."""
MEMORY_SHARE: Final = 4
"""Requests at the same time hold one part in so many of the mount's memory at most, and half of its requests."""
PIECE: Final = 512
"""Entries between two checkpoints."""


@dataclass(slots=True)
class Plan:
    """The files that paths mean: their inodes, and what their present versions take on disk."""

    inodes: "array[int]" = field(default_factory=lambda: array("Q"))
    bytes: int = 0
    disk_bytes: int = 0
    pinned_bytes: int = 0
    """The part of these that is here and pinned already."""


@dataclass(slots=True)
class Warming:
    """How far the fetching of a plan is. `bytes_total` None: the plan is still being made."""

    bytes_done: int = 0
    bytes_total: int | None = None
    files_done: int = 0
    files_total: int = 0
    skipped: int = 0
    """Files that were changed or removed meanwhile, or lie in an archive."""


class Warmer:
    """Fetches the files of one volume into its block cache."""

    def __init__(
        self, volume: Volume, namespace: Namespace, lister: Lister, reader: Reader
    ) -> None:
        self._volume = volume
        self._namespace = namespace
        self._lister = lister
        self._reader = reader

    def cache(self) -> BlockCache:
        """Return the block cache. Raises `Conflict`: there is none."""
        blocks = self._volume.blocks
        if blocks is None or not blocks.limit_bytes:
            raise Conflict(
                "this mount has no cache on disk",
                hint="give it one with cache_size_bytes, and see its log if there should be one",
            )
        return blocks

    # What paths mean

    async def find(self, path: str) -> Node:
        """Return what a path leads to, asking S3 where that is out of date.

        Raises:
            NotFound: there is nothing.
            S3mgrError: S3 had to be asked and did not answer.
        """
        node = self._volume.node(ROOT)
        for name in filter(None, path.split("/")):
            found = await self._namespace.lookup(node.id, name) if node.is_directory else None
            if found is None:
                raise NotFound(f"there is no {path!r}", hint="paths are relative to the mount")
            node = found
        return node

    async def plan(self, paths: Sequence[str], *, ignore_missing: bool = False) -> Plan:
        """Find the files at *paths* and below. Raises as `find`."""
        plan, seen = Plan(), set[Inode]()
        for path in paths:
            try:
                node = await self.find(path)
            except NotFound:
                if not ignore_missing:
                    raise
                continue
            async for file in self._files(node, seen):
                self._add(plan, file)
        return plan

    async def _files(self, top: Node, seen: set[Inode]) -> AsyncIterator[Node]:
        """Yield the files at a node and below; *seen*: directories that were passed already."""
        if not top.is_directory:
            yield top
            return
        waiting = [top.id]
        while waiting:
            directory = waiting.pop()
            if directory in seen:
                continue
            seen.add(directory)
            try:
                await self._namespace.ensure_listed(directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno == errno.ESTALE:
                    continue  # removed meanwhile
                raise
            self._lister.note_read(directory)
            after = 0
            while children := self._volume.nodes.children(directory, after=after, limit=PIECE):
                after = children[-1].id
                waiting += [child.id for child in reversed(children) if child.is_directory]
                for child in children:
                    if not child.is_directory:
                        yield child
                await trio.lowlevel.checkpoint()

    async def known_files(self, path: str, *, ignore_missing: bool = False) -> AsyncIterator[Node]:
        """Yield the files at a path and below that are known, without asking S3. Raises `NotFound`: nothing is known of it."""
        top = self._volume.nodes.find_below(ROOT, filter(None, path.split("/")))
        if top is None:
            if ignore_missing:
                return
            raise NotFound(f"nothing is known of {path!r}", hint="paths are relative to the mount")
        waiting = [top]
        while waiting:
            node = waiting.pop()
            if not node.is_directory:
                yield node
                continue
            after = 0
            while children := self._volume.nodes.children(node.id, after=after, limit=PIECE):
                after = children[-1].id
                waiting += [child for child in children if child.is_directory]
                for child in children:
                    if not child.is_directory:
                        yield child
                await trio.lowlevel.checkpoint()

    def _add(self, plan: Plan, file: Node) -> None:
        if file.kind != Kind.FILE or file.etag is None or not file.size:
            return
        plan.inodes.append(file.id)
        plan.bytes += file.size
        whole, rest = divmod(file.size, BLOCK_BYTES)
        plan.disk_bytes += whole * BLOCK_BYTES + occupied(rest)
        plan.pinned_bytes += self.cache().pinned_bytes_of(file.id, file.etag)

    def require_room(self, plan: Plan) -> None:
        """Refuse a plan that the cache has no room for, beside what is pinned.

        Raises:
            Conflict: it does not fit.
        """
        blocks = self.cache()
        pinned = blocks.pinned_bytes - plan.pinned_bytes
        if plan.disk_bytes + pinned <= blocks.room_bytes:
            return
        limit = (
            f"cache_size_bytes is {blocks.limit_bytes}"
            if blocks.room_bytes == blocks.limit_bytes
            else f"the disk leaves it {blocks.room_bytes}"
        )
        raise Conflict(
            f"{len(plan.inodes)} files with {plan.bytes} bytes do not fit into the cache: they take {plan.disk_bytes} bytes of "
            f"disk, {limit}, and {max(0, pinned)} are pinned by others",
            hint="name less, unpin something, or raise cache_size_bytes",
        )

    # Fetching

    async def fetch(self, plan: Plan, warming: Warming) -> None:
        """Fetch what is not here of a plan's files, several at a time.

        Raises:
            Unavailable, Denied, BucketNotFound: S3 did not deliver.
            Conflict: the disk is full.
        """
        warming.bytes_total, warming.files_total = plan.bytes, len(plan.inodes)
        gone: set[Inode] = set()
        send, receive = trio.open_memory_channel[tuple[Node, int, int]](0)
        async with side_by_side() as nursery:
            for _ in range(self._parallel()):
                nursery.start_soon(self._work, receive.clone(), warming, gone)
            receive.close()
            async with send:
                for inode in plan.inodes:
                    await self._hand_out(Inode(inode), send, warming)
        warming.skipped += len(gone)

    def _parallel(self) -> int:
        settings = self._volume.settings
        in_memory = settings.memory_limit_bytes // (MEMORY_SHARE * STEP_BYTES)
        return max(1, min(settings.concurrency // 2, in_memory))

    async def _hand_out(
        self, inode: Inode, send: trio.MemorySendChannel[tuple[Node, int, int]], warming: Warming
    ) -> None:
        """Give a file to whoever is free, step by step."""
        node = self._volume.nodes.get(inode)
        if node is None or node.etag is None or node.kind != Kind.FILE:
            warming.skipped += 1
            return
        blocks = self.cache()
        for start in range(0, node.size, STEP_BYTES):
            stop = min(start + STEP_BYTES, node.size)
            if blocks.favour(node.id, node.etag, start, stop):
                warming.bytes_done += stop - start
                await trio.lowlevel.checkpoint()
            else:
                await send.send((node, start, stop))
        warming.files_done += 1

    async def _work(
        self,
        receive: trio.MemoryReceiveChannel[tuple[Node, int, int]],
        warming: Warming,
        gone: set[Inode],
    ) -> None:
        async with receive:
            async for node, start, stop in receive:
                if node.id in gone:
                    continue
                try:
                    await self._fetch_step(node, start, stop)
                except (Superseded, Archived):
                    gone.add(node.id)
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise
                    gone.add(node.id)
                else:
                    warming.bytes_done += stop - start

    async def _fetch_step(self, node: Node, start: int, stop: int) -> None:
        etag = node.etag or ""
        blocks = self.cache()
        kept = False
        if blocks.room_bytes - blocks.pinned_bytes >= occupied(stop - start):
            data = await self._reader.fetch(node, etag, start, stop)
            kept = await blocks.keep(
                node.id, etag, start, memoryview(data), node.size, favoured=True
            )
        if not kept:
            raise Conflict(
                "the cache has no room left, or its disk is full",
                hint="what was fetched stays; unpin something, or raise cache_size_bytes",
            )
