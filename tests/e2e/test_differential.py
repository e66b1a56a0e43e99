"""Random operations on a mount and on a local directory side by side: results, errno, contents and listings are the same.

In one run the worker is killed again and again, while operations are under way; nobody notices. The seed is in the
test's name; each run is reproducible but for the moments of the kills.
"""

import hashlib
import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.e2e.lab import Lab
from tests.e2e.trees import describe, objects_of, read_bucket
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

NAMES = ("a", "b", "c", "d", "e.txt", "f-g", "h")
CHECKPOINT = 150
"""Whole trees are compared after so many operations."""

Result = tuple[str, object]


class Operations:
    """Random operations on one tree; two of these with one seed do the same."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._kinds: list[Callable[[], object]] = [
            *[self.write] * 4,
            *[self.append] * 2,
            *[self.read] * 3,
            *[self.mkdir] * 3,
            *[self.rename] * 3,
            *[self.unlink] * 2,
            *[self.stat] * 2,
            self.truncate,
            self.rmdir,
            self.exclusive,
            self.symlink,
            self.chmod,
            self.utime,
            self.listdir,
        ]

    def step(self) -> tuple[str, Result]:
        """Do the next operation; returns what it was and its result or errno."""
        operation = self._random.choice(self._kinds)
        try:
            result: Result = ("ok", operation())
        except OSError as error:
            result = ("errno", error.errno)
        return operation.__name__, result

    def _path(self) -> Path:
        depth = self._random.choice([1, 1, 2, 2, 3])
        return self._root.joinpath(*(self._random.choice(NAMES) for _ in range(depth)))

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice([0, 1, 10, 100, 5000, 40000]))

    def _offset(self) -> int:
        return self._random.choice([0, 0, 0, 10, 1000, 4096, 50000])

    def write(self) -> object:
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if self._random.random() < 0.3 else 0)
        path, data, offset = self._path(), self._data(), self._offset()
        fd = os.open(path, flags, 0o644)
        try:
            os.pwrite(fd, data, offset)
            around = os.pread(fd, 70_000, max(0, offset - 100))
            return hashlib.sha256(around).hexdigest(), os.fstat(fd).st_size
        finally:
            os.close(fd)

    def append(self) -> object:
        path, data = self._path(), self._data()
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    def read(self) -> object:
        return hashlib.sha256(self._path().read_bytes()).hexdigest()

    def truncate(self) -> object:
        path, size = self._path(), self._offset()
        os.truncate(path, size)
        return path.stat().st_size

    def mkdir(self) -> object:
        self._path().mkdir()
        return None

    def rmdir(self) -> object:
        self._path().rmdir()
        return None

    def unlink(self) -> object:
        self._path().unlink()
        return None

    def rename(self) -> object:
        os.rename(self._path(), self._path())
        return None

    def exclusive(self) -> object:
        os.close(os.open(self._path(), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return None

    def symlink(self) -> object:
        path = self._path()
        path.symlink_to(self._random.choice(NAMES))
        return os.readlink(path)

    def chmod(self) -> object:
        path, mode = self._path(), self._random.choice([0o600, 0o644, 0o755])
        path.chmod(mode)
        return path.stat().st_mode

    def utime(self) -> object:
        path, time_ns = self._path(), self._random.randrange(10**18)
        os.utime(path, ns=(time_ns, time_ns))
        return path.stat().st_mtime_ns

    def stat(self) -> object:
        path = self._path()
        status = path.lstat()
        return status.st_mode, None if path.is_dir() and not path.is_symlink() else status.st_size

    def listdir(self) -> object:
        return sorted(os.listdir(self._path()))


class Killer:
    """Kills the worker of a mount again and again, at random moments, until it is stopped."""

    def __init__(self, pid: Callable[[], int], seed: int) -> None:
        self._pid = pid
        self._random = random.Random(seed)  # noqa: S311
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills = 0

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0.05, 0.4)):
            os.kill(self._pid(), signal.SIGKILL)
            self.kills += 1


@pytest.mark.parametrize(
    ("seed", "operations", "kills", "options"),
    [
        (1, 900, False, "metadata_ttl_s=30"),
        (2, 600, False, "metadata_ttl_s=0,negative_ttl_s=0"),
        (3, 600, True, "metadata_ttl_s=30"),
    ],
)
def test_a_mount_is_a_local_directory(
    lab: Lab, ministack: Endpoint, seed: int, operations: int, kills: bool, options: str
) -> None:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = lab.daemon(restart_limit=1000, restart_backoff_s=0.05, restart_backoff_max_s=0.05)
    local = lab.directory("local")
    mount = daemon.mount(ministack, bucket, "m", "-o", options)
    here, there = Operations(local, seed), Operations(mount, seed)
    try:
        killer = Killer(daemon.worker_pid, seed)
        with killer if kills else nullcontext():
            for i in range(operations):
                expected = here.step()
                assert (i, there.step()) == (i, expected)
                if i % CHECKPOINT == CHECKPOINT - 1:
                    assert describe(mount, times=False) == describe(local, times=False), i
        assert not kills or killer.kills >= 5
        daemon.flush("m")
        assert read_bucket(ministack, bucket, "") == objects_of(describe(local), "")
    finally:
        daemon.run("unmount", "m", check=False)
        remove_bucket(client, bucket)
        client.close()
