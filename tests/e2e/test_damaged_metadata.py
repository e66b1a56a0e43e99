"""mount.db lost or damaged while it is used, and while nobody looks: the mount comes up from S3 and nothing is lost."""

import errno
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

FILES = 3000
PAGE = 4096


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    endpoint: Endpoint
    client: Any
    bucket: str
    mount: Path

    @property
    def directory(self) -> Path:
        return self.daemon.state_dir / "mounts" / "m"

    def expect_told(self, reason: str) -> None:
        """Status, event and log say what happened and what to do."""

        def degraded() -> bool:
            status = self.daemon.show().status
            return (status.state, status.reason) == ("degraded", "metadata-damaged")

        wait_for("the status says that mount.db was set aside", degraded)
        assert reason in self.daemon.show().status.message
        with self.daemon.api.events(since=0) as events:
            assert any(event.data.get("reason") == "metadata-damaged" for event in events)
        log = (self.daemon.state_dir / "logs" / "m.log").read_text()
        assert "mount.db could not be trusted" in log
        assert "s3mgr conflicts m" in log

    def asides(self) -> int:
        """Count the databases that were set aside."""
        return sum(1 for p in self.directory.glob("mount.db.damaged-*") if not p.match("*-[sw]*"))

    def restored(self, path: str) -> bytes:
        """Restore the one copy that was recovered of *path*, and read it."""
        (copy,) = [c for c in self.daemon.api.list_conflicts("m").items if c.path == path]
        assert copy.reason == "recovered"
        self.daemon.run("conflicts", "restore", "m", str(copy.id), "--as", f"restored-{path}")
        return (self.mount / f"restored-{path}").read_bytes()


@pytest.fixture
def site(lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    for i in range(20):
        client.put_object(Bucket=bucket, Key=f"d/{i:02}", Body=f"content {i}".encode())
    daemon = lab.daemon()
    try:
        # What the kernel has gathered is not staged, and nobody can save it.
        options = "metadata_ttl_s=3600,writeback_cache=off"
        mount = daemon.mount(ministack, bucket, "m", "-o", options)
        yield Site(daemon, ministack, client, bucket, mount)
    finally:
        daemon.run("unmount", "m", "--discard", "--yes", check=False)
        remove_bucket(client, bucket)
        client.close()


def expect_errno(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as failure:
        call()
    assert failure.value.errno == number


def test_numbers_that_the_kernel_holds_lead_nowhere_when_the_log_is_lost(site: Site) -> None:
    """A worker that dies, and a log that is gone: SQLite would go on with an older database and give numbers again."""
    mount = site.mount
    before = {name: (mount / "d" / name).stat().st_ino for name in os.listdir(mount / "d")}
    reading = os.open(mount / "d" / "00", os.O_RDONLY | os.O_DIRECT)
    writing = os.open(mount / "unsent", os.O_CREAT | os.O_WRONLY)
    os.write(writing, b"acknowledged")
    (site.directory / "mount.db-wal").unlink()
    site.daemon.kill_worker()
    site.expect_told("mount.db-wal")
    expect_errno(errno.ESTALE, partial(os.read, reading, PAGE))
    expect_errno(errno.ESTALE, partial(os.write, writing, b"more"))
    expect_errno(errno.ESTALE, partial(os.fsync, writing))
    expect_errno(errno.ESTALE, partial(os.close, writing))
    os.close(reading)
    # Names that the kernel still believes in lead to numbers that are gone: it looks them up again by itself.
    for name, inode in before.items():
        assert (mount / "d" / name).read_bytes() == f"content {int(name)}".encode()
        assert (mount / "d" / name).stat().st_ino > max(before.values()), (name, inode)
    assert site.restored("unsent") == b"acknowledged"
    site.daemon.flush()
    stored = site.client.get_object(Bucket=site.bucket, Key="restored-unsent")
    assert stored["Body"].read() == b"acknowledged"


def test_a_file_of_garbage_is_set_aside_at_the_next_start(site: Site) -> None:
    mount, daemon = site.mount, site.daemon
    os.listdir(mount / "d")
    writing = os.open(mount / "unsent", os.O_CREAT | os.O_WRONLY)
    os.write(writing, b"acknowledged")
    change = os.open(mount / "d" / "07", os.O_WRONLY)
    os.pwrite(change, b"CHANGED", 2)
    daemon.kill_all()
    for descriptor in (writing, change):
        expect_errno(errno.ENOTCONN, partial(os.close, descriptor))
    for name in ("mount.db", "mount.db-wal"):
        (site.directory / name).write_bytes(b"garbage" * 10_000)
    daemon.start()
    site.expect_told("mount.db-wal")
    assert (mount / "d" / "07").read_bytes() == b"content 7"
    assert site.restored("unsent") == b"acknowledged"
    (copy,) = [c for c in daemon.api.list_conflicts("m").items if c.path == "d/07"]
    daemon.run("conflicts", "restore", "m", str(copy.id), "--as", "changed")
    assert (mount / "changed").read_bytes() == b"coCHANGED"
    aside = site.directory.glob("mount.db.damaged-*[!m]")  # all but its shared memory, -shm
    assert [path.read_bytes()[:7] for path in aside] == [b"garbage"] * 2


def test_damage_met_by_a_worker_ends_it_and_programs_do_not_notice(site: Site) -> None:
    for i in range(FILES):
        site.client.put_object(Bucket=site.bucket, Key=f"many/{i:04}", Body=b"x")
    assert len(os.listdir(site.mount / "many")) == FILES
    site.daemon.run(
        "restart", "m"
    )  # its database is folded together, and nothing of it is in memory
    pid = site.daemon.worker_pid()
    database = site.directory / "mount.db"
    with database.open("r+b") as file:
        for page in range(3, database.stat().st_size // PAGE):
            file.seek(page * PAGE)
            file.write(b"\xa5" * PAGE)
    names = [f"{i:04}" for i in range(FILES + 1)]
    assert [os.path.exists(site.mount / "many" / name) for name in names] == [True] * FILES + [
        False
    ]
    assert site.daemon.show().status.worker_pid != pid
    site.expect_told("found while it was in use")
    assert "mount.db is damaged" in (site.daemon.state_dir / "logs" / "m.log").read_text()


def cut_in_half(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def cut_within_a_page(database: Path) -> None:
    os.truncate(database, database.stat().st_size - 100)


def empty(database: Path) -> None:
    os.truncate(database, 0)


def zero_a_page(database: Path) -> None:
    _overwrite(database, 5 * PAGE, bytes(PAGE))


def flip_the_heads_of_pages(database: Path) -> None:
    for page in range(2, database.stat().st_size // PAGE):
        _overwrite(database, page * PAGE, b"\x5a\x5a\x5a\x5a\x5a")


def flip_the_first_byte(database: Path) -> None:
    _overwrite(database, 0, b"X")


def swap_two_pages(database: Path) -> None:
    content = database.read_bytes()
    _overwrite(database, 3 * PAGE, content[6 * PAGE : 7 * PAGE] + content[4 * PAGE : 5 * PAGE])


def put_another_programs_there(database: Path) -> None:
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA application_id = 4711")
        connection.execute("CREATE TABLE inodes (id INTEGER PRIMARY KEY)")


def put_an_older_one_there(database: Path) -> None:
    database.write_bytes(database.with_name("older").read_bytes())


def put_a_text_there(database: Path) -> None:
    database.write_text("This is no database at all.\n" * 1000)


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


DAMAGES = (
    cut_in_half,
    cut_within_a_page,
    empty,
    zero_a_page,
    flip_the_heads_of_pages,
    flip_the_first_byte,
    swap_two_pages,
    put_another_programs_there,
    put_an_older_one_there,
    put_a_text_there,
)


def test_whatever_happened_to_the_file_the_tree_comes_from_s3_and_staged_data_is_kept(
    site: Site,
) -> None:
    """Each kind of damage to the file of a mount in use, and the worker dies at once.

    What the log has been told since the last restart may mend the file; then nothing was damaged.
    """
    mount, daemon, database = site.mount, site.daemon, site.directory / "mount.db"
    database.with_name("older").write_bytes(database.read_bytes())
    noticed: list[str] = []
    for damage in DAMAGES:
        name = damage.__name__
        assert len(os.listdir(mount / "d")) == 20
        daemon.run("restart", "m")
        writing = os.open(mount / name, os.O_CREAT | os.O_WRONLY)
        os.write(writing, name.encode())
        pid = daemon.show().status.worker_pid
        assert pid is not None
        damage(database)
        os.kill(pid, signal.SIGKILL)
        found = {entry: (mount / "d" / entry).read_bytes() for entry in os.listdir(mount / "d")}
        assert found == {f"{i:02}": f"content {i}".encode() for i in range(20)}, name
        if site.asides() == len(noticed):
            os.close(writing)
            assert (mount / name).read_bytes() == name.encode(), name
            continue
        noticed.append(name)
        expect_errno(errno.ESTALE, partial(os.close, writing))
        assert site.restored(name) == name.encode(), name
    assert len(noticed) >= 8, noticed
    site.expect_told("mount.db could not be trusted")
