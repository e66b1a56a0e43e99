"""Archived objects on a real mount: what fails, what the log says, and how a user gets them back."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.servers.cold import finish_restores
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket


class Site:
    """A bucket with archived objects, mounted; TTL 0, so that what S3 says now counts."""

    def __init__(self, daemon: Daemon, endpoint: Endpoint, bucket: str) -> None:
        self.daemon = daemon
        self.client = endpoint.boto3()
        self.bucket = bucket
        self.endpoint = endpoint
        for key, storage_class in (
            ("cold", "GLACIER"),
            ("d/deep", "DEEP_ARCHIVE"),
            ("d/warm", "STANDARD_IA"),
            ("d/further/cold", "GLACIER"),
        ):
            self.put(key, storage_class)
        # Where the kernel keeps the times of files, a version that another client put once more is another inode.
        options = "metadata_ttl_s=0,negative_ttl_s=0,attributes=full,writeback_cache=off"
        self.mount = daemon.mount(endpoint, bucket, "m", "-o", options)

    def put(self, key: str, storage_class: str) -> None:
        self.client.put_object(
            Bucket=self.bucket, Key=key, Body=b"kept\n", StorageClass=storage_class
        )

    def log(self) -> str:
        return (self.daemon.state_dir / "logs" / "m.log").read_text()

    def restore(self, *words: str, check: bool = True) -> list[tuple[str, str]]:
        done = self.daemon.run("restore", "m", *words, "--json", check=check)
        return [(item["path"], item["state"]) for item in json.loads(done.stdout)]


@pytest.fixture
def site(lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    site = Site(lab.daemon(), ministack, bucket)
    try:
        yield site
    finally:
        site.daemon.run("unmount", "m")
        remove_bucket(client, bucket)
        client.close()


def fails(number: int, path: Path, flags: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as failure:
        os.open(path, flags)
    assert failure.value.errno == number


def test_an_archived_object_is_not_opened_and_the_log_names_its_class(site: Site) -> None:
    cold, deep = site.mount / "cold", site.mount / "d" / "deep"
    assert (cold.stat().st_size, sorted(os.listdir(site.mount / "d"))) == (
        5,
        ["deep", "further", "warm"],
    )
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        fails(errno.EIO, cold, flags)
    fails(errno.EIO, deep, os.O_RDONLY)
    assert (site.mount / "d" / "warm").read_bytes() == b"kept\n"
    for change in (
        lambda: cold.rename(site.mount / "new"),
        lambda: cold.chmod(0o600),
        lambda: os.truncate(cold, 2),
    ):
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            change()
    log = site.log()
    assert "open: 'cold' is archived in storage class GLACIER and must be restored" in log
    assert "open: 'd/deep' is archived in storage class DEEP_ARCHIVE" in log
    # What needs nothing of it works.
    cold.write_bytes(b"new")
    assert cold.read_bytes() == b"new"
    deep.unlink()
    site.daemon.flush()
    assert site.client.get_object(Bucket=site.bucket, Key="cold")["Body"].read() == b"new"


def test_a_user_restores_archived_objects_and_reads_them(site: Site) -> None:
    assert site.restore(".", "--status") == [
        ("cold", "archived"),
        ("d/deep", "archived"),
        ("d/further/cold", "archived"),
    ]
    done = site.daemon.run("restore", "m", "d", "cold", "--days", "3", "--tier", "bulk")
    assert "'m': 3 archived objects: 3 restoring" in done.stderr
    assert site.restore("d/deep", "--status") == [("d/deep", "restoring")]
    fails(errno.EIO, site.mount / "d" / "deep", os.O_RDONLY)
    assert "'d/deep' is archived in storage class DEEP_ARCHIVE and is being restored" in site.log()
    finish_restores(site.endpoint)
    shown = site.daemon.run("restore", str(site.mount), str(site.mount / "d"), "--status").stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["restored", "restored"]
    for path in ("cold", "d/deep", "d/further/cold"):
        assert (site.mount / path).read_bytes() == b"kept\n"
    # The restored copy is what a rename and a change of attributes are made of; the class stays.
    (site.mount / "d" / "deep").chmod(0o600)
    site.daemon.flush()
    head = site.client.head_object(Bucket=site.bucket, Key="d/deep")
    assert (head["StorageClass"], head["Metadata"]["mode"]) == ("DEEP_ARCHIVE", str(0o100600))
    assert site.restore("d/warm") == []
    gone = site.daemon.run("restore", "m", "nowhere", check=False)
    assert (gone.returncode, "there is no 'nowhere'" in gone.stderr) == (4, True)


def test_what_is_archived_is_known_after_a_crash_and_followed_by_listings(site: Site) -> None:
    """The class is in mount.db. A lifecycle rule changes it of a version that stays as it is."""
    warm = site.mount / "d" / "warm"
    inode = warm.stat().st_ino
    site.put("d/warm", "GLACIER")
    site.put("cold", "STANDARD")
    site.daemon.wait_replaced(site.daemon.kill_worker())
    os.listdir(site.mount / "d")
    assert warm.stat().st_ino == inode
    fails(errno.EIO, warm, os.O_RDONLY)
    fails(errno.EIO, site.mount / "d" / "deep", os.O_RDONLY)
    assert (site.mount / "cold").read_bytes() == b"kept\n"
