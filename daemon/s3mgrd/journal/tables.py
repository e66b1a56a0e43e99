"""The journal's tables in mount.db: staged files, uploads begun, deletes, repeated calls. Directory renames: `moves`.

SQL and nothing else; the columns are explained in `s3mgrd.cache.schema`.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from s3mgrd.cache.database import MountDatabase

HURRIED_NS: Final = 0
"""A retry_ns up to here is no time: somebody wants these uploads before all others, even while the others are held back."""
FIRST_NS: Final = -(1 << 63)
KEPT_CALLS: Final = 64
"""So many calls that are answered may stay: each statement that forgets some costs as much as the one that remembers one."""

ConditionKind = Literal["match", "absent", "always"]
ConflictReason = Literal["replaced", "removed", "exists", "recovered"]


class StagedRow(NamedTuple):
    """One row of staged."""

    inode: int
    dirty: int
    base_etag: str | None
    base_size: int
    condition: ConditionKind
    conflict: int
    error: str | None
    since_ns: int
    tries: int
    retry_ns: int | None


class ConflictRow(NamedTuple):
    """One row of conflicts."""

    inode: int
    path: str
    reason: ConflictReason
    winner_etag: str | None
    missing: int
    lost_ns: int


class UploadRow(NamedTuple):
    """One row of uploads."""

    inode: int
    key: str
    upload_id: str
    part_size: int
    size: int
    grows: int = 0
    metadata: str | None = None


class PartRow(NamedTuple):
    """One row of parts."""

    inode: int
    number: int
    etag: str
    size: int


class BeginningRow(NamedTuple):
    """One row of beginnings whose request is over."""

    number: int
    key: str
    since_ns: int
    until_ns: int


_DELETABLE: Final = (
    "SELECT * FROM deletes WHERE holder IS NULL AND NOT EXISTS "
    "(SELECT 1 FROM inodes WHERE remote_key = key AND name IS NOT NULL) AND NOT EXISTS "
    "(SELECT 1 FROM parked WHERE parked.key = deletes.key)"
)


_QUEUE: Final = (
    "UPDATE staged SET retry_ns = ? "
    "WHERE dirty = 1 AND conflict = 0 AND retry_ns IS NULL AND inode = ?"
)


class DeleteRow(NamedTuple):
    """One row of deletes."""

    key: str
    etag: str | None
    holder: int | None
    since_ns: int


class WriteRow(NamedTuple):
    """One row of writes."""

    key: str
    size: int
    mtime: str | None
    etag: str | None


class Journal:
    """The journal of one mount."""

    def __init__(self, database: MountDatabase) -> None:
        self._database = database
        self._execute = database.execute
        self._change = database.change_beside
        self._oldest_call = 0
        """Those below are forgotten."""

    # Staged files

    def staged(self, inode: int) -> StagedRow | None:
        """Return the staging row of an inode."""
        row = self._execute("SELECT * FROM staged WHERE inode = ?", (inode,)).fetchone()
        return None if row is None else StagedRow._make(row)

    def is_dirty(self, inode: int) -> bool:
        """Whether an inode has staged data that S3 is to get."""
        row = self.staged(inode)
        return row is not None and bool(row.dirty)

    def all_staged(self) -> list[StagedRow]:
        """Return every staging row."""
        return [
            StagedRow._make(row) for row in self._execute("SELECT * FROM staged ORDER BY since_ns")
        ]

    def dirty_staged(self) -> list[StagedRow]:
        """Return the staging rows whose data S3 lacks, oldest first."""
        return [
            StagedRow._make(row)
            for row in self._execute("SELECT * FROM staged WHERE dirty = 1 ORDER BY since_ns")
        ]

    def failed_staged(self, *, limit: int) -> list[StagedRow]:
        """Return up to *limit* staging rows whose upload failed, oldest first."""
        rows = self._execute(
            "SELECT * FROM staged WHERE dirty = 1 AND error IS NOT NULL ORDER BY since_ns LIMIT ?",
            (limit,),
        )
        return [StagedRow._make(row) for row in rows]

    def put_staged(
        self,
        inode: int,
        *,
        dirty: bool,
        base_etag: str | None,
        base_size: int,
        condition: ConditionKind,
        now_ns: int,
    ) -> None:
        """Insert or replace the staging row of an inode, without an error."""
        self._change(
            "INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?, 0, NULL, ?, 0, NULL)",
            (inode, int(dirty), base_etag, base_size, condition, now_ns),
        )

    def fail_staged(self, inode: int, error: str, *, conflict: bool, retry_ns: int | None) -> None:
        """Record that an upload failed."""
        self._change(
            "UPDATE staged SET error = ?, conflict = ?, retry_ns = ?, tries = tries + 1 WHERE inode = ?",
            (error, int(conflict), retry_ns, inode),
        )

    def set_condition(self, inode: int, condition: ConditionKind) -> None:
        """Change what the upload of an inode must find."""
        self._change(
            "UPDATE staged SET condition = ?, conflict = 0 WHERE inode = ?", (condition, inode)
        )

    def rebase_staged(self, inode: int, before: str | None, after: str) -> None:
        """Note that the version which staged data is a change of has another ETag: it was copied by S3."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE staged SET base_etag = ? WHERE inode = ? AND base_etag = ?",
                (after, inode, before),
            )

    def clean_staged(self, inode: int) -> None:
        """Note that S3 need not get what is staged: the file was removed."""
        with self._database.transaction():
            self.abandon_upload(inode)
            self._change(
                "UPDATE staged SET dirty = 0, error = NULL, conflict = 0 WHERE inode = ?", (inode,)
            )

    def retry_staged(self, inode: int, now_ns: int) -> None:
        """Make the upload of an inode due at *now_ns*."""
        self._change(
            "UPDATE staged SET retry_ns = ? WHERE dirty = 1 AND conflict = 0 AND inode = ?",
            (now_ns, inode),
        )

    def queue_staged(self, inode: int, at_ns: int) -> bool:
        """Make the upload of an inode due at *at_ns*, if S3 is to get its data and it is not due at any time; whether that was so."""
        return self._change(_QUEUE, (at_ns, inode)).rowcount > 0

    def queue_staged_soon(self, inode: int, at_ns: int) -> None:
        """As `queue_staged`, with the next transaction: see `MountDatabase.change_soon`."""
        self._database.change_soon(_QUEUE, (at_ns, inode))

    def retry_all_staged(self, now_ns: int) -> None:
        """Make every upload due at *now_ns*; those that are due already keep their places in the order."""
        self._change(
            "UPDATE staged SET retry_ns = coalesce(min(retry_ns, ?1), ?1) WHERE dirty = 1 AND conflict = 0",
            (now_ns,),
        )

    def hurry_staged(self, inode: int) -> None:
        """Make an upload the next, before those that were hurried earlier."""
        self._change(
            "UPDATE staged SET retry_ns = "
            "(SELECT min(coalesce(min(retry_ns), ?1), ?1) - 1 FROM staged WHERE dirty = 1 AND conflict = 0) "
            "WHERE dirty = 1 AND conflict = 0 AND inode = ?2",
            (HURRIED_NS, inode),
        )

    def queued_staged(self, after: tuple[int, int] | None, *, limit: int) -> list[StagedRow]:
        """Return up to *limit* rows whose upload is due now or later, in their order; *after* is a retry_ns and an inode."""
        rows = self._execute(
            "SELECT * FROM staged WHERE dirty = 1 AND conflict = 0 AND retry_ns >= ?1 AND (retry_ns, inode) > (?1, ?2) "
            "ORDER BY retry_ns, inode LIMIT ?3",
            (*(after or (FIRST_NS, 0)), limit),
        )
        return [StagedRow._make(row) for row in rows]

    def refused_staged(self) -> list[StagedRow]:
        """Return the rows with a name that S3 will never take as they are, in the order of inodes."""
        rows = self._execute("SELECT * FROM staged WHERE dirty = 1 AND conflict = 1 ORDER BY inode")
        return [StagedRow._make(row) for row in rows]

    def hold_staged(self, inode: int) -> None:
        """Note that a file is being written again: its upload is not due before it is closed."""
        self._change(
            "UPDATE staged SET retry_ns = NULL, error = NULL, tries = 0 WHERE inode = ?",
            (inode,),
        )

    def drop_staged(self, inode: int) -> None:
        """Forget the staging row of an inode, and abandon the upload begun for it."""
        with self._database.transaction():
            self._change("DELETE FROM staged WHERE inode = ?", (inode,))
            self._change("DELETE FROM parked WHERE inode = ?", (inode,))
            self.abandon_upload(inode)

    def forget_staged(self, inode: int) -> None:
        """As `drop_staged`, of a file of which nothing was ever sent in parts."""
        self._change("DELETE FROM staged WHERE inode = ?", (inode,))

    # Conflict copies

    def add_conflict(self, row: ConflictRow) -> None:
        """Turn the staged data of an inode, which is losing its name, into a conflict copy."""
        with self._database.transaction():
            self._change("INSERT INTO conflicts VALUES (?, ?, ?, ?, ?, ?)", row)
            self._change(
                "UPDATE staged SET dirty = 0, conflict = 1, error = NULL, retry_ns = NULL WHERE inode = ?",
                (row.inode,),
            )
            self.abandon_upload(row.inode)

    def conflict(self, inode: int) -> ConflictRow | None:
        """Return one conflict copy."""
        row = self._execute("SELECT * FROM conflicts WHERE inode = ?", (inode,)).fetchone()
        return None if row is None else ConflictRow._make(row)

    def conflicts(self, *, after: int, limit: int) -> list[ConflictRow]:
        """Return up to *limit* conflict copies with ids above *after*, in the order of these."""
        rows = self._execute(
            "SELECT * FROM conflicts WHERE inode > ? ORDER BY inode LIMIT ?", (after, limit)
        )
        return [ConflictRow._make(row) for row in rows]

    def drop_conflict(self, inode: int) -> None:
        """Forget that the staged data of an inode is a conflict copy."""
        self._change("DELETE FROM conflicts WHERE inode = ?", (inode,))

    def set_missing(self, inode: int, missing: int) -> None:
        """Note how many bytes a conflict copy lacks."""
        self._change("UPDATE conflicts SET missing = ? WHERE inode = ?", (missing, inode))

    def count_conflicts(self) -> tuple[int, int]:
        """Count the conflict copies, and their bytes."""
        row = self._execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM conflicts LEFT JOIN inodes ON id = inode"
        ).fetchone()
        return int(row[0]), int(row[1])

    # Multipart uploads

    def upload(self, inode: int) -> UploadRow | None:
        """Return the upload begun for an inode."""
        row = self._execute("SELECT * FROM uploads WHERE inode = ?", (inode,)).fetchone()
        return None if row is None else UploadRow._make(row)

    def put_upload(self, row: UploadRow) -> None:
        """Remember an upload that was begun."""
        with self._database.transaction():
            self._change("DELETE FROM uploads WHERE inode = ?", (row.inode,))
            self._change("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def fix_upload(self, inode: int, size: int) -> None:
        """Note that an upload which grew is about to be completed, with *size* bytes."""
        self._change("UPDATE uploads SET size = ? WHERE inode = ?", (size, inode))

    def put_part(self, row: PartRow) -> None:
        """Remember a part that S3 has."""
        self._change("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", row)

    def drop_parts(self, inode: int, first: int, last: int) -> None:
        """Forget parts whose bytes are about to change."""
        self._change(
            "DELETE FROM parts WHERE inode = ? AND number BETWEEN ? AND ?", (inode, first, last)
        )

    def parts(self, inode: int) -> list[PartRow]:
        """Return the parts that S3 has of a file's content as it is."""
        rows = self._execute("SELECT * FROM parts WHERE inode = ? ORDER BY number", (inode,))
        return [PartRow._make(row) for row in rows]

    def abandon_upload(self, inode: int) -> None:
        """Have the upload begun for an inode aborted; nothing where there is none."""
        with self._database.transaction():
            self._change(
                "INSERT OR IGNORE INTO abandoned SELECT upload_id, key FROM uploads WHERE inode = ?",
                (inode,),
            )
            self._change("DELETE FROM uploads WHERE inode = ?", (inode,))

    def abandon(self, key: str, upload_id: str) -> None:
        """Have an upload aborted that no file has any more."""
        self._change("INSERT OR IGNORE INTO abandoned VALUES (?, ?)", (upload_id, key))

    def abandoned(self) -> list[tuple[str, str]]:
        """Return the uploads to abort: (key, id)."""
        return [
            (str(key), str(upload_id))
            for key, upload_id in self._execute("SELECT key, upload_id FROM abandoned")
        ]

    def drop_abandoned(self, upload_id: str) -> None:
        """Forget an upload that was aborted."""
        self._change("DELETE FROM abandoned WHERE upload_id = ?", (upload_id,))

    def drop_upload(self, inode: int) -> None:
        """Forget an upload that was completed."""
        self._change("DELETE FROM uploads WHERE inode = ?", (inode,))

    def put_beginning(self, key: str, *, now_ns: int) -> int:
        """Note that S3 is about to be asked to begin an upload; returns the number of the note."""
        with self._database.transaction() as db:
            row = db.execute("INSERT INTO beginnings (key, since_ns) VALUES (?, ?)", (key, now_ns))
            return int(row.lastrowid or 0)

    def end_beginning(self, number: int) -> None:
        """Note that nothing is left of such a request but what is noted elsewhere."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM beginnings WHERE number = ?", (number,))

    def leave_beginning(self, number: int, *, now_ns: int) -> None:
        """Note that such a request is over, and may have begun an upload that nobody saw."""
        with self._database.transaction() as db:
            db.execute("UPDATE beginnings SET until_ns = ? WHERE number = ?", (now_ns, number))

    def leave_all_beginnings(self, *, now_ns: int) -> None:
        """Note that the requests of the last worker are over."""
        with self._database.transaction() as db:
            db.execute("UPDATE beginnings SET until_ns = ? WHERE until_ns IS NULL", (now_ns,))

    def left_beginnings(self, *, before_ns: int) -> list[BeginningRow]:
        """Return the requests that were over before a time."""
        rows = self._execute("SELECT * FROM beginnings WHERE until_ns <= ?", (before_ns,))
        return [BeginningRow._make(row) for row in rows]

    def knows_upload(self, upload_id: str) -> bool:
        """Whether an upload is one that was begun for a file, or that is to be aborted."""
        query = " UNION ".join(
            f"SELECT 1 FROM {table} WHERE upload_id = ?1"  # noqa: S608 - names from the line below
            for table in ("uploads", "abandoned", "copies")
        )
        return self._execute(query, (upload_id,)).fetchone() is not None

    # Uploads of copies: `s3mgrd.s3.port.UploadNotes`

    def upload_begun(self, key: str, upload_id: str) -> None:
        """Note that a copy is made by an upload."""
        with self._database.transaction() as db:
            db.execute("INSERT INTO copies VALUES (?, ?)", (upload_id, key))

    def upload_ended(self, upload_id: str) -> None:
        """Note that S3 has nothing of it (any more) but an object."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM copies WHERE upload_id = ?", (upload_id,))

    def upload_left(self, upload_id: str) -> None:
        """Note that it may be there and that nobody goes on with it."""
        self._abandon_copies(upload_id)

    def abandon_copies(self) -> None:
        """Note that nobody goes on with the copies of the last worker."""
        self._abandon_copies(None)

    def _abandon_copies(self, upload_id: str | None) -> None:
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO abandoned SELECT * FROM copies WHERE ?1 IS NULL OR upload_id = ?1",
                (upload_id,),
            )
            db.execute("DELETE FROM copies WHERE ?1 IS NULL OR upload_id = ?1", (upload_id,))

    # Bytes that are parked in S3

    def park(self, key: str, inode: int, *, now_ns: int) -> None:
        """Note that *key* is about to hold bytes of a staged file."""
        with self._database.transaction():
            self._change("INSERT OR REPLACE INTO parked VALUES (?, ?)", (key, inode))
            self.add_delete(key, etag=None, holder=inode, now_ns=now_ns)

    def parked(self, inode: int) -> list[str]:
        """Return the keys that hold bytes of a staged file."""
        rows = self._execute("SELECT key FROM parked WHERE inode = ?", (inode,))
        return [str(row[0]) for row in rows]

    def unpark(self, keys: Sequence[str]) -> None:
        """Have keys deleted that hold nothing any more that is wanted."""
        with self._database.transaction() as db:
            db.executemany("DELETE FROM parked WHERE key = ?", [(key,) for key in keys])

    # Deletes

    def add_delete(self, key: str, *, etag: str | None, holder: int | None, now_ns: int) -> None:
        """Note that *key* shall vanish."""
        self._change(
            "INSERT OR REPLACE INTO deletes VALUES (?, ?, ?, ?)", (key, etag, holder, now_ns)
        )

    def pending_delete(self, key: str) -> DeleteRow | None:
        """Return the pending delete of *key*."""
        row = self._execute("SELECT * FROM deletes WHERE key = ?", (key,)).fetchone()
        return None if row is None else DeleteRow._make(row)

    def deletes(self, *, limit: int = 1000) -> list[DeleteRow]:
        """Return pending deletes that nobody holds back, but those of what has yet to be moved away from there."""
        rows = self._execute(f"{_DELETABLE} LIMIT ?", (limit,))
        return [DeleteRow._make(row) for row in rows]

    def still_to_delete(self, keys: Sequence[str]) -> list[DeleteRow]:
        """Return those of `deletes` that are of *keys*, as they are now."""
        rows = self._execute(
            f"{_DELETABLE} AND key IN (SELECT value FROM json_each(?))",  # noqa: S608 - our own words
            (msgspec.json.encode(keys).decode(),),
        )
        return [DeleteRow._make(row) for row in rows]

    def held_deletes(self) -> list[DeleteRow]:
        """Return pending deletes that wait for an inode to be forgotten."""
        return [
            DeleteRow._make(row)
            for row in self._execute("SELECT * FROM deletes WHERE holder IS NOT NULL")
        ]

    def holds_delete(self, holder: int) -> bool:
        """Whether a delete waits for *holder* to be forgotten: it lost its name by a change made here."""
        query = "SELECT 1 FROM deletes WHERE holder = ? LIMIT 1"
        return self._execute(query, (holder,)).fetchone() is not None

    def release_deletes(self, holder: int) -> bool:
        """Let the deletes go that waited for *holder*; whether there were any."""
        query = "UPDATE deletes SET holder = NULL WHERE holder = ?"
        return self._change(query, (holder,)).rowcount > 0

    def drop_deletes(self, keys: Sequence[str]) -> None:
        """Forget deletes: done, or made void by a new object."""
        with self._database.transaction() as db:
            db.executemany("DELETE FROM deletes WHERE key = ?", [(key,) for key in keys])

    def deletes_below(self, prefix: str) -> set[str]:
        """Return the keys below *prefix* that are to be deleted."""
        rows = self._execute(
            "SELECT key FROM deletes WHERE key >= ? AND key < ?", (prefix, prefix + "\U0010ffff")
        )
        return {str(row[0]) for row in rows}

    # Requests that may be changing a key

    def begin_write(
        self, key: str, *, size: int, mtime: str | None = None, etag: str | None = None
    ) -> None:
        """Note that a request which writes *key* is about to be sent; one that is tried again is noted once."""
        self._change(
            "INSERT INTO writes (key, size, mtime, etag) SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS "
            "(SELECT 1 FROM writes WHERE key = ?1 AND size = ?2 AND mtime IS ?3 AND etag IS ?4)",
            (key, size, mtime, etag),
        )

    def is_untouched(self, key: str) -> bool:
        """Whether nothing lies at *key* that belongs elsewhere, shall vanish, or may have been written unseen."""
        row = self._execute(
            "SELECT EXISTS (SELECT 1 FROM writes WHERE key = ?1) OR EXISTS (SELECT 1 FROM deletes WHERE key = ?1) "
            "OR EXISTS (SELECT 1 FROM inodes WHERE remote_key = ?1)",
            (key,),
        ).fetchone()
        return not row[0]

    def end_writes(self, key: str) -> None:
        """Forget the requests that wrote *key*: it is known what lies there."""
        self._change("DELETE FROM writes WHERE key = ?", (key,))

    def writes_of(self, key: str) -> list[WriteRow]:
        """Return the requests whose outcome at *key* nobody saw, oldest first."""
        rows = self._execute(
            "SELECT key, size, mtime, etag FROM writes WHERE key = ? ORDER BY id", (key,)
        )
        return [WriteRow._make(row) for row in rows]

    def written_among(self, keys: Sequence[str]) -> set[str]:
        """Return those of *keys* that a request may have changed unseen, or is changing now."""
        rows = self._execute(
            "SELECT key FROM writes WHERE key IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(keys).decode(),),
        )
        return {str(row[0]) for row in rows}

    def writes_below(self, prefix: str) -> set[str]:
        """Return the keys below *prefix* that a request may have changed unseen, or is changing now."""
        rows = self._execute(
            "SELECT key FROM writes WHERE key >= ? AND key < ?", (prefix, prefix + "\U0010ffff")
        )
        return {str(row[0]) for row in rows}

    # Repeated calls

    def put_call(self, number: int, inode: int, *, oldest: int) -> None:
        """Remember, in the change's own transaction, that call *number* was done; *inode* is its result or 0.

        Calls below *oldest* are answered and forgotten, some at a time.
        """
        with self._database.transaction():
            if oldest >= self._oldest_call + KEPT_CALLS:
                self._change("DELETE FROM calls WHERE number < ?", (oldest,))
                self._oldest_call = oldest
            self._change("INSERT OR REPLACE INTO calls VALUES (?, ?)", (number, inode))

    def call_result(self, number: int) -> int | None:
        """Return the result of a call that was done, None if it was not."""
        row = self._execute("SELECT inode FROM calls WHERE number = ?", (number,)).fetchone()
        return None if row is None else int(row[0])

    def drop_calls(self) -> None:
        """Forget all calls: another kernel connection counts anew."""
        self._change("DELETE FROM calls")

    # Totals

    def counts(self) -> dict[str, int]:
        """Count what is pending, by kind."""
        held = self._count(
            "SELECT count(*) FROM deletes INDEXED BY deletes_held WHERE holder IS NOT NULL"
        )
        clean = self._count("SELECT count(*) FROM staged INDEXED BY staged_clean WHERE dirty = 0")
        return {
            "deletes": self._count("SELECT count(*) FROM deletes") - held,
            "held": held,
            "moves": self._count("SELECT count(*) FROM moves"),
            "markers": self._count("SELECT count(*) FROM inodes WHERE marker = 2"),
            "attributes": self._count("SELECT count(*) FROM inodes WHERE attributes_dirty = 1"),
            "renames": self._count(
                "SELECT count(*) FROM inodes INDEXED BY inodes_misplaced "
                "WHERE remote_key IS NOT NULL AND name IS NOT NULL"
            ),
            "uploads": self._count("SELECT count(*) FROM abandoned"),
            "staged": self._count("SELECT count(*) FROM staged") - clean,
        }

    def _count(self, query: str) -> int:
        return int(self._execute(query).fetchone()[0])

    def discard(self) -> None:
        """Forget everything that S3 does not have. Only on the user's word."""
        with self._database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO abandoned SELECT upload_id, key FROM uploads")
            db.execute("DELETE FROM deletes WHERE key NOT IN (SELECT key FROM parked)")
            for table in ("staged", "conflicts", "uploads", "parked", "moves", "moved", "writes"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608 - names from the line above
            db.execute("UPDATE inodes SET attributes_dirty = 0")
            db.execute("UPDATE inodes SET marker = 0 WHERE marker = 2")
