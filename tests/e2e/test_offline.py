"""`offline_ok` on real mounts: what is known and cached is there when S3 is not, and is true again when it is back."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gated import GatedSite, gated_site, read_uncached
from tests.e2e.lab import Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

OPTIONS = "metadata_ttl_s=1,negative_ttl_s=1,retry_deadline_s=1"
AT_ONCE_S = 5.0
"""Far above what an answer from memory takes on a loaded machine, and far below asking S3 fifty times."""


@pytest.fixture(scope="module")
def server(module_lab: Lab, ministack: Endpoint) -> Iterator[GatedSite]:
    with gated_site(module_lab, ministack, retry_min_s=0.2) as made:
        yield made


@pytest.fixture
def site(server: GatedSite) -> Iterator[GatedSite]:
    yield server
    server.gate.open()


def wait_offline(site: GatedSite, name: str, path: Path) -> None:
    """Look at a path, which never fails, until the mount has noticed that S3 is not there."""

    def noticed() -> bool:
        os.stat(path)
        status = site.daemon.show(name).status
        return (status.state, status.reason) == ("degraded", "offline")

    wait_for("the outage is noticed", noticed)


def test_what_is_known_and_cached_is_there_while_s3_is_not(site: GatedSite) -> None:
    """Past its TTL, at once, also for the next worker; what is not here is refused at once, and not said to be absent."""
    body = site.put("out/d/read", os.urandom(300_000))
    site.put("out/d/unread", b"x" * 300_000)
    mount = site.mount("out", f"offline_ok,{OPTIONS}")
    assert os.listdir(mount) == ["d"]
    assert sorted(os.listdir(mount / "d")) == ["read", "unread"]
    assert read_uncached(mount / "d/read") == body
    assert not (mount / "d/absent").exists()

    site.gate.shut()
    wait_offline(site, "out", mount / "d/read")
    begun = time.monotonic()
    for _ in range(10):
        assert sorted(os.listdir(mount / "d")) == ["read", "unread"]
        assert (mount / "d/unread").stat().st_size == 300_000
        assert not (mount / "d/absent").exists()
        assert read_uncached(mount / "d/read") == body
        with pytest.raises(OSError, match="Input/output error"):
            read_uncached(mount / "d/unread")
    assert time.monotonic() - begun < AT_ONCE_S
    status = site.daemon.show("out").status
    assert "S3 cannot be reached since 20" in status.message

    pid = site.daemon.show("out").status.worker_pid
    assert pid is not None
    os.kill(pid, 9)
    wait_for("it is replaced", lambda: site.daemon.show("out").status.worker_pid not in (None, pid))
    wait_offline(site, "out", mount / "d/read")
    assert read_uncached(mount / "d/read") == body

    new = site.put("out/d/read", os.urandom(1000))
    site.put("out/d/later", b"x")
    site.gate.open()
    site.daemon.wait_state("mounted", "out")
    assert read_uncached(mount / "d/read") == new
    assert sorted(os.listdir(mount / "d")) == ["later", "read", "unread"]


def test_what_was_mounted_before_comes_back_without_s3(site: GatedSite) -> None:
    body = site.put("back/file", os.urandom(200_000))
    mount = site.mount("back", f"offline_ok,{OPTIONS}")
    plain = site.mount("plain", OPTIONS)
    assert read_uncached(mount / "file") == body
    assert os.listdir(mount) == ["file"]
    site.gate.shut()
    site.daemon.stop()
    site.daemon.start()
    wait_offline(site, "back", mount)
    assert os.listdir(mount) == ["file"]
    assert read_uncached(mount / "file") == body
    wait_for("the other one has failed", lambda: site.daemon.show("plain").status.state == "failed")
    site.gate.open()
    site.daemon.wait_state("mounted", "back")
    site.daemon.wait_state("mounted", "plain")
    assert os.listdir(plain) == []


def test_without_the_option_what_may_be_out_of_date_fails(site: GatedSite) -> None:
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
    assert site.daemon.show("strict").status.reason != "offline"


def test_what_s3_refuses_is_no_outage(site: GatedSite) -> None:
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
    assert site.daemon.show("gone").status.reason != "offline"
