"""The syncer: makes S3 follow the tree, in the background, in any order that is safe, and tries again.

What is to be done is not a list of its own but the state of mount.db: deletes, moves, rows that are misplaced, wanted
markers, dirty attributes, staged files whose upload is due. So nothing is forgotten by a crash, and what cancels
out (a directory made and removed at once) is never sent.

Concurrency: one loop starts a task per piece of work, at most `Settings.concurrency` at once and one per subject.
A subject that failed waits with growing delays. `flush` waits until nothing is left.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import BucketNotFound, S3mgrError
from s3mgrd.fs.deletes import Deleter
from s3mgrd.fs.move import Mover
from s3mgrd.fs.objects import Objects
from s3mgrd.fs.stages import Stages
from s3mgrd.fs.strays import Strays
from s3mgrd.fs.upload import Uploader
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.tables import HURRIED_NS
from s3mgrd.s3.port import MAX_DELETE_KEYS

log = logging.getLogger(__name__)

GATHER_S: Final = 0.05
"""Wait so long after the first change: what is undone or repeated meanwhile need not be sent. An object waits so long from
when it was first seen, however busy the others are: rsync sets owner, mode and times, then renames, in less."""
MAX_SEEN: Final = 4096
"""Objects whose time is remembered; a few are sent too early when there are more."""
IDLE_S: Final = 1.0
"""Look so often for retries that are due and inodes that the kernel let go."""
FIRST_RETRY_S: Final = 2.0
LAST_RETRY_S: Final = 300.0
BATCH: Final = 512
PROBES: Final = 256
"""Inodes that the kernel is asked about in one round, microseconds each."""
REST_S: Final = 0.2
"""A subject whose work ended and that is still to be done rests so long: what it waits for is somebody else's."""


@dataclass
class _Failure:
    tries: int
    retry_at: float
    error: str


@dataclass(frozen=True, slots=True)
class Left:
    """What S3 still lacks."""

    files: int
    bytes: int
    operations: int

    @property
    def is_nothing(self) -> bool:
        """Whether S3 has everything."""
        return not (self.files or self.operations)


Work = Callable[[], Awaitable[object]]


class Syncer:
    """Background work of one volume."""

    def __init__(
        self,
        volume: Volume,
        stages: Stages,
        uploader: Uploader,
        objects: Objects,
        mover: Mover,
        kernel_holds: Callable[[Inode], bool],
        note_bucket_gone: Callable[[BucketNotFound], None],
    ) -> None:
        self._volume = volume
        self._stages = stages
        self._uploader = uploader
        self._objects = objects
        self._mover = mover
        self._kernel_holds = kernel_holds
        self._note_bucket_gone = note_bucket_gone
        self._strays = Strays(volume)
        self.deleter = Deleter(volume)
        self._wanted = trio.Event()
        self._progress = trio.Event()
        self._running: set[Hashable] = set()
        self._failures: dict[Hashable, _Failure] = {}
        self._rested_at: dict[Hashable, float] = {}
        self._seen_at: dict[Hashable, float] = {}
        self._idle_s = IDLE_S
        self._is_flushing = 0
        self._probed = 0

    def wake(self) -> None:
        """Say that there may be work."""
        self._wanted.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(self._idle_s):
                    await self._wanted.wait()
                    if not self._is_flushing:
                        await trio.sleep(GATHER_S)
                self._wanted = trio.Event()
                self.release_forgotten(everything=False)
                for subject, work in self._due():
                    if len(self._running) >= self._volume.settings.concurrency:
                        break  # the end of any of them wakes the loop
                    self._running.add(subject)
                    nursery.start_soon(self._do, subject, work)
                if self._volume.database.wants_checkpoint:
                    await self._volume.database.checkpoint()

    def left(self) -> Left:
        """Count what S3 lacks; deletes that wait for an open file to be closed do not count."""
        counts = self._volume.journal.counts()
        lacking = self._stages.lacking
        operations = sum(n for kind, n in counts.items() if kind not in ("staged", "held"))
        operations += sum(1 for _ in self._strays.pending())
        return Left(max(lacking.files, counts["staged"]), lacking.bytes, operations)

    def errors(self) -> list[str]:
        """Return what the last tries of failing work said."""
        return sorted({failure.error for failure in self._failures.values()})

    def hurry(self, inode: Inode) -> None:
        """Let the upload of a file not wait for its next try."""
        self._failures.pop(("upload", inode), None)
        self._rested_at.pop(("upload", inode), None)
        self.wake()

    def error_of(self, subject: Hashable) -> str:
        """Return what the last try of one piece of work said; empty: it did not fail."""
        failure = self._failures.get(subject)
        return "" if failure is None else failure.error

    async def flush(self) -> None:
        """Send everything now, also what waits for its next try or was paused; returns when nothing is left or all of it failed again.

        Cancel to stop waiting; the work goes on.
        """
        self._is_flushing += 1
        self._failures.clear()
        tried: set[Hashable] = set()
        try:
            while True:
                self.release_forgotten()
                pending = {subject for subject, _ in self._all()} | self._running
                tried |= self._failures.keys()
                if not pending - tried:
                    return
                progress = self._progress
                self.wake()
                await progress.wait()
        finally:
            self._is_flushing -= 1

    def release_forgotten(self, *, everything: bool = True) -> None:
        """Drop the rows of nameless inodes that the kernel let go, and what was kept for them.

        Not *everything* looks at the next `PROBES` only: the kernel may hold very many.
        """
        after = 0 if everything else self._probed
        nodes = self._volume.nodes.detached(after=after, limit=-1 if everything else PROBES)
        self._probed = nodes[-1].id if len(nodes) == PROBES else 0
        for node in nodes:
            if not self._kernel_holds(node.id):
                self.forget(node.id)

    def forget(self, inode: Inode) -> None:
        """Drop what is kept of a nameless inode; nothing where it has a name."""
        node = self._volume.nodes.get(inode)
        if node is None or not node.is_detached or self._volume.locks.is_held(("inode", inode)):
            return
        if self._volume.journal.conflict(inode) is not None:
            self._stages.put_away(inode)
            return
        with self._volume.database.transaction():
            self._stages.remove(inode)
            if self._volume.journal.release_deletes(inode):
                self.wake()
            self._volume.nodes.drop(inode)

    # What is to be done

    def _due(self) -> Iterator[tuple[Hashable, Work]]:
        now = trio.current_time()
        self._rested_at = {s: at for s, at in self._rested_at.items() if at > now}
        self._idle_s = IDLE_S
        for subject, work in self._all():
            failure = self._failures.get(subject)
            if (
                subject not in self._running
                and (failure is None or failure.retry_at <= now)
                and self._rested_at.get(subject, now) <= now
                and self._is_gathered(subject, now)
            ):
                yield subject, work

    def _is_gathered(self, subject: Hashable, now: float) -> bool:
        """Whether an object was seen long enough ago; everything else always is."""
        if self._is_flushing or not isinstance(subject, tuple) or subject[0] != "object":
            return True
        if len(self._seen_at) > MAX_SEEN:
            self._seen_at.clear()
        due_at = self._seen_at.setdefault(subject, now) + GATHER_S
        if due_at > now:
            self._idle_s = min(self._idle_s, due_at - now)
            return False
        return True

    def _all(self) -> Iterator[tuple[Hashable, Work]]:
        """Yield all work there is: its subject, and how to do it."""
        volume = self._volume
        for row in volume.journal.due_staged(HURRIED_NS, limit=BATCH):
            yield self._upload(Inode(row.inode))
        for move in volume.moves.all():
            if not self._mover.is_waiting(move):
                yield ("move", move.inode), partial(self._mover.follow, move.inode)
        for node in volume.nodes.misplaced(limit=BATCH):
            if volume.move_around(node.parent) is None and not self._is_staged(node.id):
                yield ("object", node.id), partial(self._objects.place, node.id)
        for node in volume.nodes.with_wanted_marker(limit=BATCH):
            if volume.move_around(node.id) is None:
                yield ("object", node.id), partial(self._objects.mark, node.id)
        for node in volume.nodes.with_dirty_attributes(limit=BATCH):
            if not self._is_staged(node.id) and volume.move_around(node.parent) is None:
                yield ("object", node.id), partial(self._objects.describe, node.id)
        if self._is_flushing:
            rows = [row for row in volume.journal.dirty_staged() if not row.conflict]
        elif self._stages.backlog.is_paused:
            rows = []
        else:
            rows = volume.journal.due_staged(volume.now_ns(), limit=BATCH)
        for row in rows:
            yield self._upload(Inode(row.inode))
        deletes = volume.journal.deletes(limit=MAX_DELETE_KEYS)
        if deletes:
            yield "deletes", partial(self.deleter.delete, deletes)
        for key in self._strays.pending():
            yield ("stray", key), partial(self._strays.resolve, key)
        for key, upload_id in volume.journal.abandoned():
            yield ("abandoned upload", upload_id), partial(self._abort, key, upload_id)

    def _upload(self, inode: Inode) -> tuple[Hashable, Work]:
        only_due = not self._is_flushing
        return ("upload", inode), partial(self._uploader.commit, inode, only_due=only_due)

    def _is_staged(self, inode: Inode) -> bool:
        row = self._volume.journal.staged(inode)
        return row is not None and bool(row.dirty)

    async def _do(self, subject: Hashable, work: Work) -> None:
        try:
            await work()
        except (S3mgrError, OSError) as error:
            tries = self._failures[subject].tries + 1 if subject in self._failures else 1
            delay_s = min(FIRST_RETRY_S * 2 ** (tries - 1), LAST_RETRY_S)
            self._failures[subject] = _Failure(tries, trio.current_time() + delay_s, str(error))
            log.warning("%s: %s; next try in %.0f s", _describe(subject), error, delay_s)
            if isinstance(error, BucketNotFound):
                self._note_bucket_gone(error)  # perhaps nobody else asks for anything
        else:
            self._failures.pop(subject, None)
            if subject != "deletes":
                self._rested_at[subject] = trio.current_time() + REST_S
        finally:
            self._running.discard(subject)
            self._seen_at.pop(subject, None)
            self._progress.set()
            self._progress = trio.Event()
            self.wake()

    async def _abort(self, key: str, upload_id: str) -> None:
        await self._volume.store.abort_multipart(key, upload_id)
        self._volume.journal.drop_abandoned(upload_id)


def _describe(subject: Hashable) -> str:
    if isinstance(subject, tuple):
        kind, what = subject
        return f"{kind} of inode {what}" if isinstance(what, int) else f"{kind} {what}"
    return str(subject)
