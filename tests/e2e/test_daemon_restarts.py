"""Ends and starts of the daemon, asked for and not: mounts come back, nothing acknowledged is lost, nothing stale stays."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.fuse.mountinfo import read_mountinfo
from tests.e2e.lab import Daemon, Lab, run, shell, wait_for
from tests.e2e.trees import describe, make_source, objects_of, read_bucket
from tests.servers.endpoint import Endpoint
from tests.servers.gate import Gate, gate_before

BLOCK = 8192

WRITER = """
import os, sys
path, size = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
n = 0
try:
    while True:
        os.write(fd, bytes([n % 251]) * size)
        n += 1
        print(n, flush=True)
        sys.stdin.readline()
except OSError as error:
    print("error", error.errno, flush=True)
"""
"""Writes one block for each line it is sent, says how many it has written, and never closes."""


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


@pytest.fixture
def gate(s3_endpoint: Endpoint) -> Iterator[Gate]:
    with gate_before(s3_endpoint) as gate:
        yield gate


class Writer:
    """A program that writes and never closes; see `WRITER`."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.process = lab.program(sys.executable, "-S", "-c", WRITER, path, str(BLOCK))
        self.acknowledged = 0
        self.step(ask=False)

    def step(self, *, ask: bool = True) -> None:
        """Have it write one more block and wait for the acknowledgement."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if ask:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        self.acknowledged = int(self.process.stdout.readline())

    @property
    def content(self) -> bytes:
        """What it was told is written."""
        return b"".join(bytes([n % 251]) * BLOCK for n in range(self.acknowledged))


def _write_without_s3(gate: Gate, path: Path, data: bytes, *, offset: int = 0) -> None:
    """Write a file that S3 cannot be given any more: close() reports it."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    gate.shut()
    os.pwrite(fd, data, offset)
    with pytest.raises(OSError, match=r"error|timed out"):
        os.close(fd)


def _body(endpoint: Endpoint, bucket: str, key: str) -> bytes:
    client = endpoint.boto3()
    body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.close()
    return body


def _keys(endpoint: Endpoint, bucket: str) -> list[str]:
    return sorted(read_bucket(endpoint, bucket))


def test_a_stop_drains_and_the_next_start_mounts_again(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Everything is in S3 and nothing is left behind when SIGTERM has worked; persisted mounts come back by themselves."""
    source = lab.directory("source")
    make_source(source)
    mount = daemon.mount(s3_endpoint, f"{bucket}/a", "m")
    daemon.mount(s3_endpoint, f"{bucket}/b", "passing", "--no-persist")
    run("cp", "-a", f"{source}/.", mount / "copy")
    shell('mv "$1"/copy/d0 "$1"/copy/moved; mkdir "$1"/empty; chmod 700 "$1"/empty', mount)
    expected = describe(mount)
    assert daemon.stop() == 0
    assert not daemon.mounts()
    assert not daemon.pids()
    assert list(mount.iterdir()) == []
    assert read_bucket(s3_endpoint, bucket, "a/") == objects_of(expected, "a/")
    daemon.start()
    daemon.wait_state("mounted")
    assert describe(mount) == expected
    assert daemon.run("show", "passing", check=False).returncode == 4


def test_a_crash_of_everything_loses_nothing_that_was_acknowledged(
    lab: Lab, daemon: Daemon, gate: Gate, bucket: str
) -> None:
    """An open file that was never flushed, a failed upload, and changes of names that S3 has not seen.

    Writes outlive every process where the kernel does not gather them.
    """
    options = "retry_deadline_s=1,writeback_cache=off"
    mount = daemon.mount(gate.endpoint, bucket, "m", "-o", options)
    (mount / "old").write_bytes(b"x" * 100_000)
    shell('mkdir "$1"/d; echo 1 > "$1"/d/1; echo 2 > "$1"/gone', mount)
    daemon.flush()
    writer = Writer(lab, mount / "open")
    os.listdir(mount)  # S3 is asked for names now, and not for a while
    _write_without_s3(gate, mount / "failed", b"kept" * 1000)
    _write_without_s3(gate, mount / "old", b"changed", offset=50_000)
    shell('rm "$1"/gone; mv "$1"/d/1 "$1"/d/2; mkdir "$1"/new', mount)
    for _ in range(20):
        writer.step()
    assert {f.path for f in daemon.show().status.failed_uploads} >= {"failed"}
    daemon.kill_all()
    gate.open()
    assert writer.process.stdin is not None
    writer.process.stdin.close()
    assert writer.process.wait(30) == 0, "the program hangs on a connection that nobody serves"
    stale = daemon.mounts()
    assert [entry.mountpoint for entry in stale] == [str(mount)]

    daemon.start()
    daemon.wait_state("mounted")
    assert len(daemon.mounts()) == 1
    daemon.flush()
    assert _keys(gate.endpoint, bucket) == ["d/", "d/2", "failed", "new/", "old", "open"]
    assert _body(gate.endpoint, bucket, "open") == writer.content
    assert _body(gate.endpoint, bucket, "failed") == b"kept" * 1000
    assert _body(gate.endpoint, bucket, "old") == b"x" * 50_000 + b"changed" + b"x" * 49_993
    assert (mount / "open").read_bytes() == writer.content
    assert daemon.show().status.failed_uploads == []
    daemon.run("unmount", "m")
    assert not daemon.mounts()


def test_a_program_that_writes_through_a_crash_of_everything_hears_of_it(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """In the middle of writes: S3 gets exactly what write() acknowledged, but for a block that was in flight."""
    mount = daemon.mount(s3_endpoint, bucket, "m", "-o", "writeback_cache=off")
    script = WRITER.replace("        sys.stdin.readline()\n", "")
    program = lab.program(sys.executable, "-S", "-c", script, mount / "stream", str(BLOCK))
    assert program.stdout is not None
    for _ in range(100):
        program.stdout.readline()
    daemon.kill_all()
    out, _ = program.communicate(timeout=30)
    *counts, error = out.decode().splitlines()
    assert error.startswith("error "), out
    acknowledged = int(counts[-1]) if counts else 100
    daemon.start()
    daemon.wait_state("mounted")
    daemon.flush()
    body = _body(s3_endpoint, bucket, "stream")
    blocks = [bytes([n % 251]) * BLOCK for n in range(acknowledged + 1)]
    assert body in (b"".join(blocks[:-1]), b"".join(blocks))


def test_programs_do_not_notice_a_crash_of_the_daemon_alone(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """The worker serves on without a daemon; the next daemon adopts it and its open files."""
    mount = daemon.mount(s3_endpoint, bucket)
    writer = Writer(lab, mount / "open")
    worker = daemon.worker_pid()
    daemon.kill()
    writer.step()
    shell('cd "$1"; mkdir d; echo alone > d/file; mv d e; cat e/file; rm -r e', mount)
    daemon.start()
    daemon.wait_state("mounted")
    assert daemon.worker_pid() == worker
    assert daemon.show().status.reason == "adopted"
    writer.step()
    # What is adopted is owned: the worker can be replaced, and unmounted in order.
    daemon.wait_replaced(daemon.kill_worker())
    writer.step()
    assert writer.process.stdin is not None
    writer.process.kill()
    writer.process.wait()
    wait_for("the file is uploaded", lambda: daemon.show().status.dirty_files == 0)
    daemon.run("unmount", "m")
    assert _body(s3_endpoint, bucket, "open") == writer.content
    assert _keys(s3_endpoint, bucket) == ["open"]


def test_a_worker_that_dies_while_no_daemon_runs_is_replaced_by_the_next_one(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Its connection is kept meanwhile: programs wait for the next daemon."""
    mount = daemon.mount(s3_endpoint, bucket)
    writer = Writer(lab, mount / "open")
    writer.step()
    daemon.kill_with_worker()
    daemon.start()
    writer.step()
    daemon.wait_state("mounted")
    daemon.flush()
    assert (mount / "open").read_bytes() == writer.content
    assert _body(s3_endpoint, bucket, "open") == writer.content


@pytest.mark.parametrize("command", [("umount",), ("umount", "-l"), ("fusermount3", "-u")])
def test_an_unmount_from_outside_is_respected(
    lab: Lab, daemon: Daemon, gate: Gate, bucket: str, command: tuple[str, ...]
) -> None:
    """Nothing is mounted again behind the user's back, not by the next start either, and uploads are finished."""
    mount = daemon.mount(gate.endpoint, bucket, "m", "-o", "retry_deadline_s=1")
    _write_without_s3(gate, mount / "file", b"unsent")
    run(*command, mount)
    draining = daemon.wait_state("draining").status
    assert draining.reason == "unmounted-outside"
    assert not daemon.mounts()
    gate.open()
    ended = daemon.wait_state("unmounted")
    assert (ended.status.reason, ended.desired) == ("unmounted-outside", "unmounted")
    assert _body(gate.endpoint, bucket, "file") == b"unsent"
    wait_for("the worker has gone", lambda: daemon.show().status.worker_pid is None)
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.wait_state("unmounted").desired == "unmounted"
    assert not daemon.mounts()


def test_unmount_drains_what_is_not_in_s3_yet(daemon: Daemon, gate: Gate, bucket: str) -> None:
    """It waits for S3, or says what is left and keeps it; the next mount of that name uploads it."""
    mount = daemon.mount(gate.endpoint, bucket, "m", "-o", "retry_deadline_s=1")
    (mount / "removed").write_bytes(b"1")
    _write_without_s3(gate, mount / "file", b"unsent")
    (mount / "removed").unlink()
    refused = daemon.run("unmount", "m", "--timeout", "2", check=False)
    assert refused.returncode == 8, refused
    assert "file   6 B" in refused.stderr
    assert "S3 does not have 6 B in 1 file and 1 change of names and attributes" in refused.stderr
    assert "s3mgr unmount --discard m" in refused.stderr
    assert daemon.show().status.reason == "undrained"
    assert not daemon.mounts()
    gate.open()
    daemon.mount(gate.endpoint, bucket, "m", "-o", "retry_deadline_s=1")
    daemon.run("unmount", "m")
    assert _keys(gate.endpoint, bucket) == ["file"]
    assert _body(gate.endpoint, bucket, "file") == b"unsent"


def test_unmount_waits_until_s3_is_back(daemon: Daemon, gate: Gate, bucket: str) -> None:
    """A drain tries again by itself."""
    mount = daemon.mount(gate.endpoint, bucket, "m", "-o", "retry_deadline_s=1")
    _write_without_s3(gate, mount / "file", b"unsent")
    asked = threading.Thread(target=daemon.run, args=("unmount", "m"))
    asked.start()
    daemon.wait_state("draining")
    gate.open()
    asked.join()
    assert _body(gate.endpoint, bucket, "file") == b"unsent"
    assert daemon.run("show", "m", check=False).returncode == 4


def test_a_busy_mount_stays_until_it_is_detached(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """The message names the mount and the two ways out; --lazy lets programs come to their end."""
    mount = daemon.mount(s3_endpoint, bucket)
    writer = Writer(lab, mount / "open")
    refused = daemon.run("unmount", "m", check=False)
    assert refused.returncode == 6, refused
    assert f"'m' is in use at {mount}" in refused.stderr
    assert "--lazy" in refused.stderr
    assert daemon.show().status.state == "mounted"
    writer.step()
    asked = threading.Thread(target=daemon.run, args=("unmount", "--lazy", "m"))
    asked.start()
    daemon.wait_state("draining")
    wait_for("the tree is detached", lambda: not daemon.mounts())
    writer.step()
    assert writer.process.stdin is not None
    writer.process.kill()
    writer.process.wait()
    asked.join()
    assert _body(s3_endpoint, bucket, "open") == writer.content
    assert daemon.run("show", "m", check=False).returncode == 4


def test_discard_throws_away_what_s3_does_not_have(daemon: Daemon, gate: Gate, bucket: str) -> None:
    """Only on the user's word, and then for good: the next mount of that name has nothing of it."""
    mount = daemon.mount(gate.endpoint, bucket, "m", "-o", "retry_deadline_s=1")
    (mount / "kept").write_bytes(b"1")
    _write_without_s3(gate, mount / "file", b"unsent")
    (mount / "kept").unlink()
    daemon.run("unmount", "m", "--discard", "--yes")
    assert not any(entry.mountpoint == str(mount) for entry in read_mountinfo())
    assert not (daemon.state_dir / "mounts" / "m").exists()
    gate.open()
    daemon.mount(gate.endpoint, bucket)
    assert os.listdir(mount) == ["kept"]
    daemon.run("unmount", "m")
    assert _keys(gate.endpoint, bucket) == ["kept"]
