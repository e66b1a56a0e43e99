"""What is compared: each workload uses a mounted directory as a program would, and returns its figures.

What is read is compared with what was put there, in places that cost nothing; what was written is compared in S3, where the
clock has stopped. So a fast wrong answer is none.
"""

import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tests.bench.compare.objects import (
    BLOCK_BYTES,
    HUGE_BYTES,
    RENAMED,
    SMALL_FILES,
    Sizes,
    block_mark,
    small_content,
)
from tests.bench.meter import MIB
from tests.bench.network import from_nothing
from tests.e2e.lab import wait_for

T = TypeVar("T")

S3_LIMIT_S: Final = 240.0
TREE: Final = (20, 25)
"""Directories of small files that are written, and files in each."""
FOURK_WRITES: Final = 8192

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of results: what a workload returns under `name`.

    Attributes:
        title: in the table.
        unit: seconds are better the fewer, rates the higher.
        goal: how much better than the best rival's s3mgr's should be at least; None: no matter.
        writeback_goal: the same with ``write_mode=writeback``.
    """

    name: str
    title: str
    unit: Literal["MB/s", "/s", "s", "files"]
    goal: float | None
    writeback_goal: float | None = None

    def ratio(self, value: float, best: float) -> float:
        """Return how many times better *value* is than *best*."""
        better, worse = (best, value) if self.unit in ("s", "files") else (value, best)
        return better / worse if worse else float("inf")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a workload is done.

    Attributes:
        root: the mounted directory.
        client: a client of another implementation that goes to the bucket directly.
        scratch: a local directory.
        restart: ends the file system, in good order, and starts it again.
    """

    root: Path
    client: Any
    bucket: str
    scratch: Path
    restart: Callable[[], None]
    sizes: Sizes

    def keys(self, prefix: str) -> list[str]:
        """List the objects below *prefix* that are no directories."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key for key in keys if not key.endswith("/")]

    def size(self, key: str) -> int | None:
        """Return an object's size; None: it is not there."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=key).get("Contents", [])
        return next((entry["Size"] for entry in found if entry["Key"] == key), None)

    def get(self, key: str, start: int, stop: int) -> bytes:
        """Read a range of an object."""
        span = f"bytes={start}-{stop - 1}"
        answer = self.client.get_object(Bucket=self.bucket, Key=key, Range=span)
        data: bytes = answer["Body"].read()
        return data

    def digest(self, key: str) -> str:
        """Return the SHA-256 of an object."""
        digest = hashlib.sha256()
        body = self.client.get_object(Bucket=self.bucket, Key=key)["Body"]
        for chunk in body.iter_chunks(MIB):
            digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing to do, the objects it needs, and what its figures are."""

    name: str
    needs: Sequence[str]
    figures: Sequence[Figure]
    do: Callable[[Site], Figures]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that *work* takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _each(work: Callable[[T], None], items: Sequence[T]) -> None:
    for item in items:
        work(item)


def until(what: str, probe: Callable[[], bool]) -> float:
    """Return the seconds until S3 shows it."""
    return timed(lambda: wait_for(what, lambda: probe() or None, limit_s=S3_LIMIT_S, poll_s=0.01))


def _sequential(site: Site) -> Figures:
    """Read one large object from its first byte to its last, and once more."""
    path = site.root / "data/big"

    def read() -> None:
        position = 0
        with path.open("rb", buffering=0) as file:
            while data := file.read(MIB):
                mark = block_mark(position)
                assert data.startswith(mark), f"other bytes at {position}"
                position += len(data)
        assert position == site.sizes.big_bytes, f"{position} bytes"

    mb = site.sizes.big_bytes / 1e6
    return {"cold": mb / timed(read), "again": mb / timed(read)}


def _at_random(
    path: Path, offsets: Sequence[int], expected: Callable[[int], bytes], first: int
) -> Figures:
    """Read blocks of one object, each with an open and a close: *first* by one reader, the rest by sixteen."""

    def read(offset: int) -> None:
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), BLOCK_BYTES, offset)
        assert len(data) == BLOCK_BYTES, f"{len(data)} bytes at {offset}"
        assert data.startswith(expected(offset)), f"other bytes at {offset}"

    one_s = timed(lambda: _each(read, offsets[:first]))
    with ThreadPoolExecutor(16) as pool:
        many_s = timed(lambda: list(pool.map(read, offsets[first:])))
    return {"one": first / one_s, "sixteen": (len(offsets) - first) / many_s}


def _random_large(site: Site) -> Figures:
    """Read at random in an object that a cache may take as a whole."""
    chooser = random.Random(1)  # noqa: S311 the same offsets for all
    blocks = site.sizes.big_bytes // BLOCK_BYTES
    offsets = [chooser.randrange(blocks) * BLOCK_BYTES for _ in range(5 * site.sizes.reads)]
    return _at_random(site.root / "data/big2", offsets, block_mark, site.sizes.reads)


def _random_huge(site: Site) -> Figures:
    """Read at random in an object where nothing but what is asked for can pay."""
    chooser = random.Random(2)  # noqa: S311 the same offsets for all
    first = max(1, site.sizes.reads * 2 // 5)
    blocks = HUGE_BYTES // BLOCK_BYTES
    offsets = [chooser.randrange(blocks) * BLOCK_BYTES for _ in range(7 * first)]
    return _at_random(site.root / "data/huge", offsets, lambda o: from_nothing(o, 64), first)


def _small_read(site: Site) -> Figures:
    """Read a directory of small files in order: half of them by one process, half by eight readers."""
    directory = site.root / "data/small"
    names = sorted(os.listdir(directory))
    assert len(names) == SMALL_FILES, f"{len(names)} files"
    half = len(names) // 2

    def read(name: str) -> None:
        assert (directory / name).read_bytes() == small_content(name), f"other bytes in {name}"

    one_s = timed(lambda: _each(read, names[:half]))
    with ThreadPoolExecutor(8) as pool:
        eight_s = timed(lambda: list(pool.map(read, names[half:])))
    return {"one": half / one_s, "eight": (len(names) - half) / eight_s}


def _list(site: Site) -> Figures:
    """List a large directory with sizes, and walk a tree: the first time, again, and after a restart."""
    many = site.sizes.many

    def ls() -> None:
        with os.scandir(site.root / "data/flat") as entries:
            sizes = [entry.stat().st_size for entry in entries]
        assert sizes == [3] * many, f"{len(sizes)} entries"

    def find() -> None:
        count = sum(len(names) for _, _, names in os.walk(site.root / "data/tree"))
        assert count == many, f"{count} files"

    figures = {
        "ls_cold": timed(ls),
        "ls_again": timed(ls),
        "find_cold": timed(find),
        "find_again": timed(find),
    }
    site.restart()
    return figures | {"ls_restarted": timed(ls), "find_restarted": timed(find)}


def _stat(site: Site) -> Figures:
    """Look at single files of a directory that was never listed, and at names that are not there."""
    directory = site.root / "data/flat2"
    names = [f"f{n:06}" for n in range(0, site.sizes.many, max(1, site.sizes.many // 200))][:200]

    def absent() -> None:
        for number in range(100):
            assert not (site.root / f"data/absent-{number}").exists()

    stat_s = timed(lambda: [(directory / name).stat() for name in names])
    return {"stat": stat_s, "absent": timed(absent)}


def _sequential_write(site: Site) -> Figures:
    """Write one large new file in order: until close() returns, and until S3 has it."""
    directory = site.root / "written"
    directory.mkdir(exist_ok=True)
    count = site.sizes.big_bytes // MIB
    block = bytearray(random.Random(3).randbytes(MIB))  # noqa: S311 any bytes
    digest = hashlib.sha256()
    for number in range(count):
        block[:8] = number.to_bytes(8, "big")
        digest.update(block)

    def write() -> None:
        with (directory / "big").open("wb", buffering=0) as file:
            for number in range(count):
                block[:8] = number.to_bytes(8, "big")
                assert file.write(block) == MIB

    closed_s = timed(write)
    key = "written/big"
    durable_s = closed_s + until("the file is in S3", lambda: site.size(key) == count * MIB)
    assert site.digest(key) == digest.hexdigest(), "other bytes in S3"
    return {"close": count * MIB / 1e6 / closed_s, "durable": count * MIB / 1e6 / durable_s}


def _write_4k(site: Site) -> Figures:
    """Write 32 MiB, 4 KiB at a time."""
    directory = site.root / "written"
    directory.mkdir(exist_ok=True)
    block = random.Random(4).randbytes(4096)  # noqa: S311 any bytes

    def write() -> None:
        with (directory / "fourk").open("wb", buffering=0) as file:
            for _ in range(FOURK_WRITES):
                assert file.write(block) == len(block)

    return {"close": FOURK_WRITES * len(block) / 1e6 / timed(write)}


def _source(site: Site) -> Path:
    """Make the tree of small local files that are copied."""
    source = site.scratch / "source"
    chooser = random.Random(5)  # noqa: S311 the same files for all
    if not source.exists():
        for directory in range(TREE[0]):
            (source / f"d{directory:02}").mkdir(parents=True)
            for number in range(TREE[1]):
                size = chooser.randrange(100, 20_000)
                (source / f"d{directory:02}/f{number:02}").write_bytes(chooser.randbytes(size))
    return source


def _small_write(site: Site) -> Figures:
    """Copy a tree of small files in (cp -r): until cp returns, and until S3 has every one."""
    source, count = _source(site), TREE[0] * TREE[1]
    target = site.root / "written/tree"
    target.parent.mkdir(exist_ok=True)
    returned_s = timed(lambda: subprocess.run(["cp", "-r", source, target], check=True))
    durable_s = returned_s + until(
        "all files are in S3", lambda: len(site.keys("written/tree/")) == count
    )
    for path in random.Random(6).sample(sorted(source.glob("d*/f*")), 20):  # noqa: S311 any
        key = f"written/tree/{path.relative_to(source)}"
        assert site.digest(key) == hashlib.sha256(path.read_bytes()).hexdigest(), key
    return {"returned": count / returned_s, "durable": count / durable_s}


def _edit(site: Site) -> Figures:
    """Change 4 KiB in the middle of a large object and append 1 KiB to another, until S3 shows it."""
    size = site.sizes.big_bytes
    patch = b"\x5a" * 4096

    def edit() -> None:
        with (site.root / "edit/a").open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), patch, size // 2)
        until("the edit", lambda: site.get("edit/a", size // 2, size // 2 + 4096) == patch)

    def append() -> None:
        with (site.root / "edit/b").open("ab") as file:
            file.write(b"x" * 1024)
        until("the end", lambda: site.size("edit/b") == size + 1024)

    figures = {"edit": timed(edit), "append": timed(append)}
    assert site.get("edit/b", size - 1024, size + 1024).endswith(b"x" * 1024)
    assert site.get("edit/a", size - BLOCK_BYTES, size).startswith(block_mark(size - BLOCK_BYTES))
    return figures


def _rename(site: Site) -> Figures:
    """Rename a directory of small objects, and remove it, until S3 shows it."""

    def renamed() -> bool:
        return len(site.keys("renamed/")) == RENAMED and not site.keys("ren/")

    def rename() -> None:
        (site.root / "ren").rename(site.root / "renamed")
        until("the new names", renamed)

    def remove() -> None:
        shutil.rmtree(site.root / "renamed")
        until("nothing", lambda: not site.keys("renamed/"))

    return {"rename": timed(rename), "remove": timed(remove)}


def _rsync(site: Site) -> Figures:
    """Run rsync -a of a tree of small files, restart the file system, and run it again: there is nothing to do."""
    source = _source(site)
    target = site.root / "written/rsync"
    target.parent.mkdir(exist_ok=True)

    def rsync() -> list[str]:
        command = ["rsync", "-a", "--itemize-changes", f"{source}/", f"{target}/"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith((">f", "<f"))]

    first_s = timed(rsync)
    site.restart()
    begun = time.monotonic()
    again = rsync()
    return {"first": first_s, "second": time.monotonic() - begun, "again": len(again)}


WORKLOADS: Final[Sequence[Workload]] = (
    Workload(
        "seq_read",
        ["big"],
        [
            Figure("cold", "a large object in order", "MB/s", 1.2),
            Figure("again", "again", "MB/s", 0.8),
        ],
        _sequential,
    ),
    Workload(
        "rand_read",
        ["big2"],
        [
            Figure("one", "128 KiB at random, one reader", "/s", 1.0),
            Figure("sixteen", "sixteen readers", "/s", 1.0),
        ],
        _random_large,
    ),
    Workload(
        "rand_huge",
        ["huge"],
        [
            Figure("one", "the same in 20 GiB, one reader", "/s", 1.2),
            Figure("sixteen", "sixteen readers", "/s", 2.0),
        ],
        _random_huge,
    ),
    Workload(
        "small_read",
        ["small"],
        [
            Figure("one", "files of 16 KiB, one reader", "/s", 3.0),
            Figure("eight", "eight readers", "/s", 1.5),
        ],
        _small_read,
    ),
    Workload(
        "seq_write",
        [],
        [
            Figure("close", "a large file in order, until close()", "MB/s", None, 1.5),
            Figure("durable", "until S3 has it", "MB/s", 1.2),
        ],
        _sequential_write,
    ),
    Workload(
        "write_4k",
        [],
        [Figure("close", "4 KiB at a time, until close()", "MB/s", 1.5, 3.0)],
        _write_4k,
    ),
    Workload(
        "small_write",
        [],
        [
            Figure("returned", "cp -r of 500 files, until it returns", "/s", 2.0, 1.0),
            Figure("durable", "until S3 has them", "/s", None, 2.0),
        ],
        _small_write,
    ),
    Workload(
        "edit",
        ["edit"],
        [
            Figure("edit", "4 KiB changed in a large object", "s", 1.5),
            Figure("append", "1 KiB appended", "s", 1.0),
        ],
        _edit,
    ),
    Workload(
        "list",
        ["flat", "tree"],
        [
            Figure("ls_cold", "ls -l of a large directory", "s", 1.0),
            Figure("ls_again", "again", "s", 1.0),
            Figure("ls_restarted", "after a restart", "s", 5.0),
            Figure("find_cold", "find in a tree", "s", 1.5),
            Figure("find_again", "again", "s", 3.0),
            Figure("find_restarted", "after a restart", "s", 5.0),
        ],
        _list,
    ),
    Workload(
        "stat",
        ["flat2"],
        [
            Figure("stat", "200 single names", "s", 1.0),
            Figure("absent", "100 names that are not there", "s", 0.5),
        ],
        _stat,
    ),
    Workload(
        "rename",
        ["ren"],
        [
            Figure("rename", "a directory of 500 objects renamed", "s", 3.0),
            Figure("remove", "and removed", "s", 1.2),
        ],
        _rename,
    ),
    Workload(
        "rsync",
        [],
        [
            Figure("first", "rsync -a of 500 files", "s", None),
            Figure("second", "again after a restart", "s", 3.0),
            Figure("again", "files sent again", "files", None),
        ],
        _rsync,
    ),
)


def drop_caches() -> None:
    """Have the kernel forget what it has cached, where that is allowed."""
    os.sync()
    with suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
