"""Whether an existing mount.db may be used, and how one that may not is set aside.

All of it is checked whenever a worker opens it, before anything of it is believed: that its pages are whole, and that
each index has what its table has, without which names would be missing. That costs 0.9 s for a million entries, once in a
worker's life, and what a damaged tree shows or deletes cannot be taken back. What no check of SQLite's finds is another value
in a column of which there is no index.

A large file that is to the nanosecond as the last worker closed it, in good order, was written to by nobody. It is used at once
and checked beside that (`MountDatabase.check`): what it may be is rotten on the disk, which SQLite notices for itself
in most of what it reads, and the check in the rest.
"""

import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from s3mgrd.cache.schema import APPLICATION_ID, SCHEMA_VERSION
from s3mgrd.cache.witness import Witness
from s3mgrd.errors import Corrupt

OPENINGS: Final = "openings"
"""In meta: how often a worker opened the file (see `s3mgrd.cache.witness`)."""
_CACHE_ONLY: Final = frozenset({"inodes", "hidden", "calls", "meta"})
"""Tables that hold nothing which S3 lacks, but for the rows of inodes that `_PENDING_INODES` finds."""
_PENDING_INODES: Final = (
    "SELECT 1 FROM inodes WHERE attributes_dirty = 1 OR marker = 2 "
    "OR (remote_key IS NOT NULL AND name IS NOT NULL) LIMIT 1"
)


LARGE_BYTES: Final = 16 << 20
"""Up to so much is checked before it is used in any case: 0.1 s."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A mount.db that is not trusted: where it was moved to (None: it was gone), and what was wrong with it."""

    path: Path | None
    reason: str

    def __str__(self) -> str:
        where = "" if self.path is None else f"; it was set aside as {self.path.name}"
        return f"mount.db could not be trusted: {self.reason}{where}"


def why_distrusted(path: Path, witness: Witness, *, is_checked_later: bool = False) -> str:
    """Say why the database at *path* must not be used; empty: it may, or there never was one.

    Args:
        path: of the file.
        witness: of the same directory.
        is_checked_later: all of it; see `may_wait`.

    Raises:
        Corrupt: a newer version wrote it, and it holds changes that S3 lacks; nothing was touched.
    """
    reason = witness.why_distrusted(path)
    if reason or not path.exists():
        return reason
    try:
        # Read-only: the last connection that may write folds the log back and removes it as it closes, and a crash
        # right after that would look as if the log had been lost.
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            if application != APPLICATION_ID:
                # SQLite takes an empty file for a new database; ours is never empty once it was made.
                return (
                    "it is another program's database"
                    if application
                    else "it is cut off at its beginning"
                )
            if not is_checked_later and (harm := what_is_wrong(connection)):
                return harm
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                return _newer(path, version, connection)
            row = connection.execute("SELECT value FROM meta WHERE name = ?", (OPENINGS,))
            openings = row.fetchone()
            return witness.why_outdated(0 if openings is None else int(openings[0]))
    except (sqlite3.DatabaseError, ValueError) as error:
        return str(error)


def may_wait(path: Path, witness: Witness) -> bool:
    """Whether a database may be used before all of it is checked; asked before anybody opens it."""
    return path.exists() and path.stat().st_size > LARGE_BYTES and witness.is_as_it_was_closed(path)


def what_is_wrong(connection: sqlite3.Connection) -> str:
    """Check all of a database; empty: nothing is wrong with it. Raises sqlite3.DatabaseError: it cannot even be checked."""
    verdict: Any = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return "" if verdict == "ok" else str(verdict)


def _newer(path: Path, version: int, connection: sqlite3.Connection) -> str:
    """Judge a whole database of a schema that is not ours yet."""
    newer = f"a newer s3mgr wrote it (schema {version}, this one knows {SCHEMA_VERSION})"
    if _holds_changes(connection):
        raise Corrupt(
            f"{path} cannot be used: {newer}, and it holds changes that S3 does not have",
            hint="install the newer version again and unmount with it first, so that nothing is left to upload",
        )
    return newer


def _holds_changes(connection: sqlite3.Connection) -> bool:
    """Whether a whole database of a schema that is not ours may hold what S3 lacks; in doubt it does."""
    tables = {
        str(name)
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
    }
    tables -= {name for name in tables if name.startswith("_sqlite_")}  # of the migrations
    with suppress(sqlite3.OperationalError):  # a column or table that the newer schema has not
        if connection.execute(_PENDING_INODES).fetchone() is not None:
            return True
        return any(
            connection.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone() is not None  # noqa: S608 - names from the schema
            for table in tables - _CACHE_ONLY
        )
    return True


def set_aside(path: Path) -> Path | None:
    """Rename the database and its log to names that nothing reads; never deleted. None: neither is there."""
    parts = [s for s in ("-wal", "-shm", "") if path.with_name(path.name + s).exists()]
    if not parts:
        return None
    target = free_name(path)
    for suffix in parts:
        path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    return target


def free_name(path: Path) -> Path:
    """Return a name beside *path* that nothing reads and nothing has."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    serial = 1
    while True:
        target = path.with_name(
            f"{path.name}.damaged-{stamp}" + (f"-{serial}" if serial > 1 else "")
        )
        if not any(target.parent.glob(f"{target.name}*")):
            return target
        serial += 1  # two in one second
