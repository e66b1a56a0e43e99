"""What was just written, for who reads it next: as its staging files go, its bytes go into the block cache.

They pass through probation there, as everything that is read for the first time, so a large file drives out nothing that is read
again and again. One that is larger than the room there is, and than probation, would drive out itself: it is left out. So is
what lies elsewhere (parked in S3, or in the version that it is a change of), and files smaller than one block, of which
thousands may be written a second.

Only bytes that are what came from the kernel get there: S3 verified them by their checksum when they were uploaded, and what the local
disk did to them since must not be served as if it had.

Concurrency: one task at a time, which holds no lock and has a descriptor of its own. What waits is bounded; more is not kept.
"""

import os
from collections.abc import Iterator
from typing import Final

import trio

from s3mgrd.buffers import lend
from s3mgrd.cache.blockindex import BLOCK_BYTES, PROBATION_SHARE
from s3mgrd.cache.nodes import Node
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.entered import BLOCK_BYTES as ENTERED_BYTES
from s3mgrd.journal.staging import StagedFile
from s3mgrd.s3.algorithms import Checksum

MAX_WAITING_BYTES: Final = 512 << 20
"""The disk has these staging files until they are kept or given up, though they have no name any more."""

PIECE_BYTES: Final = 4 * ENTERED_BYTES
"""Kept at once. With single blocks of `Entered` the worker's main thread was busy for half a millisecond each."""

Piece = tuple[int, int, Checksum]
"""Where bytes begin and end, and their checksum as they came in."""


class Retainer:
    """Brings what was written on one volume into its block cache. Its tasks live in *nursery*."""

    def __init__(self, volume: Volume, nursery: trio.Nursery) -> None:
        self._volume = volume
        self._nursery = nursery
        self._at_work = trio.Lock()
        self._waiting_bytes = 0

    def leaving(self, node: Node, file: StagedFile) -> None:
        """Keep what lies in a staging file that is about to go, and is *node*'s version. No checkpoint."""
        blocks, size = self._volume.blocks, file.size
        if blocks is None or node.etag is None or file.parked or size < BLOCK_BYTES:
            return
        room = max(blocks.room_bytes - blocks.used_bytes, blocks.room_bytes // PROBATION_SHARE)
        if size > min(room, MAX_WAITING_BYTES - self._waiting_bytes):
            return
        pieces = _pieces(file)
        if pieces:
            self._waiting_bytes += size
            self._nursery.start_soon(self._keep, node, size, os.dup(file.data_fd), pieces)

    async def _keep(self, node: Node, size: int, fd: int, pieces: list[Piece]) -> None:
        try:
            async with self._at_work:
                # New memory for each piece would take more time than copying it.
                buffer = lend(PIECE_BYTES)
                for piece in pieces:
                    if not self._is_current(node) or not await self._keep_piece(
                        node, size, fd, piece, buffer
                    ):
                        return
        finally:
            os.close(fd)
            self._waiting_bytes -= size

    def _is_current(self, before: Node) -> bool:
        now = self._volume.nodes.get(before.id)
        return now is not None and not now.is_detached and now.etag == before.etag

    async def _keep_piece(
        self, node: Node, size: int, fd: int, piece: Piece, buffer: memoryview
    ) -> bool:
        """Keep one piece, by way of *buffer*; whether the next is worth a try."""
        blocks = self._volume.blocks
        assert blocks is not None and node.etag is not None  # noqa: S101, PT018 - `leaving` asked
        data = await trio.to_thread.run_sync(_read, fd, piece, buffer)
        if data is None:
            return True
        return await blocks.keep(node.id, node.etag, piece[0], data, size, is_patient=True)


def _pieces(file: StagedFile) -> list[Piece]:
    """Return what lies in a staging file and is known to be what came in."""
    return [
        piece
        for first, last in file.extents
        for piece in _cut(file, -(-first // ENTERED_BYTES) * ENTERED_BYTES, last, PIECE_BYTES)
    ]


def _cut(file: StagedFile, first: int, last: int, length: int) -> Iterator[Piece]:
    """Yield what is known of [first, last) in pieces of *length* bytes, and by blocks of `Entered` where not all of one is known."""
    for start in range(first, last, length):
        stop = min(start + length, last)
        checksum = file.entered.of(start, stop)
        if checksum is not None:
            yield start, stop, checksum
        elif length > ENTERED_BYTES:
            yield from _cut(file, start, stop, ENTERED_BYTES)


def _read(fd: int, piece: Piece, buffer: memoryview) -> memoryview | None:
    """Read a piece into *buffer*; None: it is not what came in, or cannot be read."""
    start, stop, checksum = piece
    data = buffer[: stop - start]
    try:
        length = os.preadv(fd, [data], start)
    except OSError:
        return None
    return data if length == stop - start and checksum.is_of(data) else None
