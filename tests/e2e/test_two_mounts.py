"""Two mounts of one bucket and a writer outside: what is seen when, who wins, and what becomes of the rest."""

import errno
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgr.schema import ConditionSupport, Event
from tests.e2e.lab import Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

BIG = bytes(range(256)) * (8 << 12)  # 8 MiB
NO_TTL = ("-o", "metadata_ttl_s=0,negative_ttl_s=0")


class Site:
    """One bucket, mounted as ``here`` and ``there`` without a TTL, and somebody else who uses the bucket."""

    def __init__(self, daemon: Daemon, endpoint: Endpoint, bucket: str) -> None:
        self.daemon = daemon
        self.endpoint = endpoint
        self.bucket = bucket
        self.client = endpoint.boto3()
        self.here = daemon.mount(endpoint, bucket, "here", *NO_TTL)
        self.there = daemon.mount(endpoint, bucket, "there", *NO_TTL)

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def conflicts(self, name: str = "here") -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(
            self.daemon.run("conflicts", name, "--json").stdout
        )["items"]
        return found

    def lose(self, name: str, mine: bytes = b"mine") -> None:
        """Change all of a file here, and let the other mount be first."""
        self.put(name, b"base")
        fd = os.open(self.here / name, os.O_RDWR)
        os.pwrite(fd, mine, 0)
        (self.there / name).write_bytes(b"theirs")
        assert close_error(fd) == errno.ESTALE


@pytest.fixture(scope="module")
def site(module_lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    site = Site(module_lab.daemon(), ministack, bucket)
    try:
        yield site
    finally:
        site.daemon.run("unmount", "--all", "--discard", "--yes")
        remove_bucket(client, bucket)


def close_error(fd: int) -> int:
    """Close, and return the errno that it gave, or 0."""
    try:
        os.close(fd)
    except OSError as error:
        return error.errno or 0
    return 0


def test_what_was_closed_there_is_seen_by_a_later_open_here(site: Site) -> None:
    """Contents, names, and names that are gone; a mount that asks always needs no invalidation."""
    assert not (site.here / "seen").exists()
    for text in (b"one", b"two, longer", b"3"):
        (site.there / "seen").write_bytes(text)
        assert (site.here / "seen").read_bytes() == text
        assert (site.here / "seen").stat().st_size == len(text)
    (site.there / "seen").unlink()
    site.daemon.flush("there")
    assert not (site.here / "seen").exists()
    site.put("seen", b"from outside")
    assert (site.here / "seen").read_bytes() == b"from outside"


def test_who_is_second_hears_it_and_the_name_shows_the_winner_at_once(site: Site) -> None:
    """Also to a program that looks the name up in the same moment: the kernel does not keep the old answer."""
    cursor = site.daemon.api.list_mounts().cursor
    site.lose("race")
    assert (site.here / "race").read_bytes() == b"theirs"
    assert (site.here / "race").stat().st_nlink == 1
    (copy,) = site.conflicts()
    assert (copy["path"], copy["reason"], copy["size_bytes"]) == ("race", "replaced", 4)
    assert wait_for("the status counts it", lambda: site.daemon.show("here").status.conflicts) == 1
    assert site.daemon.api.mount_stats("here").conflicts_lost == 1
    event = _conflict_event(site, cursor)
    assert (event.mount, event.data["action"], event.data["id"]) == ("here", "kept", copy["id"])
    done = site.daemon.run("conflicts", "restore", "here", str(copy["id"]), "--as", "mine")
    assert f"restored 4 B as {site.here}/mine" in done.stderr
    assert (site.here / "mine").read_bytes() == b"mine"
    site.daemon.flush("here")
    assert site.get("mine") == b"mine"
    assert site.conflicts() == []


def _conflict_event(site: Site, cursor: int) -> Event:
    with site.daemon.api.events(since=cursor) as events:
        return next(event for event in events if event.type == "mount.conflict")


def test_who_goes_on_writing_hears_it_each_time_and_loses_nothing(site: Site) -> None:
    """A logger that keeps its file open, and whose worker is killed besides."""
    site.put("log", b"1\n")
    fd = os.open(site.here / "log", os.O_RDWR)
    os.pwrite(fd, b"a\n", 0)
    site.put("log", b"other\n")
    for line in (2, 4):
        os.pwrite(fd, b"b\n", line)
        with pytest.raises(OSError, match="Stale") as caught:
            os.fsync(fd)
        assert caught.value.errno == errno.ESTALE
        pid = site.daemon.kill_worker("here")
        site.daemon.wait_replaced(pid, "here")
    assert os.pread(fd, 100, 0) == b"a\nb\nb\n"
    (copy,) = site.conflicts()
    assert copy["is_open"] is True
    site.daemon.run("conflicts", "restore", "here", str(copy["id"]), "--as", "log.mine")
    os.pwrite(fd, b"c\n", 6)
    assert close_error(fd) == 0
    assert site.get("log.mine") == b"a\nb\nb\nc\n"
    assert site.get("log") == b"other\n"


def test_of_two_exclusive_creators_exactly_one_wins(site: Site) -> None:
    """Also of an empty lock file, where both wrote the same."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    fds = [os.open(mount / "lock", flags) for mount in (site.here, site.there)]
    assert sorted(close_error(fd) for fd in fds) == [0, errno.ESTALE]
    with pytest.raises(FileExistsError):
        os.open(site.here / "lock", flags)
    for name in ("here", "there"):
        site.daemon.run("conflicts", "discard", name, "--all", "--yes")
        assert site.conflicts(name) == []


@pytest.mark.parametrize("how", ["read", "mmap", "direct"])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_open_file_is_one_version_or_an_error(site: Site, how: str, *, restarted: bool) -> None:
    """Replaced by one of the same length while it is open: nothing of the new one is ever shown in it."""
    name = f"big-{how}-{restarted}"
    site.put(name, BIG)
    fd = os.open(site.here / name, os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0))
    try:
        assert _read(fd, 0, how) == BIG[: 1 << 16]
        site.put(name, b"x" * len(BIG))
        assert (site.here / name).read_bytes() == b"x" * len(BIG)
        if restarted:
            pid = site.daemon.kill_worker("here")
            site.daemon.wait_replaced(pid, "here")
        for offset in range(0, len(BIG), 1 << 20):
            if how == "mmap" and offset >= 1 << 20:
                break  # a page that cannot be had is SIGBUS
            assert _read(fd, offset, how) in (None, BIG[offset : offset + (1 << 16)])
    finally:
        os.close(fd)


def _read(fd: int, offset: int, how: str) -> bytes | None:
    """Read 64 KiB; None: ESTALE."""
    length = 1 << 16
    if how == "mmap":
        with mmap.mmap(fd, length, prot=mmap.PROT_READ) as mapped:
            return mapped[:length]
    buffer = mmap.mmap(-1, length)  # aligned, as O_DIRECT wants it
    try:
        got = os.preadv(fd, [buffer], offset)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None
    return buffer[:got]


def test_copies_outlive_unmounting_and_keep_the_definition(site: Site) -> None:
    site.lose("kept")
    done = site.daemon.run("unmount", "here")
    assert "1 conflict copy stays here" in done.stderr
    status = site.daemon.show("here").status
    assert (status.state, status.reason) == ("unmounted", "conflicts-kept")
    site.daemon.stop()
    site.daemon.start()
    site.here = site.daemon.mount(site.endpoint, site.bucket, "here", *NO_TTL)
    (copy,) = site.conflicts()
    assert copy["path"] == "kept"
    done = site.daemon.run("conflicts", "restore", "here", str(copy["id"]))
    (restored,) = [path for path in site.here.iterdir() if path.name.startswith("kept.conflict-")]
    assert restored.read_bytes() == b"mine"
    site.daemon.run("unmount", "here")
    assert "here" not in [mount.name for mount in site.daemon.api.list_mounts().items]
    site.here = site.daemon.mount(site.endpoint, site.bucket, "here", *NO_TTL)


def test_what_the_store_does_with_conditions_is_shown(site: Site) -> None:
    """A change in place and a removal are enough to know."""
    site.put("edited", b"one")
    with (site.here / "edited").open("r+b") as file:
        file.write(b"two")
    (site.here / "edited").unlink()
    site.daemon.flush("here")

    def conditions() -> ConditionSupport | None:
        found = site.daemon.show("here").status.conditions
        return found if "unknown" not in (found.put_if_match, found.delete) else None

    found = wait_for("the status says so", conditions)
    assert (found.put_if_match, found.delete) == ("supported", "supported")


def test_a_path_of_a_mount_may_stand_for_its_name(site: Site, tmp_path: Path) -> None:
    assert "no conflict copies" in site.daemon.run("conflicts", str(site.here)).stderr


def test_a_copy_is_complete_where_the_bucket_keeps_versions(site: Site) -> None:
    """Of a change in the middle nothing else was read here, and its base is no longer what lies at the key."""
    site.client.put_bucket_versioning(
        Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    site.put("kept", b"0123456789")
    fd = os.open(site.here / "kept", os.O_WRONLY)
    os.pwrite(fd, b"XY", 2)
    site.put("kept", b"theirs")
    assert close_error(fd) == errno.ESTALE
    (copy,) = [c for c in site.conflicts() if c["path"] == "kept"]
    site.daemon.run("conflicts", "restore", "here", str(copy["id"]), "--as", "mine-kept")
    assert (site.here / "mine-kept").read_bytes() == b"01XY456789"
    assert (site.here / "kept").read_bytes() == b"theirs"
