"""The kernel keeps directories' entries itself, and shows them only while they are what S3 and the mount have."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket


class Site:
    """A bucket mounted with a given trust, somebody else who writes to it, and what the worker is asked."""

    def __init__(self, daemon: Daemon, endpoint: Endpoint, name: str, ttl_s: int) -> None:
        self.daemon = daemon
        self.name = name
        self.client: Any = endpoint.boto3()
        self.bucket = make_bucket(self.client)
        self.put("d/a")
        self.put("d/b")
        options = "-o", f"metadata_ttl_s={ttl_s}"
        self.directory = daemon.mount(endpoint, self.bucket, name, *options) / "d"

    def put(self, key: str) -> None:
        """Write behind the mount's back."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=b"x")

    def remove(self, key: str) -> None:
        """Delete behind the mount's back."""
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def asked(self) -> int:
        """Count how often the worker was asked for entries."""
        counts = self.daemon.api.mount_stats(self.name).fuse
        return sum(c.count for c in counts if c.name == "readdir")

    def ls(self, directory: Path | None = None) -> list[str]:
        return sorted(os.listdir(directory or self.directory))

    def is_kept(self) -> bool:
        """Whether another listing is answered without the worker."""
        before = self.asked()
        self.ls()
        return self.asked() == before

    def end(self) -> None:
        self.daemon.run("unmount", self.name)
        remove_bucket(self.client, self.bucket)


@pytest.fixture(scope="module")
def daemon(module_lab: Lab) -> Daemon:
    return module_lab.daemon()


@pytest.fixture
def site(daemon: Daemon, ministack: Endpoint) -> Iterator[Site]:
    """Give a mount that trusts a listing for an hour."""
    made = Site(daemon, ministack, "kept", 3600)
    yield made
    made.end()


def test_entries_are_kept_until_somebody_says_that_they_changed(site: Site) -> None:
    """What others write is seen after an invalidation, at once and completely."""
    assert site.ls() == ["a", "b"]
    assert site.is_kept()
    site.put("d/c")
    site.remove("d/a")
    assert site.ls() == ["a", "b"]  # an hour is an hour
    site.daemon.run("invalidate", "kept", "d")
    assert site.ls() == ["b", "c"]
    assert site.is_kept()
    assert {entry.name for entry in os.scandir(site.directory) if entry.stat().st_size} == {
        "b",
        "c",
    }


def test_changes_through_the_mount_are_seen_at_once(site: Site) -> None:
    """Also between directories, and back again."""
    other = site.directory.parent / "other"
    other.mkdir()
    for directory in (site.directory, other) * 2:
        site.ls(directory)
    (site.directory / "new").write_bytes(b"1")
    assert site.ls() == ["a", "b", "new"]
    (site.directory / "new").rename(site.directory / "newer")
    assert site.ls() == ["a", "b", "newer"]
    (site.directory / "a").rename(other / "a")
    assert (site.ls(), site.ls(other)) == (["b", "newer"], ["a"])
    (other / "a").rename(site.directory / "b")
    assert (site.ls(), site.ls(other)) == (["b", "newer"], [])
    (site.directory / "newer").unlink()
    assert site.ls() == ["b"]
    site.ls()
    assert site.is_kept()


def test_the_next_worker_trusts_nothing_that_the_kernel_kept(site: Site) -> None:
    """It cannot know what the kernel was given; what it says itself is kept again."""
    site.ls()
    assert site.is_kept()
    site.put("d/c")
    killed = site.daemon.kill_worker("kept")
    site.daemon.wait_replaced(killed, "kept")
    assert site.ls() == ["a", "b"]
    assert site.asked() > 0
    assert site.is_kept()
    site.daemon.kill_worker("kept")
    site.daemon.run("invalidate", "kept")
    assert site.ls() == ["a", "b", "c"]


def test_a_program_that_reads_while_a_name_goes_spoils_nothing(site: Site) -> None:
    """What it read before is in no listing that is kept after."""
    with os.scandir(site.directory) as reading:
        assert next(reading).name in ("a", "b")
        site.remove("d/a")
        site.daemon.run("invalidate", "kept")
        assert site.ls() == ["b"]
    assert site.ls() == ["b"]
    assert site.ls() == ["b"]
    assert site.is_kept()


def test_a_directory_that_was_empty_shows_what_somebody_put_there(site: Site) -> None:
    """The kernel would believe an empty listing for as long as nobody here changes it, whatever it is told to drop."""
    site.put("empty/")
    empty = site.directory.parent / "empty"
    site.daemon.run("invalidate", "kept")
    assert site.ls(empty) == site.ls(empty) == []
    site.put("empty/new")
    site.daemon.run("invalidate", "kept", "empty")
    assert site.ls(empty) == ["new"]
    site.remove("empty/new")
    site.daemon.run("invalidate", "kept", "empty")
    assert site.ls(empty) == site.ls(empty) == []
    site.put("empty/newer")
    killed = site.daemon.kill_worker("kept")
    site.daemon.wait_replaced(killed, "kept")
    site.daemon.run("invalidate", "kept", "empty")
    assert site.ls(empty) == ["newer"]


def test_a_mount_that_trusts_nothing_keeps_nothing(daemon: Daemon, ministack: Endpoint) -> None:
    """Each listing asks S3."""
    site = Site(daemon, ministack, "asking", 0)
    try:
        assert site.ls() == ["a", "b"]
        site.put("d/c")
        assert site.ls() == ["a", "b", "c"]
        site.remove("d/a")
        assert site.ls() == ["b", "c"]
        assert not site.is_kept()
    finally:
        site.end()


def test_what_is_kept_is_kept_for_as_long_as_the_listing_is_trusted(
    daemon: Daemon, ministack: Endpoint
) -> None:
    """Nobody says anything here: a second later the worker has the directory read again."""
    site = Site(daemon, ministack, "second", 1)
    try:
        assert site.ls() == site.ls() == ["a", "b"]
        site.put("d/c")
        wait_for("the new object is seen", lambda: site.ls() == ["a", "b", "c"])
        site.remove("d/a")
        wait_for("its absence is seen", lambda: site.ls() == ["b", "c"])
    finally:
        site.end()
