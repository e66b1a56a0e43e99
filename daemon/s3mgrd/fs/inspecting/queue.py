"""The queue of uploads, for the user: what waits in it and why, hold it back, let it go on, have one file go next.

What is uploaded because somebody waits for it does not pass through here: close() with write_mode=close, fsync() that
waits for S3, flush, and the drain before the end. A pause changes nothing for those.
"""

from typing import Final, Literal

from s3mgr.schema import QueuedFile, UploadQueue
from s3mgrd.cache.nodes import ROOT
from s3mgrd.errors import Conflict, NotFound, UserError
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting.inspection import as_time, staged_path
from s3mgrd.fs.writing.backlog import PAUSED
from s3mgrd.journal.tables import HURRIED_NS, StagedRow

PAGE_BYTES: Final = 16 << 10
"""Bytes of paths and errors in one page: a message to the supervisor has a limit."""
REFUSED: Final = "refused"
"""The cursor behind everything that waits: what S3 will never take comes last."""


class QueueControl:
    """The queue of one file system. No checkpoint."""

    def __init__(self, fs: FileSystem) -> None:
        self._volume: Final = fs.volume
        self._stages: Final = fs.stages
        self._uploader: Final = fs.uploader
        self._syncer: Final = fs.syncer

    def report(self, cursor: str | None, limit: int) -> UploadQueue:
        """Give totals, and one page of the queue in its order; what changes its place between two pages may be on both.

        Raises:
            UserError: *cursor* is none of ours.
        """
        journal, backlog = self._volume.journal, self._stages.backlog
        refused = journal.refused_staged()
        rows, is_last = self._rows(cursor, limit, refused)
        items: list[QueuedFile] = []
        room = PAGE_BYTES
        for row in rows:
            item = self._item(row)
            room -= len(item.path.encode()) + len((item.error or "").encode())
            if items and room < 0:
                is_last = False
                break
            items.append(item)
        return UploadQueue(
            total_files=backlog.files + len(refused),
            total_bytes=backlog.bytes + sum(self._size(row) for row in refused),
            dirty_limit_bytes=self._volume.settings.dirty_limit_bytes,
            is_paused=backlog.is_paused,
            writers_waiting=backlog.waiting,
            items=items,
            cursor=None if is_last or not items else _cursor(rows[len(items) - 1]),
        )

    def _rows(
        self, cursor: str | None, limit: int, refused: list[StagedRow]
    ) -> tuple[list[StagedRow], bool]:
        """Return a page's rows, and whether they are the last."""
        rows: list[StagedRow] = []
        part, after = _position(cursor)
        if part == "queued":
            rows = self._volume.journal.queued_staged(after, limit=limit + 1)
        else:
            refused = [row for row in refused if after is None or row.inode > after[1]]
        rows += refused
        return rows[:limit], len(rows) <= limit

    def _item(self, row: StagedRow) -> QueuedFile:
        retries_later = row.retry_ns is not None and row.retry_ns > self._volume.now_ns()
        state: Literal["uploading", "waiting", "failed", "paused"] = "waiting"
        if row.inode in self._uploader.running:
            state = "uploading"
        elif row.conflict:
            state = "failed"
        elif self._stages.backlog.is_paused and not _is_hurried(row):
            state = "paused"
        elif row.error is not None and retries_later:
            state = "failed"
        return QueuedFile(
            path=staged_path(self._volume, row),
            size_bytes=self._size(row),
            since=as_time(row.since_ns),
            state=state,
            tries=row.tries,
            error=row.error,
            retry_at=as_time(row.retry_ns) if retries_later and row.retry_ns is not None else None,
        )

    def _size(self, row: StagedRow) -> int:
        node = self._volume.nodes.get(row.inode)
        stage = self._stages.get(node.id) if node is not None else None
        return stage.file.size if stage is not None else 0

    def pause(self) -> UploadQueue:
        """Hold uploads in the background back, also those of later workers; what is being uploaded goes on.

        Returns the totals, as the others do.
        """
        return self._set_paused(is_paused=True)

    def resume(self) -> UploadQueue:
        """Let uploads in the background go on."""
        self._syncer.wake()
        return self._set_paused(is_paused=False)

    def _set_paused(self, *, is_paused: bool) -> UploadQueue:
        self._volume.database.set_meta(PAUSED, "1" if is_paused else "0")
        self._stages.backlog.is_paused = is_paused
        return self.report(None, 0)

    def hurry(self, path: str) -> UploadQueue:
        """Have the file at *path* uploaded next: before the others, without waiting for its retry, also while they are held back.

        Where that fails, it waits as before.

        Raises:
            NotFound: no such file waits to be uploaded.
            Conflict: it is still being written, or S3 takes no such file.
        """
        node = self._volume.nodes.find_below(ROOT, filter(None, path.split("/")))
        row = self._volume.journal.staged(node.id) if node is not None else None
        if node is None or row is None or not row.dirty:
            raise NotFound(
                f"{path!r} does not wait to be uploaded", hint="s3mgr queue lists what does"
            )
        if row.conflict:
            raise Conflict(f"S3 takes no such file as {path!r}: {row.error}")
        if node.id not in self._uploader.running:
            if row.retry_ns is None:
                raise Conflict(
                    f"{path!r} is still being written", hint="it is queued when it is closed"
                )
            self._stages.hurry(node.id)
            self._syncer.hurry(node.id)
        return self.report(None, 0)


def _is_hurried(row: StagedRow) -> bool:
    return row.retry_ns is not None and row.retry_ns <= HURRIED_NS


def _cursor(row: StagedRow) -> str:
    if row.conflict or row.retry_ns is None:
        return f"{REFUSED}.{row.inode}"
    return f"{row.retry_ns}.{row.inode}"


def _position(cursor: str | None) -> tuple[Literal["queued", "refused"], tuple[int, int] | None]:
    """Read the cursor of a page. Raises `UserError`."""
    if cursor is None:
        return "queued", None
    place, _, inode = cursor.partition(".")
    if inode.isascii() and inode.isdecimal() and len(inode) < 19:
        if place == REFUSED:
            return "refused", (0, int(inode))
        digits = place.removeprefix("-")
        if (
            digits.isascii()
            and digits.isdecimal()
            and len(digits) < 20
            and abs(int(place)) < 1 << 63
        ):
            return "queued", (int(place), int(inode))
    raise UserError(f"{cursor!r} is no cursor", hint="use the cursor of the last page")
