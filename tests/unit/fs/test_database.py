"""mount.db: a full disk is ENOSPC, a damaged file is set aside, a newer one refused."""

import errno
from pathlib import Path

import pytest

from s3mgrd.cache.database import open_database
from s3mgrd.cache.nodes import Kind, NodeTable
from s3mgrd.cache.schema import SCHEMA_VERSION
from s3mgrd.errors import Corrupt
from s3mgrd.fs.errnos import errno_of
from s3mgrd.worker.main import open_files


def test_a_full_disk_is_enospc_and_changes_nothing(tmp_path: Path) -> None:
    database, _ = open_database(tmp_path / "mount.db")
    nodes = NodeTable(database)
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages + 4}")

    def fill() -> None:
        with database.transaction():
            for i in range(10_000):
                nodes.insert(1, f"file-{i}", Kind.FILE, 1)

    with pytest.raises(OSError, match="No space") as caught:
        fill()
    assert errno_of(caught.value) == errno.ENOSPC
    assert nodes.count_children(1, limit=1) == 0
    nodes.insert(1, "small", Kind.FILE, 1)
    database.close()


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 20_000])
def test_a_truncated_database_is_set_aside_with_its_staged_data(tmp_path: Path, size: int) -> None:
    """Nothing says what staged data is without the journal, and none of it may be deleted."""
    files = open_files(tmp_path)
    files.staging.create(7, 0).close()
    files.database.close()
    whole = (tmp_path / "mount.db").read_bytes()
    (tmp_path / "mount.db").write_bytes(whole[:size])
    files = open_files(tmp_path)
    assert files.damaged is not None
    assert files.staging.inodes() == set()
    assert [p.name for p in tmp_path.glob("staging.damaged-*/7")] == ["7"]
    assert (tmp_path / files.damaged.path.name).read_bytes() == whole[:size]
    files.database.close()


def test_staged_data_without_any_database_is_set_aside(tmp_path: Path) -> None:
    files = open_files(tmp_path)
    files.staging.create(7, 0).close()
    files.database.close()
    (tmp_path / "mount.db").unlink()
    files = open_files(tmp_path)
    assert files.damaged is not None
    assert [p.name for p in tmp_path.glob("staging.damaged-*/7")] == ["7"]
    files.database.close()


def test_a_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    database, _ = open_database(tmp_path / "mount.db")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = (tmp_path / "mount.db").read_bytes()
    with pytest.raises(Corrupt, match="newer"):
        open_database(tmp_path / "mount.db")
    assert (tmp_path / "mount.db").read_bytes() == before
