"""What a large file takes of the local disk, the memory and the network: one that is written, and one of which little is changed.

Run: ``python -m tests.bench.bounded --endpoint URL [--size-gib 8] [--disk-mib 1024] [--memory-mib 256] [--kills 3]``. The
endpoint is one of a server that makes a huge object from nothing and counts (``/_bench/big``, ``/_bench/stats``). Writes a
file with `staging_size_bytes` and `cache_size_bytes` limited to the one; the worker must stay below the other, with `memory_limit_bytes`,
which bounds the data that it holds, as it is by default. It is killed on the way. Then changes 4 KiB in the middle of an object of 10 GiB and appends 1 KiB to it. Exit
status 1 when a bound is exceeded or the bytes in S3 are others.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.memory import PROGRAM_LIMIT_S, WRITE
from tests.bench.meter import MIB, SAMPLE_INTERVAL_S, peaks
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint

HUGE_BYTES: Final = 10 << 30
MOST_MOVED: Final = 20 * MIB
"""For a small change of the huge object, both ways together."""


def disk_bytes(directory: Path) -> int:
    """Return what the files below a directory take on the disk."""
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(above, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # removed meanwhile
    return total


@contextmanager
def disk_peak(*directories: Path) -> Iterator[list[int]]:
    """Sample what directories take; yields a list that holds the most when the context has ended."""
    most, end = [0], threading.Event()

    def sample() -> None:
        while not end.wait(SAMPLE_INTERVAL_S):
            most[0] = max(most[0], sum(disk_bytes(directory) for directory in directories))

    thread = threading.Thread(target=sample, name="disk samples", daemon=True)
    thread.start()
    try:
        yield most
    finally:
        end.set()
        thread.join()


def moved_bytes(endpoint: Endpoint) -> tuple[int, dict[str, int]]:
    """Return how many bytes went to and from the server since it was asked to forget, and its requests by kind."""
    with urllib.request.urlopen(f"{endpoint.url}/_bench/stats") as answer:  # noqa: S310 - ours
        stats = json.load(answer)
    moved = sum(row["bytes_in"] + row["bytes_out"] for row in stats.values())
    return moved, {kind: row["requests"] for kind, row in stats.items()}


def forget(endpoint: Endpoint) -> None:
    """Have the server count from nothing."""
    with urllib.request.urlopen(f"{endpoint.url}/_bench/reset"):  # noqa: S310 - ours
        pass


def write_large(
    daemon: Daemon,
    endpoint: Endpoint,
    bucket: str,
    size_mib: int,
    limits: tuple[int, int],
    kills: int,
) -> bool:
    """Write a file larger than disk and memory may be; whether the bounds and the bytes are right."""
    disk_mib, memory_mib = limits
    options = f"cache_size_bytes={disk_mib * MIB},staging_size_bytes={disk_mib * MIB}"
    mount = daemon.mount(endpoint, bucket, "large", "-o", options)
    pid = [daemon.worker_pid("large")]
    begun = time.monotonic()
    with (
        disk_peak(daemon.state_dir, daemon.base / "cache") as disk,
        peaks({"worker": lambda: pid[0]}) as memory,
    ):
        command = [sys.executable, "-S", "-c", WRITE, str(mount / "file"), str(size_mib)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            for _ in range(kills):
                time.sleep(1.0)  # the fault injector's own timing
                if program.poll() is None:
                    old = daemon.kill_worker("large")
                    pid[0] = daemon.wait_replaced(old, "large")
            written, _ = program.communicate(timeout=PROGRAM_LIMIT_S)
            assert program.returncode == 0, "the program failed"
    took_s = time.monotonic() - begun
    digest = hashlib.sha256()
    client = endpoint.boto3()
    for chunk in client.get_object(Bucket=bucket, Key="file")["Body"].iter_chunks(MIB):
        digest.update(chunk)
    daemon.flush("large")
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=bucket)["Contents"]]
    daemon.run("unmount", "large")
    disk_used, worker = disk[0] / MIB, memory["worker"] / MIB
    print(
        f"{size_mib} MiB written in {took_s:.1f} s ({size_mib / took_s:.0f} MiB/s), {kills} workers killed; "
        f"disk at most {disk_used:.0f} MiB, worker at most {worker:.0f} MiB"
    )
    is_right = written.strip() == digest.hexdigest() and keys == ["file"]
    if not is_right:
        print(f"other bytes or keys in S3: {keys}")
    return is_right and disk_used <= 1.1 * disk_mib and worker <= memory_mib


def change_huge(daemon: Daemon, endpoint: Endpoint, bucket: str) -> bool:
    """Change little of a huge object; whether little was moved, and the rest is as it was."""
    url = f"{endpoint.url}/_bench/big?bucket={bucket}&key=huge&size={HUGE_BYTES}"
    with urllib.request.urlopen(url):  # noqa: S310 - ours
        pass
    client = endpoint.boto3()
    mount = daemon.mount(endpoint, bucket, "huge")
    is_right = True
    # Across the border of two parts of 8 MiB.
    for what, offset, data in (
        ("4 KiB changed", HUGE_BYTES // 2 - 100, random.Random(1).randbytes(4096)),  # noqa: S311
        ("1 KiB appended", HUGE_BYTES, b"x" * 1024),
    ):
        before = client.get_object(
            Bucket=bucket, Key="huge", Range=f"bytes={offset - MIB}-{offset - 1}"
        )["Body"].read()
        forget(endpoint)
        begun = time.monotonic()
        with disk_peak(daemon.state_dir, daemon.base / "cache") as disk:
            fd = os.open(mount / "huge", os.O_RDWR)
            os.pwrite(fd, data, offset)
            os.close(fd)
            time.sleep(2 * SAMPLE_INTERVAL_S)
        took_s = time.monotonic() - begun - 2 * SAMPLE_INTERVAL_S
        moved, requests = moved_bytes(endpoint)
        after = client.get_object(
            Bucket=bucket, Key="huge", Range=f"bytes={offset - MIB}-{offset + len(data) - 1}"
        )["Body"].read()
        is_right = is_right and after == before + data and moved < MOST_MOVED
        print(
            f"{what} in 10 GiB: {took_s:.2f} s, {moved / MIB:.1f} MiB moved, disk at most {disk[0] / MIB:.0f} MiB, {requests}"
        )
    daemon.run("unmount", "huge")
    return is_right


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="benchbench")
    parser.add_argument("--size-gib", type=float, default=8.0)
    parser.add_argument("--disk-mib", type=int, default=1024)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--kills", type=int, default=3)
    chosen = parser.parse_args()
    endpoint = Endpoint("ministack", chosen.endpoint, chosen.access_key, chosen.secret_key)
    client = endpoint.boto3()
    lab = Lab()
    try:
        daemon = lab.daemon()
        results = []
        for step in ("large", "huge"):
            bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
            client.create_bucket(Bucket=bucket)
            if step == "large":
                size_mib = int(chosen.size_gib * 1024)
                limits = (chosen.disk_mib, chosen.memory_mib)
                results.append(
                    write_large(daemon, endpoint, bucket, size_mib, limits, chosen.kills)
                )
            else:
                results.append(change_huge(daemon, endpoint, bucket))
        return 0 if all(results) else 1
    finally:
        lab.end()


if __name__ == "__main__":
    sys.exit(main())
