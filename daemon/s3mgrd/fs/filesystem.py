"""The file system of one mount, put together: which part uses which, and what happens when it opens and closes."""

import errno
import logging
import os
from collections.abc import Callable
from typing import Final

import trio

from s3mgrd.cache.nodes import ROOT, Inode, Kind, Marker, Node
from s3mgrd.errors import Conflict, Corrupt, S3mgrError
from s3mgrd.fs.changing.archive import ArchiveGate
from s3mgrd.fs.changing.attribute_changes import AttributeChanges
from s3mgrd.fs.changing.conflicts import Conflicts, Notice
from s3mgrd.fs.changing.tree import Tree
from s3mgrd.fs.counters import Counters
from s3mgrd.fs.durability import LocalDisk
from s3mgrd.fs.following.move import Mover
from s3mgrd.fs.following.objects import Objects
from s3mgrd.fs.following.sync import Syncer
from s3mgrd.fs.following.upload import Uploader
from s3mgrd.fs.health import Health
from s3mgrd.fs.learning.asking import Asker
from s3mgrd.fs.learning.listing import Lister
from s3mgrd.fs.learning.metadata import SAMPLED, USED, Metadata
from s3mgrd.fs.learning.namespace import Namespace
from s3mgrd.fs.learning.pruning import Pruner
from s3mgrd.fs.reading.pins import PINS, Pins
from s3mgrd.fs.reading.prefetch import Prefetcher
from s3mgrd.fs.reading.reader import Reader
from s3mgrd.fs.reading.segments import Superseded
from s3mgrd.fs.reading.warming import Warmer
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing import parking
from s3mgrd.fs.writing.backlog import PAUSED, Backlog
from s3mgrd.fs.writing.completing import Completer
from s3mgrd.fs.writing.recovery import Recovery
from s3mgrd.fs.writing.retaining import Retainer
from s3mgrd.fs.writing.stages import Queued, Stage, Stages
from s3mgrd.fs.writing.streaming import Streams
from s3mgrd.s3.counting import Waiting

log = logging.getLogger(__name__)

CONNECTION: Final = "connection_id"
BUCKET: Final = "bucket"
MAX_RETRIED: Final = 10_000
"""Uploads that an outage kept and that are tried at once when it ends; more follow at their next try."""
WRITER_ATTRIBUTES_S: Final = 1.0
"""A kernel that gathers writes asks for attributes before each write(2) unless it may believe them for a while. Of a file
that is open for writing it may: whoever looks the name up again is told anew, and a handle stays with its version."""


class FileSystem:
    """The parts of one mounted volume. Its tasks live in *nursery*.

    Args:
        kernel_holds: whether the kernel still knows an inode number.
    """

    def __init__(
        self, volume: Volume, nursery: trio.Nursery, kernel_holds: Callable[[Inode], bool]
    ) -> None:
        self.volume = volume
        self.kernel_holds = kernel_holds
        volume.are_times_kept = self._are_times_kept
        self.health = Health(volume.store, volume.settings.prefix)
        self.metadata = Metadata(volume, kernel_holds)
        self.lister = Lister(volume, nursery, self.metadata)
        asker = Asker(volume, nursery, self.lister, self.metadata)
        self.namespace = Namespace(volume, self.lister, self.metadata, asker)
        self.archive = ArchiveGate(volume, lambda inode: self.stages.get(inode) is not None)
        self.tree = Tree(
            volume,
            self.namespace,
            self.archive,
            not_lacking=lambda inode: self.stages.not_lacking(inode),
            wake=self._wake,
        )
        self.attributes = AttributeChanges(
            volume, self.namespace, self.metadata, self.tree, self.archive, self._wake
        )
        backlog = Backlog()
        self.streams = Streams(volume, self.metadata, backlog, nursery)
        self.retainer = Retainer(volume, nursery)
        self.stages = Stages(
            volume,
            self.streams,
            backlog,
            kernel_holds,
            self.archive.check,
            self.retainer.leaving,
        )
        self.disk = LocalDisk(volume.staging, volume.database)
        self.recovery = Recovery(volume)
        self.reader = Reader(volume, self.metadata, nursery, self._version_gone)
        self.prefetcher = Prefetcher(
            volume, self.reader, lambda inode: self.stages.get(inode) is not None
        )
        self.objects = Objects(volume, self.metadata, kernel_holds)
        self.completer = Completer(volume, self.stages)
        self.conflicts = Conflicts(
            volume,
            self.stages,
            self.metadata,
            self.namespace,
            self.tree,
            self.completer,
            nursery,
            kernel_holds,
            self._wake,
        )
        self.uploader = Uploader(
            volume,
            self.stages,
            self.streams,
            self.reader,
            self.metadata,
            clear_key=self.objects.clear_key,
            preserve=self.objects.preserve,
            settled=self.tree.settled,
            conflicts=self.conflicts,
        )
        self.mover = Mover(volume, self.metadata, self.objects.preserve)
        self.syncer = Syncer(
            volume,
            self.stages,
            self.uploader,
            self.objects,
            self.mover,
            kernel_holds,
            self.health.note,
        )
        self.pruner = Pruner(
            volume,
            is_listing=lambda inode: self.lister.running(inode) is not None,
            kernel_holds=kernel_holds,
        )
        self.counters = Counters()
        self.warmer = Warmer(volume, self.namespace, self.lister, self.reader)
        self.pins = Pins(volume, self.warmer)
        volume.store.outage.ended = self._back_online
        volume.store.copy_notes = volume.journal

    def recover(self, *, is_database_lost: bool = False) -> None:
        """Take over what mount.db and the staging directory hold; before the first request.

        Args:
            is_database_lost: mount.db could not be trusted, and another has taken its place.
        """
        self.recovery.save(is_database_lost=is_database_lost)
        for move in self.volume.moves.all():
            self.volume.moving[move.inode] = trio.Event()
        self.volume.journal.leave_all_beginnings(now_ns=self.volume.now_ns())
        self.volume.journal.abandon_copies()
        self.stages.recover()

    async def read(
        self, inode: Inode, offset: int, length: int, *, handle: int
    ) -> bytes | memoryview:
        """Read from a file: what is staged from there, the rest from its version in S3.

        Raises:
            Superseded: read again.
            OSError, S3mgrError: as `Reader.read`.
        """
        before = self.volume.node(inode)
        try:
            return await self._read(before, offset, length, handle)
        except OSError as error:
            if error.errno == errno.ESTALE and await self._is_overtaken(before):
                raise Superseded from error
            raise

    async def _is_overtaken(self, before: Node) -> bool:
        """Whether a version that S3 has no more went because we wrote the next.

        S3 has that before we hear of it; or the worker died in between.
        """
        if before.etag is None:
            return False
        async with self.volume.locks.holding(("key", self.volume.key_in_s3(before))):
            node = self.volume.nodes.get(before.id)
        if node is None or node.etag != before.etag:
            return node is not None
        try:
            return await self.uploader.take_up_unseen(before.id)
        except S3mgrError as error:
            log.info("inode %d: whether it was uploaded is not known: %s", before.id, error)
            return False

    async def _read(self, node: Node, offset: int, length: int, handle: int) -> bytes | memoryview:
        inode = node.id
        stage = self.stages.get(inode)
        if stage is None:
            if node.etag is None:
                return b""
            return await self.reader.read(node, node.etag, node.size, offset, length, handle=handle)
        file = stage.file
        while True:
            moves = file.moves
            try:
                parts = await self._read_pieces(node, stage, offset, length, handle)
            except Corrupt:
                if file.moves == moves:
                    raise
            if file.moves == moves:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            # What was planned to be read here lies elsewhere now.

    async def _read_pieces(
        self, node: Node, stage: Stage, offset: int, length: int, handle: int
    ) -> list[bytes | memoryview]:
        file = stage.file
        parts: list[bytes | memoryview] = []
        for piece in file.pieces(offset, offset + length):
            if piece.parked is not None:
                parts.append(await parking.read(self.volume, piece.parked))
            elif (
                piece.is_base
                and (row := self.volume.journal.staged(node.id)) is not None
                and row.base_etag is not None
            ):
                size = piece.stop - piece.start
                parts.append(
                    await self.reader.read(
                        node, row.base_etag, row.base_size, piece.start, size, handle=handle
                    )
                )
            else:
                parts.append(file.read(piece.start, piece.stop))
        return parts

    def write_now(self, inode: Inode, offset: int, data: memoryview) -> int | None:
        """Write to a file as `write`, if nothing has to be waited for; None: something has. Raises OSError: `write` may do better."""
        if (
            self.volume.locks.is_held(("inode", inode))
            or not self.stages.may_write_now(inode, len(data))
            or self.streams.is_full
        ):
            return None
        return self.stages.write_now(inode, offset, data)

    async def write(self, inode: Inode, offset: int, data: bytes) -> int:
        """Write to a file, once there is room for it on the disk. Raises OSError; S3mgrError: no room, and why S3 gives none."""
        notice: Notice | None = None
        while True:
            await self.streams.room()
            try:
                async with self.volume.locks.holding(("inode", inode)):
                    notice = self.conflicts.keep_orphan(inode) or notice
                    written = await self.stages.write(inode, offset, data)
                break
            except OSError as error:
                if not parking.is_full(error) or not await self.streams.free():
                    raise
        if notice is not None:
            await self.conflicts.announce(notice)
        return written

    def attributes_valid_for_s(self, node: Node) -> float:
        """Return for how long the kernel may believe the attributes of *node*."""
        valid_s = self.namespace.valid_for_s(node)
        if self.volume.kernel_keeps_times and self.stages.is_open(node.id):
            return max(valid_s, WRITER_ATTRIBUTES_S)
        return valid_s

    async def truncate(self, inode: Inode, size: int, mtime_ns: int | None = None) -> None:
        """Set a file's size, at *mtime_ns* or now.

        Nothing is done where the kernel keeps the times and says none: then it is truncate(2) to the size that the file has.
        """
        if (
            mtime_ns is None
            and self.volume.kernel_keeps_times
            and self.stages.size(self.volume.node(inode)) == size
        ):
            return
        async with self.volume.locks.holding(("inode", inode)):
            notice = self.conflicts.keep_orphan(inode)
            self.stages.truncate(inode, size, mtime_ns)
        if notice is not None:
            await self.conflicts.announce(notice)

    async def read_target(self, inode: Inode) -> str:
        """Read a symbolic link. Raises OSError: EINVAL (it is none), EIO (its object is no text)."""
        node = self.volume.node(inode)
        if node.kind != Kind.SYMLINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if node.target is not None:
            return node.target
        if not node.size:
            return ""
        found = await self.volume.store.get_range(
            self.volume.key_in_s3(node), 0, node.size, if_match=node.etag
        )
        try:
            target = bytes(found.data).decode()
        except UnicodeDecodeError as error:
            raise OSError(errno.EIO, "the target of a symbolic link is not UTF-8") from error
        self.volume.nodes.update(inode, target=target)
        return target

    async def commit(self, inode: Inode) -> None:
        """Upload a file if S3 lacks it. Raises what `Uploader.commit` does."""
        with Waiting():
            moved = await self.uploader.commit(inode)
        if moved:
            self._wake()  # the object may have left another key behind

    async def flush(self, inode: Inode) -> None:
        """Do what close(2) waits for; raises as `commit`."""
        if self.volume.settings.write_mode == "writeback":
            with Waiting():
                await self.stages.backlog.room(self.volume.settings.dirty_limit_bytes)
        else:
            await self.commit(inode)

    async def fsync(self, inode: Inode) -> None:
        """Make a file outlive a power loss: in S3, or with write_mode=writeback and fsync=local on this disk."""
        settings = self.volume.settings
        if settings.write_mode != "writeback" or settings.fsync == "remote":
            await self.commit(inode)
            return
        stage = self.stages.get(inode)
        if stage is None or not stage.dirty:
            return
        with Waiting(for_disk=True):
            async with self.volume.locks.holding(("inode", inode)):
                await self.disk.sync(stage.file)

    async def truncated(self, inode: Inode) -> None:
        """Do what truncate(2) of a file that is not open waits for; raises as `commit`."""
        if self.volume.settings.write_mode == "writeback":
            self._queue(inode)
            await self.flush(inode)
        else:
            await self.commit(inode)

    def closed(self, inode: Inode, *, soon: bool = False) -> None:
        """Note that a handle that could write is gone; what it left unsent (a mapping, say) is sent now. *soon*: see `Stages.queue`."""
        self.stages.closed(inode)
        self._queue(inode, soon=soon)

    def _queue(self, inode: Inode, *, soon: bool = False) -> None:
        queued = self.stages.queue(inode, soon=soon)
        if queued is not Queued.NOT:
            self.syncer.wake(at_once=queued is Queued.AT_ONCE)

    def may_close_now(self) -> bool:
        """Whether `flush` would have nothing to wait for, whatever the file."""
        settings = self.volume.settings
        return settings.write_mode == "writeback" and not self.stages.backlog.is_full(
            settings.dirty_limit_bytes
        )

    def gathered(self) -> list[Inode]:
        """Return the files of which the kernel may have gathered writes that it did not send yet."""
        return self.stages.writing() if self.volume.kernel_keeps_times else []

    def discard(self) -> None:
        """Throw away everything that S3 does not have. Only on the user's word."""
        for inode in self.volume.staging.inodes():
            self.volume.staging.describe(inode, None)
        volume = self.volume
        with volume.database.transaction():
            for node in volume.nodes.unlike_s3():
                current = volume.nodes.get(node.id)
                if current is not None and not current.is_detached:  # gone with its directory, else
                    volume.detach(current)
            volume.journal.discard()
            # What was removed here is still there, and what was renamed lies under its old name.
            volume.nodes.distrust_all()
        volume.covered.clear()
        for inode in self.volume.staging.inodes():
            self.stages.remove(Inode(inode))
        for event in self.volume.moving.values():
            event.set()
        self.volume.moving.clear()

    def _wake(self) -> None:
        self.syncer.wake()

    def _back_online(self) -> None:
        """Go on with what waited for S3. What was shown meanwhile was believed for no time: it is asked for again."""
        now_ns = self.volume.now_ns()
        for row in self.volume.journal.failed_staged(limit=MAX_RETRIED):
            inode = Inode(row.inode)
            if row.retry_ns is not None and not row.conflict and self.stages.get(inode) is not None:
                self.stages.make_due(inode, min(row.retry_ns, now_ns))
        self.syncer.retry()
        self.pins.hurry()

    def _are_times_kept(self, inode: Inode) -> bool:
        return (
            self.volume.kernel_keeps_times
            and not self.stages.is_open(inode)
            and self.kernel_holds(inode)
        )

    def _version_gone(self, node: Node) -> None:
        """A version vanished from S3 under an open file: the next look at its name shall ask."""
        current = self.volume.nodes.get(node.id)
        if current is not None and not current.is_detached:
            self.volume.nodes.update(current.id, seen_ns=0)
            self.volume.distrust(current.parent)


def adopt_database(volume: Volume, *, bucket: str, connection_id: str) -> bool:
    """Make mount.db that of this bucket and this kernel connection.

    On a new connection the kernel holds nothing: nameless inodes go, and what they held back. Names stay.

    Returns:
        Whether the connection is the one that the last worker served.

    Raises:
        Conflict: it holds changes for another bucket.
    """
    database, journal, nodes = volume.database, volume.journal, volume.nodes
    before = database.get_meta(BUCKET)
    with database.transaction() as db:
        if before not in (None, bucket):
            if journal.count_conflicts()[0] or any(
                n for kind, n in journal.counts().items() if kind != "held"
            ):
                raise Conflict(
                    f"changes are kept under this name that belong to {before}, not to {bucket}",
                    hint="mount that bucket again under this name to upload them, or choose another name",
                )
            for table in (
                "inodes",
                "hidden",
                "staged",
                "conflicts",
                "uploads",
                "beginnings",
                "copies",
                "parked",
                "deletes",
                "moves",
                "moved",
                "writes",
            ):
                db.execute(f"DELETE FROM {table}")  # noqa: S608 - names from the line above
            if before is not None:
                database.set_meta(PAUSED, "0")  # it was said of another bucket's files
                db.execute("DELETE FROM meta WHERE name IN (?, ?, ?)", (USED, SAMPLED, PINS))
        if nodes.get(ROOT) is None:
            db.execute(
                "INSERT INTO inodes (id, parent, name, kind, mtime_ns, marker, attributes_known) VALUES (?, 0, '', ?, ?, ?, 1)",
                (ROOT, int(Kind.DIRECTORY), volume.now_ns(), int(Marker.EXISTS)),
            )
        is_resumed = database.get_meta(CONNECTION) == connection_id
        if not is_resumed:
            for node in nodes.detached():
                journal.release_deletes(node.id)
                journal.drop_staged(node.id)
                nodes.drop(node.id)
            db.execute("UPDATE deletes SET holder = NULL WHERE key NOT IN (SELECT key FROM parked)")
            journal.drop_calls()
            journal.retry_all_staged(volume.now_ns())
        database.set_meta(BUCKET, bucket)
        database.set_meta(CONNECTION, connection_id)
    return is_resumed
