"""state.db is opened whole, or refused with what to do; never replaced by a new one."""

import sqlite3
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio

from s3mgr.schema import Operation
from s3mgrd.errors import Corrupt, Denied, Unavailable
from s3mgrd.mounts.store import MountRecord, OperationRecord
from s3mgrd.state.opening import open_database, read_mountpoints
from s3mgrd.state.store import StateStore, open_store
from tests.fakes.control import KEYS, make_spec

NOW = datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def record(name: str = "data", **changes: object) -> MountRecord:
    base = {
        "name": name,
        "spec": make_spec(name),
        "generation": 1,
        "desired": "mounted",
        "owner_uid": 1000,
        "owner_gid": 100,
        "created_at": NOW,
        "credentials": KEYS,
    }
    return MountRecord(**(base | changes))  # type: ignore[arg-type]  # test data


def opened(directory: Path) -> StateStore:
    store, warnings = open_store(str(directory), boot_id="boot")
    assert warnings == []
    return store


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed state.db with a few hundred operations, so that it has many pages."""
    operation = Operation(
        id="", kind="mount", target="x" * 100, state="running", created_at=NOW, boot_id="b"
    )

    async def fill() -> None:
        with opened(tmp_path) as store:
            await store.save_mount(record())
            await store.save_operations(
                tuple(
                    OperationRecord(
                        operation=msgspec.structs.replace(operation, id=str(n)), owner_uid=0
                    )
                    for n in range(200)
                )
            )

    trio.run(fill)
    return tmp_path / "state.db"


def test_a_new_file_is_private_and_durable(tmp_path: Path) -> None:
    db, _ = open_database(str(tmp_path), boot_id="boot")
    try:
        assert stat.S_IMODE((tmp_path / "state.db").stat().st_mode) == 0o600
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
        assert db.execute("pragma synchronous").fetchone() == (2,)
        assert db.execute("pragma foreign_keys").fetchone() == (1,)
    finally:
        db.close()


async def test_what_was_kept_is_there_again(filled: Path) -> None:
    with opened(filled.parent) as store:
        stored = await store.load()
    assert stored.mounts == (record(),)
    assert len(stored.operations) == 200


def test_a_file_truncated_anywhere_is_refused_and_left_alone(filled: Path) -> None:
    """Every length at a page's border and around it, and inside the header."""
    whole = filled.read_bytes()
    page = 4096
    lengths = {0, 1, 15, 16, 99, 100, 511, 512, 1024}
    for border in range(page, len(whole) + 1, page):
        lengths |= {border - 1, border, border + 1}
    for length in sorted(n for n in lengths if n < len(whole)):
        filled.write_bytes(whole[:length])
        with pytest.raises(Corrupt) as caught:
            open_store(str(filled.parent), boot_id="boot")
        assert "restore" in caught.value.hint, length
        assert filled.read_bytes() == whole[:length], length


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table mounts (x)")
    db.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(
            "insert into _sqlite_migrations (migration_set, name, applied_at) "
            "values ('s3mgr.state', 'm999_of_the_future', '2040')"
        )
    db.close()


def scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5000:9000] = b"\xee" * 4000
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (garbage, "not an SQLite database"),
        (foreign, "another program"),
        (newer, "newer version"),
        (scribbled, "damaged"),
    ],
)
def test_what_cannot_be_ours_is_refused_with_what_to_do(
    damage: Callable[[Path], None], words: str, filled: Path
) -> None:
    damage(filled)
    before = filled.read_bytes()
    with pytest.raises(Corrupt, match=words) as caught:
        open_store(str(filled.parent), boot_id="boot")
    assert caught.value.hint
    assert filled.read_bytes() == before


async def test_a_spec_that_cannot_be_read_is_refused(filled: Path) -> None:
    with sqlite3.connect(filled) as db:
        db.execute("update mounts set spec = '{\"bucket\": 1}'")
    db.close()
    with opened(filled.parent) as store, pytest.raises(Corrupt, match="MountSpec"):
        await store.load()


def test_a_missing_file_beside_journals_is_not_silent(tmp_path: Path) -> None:
    for name in ("logs", "data"):
        (tmp_path / "mounts" / name).mkdir(parents=True)
        (tmp_path / "mounts" / name / "mount.db").touch()
    store, warnings = open_store(str(tmp_path), boot_id="boot")
    with store:
        assert len(warnings) == 1
        assert "data, logs" in warnings[0]
    assert (tmp_path / "mounts" / "data" / "mount.db").exists()
    store, warnings = open_store(str(tmp_path), boot_id="boot")
    with store:
        assert warnings == []


def test_a_log_without_its_file_is_not_replayed_into_a_new_one(filled: Path) -> None:
    db, _ = open_database(str(filled.parent), boot_id="boot")
    db.execute("insert into meta values ('x', 'y')")
    db.conn.commit()
    log = Path(f"{filled}-wal").read_bytes()
    db.close()
    filled.unlink()
    Path(f"{filled}-wal").write_bytes(log)
    with opened(filled.parent):
        assert Path(f"{filled}-wal.orphan").read_bytes() == log


def test_a_half_made_new_file_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "state.db.new").write_bytes(b"half")
    with opened(tmp_path):
        assert not (tmp_path / "state.db.new").exists()


def test_a_symlink_or_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").symlink_to("/etc/passwd")
    with pytest.raises((Unavailable, Denied)):
        open_store(str(tmp_path), boot_id="boot")
    (tmp_path / "state.db").unlink()
    (tmp_path / "state.db").mkdir()
    with pytest.raises((Unavailable, Denied)):
        open_store(str(tmp_path), boot_id="boot")


async def test_where_mounts_belong_can_be_read_whether_or_not_a_daemon_has_the_file_open(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        await store.save_mount(record("a"))
        await store.save_mount(record("b"))
        expected = {make_spec("a").mountpoint, make_spec("b").mountpoint}
        assert read_mountpoints(str(tmp_path)) == expected
    assert read_mountpoints(str(tmp_path)) == expected


def test_a_state_directory_without_state_says_so_and_gets_none(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="unable to open"):
        read_mountpoints(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
