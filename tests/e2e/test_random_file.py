"""Random operations on one file, every byte compared, as fsx does it: a subset that needs nothing to be built.

`packaging/conformance` has fsx itself do a million of them. Here workers are killed on the way, too.
"""

import mmap
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

OPERATIONS: Final = 1_000
FILE_BYTES: Final = 256 << 10
OPERATION_BYTES: Final = 64 << 10
COMMON: Final = {"read": 10, "write": 10, "truncate": 5, "copy": 2, "fsync": 0.2, "reopen": 0.4}
KINDS: Final[dict[str, tuple[int, dict[str, float]]]] = {
    "mapped": (0, {**COMMON, "read_mapping": 10, "write_mapping": 10, "crash": 0.1}),
    "direct": (os.O_DIRECT, {**COMMON, "crash": 0.1}),
    "both": (
        0,
        {**COMMON, "read_mapping": 5, "write_mapping": 5, "read_direct": 5, "write_direct": 5},
    ),
}
"""Flags that the file is opened with, and how often each operation is done."""


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    client: Any
    bucket: str
    mount: Path


@pytest.fixture(scope="module", params=("close", "close,writeback_cache=off", "writeback"))
def site(ministack: Endpoint, module_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Site]:
    mode: str = request.param
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon(mode.replace(",", "-"))
    yield Site(
        daemon, client, bucket, daemon.mount(ministack, bucket, "m", "-o", f"write_mode={mode}")
    )
    daemon.run("unmount", "m")
    remove_bucket(client, bucket)
    client.close()


@dataclass
class _File:
    """A file in the mount and what it must contain. Each public method is one operation, and raises when a byte is wrong."""

    site: Site
    path: Path
    flags: int
    rng: random.Random
    fd: int = -1
    content: bytearray = field(default_factory=bytearray)

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | self.flags, 0o644)

    def read(self) -> None:
        self._read(self.fd)

    def write(self) -> None:
        self._write(self.fd)

    def read_direct(self) -> None:
        self._beside(self._read)

    def write_direct(self) -> None:
        self._beside(self._write)

    def read_mapping(self) -> None:
        if (found := self._mapping()) is None:
            return
        mapping, begin, start, end = found
        with mapping:
            self._compare(begin + start, mapping[start:end])

    def write_mapping(self) -> None:
        if (found := self._mapping()) is None:
            return
        mapping, begin, start, end = found
        data = self.rng.randbytes(end - start)
        with mapping:
            mapping[start:end] = data
        self._put(begin + start, data)

    def truncate(self) -> None:
        size = self.rng.randrange(FILE_BYTES)
        os.ftruncate(self.fd, size)
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def copy(self) -> None:
        start, end = self._range(len(self.content))
        to = self.rng.randrange(FILE_BYTES - OPERATION_BYTES)
        if to < end and start < to + end - start:
            return  # the kernel refuses ranges that overlap
        data = bytes(self.content[start:end])
        done = 0
        while done < len(data):
            done += os.copy_file_range(self.fd, self.fd, len(data) - done, start + done, to + done)
        self._put(to, data)

    def fsync(self) -> None:
        os.fsync(self.fd)

    def reopen(self) -> None:
        os.close(self.fd)
        self.open()

    def crash(self) -> None:
        self.site.daemon.wait_replaced(self.site.daemon.kill_worker())

    def compare_all(self) -> None:
        assert os.fstat(self.fd).st_size == len(self.content)
        self._compare(0, os.pread(self.fd, FILE_BYTES + 1, 0))

    def _read(self, fd: int) -> None:
        start, end = self._range(len(self.content))
        self._compare(start, os.pread(fd, end - start, start))

    def _write(self, fd: int) -> None:
        start, end = self._range(FILE_BYTES)
        data = self.rng.randbytes(end - start)
        assert os.pwrite(fd, data, start) == len(data)
        self._put(start, data)

    def _beside(self, call: Callable[[int], None]) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            call(fd)
        finally:
            os.close(fd)

    def _mapping(self) -> tuple[mmap.mmap, int, int, int] | None:
        """Map a part of the file: where the mapping begins, and of which of its bytes the operation is."""
        start, end = self._range(len(self.content))
        if start == end:
            return None
        begin = start - start % mmap.PAGESIZE
        return mmap.mmap(self.fd, end - begin, offset=begin), begin, start - begin, end - begin

    def _range(self, size: int) -> tuple[int, int]:
        start = self.rng.randrange(size + 1)
        return start, min(size, start + self.rng.randrange(OPERATION_BYTES))

    def _put(self, start: int, data: bytes) -> None:
        self.content.extend(bytes(max(0, start - len(self.content))))
        self.content[start : start + len(data)] = data

    def _compare(self, start: int, found: bytes) -> None:
        wanted = self.content[start : start + len(found)]
        if found != wanted:
            wrong = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
            raise AssertionError(f"byte {start + wrong} of {len(self.content)} is wrong")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_the_bytes_that_were_written_whatever_wrote_them(site: Site, kind: str) -> None:
    flags, weights = KINDS[kind]
    rng = random.Random(kind)  # noqa: S311 - the same operations each time
    file = _File(site, site.mount / kind, flags, rng)
    file.open()
    try:
        names = rng.choices(list(weights), list(weights.values()), k=OPERATIONS)
        for number, name in enumerate(names):
            try:
                getattr(file, name)()
            except AssertionError as error:
                raise AssertionError(f"operation {number}, {name}: {error}") from None
        file.compare_all()
    finally:
        os.close(file.fd)
    site.daemon.flush()
    stored = site.client.get_object(Bucket=site.bucket, Key=kind)["Body"].read()
    assert stored == file.content
