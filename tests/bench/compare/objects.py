"""The objects that a comparison begins with, put into a new bucket without any mount."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import trio

from s3mgrd.s3.client import open_store
from s3mgrd.s3.port import ObjectStore
from tests.bench.meter import MIB
from tests.bench.network import Network
from tests.servers.endpoint import Endpoint

BLOCK_BYTES: Final = 128 << 10
"""Of random reads; each block of a large object begins with a mark of its own."""
HUGE_BYTES: Final = 20 << 30
SMALL_BYTES: Final = 16 << 10
SMALL_FILES: Final = 600
RENAMED: Final = 500
AT_A_TIME: Final = 32
WAIT_S: Final = 600.0
LARGE: Final = {"big": ("data/big",), "big2": ("data/big2",), "edit": ("edit/a", "edit/b")}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        big_bytes: of large objects; whole MiB.
        many: files in a large directory, and in a tree.
        reads: by one random reader; sixteen make four times as many.
    """

    big_bytes: int = 256 * MIB
    many: int = 2000
    reads: int = 200


def block_mark(offset: int) -> bytes:
    """Return what a large object has at *offset*, where a block begins."""
    return b"block" + offset.to_bytes(8, "big")


def large_content(size: int) -> bytes:
    """Make a large object's bytes."""
    content = bytearray(random.Random(7).randbytes(MIB) * (size // MIB))  # noqa: S311 any bytes
    for offset in range(0, size, BLOCK_BYTES):
        mark = block_mark(offset)
        content[offset : offset + len(mark)] = mark
    return bytes(content)


@cache
def _noise() -> bytes:
    return random.Random(8).randbytes(SMALL_BYTES)  # noqa: S311 any bytes


def small_content(name: str) -> bytes:
    """Make a small file's bytes."""
    return (name.encode() + _noise())[:SMALL_BYTES]


def _objects(need: str, sizes: Sizes) -> Iterator[tuple[str, bytes]]:
    many = range(sizes.many)
    if need in LARGE:
        content = large_content(sizes.big_bytes)
        yield from ((key, content) for key in LARGE[need])
    elif need == "small":
        names = (f"s{n:05}" for n in range(SMALL_FILES))
        yield from ((f"data/small/{name}", small_content(name)) for name in names)
    elif need in ("flat", "flat2"):
        yield from ((f"data/{need}/f{n:06}", b"abc") for n in many)
    elif need == "tree":
        yield from ((f"data/tree/d{n % 100:02}/e{n % 7}/f{n:06}", b"abc") for n in many)
    elif need == "ren":
        yield from ((f"ren/d{n % 10}/f{n:04}", b"abc") for n in range(RENAMED))
    else:
        raise ValueError(need)


def fill(network: Network, bucket: str, needs: Iterable[str], sizes: Sizes) -> set[str]:
    """Put what is needed into a bucket; returns what cannot be made there."""
    wanted = set(needs)
    impossible = set()
    if "huge" in wanted:
        wanted.remove("huge")
        if not network.make_huge(bucket, "data/huge", HUGE_BYTES):
            impossible.add("huge")
    jobs = [job for need in sorted(wanted) for job in _objects(need, sizes)]
    trio.run(_put, network.endpoint, bucket, jobs)
    return impossible


async def _put(endpoint: Endpoint, bucket: str, jobs: Sequence[tuple[str, bytes]]) -> None:
    settings = endpoint.settings(bucket, concurrency=AT_A_TIME, retry_deadline_s=WAIT_S)
    waiting = iter(jobs)

    async def some(store: ObjectStore) -> None:
        for key, body in waiting:
            await store.put(key, body, metadata={})

    async with open_store(settings) as store, trio.open_nursery() as nursery:
        for _ in range(AT_A_TIME):
            nursery.start_soon(some, store)


def empty(network: Network, bucket: str) -> None:
    """Delete a bucket's objects, many at a time."""

    async def delete() -> None:
        async with open_store(network.endpoint.settings(bucket)) as store:
            while objects := (await store.list_page("", delimited=False)).objects:
                await store.delete_many([found.key for found in objects])

    trio.run(delete)
