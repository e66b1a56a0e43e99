"""Storing wishes: PUT, PATCH and DELETE of a mount.

Concurrency. `_mutation` serialises the three, so that what was checked (name, mountpoint, generation) holds until
the wish is stored. It is held for writes to the store and for waiting until a name is free, never for S3, a worker
or a mountpoint. Lock order: `_mutation`, then a record's. Between the write and the actor's new goal there is no
checkpoint.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec
import trio

from s3mgr.schema import Credentials, MountPatch, MountRequest, MountSpec
from s3mgrd.config import Config
from s3mgrd.errors import (
    Conflict,
    DirtyData,
    InvalidSpec,
    MountpointBusy,
    MountpointInvalid,
    NameConflict,
    NotFound,
    PreconditionFailed,
    SpecConflict,
    Stopping,
    TimedOut,
)
from s3mgrd.mounts.access import Access
from s3mgrd.mounts.core import Goal
from s3mgrd.mounts.mount import MountActor
from s3mgrd.mounts.operations import Operations, RunningOperation
from s3mgrd.mounts.ports import Kernel
from s3mgrd.mounts.service import Principal, UnmountMode
from s3mgrd.mounts.spec import (
    Defaults,
    changed_fields,
    check_labels,
    check_name,
    holds_same_data,
    is_below,
    merge_options,
    resolve,
)
from s3mgrd.mounts.store import MountRecord, Store

log = logging.getLogger(__name__)

# A mountpoint on a dead network file system must not hold a request for ever.
CHECK_TIMEOUT_S: Final = 10.0
# How long PATCH waits for the worker to take the options; they are stored before.
APPLY_WAIT_S: Final = 5.0
_WEAKER: Final[Mapping[UnmountMode, frozenset[UnmountMode]]] = {
    "clean": frozenset({"clean"}),
    "lazy": frozenset({"clean", "lazy"}),
    "discard": frozenset({"clean", "lazy", "discard"}),
}


class AddActor(Protocol):
    """Adds a mount to the table."""

    def __call__(self, record: MountRecord, *, goal: Goal) -> MountActor:
        """Create the actor and its task; no checkpoint."""


class Announce(Protocol):
    """Tells subscribers of a mount."""

    def __call__(self, actor: MountActor, *, created: bool) -> None:
        """Publish that it was added or changed; no checkpoint."""


class Declaring:
    """The verbs that change what is wanted. `stopping`: refuse, the daemon goes down."""

    def __init__(
        self,
        *,
        config: Config,
        kernel: Kernel,
        store: Store,
        operations: Operations,
        access: Access,
        actors: Mapping[str, MountActor],
        add: AddActor,
        announce: Announce,
        allow_other: bool,
    ) -> None:
        self.stopping = False
        self._kernel: Final = kernel
        self._store: Final = store
        self._operations: Final = operations
        self._access: Final = access
        self._actors: Final = actors
        self._add: Final = add
        self._announce: Final = announce
        self._mutation: Final = trio.Lock()
        self._defaults: Final = Defaults(
            endpoint=config.endpoint,
            region=config.region,
            allow_other=allow_other,
            allowed_mountpoints=config.allowed_mountpoints,
        )

    def refuse_when_stopping(self) -> None:
        """Raise `Stopping` if the daemon goes down."""
        if self.stopping:
            raise Stopping(
                "the daemon is stopping", hint="Try again when it is up: systemctl status s3mgr"
            )

    async def put(
        self,
        who: Principal,
        name: str,
        request: MountRequest,
        *,
        only_create: bool,
        if_generation: int | None,
        keep_on_failure: bool,
    ) -> tuple[MountActor, bool, RunningOperation | None]:
        """Store the spec and ask for it to be mounted; see `MountService.put_mount`."""
        check_name(name)
        self._access.require_any(who)
        self.refuse_when_stopping()
        known = self._actors.get(name)
        if known is not None:
            self._require_replaceable(who, known)
        spec, credentials = self._complete(who, request, known)
        if known is None or not known.is_up:
            self._require_free_path(name, spec.mountpoint)
            await self._check_mountpoint(who, spec.mountpoint, known)
        async with self._mutation:
            self.refuse_when_stopping()
            actor = await self._present(name)
            if actor is not None:
                self._require_replaceable(who, actor)
                spec, credentials = self._complete(who, request, actor)
            self._check_preconditions(
                name, actor, only_create=only_create, if_generation=if_generation
            )
            self._require_free_path(name, spec.mountpoint)
            if actor is None:
                created, running = await self._create(
                    who, name, spec, credentials, provisional=not keep_on_failure
                )
                return created, True, running
            running_or_none = await self._replace(actor, spec, credentials, keep=keep_on_failure)
        if running_or_none is None:
            await _await_applied(actor)
        return actor, False, running_or_none

    async def patch(self, name: str, patch: MountPatch, *, if_generation: int | None) -> MountActor:
        """Change live options, labels, persistence or keys; the caller is authorised."""
        self.refuse_when_stopping()
        async with self._mutation:
            actor = await self._present(name)
            if actor is None:
                raise NotFound(
                    f"there is no mount '{name}'", hint="s3mgr ls shows those that exist."
                )
            self._check_preconditions(name, actor, only_create=False, if_generation=if_generation)
            record = actor.record
            spec, credentials = _patched(record, patch)
            if (spec, credentials) == (record.spec, record.credentials):
                return actor
            await actor.update(spec=spec, credentials=credentials, generation=record.generation + 1)
            actor.record_changed()
            self._announce(actor, created=False)
        await _await_applied(actor)
        return actor

    async def delete(
        self, name: str, *, mode: UnmountMode, timeout_s: float, keep: bool
    ) -> RunningOperation | None:
        """Want the mount no more; None: it is gone already. The caller is authorised."""
        self.refuse_when_stopping()
        async with self._mutation:
            actor = await self._present(name)
            if actor is None:
                return None
            goal = actor.goal
            current = goal.operation
            joins = (
                goal.kind == "unmounted"
                and not goal.cancelled
                and mode in _WEAKER[goal.mode]
                and current is not None
                and current.is_running
            )
            forget = not keep or (joins and actor.record.forget)
            if joins and current is not None:
                await actor.update(forget=forget)
                return current
            running = await self._operations.begin("unmount", name, actor.record.owner_uid)
            with _ending(running):
                await actor.update(desired="unmounted", forget=forget, provisional=False, reason="")
            if actor.is_finishing:
                running.succeed()
                return running
            actor.set_goal(
                Goal(kind="unmounted", mode=mode, timeout_s=timeout_s, operation=running)
            )
            return running

    # Parts of put.

    def _complete(
        self, who: Principal, request: MountRequest, known: MountActor | None
    ) -> tuple[MountSpec, Credentials | None]:
        """Resolve the request. Keys and ids that it leaves out stay as they are: it cannot have read the keys."""
        spec, credentials = request.spec, request.credentials
        if known is not None:
            record = known.record
            if credentials is None and not spec.anonymous and spec.profile is None:
                credentials = record.credentials
            before = record.spec.options
            spec = msgspec.structs.replace(
                spec,
                options=msgspec.structs.replace(
                    spec.options,
                    uid=before.uid if spec.options.uid is None else spec.options.uid,
                    gid=before.gid if spec.options.gid is None else spec.options.gid,
                ),
            )
        return resolve(spec, credentials, defaults=self._defaults, who=who), credentials

    def _require_replaceable(self, who: Principal, actor: MountActor) -> None:
        owner = actor.record.owner_uid
        if not self._access.may_see(who, owner):
            raise NameConflict(
                f"the name '{actor.name}' is taken", hint="Choose another with --name."
            )
        self._access.require_manage(who, owner, f"'{actor.name}'")

    def _require_free_path(self, name: str, mountpoint: str) -> None:
        for other in self._actors.values():
            if other.name == name or other.is_finishing:
                continue
            taken = other.record.spec.mountpoint
            if taken == mountpoint:
                raise MountpointBusy(
                    f"{mountpoint} is the mountpoint of '{other.name}'",
                    hint=f"Choose another directory, or remove it first: s3mgr unmount {other.name}",
                )
            if is_below(mountpoint, taken) or is_below(taken, mountpoint):
                relation = "inside" if is_below(mountpoint, taken) else "above"
                raise MountpointInvalid(
                    f"{mountpoint} is {relation} {taken}, where '{other.name}' is mounted",
                    hint="Mounts cannot be nested; choose a directory beside it.",
                )

    async def _check_mountpoint(
        self, who: Principal, mountpoint: str, known: MountActor | None
    ) -> None:
        if known is not None and known.link.connection is not None:
            return  # ours, on its way up or down
        try:
            with trio.fail_after(CHECK_TIMEOUT_S):
                await self._kernel.check_mountpoint(
                    mountpoint, owner_uid=0 if who.is_admin else who.uid
                )
        except trio.TooSlowError:
            raise TimedOut(
                f"{mountpoint} does not answer",
                hint="Is it on a network file system whose server is gone?",
            ) from None

    async def _present(self, name: str) -> MountActor | None:
        """Find the mount, waiting for one that is just being forgotten; the caller holds the lock."""
        while (actor := self._actors.get(name)) is not None and actor.is_finishing:
            await actor.finished.wait()
            if self._actors.get(name) is actor:
                self.refuse_when_stopping()
                return actor
        return actor

    def _check_preconditions(
        self, name: str, actor: MountActor | None, *, only_create: bool, if_generation: int | None
    ) -> None:
        if actor is not None and only_create:
            raise NameConflict(
                f"there is a mount '{name}' already",
                hint=f"Choose another name with --name, or look at it: s3mgr show {name}",
            )
        if if_generation is None:
            return
        if actor is None:
            raise PreconditionFailed(f"there is no mount '{name}' to replace")
        if actor.record.generation != if_generation:
            raise PreconditionFailed(
                f"'{name}' is at generation {actor.record.generation}, not {if_generation}",
                hint="Read it again and repeat the change.",
            )

    async def _create(
        self,
        who: Principal,
        name: str,
        spec: MountSpec,
        credentials: Credentials | None,
        *,
        provisional: bool,
    ) -> tuple[MountActor, RunningOperation]:
        record = MountRecord(
            name=name,
            spec=spec,
            generation=1,
            desired="mounted",
            owner_uid=who.uid,
            owner_gid=who.gid,
            created_at=datetime.now(UTC),
            privileged=who.is_admin,
            provisional=provisional,
            credentials=credentials,
        )
        running = await self._operations.begin("mount", name, who.uid)
        with _ending(running):
            await self._store.save_mount(record)
        actor = self._add(record, goal=Goal(kind="mounted", operation=running))
        self._announce(actor, created=True)
        return actor, running

    async def _replace(
        self,
        actor: MountActor,
        spec: MountSpec,
        credentials: Credentials | None,
        *,
        keep: bool,
    ) -> RunningOperation | None:
        """Want an existing mount, perhaps with another spec; returns the operation that mounts it."""
        record, goal = actor.record, actor.goal
        pending = goal.operation if goal.operation and goal.operation.is_running else None
        if goal.kind == "unmounted" and pending is not None:
            raise Conflict(
                f"'{actor.name}' is being unmounted",
                hint=f"Wait for it (s3mgr show {actor.name}), or give its upload up first.",
            )
        fixed = changed_fields(record.spec, spec)
        if fixed and (actor.link.connection is not None or actor.link.live_session is not None):
            raise SpecConflict(
                f"'{actor.name}' is mounted with another {fixed[0].rpartition('/')[2]}",
                hint=f"Unmount it first (s3mgr unmount {actor.name}), or choose another name with --name.",
                pointer=fixed[0],
            )
        other_data = not holds_same_data(record.spec, spec)
        if other_data and record.may_be_dirty:
            raise DirtyData(
                f"'{actor.name}' may hold data for {record.spec.bucket} that is not in S3 yet",
                hint=f"Mount it as it was to upload them, or throw them away: s3mgr unmount --discard {actor.name}",
            )
        same = spec == record.spec and credentials == record.credentials
        wanted = goal.kind == "mounted"
        running = None
        if pending is not None and not same:
            pending = (
                None  # who waits for that asked for another mount, and learns that it was replaced
            )
        if not wanted or not actor.is_up:
            running = pending or await self._operations.begin("mount", actor.name, record.owner_uid)
        with _ending(running if running is not pending else None):
            await actor.update(
                spec=spec,
                credentials=credentials,
                generation=record.generation if same else record.generation + 1,
                desired="mounted",
                forget=False,
                provisional=record.provisional and not keep,
                reason="",
            )
        actor.holds_other_data = actor.holds_other_data or other_data
        if not same:
            self._announce(actor, created=False)
        if running is None:
            actor.record_changed()
        elif pending is None or not same:
            actor.set_goal(Goal(kind="mounted", operation=running))
        return running


async def _await_applied(actor: MountActor) -> None:
    """Wait a little until the worker runs with the record as it is; it is stored in any case."""
    with trio.move_on_after(APPLY_WAIT_S):
        await actor.wait_applied()


@contextmanager
def _ending(running: RunningOperation | None) -> Iterator[None]:
    """Cancel *running* when the block fails: nobody else would ever end it."""
    try:
        yield
    except BaseException:
        if running is not None:
            running.cancel()
        raise


def _patched(record: MountRecord, patch: MountPatch) -> tuple[MountSpec, Credentials | None]:
    spec, credentials = record.spec, record.credentials
    if patch.options is not msgspec.UNSET:
        spec = msgspec.structs.replace(spec, options=merge_options(spec.options, patch.options))
    if patch.persist is not msgspec.UNSET:
        spec = msgspec.structs.replace(spec, persist=patch.persist)
    if patch.labels is not msgspec.UNSET:
        merged: dict[str, str | None] = {**spec.labels, **patch.labels}
        labels = {key: value for key, value in merged.items() if value is not None}
        check_labels(labels)
        spec = msgspec.structs.replace(spec, labels=labels)
    if patch.credentials is not msgspec.UNSET:
        if spec.anonymous or spec.profile is not None:
            raise InvalidSpec(
                "the mount is anonymous or uses a profile, so it takes no keys",
                pointer="/credentials",
                hint="Unmount it, then mount it with keys.",
            )
        credentials = patch.credentials
    return spec, credentials
