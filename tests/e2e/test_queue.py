"""write_mode=writeback on real mounts: the queue is in the user's hands, and survives whatever dies."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from s3mgr.errors import ClientError
from tests.e2e.lab import Daemon, Lab, run, wait_for
from tests.e2e.trees import describe, make_source, objects_of, read_bucket
from tests.servers.endpoint import Endpoint
from tests.servers.gate import Gate, gate_before

WRITEBACK = ("-o", "write_mode=writeback")


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


@pytest.fixture
def gate(s3_endpoint: Endpoint) -> Iterator[Gate]:
    with gate_before(s3_endpoint) as gate:
        yield gate


def queue(daemon: Daemon) -> Any:  # noqa: ANN401 - JSON
    return json.loads(daemon.run("queue", "m", "--json", "--all").stdout)


def wait_other_worker(daemon: Daemon, old_pid: int) -> None:
    """Wait until another worker serves the mount, which is not `mounted` while its queue is paused."""

    def is_there() -> bool:
        pid = daemon.show().status.worker_pid
        try:
            return pid not in (None, old_pid) and daemon.api.mount_queue("m").is_paused
        except ClientError:
            return False

    wait_for("another worker answers", is_there)


def wait_uploaded(daemon: Daemon) -> None:
    wait_for("the queue is empty", lambda: daemon.api.mount_queue("m").total_files == 0)
    wait_for("S3 has everything", lambda: daemon.show().status.pending_operations == 0)


def test_a_paused_queue_is_shown_survives_its_worker_and_goes_on_when_told(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Or when the mount ends: an unmount uploads in spite of a pause."""
    mount = daemon.mount(s3_endpoint, bucket, "m", *WRITEBACK)
    daemon.run("queue", "pause", "m")
    source = lab.directory("source")
    for number in range(5):
        (source / f"f{number}").write_bytes(bytes([number]) * 10_000 * number)
    run("cp", "-r", source, mount / "copy")
    paths = {f"copy/f{number}" for number in range(5)}

    found = queue(daemon)
    assert {(file["path"], file["state"]) for file in found["items"]} == {
        (path, "paused") for path in paths
    }
    assert (found["total_files"], found["total_bytes"], found["is_paused"]) == (5, 100_000, True)
    status = daemon.wait_state("degraded").status
    assert (status.reason, status.uploads_paused) == ("uploads-paused", True)
    assert "upload queue:" in daemon.run("show", "m").stdout
    assert not paths & read_bucket(s3_endpoint, bucket).keys()

    assert status.worker_pid is not None
    os.kill(status.worker_pid, signal.SIGKILL)
    wait_other_worker(daemon, status.worker_pid)
    assert {file["path"] for file in queue(daemon)["items"]} == paths
    assert not paths & read_bucket(s3_endpoint, bucket).keys()

    daemon.run("queue", "hurry", "m", str(mount / "copy/f3"))
    wait_for("one is uploaded", lambda: daemon.api.mount_queue("m").total_files == 4)
    assert paths & read_bucket(s3_endpoint, bucket).keys() == {"copy/f3"}

    daemon.run("queue", "resume", "m")
    wait_uploaded(daemon)
    assert read_bucket(s3_endpoint, bucket, "copy/") == objects_of(describe(source), "copy/")
    assert daemon.wait_state("mounted").status.reason != "uploads-paused"

    daemon.run("queue", "pause", "m")
    (mount / "last").write_bytes(b"before the end")
    assert "last" not in read_bucket(s3_endpoint, bucket)
    daemon.run("unmount", "m")
    assert "last" in read_bucket(s3_endpoint, bucket)


def test_what_was_closed_is_uploaded_after_the_death_of_daemon_and_worker(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str, gate: Gate
) -> None:
    """Every file was closed while S3 was away; then everything is killed."""
    mount = daemon.mount(gate.endpoint, bucket, "m", *WRITEBACK, "-o", "metadata_ttl_s=600")
    source = lab.directory("source")
    make_source(source, files=18)
    assert os.listdir(mount) == []
    gate.shut()
    run("cp", "-a", source, mount / "copy")
    assert describe(mount / "copy") == describe(source)
    assert queue(daemon)["total_files"] == 18
    daemon.kill_all()
    gate.open()
    daemon.start()
    daemon.worker_pid()
    daemon.flush()
    assert read_bucket(s3_endpoint, bucket, "copy/") == objects_of(describe(source), "copy/")
    assert describe(mount / "copy") == describe(source)
