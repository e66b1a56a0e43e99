"""What each of the kernel's knobs is worth: reads through mounts that differ in one of them.

Run: ``python -m tests.bench.knobs --endpoint URL [--size-mib 256] [--rounds 3]``. `s3mgrd.fuse.tuning` has the knobs. For each round
and each knob a daemon is started that has this one as an untuned mount would, and nothing else changed; the best round counts.
Everything is told beside what the mount does as it is, in MiB/s and as a share of it:

- *from S3*: one program reads an object in order that nothing has cached.
- *from the disk*: the same of an object that `s3mgr cache warm` has fetched before: what the way through the kernel gives.
- *many from S3*: sixteen programs read an object each.
"""

import argparse
import os
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.bench.limits import READ, program
from tests.bench.meter import MIB
from tests.e2e.lab import Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import remove_bucket

READERS: Final = 16
AS_IT_IS: Final = "as it is"
KNOBS: Final = {
    AS_IT_IS: "",
    "max_read 128 KiB": "tuning.MAX_WRITE_BYTES, tuning.MAX_PAGES = 131072, 32",
    "read_ahead_kb 128": "tuning.READAHEAD_BYTES, tuning.READAHEAD_KB = 131072, 128",
    "max_background 12": "tuning.MAX_BACKGROUND, tuning.CONGESTION_THRESHOLD = 12, 9",
    "no async reads": "del tuning.CAPABILITIES[Cap.ASYNC_READ]",
}
"""By name, what a daemon does to its tuning before it starts."""
START: Final = """
import sys
from s3mgrd.__main__ import main
from s3mgrd.fuse import tuning
from s3mgrd.fuse.abi import Cap
{change}
sys.exit(main())
"""
MEASURES: Final = ("from S3", "from the disk", "many from S3")


@dataclass(slots=True)
class Row:
    """The best rounds of one knob, by measure, in MiB/s."""

    best: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0.0))

    def note(self, measure: str, value: float) -> None:
        """Take a round's figure."""
        self.best[measure] = max(value, self.best[measure])


@contextmanager
def filled(endpoint: Endpoint, size: int) -> Iterator[str]:
    """Make a bucket with what is read: two large objects, and one for each of many readers."""
    client = endpoint.boto3()
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    try:
        block = os.urandom(8 * MIB)
        for key in ("one", "warm"):
            client.put_object(Bucket=bucket, Key=key, Body=block * (size // len(block)))
        for number in range(READERS):
            body = block * (size // READERS // len(block))
            client.put_object(Bucket=bucket, Key=f"many/{number}", Body=body)
        yield bucket
    finally:
        remove_bucket(client, bucket)
        client.close()


def measure(endpoint: Endpoint, bucket: str, size: int, change: str, row: Row) -> None:
    """Start a daemon with one change, and read by it."""
    lab = Lab()
    try:
        daemon = lab.daemon(start=False)
        daemon.program = (sys.executable, "-c", START.format(change=change))
        daemon.start()
        mount = daemon.mount(endpoint, bucket, "knobs")
        daemon.run("cache", "warm", "knobs", "warm")
        row.note("from the disk", size / MIB / program(READ, mount / "warm", size))
        row.note("from S3", size / MIB / program(READ, mount / "one", size))
        each = size // READERS
        with ThreadPoolExecutor(READERS) as pool:
            files = [mount / f"many/{number}" for number in range(READERS)]
            slowest_s = max(pool.map(lambda file: program(READ, file, each), files))
        row.note("many from S3", size / MIB / slowest_s)
    finally:
        lab.end()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="bench-secret")
    parser.add_argument("--size-mib", type=int, default=256, help="a multiple of 128")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    endpoint = Endpoint("ministack", chosen.endpoint, chosen.access_key, chosen.secret_key)
    size = chosen.size_mib * MIB
    rows = {name: Row() for name in KNOBS}
    with filled(endpoint, size) as bucket:
        for _ in range(chosen.rounds):
            for name, row in rows.items():
                measure(endpoint, bucket, size, KNOBS[name], row)
    print(f"{'MiB/s':20}" + "".join(f"{name:>22}" for name in MEASURES))
    for name, row in rows.items():
        shares = (row.best[m] / rows[AS_IT_IS].best[m] for m in MEASURES)
        figures = zip(row.best.values(), shares, strict=True)
        print(f"{name:20}" + "".join(f"{value:14.0f} ({share:5.2f})" for value, share in figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
