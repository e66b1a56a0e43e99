"""Two mounts of one bucket and a writer outside, with TTLs of 0 and 30 s: what is seen when, to the second.

The clock is the test's (`tests.e2e.clocked_daemon`), so nobody waits, and one second too early is told from in time.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.clocked_daemon import Clock, start_clocked
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

TTL_S = 30


@dataclass
class Site:
    """One bucket, mounted as here and there with one TTL, and somebody else who uses the bucket."""

    daemon: Daemon
    clock: Clock
    endpoint: Endpoint
    bucket: str
    ttl_s: int

    def __post_init__(self) -> None:
        self.client = self.endpoint.boto3()
        options = f"metadata_ttl_s={self.ttl_s},negative_ttl_s={self.ttl_s}"
        self.names = f"here{self.ttl_s}", f"there{self.ttl_s}"
        self.here, self.there = (
            self.daemon.mount(self.endpoint, self.bucket, name, "-o", options)
            for name in self.names
        )

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def follow(self) -> None:
        """Wait until S3 has what was done there."""
        self.daemon.flush(self.names[1])

    def requests(self) -> int:
        """Count what the mount here has asked S3."""
        return sum(call.count for call in self.daemon.api.mount_stats(self.names[0]).s3)


@pytest.fixture(scope="module")
def bucket(ministack: Endpoint) -> Iterator[str]:
    client = ministack.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


@pytest.fixture(scope="module")
def sites(module_lab: Lab, ministack: Endpoint, bucket: str) -> dict[int, Site]:
    daemon, clock = start_clocked(module_lab)
    return {ttl_s: Site(daemon, clock, ministack, bucket, ttl_s) for ttl_s in (0, TTL_S)}


@pytest.fixture(params=[0, TTL_S], ids=["ttl 0", "ttl 30"])
def site(request: pytest.FixtureRequest, sites: dict[int, Site]) -> Site:
    site = sites[request.param]
    site.clock.later(TTL_S + 1)  # nothing is believed any more of what the test before has done
    return site


# What another does, to a file `f` in a directory of the test's own.


def overwritten(site: Site, where: str) -> None:
    (site.there / where / "f").write_bytes(b"new")


def changed_in_place(site: Site, where: str) -> None:
    with (site.there / where / "f").open("r+b") as file:
        file.write(b"new")


def renamed_onto(site: Site, where: str) -> None:
    (site.there / where / "g").write_bytes(b"new")
    (site.there / where / "g").rename(site.there / where / "f")


def removed(site: Site, where: str) -> None:
    (site.there / where / "f").unlink()


def overwritten_outside(site: Site, where: str) -> None:
    site.put(f"{where}/f", b"new")


def removed_outside(site: Site, where: str) -> None:
    site.client.delete_object(Bucket=site.bucket, Key=f"{where}/f")


Change = Callable[[Site, str], None]
CHANGES = [
    pytest.param(None, overwritten, b"new", id="made there"),
    pytest.param(None, overwritten_outside, b"new", id="made outside"),
    pytest.param(b"old", overwritten, b"new", id="overwritten there"),
    pytest.param(b"old", changed_in_place, b"new", id="changed in place there"),
    pytest.param(b"old", renamed_onto, b"new", id="renamed onto there"),
    pytest.param(b"old", overwritten_outside, b"new", id="overwritten outside"),
    pytest.param(b"old", removed, None, id="removed there"),
    pytest.param(b"old", removed_outside, None, id="removed outside"),
]


def read(path: Path) -> bytes | None:
    """Open, read and close; None: there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def pread_or_errno(descriptor: int, size: int) -> bytes | int:
    try:
        return os.pread(descriptor, size, 0)
    except OSError as error:
        return error.errno or 0


@pytest.mark.parametrize(("before", "change", "after"), CHANGES)
def test_what_was_closed_there_is_seen_by_an_open_here_when_the_ttl_is_over_and_no_second_before(
    site: Site,
    before: bytes | None,
    change: Change,
    after: bytes | None,
    request: pytest.FixtureRequest,
) -> None:
    where = request.node.name.partition("[")[2].rstrip("]").replace(" ", "-")
    site.put(f"{where}/other", b"")
    if before is not None:
        site.put(f"{where}/f", before)
    site.clock.later(TTL_S + 1)
    directory, path = site.here / where, site.here / where / "f"
    seen_before = sorted({"other"} | ({"f"} if before is not None else set()))
    seen_after = sorted({"other"} | ({"f"} if after is not None else set()))
    assert sorted(os.listdir(directory)) == seen_before
    assert read(path) == before
    change(site, where)
    site.follow()
    if site.ttl_s:
        site.clock.later(TTL_S - 2)
        asked = site.requests()
        assert read(path) == before
        assert sorted(os.listdir(directory)) == seen_before
        assert site.requests() == asked
        site.clock.later(3)
    assert read(path) == after
    assert sorted(os.listdir(directory)) == seen_after
    if after is not None:
        assert path.stat().st_size == len(after)


def test_an_open_file_is_one_version_throughout(site: Site) -> None:
    """Pages that were read, a mapping, and what has yet to be read: all of it is the old version, or none."""
    size = 3 << 20
    site.put("big", b"a" * size)
    site.clock.later(TTL_S + 1)
    descriptor = os.open(site.here / "big", os.O_RDONLY)
    try:
        assert os.pread(descriptor, 10, 0) == b"a" * 10
        site.put("big", b"b" * size)
        site.clock.later(TTL_S + 1)
        assert (site.here / "big").read_bytes() == b"b" * size
        assert os.pread(descriptor, 10, 0) == b"a" * 10
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:10] == b"a" * 10
        rest = pread_or_errno(descriptor, size)
        assert rest == errno.ESTALE or (isinstance(rest, bytes) and set(rest) == set(b"a"))
    finally:
        os.close(descriptor)


def test_who_was_second_loses_also_while_the_mount_still_believes_the_old(site: Site) -> None:
    """What the TTL lets a mount believe decides what is shown, never what is overwritten."""
    site.put("race", b"base")
    site.clock.later(TTL_S + 1)
    assert (site.here / "race").read_bytes() == b"base"
    descriptor = os.open(site.here / "race", os.O_RDWR)
    site.put("race", b"theirs")
    os.pwrite(descriptor, b"mine", 0)
    with pytest.raises(OSError, match="Stale"):
        os.close(descriptor)
    assert (site.here / "race").read_bytes() == b"theirs"
    body = site.client.get_object(Bucket=site.bucket, Key="race")["Body"].read()
    assert body == b"theirs"
    site.daemon.run("conflicts", "discard", site.names[0], "--all", "--yes")


def test_an_invalidation_makes_the_next_look_ask_whatever_the_ttl(site: Site) -> None:
    site.put("asked", b"old")
    site.clock.later(TTL_S + 1)
    assert (site.here / "asked").read_bytes() == b"old"
    site.put("asked", b"new")
    site.daemon.run("invalidate", site.names[0], "asked")
    assert (site.here / "asked").read_bytes() == b"new"


def test_what_a_restarted_worker_believes_is_as_old_as_it_was(site: Site) -> None:
    where = f"kept{site.ttl_s}"
    site.put(f"{where}/a", b"a")
    site.clock.later(TTL_S + 1)
    assert os.listdir(site.here / where) == ["a"]
    site.put(f"{where}/b", b"b")
    site.daemon.wait_replaced(site.daemon.kill_worker(site.names[0]), site.names[0])
    if site.ttl_s:
        site.clock.later(TTL_S - 2)
        assert os.listdir(site.here / where) == ["a"]
        site.clock.later(3)
    assert sorted(os.listdir(site.here / where)) == ["a", "b"]
