"""What a worker is asked about what is pending: conflict copies, uploads that wait, objects in archives.

The parts of `s3mgrd.worker.control.WorkerService` that only need the file system.
"""

from abc import ABC, abstractmethod

from s3mgr.schema import (
    ArchivedList,
    ConflictList,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UploadQueue,
)
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting import inspection
from s3mgrd.fs.inspecting.queue import QueueControl
from s3mgrd.fs.inspecting.restoring import Restorer


class PendingAnswers(ABC):
    """Answers for one worker."""

    @abstractmethod
    def _file_system(self) -> FileSystem:
        """Return the file system. Raises `NotMounted`."""

    @abstractmethod
    def _tell_status(self) -> None:
        """Tell the supervisor how things are, if that changed."""

    async def conflicts(self, cursor: str | None, limit: int) -> ConflictList:
        """List the conflict copies."""
        return inspection.conflict_list(self._file_system(), cursor, limit)

    async def restore_conflict(
        self, conflict_id: int, path: str | None, *, partial: bool
    ) -> RestoredConflict:
        """Make a file of a conflict copy."""
        fs = self._file_system()
        notice = await fs.conflicts.restore(conflict_id, path, partial=partial)
        return RestoredConflict(path=notice.path, size_bytes=notice.size)

    async def discard_conflict(self, conflict_id: int) -> None:
        """Throw a conflict copy away."""
        await self._file_system().conflicts.discard(conflict_id)

    async def queue(self, cursor: str | None, limit: int) -> UploadQueue:
        """List what waits to be uploaded."""
        return QueueControl(self._file_system()).report(cursor, limit)

    async def archived(self, path: str, cursor: str | None, limit: int) -> ArchivedList:
        """List the archived objects at *path* and below."""
        return await Restorer(self._file_system()).report(path, cursor, limit)

    async def restore_objects(self, request: RestoreRequest) -> RestoreReport:
        """Have S3 restore archived objects."""
        return await Restorer(self._file_system()).restore(request)

    async def pause_queue(self) -> UploadQueue:
        """Hold uploads in the background back, until the user says otherwise."""
        queue = QueueControl(self._file_system()).pause()
        self._tell_status()
        return queue

    async def resume_queue(self) -> UploadQueue:
        """Let uploads in the background go on."""
        queue = QueueControl(self._file_system()).resume()
        self._tell_status()
        return queue

    async def hurry_upload(self, path: str) -> UploadQueue:
        """Have one file uploaded next."""
        return QueueControl(self._file_system()).hurry(path)
