"""What checksums cost: the same large files through two mounts in turn, one as it is, one whose worker computes and sends none.

Run: ``python -m tests.bench.checksums --endpoint URL [--size-mib 256] [--rounds 5]``. The other worker is made for this measurement
(`tests.bench.unchecked_daemon`); the product has no such choice. A server that verifies what it is sent computes it, too: where it
shares the processors of the mount, the rates show both, and the processor time of the worker what is the mount's own.

The best round of each counts, of rates and of processor time, because everything else that goes on only adds to it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from s3mgrd.s3.algorithms import CRC32C, Checksum
from tests.bench.meter import MIB
from tests.bench.network import Network, reached
from tests.bench.unchecked_daemon import start_unchecked
from tests.bench.workers import cpu_s
from tests.e2e.lab import Daemon, Lab
from tests.servers.plugin import make_bucket, remove_bucket

MEASURES: Final = ("write", "read")
WITH: Final = "with"
WITHOUT: Final = "without"


class Best:
    """The best of all rounds, by measure and mount: seconds, and seconds of processor time of the worker."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[float, float]] = {}

    def note(self, what: str, mount: str, took: tuple[float, float]) -> None:
        """Take note of a round."""
        before = self._found.get((what, mount), took)
        self._found[what, mount] = (min(before[0], took[0]), min(before[1], took[1]))

    def line(self, what: str, size: int) -> str:
        """Write a measure as a line of the table."""
        (fast_s, cpu), (bare_s, bare_cpu) = (self._found[what, m] for m in (WITH, WITHOUT))
        rates = f"{size / 1e6 / fast_s:12,.0f} {size / 1e6 / bare_s:12,.0f}"
        return (
            f"{what:8} {rates} {fast_s / bare_s - 1:8.1%} {cpu * 1e3:12.0f} {bare_cpu * 1e3:12.0f}"
        )


def write(path: Path, size: int) -> None:
    """Write a file in order, until close() returns: S3 has it."""
    block = os.urandom(MIB)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(block)


def read(path: Path, size: int) -> None:
    """Read a file in order."""
    buffer = bytearray(MIB)
    found = 0
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            found += got
    assert found == size, f"{found} bytes"


def timed(daemon: Daemon, do: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds, and those of processor time of the worker."""
    pid = daemon.worker_pid()
    begun, used = time.monotonic(), cpu_s(pid)
    do()
    return time.monotonic() - begun, cpu_s(pid) - used


def measure(
    network: Network,
    daemons: Mapping[str, Daemon],
    client: Any,  # noqa: ANN401 boto3's
    bucket: str,
    size: int,
    rounds: int,
) -> Best:
    """Write and read a file a round through each mount."""
    best = Best()
    body = os.urandom(MIB) * (size // MIB)
    checksum = str(Checksum.of(CRC32C, body))
    for number in range(rounds):
        # Who goes first finds the server as the other has left it.
        for name in list(daemons)[:: 1 if number % 2 else -1]:
            daemon, key = daemons[name], f"{name}/written-{number}"
            root = daemon.mountpoint("m")
            best.note(
                "write", name, timed(daemon, partial(write, root / f"written-{number}", size))
            )
            assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == size
            key = f"{name}/read-{number}"
            network.near(is_near=True)
            client.put_object(Bucket=bucket, Key=key, Body=body, ChecksumCRC32C=checksum)
            network.near(is_near=False)
            daemon.run("invalidate", "m")
            best.note("read", name, timed(daemon, partial(read, root / f"read-{number}", size)))
            client.delete_object(Bucket=bucket, Key=key)
            client.delete_object(Bucket=bucket, Key=f"{name}/written-{number}")
    return best


def compare(network: Network, size: int, rounds: int) -> list[str]:
    """Return the lines of the table."""
    lab, endpoint = Lab(), network.endpoint
    client = endpoint.boto3()
    bucket = make_bucket(client)
    try:
        daemons = {WITH: lab.daemon("checked"), WITHOUT: start_unchecked(lab)}
        for name, daemon in daemons.items():
            daemon.mount(endpoint, f"{bucket}/{name}", "m", "-o", "cache_size_bytes=0")
        best = measure(network, daemons, client, bucket, size, rounds)
        return [best.line(what, size) for what in MEASURES]
    finally:
        lab.end()
        remove_bucket(client, bucket)
        client.close()


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="URL")
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="bench-secret")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{'':8} {'with, MB/s':>12} {'without':>12} {'longer':>8} {'worker, ms':>12} {'without':>12}"
    )
    with reached(args.endpoint, args.access_key, args.secret_key) as network:
        print("\n".join(compare(network, args.size_mib * MIB, args.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
