"""Open mount.db and run transactions on it.

Concurrency: one connection, used on the trio thread only. Its statements take microseconds (nothing is
synced: what must survive is the death of a process, and the kernel keeps written pages for that), less than a
hop to a thread would. The write-ahead log is folded back by a second connection in a thread, because that
does sync: `checkpoint`. Both connections are opened, and both files touched, before the worker gives up the right
to find them by path.
"""

import errno
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from sqlite_utils import Database

from s3mgrd.cache.schema import APPLICATION_ID, SCHEMA_VERSION, migrations
from s3mgrd.errors import Corrupt

CHECKPOINT_PAGES = 2000
"""Fold the log back when it has so many pages (8 MB)."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A damaged mount.db that was moved out of the way: where to, and what was wrong with it."""

    path: Path
    reason: str


class MountDatabase:
    """mount.db of one mount. Every sqlite3 error but "disk full" leaves as `Corrupt`; "disk full" as OSError(ENOSPC)."""

    def __init__(self, connection: sqlite3.Connection, checkpointer: sqlite3.Connection) -> None:
        self._connection = connection
        self._checkpointer = checkpointer
        self._depth = 0
        self._rollbacks = 0
        self._written = 0

    def execute(self, query: str, arguments: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run a query that changes nothing. Changes go through `transaction`."""
        # sqlite3 keeps 128 prepared statements by connection; ours are fewer.
        try:
            return self._connection.execute(query, arguments)
        except sqlite3.Error as error:
            raise _translated(error) from error

    @property
    def changes(self) -> int:
        """A number that grows with every row changed through here, also in what was rolled back, and with every rollback."""
        return self._connection.total_changes + self._rollbacks

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make what happens inside one change: all of it or nothing. Nests into the outermost. No checkpoint inside."""
        if self._depth:
            self._depth += 1
            try:
                yield self._connection
            finally:
                self._depth -= 1
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException as error:
            self._rollbacks += 1
            if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise _translated(error) from error
            raise
        finally:
            self._depth = 0
        self._written += 1

    def get_meta(self, name: str) -> str | None:
        """Return a fact about the file, None where it was never set."""
        row = self.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        """Remember a fact about the file."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def size_bytes(self) -> int:
        """Size of the main file; the log is not counted."""
        pages = self.execute("PRAGMA page_count").fetchone()[0]
        return int(pages) * int(self.execute("PRAGMA page_size").fetchone()[0])

    @property
    def wants_checkpoint(self) -> bool:
        """Whether enough was written since the last checkpoint for another to pay."""
        return self._written > CHECKPOINT_PAGES // 4

    async def checkpoint(self) -> None:
        """Fold the log back into the file, in a thread; writers go on."""
        self._written = 0
        await trio.to_thread.run_sync(_checkpoint, self._checkpointer)

    def close(self) -> None:
        """Fold the log back and close; what was written is safe either way."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._checkpointer.close()
        self._connection.close()


def _translated(error: sqlite3.Error) -> OSError | Corrupt:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Corrupt(
        f"mount.db cannot be used: {error}", hint="unmount, then mount again: it is checked then"
    )


def _checkpoint(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def open_database(path: Path) -> tuple[MountDatabase, SetAside | None]:
    """Open or create mount.db; a damaged one is set aside beside it, never trusted and never deleted.

    Raises:
        Corrupt: the file was written by a newer version of s3mgr; nothing was touched.
    """
    aside = None
    if path.exists():
        reason = _damage(path)
        if reason:
            aside = SetAside(_set_aside(path), reason)
    main, checkpointer = _connect(path), _connect(path)
    if main.execute("PRAGMA application_id").fetchone()[0] == 0:
        main.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        main.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    migrations.apply(Database(main, execute_plugins=False))
    if main.in_transaction:
        main.execute("COMMIT")
    checkpointer.execute("SELECT count(*) FROM meta").fetchone()
    return MountDatabase(main, checkpointer), aside


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")  # KiB
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection


def _damage(path: Path) -> str:
    """Say what is wrong with an existing file; empty: nothing."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if application != APPLICATION_ID:
                # SQLite takes an empty file for a new database; ours is never empty once it was made.
                return (
                    "it is another program's database"
                    if application
                    else "it is cut off at its beginning"
                )
            if version > SCHEMA_VERSION:
                raise Corrupt(
                    f"{path} was written by a newer s3mgr (schema {version}, this one knows {SCHEMA_VERSION})",
                    hint="install the newer version again, or unmount with it first so that nothing is left to upload",
                )
            verdict: Any = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            return "" if verdict == "ok" else str(verdict)
    except sqlite3.DatabaseError as error:
        return str(error)


def aside_name(path: Path) -> Path:
    """Return a name beside *path* that nothing reads."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return path.with_name(f"{path.name}.damaged-{stamp}")


def _set_aside(path: Path) -> Path:
    """Rename the database and its log to names that nothing reads."""
    target = aside_name(path)
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(target.with_name(target.name + suffix))
    return target
