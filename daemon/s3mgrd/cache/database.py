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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import trio
from sqlite_utils import Database

from s3mgrd.cache.damage import (
    OPENINGS,
    SetAside,
    may_wait,
    set_aside,
    what_is_wrong,
    why_distrusted,
)
from s3mgrd.cache.schema import APPLICATION_ID, SCHEMA_VERSION, migrations
from s3mgrd.cache.witness import Witness
from s3mgrd.errors import Corrupt

CHECKPOINT_PAGES = 2000
"""Fold the log back when it has so many pages (8 MB)."""
CHECK_AFTER_S = 10.0
"""Programs that waited for this worker come first."""
LOST_INODES = 1 << 20
"""A log that a crash left may have a damaged end, which SQLite takes for its end. So many inode numbers are left out then:
more than the log has room for between two checkpoints."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNFIT = _DAMAGE | {sqlite3.SQLITE_ERROR}
"""A statement of a migration does not fit the tables that there are."""

Row = tuple[Any, ...]  # Any: SQLite's values are of several types


class MountDatabase:
    """mount.db of one mount. Every sqlite3 error but "disk full" leaves as `Corrupt`; "disk full" as OSError(ENOSPC)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        checkpointer: sqlite3.Connection,
        witness: Witness,
        *,
        checker: sqlite3.Connection | None = None,
        file: int | None = None,
    ) -> None:
        self._connection = connection
        self._checker = checker
        """Of a file that has yet to be checked."""
        self._file = file
        """To see how it is left. Closed last: that takes every lock on the file away."""
        self._checkpointer = checkpointer
        self._aside = trio.Lock()
        self._witness = witness
        self.damage = ""
        """What was found to be wrong with the file while it was in use."""
        self.damaged = trio.Event()
        self._transaction: Final = Transaction(self)
        self._depth = 0
        self._rollbacks = 0
        self._beside = 0
        """How many of the rows changed were of other tables than inodes, or are known to who remembers rows of inodes."""
        self._written = 0
        self._soon: list[tuple[str, Sequence[object]]] = []
        """What `change_soon` was given and is not committed yet."""
        self._afterwards: list[Callable[[], object]] = []

    def execute(self, query: str, arguments: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run a query that changes nothing. Changes go through `transaction`."""
        # sqlite3 keeps 128 prepared statements by connection; ours are fewer.
        try:
            return self._connection.execute(query, arguments)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    @property
    def changes(self) -> int:
        """A number that grows with every row changed through here, also in what was rolled back, and with every rollback."""
        return self._connection.total_changes + self._rollbacks

    @property
    def node_changes(self) -> int:
        """As `changes`, without those made by `change_beside`."""
        return self._connection.total_changes + self._rollbacks - self._beside

    def change_beside(self, query: str, arguments: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run a statement that changes no row of inodes, or of which who remembers such rows knows what it changes.

        Alone it is a transaction of its own, otherwise a part of the one under way.
        """
        if not self._depth:
            with self.transaction():
                return self.change_beside(query, arguments)
        connection = self._connection
        before = connection.total_changes
        cursor = connection.execute(query, arguments)
        self._beside += connection.total_changes - before
        return cursor

    def change_soon(self, query: str, arguments: Sequence[object] = ()) -> None:
        """Run a statement as `change_beside` at the beginning of the next transaction, whoever makes that.

        The caller sees to it that `settle` is called before the next checkpoint, and acknowledges the change with `when_settled`.
        """
        self._soon.append((query, arguments))

    def when_settled(self, then: Callable[[], object]) -> None:
        """Call *then* once all that `change_soon` was given is committed; at once where it is."""
        if self._soon:
            self._afterwards.append(then)
        else:
            then()

    def settle(self) -> None:
        """Make what `change_soon` was given. On a full disk it stays for later, and nobody is told that it is done."""
        if self._soon:
            with suppress(OSError, Corrupt), self.transaction():
                pass

    def transaction(self) -> "Transaction":
        """Make what happens inside one change: all of it or nothing. Nests into the outermost. No checkpoint inside."""
        return self._transaction

    def _begin(self) -> sqlite3.Connection:
        self._depth += 1
        if self._depth == 1:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for query, arguments in self._soon:
                    self.change_beside(query, arguments)
            except sqlite3.Error as error:
                self._end(error)
        return self._connection

    def _end(self, error: BaseException | None) -> None:
        """Commit what `_begin` began, or roll it back where *error* ended it."""
        self._depth -= 1
        if self._depth:
            return
        if error is None:
            try:
                self._connection.execute("COMMIT")
            except BaseException as failure:
                self._roll_back(failure)
                raise
            self._written += 1
            self._settled()
        else:
            self._roll_back(error)

    def _roll_back(self, error: BaseException) -> None:
        self._rollbacks += 1
        if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
            self._connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise self._translated(error) from error

    def _settled(self) -> None:
        if self._soon:
            afterwards, self._afterwards = self._afterwards, []
            self._soon.clear()
            for then in afterwards:
                then()

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

    def used_bytes(self) -> int:
        """Size of what is in use of the main file."""
        free = self.execute("PRAGMA freelist_count").fetchone()[0]
        return self.size_bytes() - int(free) * int(self.execute("PRAGMA page_size").fetchone()[0])

    def shrink(self, pages: int) -> bool:
        """Cut up to *pages* free pages off the file, for which others move; whether there are more."""
        if not self.execute("PRAGMA freelist_count").fetchone()[0]:
            return False
        before = self.size_bytes()
        # Each row that is fetched is a page that went.
        self.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
        self._written += 1
        return self.size_bytes() < before

    @property
    def wants_checkpoint(self) -> bool:
        """Whether enough was written since the last checkpoint for another to pay."""
        return self._written > CHECKPOINT_PAGES // 4

    async def checkpoint(self) -> None:
        """Fold the log back into the file, in a thread; writers go on."""
        self._written = 0
        await self.fetch_aside("PRAGMA wal_checkpoint(PASSIVE)")

    async def fetch_aside(self, query: str, arguments: Sequence[object] = ()) -> list[Row]:
        """Run a query that takes long in a thread, on a connection of its own, and return its rows; the loop goes on."""
        async with self._aside:
            try:
                return await trio.to_thread.run_sync(
                    lambda: self._checkpointer.execute(query, arguments).fetchall()
                )
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def close(self) -> None:
        """Fold the log back and close; what was written is safe either way."""
        self._witness.closed()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if self._checker is not None:
            self._checker.close()
        self._checkpointer.close()
        self._connection.close()
        if self._file is not None:
            self._witness.closed(os.fstat(self._file))
            os.close(self._file)
        self._witness.close()

    # Trust

    async def check(self) -> None:
        """Check what was not when the file was opened, in a thread, a while after; then it is as if it had been met in use."""
        checker = self._checker
        if checker is None:
            return
        await trio.sleep(CHECK_AFTER_S)
        self._checker = None  # whose it is to close goes to the thread

        def look() -> str:
            with closing(checker):
                return what_is_wrong(checker)

        try:
            self._note_damage(await trio.to_thread.run_sync(look, abandon_on_cancel=True))
        except trio.Cancelled:
            checker.interrupt()
            raise
        except sqlite3.DatabaseError as error:
            self._note_damage(str(error))

    def _note_damage(self, what: str) -> None:
        if what and not self.damage:
            self.damage = what
            self._witness.damaged(what)
            self.damaged.set()

    def note_opening(self, *, is_new: bool) -> None:
        """Count this opening, here first, then at the witness; make inode numbers begin above all that were given."""
        before = self._witness.before
        last = 0
        row = self.execute("SELECT seq FROM sqlite_sequence WHERE name = 'inodes'").fetchone()
        if is_new:
            last = self._witness.next_first_inode() - 1
        elif row is not None:
            was_cut_off = before is not None and before.state == "open"
            last = int(row[0]) + (LOST_INODES if was_cut_off else 0)
        openings = max(
            int(self.get_meta(OPENINGS) or 0), 0 if before is None else before.openings
        ) + 1  # fmt: skip
        with self.transaction() as db:
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'inodes'")
            db.execute("INSERT INTO sqlite_sequence VALUES ('inodes', ?)", (last,))
            self.set_meta(OPENINGS, str(openings))
        self._witness.opened(openings=openings, first_inode=last + 1)

    async def wait_for_the_end_if_damaged(self, error: BaseException) -> None:
        """Never return if the file is damaged: whatever failed may have failed of it, and the next worker is asked again.

        Rows are fetched from cursors by whoever asked, so *error* may be SQLite's own.
        """
        if isinstance(error, sqlite3.Error):
            self._translated(error)
        if self.damage:
            await trio.sleep_forever()

    def _translated(self, error: sqlite3.Error) -> OSError | Corrupt:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if code in _DAMAGE:
            self._note_damage(str(error))
        return Corrupt(
            f"mount.db cannot be used: {error}",
            hint="unmount, then mount again: it is checked then",
        )


class Transaction:
    """What `MountDatabase.transaction` returns. A generator would cost a tenth of a small transaction."""

    def __init__(self, database: MountDatabase) -> None:
        self._database: Final = database

    def __enter__(self) -> sqlite3.Connection:
        return self._database._begin()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._database._end(error)


def open_database(path: Path) -> tuple[MountDatabase, SetAside | None]:
    """Open or create mount.db; one that cannot be trusted is set aside, never deleted, and a new one made.

    Raises:
        Corrupt: a newer version wrote the file, and it holds what S3 lacks; nothing was touched.
    """
    witness = Witness(path.with_name("mount.witness"))
    try:
        is_unchecked = may_wait(path, witness)
        reason = why_distrusted(path, witness, is_checked_later=is_unchecked)
    except Corrupt:
        witness.close()
        raise
    aside = SetAside(set_aside(path), reason) if reason else None
    is_new = not path.exists()
    try:
        main, checkpointer = _prepare(path)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _UNFIT:
            raise
        # Every check was passed, and yet it is not what its version says: as good as damaged.
        aside, is_new = SetAside(set_aside(path), str(error)), True
        main, checkpointer = _prepare(path)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    checker = _connect(path) if is_unchecked and aside is None else None
    database = MountDatabase(main, checkpointer, witness, checker=checker, file=file)
    database.note_opening(is_new=is_new)
    return database, aside


def _prepare(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Open both connections, and bring the schema up to ours."""
    with ExitStack() as opened:
        main = opened.enter_context(closing(_connect(path)))
        checkpointer = opened.enter_context(closing(_connect(path)))
        if main.execute("PRAGMA application_id").fetchone()[0] == 0:
            main.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            main.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        migrations.apply(Database(main, execute_plugins=False))
        if main.in_transaction:
            main.execute("COMMIT")
        checkpointer.execute("SELECT count(*) FROM meta").fetchone()
        opened.pop_all()
        return main, checkpointer


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # Only a file that has no table yet takes it up: free pages can be given back in small steps.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")  # KiB
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection
