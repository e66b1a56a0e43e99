"""`s3mgr invalidate` on a real mount that believes what it knows for an hour: the next look is right, at once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

HOSTILE = [
    "new\nline",
    " leading",
    "trailing ",
    "-dash",
    "per%20cent+plus",
    "q?a&b#c",
    "caf\u00e9",
    "cafe\u0301",
    "\u65e5\u672c",
    "quote'\"`$(x)",
    "x" * 255,
]


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    client: Any
    bucket: str
    mount: Path

    def put(self, key: str, body: str, **metadata: str) -> None:
        """Write as somebody else does."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body.encode(), Metadata=metadata)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def invalidate(self, *path: str) -> None:
        self.daemon.run("invalidate", "m", "--", *path)


@pytest.fixture(scope="module")
def site(module_lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon()
    options = "metadata_ttl_s=3600,negative_ttl_s=3600,attributes=full"
    try:
        mount = daemon.mount(ministack, bucket, "m", "-o", options)
        yield Site(daemon, client, bucket, mount)
    finally:
        daemon.run("unmount", "m", check=False)
        remove_bucket(client, bucket)
        client.close()


@pytest.mark.parametrize("what", ["file", "directory", "parent", "mount"])
def test_a_changed_file_is_seen(site: Site, what: str) -> None:
    path = site.mount / "changed" / what / "file"
    key = str(path.relative_to(site.mount))
    site.put(key, "old")
    site.invalidate()
    old = path.stat()
    with path.open() as reader:
        assert reader.read() == "old"
        site.put(key, "new content")
        assert (path.stat().st_size, path.read_text()) == (3, "old")
        paths = {
            "file": [key],
            "directory": [f"changed/{what}"],
            "parent": ["changed"],
            "mount": [],
        }
        site.invalidate(*paths[what])
        assert (path.stat().st_size, path.read_text()) == (11, "new content")
        assert path.stat().st_ino != old.st_ino
        reader.seek(0)
        assert reader.read() == "old"  # one version throughout


def test_what_came_and_went_is_listed(site: Site) -> None:
    directory = site.mount / "listed"
    for name in ("stays", "goes"):
        site.put(f"listed/{name}", "x")
    site.invalidate()
    for _ in range(2):  # the second time the kernel answers by itself
        assert sorted(os.listdir(directory)) == ["goes", "stays"]
    assert not (directory / "comes").exists()
    site.put("listed/comes", "x")
    site.put("listed/inside/file", "x")
    site.remove("listed/goes")
    assert not (directory / "comes").exists()
    assert sorted(os.listdir(directory)) == ["goes", "stays"]
    site.invalidate("listed")
    assert sorted(os.listdir(directory)) == ["comes", "inside", "stays"]
    assert (directory / "comes").exists()
    assert not (directory / "goes").exists()
    assert (directory / "inside" / "file").read_text() == "x"


def test_a_path_that_was_not_there_may_be_named_before_it_is_known(site: Site) -> None:
    deep = site.mount / "absent" / "a" / "b"
    assert not deep.exists()
    site.put("absent/a/b", "x")
    assert not deep.exists()
    site.invalidate("absent/a/b")
    assert deep.read_text() == "x"


@pytest.mark.parametrize("path", ["told/new", "told", ""])
def test_a_name_that_a_dead_worker_told_to_be_absent_is_found(site: Site, path: str) -> None:
    """The kernel asks nobody about it for an hour; that a new worker has taken over changes nothing in that."""
    site.put("told/there", "x")
    site.invalidate()
    name = site.mount / "told" / "new"
    assert not name.exists()
    killed = site.daemon.kill_worker("m")
    site.daemon.wait_replaced(killed, "m")
    site.put("told/new", "x")
    assert not name.exists()
    site.invalidate(*filter(None, [path]))
    assert name.read_text() == "x"
    site.remove("told/new")
    site.invalidate()


def test_attributes_and_kinds_that_others_changed_are_seen(site: Site) -> None:
    mode = {"mode": str(0o100600), "mtime": "1000000000"}
    site.put("attributes/file", "same", **mode)
    site.put("attributes/link", "old-target", mode=str(0o120777))
    site.invalidate()
    path, link = site.mount / "attributes" / "file", site.mount / "attributes" / "link"
    assert (path.stat().st_mode & 0o777, os.readlink(link)) == (0o600, "old-target")
    site.put("attributes/file", "same!", **mode | {"mode": str(0o100640)})
    site.put("attributes/link", "new-target", mode=str(0o120777))
    site.invalidate("attributes")
    assert (path.stat().st_mode & 0o777, os.readlink(link)) == (0o640, "new-target")
    site.remove("attributes/link")
    site.put("attributes/link/file", "x")
    site.invalidate("attributes/link")
    assert link.is_dir()
    assert os.listdir(link) == ["file"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_invalidated_and_shown(site: Site, name: str) -> None:
    path = site.mount / "hostile" / name
    assert not path.exists()
    site.put(f"hostile/{name}", "x")
    site.invalidate(f"hostile/{name}")
    assert path.read_text() == "x"
    (entry,) = site.daemon.api.mount_cache("m", path=f"hostile/{name}").items
    assert (entry.path, entry.size_bytes) == (f"hostile/{name}", 1)
    shown = site.daemon.run("cache", "m", "--", f"hostile/{name}").stdout
    _, _, table = shown.partition("\n\n")  # totals, a blank line
    assert len(table.splitlines()) == 2  # a heading, one entry


def test_a_name_that_is_no_text_is_refused_in_words(site: Site) -> None:
    for command in ("invalidate", "cache"):
        done = site.daemon.run(command, "m", "bad-\udcff", check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert "UTF-8" in done.stderr


def test_data_that_s3_does_not_have_is_untouched(site: Site) -> None:
    path = site.mount / "open"
    with path.open("w") as file:
        file.write("written")
        file.flush()
        site.invalidate()
        assert path.read_text() == "written"
        file.write(" on")
    assert path.read_text() == "written on"


def test_the_command_shows_what_is_known_and_whence_and_what_it_was_good_for(site: Site) -> None:
    """Entries with age and source, keys without a name, names that are not there, and how often mount.db had the answer."""
    site.put("known/a", "x")
    site.put("known/b", "y")
    site.put("known/b/inside", "z")
    site.put("known//nameless", "z")
    site.invalidate()
    directory = site.mount / "known"
    assert sorted(os.listdir(directory)) == ["a", "b"]
    assert not (directory / "absent").exists()
    (directory / "ours").write_text("made here")
    before = site.daemon.api.mount_cache("m", limit=0)
    os.listdir(directory / "b")
    shown = site.daemon.run("cache", "m", "known").stdout
    rows = {line.split()[-1].rstrip("/"): line.split() for line in shown.splitlines() if line}
    after_source = len(rows["PATH"]) - rows["PATH"].index("SOURCE")
    assert {"AGE", "FRESH"} <= set(rows["PATH"])
    sources = {path: rows[f"known/{path}"][-after_source] for path in ("a", "b", "ours")}
    assert sources == {"a": "listing", "b": "listing", "ours": "request"}
    assert "shadowed by a directory of the same name" in shown
    assert "empty component" in shown
    assert any(line.split()[0] == "absent" for line in shown.splitlines() if line)
    assert "metadata hits:" in shown
    report = site.daemon.api.mount_cache("m", path="known")
    assert all(entry.age_s is not None and entry.age_s < 60 for entry in report.items)
    asked = report.listing_hits + report.listing_misses
    assert asked > before.listing_hits + before.listing_misses
