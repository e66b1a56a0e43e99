"""Rows of inodes: what is remembered of them is never out of date."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.cache.database import MountDatabase, open_database
from s3mgrd.cache.nodes import ROOT, Kind, NodeTable


@pytest.fixture
def database(tmp_path: Path) -> Iterator[MountDatabase]:
    opened, _ = open_database(tmp_path / "mount.db")
    yield opened
    opened.close()


def test_a_row_is_read_again_after_every_change(database: MountDatabase) -> None:
    """Also one that was made past the table, as the journal does."""
    nodes = NodeTable(database)
    inode = nodes.insert(ROOT, "a", Kind.FILE, 1)
    before = nodes.get(inode)
    assert before is not None
    assert nodes.get(inode) is before
    nodes.update(inode, size=5)
    with database.transaction() as db:
        db.execute("UPDATE inodes SET mtime_ns = 2")
    after = nodes.get(inode)
    assert after is not None
    assert (after.size, after.mtime_ns) == (5, 2)
    nodes.drop(inode)
    assert nodes.get(inode) is None


def test_a_row_is_read_again_after_a_rollback(database: MountDatabase) -> None:
    """What was read inside a transaction that failed never was."""
    nodes = NodeTable(database)
    inode = nodes.insert(ROOT, "a", Kind.FILE, 1)

    def change_and_fail() -> None:
        with database.transaction():
            nodes.update(inode, size=5)
            changed = nodes.get(inode)
            assert changed is not None
            assert changed.size == 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_and_fail()
    after = nodes.get(inode)
    assert after is not None
    assert after.size == 0
