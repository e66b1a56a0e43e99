"""The index of the block cache: which block of which version lies where on disk. SQL and the order of eviction.

``blocks.db``, beside the data file. Unlike mount.db it holds nothing that cannot be fetched again: nothing in it is synced,
and a file that does not open is deleted.

versions    One row per version of an inode of which a block is here.
    id          AUTOINCREMENT: never used again, and mixed into each block's checksum, so that a block can never be taken
                for that of another version.
    pinned      Not 0: its blocks are not evicted. The mark of the pass that found it to be wanted (`s3mgrd.fs.reading.pins`).
blocks      One row per slot of the data file that was ever used; version NULL: it is free.
    slot        Its bytes begin at slot * `BLOCK_BYTES`.
    size        Bytes in it; less than a block only at the end of a version.
    checksum    XXH3-64 of the bytes, as a signed number.
    queue       0 probation, 1 main, 2 pinned.
    turn        Order of arrival in its queue.
    uses        How often it was read since it came into its queue, up to `MAX_USES`.
meta        owner: whose inode numbers these are.

Eviction is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): what is new waits in a
probation queue of a tenth of the space, and goes when it was not read again meanwhile; what was read again, or comes
back soon after it went, moves to the main queue, where each use is worth another round. So one large scan only
ever passes through probation.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 128 << 10
"""One random read of a usual size is one block, and 10 GiB of them are an index of some 6 MB."""
PAGE_BYTES: Final = 4096
MAX_USES: Final = 3
PROBATION_SHARE: Final = 10
"""Probation gets one tenth of the space."""
GHOSTS: Final = 65_536
"""Blocks remembered after they left probation, at most."""
BATCH: Final = 64
SCHEMA_VERSION: Final = 1

PROBATION, MAIN, PINNED = 0, 1, 2

_SCHEMA: Final = f"""
CREATE TABLE versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, inode INTEGER NOT NULL, etag TEXT NOT NULL, pinned INTEGER NOT NULL DEFAULT 0,
    UNIQUE (inode, etag)
);
CREATE TABLE blocks (
    slot INTEGER PRIMARY KEY, version INTEGER, number INTEGER, size INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL DEFAULT 0, queue INTEGER NOT NULL DEFAULT 0, turn INTEGER NOT NULL DEFAULT 0,
    uses INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX blocks_by_number ON blocks (version, number) WHERE version IS NOT NULL;
CREATE INDEX blocks_by_turn ON blocks (queue, turn, size) WHERE version IS NOT NULL;
CREATE INDEX blocks_free ON blocks (queue, slot) WHERE version IS NULL;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Block(NamedTuple):
    """Where one block of a version is, and what it must contain."""

    slot: int
    number: int
    size: int
    checksum: int


class Freed(NamedTuple):
    """A slot that was given up, and how many bytes it held."""

    slot: int
    size: int


def occupied(size: int) -> int:
    """Return what *size* bytes take on disk."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES


class BlockIndex:
    """One open index. Used on the trio thread only; every method is a few statements of microseconds.

    Every method may raise sqlite3.Error (disk full, damaged): the cache above goes without then.
    """

    def __init__(self, connection: sqlite3.Connection, aside: sqlite3.Connection) -> None:
        self._db = connection
        self._aside = aside
        self._uses: dict[int, int] = {}
        """Reads by slot that are not in the table yet."""
        self._ghosts: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._turn = self._one("SELECT coalesce(max(turn), 0) FROM blocks")
        # Not as soon as its last block goes: until the next start, a ghost may tell of it.
        self._db.execute(
            "DELETE FROM versions WHERE pinned = 0 AND NOT EXISTS "
            "(SELECT 1 FROM blocks WHERE version = versions.id)"
        )
        self.bytes = [
            int(self._one(f"SELECT coalesce(sum((size + {PAGE_BYTES - 1}) / {PAGE_BYTES}), 0) FROM blocks "  # noqa: S608
                          f"WHERE version IS NOT NULL AND queue = {queue}")) * PAGE_BYTES
            for queue in (PROBATION, MAIN, PINNED)
        ]  # fmt: skip
        """What each queue takes on disk."""

    @property
    def total_bytes(self) -> int:
        """What all blocks take on disk."""
        return sum(self.bytes)

    def _one(self, query: str, arguments: Sequence[object] = ()) -> int:
        return int(self._db.execute(query, arguments).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Make what happens inside one change."""
        self._db.execute("BEGIN")
        with self._db:
            yield

    # Versions

    def version(self, inode: int, etag: str) -> int | None:
        """Return the id of a version of which something is here, None where nothing is."""
        row = self._db.execute(
            "SELECT id FROM versions WHERE inode = ? AND etag = ?", (inode, etag)
        ).fetchone()
        return None if row is None else int(row[0])

    def add_version(self, inode: int, etag: str) -> int:
        """Return the id of a version, new or known."""
        found = self.version(inode, etag)
        if found is not None:
            return found
        cursor = self._db.execute("INSERT INTO versions (inode, etag) VALUES (?, ?)", (inode, etag))
        return int(cursor.lastrowid or 0)

    def mark(self, version: int) -> int:
        """Return the mark that a version is pinned with; 0: it is not."""
        return self._one("SELECT coalesce(max(pinned), 0) FROM versions WHERE id = ?", (version,))

    def pin(self, version: int, mark: int) -> None:
        """Keep a version's blocks, those to come too, from being evicted; *mark* 0: let them go again."""
        before = self.mark(version)
        if before == mark:
            return
        with self._transaction():
            self._db.execute("UPDATE versions SET pinned = ? WHERE id = ?", (mark, version))
            if bool(before) == bool(mark):
                return
            source, target = ((PROBATION, MAIN), PINNED) if mark else ((PINNED,), PROBATION)
            rows = self._db.execute(
                "SELECT slot, size, queue FROM blocks WHERE version = ?", (version,)
            ).fetchall()
            for slot, size, queue in rows:
                if queue in source:
                    self._requeue(slot, size, queue, target)

    def pinned_before(self, mark: int) -> list[int]:
        """Return the versions that are pinned with an earlier mark."""
        rows = self._db.execute("SELECT id FROM versions WHERE pinned > 0 AND pinned < ?", (mark,))
        return [int(row[0]) for row in rows]

    def last_mark(self) -> int:
        """Return the highest mark that a version is pinned with."""
        return self._one("SELECT coalesce(max(pinned), 0) FROM versions")

    def largest(self, limit: int) -> list[tuple[int, str]]:
        """Return inode and ETag of the versions of which most is here. Slow; in any thread, but in one at a time."""
        return self._aside.execute(
            "SELECT inode, etag FROM versions JOIN blocks ON blocks.version = versions.id GROUP BY versions.id "
            "ORDER BY sum(size) DESC LIMIT ?",
            (limit,),
        ).fetchall()

    # Blocks

    def find(self, version: int, first: int, last: int) -> dict[int, Block]:
        """Return the blocks first <= number <= last that are here, by number."""
        rows = self._db.execute(
            "SELECT slot, number, size, checksum FROM blocks WHERE version = ? AND number BETWEEN ? AND ?",
            (version, first, last),
        )
        return {row[1]: Block._make(row) for row in rows}

    def is_current(self, block: Block, version: int) -> bool:
        """Whether the slot still holds that very block."""
        row = self._db.execute(
            "SELECT 1 FROM blocks WHERE slot = ? AND version = ? AND number = ? AND checksum = ?",
            (block.slot, version, block.number, block.checksum),
        ).fetchone()
        return row is not None

    def used(self, blocks: Sequence[Block]) -> None:
        """Note that blocks were read."""
        for block in blocks:
            self._uses[block.slot] = min(MAX_USES, self._uses.get(block.slot, 0) + 1)

    def favour(self, blocks: Sequence[Block]) -> None:
        """Have blocks stay as long as those that `put` favours."""
        for block in blocks:
            self._uses[block.slot] = MAX_USES

    def stored_bytes(self, inode: int) -> int:
        """Count the bytes that are here of an inode's versions."""
        return self._one(
            "SELECT coalesce(sum(size), 0) FROM blocks WHERE version IN (SELECT id FROM versions WHERE inode = ?)",
            (inode,),
        )

    def free_slots(self, count: int) -> list[int]:
        """Return slots to write to. They stay free until `put`: there is one writer."""
        rows = self._db.execute("SELECT slot FROM blocks WHERE version IS NULL LIMIT ?", (count,))
        slots = [int(row[0]) for row in rows]
        if len(slots) < count:
            beyond = self._one("SELECT coalesce(max(slot) + 1, 0) FROM blocks")
            slots.extend(range(beyond, beyond + count - len(slots)))
        return slots

    def put(self, version: int, blocks: Sequence[Block], *, favoured: bool = False) -> None:
        """Enter blocks in a row that were written to free slots; where the version has a block already, its slot stays free.

        *favoured*: somebody asked for them, so they do not pass through probation and stay longer than what is there.
        """
        with self._transaction():
            self._flush_uses()
            is_pinned = self.mark(version)
            uses = MAX_USES if favoured else 0
            here = self.find(version, blocks[0].number, blocks[-1].number) if blocks else {}
            rows = []
            for block in blocks:
                if block.number in here:
                    continue
                is_ghost = self._ghosts.pop((version, block.number), self) is None
                queue = PINNED if is_pinned else MAIN if is_ghost or favoured else PROBATION
                self._turn += 1
                rows.append(
                    (block.slot, version, block.number, block.size, block.checksum, queue, self._turn, uses)
                )  # fmt: skip
                self.bytes[queue] += occupied(block.size)
            self._db.executemany(
                "INSERT INTO blocks (slot, version, number, size, checksum, queue, turn, uses) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (slot) DO UPDATE SET "
                "version = excluded.version, number = excluded.number, size = excluded.size, "
                "checksum = excluded.checksum, queue = excluded.queue, turn = excluded.turn, uses = excluded.uses",
                rows,
            )

    def drop(self, block: Block, version: int) -> None:
        """Forget one block; its slot is free."""
        row = self._db.execute(
            "SELECT queue FROM blocks WHERE slot = ? AND version = ?", (block.slot, version)
        ).fetchone()
        if row is not None:
            self._free([(block.slot, block.size, int(row[0]))])

    def drop_inode(self, inode: int) -> list[Freed]:
        """Forget the versions of an inode that are not pinned; returns the slots that are free now."""
        rows = self._db.execute(
            "SELECT slot, size, queue FROM blocks WHERE version IN "
            "(SELECT id FROM versions WHERE inode = ? AND pinned = 0)",
            (inode,),
        ).fetchall()
        self._free(rows)
        self._db.execute("DELETE FROM versions WHERE inode = ? AND pinned = 0", (inode,))
        return [Freed(slot, size) for slot, size, _ in rows]

    def drop_version(self, version: int) -> list[Freed]:
        """Forget the blocks of a version, pinned or not; returns the slots that are free now. It stays pinned if it was."""
        rows = self._db.execute(
            "SELECT slot, size, queue FROM blocks WHERE version = ?", (version,)
        ).fetchall()
        self._free(rows)
        return [Freed(slot, size) for slot, size, _ in rows]

    def drop_some(self, limit: int) -> list[Freed]:
        """Forget up to *limit* blocks that are not pinned; returns their slots, none when there are no more."""
        rows = self._db.execute(
            "SELECT slot, size, queue FROM blocks WHERE version IS NOT NULL AND queue IN (?, ?) LIMIT ?",
            (PROBATION, MAIN, limit),
        ).fetchall()
        self._free(rows)
        return [Freed(slot, size) for slot, size, _ in rows]

    # Eviction

    def evict(self, wanted_bytes: int, limit_bytes: int) -> list[Freed]:
        """Give up blocks until *wanted_bytes* are free on disk, or nothing is left that may go; returns their slots."""
        freed: list[Freed] = []
        missing = wanted_bytes
        with self._transaction():
            self._flush_uses()
            while missing > 0:
                probation = self.bytes[PROBATION] > limit_bytes // PROBATION_SHARE
                queue = PROBATION if probation or not self.bytes[MAIN] else MAIN
                rows = self._db.execute(
                    "SELECT slot, version, number, size, uses FROM blocks WHERE version IS NOT NULL AND queue = ? "
                    "ORDER BY turn LIMIT ?",
                    (queue, BATCH),
                ).fetchall()
                if not rows:
                    break
                for slot, version, number, size, uses in rows:
                    if missing <= 0:
                        break
                    if uses:
                        self._requeue(slot, size, queue, MAIN, uses - 1 if queue == MAIN else 0)
                        continue
                    self._free_locked([(slot, size, queue)])
                    freed.append(Freed(slot, size))
                    missing -= occupied(size)
                    if queue == PROBATION:
                        self._remember(version, number)
        return freed

    def _remember(self, version: int, number: int) -> None:
        self._ghosts[version, number] = None
        if len(self._ghosts) > GHOSTS:
            self._ghosts.popitem(last=False)

    def _requeue(self, slot: int, size: int, source: int, target: int, uses: int = 0) -> None:
        self._turn += 1
        self._db.execute(
            "UPDATE blocks SET queue = ?, turn = ?, uses = ? WHERE slot = ?",
            (target, self._turn, uses, slot),
        )
        self.bytes[source] -= occupied(size)
        self.bytes[target] += occupied(size)

    def _free(self, rows: Sequence[tuple[int, int, int]]) -> None:
        with self._transaction():
            self._free_locked(rows)

    def _free_locked(self, rows: Sequence[tuple[int, int, int]]) -> None:
        for slot, size, queue in rows:
            self._db.execute(
                "UPDATE blocks SET version = NULL, number = NULL, queue = 0, uses = 0 WHERE slot = ?",
                (slot,),
            )
            self._uses.pop(slot, None)
            self.bytes[queue] -= occupied(size)

    def _flush_uses(self) -> None:
        self._db.executemany(
            "UPDATE blocks SET uses = min(?, uses + ?) WHERE slot = ?",
            [(MAX_USES, uses, slot) for slot, uses in self._uses.items()],
        )
        self._uses.clear()

    def close(self) -> None:
        """Write what is pending and close."""
        with suppress(sqlite3.Error), self._transaction():
            self._flush_uses()
        self._aside.close()
        self._db.close()


def open_index(path: Path, *, owner: str) -> BlockIndex:
    """Open or create the index; one that is damaged, of another format or of another *owner* is made anew.

    Raises:
        OSError, sqlite3.Error: the directory does not take files.
    """
    with suppress(sqlite3.Error):
        index = _open(path, owner)
        if index is not None:
            return index
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    connection = _connect(path)
    connection.executescript(_SCHEMA)
    connection.execute("INSERT INTO meta VALUES ('owner', ?)", (owner,))
    return BlockIndex(connection, _connect(path))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -4096")  # KiB
    return connection


def _open(path: Path, owner: str) -> BlockIndex | None:
    if not path.exists():
        return None
    connection = _connect(path)
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
            found = connection.execute("SELECT value FROM meta WHERE name = 'owner'").fetchone()
            if found == (owner,):
                return BlockIndex(connection, _connect(path))
    except sqlite3.Error:
        connection.close()
        raise
    connection.close()
    return None
