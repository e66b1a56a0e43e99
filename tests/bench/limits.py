"""How far a mount is from its limit: the same transfers through the mount, through the store client alone, and by bare sockets.

Run: ``python -m tests.bench.limits --endpoint URL [--size-mib 256] [--rounds 6] [--only read]``. The three take turns in one run
against the same server, because only figures of one run compare; the best round of each counts. Exit status 1 when the
mount reads or writes in order at less than 0.8 of what the store client does.

*store* is the project's own `ObjectStore`: what the file system would reach if it cost nothing. *sockets* are threads with
blocking sockets and requests that were prepared before, nothing signed, parsed or hashed: what the network and the server
give (only for servers that verify no signature). Both have as many transfers in flight as the mount may, in pieces of
one part. Each round reads another object, so that no cache has it.

Small files are made by one program in a mount with ``write_mode=writeback``: until its last close() returns, beside the same on a tmpfs;
and until S3 lists all of them, beside the same PUTs by the store client and by one loop of bare sockets.

The random reads are of an object too large to be kept, where the server makes one from nothing (``/_bench/big``).
"""

import argparse
import http.client
import itertools
import os
import random
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from s3mgrd.s3.client import open_store
from s3mgrd.s3.port import FileSlice, ObjectStore, Part
from tests.bench.meter import MIB
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import remove_bucket

PART_BYTES: Final = 8 * MIB
"""What `part_size_bytes` is by default."""
TRANSFERS: Final = 24
"""What `concurrency` is by default."""
RANDOM_BYTES: Final = 128 << 10
RANDOM_READS: Final = 60
"""By one reader; sixteen make eight times as many."""
HUGE_BYTES: Final = 20 << 30
SHARE: Final = 0.8
"""Of the store's speed, at least, in order."""
SMALL_FILES: Final = 500
SMALL_BYTES: Final = 10_000
SMALL_TRANSFERS: Final = 96
"""Requests for small files at a time: what the mount makes with `concurrency` 24."""
PROGRAM_LIMIT_S: Final = 600.0
LOOK_S: Final = 0.01
"""Between two looks at what S3 lists."""

COLUMNS: Final = ("tmpfs", "sockets", "store", "mount")
Job = Callable[[], Awaitable[object]]

READ: Final = """
import sys, time
begun, total = time.perf_counter(), 0
with open(sys.argv[1], "rb", buffering=0) as file:
    while block := file.read(1 << 20):
        total += len(block)
assert total == int(sys.argv[2]), total
print(time.perf_counter() - begun)
"""
WRITE: Final = """
import os, sys, time
block = os.urandom(1 << 20)
begun = time.perf_counter()
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(int(sys.argv[2]) >> 20):
        file.write(block)
print(time.perf_counter() - begun)
"""
CREATE: Final = """
import os, sys, time
root, count, block = sys.argv[1], int(sys.argv[2]), os.urandom(int(sys.argv[3]))
os.mkdir(root)
begun = time.perf_counter()
for number in range(count):
    with open(f"{root}/{number:04d}", "xb", buffering=0) as file:
        file.write(block)
print(time.perf_counter() - begun)
"""
RANDOM: Final = """
import concurrent.futures, os, sys, time
path, size, readers, offsets = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), list(map(int, sys.argv[4].split(",")))
def read(offset):
    with open(path, "rb", buffering=0) as file:
        assert len(os.pread(file.fileno(), size, offset)) == size
with concurrent.futures.ThreadPoolExecutor(readers) as pool:
    begun = time.perf_counter()
    list(pool.map(read, offsets))
print(time.perf_counter() - begun)
"""


@dataclass(slots=True)
class Row:
    """One kind of transfer: the best of its rounds, by who made it, in *unit* per second."""

    name: str
    unit: str
    must_hold: bool
    limit: str = "store"
    """Who the mount is measured by."""
    best: dict[str, float] = field(default_factory=dict)

    def note(self, who: str, value: float) -> None:
        """Take a round's figure."""
        self.best[who] = max(value, self.best.get(who, 0.0))

    @property
    def share(self) -> float:
        """The mount's part of what its limit reaches."""
        return self.best["mount"] / self.best[self.limit]

    @property
    def holds(self) -> bool:
        """Whether the bound is kept, where there is one."""
        return not self.must_hold or self.share >= SHARE

    def line(self) -> str:
        """Write the figures as text."""
        figures = "".join(
            f"{self.best[who]:11.1f}" if who in self.best else f"{'-':>11}" for who in COLUMNS
        )
        bound = f"  at least {SHARE}" if self.must_hold else ""
        return f"{self.name:28}{self.unit:>8}{figures}{self.share:12.2f}{bound}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What is measured on: a server, a bucket that is mounted, and a local file of `size` random bytes."""

    endpoint: Endpoint
    bucket: str
    mountpoint: Path
    writeback: Path
    """Where the bucket is mounted with ``write_mode=writeback``."""
    source_fd: int
    size: int
    huge: tuple[str, int]
    """An object for random reads, and its size."""
    random_reads: int


def program(code: str, *arguments: object) -> float:
    """Run a program that prints seconds."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PROGRAM_LIMIT_S,
        check=True,
    )
    return float(done.stdout)


def pieces(size: int) -> list[tuple[int, int]]:
    """Cut [0, size) into parts."""
    return [(start, min(start + PART_BYTES, size)) for start in range(0, size, PART_BYTES)]


# By the store client


def with_store(ground: Ground, job: Callable[[ObjectStore], Job]) -> float:
    """Open a store, make one request so that a connection is there, and time what *job* prepares."""

    async def main() -> float:
        settings = ground.endpoint.settings(ground.bucket, concurrency=TRANSFERS)
        async with open_store(settings) as store:
            await store.list_page("none/", delimited=True)
            begun = time.perf_counter()
            await job(store)()
            return time.perf_counter() - begun

    return trio.run(main)


async def side_by_side(transfers: int, jobs: list[Job]) -> None:
    """Run jobs, so many at a time."""
    waiting = iter(jobs)

    async def some() -> None:
        for job in waiting:
            await job()

    async with trio.open_nursery() as nursery:
        for _ in range(transfers):
            nursery.start_soon(some)


def store_reads(ground: Ground, key: str, ranges: list[tuple[int, int]], transfers: int) -> float:
    """Read ranges of an object by the store client; returns seconds."""

    def prepare(store: ObjectStore) -> Job:
        def reading(start: int, stop: int) -> Job:
            return lambda: store.get_range(key, start, stop)

        return lambda: side_by_side(transfers, [reading(*piece) for piece in ranges])

    return with_store(ground, prepare)


def store_writes(ground: Ground, key: str) -> float:
    """Write an object in parts by the store client; returns seconds."""

    def prepare(store: ObjectStore) -> Job:
        async def write() -> None:
            upload = await store.create_multipart(key, metadata={})
            parts: list[Part] = []

            def sending(number: int, start: int, stop: int) -> Job:
                async def send() -> None:
                    body = FileSlice(ground.source_fd, start, stop - start)
                    parts.append(await store.upload_part(key, upload, number, body))

                return send

            jobs = [sending(n, *piece) for n, piece in enumerate(pieces(ground.size), 1)]
            await side_by_side(TRANSFERS, jobs)
            await store.complete_multipart(key, upload, sorted(parts, key=lambda p: p.number))

        return write

    return with_store(ground, prepare)


def store_puts(ground: Ground, prefix: str) -> float:
    """Put small objects by the store client; returns seconds."""
    block = os.urandom(SMALL_BYTES)

    def prepare(store: ObjectStore) -> Job:
        def putting(number: int) -> Job:
            return lambda: store.put(f"{prefix}/{number:04d}", block, metadata={})

        return lambda: side_by_side(SMALL_TRANSFERS, [putting(n) for n in range(SMALL_FILES)])

    return with_store(ground, prepare)


# By bare sockets


class Wire:
    """Connections with blocking sockets; each thread that asks gets one of its own."""

    def __init__(self, ground: Ground) -> None:
        place = urlsplit(ground.endpoint.url)
        self._place: Final = (place.hostname or "", place.port or 80)
        self._host: Final = place.netloc
        self._bucket: Final = ground.bucket
        self._idle: Final[list[socket.socket]] = []

    def get(self, key: str, start: int, stop: int) -> None:
        """Read a range and throw it away."""
        connection = self._idle.pop() if self._idle else socket.create_connection(self._place)
        connection.sendall(self._head("GET", key, f"Range: bytes={start}-{stop - 1}"))
        left = stop - start - len(_after_head(connection))
        buffer = bytearray(min(left, MIB))
        while left > 0:
            got = connection.recv_into(buffer)
            assert got, "the server closed the connection"
            left -= got
        self._idle.append(connection)

    def put(self, key: str, fd: int, start: int, stop: int) -> None:
        """Write an object out of a file."""
        connection = self._idle.pop() if self._idle else socket.create_connection(self._place)
        connection.sendall(self._head("PUT", key, f"Content-Length: {stop - start}"))
        while start < stop:
            start += os.sendfile(connection.fileno(), fd, start, stop - start)
        _after_head(connection)
        self._idle.append(connection)

    def put_small(self, prefix: str) -> None:
        """Put small objects in one loop, without a thread: as many at a time as the mount does."""
        block = os.urandom(SMALL_BYTES)
        requests = iter(
            [
                self._head("PUT", f"{prefix}/{number:04d}", f"Content-Length: {len(block)}") + block
                for number in range(SMALL_FILES)
            ]
        )
        with selectors.EpollSelector() as waiting:
            for request in itertools.islice(requests, SMALL_TRANSFERS):
                fresh = socket.create_connection(self._place)
                fresh.sendall(request)
                waiting.register(fresh, selectors.EVENT_READ)
            while waiting.get_map():
                for ready, _ in waiting.select():
                    answered = ready.fileobj
                    assert isinstance(answered, socket.socket)
                    _after_head(answered)
                    following = next(requests, None)
                    if following is None:
                        waiting.unregister(answered)
                        self._idle.append(answered)
                    else:
                        answered.sendall(following)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._idle:
            connection.close()

    def _head(self, verb: str, key: str, header: str) -> bytes:
        return (
            f"{verb} /{self._bucket}/{key} HTTP/1.1\r\nHost: {self._host}\r\n{header}\r\n\r\n"
        ).encode()


def _after_head(connection: socket.socket) -> bytes:
    """Receive the head of an answer; returns what came of the body."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = connection.recv(1 << 16)
        assert data, "the server closed the connection"
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")), head[:80]
    return body


def socket_transfers(
    ground: Ground,
    transfers: int,
    job: Callable[[Wire, int, int], None],
    ranges: list[tuple[int, int]],
) -> float:
    """Make transfers by bare sockets, so many at a time; returns seconds."""
    wire = Wire(ground)
    with ThreadPoolExecutor(transfers) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda piece: job(wire, *piece), ranges))
        took_s = time.perf_counter() - begun
    wire.close()
    return took_s


# What is compared


def read(ground: Ground, row: Row, number: int) -> None:
    """Read an object from its first byte to its last."""
    mib = ground.size / MIB
    ranges = pieces(ground.size)
    key = f"read/{number}"
    if not ground.endpoint.verifies_signatures:
        took_s = socket_transfers(ground, TRANSFERS, lambda w, a, b: w.get(key, a, b), ranges)
        row.note("sockets", mib / took_s)
    row.note("store", mib / store_reads(ground, key, ranges, TRANSFERS))
    row.note("mount", mib / program(READ, ground.mountpoint / key, ground.size))


def write(ground: Ground, row: Row, number: int) -> None:
    """Write a new object from its first byte to its last, until S3 has it."""
    mib = ground.size / MIB
    fd = ground.source_fd
    if not ground.endpoint.verifies_signatures:

        def put(wire: Wire, start: int, stop: int) -> None:
            wire.put(f"write/{start}", fd, start, stop)

        row.note("sockets", mib / socket_transfers(ground, TRANSFERS, put, pieces(ground.size)))
    row.note("store", mib / store_writes(ground, f"write/store-{number}"))
    directory = ground.mountpoint / "write"
    row.note("mount", mib / program(WRITE, directory / f"mount-{number}", ground.size))


def read_at_random(readers: int) -> Callable[[Ground, Row, int], None]:
    """Return the measurement of random reads by so many readers, each with its own open and close."""

    def measure(ground: Ground, row: Row, number: int) -> None:
        key, size = ground.huge
        count = ground.random_reads * (1 if readers == 1 else 8)
        chooser = random.Random(number * 100 + readers)  # noqa: S311 - the same offsets every time
        offsets = [chooser.randrange(size // RANDOM_BYTES) * RANDOM_BYTES for _ in range(count)]
        ranges = [(offset, offset + RANDOM_BYTES) for offset in offsets]
        if not ground.endpoint.verifies_signatures:
            took_s = socket_transfers(ground, readers, lambda w, a, b: w.get(key, a, b), ranges)
            row.note("sockets", count / took_s)
        row.note("store", count / store_reads(ground, key, ranges, readers))
        shown = ",".join(map(str, offsets))
        took_s = program(RANDOM, ground.mountpoint / key, RANDOM_BYTES, readers, shown)
        row.note("mount", count / took_s)

    return measure


def small_returned(ground: Ground, row: Row, number: int) -> None:
    """Make small files, until the last close() returns."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as local:
        row.note("tmpfs", SMALL_FILES / _create(Path(local) / "tree"))
    row.note("mount", SMALL_FILES / _create(ground.writeback / "write" / f"returned-{number}"))


def small_durable(ground: Ground, row: Row, number: int) -> None:
    """Make small files, until S3 lists all of them."""
    if not ground.endpoint.verifies_signatures:
        wire = Wire(ground)
        begun = time.perf_counter()
        wire.put_small(f"write/sockets-{number}")
        row.note("sockets", SMALL_FILES / (time.perf_counter() - begun))
        wire.close()
    row.note("store", SMALL_FILES / store_puts(ground, f"write/store-{number}"))
    client = ground.endpoint.boto3()
    tree = f"write/durable-{number}"
    took_s = _create(ground.writeback / tree)
    begun = time.perf_counter()
    while (
        client.list_objects_v2(Bucket=ground.bucket, Prefix=f"{tree}/")["KeyCount"] <= SMALL_FILES
    ):
        time.sleep(LOOK_S)  # the directory's marker is one more
    row.note("mount", SMALL_FILES / (took_s + time.perf_counter() - begun))
    client.close()


def _create(directory: Path) -> float:
    return program(CREATE, directory, SMALL_FILES, SMALL_BYTES)


def _make_huge(endpoint: Endpoint, bucket: str) -> tuple[str, int] | None:
    """Have the server make an object from nothing; None: it cannot. Returns its key and size."""
    query = f"bucket={bucket}&key=read/huge&size={HUGE_BYTES}"
    try:
        with urllib.request.urlopen(f"{endpoint.url}/_bench/big?{query}") as answer:  # noqa: S310 - http
            if answer.headers.get_content_type() == "application/json":
                return "read/huge", HUGE_BYTES
    except (urllib.error.URLError, http.client.HTTPException):
        pass
    return None


MEASURES: Final[dict[str, tuple[Callable[[Ground, Row, int], None], str, str, bool, str]]] = {
    "read": (read, "in order, read", "MiB/s", True, "store"),
    "write": (write, "in order, written", "MiB/s", True, "store"),
    "random-1": (read_at_random(1), "at random, one reader", "/s", False, "store"),
    "random-16": (read_at_random(16), "at random, 16 readers", "/s", False, "store"),
    "small-returned": (small_returned, "small files, returned", "/s", False, "tmpfs"),
    "small-durable": (small_durable, "small files, in S3", "/s", False, "store"),
}


@contextmanager
def prepared(
    daemon: Daemon,
    endpoint: Endpoint,
    size: int,
    rounds: int,
    *,
    random_reads: int = RANDOM_READS,
) -> Iterator[Ground]:
    """Make a bucket with one object to be read for each round, and mount it."""
    client = endpoint.boto3()
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(os.urandom(size))
            file.flush()
            for number in range(rounds):
                file.seek(0)
                client.put_object(Bucket=bucket, Key=f"read/{number}", Body=file)
            client.put_object(Bucket=bucket, Key="write/", Body=b"")
            huge = _make_huge(endpoint, bucket) or ("read/0", size)
            mountpoint = daemon.mount(endpoint, bucket, "limits")
            later = daemon.mount(endpoint, bucket, "later", "-o", "write_mode=writeback")
            yield Ground(
                endpoint, bucket, mountpoint, later, file.fileno(), size, huge, random_reads
            )
        daemon.run("unmount", "limits")
        daemon.run("unmount", "later")
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
            if keys:
                client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        remove_bucket(client, bucket)
        client.close()


def compare(ground: Ground, names: list[str], rounds: int) -> list[Row]:
    """Measure everything, a round of each in turn."""
    rows = {name: Row(*MEASURES[name][1:]) for name in names}
    for number in range(rounds):
        for name, row in rows.items():
            MEASURES[name][0](ground, row, number)
    return list(rows.values())


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="bench-secret")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", action="append", choices=list(MEASURES), default=[])
    chosen = parser.parse_args()
    endpoint = Endpoint("ministack", chosen.endpoint, chosen.access_key, chosen.secret_key)
    lab = Lab()
    try:
        with prepared(lab.daemon(), endpoint, chosen.size_mib * MIB, chosen.rounds) as ground:
            rows = compare(ground, chosen.only or list(MEASURES), chosen.rounds)
    finally:
        lab.end()
    heads = "".join(f"{who:>11}" for who in COLUMNS)
    print(f"{'':28}{'':>8}{heads}{'share':>12}")
    for row in rows:
        print(row.line())
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
