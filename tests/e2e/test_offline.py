"""`offline_ok` on real mounts: what is known and cached is there when S3 is not, and is true again when it is back."""

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s3mgr.schema import MountStatus
from tests.e2e.lab import Daemon, Lab, wait_for
from tests.e2e.test_disk_cache import read
from tests.servers.endpoint import Endpoint
from tests.servers.gate import Gate, gate_before
from tests.servers.plugin import make_bucket, remove_bucket

OPTIONS = "metadata_ttl_s=1,negative_ttl_s=1,retry_deadline_s=1"
AT_ONCE_S = 5.0
"""Far above what an answer from memory takes on a loaded machine, and far below asking S3 fifty times."""


@dataclass(frozen=True)
class Site:
    """A daemon, a bucket behind a gate, and its client, which goes around the gate."""

    daemon: Daemon
    client: Any
    bucket: str
    gate: Gate

    def put(self, key: str, body: bytes) -> bytes:
        """Write as somebody else does."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        return body

    def mount(self, name: str, options: str) -> Path:
        return self.daemon.mount(self.gate.endpoint, f"{self.bucket}/{name}", name, "-o", options)

    def status(self, name: str) -> MountStatus:
        return self.daemon.show(name).status


@pytest.fixture(scope="module")
def server(module_lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon(retry_min_s=0.2)
    try:
        with gate_before(ministack) as gate:
            yield Site(daemon, client, bucket, gate)
            gate.open()
            daemon.run("unmount", "--all", check=False)
    finally:
        remove_bucket(client, bucket)
        client.close()


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    yield server
    server.gate.open()


def wait_offline(site: Site, name: str, path: Path) -> None:
    """Look at a path, which never fails, until the mount has noticed that S3 is not there."""

    def noticed() -> bool:
        os.stat(path)
        status = site.status(name)
        return (status.state, status.reason) == ("degraded", "offline")

    wait_for("the outage is noticed", noticed)


def test_what_is_known_and_cached_is_there_while_s3_is_not(site: Site) -> None:
    """Past its TTL, at once, also for the next worker; what is not here is refused at once, and not said to be absent."""
    body = site.put("out/d/read", os.urandom(300_000))
    site.put("out/d/unread", b"x" * 300_000)
    mount = site.mount("out", f"offline_ok,{OPTIONS}")
    assert os.listdir(mount) == ["d"]
    assert sorted(os.listdir(mount / "d")) == ["read", "unread"]
    assert read(mount / "d/read") == body
    assert not (mount / "d/absent").exists()

    site.gate.shut()
    wait_offline(site, "out", mount / "d/read")
    begun = time.monotonic()
    for _ in range(10):
        assert sorted(os.listdir(mount / "d")) == ["read", "unread"]
        assert (mount / "d/unread").stat().st_size == 300_000
        assert not (mount / "d/absent").exists()
        assert read(mount / "d/read") == body
        with pytest.raises(OSError, match="Input/output error"):
            read(mount / "d/unread")
    assert time.monotonic() - begun < AT_ONCE_S
    status = site.status("out")
    assert "S3 cannot be reached since 20" in status.message

    pid = site.daemon.show("out").status.worker_pid
    assert pid is not None
    os.kill(pid, 9)
    wait_for("it is replaced", lambda: site.status("out").worker_pid not in (None, pid))
    wait_offline(site, "out", mount / "d/read")
    assert read(mount / "d/read") == body

    new = site.put("out/d/read", os.urandom(1000))
    site.put("out/d/later", b"x")
    site.gate.open()
    site.daemon.wait_state("mounted", "out")
    assert read(mount / "d/read") == new
    assert sorted(os.listdir(mount / "d")) == ["later", "read", "unread"]


def test_what_was_mounted_before_comes_back_without_s3(site: Site) -> None:
    body = site.put("back/file", os.urandom(200_000))
    mount = site.mount("back", f"offline_ok,{OPTIONS}")
    plain = site.mount("plain", OPTIONS)
    assert read(mount / "file") == body
    assert os.listdir(mount) == ["file"]
    site.gate.shut()
    site.daemon.stop()
    site.daemon.start()
    wait_offline(site, "back", mount)
    assert os.listdir(mount) == ["file"]
    assert read(mount / "file") == body
    wait_for("the other one has failed", lambda: site.status("plain").state == "failed")
    site.gate.open()
    site.daemon.wait_state("mounted", "back")
    site.daemon.wait_state("mounted", "plain")
    assert os.listdir(plain) == []


def test_without_the_option_what_may_be_out_of_date_fails(site: Site) -> None:
    site.put("strict/file", b"x")
    mount = site.mount("strict", OPTIONS)
    assert os.listdir(mount) == ["file"]
    site.gate.shut()

    def fails() -> bool:
        try:
            os.stat(mount / "file")
        except OSError as error:
            return error.errno == errno.EIO
        return False

    wait_for("a look at what may be out of date fails", fails)
    assert site.status("strict").reason != "offline"


def test_what_s3_refuses_is_no_outage(site: Site) -> None:
    """A bucket that is gone answers: nothing is shown as if it were there."""
    bucket = make_bucket(site.client)
    site.client.put_object(Bucket=bucket, Key="file", Body=b"x")
    mount = site.daemon.mount(site.gate.endpoint, bucket, "gone", "-o", f"offline_ok,{OPTIONS}")
    assert os.listdir(mount) == ["file"]
    remove_bucket(site.client, bucket)

    def fails() -> bool:
        try:
            os.listdir(mount)
        except OSError as error:
            return error.errno == errno.EIO
        return False

    wait_for("the bucket's end is noticed", fails)
    assert site.status("gone").reason != "offline"
