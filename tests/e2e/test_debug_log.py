"""The debug log: every operation of the file system and every call to S3, switched on and off while programs work."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, wait_for
from tests.e2e.wire import ask
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket


@pytest.fixture
def bucket(s3_endpoint: Endpoint) -> Iterator[str]:
    client = s3_endpoint.boto3()
    name = make_bucket(client)
    client.put_object(Bucket=name, Key="there", Body=b"x" * 3_000_000)
    yield name
    remove_bucket(client, name)
    client.close()


def log_of(daemon: Daemon) -> list[str]:
    return (daemon.state_dir / "logs" / "m.log").read_text().splitlines()


def lines_with(lines: list[str], *words: str) -> list[str]:
    return [line for line in lines if all(re.search(word, line) for word in words)]


def work(directory: Path) -> None:
    """One of everything that has to be found in the log."""
    assert (directory / "there").read_bytes() == b"x" * 3_000_000
    assert not (directory / "absent").exists()
    (directory / "made").mkdir()
    (directory / "made" / "written").write_bytes(b"y")
    (directory / "made" / "written").rename(directory / "moved")
    (directory / "moved").unlink()


TIME = r", \d+\.\d\d ms"
OPERATIONS = ("lookup", "mkdir", "create", "write", "flush", "rename", "unlink", "open", "read")
CALLS = ("GetObject", "PutObject", "HeadObject", "ListObjectsV2")


def test_every_operation_and_every_call_is_logged(
    daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Operations with time and result; calls with status, request id and time; hits and misses of the caches."""
    client = s3_endpoint.boto3()
    client.put_object(Bucket=bucket, Key="gone", Body=b"z")
    directory = daemon.mount(s3_endpoint, bucket, "m", "--debug")
    work(directory)
    assert (directory / "gone").stat().st_size == 1
    client.delete_object(Bucket=bucket, Key="gone")
    with pytest.raises(OSError, match="Stale"):
        (directory / "gone").read_bytes()
    client.close()
    daemon.flush()
    lines = log_of(daemon)
    for operation in OPERATIONS:
        assert lines_with(lines, rf"fs\.kernel\.operations {operation}\(", ": ok" + TIME), operation
    assert lines_with(lines, r"lookup\(1, b'there'", ": ok")
    stats = daemon.api.mount_stats("m")
    for call in CALLS:
        logged = lines_with(
            lines, rf" s3 {call} ", r" status=20\d ", r" request_id=\w+", r" seconds=\d"
        )
        assert logged, call
        count = next(c.count for c in stats.s3 if c.name == call)
        assert len(lines_with(lines, rf" s3 {call} ")) == count, call
    assert lines_with(lines, " s3 GetObject key='there' ok ", "received=[1-9]")
    assert lines_with(lines, " s3 GetObject key='gone' NoSuchKey status=404 ")
    assert lines_with(lines, "cache miss: name 'there'")
    assert lines_with(lines, "cache hit: name 'written'")
    there = os.stat(directory / "there").st_ino
    assert lines_with(lines, f"cache miss: inode {there} at 0")
    assert lines_with(lines, f"cache hit: inode {there} at ")


def test_debug_is_switched_while_the_mount_is_in_use(daemon: Daemon, ministack: Endpoint) -> None:
    client = ministack.boto3()
    name = make_bucket(client)
    try:
        directory = daemon.mount(ministack, name)
        (directory / "quiet").write_bytes(b"1")
        assert lines_with(log_of(daemon), "DEBUG") == []
        for debug, file in ((True, "loud"), (False, "quiet-again")):
            answer = ask(daemon, "PATCH", "/v1/mounts/m", {"options": {"debug": debug}})
            assert answer.json["spec"]["options"]["debug"] is debug
            generation = answer.json["generation"]
            wait_for(
                "the worker knows",
                lambda g=generation: daemon.show().status.observed_generation == g,  # type: ignore[misc]
            )
            (directory / file).write_bytes(b"1")
        lines = log_of(daemon)
        assert lines_with(lines, r"create\(1, b'loud'", ": ok")
        assert lines_with(lines, "PutObject", "loud", "200")
        assert lines_with(lines, "quiet") == []
    finally:
        daemon.end()
        remove_bucket(client, name)
        client.close()


def test_a_failure_says_what_was_asked_and_how_s3_answered(
    daemon: Daemon, ministack: Endpoint
) -> None:
    """Without debug, too: a warning with S3's words and the id of the request."""
    client = ministack.boto3()
    name = make_bucket(client)
    client.put_object(Bucket=name, Key="file", Body=b"x" * 10)
    directory = daemon.mount(ministack, name, "m", "-o", "retry_deadline_s=0")
    assert (directory / "file").stat().st_size == 10
    remove_bucket(client, name)
    with pytest.raises(OSError, match="Input/output error"):
        (directory / "file").read_bytes()
    warnings = lines_with(log_of(daemon), "WARNING", r"operations read: bucket '.*' not found at")
    assert warnings, log_of(daemon)
    assert "(request " in warnings[0]
    assert lines_with(log_of(daemon), "Traceback") == []
    ask(daemon, "PATCH", "/v1/mounts/m", {"options": {"debug": True}})
    wait_for("the worker debugs", lambda: _fails_loudly(daemon, directory / "file"))
    assert lines_with(daemon.log.read_text().splitlines(), r"\[m\] worker: read: bucket", name)
    client.close()


def _fails_loudly(daemon: Daemon, file: Path) -> bool:
    with pytest.raises(OSError, match="Input/output error"):
        file.read_bytes()
    return bool(lines_with(log_of(daemon), "Traceback"))
