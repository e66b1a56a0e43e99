"""Uploads that begin while their file is still being written, so that close() waits for the tail alone.

A new file, or one that was cut to nothing, that outgrows a single PUT is cut by a `Grid`: where a part lies does not depend
on the size the file will have. A part is sent once all its bytes are here and the writer is not inside of it any more.
What was sent is noted in the journal (`parts`), and dropped from there before one of its bytes changes: whatever dies
when, the rows that are left name parts that S3 has of the content as it is. A writer that keeps changing what was
sent is no sequential one: its file is sent when it is closed, as are files that are changes of an object.

With ``write_mode=writeback`` nothing of a file is sent for `HOLD_S` after it outgrew a single PUT, or until it is closed: close() returns
on this machine's word, and the writer needs the processors that sending takes. A file that is renamed at once, as rsync does, is not
sent under another name either.

The upload is begun under the key that the file has then and with its attributes as they are then. Whoever commits the file
(`s3mgrd.fs.following.upload`) takes it over (`Streams.take`), or has it aborted if the name is another by then. Nothing is visible in
S3 before that, and no condition is decided.

What is staged stays here until the file is committed, as long as there is room for it. From `BEGIN_SHARE` of
`Settings.staging_size_bytes` on parts are parked instead (`s3mgrd.fs.writing.parking`): put as objects of their own, copied from
there into the upload, and cut out of the staging file. At the bound, and where the disk is full, writers wait for that.

Concurrency: tasks of the file system's nursery send and park parts, at most `Settings.concurrency` at once for all files.
They hold no lock; a part whose bytes change while it is under way is not believed when it arrives, and not sent again before
that.
"""

import json
import logging
import mimetypes
import os
from contextlib import suppress
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import Corrupt, NotFound, S3mgrError, TimedOut, Unavailable, Unsupported
from s3mgrd.fs import attributes, descriptions
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing import beginnings, parking, trials
from s3mgrd.fs.writing.backlog import Backlog
from s3mgrd.fs.writing.parts import Grid, part_size_for, single_put_bytes
from s3mgrd.fs.writing.stream import Flight, Stream, is_here, size_of, whole_parts
from s3mgrd.journal.staging import Parked, StagedFile
from s3mgrd.journal.tables import PartRow, UploadRow
from s3mgrd.s3.port import MAX_OBJECT_BYTES, FileSlice, Part

log = logging.getLogger(__name__)

REST_S: Final = 5.0
"""After a part could not be sent, nothing more of its file is for so long, unless somebody waits for it."""
HOLD_S: Final = 1.0
"""For so long nothing is sent of a file that is closed without S3, unless it takes much of the disk."""
HOLD_SHARE: Final = 0.5
"""Of `Settings.staging_size_bytes`: with more on the disk nothing is held any longer."""
RETRY_S: Final = 1.0
"""Between two tries to make room for a writer that waits until S3 is back."""
WASTE_PARTS: Final = 4
WASTE_SHARE: Final = 4
"""Who changes more than so many parts that were sent, and more than one in so many of them, does not write in order."""
BEGIN_SHARE: Final = 0.75
LEAST_PARTS: Final = 4
"""So many parts of a file must have room, however small the bound is."""


class Streams:
    """The files of one volume that are uploaded while they are written."""

    def __init__(
        self, volume: Volume, metadata: Metadata, backlog: Backlog, nursery: trio.Nursery
    ) -> None:
        self._volume = volume
        self._metadata = metadata
        self._backlog = backlog
        self._nursery = nursery
        self._streams: dict[Inode, Stream] = {}
        self._flying = 0
        self._parking = 0
        """Bytes that are being parked."""
        self._leaving = 0
        """Of these, bytes that nobody reads any more, and that the disk still has."""
        self._may_park = True
        self._staged = 0
        """Bytes in the staging files of all streams; too many rather than too few."""
        self._error: Exception | None = None
        self._progress = trio.Event()

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
                stream.is_in_order = False

    def wrote(self, inode: Inode, file: StagedFile, start: int, stop: int) -> None:
        """Note that bytes were written; send what is complete now, unless it is held back."""
        stream = self._streams.get(inode)
        if stream is None:
            stream = self._follow(inode, file)
            if stream is None:
                return
            start = 0
        # Who commits holds the inode's lock: they are done, and have failed.
        stream.is_taken = False
        stream.position = stop
        self._staged += stop - start
        if stream.is_over:
            return
        for number in range(stream.grid.number_at(start), stream.grid.number_at(stop - 1) + 1):
            if number in stream.parts:
                continue
            first, last = stream.grid.bounds(number)
            if not stream.is_being_written(first, last) and is_here(file, first, last):
                stream.ready.add(number)
        self._launch(inode, stream)

    def _follow(self, inode: Inode, file: StagedFile) -> Stream | None:
        part_size = part_size_for(0, self._volume.settings.part_size_bytes)
        if file.base_size or not single_put_bytes(part_size) < file.size <= MAX_OBJECT_BYTES:
            return None
        row = self._volume.journal.staged(inode)
        if row is None or not row.dirty or row.condition == "match":
            return None
        stream = self._add(inode, file, part_size)
        if self._volume.settings.write_mode == "writeback":
            stream.held_until = trio.current_time() + HOLD_S
            self._nursery.start_soon(self._hold, inode, stream)
        return stream

    async def _hold(self, inode: Inode, stream: Stream) -> None:
        """Send what is there of a file that is held once it is held no longer, though nobody writes to it any more."""
        await trio.sleep_until(stream.held_until)
        if self._streams.get(inode) is stream:
            self._launch(inode, stream)

    def _add(self, inode: Inode, file: StagedFile, part_size: int) -> Stream:
        stream = Stream(file, os.dup(file.data_fd), Grid(part_size), self._volume.now_ns())
        self._streams[inode] = stream
        return stream

    def resume(self, inode: Inode, file: StagedFile) -> None:
        """Go on with the upload that the last worker had begun; nothing where it had not."""
        row = self._volume.journal.upload(inode)
        if row is None or not row.grows:
            return
        stream = self._add(inode, file, row.part_size)
        stream.key, stream.upload_id, stream.is_verified = row.key, row.upload_id, False
        stream.own = json.loads(row.metadata or "{}")
        stream.mtime_ns = attributes.decode(stream.own).mtime_ns or stream.mtime_ns
        parts = self._volume.journal.parts(inode)
        stream.parts = {part.number: Part(part.number, part.etag, part.size) for part in parts}
        stream.position = file.size
        self._staged += file.extents.total()

    def drop(self, inode: Inode) -> None:
        """Forget about a file: it is in S3, or its upload was abandoned, or its staging files go away."""
        stream = self._streams.pop(inode, None)
        if stream is not None:
            stream.is_taken = True
            stream.close()
            self._count()
            self._tell()

    # Room on the disk

    @property
    def _limit(self) -> int:
        largest = max(
            (size_of(s.grid, s.grid.number_at(s.position)) for s in self._streams.values()),
            default=0,
        )
        return max(self._volume.settings.staging_size_bytes, LEAST_PARTS * largest)

    def _count(self) -> None:
        self._staged = self._leaving + sum(
            stream.file.extents.total() for stream in self._streams.values()
        )

    def _is_short(self, share: float) -> bool:
        """Whether more than a share of the bound will be taken once all is parked that is under way."""
        if not self._may_park or self._staged - self._parking <= share * self._limit:
            return False
        self._count()
        return self._staged - self._parking > share * self._limit

    @property
    def is_full(self) -> bool:
        """Whether writers have to wait for room."""
        if self._staged <= self._volume.settings.staging_size_bytes or not self._may_park:
            return False  # asked before each write
        if self._staged <= self._limit:
            return False
        self._count()
        return self._staged > self._limit

    async def room(self) -> None:
        """Wait until there is room to write; hold no lock. At once where nothing can be parked.

        Raises:
            S3mgrError: nothing could be parked, and with write_mode=writeback it is not that S3 is away.
        """
        while self.is_full:
            if not self._relieve() and not self._flying:
                error = self._error
                if error is None:
                    return
                if self._volume.settings.write_mode != "writeback" or not isinstance(
                    error, Unavailable | TimedOut
                ):
                    raise error
                await trio.sleep(RETRY_S)
                continue
            await self._progress.wait()

    async def free(self) -> bool:
        """Park something, however much room there should be, and wait for it; whether that gave the disk anything back."""
        staged = sum(s.file.extents.total() for s in self._streams.values())
        while not self._parking and not self._park_next(urgent=True):
            if not any(s.flying for s in self._streams.values() if not s.is_taken):
                return False
            await self._progress.wait()  # what is being sent can be parked afterwards
        while self._parking:
            await self._progress.wait()
        return sum(s.file.extents.total() for s in self._streams.values()) < staged

    def _relieve(self) -> bool:
        """Park as much as is necessary; whether anything is being parked."""
        while self._is_short(1.0) and self._park_next(urgent=False):
            pass
        return self._parking > 0

    def _park_next(self, *, urgent: bool) -> bool:
        """Begin to park one part, of the file that takes most; whether there is one."""
        now = trio.current_time()
        if not self._may_park or (self._flying >= self._volume.settings.concurrency and not urgent):
            return False
        streams = sorted(self._streams.items(), key=lambda item: -item[1].file.extents.total())
        for inode, stream in streams:
            if stream.is_taken or (now < stream.rests_until and not urgent):
                continue
            for number in whole_parts(stream):
                if number not in stream.flying:
                    self._start(inode, stream, number, parks=True)
                    return True
        return False

    # Sending

    def begins(self) -> None:
        """Note that an upload of several parts is about to begin, one of these or another."""
        if self._volume.store.wants_trial:
            self._nursery.start_soon(trials.find_out, self._volume)

    def _launch(self, inode: Inode, stream: Stream) -> None:
        """Send what is ready, as far as that may be."""
        if not stream.ready or stream.is_over or self._backlog.is_paused:
            return
        now = trio.current_time()
        if now < stream.rests_until or (now < stream.held_until and not self._is_short(HOLD_SHARE)):
            return
        for number in sorted(stream.ready - stream.flying.keys()):
            if self._flying >= self._volume.settings.concurrency:
                return
            if not is_here(stream.file, *stream.grid.bounds(number)):
                stream.ready.discard(number)
                continue
            self._start(inode, stream, number, parks=self._is_short(BEGIN_SHARE))

    def _start(self, inode: Inode, stream: Stream, number: int, *, parks: bool) -> None:
        size = size_of(stream.grid, number) if parks else 0
        stream.ready.discard(number)
        stream.flying[number] = Flight(size)
        self._flying += 1
        self._parking += size
        self._nursery.start_soon(self._fly, inode, stream, number)

    async def _fly(self, inode: Inode, stream: Stream, number: int) -> None:
        flight = stream.flying[number]
        try:
            if flight.size:
                await self._park(inode, stream, number, flight)
                self._error = None
            else:
                await self._begin(inode, stream)
                await self.send_part(inode, stream, number)
        except (S3mgrError, OSError) as error:
            # Whoever closes the file sends it, and hears of it if that fails.
            log.info("part %d of inode %d is not sent ahead: %s", number, inode, error)
            stream.rests_until = trio.current_time() + REST_S
            stream.ready.add(number)
            if flight.size:
                self._error = error
        finally:
            self._flying -= 1
            self._parking -= flight.size
            stream.flying.pop(number).done.set()
            if self._streams.get(inode) is not stream:
                stream.close()
            self._tell()
            for other, following in list(self._streams.items()):
                self._launch(other, following)

    def _tell(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    async def send_part(self, inode: Inode, stream: Stream, number: int, stop: int = 0) -> None:
        """Send one part and take note of it, unless its bytes change meanwhile. *stop*: of the last one of a file."""
        if self._streams.get(inode) is not stream:
            return
        first, last = stream.grid.bounds(number)
        last = stop or last
        body = FileSlice(stream.fd, first, last - first, stream.file.entered.of(first, last))
        flight, upload_id = stream.flying.get(number), stream.upload_id or ""
        try:
            part = await self._volume.store.upload_part(stream.key, upload_id, number, body)
        except NotFound:
            if upload_id == stream.upload_id:
                self._start_over(inode, stream)
            raise
        except Corrupt:
            if flight is None or not flight.is_stale:
                raise
            return  # written over while it was sent, and sent again as it is now
        self._note(inode, stream, upload_id, part, flight)

    async def _park(self, inode: Inode, stream: Stream, number: int, flight: Flight) -> None:
        """Park one part, and have S3 copy it into the upload."""
        volume, file = self._volume, stream.file
        first, last = stream.grid.bounds(number)
        parked = await parking.make_object(volume, inode, stream.fd, first, last)
        try:
            if number not in stream.parts and not stream.is_over:
                await self._begin(inode, stream)
                await self._copy(inode, stream, number, parked, flight)
            if flight.is_stale or self._streams.get(inode) is not stream:
                volume.journal.unpark([parked.key])
                return
            parking.leave(volume, file, parked)
        except Unsupported as error:
            log.info("this store copies no parts (%s): what is written stays on the disk", error)
            self._may_park = False
            volume.journal.unpark([parked.key])
            raise
        except BaseException:
            volume.journal.unpark([parked.key])
            raise
        self._leaving += flight.size
        try:
            await trio.to_thread.run_sync(file.sync_log)
            if not flight.is_stale and self._streams.get(inode) is stream:
                file.punch(first, last)
        finally:
            self._leaving -= flight.size
            self._count()

    async def _copy(
        self, inode: Inode, stream: Stream, number: int, parked: Parked, flight: Flight | None
    ) -> None:
        """Have S3 copy a part from where it is parked."""
        upload_id = stream.upload_id or ""
        start = parked.offset
        part = await self._volume.store.copy_part(
            stream.key,
            upload_id,
            number,
            parked.key,
            start,
            start + parked.stop - parked.start,
            if_source_match=parked.etag,
        )
        self._note(inode, stream, upload_id, part, flight)

    def _note(
        self, inode: Inode, stream: Stream, upload_id: str, part: Part, flight: Flight | None
    ) -> None:
        """Believe that S3 has a part, if it is of the content and the upload as they are."""
        if flight is not None and flight.is_stale:
            return
        row = self._volume.journal.upload(inode)
        if row is not None and row.upload_id == upload_id == stream.upload_id:
            stream.parts[part.number] = part
            self._volume.journal.put_part(PartRow(inode, part.number, part.etag, part.size))

    async def _begin(self, inode: Inode, stream: Stream, key: str | None = None) -> None:
        """Begin the upload, or make sure of the one that another worker had begun.

        *key*: that of who completes it; None: the one that the file's path spells now.

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
                stream.is_in_order = False
                raise NotFound("the file was removed")
            self.begins()
            key = key or volume.wanted_key(node)
            own = self._metadata.own(node._replace(mtime_ns=stream.mtime_ns))

            def note(upload_id: str) -> None:
                if self._streams.get(inode) is not stream:
                    volume.journal.abandon(key, upload_id)
                    return
                part_size, text = stream.grid.part_size, json.dumps(own)
                volume.journal.put_upload(UploadRow(inode, key, upload_id, part_size, 0, 1, text))
                stream.key, stream.upload_id, stream.own = key, upload_id, own

            await beginnings.begin(
                volume,
                key,
                note,
                metadata=descriptions.merged({}, own),
                content_type=mimetypes.guess_type(node.name or "")[0],
            )
            if self._streams.get(inode) is not stream:
                raise NotFound("the file was removed")

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
            if found.get(number) == part:
                stream.parts[number] = found[number]  # with its checksum
            else:
                del stream.parts[number]
                self._volume.journal.drop_parts(inode, number, number)
        stream.is_verified = True

    def _start_over(self, inode: Inode, stream: Stream) -> None:
        """Give an upload up, or note that S3 did: all that was sent is to be sent again."""
        if self._streams.get(inode) is stream:
            self._volume.journal.abandon_upload(inode)
            stream.ready |= {
                n for n in stream.parts if is_here(stream.file, *stream.grid.bounds(n))
            }
            stream.parts.clear()
            stream.upload_id, stream.is_verified = None, True

    # What the committer asks; the locks of the inode and of *key* are held

    async def take(self, inode: Inode, file: StagedFile, key: str) -> Stream | None:
        """Return a file's upload, which sends nothing more by itself, for who completes it as *key*; None: none is of use.

        What was parked of a file can only be part of such an upload; of one that turned out small it is fetched.

        Raises:
            S3mgrError: S3 does not answer.
        """
        stream = self._streams.get(inode)
        if stream is None and file.parked:
            part_size = part_size_for(0, self._volume.settings.part_size_bytes)
            stream = self._add(inode, file, part_size)
        if stream is None:
            return None
        stream.is_taken = True
        if stream.flying and stream.upload_id is None:
            with suppress(NotFound):
                await self._begin(inode, stream, key)
        is_large = file.size > single_put_bytes(stream.grid.part_size)
        if not is_large and file.parked:
            for flight in list(stream.flying.values()):
                await flight.done.wait()
            await parking.fetch(self._volume, file, 0, file.size)
        is_large = is_large and not file.base_size
        if is_large and stream.key != key and file.parked:
            self._start_over(inode, stream)
            await self._begin(inode, stream, key)
        if not is_large or stream.upload_id is None or stream.key != key:
            self._volume.journal.abandon_upload(inode)
            self.drop(inode)
            return None
        self._volume.journal.fix_upload(inode, file.size)
        return stream

    async def confirm(self, inode: Inode, stream: Stream) -> None:
        """Make sure that S3 has what another worker began; begin anew where it has not."""
        if not stream.is_verified:
            await self._begin(inode, stream, stream.key)
            self._volume.journal.fix_upload(inode, stream.file.size)

    async def make_part(self, inode: Inode, stream: Stream, number: int, stop: int) -> Part:
        """Make the part of a file that ends at *stop*, out of what is here and what is parked, unless S3 has it."""
        if flight := stream.flying.get(number):
            await flight.done.wait()
        start = stream.grid.bounds(number)[0]
        if self._streams.get(inode) is not stream:
            raise NotFound("what was written was discarded")
        if number not in stream.parts:
            ranges = parking.parked_ranges(stream.file, start, stop)
            if ranges == [(start, stop)]:
                (parked,) = stream.file.parked_in(start, stop)
                await self._copy(inode, stream, number, parked, None)
            else:
                await parking.fetch(self._volume, stream.file, start, stop)
                await self.send_part(inode, stream, number, stop)
        return stream.parts[number]

    def doubt(self, inode: Inode) -> None:
        """Note that S3 did not complete an upload as we know it."""
        stream = self._streams.get(inode)
        if stream is not None:
            stream.is_verified = False
