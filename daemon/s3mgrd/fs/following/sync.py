"""The syncer: makes S3 follow the tree, in the background, in any order that is safe, and tries again.

What is to be done is not a list of its own but the state of mount.db: deletes, moves, rows that are misplaced, wanted
markers, dirty attributes, staged files whose upload is due. So nothing is forgotten by a crash, and what cancels
out (a directory made and removed at once) is never sent.

Concurrency: one loop starts a task per piece of work, at most `Settings.concurrency` at once and one per subject.
A subject that failed waits with growing delays. `flush` waits until nothing is left. Uploads are not looked for but
taken from their queue (`s3mgrd.fs.writing.backlog`), the next whenever one ends: there may be a thousand a second.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import BucketNotFound, S3mgrError
from s3mgrd.fs.following.deletes import Deleter
from s3mgrd.fs.following.move import Mover
from s3mgrd.fs.following.objects import Objects
from s3mgrd.fs.following.resting import marker_due_at
from s3mgrd.fs.following.strays import Strays
from s3mgrd.fs.following.upload import Uploader
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.fs.writing import beginnings
from s3mgrd.fs.writing.backlog import GATHER_S, REST_S, SMALL_BYTES
from s3mgrd.fs.writing.stages import Stages
from s3mgrd.journal.tables import DeleteRow
from s3mgrd.s3.port import MAX_DELETE_KEYS

log = logging.getLogger(__name__)

SMALL_FACTOR: Final = 4
"""So many times as many uploads of small files may be under way as of others: they wait for S3 most of the time."""
FLUSH_LOOK_S: Final = 0.25
"""Who waits for everything counts what is left so often; each time is as long as the queue."""
MAX_SEEN: Final = 4096
"""Objects whose time is remembered; a few are sent too early when there are more."""
IDLE_S: Final = 1.0
"""Look so often for retries that are due and inodes that the kernel let go."""
FIRST_RETRY_S: Final = 2.0
LAST_RETRY_S: Final = 300.0
BATCH: Final = 512
PROBES: Final = 256
"""Inodes that the kernel is asked about in one round, microseconds each."""


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


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of work, and when it is due once it was seen at a time by trio's clock and one by the volume's; None: at once."""

    subject: Hashable
    work: Work
    due_at: Callable[[float, int], float] | None = None


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
        self._hurried = trio.Event()
        self._progress = trio.Event()
        self._running: set[Hashable] = set()
        self._uploads = {True: 0, False: 0}
        """How many are under way, of small files and of others."""
        self._has_uploaded = False
        self._urgent: deque[Inode] = deque()
        """To be uploaded whether their time has come or not, because somebody waits for everything."""
        self._failures: dict[Hashable, _Failure] = {}
        self._rested_at: dict[Hashable, float] = {}
        self._seen_at: dict[Hashable, tuple[float, int]] = {}
        self._idle_s = IDLE_S
        self._gathers = True
        """More may come with what there is now."""
        self._is_flushing = 0
        self._probed = 0

    def wake(self, *, at_once: bool = False) -> None:
        """Say that there may be work; *at_once*: some of it that nothing is to be gathered with."""
        if at_once:
            self._hurried.set()
        self._wanted.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(self._idle_s):
                    await self._wanted.wait()
                    if self._gathers and not self._is_flushing:
                        with trio.move_on_after(GATHER_S):
                            await self._hurried.wait()
                self._gathers = True
                self._wanted, self._hurried = trio.Event(), trio.Event()
                # What a full disk kept from being noted at a close, so that its file is due.
                self._volume.database.settle()
                self.release_forgotten(everything=False)
                self._forget_failures()
                self._idle_s = IDLE_S
                self._start_uploads(nursery)
                for piece in self._due():
                    if len(self._running) - self._uploading >= self._volume.settings.concurrency:
                        break  # the end of any of them wakes the loop
                    self._running.add(piece.subject)
                    nursery.start_soon(self._do, piece.subject, piece.work)
                if self._volume.database.wants_checkpoint:
                    await self._volume.database.checkpoint()

    @property
    def _uploading(self) -> int:
        return self._uploads[True] + self._uploads[False]

    def _start_uploads(self, nursery: trio.Nursery) -> None:
        """Start as many uploads as may be under way, the most urgent first."""
        settings = self._volume.settings
        while True:
            small = self._uploads[True] < SMALL_FACTOR * settings.concurrency
            large = self._uploads[False] < settings.concurrency
            taken = self._take_urgent(small=small, large=large)
            is_urgent = taken is not None
            if taken is None:
                taken = self._stages.backlog.take(
                    self._volume.now_ns(), small=small, large=large, holds=not self._wants_to_know()
                )
            if taken is None:
                self._idle_s = min(
                    self._idle_s, max(0.0, self._stages.backlog.ready_at - trio.current_time())
                )
                return
            inode, is_small = taken
            subject = ("upload", inode)
            if subject not in self._running:
                self._running.add(subject)
                self._has_uploaded = True
                self._uploads[is_small] += 1
                nursery.start_soon(self._upload, nursery, inode, is_small, is_urgent)

    def _wants_to_know(self) -> bool:
        """Whether one small file should go ahead: with it the store finds out what many would have to ask for, each for itself."""
        return not self._has_uploaded and self._volume.store.conditions.writes == "unknown"

    def _take_urgent(self, *, small: bool, large: bool) -> tuple[Inode, bool] | None:
        while self._urgent:
            stage = self._stages.get(self._urgent[0])
            if stage is None or ("upload", self._urgent[0]) in self._running:
                self._urgent.popleft()
                continue
            is_small = stage.file.size <= SMALL_BYTES
            return (self._urgent.popleft(), is_small) if (small if is_small else large) else None
        return None

    async def _upload(
        self, nursery: trio.Nursery, inode: Inode, is_small: bool, is_urgent: bool
    ) -> None:
        commit = partial(self._uploader.commit, inode, only_due=not is_urgent)
        try:
            await self._do(("upload", inode), commit)
        finally:
            self._uploads[is_small] -= 1
            self._stages.backlog.give_back(inode)
        self._start_uploads(nursery)

    def left(self) -> Left:
        """Count what S3 lacks; deletes that wait for an open file to be closed do not count."""
        counts = self._volume.journal.counts()
        lacking = self._stages.lacking
        operations = sum(n for kind, n in counts.items() if kind not in ("staged", "held"))
        operations += len(self._strays.pending())
        return Left(max(lacking.files, counts["staged"]), lacking.bytes, operations)

    def errors(self) -> list[str]:
        """Return what the last tries of failing work said."""
        return sorted({failure.error for failure in self._failures.values()})

    def retry(self) -> None:
        """Let nothing wait for its next try: what kept it is over."""
        self._failures.clear()
        self.wake()

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
                tried |= self._failures.keys()
                uploads = [
                    Inode(row.inode)
                    for row in self._volume.journal.dirty_staged()
                    if not row.conflict and ("upload", row.inode) not in tried
                ]
                pending = {piece.subject for piece in self._all()} | self._running
                if not uploads and not pending - tried:
                    return
                self._urgent = deque(uploads)
                left = len(uploads) + len(pending)
                with trio.move_on_after(FLUSH_LOOK_S):
                    while left > 0:
                        progress = self._progress
                        self.wake()
                        await progress.wait()
                        left -= 1
        finally:
            self._is_flushing -= 1
            if not self._is_flushing:
                self._urgent.clear()

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

    def _forget_failures(self) -> None:
        """Forget failures of what nobody wants any more: a file was removed, a rename was undone."""
        if not self._failures:
            return
        wanted = {piece.subject for piece in self._all()} | self._running
        self._failures = {
            subject: failure
            for subject, failure in self._failures.items()
            if subject in wanted or self._is_upload(subject)
        }

    def _is_upload(self, subject: Hashable) -> bool:
        """Whether *subject* is the upload of a file that has a name and that S3 lacks."""
        if not isinstance(subject, tuple) or subject[0] != "upload":
            return False
        node = self._volume.nodes.get(subject[1])
        return node is not None and not node.is_detached and self._volume.journal.is_dirty(node.id)

    # What is to be done

    def _due(self) -> Iterator[_Piece]:
        now = trio.current_time()
        self._rested_at = {s: at for s, at in self._rested_at.items() if at > now}
        for piece in self._all():
            failure = self._failures.get(piece.subject)
            if (
                piece.subject not in self._running
                and (failure is None or failure.retry_at <= now)
                and self._rested_at.get(piece.subject, now) <= now
                and self._has_come(piece, now)
            ):
                yield piece

    def _has_come(self, piece: _Piece, now: float) -> bool:
        """Whether a piece of work need not wait any longer, for its own sake or for more to come."""
        if piece.due_at is None:
            return True
        if len(self._seen_at) > MAX_SEEN:
            self._seen_at.clear()
        seen = self._seen_at.setdefault(piece.subject, (now, self._volume.now_ns()))
        due_at = piece.due_at(*seen)
        if due_at > now:
            self._idle_s = min(self._idle_s, due_at - now)
            return False
        return True

    def _all(self) -> Iterator[_Piece]:
        """Yield all work there is but uploads."""
        volume = self._volume
        for move in volume.moves.all():
            if not self._mover.is_waiting(move):
                yield _Piece(("move", move.inode), partial(self._mover.follow, move.inode))
        for node in volume.nodes.misplaced(limit=BATCH):
            if volume.move_around(node.parent) is None and not volume.journal.is_dirty(node.id):
                yield self._object(node, self._objects.place)
        for node in volume.nodes.with_wanted_marker(limit=BATCH):
            if volume.move_around(node.id) is None:
                yield self._object(node, self._objects.mark)
        for node in volume.nodes.with_dirty_attributes(limit=BATCH):
            if not volume.journal.is_dirty(node.id) and volume.move_around(node.parent) is None:
                yield self._object(node, self._objects.describe)
        deletes = volume.journal.deletes(limit=MAX_DELETE_KEYS)
        if deletes:
            keys = [row.key for row in deletes]
            work = partial(self._delete, deletes)
            yield _Piece("deletes", work, lambda *_: self._leftovers_due_at(keys))
        for key in self._strays.pending():
            again_at = self._strays.again_at(key)
            work = partial(self._strays.resolve, key)
            yield _Piece(("stray", key), work, lambda *_, at=again_at: at)
        for key, upload_id in volume.journal.abandoned():
            yield _Piece(("abandoned upload", upload_id), partial(self._abort, key, upload_id))
        long_ago_ns = volume.now_ns() - beginnings.GRACE_S * NS
        for row in volume.journal.left_beginnings(before_ns=long_ago_ns):
            yield _Piece(("beginning", row.key), partial(beginnings.resolve, volume, row))

    def _object(self, node: Node, work: Callable[[Inode], Awaitable[None]]) -> _Piece:
        return _Piece(
            ("object", node.id), partial(work, node.id), partial(self._object_due_at, node)
        )

    def _object_due_at(self, node: Node, seen_at: float, seen_ns: int) -> float:
        if self._is_flushing:
            return seen_at
        gathered_at = seen_at + GATHER_S
        if not node.is_directory:
            return gathered_at
        now_ns = self._volume.now_ns()
        lull_at = marker_due_at(node, seen_at=seen_at, seen_ns=seen_ns, now_ns=now_ns)
        return max(gathered_at, lull_at)

    def _leftovers_due_at(self, keys: Collection[str]) -> float:
        return float("-inf") if self._is_flushing else self._objects.leftovers.due_at(keys)

    async def _delete(self, rows: Sequence[DeleteRow]) -> None:
        await self.deleter.delete(rows)
        self._objects.leftovers.drop([row.key for row in rows])

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
            if isinstance(subject, tuple) and subject[0] != "upload":
                self._rested_at[subject] = trio.current_time() + REST_S
        finally:
            self._running.discard(subject)
            self._seen_at.pop(subject, None)
            self._progress.set()
            self._progress = trio.Event()
            if isinstance(subject, tuple) and subject[0] == "move":
                self._gathers = False  # what it leaves to be deleted is all there
            self.wake()

    async def _abort(self, key: str, upload_id: str) -> None:
        await self._volume.store.abort_multipart(key, upload_id)
        self._volume.journal.drop_abandoned(upload_id)


def _describe(subject: Hashable) -> str:
    if isinstance(subject, tuple):
        kind, what = subject
        return f"{kind} of inode {what}" if isinstance(what, int) else f"{kind} {what}"
    return str(subject)
