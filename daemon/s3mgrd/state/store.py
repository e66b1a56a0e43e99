"""The domain's `Store` on SQLite.

Concurrency: calls run one at a time in a worker thread (a commit waits for the disk), guarded by a limiter of
one, which also orders them. A cancelled call finishes in its thread.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec
import trio
from sqlite_utils import Database

from s3mgr.schema import Credentials, Event, MountSpec, Operation
from s3mgrd.errors import Corrupt
from s3mgrd.mounts.store import EventRecord, MountRecord, OperationRecord, Stored
from s3mgrd.state.opening import DATABASE_NAME, open_database, open_memory, sqlite_errors

T = TypeVar("T")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_SAVE_MOUNT: Final = """
    insert into mounts (name, spec, generation, desired, owner_uid, owner_gid, created_at_ns,
                        privileged, provisional, forget, may_be_dirty, reason)
    values (:name, :spec, :generation, :desired, :owner_uid, :owner_gid, :created_at_ns,
            :privileged, :provisional, :forget, :may_be_dirty, :reason)
    on conflict (name) do update set
        spec = excluded.spec, generation = excluded.generation, desired = excluded.desired,
        owner_uid = excluded.owner_uid, owner_gid = excluded.owner_gid,
        created_at_ns = excluded.created_at_ns, privileged = excluded.privileged, provisional = excluded.provisional,
        forget = excluded.forget, may_be_dirty = excluded.may_be_dirty, reason = excluded.reason
"""
_SAVE_CREDENTIALS: Final = """
    insert into credentials (mount, access_key, secret_key, session_token) values (?, ?, ?, ?)
    on conflict (mount) do update set access_key = excluded.access_key,
        secret_key = excluded.secret_key, session_token = excluded.session_token
"""
_SAVE_OPERATION: Final = """
    insert into operations (id, body, owner_uid, finished_at_ns) values (?, ?, ?, ?)
    on conflict (id) do update set body = excluded.body, finished_at_ns = excluded.finished_at_ns
"""


def _to_ns(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000


def _from_ns(time_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


class StateStore:
    """`s3mgrd.mounts.store.Store` in state.db. Closed by leaving its context.

    Args:
        db: as `open_database` returns it; owned from here on.
        path: for messages.
        threaded: False runs the calls in place: for tests under trio's autojump clock, which does not see threads.
    """

    def __init__(self, db: Database, path: str, *, threaded: bool = True) -> None:
        self._db: Final = db
        self._path: Final = path
        self._limiter: Final = trio.CapacityLimiter(1) if threaded else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()

    async def load(self) -> Stored:
        """Return everything."""
        return await self._run(self._load)

    async def save_mount(self, record: MountRecord) -> None:
        """Create or replace one mount, its credentials included."""
        await self._run(lambda: self._save_mount(record))

    async def forget_mount(self, name: str) -> None:
        """Remove one mount and its credentials; none is a success."""
        await self._run(lambda: self._write("delete from mounts where name = ?", [(name,)]))

    async def save_operations(self, records: tuple[OperationRecord, ...]) -> None:
        """Create or replace operations."""
        rows = [
            (
                record.operation.id,
                msgspec.json.encode(record.operation).decode(),
                record.owner_uid,
                _to_ns(record.operation.finished_at) if record.operation.finished_at else None,
            )
            for record in records
        ]
        await self._run(lambda: self._write(_SAVE_OPERATION, rows))

    async def prune_operations(self, before: datetime) -> None:
        """Remove the operations that ended before *before*."""
        statement = "delete from operations where finished_at_ns < ?"
        await self._run(lambda: self._write(statement, [(_to_ns(before),)]))

    async def append_events(self, records: tuple[EventRecord, ...], *, keep: int) -> None:
        """Add events, and remove all but the last *keep*."""
        rows = [
            (record.event.cursor, msgspec.json.encode(record.event).decode(), record.owner_uid)
            for record in records
        ]
        await self._run(lambda: self._append_events(rows, keep))

    async def _run(self, call: Callable[[], T]) -> T:
        def guarded() -> T:
            with sqlite_errors(self._path):
                return call()

        if self._limiter is None:
            await trio.lowlevel.checkpoint()
            return guarded()
        return await trio.to_thread.run_sync(guarded, limiter=self._limiter)

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:  # Any: SQLite values
        with self._db.atomic():
            for row in rows:
                self._db.execute(statement, row)

    def _append_events(self, rows: list[tuple[int, str, int | None]], keep: int) -> None:
        with self._db.atomic():
            for row in rows:
                self._db.execute(
                    "insert into events (cursor, body, owner_uid) values (?, ?, ?)", row
                )
            self._db.execute(
                "delete from events where cursor not in (select cursor from events order by cursor desc limit ?)",
                (keep,),
            )

    def _save_mount(self, record: MountRecord) -> None:
        row = {
            "name": record.name,
            "spec": msgspec.json.encode(record.spec).decode(),
            "generation": record.generation,
            "desired": record.desired,
            "owner_uid": record.owner_uid,
            "owner_gid": record.owner_gid,
            "created_at_ns": _to_ns(record.created_at),
            "privileged": int(record.privileged),
            "provisional": int(record.provisional),
            "forget": int(record.forget),
            "may_be_dirty": int(record.may_be_dirty),
            "reason": record.reason,
        }
        keys = record.credentials
        with self._db.atomic():
            self._db.execute(_SAVE_MOUNT, row)
            if keys is None:
                self._db.execute("delete from credentials where mount = ?", (record.name,))
            else:
                self._db.execute(
                    _SAVE_CREDENTIALS,
                    (record.name, keys.access_key, keys.secret_key, keys.session_token),
                )

    def _load(self) -> Stored:
        sequence = self._db.execute("select seq from sqlite_sequence where name = 'events'")
        last = sequence.fetchone()
        return Stored(
            mounts=tuple(self._load_mounts()),
            operations=tuple(
                OperationRecord(operation=self._decode(body, Operation), owner_uid=owner)
                for body, owner in self._db.execute("select body, owner_uid from operations")
            ),
            events=tuple(
                EventRecord(event=self._decode(body, Event), owner_uid=owner)
                for body, owner in self._db.execute(
                    "select body, owner_uid from events order by cursor"
                )
            ),
            last_cursor=0 if last is None else last[0],
        )

    def _load_mounts(self) -> list[MountRecord]:
        keys = {
            row["mount"]: Credentials(
                access_key=row["access_key"],
                secret_key=row["secret_key"],
                session_token=row["session_token"],
            )
            for row in self._db.query("select * from credentials")
        }
        return [
            MountRecord(
                name=row["name"],
                spec=self._decode(row["spec"], MountSpec),
                generation=row["generation"],
                desired=row["desired"],
                owner_uid=row["owner_uid"],
                owner_gid=row["owner_gid"],
                created_at=_from_ns(row["created_at_ns"]),
                privileged=bool(row["privileged"]),
                provisional=bool(row["provisional"]),
                forget=bool(row["forget"]),
                may_be_dirty=bool(row["may_be_dirty"]),
                reason=row["reason"],
                credentials=keys.get(row["name"]),
            )
            for row in self._db.query("select * from mounts order by name")
        ]

    def _decode(self, text: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise Corrupt(
                f"{self._path} holds a {kind.__name__} that cannot be read: {error}",
                hint="Was it edited by hand, or written by another version? Restore its backup.",
            ) from error


def open_store(state_dir: str, *, boot_id: str) -> tuple[StateStore, list[str]]:
    """Open the state of *state_dir*; see `open_database` for errors and warnings."""
    db, warnings = open_database(state_dir, boot_id=boot_id)
    return StateStore(db, f"{state_dir}/{DATABASE_NAME}"), warnings


def memory_store() -> AbstractContextManager[StateStore]:
    """Make a store that forgets everything and needs no thread: for tests."""
    return StateStore(open_memory(), ":memory:", threaded=False)
