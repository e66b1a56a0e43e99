"""Many mounts beside each other: what happens to one is not noticed by the others, and `s3mgr ls` tells them apart."""

import errno
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from s3mgr.schema import Mount
from tests.e2e.lab import SCRIPTS, Daemon, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack
from tests.servers.plugin import make_bucket, remove_bucket

MOUNTS = 16
LS_CPU_LIMIT_S = 0.6
"""Twice what is promised for the whole command, as CPU time: other work on the machine does not count."""
ANSWER_LIMIT_S = 0.3
OTHERS_LIMIT_S = 20.0
"""A program on a mount that nothing happened to. Generous for a loaded machine, and far less than the timeouts of the dead."""


@dataclass
class User:
    """A program that reads, writes and lists on one mount, again and again."""

    directory: Path
    rounds: int = 0
    longest_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    def work(self, end: threading.Event) -> None:
        """Work until told to stop."""
        name = self.directory.name
        while not end.is_set():
            begun = time.monotonic()
            try:
                assert (self.directory / "hello").read_text() == name
                (self.directory / "own").write_text(f"{name} {self.rounds}")
                assert (self.directory / "own").read_text() == f"{name} {self.rounds}"
                assert {"hello", "own"} <= set(os.listdir(self.directory))
            except (OSError, AssertionError) as error:
                self.errors.append(repr(error))
                return
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            self.rounds += 1


@contextmanager
def working(users: list[User]) -> Iterator[None]:
    """Have all of them work while the context runs; each comes round once more before it is left."""
    end = threading.Event()
    with ThreadPoolExecutor(len(users)) as pool:
        try:
            tasks = [pool.submit(user.work, end) for user in users]
            yield
            seen = [user.rounds for user in users]
            wait_for(
                "everybody comes round",
                lambda: all(u.errors or u.rounds > s for u, s in zip(users, seen, strict=True)),
            )
        finally:
            end.set()
    for task in tasks:
        task.result()


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Endpoint]:
    """Give an endpoint that a test may stop."""
    with run_ministack(tmp_path) as endpoint:
        yield endpoint
        os.kill(endpoint.pid, signal.SIGCONT)


@pytest.fixture
def buckets(
    ministack: Endpoint, radosgw: Endpoint, second: Endpoint
) -> Iterator[dict[str, tuple[Endpoint, str]]]:
    """Give a bucket for each mount, by the mount's name, on the three endpoints in turn."""
    endpoints = {"mini": ministack, "rados": radosgw, "second": second}
    clients = {kind: endpoint.boto3() for kind, endpoint in endpoints.items()}
    made: dict[str, tuple[Endpoint, str]] = {}
    try:
        for number in range(MOUNTS):
            kind = list(endpoints)[number % len(endpoints)]
            name = f"{kind}-{number}"
            bucket = make_bucket(clients[kind])
            made[name] = endpoints[kind], bucket
            clients[kind].put_object(Bucket=bucket, Key="hello", Body=name.encode())
        yield made
    finally:
        os.kill(second.pid, signal.SIGCONT)
        for name, (_, bucket) in made.items():
            remove_bucket(clients[name.partition("-")[0]], bucket)


def test_what_happens_to_one_mount_is_not_noticed_by_the_others(
    daemon: Daemon, second: Endpoint, buckets: dict[str, tuple[Endpoint, str]]
) -> None:
    """One worker is killed, one endpoint stops answering, one bucket is deleted; thirteen or more programs do not care."""

    def mount(name: str) -> User:
        endpoint, bucket = buckets[name]
        options = "-o", "retry_deadline_s=1,read_timeout_s=1,metadata_ttl_s=0"
        return User(daemon.mount(endpoint, bucket, name, *options))

    with ThreadPoolExecutor(MOUNTS) as pool:
        users = dict(zip(buckets, pool.map(mount, buckets), strict=True))
    assert {m.status.state for m in daemon.api.list_mounts().items} == {"mounted"}

    dead = [name for name in buckets if name.startswith("second")]
    killed, emptied = "mini-0", "rados-1"
    well = [name for name in buckets if name not in (*dead, emptied)]
    with working([users[name] for name in well]):
        os.kill(second.pid, signal.SIGSTOP)
        endpoint, bucket = buckets[emptied]
        remove_bucket(endpoint.boto3(), bucket)
        old = daemon.kill_worker(killed)
        daemon.wait_replaced(old, killed)
        with ThreadPoolExecutor(MOUNTS) as pool:
            failures = list(pool.map(_failure, [users[name] for name in (*dead, emptied)]))
        assert set(failures) <= {errno.EIO, errno.ETIMEDOUT}
        states = wait_for("the damaged are known to be", lambda: _told_apart(daemon, dead, emptied))
        _check_ls(daemon)

    for name in well:
        assert users[name].errors == [], name
        assert users[name].longest_s < OTHERS_LIMIT_S, name
        assert states[name].status.state == "mounted", name
        assert states[name].status.restarts == (1 if name == killed else 0), name
    for name in dead:
        status = states[name].status
        assert (status.state, status.reason) == ("degraded", "s3-unavailable"), name
        assert second.url in status.message, name
    status = states[emptied].status
    assert (status.state, status.reason) == ("failed", "bucket-gone")
    assert repr(bucket) in status.message
    printed = daemon.run("ls").stdout
    assert all(name in printed for name in buckets)
    assert printed.count("degraded") == len(dead)

    # A mount without unsaved data comes down whatever its endpoint does.
    daemon.run("unmount", emptied, dead[0])
    os.kill(second.pid, signal.SIGCONT)
    for name in dead[1:]:  # found out without anybody asking for a file
        daemon.wait_state("mounted", name)
        assert (users[name].directory / "hello").read_text() == name
    daemon.run("unmount", "--all")
    assert daemon.api.list_mounts().items == []


def _failure(user: User) -> int | None:
    """Return the errno of reading on a mount whose bucket does not answer."""
    with pytest.raises(OSError, match=r"\[Errno") as failure:
        (user.directory / "hello").read_text()
    return failure.value.errno


def _told_apart(daemon: Daemon, dead: list[str], emptied: str) -> dict[str, Mount] | None:
    mounts = {m.name: m for m in daemon.api.list_mounts().items}
    known = all(mounts[name].status.state == "degraded" for name in dead)
    return mounts if known and mounts[emptied].status.state == "failed" else None


def _check_ls(daemon: Daemon) -> None:
    """`s3mgr ls` is quick while everything else goes on: the best of a few, since the machine may be busy."""
    answers_s = []
    for _ in range(5):
        begun = time.monotonic()
        assert len(daemon.api.list_mounts().items) == MOUNTS
        answers_s.append(time.monotonic() - begun)
    assert min(answers_s) < ANSWER_LIMIT_S, answers_s
    cpus_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [SCRIPTS / "s3mgr", "ls"],
            check=True,
            capture_output=True,
            env=os.environ | {"S3MGR_HOST": f"unix://{daemon.socket}"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(cpus_s) < LS_CPU_LIMIT_S, cpus_s
