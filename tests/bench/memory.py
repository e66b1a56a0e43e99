"""How much memory worker, supervisor and all processes of the daemon together take at most while much data and many names go through them.

Run: ``python -m tests.bench.memory [--endpoint URL] [--size-gib 4] [--objects 100000]``. Without an endpoint a MiniStack
is started, which keeps the data in its own memory. Writes a table; exit status 1 when a bound is exceeded.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.meter import MIB, peaks
from tests.e2e.lab import Daemon, Lab
from tests.servers.endless import EndlessBucket
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack
from tests.servers.plugin import remove_bucket
from tests.servers.threaded import run_scripted

WORKER_LIMIT_MIB: Final = 250
SUPERVISOR_LIMIT_MIB: Final = 120
ALL_LIMIT_MIB: Final = 250
"""Everything that s3mgr runs for one mount."""
RANDOM_READS: Final = 2000
PROGRAM_LIMIT_S: Final = 3600.0

WRITE: Final = """
import hashlib, os, random, sys
path, count = sys.argv[1], int(sys.argv[2])
block = bytearray(random.Random(0).randbytes(1 << 20))
digest = hashlib.sha256()
with open(path, "wb", buffering=0) as file:
    for number in range(count):
        block[:8] = number.to_bytes(8, "big")
        file.write(block)
        digest.update(block)
print(digest.hexdigest())
"""
READ: Final = """
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())
"""
RANDOM: Final = """
import concurrent.futures, os, random, sys
path, count, size = sys.argv[1], int(sys.argv[2]), 128 << 10
blocks, chooser = os.path.getsize(path) // size, random.Random(0)
def read(offset):
    with open(path, "rb", buffering=0) as file:
        assert len(os.pread(file.fileno(), size, offset)) == size
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(read, [chooser.randrange(blocks) * size for _ in range(count)]))
"""
LIST: Final = """
import os, sys
print(sum(1 for entry in os.scandir(sys.argv[1])))
"""
STAT: Final = """
import os, sys
print(sum(entry.stat().st_nlink for entry in os.scandir(sys.argv[1])))
"""
LIBRARIES: Final = """
import aiobotocore.session, hypercorn, pyfuse3, quart_trio, sqlite_utils, trio
from tests.bench.meter import pss_bytes
import os
print(pss_bytes(os.getpid()))
"""


@dataclass(frozen=True)
class Figure:
    """What one step took: peaks in MiB."""

    step: str
    seconds: float
    worker_mib: float
    supervisor_mib: float
    all_mib: float


class Measurement:
    """A daemon and what its processes took."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.figures: list[Figure] = []

    def program(self, step: str, mount: str, code: str, *arguments: object) -> str:
        """Run a Python program and note the peaks of *mount*'s worker and the supervisor; returns what it printed."""
        with self.step(step, mount):
            done = subprocess.run(
                [sys.executable, "-S", "-c", code, *map(str, arguments)],
                capture_output=True,
                text=True,
                timeout=PROGRAM_LIMIT_S,
                check=True,
            )
        return done.stdout.strip()

    @contextmanager
    def step(self, step: str, mount: str) -> Iterator[None]:
        """Note the peaks of what happens in the context."""
        assert self.daemon.process is not None
        worker, supervisor = self.daemon.worker_pid(mount), self.daemon.process.pid
        begun = time.monotonic()
        find = {"worker": lambda: worker, "supervisor": lambda: supervisor}
        with peaks(find, tree_of=lambda: supervisor) as highest:
            yield
        took_s = time.monotonic() - begun
        self.figures.append(
            Figure(step, took_s, *(highest[n] / MIB for n in ("worker", "supervisor", "all")))
        )

    @property
    def worker_mib(self) -> float:
        """The worst worker."""
        return max(figure.worker_mib for figure in self.figures)

    @property
    def supervisor_mib(self) -> float:
        """The worst of the supervisor."""
        return max(figure.supervisor_mib for figure in self.figures)

    @property
    def all_mib(self) -> float:
        """The worst of all processes together."""
        return max(figure.all_mib for figure in self.figures)


def copy_in_and_out(measurement: Measurement, endpoint: Endpoint, size_mib: int) -> None:
    """Write a file of random bytes and read it back without anything cached; the bytes must be the same."""
    client = endpoint.boto3()
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    try:
        daemon = measurement.daemon
        directory = daemon.mount(endpoint, bucket, "copy")
        file = directory / "large"
        written = measurement.program(f"{size_mib} MiB in", "copy", WRITE, file, size_mib)
        daemon.run("unmount", "copy")
        daemon.mount(endpoint, bucket, "copy")
        read = measurement.program(f"{size_mib} MiB out", "copy", READ, file)
        assert read == written, "other bytes came back"
        daemon.run("unmount", "copy")
        daemon.mount(endpoint, bucket, "copy")
        reads = RANDOM_READS * size_mib // 4096 + 16
        measurement.program(f"{reads} random reads", "copy", RANDOM, file, reads)
        daemon.run("unmount", "copy")
    finally:
        remove_bucket(client, bucket)


def list_many(measurement: Measurement, objects: int) -> None:
    """List a directory for the first time, then again with the attributes of every entry, and look into the caches."""
    with run_scripted(EndlessBucket(objects)) as server:
        endpoint = Endpoint("ministack", server.url, "key", "secret")
        daemon = measurement.daemon
        directory = daemon.mount(endpoint, "many", "many") / "flat"
        counted = measurement.program(f"{objects:,} objects listed", "many", LIST, directory)
        assert int(counted) == objects, counted
        counted = measurement.program(f"{objects:,} objects stat", "many", STAT, directory)
        assert int(counted) == objects, counted
        with measurement.step("and invalidated", "many"):
            daemon.run("invalidate", "many")
        daemon.run("unmount", "many")


def table(figures: list[Figure]) -> str:
    """Write the figures as text."""
    lines = [f"{'step':28} {'seconds':>8} {'worker MiB':>11} {'supervisor MiB':>15} {'all MiB':>8}"]
    lines += [
        f"{f.step:28} {f.seconds:8.1f} {f.worker_mib:11.0f} {f.supervisor_mib:15.0f} {f.all_mib:8.0f}"
        for f in figures
    ]
    return "\n".join(lines)


def libraries_mib() -> float:
    """Return what one process takes that has imported the libraries s3mgr is built on, and does nothing."""
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / MIB


@contextmanager
def _endpoint(url: str | None, access_key: str, secret_key: str) -> Iterator[Endpoint]:
    if url is not None:
        yield Endpoint("ministack", url, access_key, secret_key)
        return
    with tempfile.TemporaryDirectory() as directory, run_ministack(Path(directory)) as endpoint:
        yield endpoint


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", help="S3 endpoint; default: a MiniStack")
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="bench-secret")
    parser.add_argument("--size-gib", type=float, default=4.0)
    parser.add_argument("--objects", type=int, default=100_000)
    chosen = parser.parse_args()
    lab = Lab()
    try:
        measurement = Measurement(lab.daemon())
        with _endpoint(chosen.endpoint, chosen.access_key, chosen.secret_key) as endpoint:
            copy_in_and_out(measurement, endpoint, int(chosen.size_gib * 1024))
        list_many(measurement, chosen.objects)
    finally:
        lab.end()
    print(table(measurement.figures))
    print(
        f"bounds: worker {WORKER_LIMIT_MIB} MiB, supervisor {SUPERVISOR_LIMIT_MIB} MiB, "
        f"all for one mount {ALL_LIMIT_MIB} MiB"
    )
    print(f"the libraries alone, in one process that does nothing: {libraries_mib():.0f} MiB")
    is_bounded = (
        measurement.worker_mib < WORKER_LIMIT_MIB
        and measurement.supervisor_mib < SUPERVISOR_LIMIT_MIB
        and measurement.all_mib < ALL_LIMIT_MIB
    )
    return 0 if is_bounded else 1


if __name__ == "__main__":
    sys.exit(main())
