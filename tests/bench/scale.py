"""Many mounts, many readers, many files, large files: seconds, memory and requests.

Run: ``python -m tests.bench.scale --endpoint URL [--items mounts,readers,small,read,write] [--files 100000] [--read-gib 20] [--write-gib 8]``.
The endpoint is a server that counts its requests at ``/_bench/stats`` and makes an object from nothing at
``/_bench/big?bucket=…&key=…&size=…`` (`tests.bench.network`). *read* and *write* run with `cache_size_bytes` and `staging_size_bytes` of
1 GiB, and all processes of s3mgr together must stay below 256 MiB (`memory_limit_bytes`, which bounds only the data of reads and
uploads, is what it is by default). Exit status 1 when a byte is another, or memory or disk is exceeded.
"""

import argparse
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.bounded import disk_peak
from tests.bench.meter import MIB, peaks
from tests.bench.network import Counting, from_nothing
from tests.e2e.lab import Daemon, Lab, run
from tests.servers.endpoint import Endpoint

GIB: Final = 1 << 30
BOUNDED: Final = f"cache_size_bytes={GIB},staging_size_bytes={GIB}"
MOST_MEMORY: Final = 256 * MIB
MOST_DISK: Final = GIB + GIB // 10
READERS: Final = (1, 4, 16, 64)
SAMPLE_INTERVAL_S: Final = 0.25
READ_BYTES: Final = 32 * MIB
"""What each of many readers reads."""


class Scale:
    """One daemon on one endpoint, and a table that grows."""

    def __init__(self, daemon: Daemon, endpoint: Endpoint) -> None:
        self.daemon: Final = daemon
        self.endpoint: Final = endpoint
        self.server: Final = Counting(endpoint)
        self.bucket: Final = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
        client = endpoint.boto3()
        client.create_bucket(Bucket=self.bucket)
        client.close()

    def mount(self, name: str, options: str) -> Path:
        """Mount the bucket."""
        return self.daemon.mount(self.endpoint, self.bucket, name, "-o", options)

    @contextmanager
    def step(
        self, what: str, moved_bytes: int, *names: str, bounded: bool = False
    ) -> Iterator[None]:
        """Measure what happens in the context and print a line of the table; *bounded*: fail when it took too much."""
        pids = {name: self.daemon.worker_pid(name) for name in names}
        assert self.daemon.process is not None
        supervisor = self.daemon.process.pid
        directories = (self.daemon.state_dir, self.daemon.base / "cache")
        self.server.reset()
        begun = time.monotonic()
        with (
            # Where there are many small files, looking at each would be what is measured.
            disk_peak(*(directories if bounded else ())) as disk,
            peaks(
                {name: partial(int, pid) for name, pid in pids.items()},
                tree_of=lambda: supervisor,
                interval_s=SAMPLE_INTERVAL_S,
            ) as highest,
        ):
            yield
        seconds = time.monotonic() - begun
        together = highest.pop("all")
        print(
            f"{what:34} {seconds:8.1f} s {moved_bytes / seconds / 1e6:8.0f} MB/s {self.server.requests():8} requests "
            f"{max(highest.values()) / MIB:6.0f} MiB a worker {together / MIB:6.0f} MiB all"
            + (f" {disk[0] / MIB:6.0f} MiB disk" if bounded else ""),
            flush=True,
        )
        if bounded:
            assert together <= MOST_MEMORY, f"{what}: {together / MIB:.0f} MiB of memory"
            assert disk[0] <= MOST_DISK, f"{what}: {disk[0] / MIB:.0f} MiB of the disk"

    def read(self, gib: float) -> None:
        """Read a large object in order, and compare it in places."""
        size = int(gib * GIB)
        self.server.make_huge(self.bucket, "huge", size)
        file = self.mount("huge", BOUNDED) / "huge"
        with (
            self.step(f"{gib:g} GiB read", size, "huge", bounded=True),
            file.open("rb", buffering=0) as stream,
        ):
            position = 0
            while data := stream.read(MIB):
                assert data[:256] == from_nothing(position, min(256, size - position)), position
                position += len(data)
        assert position == size
        self.daemon.run("unmount", "huge")

    def write(self, gib: float) -> None:
        """Write a large file, and compare in places what S3 has."""
        count = int(gib * 1024)
        block = from_nothing(0, MIB)
        file = self.mount("written", BOUNDED) / "written"
        with (
            self.step(f"{gib:g} GiB written", count * MIB, "written", bounded=True),
            file.open("wb", buffering=0) as stream,
        ):
            for number in range(count):
                stream.write(number.to_bytes(8, "big") + block[8:])
        self.daemon.run("unmount", "written")
        client = self.endpoint.boto3()
        for number in range(0, count, max(1, count // 64)):
            span = f"bytes={number * MIB}-{(number + 1) * MIB - 1}"
            found = client.get_object(Bucket=self.bucket, Key="written", Range=span)["Body"].read()
            assert found == number.to_bytes(8, "big") + block[8:], number
        client.close()

    def readers(self) -> None:
        """Read by 1 to 64 programs: one file, and a file each."""
        self.server.make_huge(self.bucket, "shared", READ_BYTES)
        for number in range(max(READERS)):
            self.server.make_huge(self.bucket, f"many/{number}", READ_BYTES)
        for count in READERS:
            for is_shared in (True, False):
                mount = self.mount("readers", "cache_size_bytes=0")
                files = [mount / ("shared" if is_shared else f"many/{n}") for n in range(count)]
                title = f"{count} readers of {'one file' if is_shared else 'a file each'}"
                with self.step(title, count * READ_BYTES, "readers"):
                    sums = at_once([partial(run, "md5sum", file) for file in files])
                assert len({line.split()[0] for line in sums}) == 1, "readers got different bytes"
                self.daemon.run("unmount", "readers")

    def mounts(self) -> None:
        """Read through 1, 4 and 16 mounts at once."""
        self.server.make_huge(self.bucket, "shared", 4 * READ_BYTES)
        for count in (1, 4, 16):
            names = [f"m{number}" for number in range(count)]
            mounts = [self.mount(name, "cache_size_bytes=0") for name in names]
            with self.step(f"{count} mounts at once", count * 4 * READ_BYTES, *names):
                sums = at_once([partial(run, "md5sum", mount / "shared") for mount in mounts])
            assert len({line.split()[0] for line in sums}) == 1, "mounts read different bytes"
            for name in names:
                self.daemon.run("unmount", name)

    def small(self, count: int) -> None:
        """Copy many small files in, and read them again by a mount that has nothing cached."""
        script = (
            "import os, sys\n"
            "for n in range(int(sys.argv[2])):\n"
            "    if n % 1000 == 0: os.makedirs(f'{sys.argv[1]}/{n // 1000}', exist_ok=True)\n"
            "    open(f'{sys.argv[1]}/{n // 1000}/{n}', 'wb').write(b'%d' % n)\n"
        )
        mount = self.mount("small", "write_mode=writeback")
        with self.step(f"{count:,} small files in", 0, "small"):
            run(sys.executable, "-c", script, mount / "in", str(count), limit_s=3600)
            self.daemon.run("flush", "small", limit_s=3600)
        self.daemon.run("unmount", "small")
        mount = self.mount("again", "cache_size_bytes=0")
        check = (
            "import os, sys\n"
            "total = sum(int(open(f'{b}/{n}').read()) == int(n) for b, _, ns in os.walk(sys.argv[1]) for n in ns)\n"
            "assert total == int(sys.argv[2]), total\n"
        )
        with self.step(f"{count:,} small files out", 0, "again"):
            run(sys.executable, "-c", check, mount / "in", str(count), limit_s=3600)
        self.daemon.run("unmount", "again")


def at_once(calls: Sequence[Callable[[], str]]) -> list[str]:
    """Make all calls in threads of their own; their failures pass through."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result() for done in [pool.submit(call) for call in calls]]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--items", default="mounts,readers,small,read,write")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--read-gib", type=float, default=20.0)
    parser.add_argument("--write-gib", type=float, default=8.0)
    chosen = parser.parse_args()
    endpoint = Endpoint("ministack", chosen.endpoint, "bench", "bench-secret")
    lab = Lab()
    try:
        scale = Scale(lab.daemon(), endpoint)
        items: dict[str, Callable[[], None]] = {
            "mounts": scale.mounts,
            "readers": scale.readers,
            "small": lambda: scale.small(chosen.files),
            "read": lambda: scale.read(chosen.read_gib),
            "write": lambda: scale.write(chosen.write_gib),
        }
        for item in chosen.items.split(","):
            items[item]()
    except AssertionError as error:
        print(f"wrong: {error}")
        return 1
    finally:
        lab.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
