"""Bytes of a staged file on their way to S3: one PUT, or parts, several at once, taken up where they were interrupted."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import NotFound, PreconditionFailed, S3mgrError, TooLarge, Unsupported
from s3mgrd.fs.reading.reader import Reader
from s3mgrd.fs.reading.segments import Superseded
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing import beginnings
from s3mgrd.fs.writing.filling import fill
from s3mgrd.fs.writing.parts import (
    Piece,
    Plan,
    make_plan,
    part_size_for,
    single_put_bytes,
    to_fetch,
)
from s3mgrd.fs.writing.stages import Stage
from s3mgrd.fs.writing.stream import Stream
from s3mgrd.fs.writing.streaming import Streams
from s3mgrd.journal.tables import StagedRow, UploadRow
from s3mgrd.s3.port import (
    MAX_OBJECT_BYTES,
    Condition,
    FileSlice,
    ObjectHead,
    Part,
    Written,
)

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
INLINE_BYTES: Final = 32 << 10


class CopyUnsupported(Exception):
    """This store cannot copy parts: complete the file and send it whole."""


class Sender:
    """Sends staged files of one volume. The caller holds the inode's lock."""

    def __init__(self, volume: Volume, reader: Reader, streams: Streams) -> None:
        self._volume = volume
        self._reader = reader
        self._streams = streams
        self._may_copy = True

    def _plan(self, stage: Stage, row: StagedRow) -> Plan:
        size = stage.file.size
        part_size = part_size_for(size, self._volume.settings.part_size_bytes)
        is_large = size > single_put_bytes(part_size)
        may_copy = self._may_copy and row.base_etag is not None and is_large
        return make_plan(stage.file, part_size, may_copy=may_copy)

    async def complete(self, node: Node, stage: Stage, row: StagedRow) -> None:
        """Fetch from the base version what has to be sent and was not written here; what is sent beside copies `send` fetches.

        Raises:
            PreconditionFailed: that version is gone.
            S3mgrError, OSError: S3 did not deliver, or the disk is full.
        """
        plan = self._plan(stage, row)
        if not plan.copies:
            await self._fetch(node, stage, row, plan)

    async def _fetch(self, node: Node, stage: Stage, row: StagedRow, plan: Plan) -> None:
        ranges = to_fetch(stage.file, plan)
        if not ranges:
            return
        read = partial(self._read_base, node, row)
        await fill(stage.file, ranges, read, at_once=self._volume.settings.concurrency)

    async def _read_base(
        self, node: Node, row: StagedRow, start: int, stop: int
    ) -> bytes | memoryview:
        try:
            return await self._reader.read_range(
                node, row.base_etag or "", row.base_size, start, stop
            )
        except (Superseded, OSError) as error:
            raise PreconditionFailed(
                "the version that was being changed is gone from S3; what was not read of it cannot be completed"
            ) from error

    async def send(
        self,
        node: Node,
        key: str,
        stage: Stage,
        row: StagedRow,
        metadata: dict[str, str],
        like: ObjectHead,
        condition: Condition,
        stream: Stream | None = None,
    ) -> Written:
        """Make the staged file the object at *key*. *stream*: its upload, begun while it was being written.

        Raises:
            CopyUnsupported: `complete` it and send it again.
            PreconditionFailed: *condition* does not hold, or the base version is gone.
            TooLarge: S3 takes no object of that size.
        """
        if stream is not None:
            return await self._finish(node.id, stream, condition)
        plan = self._plan(stage, row)
        if plan.size > MAX_OBJECT_BYTES:
            raise TooLarge(f"{key} has {plan.size} bytes; S3 takes objects of up to 5 TiB")
        if plan.size <= single_put_bytes(plan.part_size):
            # A small one goes with the head of the request; it was written a moment ago, so no disk is waited for.
            small = plan.size <= INLINE_BYTES
            body = (
                stage.file.read(0, plan.size)
                if small
                else FileSlice(
                    stage.file.data_fd, 0, plan.size, stage.file.entered.of(0, plan.size)
                )
            )
            return await self._volume.store.put(
                key,
                body,
                metadata=metadata,
                content_type=like.content_type,
                like=like,
                condition=condition,
            )
        fetched = trio.Event()

        async def fetch() -> None:
            await self._fetch(node, stage, row, plan)
            fetched.set()

        async def copy(piece: Piece) -> Part:
            return await self._copy(node, key, upload_id, row, piece)

        async def upload(piece: Piece) -> Part:
            await fetched.wait()
            checksum = stage.file.entered.of(piece.start, piece.stop)
            body = FileSlice(stage.file.data_fd, piece.start, piece.stop - piece.start, checksum)
            return await self._volume.store.upload_part(key, upload_id, piece.number, body)

        # S3 copies while what has to be sent is still on its way here.
        async with side_by_side() as nursery:
            nursery.start_soon(fetch)
            upload_id, parts = await self._begin(node.id, key, plan, metadata, like)
            await self._make_parts(plan, parts, copy, upload)
        if plan.copies and condition.if_match != row.base_etag:
            # Not every store heeds the condition on a part's source. Where the source is what is replaced, the
            # condition of the whole says it all.
            head = await self._volume.store.head(self._volume.key_in_s3(node))
            if head.etag != row.base_etag:
                raise PreconditionFailed(
                    "the version that was being changed was replaced meanwhile"
                )
        return await self._volume.store.complete_multipart(
            key, upload_id, [parts[number] for number in sorted(parts)], condition=condition
        )

    async def _finish(self, inode: Inode, stream: Stream, condition: Condition) -> Written:
        """Send what is left of a file that was uploaded while it was being written."""
        await self._streams.confirm(inode, stream)
        plan = stream.grid.plan(stream.file.size)

        async def upload(piece: Piece) -> Part:
            return await self._streams.make_part(inode, stream, piece.number, piece.stop)

        parts = {n: part for n, part in stream.parts.items() if n <= len(plan.pieces)}
        await self._make_parts(plan, parts, upload, upload)
        try:
            return await self._volume.store.complete_multipart(
                stream.key,
                stream.upload_id or "",
                [parts[number] for number in sorted(parts)],
                condition=condition,
            )
        except S3mgrError:
            self._streams.doubt(inode)
            raise

    async def _begin(
        self, inode: Inode, key: str, plan: Plan, metadata: dict[str, str], like: ObjectHead
    ) -> tuple[str, dict[int, Part]]:
        """Begin a multipart upload, or take up the one that was interrupted."""
        store, journal = self._volume.store, self._volume.journal
        row = journal.upload(inode)
        cut = str(hash(plan.pieces))  # of numbers alone: the same in every process
        if row is not None and (row.key, row.size, row.metadata) == (key, plan.size, cut):
            try:
                found = await store.list_parts(key, row.upload_id)
            except NotFound:
                log.info("the upload of %s that was begun is gone from S3; beginning again", key)
            else:
                lengths = {piece.number: piece.stop - piece.start for piece in plan.pieces}
                return row.upload_id, {
                    p.number: p for p in found if p.size == lengths.get(p.number)
                }
        elif row is not None:
            journal.abandon_upload(inode)

        def note(upload_id: str) -> None:
            journal.put_upload(
                UploadRow(inode, key, upload_id, plan.part_size, plan.size, metadata=cut)
            )

        self._streams.begins()
        upload_id = await beginnings.begin(
            self._volume,
            key,
            note,
            metadata=metadata,
            content_type=like.content_type,
            like=like,
        )
        return upload_id, {}

    async def _make_parts(
        self,
        plan: Plan,
        parts: dict[int, Part],
        copy: Callable[[Piece], Awaitable[Part]],
        upload: Callable[[Piece], Awaitable[Part]],
    ) -> None:
        """Make the parts that S3 lacks, several at once, and add them to *parts*."""
        limiter = trio.CapacityLimiter(self._volume.settings.concurrency)

        async def make(piece: Piece) -> None:
            try:
                parts[piece.number] = await (copy if piece.is_copied else upload)(piece)
            finally:
                limiter.release_on_behalf_of(piece.number)

        async with side_by_side() as nursery:
            for piece in plan.pieces:
                if piece.number not in parts:
                    await limiter.acquire_on_behalf_of(piece.number)
                    nursery.start_soon(make, piece)

    async def _copy(
        self, node: Node, key: str, upload_id: str, row: StagedRow, piece: Piece
    ) -> Part:
        etag = row.base_etag or ""
        try:
            return await self._volume.store.copy_part(
                key,
                upload_id,
                piece.number,
                self._volume.key_in_s3(node),
                piece.start,
                piece.stop,
                if_source_match=etag,
            )
        except Unsupported as error:
            log.info("this store copies no parts (%s): changed files are sent whole", error)
            self._may_copy = False
            self._volume.journal.abandon_upload(node.id)
            raise CopyUnsupported from error
