"""A `MountService` in memory: remembers what it was asked, ends operations when told, fails when told."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import trio

from s3mgr.schema import (
    ArchivedList,
    ArchivedObject,
    CachedFile,
    CachedFiles,
    CacheEntry,
    CacheReport,
    ConflictCopy,
    ConflictList,
    Event,
    EventType,
    EvictReport,
    FlushReport,
    Info,
    InvalidateReport,
    KernelInfo,
    LogTail,
    Mount,
    MountList,
    MountPatch,
    MountRequest,
    MountSpec,
    MountStats,
    MountStatus,
    Operation,
    OperationKind,
    OperationState,
    Pin,
    PinList,
    Problem,
    QueuedFile,
    Readiness,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UnpinReport,
    UploadQueue,
)
from s3mgrd.errors import (
    Conflict,
    Denied,
    NameConflict,
    NotFound,
    PreconditionFailed,
)
from s3mgrd.mounts.service import MountService, Principal, UnmountMode

EPOCH = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
SUBSCRIBER_QUEUE = 64


class FakeService(MountService):
    """Keeps the promises of the port.

    Attributes:
        failures: method name → what it raises, until removed.
        calls: (method name, arguments) of every call that acts, in order.
        auto_end: how operations end by themselves; None: a test ends them with `end`.
        auto_error: the problem of operations that end as failed.
        hold: when set, `flush_mount` waits for it.
    """

    def __init__(self) -> None:
        self.mounts: dict[str, Mount] = {}
        self.operations: dict[str, Operation] = {}
        self.conflicts: list[ConflictCopy] = []
        self.archived: list[ArchivedObject] = []
        self.queue: list[QueuedFile] = []
        self.stats: list[MountStats] = []
        self.pins: list[Pin] = []
        self.is_paused = False
        self.writers_waiting = 0
        self.failures: dict[str, BaseException] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []  # Any: whatever a method takes
        self.auto_end: OperationState | None = "succeeded"
        self.auto_error: Problem | None = None
        self.hold: trio.Event | None = None
        self.held = trio.Event()
        self.waiters = 0
        self.cursor = 0
        self.stored: list[Event] = []
        self.ready = Readiness(ready=True, checks={"store": True, "reconciled": True})
        self._ended: dict[str, trio.Event] = {}
        self._subscribers: set[trio.MemorySendChannel[Event]] = set()

    # What a test does.

    def add_mount(self, name: str, *, owner_uid: int = 0) -> Mount:
        """Put a mounted mount there."""
        spec = MountSpec(bucket="b", mountpoint=f"/mnt/{name}")
        self.mounts[name] = _mount(name, spec, owner_uid=owner_uid)
        return self.mounts[name]

    def emit(self, kind: EventType, mount: str | None = None) -> Event:
        """Let something happen; a subscriber that is too slow is dropped."""
        self.cursor += 1
        event = Event(cursor=self.cursor, type=kind, time=EPOCH, mount=mount)
        self.stored.append(event)
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except trio.WouldBlock:
                subscriber.close()
                self._subscribers.discard(subscriber)
        return event

    def end(self, operation_id: str, state: OperationState, error: Problem | None = None) -> None:
        """End an operation."""
        self.operations[operation_id] = msgspec.structs.replace(
            self.operations[operation_id], state=state, error=error, finished_at=EPOCH
        )
        self._ended[operation_id].set()

    def end_subscriptions(self) -> None:
        """End every event stream, as the domain does at its stop."""
        for subscriber in self._subscribers:
            subscriber.close()
        self._subscribers.clear()

    @property
    def subscriber_count(self) -> int:
        """How many subscriptions are open."""
        return len(self._subscribers)

    # The port.

    def list_mounts(
        self, who: Principal, *, state: str | None = None, label: str | None = None
    ) -> MountList:
        self._note("list_mounts", who=who, state=state, label=label)
        items = [m for m in self.mounts.values() if state in (None, m.status.state)]
        return MountList(items=items, cursor=self.cursor)

    def get_mount(self, who: Principal, name: str) -> Mount:
        self._note("get_mount", who=who, name=name)
        return self._find(name)

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
        await trio.lowlevel.checkpoint()
        self._note(
            "put_mount",
            who=who,
            name=name,
            request=request,
            only_create=only_create,
            if_generation=if_generation,
            keep_on_failure=keep_on_failure,
        )
        known = self.mounts.get(name)
        if known is None:
            self.mounts[name] = _mount(name, request.spec, owner_uid=who.uid)
            return self.mounts[name], True, self._start("mount", name)
        self._authorise(who, known)
        if only_create:
            raise NameConflict(f"the name '{name}' is taken", hint="choose another name")
        self._check_generation(known, if_generation)
        if known.spec == request.spec:
            return known, False, None
        self.mounts[name] = msgspec.structs.replace(
            known, spec=request.spec, generation=known.generation + 1
        )
        return self.mounts[name], False, self._start("mount", name)

    async def patch_mount(
        self, who: Principal, name: str, patch: MountPatch, *, if_generation: int | None = None
    ) -> Mount:
        await trio.lowlevel.checkpoint()
        self._note("patch_mount", who=who, name=name, patch=patch, if_generation=if_generation)
        known = self._authorise(who, self._find(name))
        self._check_generation(known, if_generation)
        self.mounts[name] = msgspec.structs.replace(known, generation=known.generation + 1)
        return self.mounts[name]

    async def delete_mount(
        self, who: Principal, name: str, *, mode: UnmountMode, timeout_s: float, keep: bool = False
    ) -> Operation | None:
        await trio.lowlevel.checkpoint()
        self._note("delete_mount", who=who, name=name, mode=mode, timeout_s=timeout_s, keep=keep)
        if name not in self.mounts:
            return None
        self._authorise(who, self.mounts[name])
        operation = self._start("unmount", name)
        if operation.state != "failed" and not keep:
            del self.mounts[name]
        return operation

    async def restart_mount(self, who: Principal, name: str) -> Operation:
        await trio.lowlevel.checkpoint()
        self._note("restart_mount", who=who, name=name)
        self._authorise(who, self._find(name))
        return self._start("restart", name)

    async def flush_mount(self, who: Principal, name: str, *, timeout_s: float) -> FlushReport:
        self._note("flush_mount", who=who, name=name, timeout_s=timeout_s)
        self._authorise(who, self._find(name))
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        return FlushReport(uploaded_files=2, remaining_files=0, remaining_bytes=0)

    async def invalidate_mount(self, who: Principal, name: str, *, path: str) -> InvalidateReport:
        await trio.lowlevel.checkpoint()
        self._note("invalidate_mount", who=who, name=name, path=path)
        self._authorise(who, self._find(name))
        return InvalidateReport(listings=1, entries=3)

    async def mount_stats(self, who: Principal, name: str) -> MountStats:
        await trio.lowlevel.checkpoint()
        self._note("mount_stats", who=who, name=name)
        self._find(name)
        if self.stats:
            return self.stats.pop(0) if len(self.stats) > 1 else self.stats[0]
        return MountStats(worker_pid=4711, uptime_s=math.inf, memory_bytes=1 << 20)

    async def mount_cache(
        self, who: Principal, name: str, *, path: str, cursor: str | None, limit: int
    ) -> CacheReport:
        await trio.lowlevel.checkpoint()
        self._note("mount_cache", who=who, name=name, path=path, cursor=cursor, limit=limit)
        self._find(name)
        entry = CacheEntry(path="a/ä", kind="file", inode=2, size_bytes=3, mtime=EPOCH)
        return CacheReport(
            entries_total=1,
            directories_listed=1,
            hidden_keys=0,
            metadata_bytes=0,
            data_bytes=0,
            data_limit_bytes=0,
            staged_bytes=0,
            metadata_hits=0,
            metadata_misses=0,
            data_hits=0,
            data_misses=0,
            items=[entry],
            cursor="next",
        )

    async def list_conflicts(
        self, who: Principal, name: str, *, cursor: str | None, limit: int
    ) -> ConflictList:
        await trio.lowlevel.checkpoint()
        self._note("list_conflicts", who=who, name=name, cursor=cursor, limit=limit)
        self._authorise(who, self._find(name))
        left = [c for c in self.conflicts if c.id > int(cursor or 0)]
        return ConflictList(
            total=len(self.conflicts),
            total_bytes=sum(c.size_bytes for c in self.conflicts),
            items=left[:limit],
            cursor=str(left[limit - 1].id) if 0 < limit < len(left) else None,
        )

    async def restore_conflict(
        self, who: Principal, name: str, conflict_id: int, *, path: str | None, partial: bool
    ) -> RestoredConflict:
        await trio.lowlevel.checkpoint()
        self._note(
            "restore_conflict",
            who=who,
            name=name,
            conflict_id=conflict_id,
            path=path,
            partial=partial,
        )
        self._authorise(who, self._find(name))
        copy = self._take_conflict(conflict_id)
        return RestoredConflict(path=path or f"{copy.path}.conflict", size_bytes=copy.size_bytes)

    async def discard_conflict(self, who: Principal, name: str, conflict_id: int) -> None:
        await trio.lowlevel.checkpoint()
        self._note("discard_conflict", who=who, name=name, conflict_id=conflict_id)
        self._authorise(who, self._find(name))
        self._take_conflict(conflict_id)

    def add_conflict(self, conflict_id: int, path: str, **fields: Any) -> ConflictCopy:  # noqa: ANN401 - whatever a copy has
        """Let an upload have lost."""
        values: dict[str, Any] = {
            "size_bytes": 3,
            "mtime": EPOCH,
            "lost_at": EPOCH,
            "reason": "replaced",
        }
        copy = ConflictCopy(id=conflict_id, path=path, **(values | fields))
        self.conflicts.append(copy)
        return copy

    def _take_conflict(self, conflict_id: int) -> ConflictCopy:
        found = [c for c in self.conflicts if c.id == conflict_id]
        if not found:
            raise NotFound(f"there is no conflict copy {conflict_id}")
        self.conflicts.remove(found[0])
        return found[0]

    async def list_archived(
        self, who: Principal, name: str, *, path: str, cursor: str | None, limit: int
    ) -> ArchivedList:
        await trio.lowlevel.checkpoint()
        self._note("list_archived", who=who, name=name, path=path, cursor=cursor, limit=limit)
        self._authorise(who, self._find(name))
        items, following = self._archived_page(path, cursor, limit)
        return ArchivedList(items=items, cursor=following)

    async def restore_objects(
        self, who: Principal, name: str, request: RestoreRequest
    ) -> RestoreReport:
        await trio.lowlevel.checkpoint()
        self._note("restore_objects", who=who, name=name, request=request)
        self._authorise(who, self._find(name))
        items, following = self._archived_page(request.path, request.cursor, request.limit)
        done = [
            item
            if item.state == "restored" or item.error
            else msgspec.structs.replace(item, state="restoring")
            for item in items
        ]
        failed = sum(1 for item in done if item.error)
        return RestoreReport(
            begun=sum(1 for item in done if item.state == "restoring"),
            failed=failed,
            items=done,
            cursor=following,
        )

    def _archived_page(
        self, path: str, cursor: str | None, limit: int
    ) -> tuple[list[ArchivedObject], str | None]:
        start = int(cursor or 0)
        found = [item for item in self.archived if item.path.startswith(path)]
        end = start + limit
        return found[start:end], str(end) if end < len(found) else None

    def add_archived(self, path: str, **fields: Any) -> None:  # noqa: ANN401 - whatever an object has
        """Let an object be archived."""
        values: dict[str, Any] = {"size_bytes": 3, "storage_class": "GLACIER", "state": "archived"}
        self.archived.append(ArchivedObject(path=path, **(values | fields)))

    async def mount_queue(
        self, who: Principal, name: str, *, cursor: str | None, limit: int
    ) -> UploadQueue:
        await trio.lowlevel.checkpoint()
        self._note("mount_queue", who=who, name=name, cursor=cursor, limit=limit)
        self._authorise(who, self._find(name))
        start = int(cursor or 0)
        end = start + limit
        return msgspec.structs.replace(
            self._queue_totals(),
            items=self.queue[start:end],
            cursor=str(end) if limit > 0 and end < len(self.queue) else None,
        )

    async def pause_queue(self, who: Principal, name: str) -> UploadQueue:
        await trio.lowlevel.checkpoint()
        self._note("pause_queue", who=who, name=name)
        self._authorise(who, self._find(name))
        self.is_paused = True
        return self._queue_totals()

    async def resume_queue(self, who: Principal, name: str) -> UploadQueue:
        await trio.lowlevel.checkpoint()
        self._note("resume_queue", who=who, name=name)
        self._authorise(who, self._find(name))
        self.is_paused = False
        return self._queue_totals()

    async def hurry_upload(self, who: Principal, name: str, *, path: str) -> UploadQueue:
        await trio.lowlevel.checkpoint()
        self._note("hurry_upload", who=who, name=name, path=path)
        self._authorise(who, self._find(name))
        if path not in [file.path for file in self.queue]:
            raise NotFound(f"{path!r} does not wait to be uploaded", hint="look again")
        self.queue.sort(key=lambda file: file.path != path)
        return self._queue_totals()

    def _queue_totals(self) -> UploadQueue:
        return UploadQueue(
            total_files=len(self.queue),
            total_bytes=sum(file.size_bytes for file in self.queue),
            dirty_limit_bytes=1 << 20,
            is_paused=self.is_paused,
            writers_waiting=self.writers_waiting,
        )

    def add_queued(self, path: str, **fields: Any) -> QueuedFile:  # noqa: ANN401 - whatever a file has
        """Let a file wait to be uploaded."""
        values: dict[str, Any] = {"size_bytes": 3, "since": EPOCH, "state": "waiting"}
        self.queue.append(QueuedFile(path=path, **(values | fields)))
        return self.queue[-1]

    async def warm_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> Operation:
        await trio.lowlevel.checkpoint()
        self._note("warm_cache", who=who, name=name, paths=paths)
        self._authorise(who, self._find(name))
        return self._start("warm", name)

    async def pin_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> Operation:
        await trio.lowlevel.checkpoint()
        self._note("pin_cache", who=who, name=name, paths=paths)
        self._authorise(who, self._find(name))
        self.pins += [Pin(path=path, files=2, size_bytes=2048, cached_bytes=1024) for path in paths]
        return self._start("pin", name)

    async def unpin_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> UnpinReport:
        await trio.lowlevel.checkpoint()
        self._note("unpin_cache", who=who, name=name, paths=paths)
        self._authorise(who, self._find(name))
        gone = [pin.path for pin in self.pins if pin.path in paths]
        if not gone:
            raise Conflict(f"{paths[0]!r} is not pinned", hint="look at the pins")
        self.pins = [pin for pin in self.pins if pin.path not in gone]
        return UnpinReport(paths=gone)

    async def evict_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> EvictReport:
        await trio.lowlevel.checkpoint()
        self._note("evict_cache", who=who, name=name, paths=paths)
        self._authorise(who, self._find(name))
        return EvictReport(files=3, bytes=3072, pinned_files=len(self.pins))

    async def list_pins(self, who: Principal, name: str) -> PinList:
        await trio.lowlevel.checkpoint()
        self._note("list_pins", who=who, name=name)
        self._authorise(who, self._find(name))
        return PinList(items=self.pins)

    async def cached_files(
        self, who: Principal, name: str, *, by: Literal["bytes", "hits", "misses"], limit: int
    ) -> CachedFiles:
        await trio.lowlevel.checkpoint()
        self._note("cached_files", who=who, name=name, by=by, limit=limit)
        self._authorise(who, self._find(name))
        file = CachedFile(
            path="a\n", size_bytes=4096, cached_bytes=2048, is_pinned=True, hit_bytes=1024
        )
        return CachedFiles(items=[file][:limit])

    async def mount_logs(
        self, who: Principal, name: str, *, lines: int, offset: int | None
    ) -> LogTail:
        await trio.lowlevel.checkpoint()
        self._note("mount_logs", who=who, name=name, lines=lines, offset=offset)
        self._authorise(who, self._find(name))
        return LogTail(lines=["one", "two"], offset=8)

    def get_operation(self, who: Principal, operation_id: str) -> Operation:
        self._note("get_operation", who=who, operation_id=operation_id)
        if operation_id not in self.operations:
            raise NotFound(f"there is no operation '{operation_id}'")
        return self.operations[operation_id]

    def list_operations(self, who: Principal, *, mount: str | None = None) -> list[Operation]:
        self._note("list_operations", who=who, mount=mount)
        return [o for o in self.operations.values() if mount in (None, o.target)]

    async def cancel_operation(self, who: Principal, operation_id: str) -> Operation:
        await trio.lowlevel.checkpoint()
        operation = self.get_operation(who, operation_id)
        if operation.kind != "unmount" or operation.state != "running":
            raise Conflict("only an upload before an unmount can be cancelled")
        self.end(operation_id, "cancelled")
        return self.operations[operation_id]

    async def wait_operation(self, operation_id: str) -> Operation:
        self.waiters += 1
        try:
            await self._ended[operation_id].wait()
        finally:
            self.waiters -= 1
        return self.operations[operation_id]

    def subscribe(
        self, who: Principal, *, since: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self._subscription(since)

    @asynccontextmanager
    async def _subscription(self, since: int | None) -> AsyncIterator[AsyncIterator[Event]]:
        self._note("subscribe", since=since)
        stored = [e for e in self.stored if since is not None and e.cursor > since]
        sender, receiver = trio.open_memory_channel[Event](SUBSCRIBER_QUEUE + len(stored))
        for event in stored:
            sender.send_nowait(event)
        self._subscribers.add(sender)
        try:
            yield receiver
        finally:
            self._subscribers.discard(sender)
            sender.close()
            receiver.close()

    def info(self) -> Info:
        self._note("info")
        return Info(
            version="9.9",
            api_version="v1",
            pid=1,
            boot_id="boot",
            started_at=EPOCH,
            user_mode=False,
            state_dir="/s",
            cache_dir="/c",
            worker_user="nobody",
            kernel=KernelInfo(release="6.1"),
        )

    def readiness(self) -> Readiness:
        self._note("readiness")
        return self.ready

    def _note(self, method: str, **arguments: object) -> None:
        self.calls.append((method, arguments))
        if (failure := self.failures.get(method)) is not None:
            raise failure

    def _find(self, name: str) -> Mount:
        if name not in self.mounts:
            raise NotFound(f"there is no mount '{name}'", hint="list them: s3mgr ls")
        return self.mounts[name]

    @staticmethod
    def _authorise(who: Principal, mount: Mount) -> Mount:
        if not who.is_admin and who.uid != mount.owner_uid:
            raise Denied(f"the mount '{mount.name}' belongs to uid {mount.owner_uid}")
        return mount

    @staticmethod
    def _check_generation(mount: Mount, wanted: int | None) -> None:
        if wanted is not None and wanted != mount.generation:
            raise PreconditionFailed(f"the mount is at generation {mount.generation}")

    def _start(self, kind: OperationKind, target: str) -> Operation:
        operation_id = f"op-{len(self.operations) + 1}"
        self.operations[operation_id] = Operation(
            id=operation_id,
            kind=kind,
            target=target,
            state="running",
            created_at=EPOCH,
            boot_id="boot",
        )
        self._ended[operation_id] = trio.Event()
        if self.auto_end is not None:
            error = self.auto_error if self.auto_end == "failed" else None
            self.end(operation_id, self.auto_end, error)
        return self.operations[operation_id]


def _mount(
    name: str,
    spec: MountSpec,
    *,
    owner_uid: int,
    desired: Literal["mounted", "unmounted"] = "mounted",
) -> Mount:
    return Mount(
        name=name,
        generation=1,
        owner_uid=owner_uid,
        created_at=EPOCH,
        desired=desired,
        has_credentials=False,
        spec=spec,
        status=MountStatus(state="mounted", since=EPOCH),
    )
