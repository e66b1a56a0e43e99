"""What the domain keeps between runs: records and the port that stores them.

`s3mgrd.state.store.StateStore` is the adapter. The domain loads everything once, at start, and holds it in
memory; from then on it only writes.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from s3mgr.schema import Credentials, Event, MountSpec, Operation

Desired = Literal["mounted", "unmounted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRecord:
    """One mount as the user wants it, with what must be remembered about it.

    Attributes:
        spec: complete: endpoint, uid, gid and allow_other are filled in.
        generation: grows by one with every change of what the user wants.
        desired: what the reconciler works towards.
        privileged: an administrator declared it: its mountpoint may belong to anybody.
        provisional: created by a caller who waits; forgotten if its first attempt fails.
        forget: a DELETE is under way: forgotten as soon as nothing is left that S3 does not have.
        may_be_dirty: a worker has served it since the last complete drain, so its journal may hold something, or it has
            conflict copies.
        reason: why it is unmounted, a `machine.Reason`; empty otherwise.
        credentials: the keys that came with the request; None: anonymous, or the daemon finds some.
    """

    name: str
    spec: MountSpec
    generation: int
    desired: Desired
    owner_uid: int
    owner_gid: int
    created_at: datetime
    privileged: bool = False
    provisional: bool = False
    forget: bool = False
    may_be_dirty: bool = False
    reason: str = ""
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """An operation and who may see it: its mount may be gone."""

    operation: Operation
    owner_uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event and who may see it; `owner_uid` None: everybody."""

    event: Event
    owner_uid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Everything that was kept, as of one moment. Events are in cursor order; `last_cursor` is the highest ever used."""

    mounts: tuple[MountRecord, ...]
    operations: tuple[OperationRecord, ...]
    events: tuple[EventRecord, ...]
    last_cursor: int


class Store(Protocol):
    """Keeps records. Every write is on stable storage when it returns; a cancelled write may still happen.

    Raises `Unavailable` when the disk does not take it, `Corrupt` when the file turns out to be damaged.
    """

    async def load(self) -> Stored:
        """Return everything."""

    async def save_mount(self, record: MountRecord) -> None:
        """Create or replace one mount, its credentials included."""

    async def forget_mount(self, name: str) -> None:
        """Remove one mount and its credentials; none is a success."""

    async def save_operations(self, records: tuple[OperationRecord, ...]) -> None:
        """Create or replace operations."""

    async def prune_operations(self, before: datetime) -> None:
        """Remove the operations that ended before *before*."""

    async def append_events(self, records: tuple[EventRecord, ...], *, keep: int) -> None:
        """Add events, whose cursors are higher than any before, and remove all but the last *keep*."""
