"""What is kept of an inode beside its row: extended attributes, and what S3 keeps with its version.

SQL and nothing else; the tables are explained in `s3mgrd.cache.schema`. Rows go with the inode's row, by triggers.
"""

from collections.abc import Mapping

from s3mgrd.cache.database import MountDatabase


class Extras:
    """Extended attributes and descriptions of the inodes of one mount."""

    def __init__(self, database: MountDatabase) -> None:
        self._database = database
        self._execute = database.execute

    # Extended attributes

    def xattr(self, inode: int, name: str) -> bytes | None:
        """Return the value of one extended attribute; None: there is none of that name."""
        row = self._execute(
            "SELECT value FROM xattrs WHERE inode = ? AND name = ?", (inode, name)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def xattrs(self, inode: int) -> dict[str, bytes]:
        """Return all extended attributes of an inode, in the order of their names."""
        rows = self._execute(
            "SELECT name, value FROM xattrs WHERE inode = ? ORDER BY name", (inode,)
        )
        return {str(name): bytes(value) for name, value in rows}

    def set_xattr(self, inode: int, name: str, value: bytes) -> None:
        """Set one extended attribute."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (inode, name, value))

    def remove_xattr(self, inode: int, name: str) -> None:
        """Remove one extended attribute; nothing where there is none."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM xattrs WHERE inode = ? AND name = ?", (inode, name))

    def replace_xattrs(self, inode: int, xattrs: Mapping[str, bytes]) -> None:
        """Make *xattrs* the extended attributes of an inode."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM xattrs WHERE inode = ?", (inode,))
            db.executemany(
                "INSERT INTO xattrs VALUES (?, ?, ?)",
                [(inode, name, value) for name, value in xattrs.items()],
            )

    # What S3 keeps with a version

    def description(self, inode: int) -> str | None:
        """Return what S3 keeps with the version that an inode is; None: that is not known."""
        row = self._execute(
            "SELECT text FROM described JOIN descriptions ON id = description WHERE inode = ?",
            (inode,),
        ).fetchone()
        return None if row is None else str(row[0])

    def forget_description(self, inode: int) -> None:
        """Forget what S3 keeps with a version: somebody may have changed it."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM described WHERE inode = ?", (inode,))

    def describe(self, inode: int, text: str) -> None:
        """Remember what S3 keeps with the version that an inode is."""
        before = self.description(inode)
        if before == text:
            return
        change = self._database.change_beside
        with self._database.transaction():
            if before is not None:
                change("DELETE FROM described WHERE inode = ?", (inode,))
            insert = "INSERT INTO described SELECT ?, id FROM descriptions WHERE text = ?"
            if not change(insert, (inode, text)).rowcount:
                change("INSERT INTO descriptions (text) VALUES (?)", (text,))
                change(insert, (inode, text))
