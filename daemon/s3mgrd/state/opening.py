"""Open state.db, or say why not: a damaged, foreign or newer file is refused, never replaced.

A new file is made under another name and renamed when it is complete, so an empty or half-made state.db is
always damage. SQLite itself would take an empty file for an empty database, and would mix the write-ahead log
of a file that is gone into a new one.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlite_utils import Database

from s3mgr import __version__
from s3mgrd.errors import Corrupt, Denied, S3mgrError, Unavailable
from s3mgrd.state.schema import APPLICATION_ID, MIGRATIONS, newer_migrations

DATABASE_NAME: Final = "state.db"
JOURNALS_DIRECTORY: Final = "mounts"  # <state-dir>/mounts/<name>/mount.db, made by workers
JOURNAL_NAME: Final = "mount.db"
BUSY_TIMEOUT_S: Final = 5.0  # only a person with the sqlite3 shell can be in the way
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_DAMAGE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_RESCUE: Final = (
    "Stop s3mgrd, move state.db, state.db-wal and state.db-shm aside, and restore them from a backup; without one, "
    "start without them and declare the mounts again under the same names: what they have not uploaded yet is in "
    "their own journals and is kept."
)


@contextmanager
def sqlite_errors(path: str) -> Iterator[None]:
    """Raise what SQLite raises as `Corrupt` (the file is damaged) or `Unavailable` (disk full, no access, busy)."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if code is not None else None
        if primary in _DAMAGE_CODES:
            raise Corrupt(f"{path} is damaged: {error}", hint=_RESCUE) from error
        raise Unavailable(
            f"{path} cannot be used: {error}", hint="Look at the disk: space, mode, errors."
        ) from error


def open_database(state_dir: str, *, boot_id: str) -> tuple[Database, list[str]]:
    """Open ``<state_dir>/state.db``, make it where there is none, and bring it up to date.

    Returns:
        The database, and warnings that the user must see.

    Raises:
        Corrupt: truncated, not ours, or from a newer version; the hint says what to do.
        Denied, Unavailable: it cannot be read or written.
    """
    path = f"{state_dir}/{DATABASE_NAME}"
    warnings: list[str] = []
    try:
        if not os.path.lexists(path):
            warnings = _warn_of_orphans(state_dir)
            _create(state_dir)
        _check_header(path)
        os.chmod(path, 0o600)
    except OSError as error:
        raise _os_failure(path, error) from error
    with sqlite_errors(path):
        db = _connect(path)
        try:
            _check_content(db, path)
            MIGRATIONS.apply(db)
            with db.atomic():
                for key, value in (("boot_id", boot_id), ("version", __version__)):
                    db.execute(
                        "insert into meta values (?, ?) on conflict (key) do update set value = excluded.value",
                        (key, value),
                    )
        except BaseException:
            db.close()
            raise
    return db, warnings


def read_mountpoints(state_dir: str) -> set[str]:
    """Return where the mounts of *state_dir* belong, without changing anything, and also while a daemon has it open.

    Raises:
        Corrupt, Unavailable: it cannot be read.
    """
    path = f"{state_dir}/{DATABASE_NAME}"
    address = f"file:{quote(path)}?mode=ro"
    with (
        sqlite_errors(path),
        closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as db,
    ):
        rows = db.execute("select json_extract(spec, '$.mountpoint') from mounts")
        return {mountpoint for (mountpoint,) in rows}


def open_memory() -> Database:
    """Make a database that lives as long as the process; for tests of the domain."""
    connection = sqlite3.connect(":memory:")
    db = Database(connection, execute_plugins=False)
    db.execute("pragma foreign_keys = on")
    MIGRATIONS.apply(db)
    return db


def _connect(path: str) -> Database:
    # The connection moves between worker threads of trio, one at a time: see `StateStore`.
    connection = sqlite3.connect(path, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    db = Database(connection, execute_plugins=False)  # no plugin of a stranger in a root daemon
    db.execute("pragma journal_mode = wal")
    # What was promised is on the disk: an acknowledged spec survives a power cut.
    db.execute("pragma synchronous = full")
    db.execute("pragma secure_delete = on")  # keys that were deleted do not linger in free pages
    db.execute("pragma foreign_keys = on")
    return db


def _create(state_dir: str) -> None:
    path, fresh = f"{state_dir}/{DATABASE_NAME}", f"{state_dir}/{DATABASE_NAME}.new"
    for suffix in ("", "-wal", "-shm"):
        Path(fresh + suffix).unlink(missing_ok=True)
    # A log without its file: SQLite would replay it into the new one.
    if os.path.lexists(path + "-wal"):
        os.replace(path + "-wal", path + "-wal.orphan")
    Path(path + "-shm").unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with sqlite_errors(fresh):
        db = _connect(fresh)
        db.execute(f"pragma application_id = {APPLICATION_ID}")
        MIGRATIONS.apply(db)
        db.close()  # checkpoints, and removes the log
    _sync(fresh)
    os.rename(fresh, path)
    _sync(state_dir)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _warn_of_orphans(state_dir: str) -> list[str]:
    names = sorted(
        p.parent.name for p in Path(state_dir, JOURNALS_DIRECTORY).glob(f"*/{JOURNAL_NAME}")
    )
    if not names:
        return []
    return [
        f"{state_dir}/{DATABASE_NAME} was missing and a new one was made, but there is data of earlier mounts: "
        f"{', '.join(names)}; mount them again under these names, with the same bucket, and what they have not "
        "uploaded yet is uploaded"
    ]


def _check_header(path: str) -> None:
    """Refuse, without touching it, what cannot be a whole file of ours.

    The header is at fixed offsets (SQLite's file format, 1.3): page size at 16, number of pages at 28,
    application id at 68.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        header = os.read(fd, _HEADER_BYTES)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if len(header) < _HEADER_BYTES:
        raise Corrupt(f"{path} is truncated to {len(header)} bytes", hint=_RESCUE)
    if not header.startswith(_MAGIC):
        raise Corrupt(f"{path} is not an SQLite database", hint=_RESCUE)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise Corrupt(f"{path} is a database of another program", hint=_RESCUE)
    # A crash in the middle of a checkpoint leaves the file short, and its log makes that good. Without a log nothing
    # does, and SQLite would take a missing end of the last page for zeros.
    log = Path(path + "-wal")
    if log.exists() and log.stat().st_size > 0:
        return
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    expected = page_bytes * int.from_bytes(header[28:32], "big")
    if size != expected:
        raise Corrupt(f"{path} has {size} bytes instead of {expected}", hint=_RESCUE)


def _check_content(db: Database, path: str) -> None:
    complaint = db.execute("pragma integrity_check(1)").fetchone()[0]
    if complaint != "ok":
        raise Corrupt(f"{path} is damaged: {complaint}", hint=_RESCUE)
    newer = newer_migrations(db)
    if newer:
        raise Corrupt(
            f"{path} was written by a newer version of s3mgr (it has {', '.join(newer)})",
            hint=f"This is s3mgr {__version__}; start the newer one, or restore the state directory's backup "
            "from before the upgrade.",
        )


def _os_failure(path: str, error: OSError) -> S3mgrError:
    if isinstance(error, PermissionError):
        return Denied(f"cannot use {path}: {error.strerror}", hint="It must belong to this user.")
    return Unavailable(f"cannot use {path}: {error.strerror}")
