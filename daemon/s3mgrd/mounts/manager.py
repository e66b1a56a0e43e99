"""The mounts of this daemon: implements `MountService` on a table of `MountActor`s, with `s3mgrd.mounts.questions`.

Concurrency. `run` owns all tasks. The verbs run in the API's tasks: they check, store the wish, set the actor's
goal, and return; cancelling one never undoes a wish that was stored. `_mutation` serialises the verbs that store
wishes, so that checks (name, mountpoint, generation) hold until the wish is stored; it is held for writes to the
store and for waiting until a name is free, never for S3 or a worker. Lock order: `_mutation`, then a record's.
"""

import importlib.metadata
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
import trio

from s3mgr import __version__
from s3mgr.schema import (
    Event,
    Info,
    LogTail,
    Mount,
    MountList,
    MountPatch,
    MountRequest,
    Operation,
    PendingRename,
    Readiness,
)
from s3mgrd.config import Config
from s3mgrd.errors import Conflict, NotFound, NotMounted, Stopping, Unavailable
from s3mgrd.mounts.access import Access
from s3mgrd.mounts.core import Goal, LogReader, MountCore, Surroundings
from s3mgrd.mounts.declaring import Declaring
from s3mgrd.mounts.events import EventLog
from s3mgrd.mounts.mount import MountActor
from s3mgrd.mounts.operations import Operations, RunningOperation
from s3mgrd.mounts.ports import DescribeProblem, DescriptorStore, Kernel, Workers
from s3mgrd.mounts.questions import Questions
from s3mgrd.mounts.renames import RenameOperations
from s3mgrd.mounts.service import Principal, UnmountMode
from s3mgrd.mounts.store import EventRecord, MountRecord, OperationRecord, Store
from s3mgrd.mounts.warming import Warmings
from s3mgrd.worker.protocol import ConflictEvent

log = logging.getLogger(__name__)

API_VERSION: Final = "v1"
# A stored mount whose endpoint is a black hole must not keep the daemon from being ready.
INITIAL_RECONCILE_S: Final = 30.0
CANCEL_WAIT_S: Final = 20.0
_LIBRARIES: Final = (
    "aiobotocore",
    "hypercorn",
    "pyfuse3",
    "quart-trio",
    "sqlite-utils",
    "trio",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a daemon says of itself."""

    boot_id: str
    user_mode: bool
    warnings: tuple[str, ...]


class Manager(Questions):
    """All mounts and the verbs on them; `run` it before anything else.

    Args:
        config: the daemon's.
        identity: what `info` tells.
        kernel: makes kernel connections.
        workers: makes worker processes.
        store: keeps what is wanted; outlives the manager.
        describe: turns errors into problems.
        read_log: reads the tail of a worker's log.
    """

    def __init__(
        self,
        *,
        config: Config,
        identity: Identity,
        kernel: Kernel,
        workers: Workers,
        descriptors: DescriptorStore,
        store: Store,
        describe: DescribeProblem,
        read_log: LogReader,
    ) -> None:
        self._config: Final = config
        self._identity: Final = identity
        self._kernel: Final = kernel
        self._workers: Final = workers
        self._descriptors: Final = descriptors
        self._store: Final = store
        self._started_at: Final = datetime.now(UTC)
        self._libraries: Final = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        self._read_log: Final = read_log
        self._access: Final = Access(config.list_visibility)
        self._events: Final = EventLog(store)
        self._operations: Final = Operations(
            store, identity.boot_id, describe, self._operation_changed
        )
        self._renames: Final = RenameOperations(self._operations)
        self._warmings: Final = Warmings(self._operations)
        self._actors: dict[str, MountActor] = {}
        self._around: Final = Surroundings(
            config=config,
            kernel=kernel,
            workers=workers,
            descriptors=descriptors,
            store=store,
            read_log=read_log,
            describe=describe,
            changed=self._mount_changed,
            forgotten=self._mount_forgotten,
            conflict=self._mount_conflict,
            renames=self._mount_renames,
            warming=self._warmings.report,
            supervisor_uid=os.geteuid(),
        )
        self._declaring: Final = Declaring(
            config=config,
            kernel=kernel,
            store=store,
            operations=self._operations,
            access=self._access,
            actors=self._actors,
            add=self._add,
            announce=self._announce,
            allow_other=not identity.user_mode,
        )
        self._nursery: trio.Nursery | None = None
        self._reconciled = trio.Event()
        self._stop_at: float | None = None
        self._stopped: Final = trio.Event()

    # Life.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring back what is stored and keep it as wanted, until `stop` is through.

        Started once the verbs may be called; the stored mounts may still be on their way.
        """
        stored = await self._store.load()
        self._events.start(stored.events, stored.last_cursor)
        self._operations.load(stored.operations)
        await self._descriptors.keep_only([record.name for record in stored.mounts])
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._events.run)
            nursery.start_soon(self._operations.run)
            for record in stored.mounts:
                self._add(record, adopt=True)
            nursery.start_soon(self._await_initial, list(self._actors.values()))
            task_status.started()
            await self._stopped.wait()
            nursery.cancel_scope.cancel()
        await self._operations.flush()
        await self._events.flush()

    async def wait_reconciled(self) -> None:
        """Return when each stored mount is up or has failed once, after `INITIAL_RECONCILE_S` at most."""
        await self._reconciled.wait()

    async def stop(self) -> None:
        """Take no more wishes, bring every mount down within the configured time, and end `run`.

        The mounts stay wanted: the next daemon mounts them again. What could not be uploaded is logged, mount by
        mount, and stays in the journals.
        """
        if self._stop_at is None:
            self._stop_at = trio.current_time() + self._config.shutdown_timeout_s
            self._declaring.stopping = True
            self._events.publish("daemon.stopping")
            for actor in list(self._actors.values()):
                self._stop_actor(actor)
        # One that met a bug is replaced, so look again.
        while unfinished := [a for a in self._actors.values() if not a.finished.is_set()]:
            await unfinished[0].finished.wait()
        self._events.close()
        self._stopped.set()

    def hurry(self) -> None:
        """While stopping: upload no more; what is left stays in the journals."""
        if self._stop_at is None:
            return
        self._stop_at = trio.current_time()
        for actor in list(self._actors.values()):
            self._stop_actor(actor)

    def draining(self) -> list[tuple[str, int]]:
        """List the mounts that are on their way down, with the bytes that S3 does not have yet."""
        return [
            (name, actor.status.dirty_bytes)
            for name, actor in sorted(self._actors.items())
            if actor.status.state == "draining"
        ]

    def _stop_actor(self, actor: MountActor) -> None:
        assert self._stop_at is not None, "stop() was called"  # noqa: S101 - a bug, not an input
        remaining_s = max(0.0, self._stop_at - trio.current_time())
        actor.set_goal(
            Goal(kind="stopped", timeout_s=remaining_s),
            superseded=Stopping(
                "the daemon is stopping", hint="What is not in S3 yet stays in the journal."
            ),
        )

    def _add(
        self, record: MountRecord, *, adopt: bool = False, goal: Goal | None = None
    ) -> MountActor:
        assert self._nursery is not None, "run() comes first"  # noqa: S101 - a bug, not an input
        actor = MountActor(record, self._around)
        if goal is not None:
            actor.goal = goal
        self._actors[record.name] = actor
        self._nursery.start_soon(self._supervise, actor, adopt)
        return actor

    async def _supervise(self, actor: MountActor, adopt: bool) -> None:
        """Run a mount's task; a bug in it costs that mount, not the daemon."""
        while True:
            try:
                await actor.run(adopt=adopt)
            except Exception:  # the supervisor's restart loop: one of the three broad handlers
                log.exception("unforeseen error", extra={"mount": actor.name})
            else:
                return
            if actor.goal.operation is not None:
                actor.goal.operation.fail(
                    Unavailable("the daemon met an error that nobody foresaw", hint="See its log.")
                )
            if self._actors.get(actor.name) is not actor:
                return  # forgotten already
            actor, adopt = MountActor(actor.record, self._around), False
            self._actors[actor.name] = actor
            actor.fail_internally()
            if self._stop_at is not None:
                self._stop_actor(actor)

    async def _await_initial(self, actors: list[MountActor]) -> None:
        with trio.move_on_after(INITIAL_RECONCILE_S):
            for actor in actors:
                await actor.settled.wait()
        self._reconciled.set()

    # What changed.

    def _mount_renames(self, actor: MountCore, pending: Sequence[PendingRename]) -> None:
        self._renames.report(actor.name, actor.record.owner_uid, pending)

    def _mount_changed(self, actor: MountCore) -> None:
        status = actor.status_keeper.now
        if status.state == "unmounted":
            self._renames.stop(actor.name)
        self._events.publish(
            "mount.state",
            actor.name,
            owner_uid=actor.record.owner_uid,
            data={
                "state": status.state,
                "reason": status.reason,
                "message": status.message,
                "restarts": status.restarts,
            },
        )

    def _mount_forgotten(self, actor: MountCore) -> None:
        self._renames.stop(actor.name)
        self._actors.pop(actor.name, None)
        self._events.publish("mount.removed", actor.name, owner_uid=actor.record.owner_uid)

    def _mount_conflict(self, actor: MountCore, event: ConflictEvent) -> None:
        self._events.publish(
            "mount.conflict",
            actor.name,
            owner_uid=actor.record.owner_uid,
            data={
                "action": event.action,
                "id": event.id,
                "path": event.path,
                "size_bytes": event.size_bytes,
                "reason": event.reason,
            },
        )

    def _announce(self, actor: MountActor, *, created: bool) -> None:
        self._events.publish(
            "mount.added" if created else "mount.changed",
            actor.name,
            owner_uid=actor.record.owner_uid,
            data={"generation": actor.record.generation},
        )

    def _operation_changed(self, record: OperationRecord) -> None:
        self._events.publish(
            "operation.changed",
            record.operation.target,
            owner_uid=record.owner_uid,
            data={"operation": msgspec.to_builtins(record.operation)},
        )

    # The verbs: `MountService` documents them.

    def list_mounts(
        self, who: Principal, *, state: str | None = None, label: str | None = None
    ) -> MountList:
        """List what *who* may see; *label* is ``key`` or ``key=value``."""
        self._access.require_any(who)
        items = [
            view(actor)
            for _, actor in sorted(self._actors.items())
            if self._access.may_see(who, actor.record.owner_uid)
            and (state is None or actor.status_keeper.state == state)
            and (label is None or _has_label(actor.record, label))
        ]
        return MountList(items=items, cursor=self._events.cursor)

    def get_mount(self, who: Principal, name: str) -> Mount:
        """Show one mount."""
        return view(self._find(who, name))

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
        """Store the spec and ask for it to be mounted."""
        actor, created, operation = await self._declaring.put(
            who,
            name,
            request,
            only_create=only_create,
            if_generation=if_generation,
            keep_on_failure=keep_on_failure,
        )
        return view(actor), created, operation.operation if operation is not None else None

    async def patch_mount(
        self, who: Principal, name: str, patch: MountPatch, *, if_generation: int | None = None
    ) -> Mount:
        """Change what may change while the mount is up."""
        self._manage(who, name)
        return view(await self._declaring.patch(name, patch, if_generation=if_generation))

    async def delete_mount(
        self, who: Principal, name: str, *, mode: UnmountMode, timeout_s: float, keep: bool = False
    ) -> Operation | None:
        """Ask for unmount and, unless *keep*, forgetting."""
        self._access.require_any(who)
        actor = self._actors.get(name)
        if actor is None or not self._access.may_see(who, actor.record.owner_uid):
            return None
        self._manage(who, name)
        running = await self._declaring.delete(name, mode=mode, timeout_s=timeout_s, keep=keep)
        return running.operation if running is not None else None

    async def restart_mount(self, who: Principal, name: str) -> Operation:
        """Replace the worker on the live connection; a mount that failed is tried again now."""
        actor = self._manage(who, name)
        self._declaring.refuse_when_stopping()
        if actor.record.desired != "mounted":
            raise NotMounted(f"'{name}' is unmounted", hint="Mount it: s3mgr mount")
        running = await self._operations.begin("restart", name, actor.record.owner_uid)
        actor.restart(running)
        return running.operation

    async def warm_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> Operation:
        """Bring files into the block cache."""
        return await self._warm(who, name, "warm", paths)

    async def pin_cache(self, who: Principal, name: str, *, paths: Sequence[str]) -> Operation:
        """Bring files into the block cache, and keep them there."""
        return await self._warm(who, name, "pin", paths)

    async def _warm(
        self, who: Principal, name: str, kind: Literal["warm", "pin"], paths: Sequence[str]
    ) -> Operation:
        actor = self._manage(who, name)
        self._declaring.refuse_when_stopping()
        assert self._nursery is not None, "run() comes first"  # noqa: S101 - a bug, not an input
        running = await self._warmings.begin(self._nursery, actor, kind, paths)
        return running.operation

    async def mount_logs(
        self, who: Principal, name: str, *, lines: int, offset: int | None
    ) -> LogTail:
        """Read the tail of the worker's log."""
        self._manage(who, name)
        return await self._read_log(self._workers.log_path(name), lines, offset)

    def get_operation(self, who: Principal, operation_id: str) -> Operation:
        """Show one operation."""
        return self._find_operation(who, operation_id).operation

    def list_operations(self, who: Principal, *, mount: str | None = None) -> list[Operation]:
        """List the operations that *who* may see, oldest first."""
        self._access.require_any(who)
        return [
            running.operation
            for running in self._operations.all()
            if self._access.may_see(who, running.record.owner_uid)
            and (mount is None or running.operation.target == mount)
        ]

    async def cancel_operation(self, who: Principal, operation_id: str) -> Operation:
        """Give up a drain, whose rest stays in the journal, or the warming of a cache."""
        running = self._find_operation(who, operation_id)
        target = running.operation.target
        self._access.require_manage(who, running.record.owner_uid, f"'{target}'")
        if not running.is_running:
            return running.operation
        actor = self._actors.get(target)
        if running.operation.kind == "warm" and actor is not None:
            await self._warmings.cancel(actor, running)
            return running.operation
        if (
            running.operation.kind != "unmount"
            or actor is None
            or actor.goal.operation is not running
        ):
            raise Conflict(
                f"a running {running.operation.kind} cannot be cancelled",
                hint="Only a warming of the cache, and an unmount that uploads what is left, can.",
            )
        actor.set_goal(Goal(kind="unmounted", cancelled=True, operation=running))
        with trio.move_on_after(CANCEL_WAIT_S):
            await running.wait()
        return running.operation

    async def wait_operation(self, operation_id: str) -> Operation:
        """Wait until it has ended."""
        return await self._operations.get(operation_id).wait()

    def subscribe(
        self, who: Principal, *, since: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Watch what changes; see `EventLog.subscribe`."""
        self._access.require_any(who)

        def may_see(record: EventRecord) -> bool:
            return self._access.may_see(who, record.owner_uid)

        return self._events.subscribe(since, may_see)

    def info(self) -> Info:
        """Tell what this daemon is."""
        return Info(
            version=__version__,
            api_version=API_VERSION,
            pid=os.getpid(),
            boot_id=self._identity.boot_id,
            started_at=self._started_at,
            user_mode=self._identity.user_mode,
            state_dir=self._config.state_dir,
            cache_dir=self._config.cache_dir,
            worker_user=self._config.worker_user,
            kernel=self._kernel.info(),
            libraries=self._libraries,
            warnings=list(self._identity.warnings),
        )

    def readiness(self) -> Readiness:
        """Tell whether the daemon is ready; mounts that do not work do not count against it."""
        checks = {
            "store": self._nursery is not None,
            "mounts": self._reconciled.is_set(),
            "running": self._stop_at is None,
        }
        broken = [
            name
            for name, actor in sorted(self._actors.items())
            if actor.record.desired == "mounted"
            and actor.status_keeper.state in ("degraded", "failed")
        ]
        return Readiness(ready=all(checks.values()), checks=checks, degraded_mounts=broken)

    # Helpers.

    def _find(self, who: Principal, name: str) -> MountActor:
        self._access.require_any(who)
        actor = self._actors.get(name)
        if actor is None or not self._access.may_see(who, actor.record.owner_uid):
            raise NotFound(f"there is no mount '{name}'", hint="s3mgr ls shows those that exist.")
        return actor

    def _manage(self, who: Principal, name: str) -> MountActor:
        actor = self._find(who, name)
        self._access.require_manage(who, actor.record.owner_uid, f"'{name}'")
        return actor

    def _find_operation(self, who: Principal, operation_id: str) -> RunningOperation:
        self._access.require_any(who)
        running = self._operations.get(operation_id)
        if not self._access.may_see(who, running.record.owner_uid):
            raise NotFound(f"there is no operation {operation_id[:80]!r}")
        return running


def view(actor: MountCore) -> Mount:
    """Show a mount as the API does: without its secrets."""
    record = actor.record
    return Mount(
        name=record.name,
        generation=record.generation,
        owner_uid=record.owner_uid,
        created_at=record.created_at,
        desired=record.desired,
        has_credentials=record.credentials is not None,
        spec=record.spec,
        status=actor.status,
    )


def _has_label(record: MountRecord, label: str) -> bool:
    key, equals, value = label.partition("=")
    if not equals:
        return key in record.spec.labels
    return record.spec.labels.get(key) == value
