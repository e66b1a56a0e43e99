"""The tables of the journal by themselves: what a statement may change, and what it leaves as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.cache.database import MountDatabase, open_database
from s3mgrd.journal.tables import KEPT_CALLS, Journal


@pytest.fixture
def database(tmp_path: Path) -> Iterator[MountDatabase]:
    opened, _ = open_database(tmp_path / "mount.db")
    yield opened
    opened.close()


def put(journal: Journal, inode: int, *, dirty: bool = True) -> None:
    """Stage a new file."""
    journal.put_staged(
        inode, dirty=dirty, base_etag=None, base_size=0, condition="always", now_ns=1
    )


def retry_ns(journal: Journal, inode: int) -> int | None:
    """Return when the upload of a staged file is due."""
    row = journal.staged(inode)
    assert row is not None
    return row.retry_ns


def test_what_s3_lacks_is_queued_once(database: MountDatabase) -> None:
    """Whoever closes a file once more leaves it at its place in the queue."""
    journal = Journal(database)
    put(journal, 2)
    assert journal.queue_staged(2, 10)
    assert not journal.queue_staged(2, 20)
    assert retry_ns(journal, 2) == 10


def test_a_try_that_failed_keeps_its_time(database: MountDatabase) -> None:
    journal = Journal(database)
    put(journal, 2)
    journal.fail_staged(2, "no", conflict=False, retry_ns=100)
    assert not journal.queue_staged(2, 10)
    assert retry_ns(journal, 2) == 100


def test_nothing_else_is_queued(database: MountDatabase) -> None:
    """Neither what S3 has, nor what it will never take, nor a file of which nothing is staged."""
    journal = Journal(database)
    put(journal, 2, dirty=False)
    put(journal, 3)
    journal.fail_staged(3, "no", conflict=True, retry_ns=None)
    assert not journal.queue_staged(2, 10)
    assert not journal.queue_staged(3, 10)
    assert not journal.queue_staged(4, 10)
    assert (retry_ns(journal, 2), retry_ns(journal, 3)) == (None, None)


def test_a_call_is_remembered_as_long_as_it_may_be_asked_about(database: MountDatabase) -> None:
    """Few are for longer."""
    journal = Journal(database)
    for number in range(1, 1000):
        journal.put_call(number, number, oldest=max(1, number - 2))
        assert [journal.call_result(n) for n in range(max(1, number - 2), number + 1)] == [
            *range(max(1, number - 2), number + 1)
        ]
    kept = database.execute("SELECT count(*) FROM calls").fetchone()[0]
    assert kept <= KEPT_CALLS + 3
