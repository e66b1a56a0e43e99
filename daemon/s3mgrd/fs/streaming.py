"""Uploads that begin while their file is still being written, so that close() waits for the tail alone.

A new file, or one that was cut to nothing, that outgrows a single PUT is cut by a `Grid`: where a part lies does not depend
on the size the file will have. A part is sent once all its bytes are here and the writer is not inside of it any more.
What was sent is noted in the journal (`parts`), and dropped from there before one of its bytes changes: whatever dies
when, the rows that are left name parts that S3 has of the content as it is. A writer that keeps changing what was
sent is no sequential one: its file is sent when it is closed, as are files that are changes of an object.

The upload is begun under the key that the file has then and with its attributes as they are then. Whoever commits the file
(`s3mgrd.fs.upload`) takes it over (`Streams.take`), or has it aborted if the name is another by then. Nothing is visible in
S3 before that, and no condition is decided.

Concurrency: tasks of the file system's nursery send parts, at most `Settings.concurrency` at once for all files. They hold
no lock; a part whose bytes change while it is under way is not believed when it arrives, and not sent again before that.
"""

import json
import logging
import mimetypes
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import NotFound, S3mgrError
from s3mgrd.fs import attributes, descriptions
from s3mgrd.fs.metadata import Metadata
from s3mgrd.fs.parts import SINGLE_PUT_PARTS, Grid, part_size_for
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.staging import StagedFile
from s3mgrd.journal.tables import PartRow, UploadRow
from s3mgrd.s3.port import MAX_OBJECT_BYTES, FileSlice, Part

log = logging.getLogger(__name__)

REST_S: Final = 5.0
"""After a part could not be sent, nothing more of its file is for so long, unless somebody waits for it."""
WASTE_PARTS: Final = 4
WASTE_SHARE: Final = 4
"""Who changes more than so many parts that were sent, and more than one in so many of them, does not write in order."""


@dataclass(eq=False, slots=True)
class Flight:
    """A part under way."""

    done: trio.Event = field(default_factory=trio.Event)
    is_stale: bool = False
    """Its bytes changed meanwhile."""


@dataclass(eq=False, slots=True)
class Stream:
    """The upload of one file that is being written.

    `key`, `upload_id` and `own` (the attributes it was begun with) are set when it has begun. `parts` are those S3 has.
    """

    file: StagedFile
    fd: int
    """Of the staging file, and the stream's own: what is under way may outlive the file's."""
    grid: Grid
    mtime_ns: int
    key: str = ""
    upload_id: str | None = None
    own: dict[str, str] = field(default_factory=dict)
    is_verified: bool = True
    """Whether S3 confirmed `parts`, where another worker noted them."""
    parts: dict[int, Part] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    flying: dict[int, Flight] = field(default_factory=dict)
    beginning: trio.Lock = field(default_factory=trio.Lock)
    wasted: int = 0
    rests_until: float = 0.0
    is_over: bool = False
    """Nothing more is sent ahead: the writer does not go in order, or somebody commits the file."""

    def close(self) -> None:
        """Close the descriptor, once nothing reads from it."""
        if self.fd >= 0 and not self.flying:
            os.close(self.fd)
            self.fd = -1


class Streams:
    """The files of one volume that are uploaded while they are written."""

    def __init__(self, volume: Volume, metadata: Metadata, nursery: trio.Nursery) -> None:
        self._volume = volume
        self._metadata = metadata
        self._nursery = nursery
        self._streams: dict[Inode, Stream] = {}
        self._flying = 0

    # What the writer tells; the inode's lock is held, no checkpoint

    def changing(self, inode: Inode, start: int, stop: int) -> None:
        """Note that bytes are about to change: parts that have them must be sent again."""
        stream = self._streams.get(inode)
        if stream is None or start >= stop:
            return
        first, last = stream.grid.number_at(start), stream.grid.number_at(stop - 1)
        known = [n for n in (*stream.parts, *stream.flying) if first <= n <= last]
        for number in known:
            if number in stream.flying:
                stream.flying[number].is_stale = True
            stream.parts.pop(number, None)
            stream.wasted += 1
        stream.ready = {n for n in stream.ready if not first <= n <= last}
        if known:
            self._volume.journal.drop_parts(inode, first, last)
            if stream.wasted > max(WASTE_PARTS, len(stream.parts) // WASTE_SHARE):
                stream.is_over = True

    def wrote(self, inode: Inode, file: StagedFile, start: int, stop: int) -> None:
        """Note that bytes were written; send what is complete now."""
        stream = self._streams.get(inode)
        if stream is None:
            stream = self._follow(inode, file)
            if stream is None:
                return
            start, stop = 0, file.size
        if stream.is_over:
            return
        for number in range(stream.grid.number_at(start), stream.grid.number_at(stop - 1) + 1):
            if number in stream.parts:
                continue
            first, last = stream.grid.bounds(number)
            is_here = last <= file.size and not next(file.extents.missing(first, last), None)
            if is_here and not first <= stop < last:
                stream.ready.add(number)
        self._launch(inode, stream)

    def _follow(self, inode: Inode, file: StagedFile) -> Stream | None:
        part_size = part_size_for(0, self._volume.settings.part_size_bytes)
        if file.base_size or not SINGLE_PUT_PARTS * part_size < file.size <= MAX_OBJECT_BYTES:
            return None
        row = self._volume.journal.staged(inode)
        if row is None or not row.dirty or row.condition == "match":
            return None
        stream = Stream(file, os.dup(file.data_fd), Grid(part_size), self._volume.now_ns())
        self._streams[inode] = stream
        return stream

    def resume(self, inode: Inode, file: StagedFile) -> None:
        """Go on with the upload that the last worker had begun; nothing where it had not."""
        row = self._volume.journal.upload(inode)
        if row is None or not row.grows:
            return
        own: dict[str, str] = json.loads(row.metadata or "{}")
        mtime_ns = attributes.decode(own).mtime_ns or self._volume.now_ns()
        self._streams[inode] = Stream(
            file,
            os.dup(file.data_fd),
            Grid(row.part_size),
            mtime_ns,
            key=row.key,
            upload_id=row.upload_id,
            own=own,
            is_verified=False,
            parts={p.number: Part(p.number, p.etag, p.size) for p in self._volume.journal.parts(inode)},
        )  # fmt: skip

    def drop(self, inode: Inode) -> None:
        """Forget about a file: it is in S3, or its upload was abandoned, or its staging files go away."""
        stream = self._streams.pop(inode, None)
        if stream is not None:
            stream.is_over = True
            stream.close()

    # Sending

    def _launch(self, inode: Inode, stream: Stream) -> None:
        """Send what is ready, as far as that may be."""
        if stream.is_over or trio.current_time() < stream.rests_until:
            return
        for number in sorted(stream.ready - stream.flying.keys()):
            if self._flying >= self._volume.settings.concurrency:
                return
            stream.ready.discard(number)
            stream.flying[number] = Flight()
            self._flying += 1
            self._nursery.start_soon(self._send, inode, stream, number)

    async def _send(self, inode: Inode, stream: Stream, number: int) -> None:
        try:
            await self._begin(inode, stream)
            await self.send_part(inode, stream, number)
        except (S3mgrError, OSError) as error:
            # Whoever closes the file sends it, and hears of it if that fails.
            log.info("part %d of inode %d is not sent ahead: %s", number, inode, error)
            stream.rests_until = trio.current_time() + REST_S
            stream.ready.add(number)
        finally:
            self._flying -= 1
            stream.flying.pop(number).done.set()
            if self._streams.get(inode) is not stream:
                stream.close()
            for other, following in list(self._streams.items()):
                self._launch(other, following)

    async def send_part(self, inode: Inode, stream: Stream, number: int, stop: int = 0) -> None:
        """Send one part and take note of it, unless its bytes change meanwhile. *stop*: of the last one of a file."""
        if stream.is_over and self._streams.get(inode) is not stream:
            return
        first, last = stream.grid.bounds(number)
        last = stop or last
        body = FileSlice(stream.fd, first, last - first)
        flight = stream.flying.get(number)
        try:
            part = await self._volume.store.upload_part(
                stream.key, stream.upload_id or "", number, body
            )
        except NotFound:
            self._start_over(inode, stream)
            raise
        if self._streams.get(inode) is not stream or (flight is not None and flight.is_stale):
            return
        stream.parts[number] = part
        self._volume.journal.put_part(PartRow(inode, number, part.etag, part.size))

    async def _begin(self, inode: Inode, stream: Stream) -> None:
        """Begin the upload, or make sure of the one that another worker had begun.

        Raises:
            NotFound: the file is gone, or the name.
        """
        volume = self._volume
        async with stream.beginning:
            if stream.upload_id is not None:
                if not stream.is_verified:
                    await self._verify(inode, stream, stream.upload_id)
                if stream.upload_id is not None:
                    return
            node = volume.nodes.get(inode)
            if node is None or node.is_detached or self._streams.get(inode) is not stream:
                stream.is_over = True
                raise NotFound("the file was removed")
            key = volume.wanted_key(node)
            own = self._metadata.own(node._replace(mtime_ns=stream.mtime_ns))
            upload_id = await volume.store.create_multipart(
                key,
                metadata=descriptions.merged({}, own),
                content_type=mimetypes.guess_type(node.name or "")[0],
            )
            if self._streams.get(inode) is not stream:
                volume.journal.abandon(key, upload_id)
                raise NotFound("the file was removed")
            volume.journal.put_upload(
                UploadRow(inode, key, upload_id, stream.grid.part_size, 0, 1, json.dumps(own))
            )
            stream.key, stream.upload_id, stream.own = key, upload_id, own

    async def _verify(self, inode: Inode, stream: Stream, upload_id: str) -> None:
        """Believe the journal as far as S3 confirms it: a part of a dead worker may have arrived after a later one."""
        try:
            found = {
                p.number: p for p in await self._volume.store.list_parts(stream.key, upload_id)
            }
        except NotFound:
            log.info("the upload of inode %d that was begun is gone from S3", inode)
            self._start_over(inode, stream)
            return
        for number, part in list(stream.parts.items()):
            if found.get(number) != part:
                del stream.parts[number]
                self._volume.journal.drop_parts(inode, number, number)
        stream.is_verified = True

    def _start_over(self, inode: Inode, stream: Stream) -> None:
        """S3 does not know the upload any more: all that was sent is to be sent again."""
        if self._streams.get(inode) is stream:
            self._volume.journal.abandon_upload(inode)
            stream.ready |= stream.parts.keys()
            stream.parts.clear()
            stream.upload_id, stream.is_verified = None, True

    # What the committer asks; the locks of the inode and of *key* are held

    async def take(self, inode: Inode, key: str) -> Stream | None:
        """Return a file's upload, which sends nothing more by itself, for who completes it as *key*; None: none is of use.

        Raises:
            S3mgrError: S3 does not answer.
        """
        stream = self._streams.get(inode)
        if stream is None:
            return None
        stream.is_over = True
        if stream.flying and stream.upload_id is None:
            with suppress(NotFound):
                await self._begin(inode, stream)
        size = stream.file.size
        if (
            stream.upload_id is None
            or stream.key != key
            or stream.file.base_size
            or size <= SINGLE_PUT_PARTS * stream.grid.part_size
        ):
            self._volume.journal.abandon_upload(inode)
            self.drop(inode)
            return None
        self._volume.journal.fix_upload(inode, size)
        return stream

    async def confirm(self, inode: Inode, stream: Stream) -> None:
        """Make sure that S3 has what another worker began; begin anew where it has not."""
        if not stream.is_verified:
            await self._begin(inode, stream)
            self._volume.journal.fix_upload(inode, stream.file.size)

    def doubt(self, inode: Inode) -> None:
        """Note that S3 did not complete an upload as we know it."""
        stream = self._streams.get(inode)
        if stream is not None:
            stream.is_verified = False


__all__ = ["Stream", "Streams"]
