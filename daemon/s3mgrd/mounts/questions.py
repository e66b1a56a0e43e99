"""What is asked of the worker of one mount: counters, what it knows and keeps, what waits; flush, and changes of these.

The worker answers from memory or does the work; nothing is stored here, and no mount's task takes part.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import trio

from s3mgr.schema import (
    ArchivedList,
    CachedFiles,
    CacheReport,
    ConflictList,
    EvictReport,
    FlushReport,
    InvalidateReport,
    MountStats,
    PinList,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UnpinReport,
    UploadQueue,
)
from s3mgrd.mounts.mount import MountActor
from s3mgrd.mounts.reports import decode_report
from s3mgrd.mounts.service import Principal
from s3mgrd.mounts.warming import sendable
from s3mgrd.worker.protocol import (
    DiscardConflict,
    Evict,
    Flush,
    GetArchived,
    GetCache,
    GetCachedFiles,
    GetConflicts,
    GetPins,
    GetQueue,
    GetStats,
    HurryUpload,
    Invalidate,
    PauseQueue,
    RestoreConflict,
    RestoreObjects,
    ResumeQueue,
    SupervisorRequest,
    Unpin,
)

T = TypeVar("T")

# Stats, cache pages and invalidations come from memory.
REPORT_TIMEOUT_S: Final = 15.0
ANSWER_GRACE_S: Final = 10.0
# All that is known of a large tree is looked through.
WALK_TIMEOUT_S: Final = 120.0


class Questions(ABC):
    """The verbs of `MountService` that a worker answers."""

    @abstractmethod
    def _manage(self, who: Principal, name: str) -> MountActor:
        """Find a mount that *who* may manage. Raises `NotFound`, `Denied`."""

    async def flush_mount(self, who: Principal, name: str, *, timeout_s: float) -> FlushReport:
        """Upload what S3 does not have, and wait for it."""
        actor = self._manage(who, name)
        with trio.move_on_after(timeout_s):
            await actor.sync()
        report = await self._ask(
            who, name, Flush(timeout_s=timeout_s), FlushReport, timeout_s + ANSWER_GRACE_S
        )
        actor.status_keeper.flushed(report)
        return report

    async def invalidate_mount(self, who: Principal, name: str, *, path: str) -> InvalidateReport:
        """Forget what is known below *path*."""
        return await self._ask(who, name, Invalidate(path=path), InvalidateReport)

    async def mount_stats(self, who: Principal, name: str) -> MountStats:
        """Report the worker's counters."""
        return await self._ask(who, name, GetStats(), MountStats)

    async def mount_cache(
        self, who: Principal, name: str, *, path: str, cursor: str | None, limit: int
    ) -> CacheReport:
        """Report one page of what is cached below *path*."""
        message = GetCache(path=path, cursor=cursor, limit=limit)
        return await self._ask(who, name, message, CacheReport)

    async def list_conflicts(
        self, who: Principal, name: str, *, cursor: str | None, limit: int
    ) -> ConflictList:
        """Report one page of the conflict copies."""
        return await self._ask(who, name, GetConflicts(cursor=cursor, limit=limit), ConflictList)

    async def restore_conflict(
        self, who: Principal, name: str, conflict_id: int, *, path: str | None, partial: bool
    ) -> RestoredConflict:
        """Make a file of a conflict copy."""
        message = RestoreConflict(id=conflict_id, path=path, partial=partial)
        # The worker may have to ask S3 whether the name is free.
        timeout_s = self._s3_timeout_s(who, name)
        return await self._ask(who, name, message, RestoredConflict, timeout_s, is_repeatable=False)

    async def discard_conflict(self, who: Principal, name: str, conflict_id: int) -> None:
        """Throw a conflict copy away."""
        actor = self._manage(who, name)
        await actor.ask(
            DiscardConflict(id=conflict_id), timeout_s=REPORT_TIMEOUT_S, is_repeatable=False
        )

    async def list_archived(
        self, who: Principal, name: str, *, path: str, cursor: str | None, limit: int
    ) -> ArchivedList:
        """Report one page of the archived objects below *path*."""
        message = GetArchived(path=path, cursor=cursor, limit=limit)
        return await self._ask(who, name, message, ArchivedList, self._s3_timeout_s(who, name))

    async def restore_objects(
        self, who: Principal, name: str, request: RestoreRequest
    ) -> RestoreReport:
        """Have S3 restore a page of archived objects."""
        message = RestoreObjects(request=request)
        return await self._ask(who, name, message, RestoreReport, self._s3_timeout_s(who, name))

    async def mount_queue(
        self, who: Principal, name: str, *, cursor: str | None, limit: int
    ) -> UploadQueue:
        """Report one page of what waits to be uploaded."""
        return await self._ask(who, name, GetQueue(cursor=cursor, limit=limit), UploadQueue)

    async def pause_queue(self, who: Principal, name: str) -> UploadQueue:
        """Hold uploads in the background back."""
        return await self._set_queue(who, name, PauseQueue())

    async def resume_queue(self, who: Principal, name: str) -> UploadQueue:
        """Let uploads in the background go on."""
        return await self._set_queue(who, name, ResumeQueue())

    async def _set_queue(
        self, who: Principal, name: str, message: PauseQueue | ResumeQueue
    ) -> UploadQueue:
        queue = await self._ask(who, name, message, UploadQueue)
        self._manage(who, name).status_keeper.paused(is_paused=queue.is_paused)
        return queue

    async def hurry_upload(self, who: Principal, name: str, *, path: str) -> UploadQueue:
        """Have one file uploaded next."""
        return await self._ask(who, name, HurryUpload(path=path), UploadQueue)

    async def unpin_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> UnpinReport:
        """Take back pins."""
        return await self._ask(
            who,
            name,
            Unpin(paths=sendable(paths)),
            UnpinReport,
            WALK_TIMEOUT_S,
            is_repeatable=False,
        )

    async def evict_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> EvictReport:
        """Give up what is in the block cache."""
        return await self._ask(who, name, Evict(paths=sendable(paths)), EvictReport, WALK_TIMEOUT_S)

    async def list_pins(self, who: Principal, name: str) -> PinList:
        """Report the pins."""
        return await self._ask(who, name, GetPins(), PinList, WALK_TIMEOUT_S)

    async def cached_files(
        self, who: Principal, name: str, *, by: Literal["bytes", "hits", "misses"], limit: int
    ) -> CachedFiles:
        """Report the files that lead in the block cache."""
        return await self._ask(who, name, GetCachedFiles(by=by, limit=limit), CachedFiles)

    def _s3_timeout_s(self, who: Principal, name: str) -> float:
        """Return how long a worker may take that has to ask S3."""
        return self._manage(who, name).record.spec.options.retry_deadline_s + ANSWER_GRACE_S

    async def _ask(
        self,
        who: Principal,
        name: str,
        message: SupervisorRequest,
        kind: type[T],
        timeout_s: float = REPORT_TIMEOUT_S,
        *,
        is_repeatable: bool = True,
    ) -> T:
        actor = self._manage(who, name)
        reply = await actor.ask(message, timeout_s=timeout_s, is_repeatable=is_repeatable)
        return decode_report(reply, kind)
