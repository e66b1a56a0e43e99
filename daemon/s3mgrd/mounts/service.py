"""What the API may ask of the domain. `s3mgrd.mounts.manager.Manager` implements it.

Callers are identified by a `Principal`; the manager authorises (it knows who owns what), the API only
authenticates. Every method may raise `Denied`, and `NotFound` for an unknown mount.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from s3mgr.schema import (
    ArchivedList,
    CachedFiles,
    CacheReport,
    ConflictList,
    Event,
    EvictReport,
    FlushReport,
    Info,
    InvalidateReport,
    LogTail,
    Mount,
    MountList,
    MountPatch,
    MountRequest,
    MountStats,
    Operation,
    PinList,
    Readiness,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UnpinReport,
    UploadQueue,
)

UnmountMode = Literal["clean", "lazy", "discard"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the peer's credentials at connect time. `is_admin`: uid 0, the daemon's own uid, or the admin group."""

    uid: int
    gid: int
    groups: frozenset[int]
    pid: int
    is_admin: bool


class MountService(Protocol):
    """The control plane's verbs. No method holds work: it records intent; waiting is the caller's and may be cancelled."""

    def list_mounts(
        self, who: Principal, *, state: str | None = None, label: str | None = None
    ) -> MountList: ...

    def get_mount(self, who: Principal, name: str) -> Mount: ...

    async def put_mount(
        self,
        who: Principal,
        name: str,
        request: MountRequest,
        *,
        only_create: bool = False,
        if_generation: int | None = None,
        keep_on_failure: bool = False,
    ) -> tuple[Mount, bool, Operation | None]:
        """Store the spec and ask for it to be mounted.

        The same spec again is a success: an unmounted one is mounted, a mounted one stays. A changed spec of a mount that is
        up is refused, but for fields that PATCH may change. A mount that was created by this call and fails at
        its first attempt is forgotten again unless *keep_on_failure* (the caller does not wait).

        Returns:
            The mount, whether it was created, and the operation that mounts it (None: it is mounted already).

        Raises:
            InvalidSpec, MountpointInvalid, MountpointBusy, Conflict (name taken / spec differs / *only_create*), PreconditionFailed (*if_generation*).
        """

    async def patch_mount(
        self, who: Principal, name: str, patch: MountPatch, *, if_generation: int | None = None
    ) -> Mount: ...

    async def delete_mount(
        self, who: Principal, name: str, *, mode: UnmountMode, timeout_s: float, keep: bool = False
    ) -> Operation | None:
        """Ask for unmount and, unless *keep*, forgetting. None: there is no such mount (a success for DELETE).

        `clean` drains first and fails with `dirty-data` when data is left after *timeout_s* (the mount is gone then, the
        spec and journal stay); `lazy` detaches the tree at once and drains behind it; `discard` throws away what S3 does not have.
        """

    async def restart_mount(self, who: Principal, name: str) -> Operation:
        """Replace the worker on the live connection."""

    async def flush_mount(self, who: Principal, name: str, *, timeout_s: float) -> FlushReport: ...

    async def invalidate_mount(
        self, who: Principal, name: str, *, path: str
    ) -> InvalidateReport: ...

    async def mount_stats(self, who: Principal, name: str) -> MountStats: ...

    async def mount_cache(
        self, who: Principal, name: str, *, path: str, cursor: str | None, limit: int
    ) -> CacheReport: ...

    async def list_conflicts(
        self, who: Principal, name: str, *, cursor: str | None, limit: int
    ) -> ConflictList: ...

    async def restore_conflict(
        self, who: Principal, name: str, conflict_id: int, *, path: str | None, partial: bool
    ) -> RestoredConflict:
        """Make a file of a conflict copy. Raises `NotFound`, `Conflict` (the name exists, or bytes are missing), `UserError`."""

    async def discard_conflict(self, who: Principal, name: str, conflict_id: int) -> None:
        """Throw a conflict copy away. Raises `NotFound`."""

    async def list_archived(
        self, who: Principal, name: str, *, path: str, cursor: str | None, limit: int
    ) -> ArchivedList:
        """Report one page of the archived objects below *path*. Raises `NotFound`."""

    async def restore_objects(
        self, who: Principal, name: str, request: RestoreRequest
    ) -> RestoreReport:
        """Have S3 restore a page of archived objects. Raises `NotFound`, `Unsupported`."""

    async def mount_queue(
        self, who: Principal, name: str, *, cursor: str | None, limit: int
    ) -> UploadQueue: ...

    async def pause_queue(self, who: Principal, name: str) -> UploadQueue:
        """Hold uploads in the background back, until `resume_queue`. Returns the totals, as the next two do."""

    async def resume_queue(self, who: Principal, name: str) -> UploadQueue: ...

    async def hurry_upload(self, who: Principal, name: str, *, path: str) -> UploadQueue:
        """Have one file uploaded next. Raises `NotFound` (it does not wait), `Conflict` (it is still being written)."""

    async def warm_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> Operation:
        """Bring files into the block cache. The operation fails with `NotFound` (a path), `Conflict` (no room)."""

    async def pin_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> Operation:
        """Bring files into the block cache, and keep them there; as `warm_cache`."""

    async def unpin_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> UnpinReport:
        """Take back pins. Raises `Conflict` (not pinned, or with a directory above)."""

    async def evict_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> EvictReport:
        """Give up what is in the block cache. Raises `NotFound` (a path that is not known), `Conflict` (no cache)."""

    async def list_pins(self, who: Principal, name: str) -> PinList: ...

    async def cached_files(
        self, who: Principal, name: str, *, by: Literal["bytes", "hits", "misses"], limit: int
    ) -> CachedFiles: ...

    async def mount_logs(
        self, who: Principal, name: str, *, lines: int, offset: int | None
    ) -> LogTail:
        """The last *lines* lines, or everything after *offset*."""

    def get_operation(self, who: Principal, operation_id: str) -> Operation: ...

    def list_operations(self, who: Principal, *, mount: str | None = None) -> list[Operation]: ...

    async def cancel_operation(self, who: Principal, operation_id: str) -> Operation:
        """Stop a drain, or the warming of a cache; other kinds answer `Conflict`."""

    async def wait_operation(self, operation_id: str) -> Operation:
        """Wait until it has ended. Cancelling only stops the waiting."""

    def subscribe(
        self, who: Principal, *, since: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Events after *since* (stored ones first), then live ones; ends at shutdown or when the subscriber is too slow (64 events)."""

    def info(self) -> Info: ...

    def readiness(self) -> Readiness: ...
