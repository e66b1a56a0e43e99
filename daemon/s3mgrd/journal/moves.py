"""The journal's tables of directory renames that S3 follows: which there are, and what of each is copied.

SQL and nothing else; the columns are explained in `s3mgrd.cache.schema`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from s3mgrd.cache.database import MountDatabase


class MoveRow(NamedTuple):
    """One row of moves."""

    inode: int
    source: str
    target: str
    source_parent: int
    source_name: str
    since_ns: int

    def target_of(self, key: str) -> str:
        """Return where the object at *key*, below the source, is copied to."""
        return self.target + key[len(self.source) :]


class CopiedRow(NamedTuple):
    """One copied key of a move: the version that was copied, and the version that it became."""

    key: str
    etag: str
    new_etag: str


class MoveTable:
    """The moves and moved tables of one mount.db."""

    def __init__(self, database: MountDatabase) -> None:
        self._database = database
        self._execute = database.execute

    def all(self) -> list[MoveRow]:
        """Return the directory renames that S3 has yet to follow, oldest first."""
        rows = self._execute("SELECT * FROM moves ORDER BY since_ns, inode")
        return [MoveRow._make(row) for row in rows]

    def get(self, inode: int) -> MoveRow | None:
        """Return the rename of one directory."""
        row = self._execute("SELECT * FROM moves WHERE inode = ?", (inode,)).fetchone()
        return None if row is None else MoveRow._make(row)

    def put(self, row: MoveRow) -> None:
        """Note a directory rename that S3 has to follow, in place of one of the same directory."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO moves VALUES (?, ?, ?, ?, ?, ?)", row)

    def drop(self, inode: int) -> None:
        """Forget a move that is done, or that nobody wants any more, and what of it is copied."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM moves WHERE inode = ?", (inode,))
            db.execute("DELETE FROM moved WHERE inode = ?", (inode,))

    # What is copied

    def copied(self, inode: int) -> list[CopiedRow]:
        """Return all that a move has copied."""
        rows = self._execute("SELECT key, etag, new_etag FROM moved WHERE inode = ?", (inode,))
        return [CopiedRow._make(row) for row in rows]

    def count_copied(self, inode: int) -> int:
        """Count what a move has copied."""
        query = "SELECT count(*) FROM moved WHERE inode = ?"
        return int(self._execute(query, (inode,)).fetchone()[0])

    def copied_between(self, inode: int, first: str, last: str) -> dict[str, str]:
        """Return what a move has copied of the keys from *first* to *last*: key → etag that was copied."""
        rows = self._execute(
            "SELECT key, etag FROM moved WHERE inode = ? AND key BETWEEN ? AND ?",
            (inode, first, last),
        )
        return {str(key): str(etag) for key, etag in rows}

    def copied_below(self, inode: int, prefix: str) -> list[CopiedRow]:
        """Return what a move has copied of the keys that start with *prefix*."""
        rows = self._execute(
            "SELECT key, etag, new_etag FROM moved WHERE inode = ? AND key >= ? AND key < ?",
            (inode, prefix, prefix + "\U0010ffff"),
        )
        return [CopiedRow._make(row) for row in rows]

    def copied_key(self, inode: int, key: str) -> CopiedRow | None:
        """Return whether, and as which version, a move has copied *key*."""
        row = self._execute(
            "SELECT key, etag, new_etag FROM moved WHERE inode = ? AND key = ?", (inode, key)
        ).fetchone()
        return None if row is None else CopiedRow._make(row)

    def add_copied(self, inode: int, row: CopiedRow) -> None:
        """Note one copied key."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO moved VALUES (?, ?, ?, ?)", (inode, *row))

    def drop_copied(self, inode: int, keys: Sequence[str]) -> None:
        """Forget that *keys* are copied."""
        with self._database.transaction() as db:
            db.executemany(
                "DELETE FROM moved WHERE inode = ? AND key = ?", [(inode, key) for key in keys]
            )

    def clear_copied(self, inode: int) -> None:
        """Forget all that a move has copied."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM moved WHERE inode = ?", (inode,))

    # The switch; in the caller's transaction

    def carry_misplaced(self, row: MoveRow) -> None:
        """Have rows that say where their objects lie say the target, where these were copied to it."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE staged SET base_etag = moved.new_etag FROM inodes, moved "
                "WHERE moved.inode = ? AND moved.key = inodes.remote_key AND moved.etag = inodes.etag "
                "AND inodes.id = staged.inode AND staged.base_etag = inodes.etag",
                (row.inode,),
            )
            db.execute(
                "UPDATE inodes SET etag = moved.new_etag, remote_mtime_ns = NULL, "
                "remote_key = ? || substr(remote_key, ?) "
                "FROM moved WHERE moved.inode = ? AND moved.key = remote_key AND moved.etag = inodes.etag",
                (row.target, len(row.source) + 1, row.inode),
            )

    def delete_sources(self, inode: int, *, now_ns: int) -> None:
        """Turn what is copied into pending deletes of the sources; those that there are already stay as they are."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO deletes (key, etag, holder, since_ns) "
                "SELECT key, etag, NULL, ? FROM moved WHERE inode = ?",
                (now_ns, inode),
            )

    def changed_versions(self, inode: int) -> list[CopiedRow]:
        """Return the copies whose ETag is not their source's: by parts, or encrypted."""
        rows = self._execute(
            "SELECT key, etag, new_etag FROM moved WHERE inode = ? AND etag != new_etag", (inode,)
        )
        return [CopiedRow._make(row) for row in rows]
