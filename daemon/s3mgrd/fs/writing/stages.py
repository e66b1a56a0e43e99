"""Files with local data: staged writes, truncation, and what a file looks like while S3 does not have it.

A `Stage` lives from the first change of a file until S3 has it and nobody writes any more. The upload is in
`s3mgrd.fs.following.upload`.

Concurrency: who writes, truncates or uploads holds the inode's lock (``("inode", n)``), so that an upload is never a
mixture of two states. Reads need no lock: they plan and copy without a checkpoint.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Kind, Node
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing import parking
from s3mgrd.fs.writing.backlog import PAUSED, SMALL_BYTES, Backlog, due_ns
from s3mgrd.fs.writing.pace import Pace
from s3mgrd.fs.writing.recovery import note_purpose
from s3mgrd.fs.writing.streaming import Streams
from s3mgrd.journal.staging import Lacking, StagedFile
from s3mgrd.journal.tables import ConditionKind, ConflictRow, StagedRow
from s3mgrd.s3.counting import Waiting

log = logging.getLogger(__name__)

MAX_SENT: Final = 4096
SETTLED_S: Final = 1.0
"""A change of a large object is uploaded at once, unless S3 got the file less than this ago: then more is likely to follow."""


class Queued(Enum):
    """What became of a file that was to be queued."""

    NOT = auto()
    """It is not: S3 has it, somebody still writes it, or it is in the queue already."""
    GATHERING = auto()
    """It may be changed again, renamed or removed in a moment."""
    AT_ONCE = auto()


class Stage:
    """The local state of one file: its staging files and who writes."""

    def __init__(
        self,
        file: StagedFile,
        lacking: Lacking,
        *,
        dirty: bool,
        mtime_ns: int | None,
    ) -> None:
        self.file: Final = file
        self._lacking = lacking
        self._dirty = False
        self.dirty = dirty
        self.was_sent = True
        """Since the last change an upload of the whole content may have been begun, by this worker or the last."""
        self.is_lost = False
        """Another writer was first: these bytes are a conflict copy, and who has the file open goes on with them alone."""
        self.mtime_ns = mtime_ns
        """Of the last write; None: the row's mtime holds (nothing was written, or utimens came later)."""
        self.is_new = False
        """Its row is as it was made: no upload was ever due, or failed."""

    @property
    def dirty(self) -> bool:
        """Whether S3 lacks what is staged."""
        return self._dirty

    @dirty.setter
    def dirty(self, dirty: bool) -> None:
        if dirty != self._dirty:
            self._dirty = dirty
            self.file.count_in(self._lacking if dirty else None)


class Stages:
    """The staged files of one volume.

    Args:
        volume: whose they are.
        streams: sends ahead what is written.
        backlog: where files wait for their upload.
        kernel_holds: whether the kernel still knows an inode number.
        check_readable: refuses, by an exception, to change a part of what S3 would not let us read.
        leaving: told of staging files that are about to go because S3 has all that is in them.
    """

    def __init__(
        self,
        volume: Volume,
        streams: Streams,
        backlog: Backlog,
        kernel_holds: Callable[[Inode], bool],
        check_readable: Callable[[Node], None],
        leaving: Callable[[Node, StagedFile], None],
    ) -> None:
        self._volume = volume
        self._streams = streams
        self._check_readable = check_readable
        self._leaving = leaving
        self._kernel_holds = kernel_holds
        self._stages: dict[Inode, Stage] = {}
        self._writers: dict[Inode, int] = {}
        self._pace = Pace()
        self._sent_at: dict[Inode, float] = {}
        """When S3 got a file last, by trio's clock; asked of large ones only."""
        self.backlog: Final = backlog
        self.lacking: Final = Lacking()

    def recover(self) -> None:
        """Take over what the last worker left: dirty files stay, the rest is removed."""
        self.backlog.is_paused = self._volume.database.get_meta(PAUSED) == "1"
        for row in self._volume.journal.all_staged():
            inode = Inode(row.inode)
            node = self._volume.nodes.get(inode)
            is_open = node is not None and node.is_detached and self._kernel_holds(inode)
            if not is_open and self._volume.journal.conflict(inode) is not None:
                continue  # a copy that nobody uses needs no descriptors
            if node is None or not (row.dirty or is_open):
                self.remove(inode)
                continue
            try:
                self._stages[inode] = self._load(node, row)
                if row.dirty and not node.is_detached:
                    self._streams.resume(inode, self._stages[inode].file)
                if row.dirty and row.retry_ns is not None and not row.conflict:
                    self.backlog.add(inode, self._stages[inode].file.size, row.retry_ns)
            except OSError as error:
                log.exception("staged data of inode %d cannot be read", inode)
                self._volume.journal.fail_staged(
                    inode, f"the staging file cannot be read: {error}", conflict=True, retry_ns=None
                )

    def _load(self, node: Node, row: StagedRow) -> Stage:
        file = self._volume.staging.open(row.inode, row.base_size)
        parking.reconcile(self._volume, Inode(row.inode), file)
        stage = Stage(
            file,
            self.lacking,
            dirty=bool(row.dirty),
            mtime_ns=file.mtime_ns() if file.is_changed else None,
        )
        stage.is_lost = bool(row.conflict) and node.is_detached
        return stage

    def get(self, inode: Inode) -> Stage | None:
        """Return the stage of a file, None where all is in S3."""
        return self._stages.get(inode)

    def has_any(self, inodes: Iterable[Inode]) -> bool:
        """Whether any of *inodes* has a stage."""
        return bool(self._stages) and not self._stages.keys().isdisjoint(inodes)

    def size(self, node: Node) -> int:
        """Return the size to show."""
        stage = self._stages.get(node.id)
        return node.size if stage is None else stage.file.size

    def mtime_ns(self, node: Node) -> int:
        """Return the time of the last change of content to show."""
        stage = self._stages.get(node.id)
        return node.mtime_ns if stage is None or stage.mtime_ns is None else stage.mtime_ns

    def local_bytes(self, inode: Inode) -> int:
        """Count the bytes of a file that lie in staging."""
        stage = self._stages.get(inode)
        return 0 if stage is None else stage.file.extents.total()

    def total_bytes(self) -> int:
        """Count the bytes that lie in staging."""
        return sum(stage.file.extents.total() for stage in self._stages.values())

    # Handles

    def opened(self, inode: Inode) -> None:
        """Note a handle that may write."""
        self._writers[inode] = self._writers.get(inode, 0) + 1

    def is_open(self, inode: Inode) -> bool:
        """Whether a handle that may write is known; those of the last worker are not."""
        return inode in self._writers

    def writing(self) -> list[Inode]:
        """Return the files that somebody writes, or did not close yet: the kernel may have more of them than was sent."""
        waiting = {inode for inode, stage in self._stages.items() if stage.dirty}
        return [*self._writers, *(waiting - self._writers.keys())]

    def closed(self, inode: Inode) -> None:
        """Note that such a handle is gone. One of the last worker's is not counted and does no harm."""
        count = self._writers.get(inode, 0) - 1
        if count > 0:
            self._writers[inode] = count
            return
        self._writers.pop(inode, None)
        self.tidy(inode)

    def queue(self, inode: Inode, *, soon: bool = False) -> Queued:
        """Have a file uploaded in the background, if it has to be and nobody writes to it any more.

        *soon*: mount.db may take note of it with the next transaction (`MountDatabase.change_soon`).
        """
        stage = self._stages.get(inode)
        if stage is None or not stage.dirty:
            return Queued.NOT
        now_ns, size = self._volume.now_ns(), stage.file.size
        if self._volume.settings.write_mode == "writeback":
            if inode in self._writers:
                return Queued.NOT
            now_ns = due_ns(now_ns, size)
        if soon and stage.is_new:
            self._volume.journal.queue_staged_soon(inode, now_ns)
        elif not self._volume.journal.queue_staged(inode, now_ns):
            return Queued.NOT
        stage.is_new = False
        gathers = not self._is_settled(inode, stage)
        self.backlog.add(inode, size, now_ns, gathers=gathers)
        return Queued.GATHERING if gathers else Queued.AT_ONCE

    def _is_settled(self, inode: Inode, stage: Stage) -> bool:
        """Whether a file is an object changed in place, which has its name already, and is changed rarely; and nothing else waits."""
        return (
            stage.file.size > SMALL_BYTES
            and stage.file.base_size > 0
            and not self.backlog.has_waiting
            and trio.current_time() - self._sent_at.get(inode, -SETTLED_S) >= SETTLED_S
        )

    def make_due(self, inode: Inode, at_ns: int) -> None:
        """Have a file uploaded in the background from *at_ns* on."""
        self._volume.journal.retry_staged(inode, at_ns)
        self.backlog.add(inode, self._stages[inode].file.size, at_ns)

    def hurry(self, inode: Inode) -> None:
        """Have a file that is queued uploaded next."""
        self._volume.journal.hurry_staged(inode)
        row = self._volume.journal.staged(inode)
        if row is not None and row.retry_ns is not None:
            self.backlog.add(inode, self._stages[inode].file.size, row.retry_ns)

    def failed(self, inode: Inode, retry_ns: int | None) -> None:
        """Note that an upload failed, and waits in the queue for its next try at *retry_ns*; None: it is not tried again.

        One whose file is written again leaves the queue until that file is closed, however it came there.
        """
        stage = self._stages.get(inode)
        if stage is not None:
            stage.is_new = False
        if retry_ns is None:
            self.backlog.drop(inode)
        elif stage is not None and stage.dirty:
            self.backlog.add(inode, stage.file.size, retry_ns)

    def sent(self, inode: Inode) -> None:
        """Note that S3 has a file."""
        self.backlog.drop(inode)
        self._streams.drop(inode)
        if len(self._sent_at) >= MAX_SENT:
            self._sent_at.clear()
        self._sent_at[inode] = trio.current_time()

    def not_lacking(self, inode: Inode) -> None:
        """Note that S3 need not get a file: it was removed, and whoever has it open goes on with what is staged."""
        self._streams.drop(inode)
        stage = self._stages.get(inode)
        if stage is not None:
            stage.file.count_in(None)

    def tidy(self, inode: Inode) -> None:
        """Remove the staging files of a file that is in S3 and that nobody writes."""
        stage = self._stages.get(inode)
        if stage is None or stage.dirty or inode in self._writers:
            return
        node = self._volume.nodes.get(inode)
        if node is not None and node.is_detached:
            return  # unlinked and perhaps open: these are the only bytes there are
        if not self._volume.locks.is_held(("inode", inode)):
            if node is not None and not stage.is_lost:
                self._leaving(node, stage.file)
            self.remove(inode)

    def remove(self, inode: Inode) -> None:
        """Remove the staging files of a file, whatever is in them."""
        stage = self._stages.pop(inode, None)
        self.backlog.drop(inode)
        self._streams.drop(inode)
        if stage is not None:
            stage.dirty = False
            stage.file.close()
        # In this order: files without a row would be saved by the next worker as if mount.db had lost it.
        self._volume.staging.remove(inode)
        self._volume.journal.drop_staged(inode)

    def may_forget(self, inode: Inode) -> bool:
        """Whether a file that S3 gets now need not stay staged: it is a small one, and nobody writes it or is about to."""
        stage = self._stages.get(inode)
        return (
            stage is not None
            and stage.file.is_small
            and inode not in self._writers
            and not self._volume.locks.is_awaited(("inode", inode))
        )

    def forget(self, inode: Inode) -> None:
        """Remove what is staged of a file that S3 has; its row is gone, and its note says that S3 need not get it."""
        stage = self._stages.pop(inode)
        stage.dirty = False
        self.backlog.drop(inode)
        self._volume.staging.remove(inode)

    # Conflict copies; the caller holds the inode's lock

    def lose(self, inode: Inode) -> None:
        """Note that another writer was first; `Journal.add_conflict` says so in the same transaction."""
        stage = self._stages[inode]
        stage.dirty, stage.is_lost = False, True
        self.backlog.drop(inode)
        self._streams.drop(inode)
        self._note_copy(inode, stage)

    def orphan(self, node: Node, row: ConflictRow) -> None:
        """Begin a conflict copy: another writer's version has the name of *node*, and *node* is about to be written.

        The caller's transaction takes the version from *node*'s row.
        """
        file = self._volume.staging.create(node.id, node.size)
        stage = Stage(file, self.lacking, dirty=False, mtime_ns=None)
        stage.is_lost = True
        self._stages[node.id] = stage
        self._volume.journal.put_staged(
            node.id,
            dirty=False,
            base_etag=node.etag,
            base_size=node.size,
            condition="match",
            now_ns=self._volume.now_ns(),
        )
        self._volume.journal.add_conflict(row)

    def put_away(self, inode: Inode) -> None:
        """Close the files of a conflict copy that nobody has open any more; they stay."""
        stage = self._stages.pop(inode, None)
        if stage is not None:
            self._note_copy(inode, stage)
            stage.file.close()

    def note_copy(self, inode: Inode) -> None:
        """Take note of what was written to a conflict copy since."""
        stage = self._stages.get(inode)
        if stage is not None:
            self._note_copy(inode, stage)

    def _note_copy(self, inode: Inode, stage: Stage) -> None:
        node = self._volume.node(inode)
        self._volume.journal.set_missing(inode, stage.file.missing_bytes())
        columns = {"size": stage.file.size, "mtime_ns": self.mtime_ns(node)}
        if (node.size, node.mtime_ns) != (stage.file.size, columns["mtime_ns"]):
            self._volume.nodes.update(inode, **columns)

    def find_again(self, inode: Inode) -> Stage:
        """Return the stage of a conflict copy, loaded if nobody has it open.

        Raises OSError: the staging files cannot be read.
        """
        stage = self._stages.get(inode)
        if stage is None:
            row = self._volume.journal.staged(inode)
            if row is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            stage = self._stages[inode] = self._load(self._volume.node(inode), row)
        return stage

    def win_back(self, inode: Inode, stage: Stage) -> None:
        """Make a conflict copy ordinary staged data again: new, without a base; what it lacks is zeros.

        The caller's transaction gives the inode a name.
        """
        file = stage.file
        for start, stop in file.missing():
            file.record(start, stop - start)
        file.truncate(file.size)  # so long must the file itself be, to be sent
        file.rebase(0)
        self._volume.journal.put_staged(
            inode,
            dirty=True,
            base_etag=None,
            base_size=0,
            condition="absent",
            now_ns=self._volume.now_ns(),
        )
        note_purpose(self._volume, inode)
        stage.dirty, stage.is_lost = True, False

    # Changing; the caller holds the inode's lock

    async def write(self, inode: Inode, offset: int, data: bytes) -> int:
        """Write to a file's stage. Raises OSError (ENOSPC …): nothing is acknowledged then."""
        if self._pace.takes_at_once(len(data)):
            return self.write_now(inode, offset, data)
        stage = self._begin_write(inode, offset, len(data))
        with Waiting(for_disk=True):
            await trio.to_thread.run_sync(stage.file.put, offset, data)
        return self._end_write(inode, stage, offset, len(data))

    def write_now(self, inode: Inode, offset: int, data: bytes | memoryview) -> int:
        """Write as `write`, and wait for the disk here, which must be one that takes data at once."""
        stage = self._begin_write(inode, offset, len(data))
        self._pace.put(stage.file, offset, data)
        return self._end_write(inode, stage, offset, len(data))

    def may_write_now(self, inode: Inode, size: int) -> bool:
        """Whether `write_now` may be called for an inode whose lock nobody holds."""
        # What another version replaced is perhaps about to become a conflict copy.
        stage = self._stages.get(inode)
        return self._pace.takes_at_once(size) and (
            stage is not None or not self._volume.node(inode).is_detached
        )

    def _begin_write(self, inode: Inode, offset: int, size: int) -> Stage:
        stage = self._for_change(inode)
        self._streams.changing(inode, min(offset, stage.file.size), offset + size)
        stage.file.prepare(offset + size)
        return stage

    def _end_write(self, inode: Inode, stage: Stage, offset: int, size: int) -> int:
        stage.file.record(offset, size)
        if not self._volume.kernel_keeps_times:
            stage.mtime_ns = self._volume.now_ns()
        if stage.dirty:
            self._streams.wrote(inode, stage.file, offset, offset + size)
        return size

    def truncate(self, inode: Inode, size: int, mtime_ns: int | None = None) -> None:
        """Set a file's size, at *mtime_ns* or now; 0 makes whatever S3 has irrelevant."""
        stage = self._for_change(inode, whole=size == 0)
        self._streams.changing(inode, min(size, stage.file.size), max(size, stage.file.size))
        stage.file.truncate(size)
        self._note_written(stage, mtime_ns if mtime_ns is not None else self._volume.now_ns())

    def written_at(self, inode: Inode, mtime_ns: int, ctime_ns: int) -> bool:
        """Take the times of a file that the kernel kept, where all they say is when it was written, or nothing new.

        Returns False where somebody set them: then they are attributes like others.
        """
        node, stage = self._volume.node(inode), self._stages.get(inode)
        is_known = mtime_ns in (self.mtime_ns(node), node.remote_mtime_ns)
        if stage is not None and (stage.dirty or stage.is_lost or node.is_detached):
            if not is_known and mtime_ns != ctime_ns:
                return False
            if not is_known:
                self._note_written(stage, mtime_ns)
            return True
        if is_known and not node.is_detached and node.ctime_ns != ctime_ns:
            self._volume.nodes.update(node.id, ctime_ns=ctime_ns)
        return is_known or node.is_detached

    def _note_written(self, stage: Stage, mtime_ns: int) -> None:
        stage.mtime_ns = mtime_ns
        if self._volume.kernel_keeps_times:
            stage.file.set_mtime_ns(mtime_ns)  # for the next worker

    def time_set(self, inode: Inode) -> None:
        """Note that a file's row says when it was last changed. Raises OSError (ENOSPC): only until a crash."""
        stage = self._stages.get(inode)
        if stage is not None:
            stage.mtime_ns = None
            stage.file.note_time_set()

    def take_up(self, node: Node) -> None:
        """Take up a file that `Tree.create` just made; nothing for one that was there."""
        inode = node.id
        if node.kind == Kind.FILE and node.etag is None and inode not in self._stages:
            file = self._volume.staging.open(inode, 0)
            stage = self._stages[inode] = Stage(file, self.lacking, dirty=True, mtime_ns=None)
            stage.is_new = True

    def _for_change(self, inode: Inode, *, whole: bool = False) -> Stage:
        """Return the stage to change, dirty in the journal before its first byte changes."""
        stage = self._stages.get(inode)
        if stage is not None and stage.dirty:
            if inode in self.backlog:  # half of what is being written must not be uploaded
                self.backlog.drop(inode)
                self._volume.journal.hold_staged(inode)
            if whole and (row := self._volume.journal.staged(inode)) and row.condition == "match":
                self._volume.journal.set_condition(inode, "always")
            # A file that never left the log of small ones was never sent in parts.
            if (whole or stage.was_sent) and not stage.file.is_small:
                stage.was_sent = False
                upload = self._volume.journal.upload(inode)
                if upload is not None and (upload.size or whole):
                    self._volume.journal.abandon_upload(inode)  # of content that is about to change
                    self._streams.drop(inode)
            return stage
        if stage is not None and stage.is_lost:
            if self._volume.journal.conflict(inode) is None:  # discarded: nobody would ever see it
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return stage
        node = self._volume.node(inode)
        if node.kind != Kind.FILE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not whole:
            self._check_readable(node)
        condition: ConditionKind = "match" if node.etag is not None and not whole else "always"
        base_size = node.size if node.etag is not None else 0
        if stage is None:
            file = self._volume.staging.create(inode, base_size)
            stage = Stage(file, self.lacking, dirty=False, mtime_ns=None)
            self._stages[inode] = stage
        self._volume.journal.put_staged(
            inode,
            dirty=not node.is_detached,
            base_etag=node.etag,
            base_size=base_size,
            condition=condition,
            now_ns=self._volume.now_ns(),
        )
        note_purpose(self._volume, inode)
        stage.dirty = not node.is_detached
        return stage
