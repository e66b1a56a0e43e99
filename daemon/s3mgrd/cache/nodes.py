"""Rows of inodes, read and written.

A `Node` is a snapshot of one row: it does not follow later changes. Functions here are SQL and nothing else; what
the columns mean stands in `s3mgrd.cache.schema`, what may change them in `s3mgrd.fs.learning.namespace`.

Rows asked for by number are remembered: a walk asks for the same few directories with every name, and a statement costs
10 µs. What `NodeTable.update` and `insert` change of them is known; any other change of inodes has them asked for again.
And a walk asks for every directory that it has seen in another: `NodeTable.look_ahead` learns of all of them at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import cache
from typing import Any, Final, NamedTuple, NewType

from s3mgrd.cache.database import MountDatabase, Row

Inode = NewType("Inode", int)

ROOT: Final = Inode(1)
MAX_INODE: Final = (1 << 63) - 1
STALE_NS: Final = 1
"""In listed_ns: the directory was listed once, and must be before it is shown again."""


class Kind(IntEnum):
    """What an inode is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    SPECIAL = 4


class Marker(IntEnum):
    """Whether a directory has an object of its own in S3."""

    NONE = 0
    EXISTS = 1
    WANTED = 2


class Node(NamedTuple):
    """One row of inodes, columns as in the schema."""

    id: Inode
    parent: Inode
    name: str | None
    kind: int
    size: int
    mtime_ns: int
    atime_ns: int | None
    ctime_ns: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    rdev: int
    target: str | None
    special: int
    etag: str | None
    remote_key: str | None
    remote_mtime_ns: int | None
    attributes_known: int
    attributes_dirty: int
    seen_ns: int
    listed_ns: int
    marker: int
    remote_prefix: str | None
    storage_class: str | None

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return self.kind == Kind.DIRECTORY

    @property
    def is_detached(self) -> bool:
        """Whether no name leads here any more."""
        return self.name is None


class Listed(NamedTuple):
    """What a listing shows of a row; columns as in the schema."""

    id: Inode
    name: str
    kind: int
    size: int
    mtime_ns: int
    atime_ns: int | None
    ctime_ns: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    rdev: int
    special: int
    seen_ns: int
    parent: Inode

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return self.kind == Kind.DIRECTORY

    @property
    def is_detached(self) -> bool:
        """Never: it was found by its name."""
        return False


_NEW: Final = Node(
    id=Inode(0), parent=Inode(0), name=None, kind=0, size=0, mtime_ns=0, atime_ns=None, ctime_ns=None, mode=None, uid=None,
    gid=None, rdev=0, target=None, special=0, etag=None, remote_key=None, remote_mtime_ns=None, attributes_known=0,
    attributes_dirty=0, seen_ns=0, listed_ns=0, marker=0, remote_prefix=None, storage_class=None,
)  # fmt: skip
"""The schema's defaults."""
_COLUMNS = ", ".join(Node._fields)
_SETTABLE = frozenset(Node._fields) - {"id"}
_SHOWN_BY_PARENT: Final = frozenset({"parent", "name", "kind", "special"})
_NUMBERS_AHEAD: Final = 4096
_LAST_NUMBER: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'inodes'"
_SET_LAST_NUMBER: Final = "UPDATE sqlite_sequence SET seq = ? WHERE name = 'inodes'"
_REMEMBERED: Final = 1024
"""Rows."""
_GET: Final = f"SELECT {_COLUMNS} FROM inodes WHERE id = ?"  # noqa: S608 - our own column list
_FIND: Final = f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND name = ?"  # noqa: S608
_CLEAN: Final = """
SELECT id FROM inodes AS node INDEXED BY inodes_by_parent
WHERE parent = ? AND name IS NOT NULL AND id > ?
    AND remote_key IS NULL AND remote_prefix IS NULL AND attributes_dirty = 0 AND marker <> 2
    AND (kind = 2 OR etag IS NOT NULL)
    AND NOT EXISTS (SELECT 1 FROM staged WHERE inode = node.id)
    AND NOT EXISTS (SELECT 1 FROM conflicts WHERE inode = node.id)
    AND NOT EXISTS (SELECT 1 FROM uploads WHERE inode = node.id)
    AND NOT EXISTS (SELECT 1 FROM deletes WHERE holder = node.id)
    AND (
        kind <> 2
        OR (
            NOT EXISTS (SELECT 1 FROM inodes AS child WHERE child.parent = node.id AND child.name IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM inodes AS gone WHERE gone.parent = node.id AND gone.name IS NULL)
        )
    )
ORDER BY id LIMIT ?
"""
"""A nameless row below a directory still needs it, to say where it was."""
_OURS_BELOW: Final = """
WITH RECURSIVE below(id) AS (
    VALUES (?)
    UNION ALL
    SELECT child.id FROM below CROSS JOIN inodes AS child INDEXED BY inodes_directories
    WHERE child.parent = below.id AND child.kind = 2 AND child.name IS NOT NULL
)
SELECT EXISTS (
    SELECT 1 FROM below CROSS JOIN inodes AS node INDEXED BY inodes_ours
    WHERE node.parent = below.id AND node.name IS NOT NULL AND (
        node.remote_key IS NOT NULL OR node.remote_prefix IS NOT NULL OR node.marker = 2
        OR (node.kind <> 2 AND node.etag IS NULL)
    )
) OR EXISTS (
    SELECT 1 FROM staged JOIN inodes AS node ON node.id = staged.inode
    WHERE staged.dirty = 1 AND node.name IS NOT NULL AND node.parent IN below
)
"""
"""Reads a row for each directory and none for each file."""
_LISTED: Final = (
    f"SELECT {', '.join(Listed._fields)} FROM inodes INDEXED BY inodes_by_parent "  # noqa: S608
    "WHERE parent = ? AND name IS NOT NULL AND id > ? AND id <= ? ORDER BY id LIMIT ?"
)

_AHEAD_DIRECTORIES: Final = 64
_AHEAD_ENTRIES: Final = 512
"""In all of them: a fraction of a millisecond."""
_DIRECTORIES_IN: Final = (
    f"SELECT {_COLUMNS} FROM inodes INDEXED BY inodes_directories "  # noqa: S608
    "WHERE parent = ? AND kind = 2 AND name IS NOT NULL ORDER BY id LIMIT ?"
)
_DIRECTORY_NUMBERS: Final = tuple(
    "SELECT id FROM inodes INDEXED BY inodes_directories "  # noqa: S608
    f"WHERE parent = ? AND kind = 2 AND name IS NOT NULL AND id {order} LIMIT ?"
    for order in ("> ? ORDER BY id", "< ? ORDER BY id DESC")
)
_LISTED_BELOW: Final = (
    f"SELECT {', '.join(f'child.{name}' for name in Listed._fields)} "  # noqa: S608
    "FROM inodes AS node INDEXED BY inodes_directories "
    "CROSS JOIN inodes AS child INDEXED BY inodes_by_parent "
    "WHERE node.parent = ? AND node.kind = 2 AND node.name IS NOT NULL "
    "AND child.parent = node.id AND child.name IS NOT NULL ORDER BY node.id, child.id LIMIT ?"
)


@cache
def _insert_query(columns: tuple[str, ...]) -> str:
    names = ("id", "parent", "name", "kind", "mtime_ns", *columns)
    return f"INSERT INTO inodes ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608


@cache
def _update_query(columns: tuple[str, ...]) -> tuple[str, bool]:
    """Return the statement that sets *columns* of a row, and whether that changes what its directory shows."""
    if not _SETTABLE.issuperset(columns):
        raise TypeError(f"not columns of inodes: {sorted(set(columns) - _SETTABLE)}")
    assignments = ", ".join(f"{name} = ?" for name in columns)
    query = f"UPDATE inodes SET {assignments} WHERE id = ?"  # noqa: S608 - names of columns
    return query, not _SHOWN_BY_PARENT.isdisjoint(columns)


def _ignore(_: int, __: bool) -> None:
    """Be told of a change, and do nothing."""


class NodeTable:
    """The inodes and hidden tables of one mount.db."""

    def __init__(self, database: MountDatabase) -> None:
        self._database = database
        self._execute = database.execute
        self._rows: dict[int, Node | None] = {}
        self._rows_as_of = -1
        self._ahead: dict[int, list[Row]] = {}
        """What `listed` is about to be asked for, by directory."""
        self._ahead_as_of = -1
        self._missing: tuple[int, str, int] | None = None
        """The directory and the name that `find` found nothing for last, and `node_changes` then."""
        self._next_number = self._numbers_end = 0
        """Of inodes: which are to be given next, up to an end that AUTOINCREMENT knows of."""
        self.names_changed: Callable[[int, bool], None] = _ignore
        """Told of each directory in which names changed, and whether only new inodes came."""

    def get(self, inode: int) -> Node | None:
        """Return the row of an inode number, None where it is not (or no longer) known."""
        if not self._is_current() or len(self._rows) >= _REMEMBERED:
            self._rows.clear()
            self._rows_as_of = self._database.node_changes
        elif inode in self._rows:
            return self._rows[inode]
        row = self._execute(_GET, (inode,)).fetchone()
        node = self._rows[inode] = None if row is None else Node._make(row)
        return node

    def _is_current(self) -> bool:
        """Whether the rows that are remembered are those of the table."""
        return self._rows_as_of == self._database.node_changes

    def find(self, parent: int, name: str) -> Node | None:
        """Return the row that *name* in *parent* leads to."""
        sought = parent, name, self._database.node_changes
        if sought == self._missing:
            return None  # who makes a file looks before, more than once
        row = self._execute(_FIND, (parent, name)).fetchone()
        if row is None:
            self._missing = sought
            return None
        return Node._make(row)

    def find_below(self, inode: int, names: Iterable[str]) -> Node | None:
        """Return the row that a path of *names* leads to from a directory on; None where one of them is not known."""
        node = self.get(inode)
        for name in names:
            node = self.find(node.id, name) if node is not None else None
        return node

    def children(
        self, parent: int, *, after: int = 0, up_to: int = MAX_INODE, limit: int = 256
    ) -> list[Node]:
        """Return up to *limit* entries of a directory with after < inode number <= up_to, in that order."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM inodes INDEXED BY inodes_by_parent "  # noqa: S608
            "WHERE parent = ? AND name IS NOT NULL AND id > ? AND id <= ? ORDER BY id LIMIT ?",
            (parent, after, up_to, limit),
        )
        return [Node._make(row) for row in rows]

    def listed(
        self, parent: int, *, after: int = 0, up_to: int = MAX_INODE, limit: int = 256
    ) -> Iterator[Listed]:
        """Yield as `children` what a listing shows, in half the time; nothing may change meanwhile."""
        if self._ahead and not after and up_to == MAX_INODE:
            if self._ahead_as_of != self._database.changes:
                self._ahead.clear()
            found = self._ahead.pop(parent, None)
            if found is not None and len(found) <= limit:
                return map(Listed._make, found)
        return map(Listed._make, self._execute(_LISTED, (parent, after, up_to, limit)))

    def look_ahead(self, parent: int) -> list[Inode]:
        """Have the directories in a directory at hand, and what is listed of each, for once; nothing where they are many.

        Returns those, in the order in which they are listed.
        """
        many = _AHEAD_DIRECTORIES + 1
        directories = list(map(Node._make, self._execute(_DIRECTORIES_IN, (parent, many))))
        if not 0 < len(directories) < many:
            return []
        rows = self._execute(_LISTED_BELOW, (parent, _AHEAD_ENTRIES + 1)).fetchall()
        if len(rows) > _AHEAD_ENTRIES:
            return []
        changes = self._database.changes
        if self._ahead_as_of != changes or len(self._ahead) >= _AHEAD_DIRECTORIES:
            self._ahead.clear()
            self._ahead_as_of = changes
        self._ahead.update((node.id, []) for node in directories)
        for row in rows:
            self._ahead[row[-1]].append(row)
        if self._is_current() and len(self._rows) + many < _REMEMBERED:
            self._rows.update((node.id, node) for node in directories)
        return [node.id for node in directories]

    def directories_in(
        self, parent: int, *, after: int | None = None, backwards: bool = False, limit: int
    ) -> list[Inode]:
        """Return up to *limit* directories in a directory, in the order in which they are listed or in its reverse.

        *after*: those that come after this one there.
        """
        if after is None:
            after = MAX_INODE if backwards else 0
        rows = self._execute(_DIRECTORY_NUMBERS[backwards], (parent, after, limit))
        return [Inode(row[0]) for row in rows]

    def following(self, parent: int, name: str, *, limit: int) -> list[Node]:
        """Return up to *limit* entries of a directory with names after *name*, in that order."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",  # noqa: S608
            (parent, name, limit),
        )
        return [Node._make(row) for row in rows]

    def last_inode(self) -> int:
        """Return the highest inode number there is."""
        return int(self._execute("SELECT max(id) FROM inodes").fetchone()[0] or 0)

    def range(self, parent: int, first: str, last: str | None) -> Iterator[Node]:
        """Yield the entries with first <= name (<= last, if given)."""
        query = f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND name >= ?"  # noqa: S608
        arguments: list[Any] = [parent, first]  # Any: sqlite3 takes values of several types
        if last is not None:
            query += " AND name <= ?"
            arguments.append(last)
        yield from map(Node._make, self._execute(query, arguments).fetchall())

    def count_children(self, parent: int, *, limit: int) -> int:
        """Count the entries of a directory, up to *limit*."""
        row = self._execute(
            "SELECT count(*) FROM (SELECT 1 FROM inodes WHERE parent = ? AND name IS NOT NULL LIMIT ?)",
            (parent, limit),
        ).fetchone()
        return int(row[0])

    def directory_before(self, parent: int, name: str, *, at_most: int) -> str | None:
        """Return the name of the directory that is *at_most* places before *name* in *parent*, or the first; None: there is none."""
        row = self._execute(
            "SELECT min(name) FROM (SELECT name FROM inodes INDEXED BY inodes_by_name "
            "WHERE parent = ? AND name < ? AND name IS NOT NULL AND kind = 2 ORDER BY name DESC LIMIT ?)",
            (parent, name, at_most),
        ).fetchone()
        return None if row[0] is None else str(row[0])

    def insert(
        self, parent: int, name: str | None, kind: Kind, mtime_ns: int, **columns: object
    ) -> Inode:
        """Add a row and return its inode number; *columns* are as in the schema."""
        inode = self._next_numbers(1)
        values = (inode, parent, name, int(kind), mtime_ns, *columns.values())
        self._database.change_beside(_insert_query(tuple(columns)), values)
        if self._is_current():
            self._rows[inode] = _NEW._replace(
                id=inode, parent=Inode(parent), name=name, kind=int(kind), mtime_ns=mtime_ns,
                **columns,  # type: ignore[arg-type] # as they go into the table
            )  # fmt: skip
        if name is not None:
            self._missing = None
            self.names_changed(parent, True)
        return inode

    def _next_numbers(self, count: int) -> Inode:
        """Return the first of so many inode numbers in a row, above all that ever were: AUTOINCREMENT keeps count of those.

        It is told of many at a time, since each time it is told costs a page of the transaction.
        """
        first = self._next_number
        if first + count > self._numbers_end:
            with self._database.transaction() as db:
                seq = db.execute(_LAST_NUMBER).fetchone()
                first = 1 + (int(seq[0]) if seq is not None else 0)
                self._numbers_end = first + count + _NUMBERS_AHEAD
                db.execute(_SET_LAST_NUMBER, (self._numbers_end - 1,))
        self._next_number = first + count
        return Inode(first)

    def insert_many(
        self,
        parent: int,
        kind: Kind,
        entries: Sequence[tuple[str, int, int, str | None, int | None]],
    ) -> Sequence[Inode]:
        """Add rows for what a listing showed: (name, mtime_ns, size, etag, remote_mtime_ns); returns their inode numbers."""
        if not entries:
            return ()
        with self._database.transaction() as db:
            first = self._next_numbers(len(entries))
            db.executemany(
                "INSERT INTO inodes (id, parent, name, kind, mtime_ns, size, etag, remote_mtime_ns) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (inode, parent, name, int(kind), mtime_ns, size, etag, remote_ns)
                    for inode, (name, mtime_ns, size, etag, remote_ns) in enumerate(entries, first)
                ],
            )
        self.names_changed(parent, True)
        return [Inode(first + i) for i in range(len(entries))]

    def update(self, inode: int, **columns: object) -> None:
        """Set columns of a row; nothing where the row is gone."""
        query, is_shown = _update_query(tuple(columns))
        if is_shown:
            self._missing = None
            before, parent = self.get(inode), columns.get("parent")
            if before is not None:
                self.names_changed(before.parent, False)
            if isinstance(parent, int):
                self.names_changed(parent, False)
        node = self._rows.get(inode) if self._is_current() else None
        self._database.change_beside(query, (*columns.values(), inode))
        if node is not None:
            self._rows[inode] = node._replace(**columns)  # type: ignore[arg-type] # as they go into the table

    def set_storage_classes(self, classes: Sequence[tuple[str | None, Inode]]) -> None:
        """Set the storage classes of rows: (class, inode number) pairs."""
        if classes:
            with self._database.transaction() as db:
                db.executemany("UPDATE inodes SET storage_class = ? WHERE id = ?", classes)

    def forget_date(self, inode: int, etag: str) -> None:
        """Forget S3's date of a version that an inode is, if it still is that."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE inodes SET remote_mtime_ns = NULL "
                "WHERE id = ? AND etag = ? AND remote_mtime_ns IS NOT NULL",
                (inode, etag),
            )

    def forget_seen(self, parent: int, *, after: int, up_to: int) -> None:
        """Forget when the entries of a directory with after < inode number <= up_to were asked for one by one."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE inodes INDEXED BY inodes_by_parent SET seen_ns = 0 "
                "WHERE parent = ? AND name IS NOT NULL AND id > ? AND id <= ? AND seen_ns > 0",
                (parent, after, up_to),
            )

    def mark_seen(self, parent: int, low: str, high: str | None, seen_ns: int) -> None:
        """Set seen_ns of the entries behind *low* of which the file's and the directory's place is up to *high*; not back."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE inodes SET seen_ns = ?1 WHERE parent = ?2 AND name > ?3 AND seen_ns < ?1 "
                "AND (?4 IS NULL OR (name <= ?4 AND name || '/' <= ?4))",
                (seen_ns, parent, low, high),
            )

    def detach(self, inode: int) -> None:
        """Take the name away; the row stays for whoever holds the inode."""
        self.update(inode, name=None)

    def drop(self, inode: int) -> None:
        """Delete a row that nobody can refer to any more."""
        before = self.get(inode)
        if before is not None and before.name is not None:
            self.names_changed(before.parent, False)
        with self._database.transaction() as db:
            db.execute("DELETE FROM inodes WHERE id = ?", (inode,))

    def has_ours_below(self, directory: int) -> bool:
        """Whether anything below a directory, however deep, is not in S3 as it is here and where its path says."""
        return bool(self._execute(_OURS_BELOW, (directory,)).fetchone()[0])

    def drop_many(self, directory: int, inodes: Sequence[int]) -> None:
        """Delete entries of a directory that nobody can refer to any more, with what they hid."""
        numbers = [(inode,) for inode in inodes]
        with self._database.transaction() as db:
            db.executemany("DELETE FROM inodes WHERE id = ?", numbers)
            db.executemany("DELETE FROM hidden WHERE directory = ?", numbers)
        self.names_changed(directory, False)

    def directories_by_listing(self, after: tuple[int, int], limit: int) -> list[Node]:
        """Return directories in the order of (listed_ns, inode number), those after the given place."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM inodes INDEXED BY inodes_by_listing "  # noqa: S608
            "WHERE kind = 2 AND (listed_ns, id) > (?, ?) ORDER BY listed_ns, id LIMIT ?",
            (*after, limit),
        )
        return [Node._make(row) for row in rows]

    def clean_children(self, parent: int, *, after: int, limit: int) -> list[Inode]:
        """Return entries of a directory with inode numbers above *after* of which S3 could tell everything again."""
        rows = self._execute(_CLEAN, (parent, after, limit))
        return [Inode(row[0]) for row in rows]

    def has_detached(self) -> bool:
        """Whether there is a row without a name."""
        query = "SELECT 1 FROM inodes WHERE name IS NULL LIMIT 1"
        return self._execute(query).fetchone() is not None

    def detached(self, *, after: int = 0, limit: int = -1) -> list[Node]:
        """Return rows without a name and with inode numbers above *after*; all of them by default.

        Those of conflict copies, which stay whoever holds them, are left out.
        """
        query = (
            f"SELECT {_COLUMNS} FROM inodes WHERE name IS NULL AND id > ? "  # noqa: S608
            "AND id NOT IN (SELECT inode FROM conflicts) ORDER BY id LIMIT ?"
        )
        rows = self._execute(query, (after, limit))
        return [Node._make(row) for row in rows]

    def with_remote_key(self, key: str) -> list[Node]:
        """Return the rows whose object lies at *key* although their path spells another."""
        rows = self._execute(f"SELECT {_COLUMNS} FROM inodes WHERE remote_key = ?", (key,))  # noqa: S608
        return [Node._make(row) for row in rows]

    def remote_keys_below(self, prefix: str) -> set[str]:
        """Return the keys below *prefix* where objects lie whose path spells another."""
        rows = self._execute(
            "SELECT remote_key FROM inodes WHERE remote_key >= ? AND remote_key < ? AND name IS NOT NULL",
            (prefix, prefix + "\U0010ffff"),
        )
        return {str(row[0]) for row in rows}

    def misplaced(self, *, limit: int) -> list[Node]:
        """Return rows with a name and a remote_key: candidates for a move in S3."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM inodes WHERE remote_key IS NOT NULL AND name IS NOT NULL LIMIT ?",  # noqa: S608
            (limit,),
        )
        return [Node._make(row) for row in rows]

    def with_dirty_attributes(self, *, limit: int) -> list[Node]:
        """Return rows whose metadata S3 does not have yet."""
        query = f"SELECT {_COLUMNS} FROM inodes WHERE attributes_dirty = 1 LIMIT ?"  # noqa: S608
        rows = self._execute(query, (limit,))
        return [Node._make(row) for row in rows]

    def with_wanted_marker(self, *, limit: int) -> list[Node]:
        """Return directories whose marker S3 does not have yet."""
        rows = self._execute(f"SELECT {_COLUMNS} FROM inodes WHERE marker = 2 LIMIT ?", (limit,))  # noqa: S608
        return [Node._make(row) for row in rows]

    def count(self) -> tuple[int, int]:
        """Count the rows that have a name, and the directories with a complete listing."""
        entries = self._execute("SELECT count(*) FROM inodes WHERE name IS NOT NULL").fetchone()[0]
        listed = self._execute(
            "SELECT count(*) FROM inodes WHERE kind = 2 AND listed_ns > ?", (STALE_NS,)
        ).fetchone()[0]
        return int(entries), int(listed)

    def unlike_s3(self) -> list[Node]:
        """Return the rows with a name that S3 has not, or elsewhere: never sent, renamed, or of a marker that is wanted."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM inodes WHERE name IS NOT NULL AND id != ? AND (remote_key IS NOT NULL "  # noqa: S608
            "OR remote_prefix IS NOT NULL OR marker = 2 OR (etag IS NULL AND kind != 2))",
            (ROOT,),
        )
        return [Node._make(row) for row in rows]

    def distrust_all(self) -> None:
        """Have every directory listed again before its entries are believed, and every name asked for."""
        with self._database.transaction() as db:
            db.execute("UPDATE inodes SET listed_ns = ? WHERE listed_ns > ?", (STALE_NS, STALE_NS))
            db.execute("UPDATE inodes SET seen_ns = 0 WHERE seen_ns > 0")

    # Hidden keys

    def replace_hidden(self, directory: int, keys: Sequence[tuple[str, str]]) -> None:
        """Set which keys of a directory cannot be shown: (key, reason) pairs."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM hidden WHERE directory = ?", (directory,))
            db.executemany(
                "INSERT OR REPLACE INTO hidden VALUES (?, ?, ?)",
                [(directory, *pair) for pair in keys],
            )

    def hidden(self, directory: int, *, after: str, limit: int) -> list[tuple[str, str]]:
        """Return up to *limit* keys of a directory that sort after *after* and cannot be shown, each with the reason."""
        rows = self._execute(
            "SELECT key, reason FROM hidden WHERE directory = ? AND key > ? ORDER BY key LIMIT ?",
            (directory, after, limit),
        )
        return [(str(key), str(reason)) for key, reason in rows]

    def has_hidden(self, directory: int) -> bool:
        """Whether a directory has keys that cannot be shown."""
        return (
            self._execute(
                "SELECT 1 FROM hidden WHERE directory = ? LIMIT 1", (directory,)
            ).fetchone()
            is not None
        )

    def count_hidden(self) -> int:
        """Count the keys that cannot be shown."""
        return int(self._execute("SELECT count(*) FROM hidden").fetchone()[0])
