"""mount.db: a full disk is ENOSPC; a file that cannot be trusted is set aside, whatever is wrong with it."""

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from s3mgrd.cache import damage, witness
from s3mgrd.cache import database as database_module
from s3mgrd.cache.damage import why_distrusted
from s3mgrd.cache.database import LOST_INODES, MountDatabase, open_database
from s3mgrd.cache.nodes import Kind, NodeTable
from s3mgrd.cache.schema import APPLICATION_ID, SCHEMA_VERSION
from s3mgrd.cache.witness import INODES_BETWEEN
from s3mgrd.errors import Corrupt
from s3mgrd.fs.kernel.errnos import errno_of
from s3mgrd.worker.main import open_files
from tests.unit.fs.conftest import crash_database

ENTRIES = 3000
GARBAGE = bytes(i * i % 251 for i in range(100_000))


def fill(path: Path, *, stop: Callable[[MountDatabase], None]) -> int:
    """Make a database with entries; returns the last inode number."""
    database, aside = open_database(path)
    assert aside is None
    nodes = NodeTable(database)
    with database.transaction():
        last = max(nodes.insert(1, f"file-{i:05}", Kind.FILE, 1) for i in range(ENTRIES))
    stop(database)
    return last


def test_a_full_disk_is_enospc_and_changes_nothing(tmp_path: Path) -> None:
    database, _ = open_database(tmp_path / "mount.db")
    nodes = NodeTable(database)
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages + 4}")

    def fill_up() -> None:
        with database.transaction():
            for i in range(10_000):
                nodes.insert(1, f"file-{i}", Kind.FILE, 1)

    with pytest.raises(OSError, match="No space") as caught:
        fill_up()
    assert errno_of(caught.value) == errno.ENOSPC
    assert nodes.count_children(1, limit=1) == 0
    nodes.insert(1, "small", Kind.FILE, 1)
    database.close()


@pytest.mark.parametrize("stop", [MountDatabase.close, crash_database])
def test_a_sound_database_is_used_again(
    tmp_path: Path, stop: Callable[[MountDatabase], None]
) -> None:
    path = tmp_path / "mount.db"
    last = fill(path, stop=stop)
    for _ in range(2):
        database, aside = open_database(path)
        assert aside is None
        nodes = NodeTable(database)
        assert nodes.count_children(1, limit=2 * ENTRIES) >= ENTRIES
        new = nodes.insert(1, f"new-{last}", Kind.FILE, 1)
        # The end of a log may be lost unnoticed; what was given there is not given again.
        assert new > last + (LOST_INODES if stop is crash_database else 0)
        last = new
        stop(database)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flip_half(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 8192):
        data[page : page + 4096] = GARBAGE[:4096]
    path.write_bytes(data)


def _claim(path: Path, pragma: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA {pragma}")
    connection.close()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: _write(p, b""),
    "one byte": lambda p: _write(p, b"S"),
    "cut in the first page": lambda p: _write(p, p.read_bytes()[:100]),
    "cut after the first page": lambda p: _write(p, p.read_bytes()[:4096]),
    "cut in the middle": lambda p: _write(p, p.read_bytes()[: p.stat().st_size // 2]),
    "garbage": lambda p: _write(p, GARBAGE),
    "half the pages": _flip_half,
    "another program's": lambda p: _claim(p, "application_id = 42"),
    "newer": lambda p: _claim(p, f"user_version = {SCHEMA_VERSION + 1}"),
    "gone": Path.unlink,
}


def _drop(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE meta")
    connection.close()


DAMAGE["a table is missing"] = _drop


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_database_is_set_aside_and_numbers_go_on(tmp_path: Path, what: str) -> None:
    """The file is kept as it was, and no inode number that the kernel may hold is given again."""
    path = tmp_path / "mount.db"
    fill(path, stop=MountDatabase.close)
    database, _ = open_database(path)
    last = NodeTable(database).insert(1, "last", Kind.FILE, 1)
    database.close()
    DAMAGE[what](path)
    before = path.read_bytes() if path.exists() else None
    database, aside = open_database(path)
    assert aside is not None
    assert aside.reason
    if before is None:
        assert aside.path is None
    else:
        assert aside.path is not None
        assert aside.path.read_bytes() == before
    nodes = NodeTable(database)
    assert nodes.count_children(1, limit=1) == 0
    first = nodes.insert(1, "first", Kind.FILE, 1)
    assert last < first < last + 2 * INODES_BETWEEN
    database.close()
    _, again = open_database(path)
    assert again is None


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda wal: wal.write_bytes(b""),
        lambda wal: wal.write_bytes(b"garbage" * 1000),
        lambda wal: wal.write_bytes(wal.read_bytes()[:20] + b"!" + wal.read_bytes()[21:]),
    ],
    ids=["gone", "emptied", "garbage", "bad header"],
)
def test_a_lost_log_is_noticed(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    """Without it the database is whole, only older, and would give inode numbers twice."""
    path = tmp_path / "mount.db"
    last = fill(path, stop=crash_database)
    harm(tmp_path / "mount.db-wal")
    database, aside = open_database(path)
    assert aside is not None
    assert "mount.db-wal" in aside.reason
    assert NodeTable(database).insert(1, "new", Kind.FILE, 1) > last
    database.close()


def test_a_lost_log_after_a_loss_of_power_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk had not got is gone then, and the rest is sound; the kernel that held inodes is gone, too."""
    path = tmp_path / "mount.db"
    database, _ = open_database(path)
    database.close()
    fill(path, stop=crash_database)
    (tmp_path / "mount.db-wal").unlink()
    monkeypatch.setattr(witness, "boot_id", lambda: "another")
    database, aside = open_database(path)
    assert aside is None
    database.close()


def test_an_older_copy_of_the_database_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "mount.db"
    fill(path, stop=MountDatabase.close)
    copy = path.read_bytes()
    open_database(path)[0].close()
    path.write_bytes(copy)
    database, aside = open_database(path)
    assert aside is not None
    assert "older" in aside.reason
    database.close()


def test_a_crash_while_the_file_is_checked_is_no_loss(tmp_path: Path) -> None:
    """Checking neither folds the log back nor removes it."""
    path = tmp_path / "mount.db"
    fill(path, stop=crash_database)
    for _ in range(2):
        before = witness.Witness(tmp_path / "mount.witness")
        assert why_distrusted(path, before) == ""
        before.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", b'{"openings": "x"}'])
def test_a_witness_that_cannot_be_read_testifies_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mount.db"
    fill(path, stop=MountDatabase.close)
    (tmp_path / "mount.witness").write_bytes(content)
    database, aside = open_database(path)
    assert aside is None
    database.close()


def test_damage_met_while_the_file_is_used_is_remembered(tmp_path: Path) -> None:
    """The next worker sets the file aside, also if its own check finds nothing."""
    path = tmp_path / "mount.db"
    fill(path, stop=MountDatabase.close)
    database, _ = open_database(path)
    _flip_half(path)
    with pytest.raises(Corrupt):
        database.execute("SELECT sum(length(name)) FROM inodes")
    assert database.damage
    assert database.damaged.is_set()
    crash_database(database)
    database, aside = open_database(path)
    assert aside is not None
    assert "found while it was in use" in aside.reason
    database.close()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the full checks, and have every file be large."""
    made: list[str] = []
    really = damage.what_is_wrong

    def check(connection: sqlite3.Connection) -> str:
        made.append(really(connection))
        return made[-1]

    monkeypatch.setattr(damage, "LARGE_BYTES", 0)
    monkeypatch.setattr(damage, "what_is_wrong", check)
    monkeypatch.setattr(database_module, "what_is_wrong", check)
    monkeypatch.setattr(database_module, "CHECK_AFTER_S", 0)
    return made


async def test_a_large_file_that_nobody_touched_is_used_before_it_is_checked(
    tmp_path: Path, checks: list[str]
) -> None:
    """A restart need not wait for it."""
    path = tmp_path / "mount.db"
    fill(path, stop=MountDatabase.close)
    database, aside = open_database(path)
    assert (aside, checks) == (None, [])
    await database.check()
    await database.check()
    assert checks == [""]
    assert not database.damage
    database.close()


async def test_damage_without_a_trace_is_found_while_the_file_is_used(
    tmp_path: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk does it: no time of the file changes."""
    path = tmp_path / "mount.db"
    fill(path, stop=MountDatabase.close)
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)  # a page of the table's, which opening does not read
        file.write(GARBAGE[:4096])
    monkeypatch.setattr(witness.Witness, "is_as_it_was_closed", lambda *_: True)
    database, aside = open_database(path)
    assert (aside, checks) == (None, [])
    await database.check()
    assert database.damage
    assert database.damaged.is_set()
    crash_database(database)
    database, aside = open_database(path)
    assert aside is not None
    assert "found while it was in use" in aside.reason
    database.close()


@pytest.mark.parametrize("touch", ["write", "times", "copy", "crash", "opened and killed"])
def test_a_large_file_that_may_have_been_touched_is_checked_first(
    tmp_path: Path, checks: list[str], touch: str
) -> None:
    path = tmp_path / "mount.db"
    fill(path, stop=crash_database if touch == "crash" else MountDatabase.close)
    times = path.stat()
    if touch == "write":
        with path.open("r+b") as file:
            file.write(path.read_bytes()[:1])
    elif touch == "copy":
        path.rename(tmp_path / "other")
        path.write_bytes((tmp_path / "other").read_bytes())
    elif touch == "opened and killed":
        crash_database(open_database(path)[0])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    database, aside = open_database(path)
    assert aside is None
    assert checks == [""]
    database.close()


def test_a_newer_database_with_changes_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "mount.db"
    database, _ = open_database(path)
    with database.transaction() as db:
        db.execute("INSERT INTO deletes VALUES ('key', NULL, NULL, 1)")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(Corrupt, match="newer"):
        open_database(path)
    assert path.read_bytes() == before


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    database, _ = open_database(tmp_path / "mount.db")
    assert database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    assert database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    database.close()


def test_staged_data_of_a_lost_database_is_kept(tmp_path: Path) -> None:
    files = open_files(tmp_path)
    files.staging.create(7, 0).close()
    files.database.close()
    (tmp_path / "mount.db").unlink()
    files = open_files(tmp_path)
    assert files.damaged is not None
    assert files.staging.inodes() == {7}
    files.database.close()


def test_an_index_that_lost_entries_is_damage(tmp_path: Path) -> None:
    """All pages are whole, and yet names would not be found: a page of one index lies in the place of another's."""
    path = tmp_path / "mount.db"
    database, _ = open_database(path)
    with database.transaction() as db:
        db.execute("INSERT INTO inodes (parent, name, kind, mtime_ns) VALUES (1, 'a', 1, 0)")
    roots = dict(database.execute("SELECT name, rootpage FROM sqlite_schema").fetchall())
    database.close()
    size, content = 4096, bytearray(path.read_bytes())
    full, empty = roots["inodes_by_name"], roots["inodes_detached"]
    content[(full - 1) * size : full * size] = content[(empty - 1) * size : empty * size]
    path.write_bytes(content)
    database, aside = open_database(path)
    assert aside is not None
    assert "inodes_by_name" in aside.reason
    assert database.execute("SELECT count(*) FROM inodes").fetchone() == (0,)
    database.close()


def test_a_database_that_lacks_what_its_version_has_is_set_aside(tmp_path: Path) -> None:
    """Or no worker would ever begin: a migration that was forgotten cannot be made again."""
    path = tmp_path / "mount.db"
    open_database(path)[0].close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM _sqlite_migrations")
        connection.commit()
    database, aside = open_database(path)
    assert aside is not None
    assert "already exists" in aside.reason
    database.close()
