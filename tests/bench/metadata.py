"""What a million names cost: listing them for the first time, again and after a restart, and looking them up.

Run: ``python -m tests.bench.metadata [--endpoint URL] [--objects 1000000] [--directories 10000]``. The endpoint is a
server that makes objects from nothing (``/_bench/fill``); without one a MiniStack is started and filled object by object,
which is for small numbers. The objects lie once in one directory and once in many. Writes a table; exit status 1 when a
bound is missed.

"again" lists with what kernel and worker have; then the daemon is restarted, so the kernel has nothing and all comes from
mount.db. Lookups are of names that mount.db has and the kernel has not, one after the other.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.meter import MIB, peaks
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack
from tests.servers.plugin import remove_bucket

PROGRAM_LIMIT_S: Final = 3600.0
LOOKUPS: Final = 20_000
FILLERS: Final = 8
OPTIONS: Final = ("-o", "metadata_ttl_s=3600,negative_ttl_s=3600")

WARM_PER_S: Final = 100_000
LOOKUPS_PER_S: Final = 5_000
WORKER_LIMIT_MIB: Final = 300
BYTES_PER_ENTRY: Final = 300

WALK: Final = """
import os, sys, time
found, waiting = 0, [sys.argv[1]]
begun = time.perf_counter()
while waiting:
    with os.scandir(waiting.pop()) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                found += 1
print(found, time.perf_counter() - begun)
"""
LOOK_UP: Final = """
import os, sys, time
paths = sys.stdin.read().splitlines()
begun = time.perf_counter()
for path in paths:
    os.lstat(path)
print(len(paths), time.perf_counter() - begun)
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many objects, and over how many directories (1: all in one)."""

    objects: int
    directories: int

    @property
    def title(self) -> str:
        """What to call it."""
        where = "1 directory" if self.directories == 1 else f"{self.directories:,} directories"
        return f"{self.objects:,} objects in {where}"

    @property
    def per_directory(self) -> int:
        """Objects in one directory; the last may have fewer."""
        return -(-self.objects // self.directories)

    def key(self, number: int) -> str:
        """Return the key of an object, as ``/_bench/fill`` names it."""
        if self.directories == 1:
            return f"data/f{number:07d}"
        return f"data/d{number // self.per_directory:05d}/f{number:07d}"


@dataclass(slots=True)
class Figures:
    """What was measured of one shape."""

    shape: Shape
    cold_per_s: float = 0.0
    pages_per_s: float = 0.0
    pages: int = 0
    again_per_s: float = 0.0
    restart_s: float = 0.0
    restarted_per_s: float = 0.0
    requests_restarted: int = 0
    lookups_per_s: float = 0.0
    bytes_per_entry: float = 0.0
    worker_mib: float = 0.0
    missed: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Note which bounds were missed."""
        bounds: list[tuple[str, bool]] = [
            ("again", self.again_per_s >= WARM_PER_S),
            ("restarted", self.restarted_per_s >= WARM_PER_S),
            ("requests after the restart", self.requests_restarted == 0),
            ("lookups", self.lookups_per_s >= LOOKUPS_PER_S),
            ("memory", self.worker_mib < WORKER_LIMIT_MIB),
            ("mount.db", self.bytes_per_entry < BYTES_PER_ENTRY),
        ]
        self.missed = [name for name, holds in bounds if not holds]

    def table(self) -> str:
        """Write the figures as text."""
        lines = [
            self.shape.title,
            f"  first listing       {self.cold_per_s:12,.0f} entries/s, {self.pages} pages, {self.pages_per_s:.1f}/s",
            f"  again               {self.again_per_s:12,.0f} entries/s (at least {WARM_PER_S:,})",
            f"  daemon restarted in {self.restart_s:12.2f} s",
            f"  listing after that  {self.restarted_per_s:12,.0f} entries/s (at least {WARM_PER_S:,}), "
            f"{self.requests_restarted} requests",
            f"  lookups             {self.lookups_per_s:12,.0f} /s (at least {LOOKUPS_PER_S:,})",
            f"  worker at most      {self.worker_mib:12.0f} MiB (below {WORKER_LIMIT_MIB})",
            f"  mount.db            {self.bytes_per_entry:12.0f} bytes an entry (below {BYTES_PER_ENTRY})",
        ]
        if self.missed:
            lines.append(f"  missed: {', '.join(self.missed)}")
        return "\n".join(lines)


def run_program(code: str, *arguments: object, text: str = "") -> tuple[int, float]:
    """Run a program that prints a count and seconds."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=PROGRAM_LIMIT_S,
        check=True,
    )
    count, seconds = done.stdout.split()
    return int(count), float(seconds)


def listings(daemon: Daemon, name: str) -> int:
    """Count the pages that the worker of *name* asked for."""
    return sum(c.count for c in daemon.api.mount_stats(name).s3 if c.name == "ListObjectsV2")


def requests(daemon: Daemon, name: str) -> int:
    """Count the requests that the worker of *name* sent on behalf of programs."""
    counted = daemon.api.mount_stats(name).s3
    return sum(c.count for c in counted if c.name not in ("HeadBucket", "GetBucketLocation"))


def measure(daemon: Daemon, endpoint: Endpoint, bucket: str, shape: Shape) -> Figures:
    """Measure one shape in a filled bucket."""
    figures = Figures(shape)
    name = f"shape-{shape.directories}"

    def worker() -> int:
        try:
            return daemon.show(name).status.worker_pid or 0
        except Exception:  # noqa: BLE001 - a sampler of a mount that is being replaced
            return 0

    directory = daemon.mount(endpoint, bucket, name, *OPTIONS) / "data"
    directory.stat()
    with peaks({"worker": worker}) as highest:
        before = listings(daemon, name)
        figures.cold_per_s, seconds = walk(directory, shape)
        figures.pages = listings(daemon, name) - before
        figures.pages_per_s = figures.pages / seconds
        figures.again_per_s, _ = walk(directory, shape)
        begun = time.monotonic()
        daemon.stop()
        daemon.start()
        daemon.worker_pid(name)
        figures.restart_s = time.monotonic() - begun
        before = requests(daemon, name)
        look_up(directory, shape, figures)
        figures.restarted_per_s, _ = walk(directory, shape)
        figures.requests_restarted = requests(daemon, name) - before
    daemon.run("unmount", "--keep", name)  # the log is folded back, the file is what it is
    database = daemon.state_dir / "mounts" / name / "mount.db"
    figures.bytes_per_entry = database.stat().st_size / shape.objects
    figures.worker_mib = highest["worker"] / MIB
    daemon.run("unmount", name)
    figures.judge()
    return figures


def walk(directory: Path, shape: Shape) -> tuple[float, float]:
    """List everything; returns entries per second and seconds."""
    found, seconds = run_program(WALK, directory)
    assert found == shape.objects, f"{found} entries of {shape.objects}"
    return found / seconds, seconds


def look_up(directory: Path, shape: Shape, figures: Figures) -> None:
    """Ask for names one by one that the kernel does not know yet."""
    chooser = random.Random(0)  # noqa: S311 - the same names every time
    numbers = chooser.sample(range(shape.objects), min(LOOKUPS, shape.objects))
    mountpoint = directory.parent
    if shape.directories > 1:  # the directories themselves are not what is measured
        for key in {shape.key(number).rpartition("/")[0] for number in numbers}:
            (mountpoint / key).stat()
    paths = "\n".join(str(mountpoint / shape.key(number)) for number in numbers)
    count, seconds = run_program(LOOK_UP, text=paths)
    figures.lookups_per_s = count / seconds


def fill(endpoint: Endpoint, bucket: str, shape: Shape) -> None:
    """Put the objects one by one."""
    client = endpoint.boto3()
    client.create_bucket(Bucket=bucket)

    def put(number: int) -> None:
        client.put_object(Bucket=bucket, Key=shape.key(number), Body=b"xxx")

    with ThreadPoolExecutor(FILLERS) as pool:
        for _ in pool.map(put, range(shape.objects)):
            pass


def fill_from_nothing(endpoint: Endpoint, bucket: str, shape: Shape) -> None:
    """Have the server make the objects."""
    per_directory = shape.per_directory if shape.directories > 1 else 0
    query = f"bucket={bucket}&prefix=data/&count={shape.objects}&per_dir={per_directory}&size=3"
    urllib.request.urlopen(f"{endpoint.url}/_bench/fill?{query}", timeout=PROGRAM_LIMIT_S).close()  # noqa: S310


def run(
    daemon: Daemon,
    endpoint: Endpoint,
    shapes: list[Shape],
    fill_bucket: Callable[[Endpoint, str, Shape], None],
) -> list[Figures]:
    """Measure every shape, each in a bucket of its own."""
    measured = []
    for shape in shapes:
        bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
        fill_bucket(endpoint, bucket, shape)
        try:
            measured.append(measure(daemon, endpoint, bucket, shape))
        finally:
            if fill_bucket is fill:
                remove_bucket(endpoint.boto3(), bucket)
    return measured


@contextmanager
def _endpoint(url: str | None) -> Iterator[Endpoint]:
    if url is not None:
        yield Endpoint("ministack", url, "bench", "bench-secret")
        return
    with tempfile.TemporaryDirectory() as directory, run_ministack(Path(directory)) as endpoint:
        yield endpoint


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", help="S3 endpoint; default: a MiniStack")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--directories", type=int, default=10_000)
    chosen = parser.parse_args()
    shapes = [Shape(chosen.objects, 1), Shape(chosen.objects, chosen.directories)]
    lab = Lab()
    try:
        with _endpoint(chosen.endpoint) as endpoint:
            how = fill_from_nothing if chosen.endpoint else fill
            measured = run(lab.daemon(), endpoint, shapes, how)
    finally:
        lab.end()
    for figures in measured:
        print(figures.table())
    return 1 if any(figures.missed for figures in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
