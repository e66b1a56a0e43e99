"""What one S3 request costs this process: processor time and wall time, by operation and adapter.

Run: ``python -m tests.bench.transfer --endpoint URL [--adapter NAME …] [--only NAME …]``. All adapters are measured in one
run against the same server, because only figures of one run compare. The server should be much faster than any client,
and in another process.

Adapters: `s3mgr`, our `ObjectStore`; `aiobotocore`, the library alone with its own HTTP session on trio; `obstore`, the
library in Rust from threads, where it is installed; `socket`, the least that any client on trio can cost: a request that
was prepared before, sent and received by blocking-free sockets, nothing signed, parsed or checked.
"""

import argparse
import importlib
import math
import os
import resource
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from aiobotocore.config import AioConfig
from aiobotocore.httpxsession import HttpxSession
from aiobotocore.session import AioSession

from s3mgrd.s3.client import open_store
from s3mgrd.s3.port import FileSlice
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import remove_bucket

MIB: Final = 1 << 20
SMALL: Final = 1 << 10
LARGE: Final = 8 * MIB
LISTED: Final = 1000
CONCURRENCY: Final = (1, 32)
WARM_UP: Final = 3
"""Requests before the measured ones: connections, caches, threads."""

Call = Callable[[int], Awaitable[object]]
Adapter = dict[str, Call]
"""What an adapter does, by operation; the argument numbers the request."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request, and how often it is made to measure it."""

    name: str
    times: int
    transferred_bytes: int = 0


OPERATIONS: Final = (
    Operation("HEAD", 2000),
    Operation("GET 1 KiB", 2000),
    Operation("PUT 1 KiB", 2000),
    Operation("COPY", 1000),
    Operation("LIST 1,000", 100),
    Operation("DELETE 1,000", 50),
    Operation("GET 8 MiB", 128, LARGE),
    Operation("PUT 8 MiB", 64, LARGE),
)


@dataclass(frozen=True, slots=True)
class Ground:
    """What the adapters work on: a bucket with ``list/…``, ``small`` and ``large``, and a file of `LARGE` bytes."""

    endpoint: Endpoint
    bucket: str
    fd: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What one request took on average."""

    cpu_s: float
    wall_s: float


@contextmanager
def prepared(endpoint: Endpoint) -> Iterator[Ground]:
    """Make the bucket and the file."""
    client = endpoint.boto3()
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    try:
        data = os.urandom(LARGE)
        client.put_object(Bucket=bucket, Key="small", Body=data[:SMALL], Metadata={"mode": "33188"})
        client.put_object(Bucket=bucket, Key="large", Body=data)
        for number in range(LISTED):
            client.put_object(
                Bucket=bucket, Key=f"list/a-usual-file-name-{number:05}.txt", Body=b""
            )
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            yield Ground(endpoint, bucket, file.fileno())
    finally:
        remove_bucket(client, bucket)
        client.close()


@asynccontextmanager
async def our_store(ground: Ground) -> AsyncIterator[Adapter]:
    """Make the calls of an `ObjectStore` as the file system does."""
    body = os.urandom(SMALL)
    absent = [f"absent/{number:05}" for number in range(LISTED)]
    settings = ground.endpoint.settings(ground.bucket, concurrency=64)
    async with open_store(settings) as store:
        small = await store.head("small")  # the file system knows what it copies
        yield {
            "HEAD": lambda _: store.head("small"),
            "GET 1 KiB": lambda _: store.get_range("small", 0, SMALL),
            "PUT 1 KiB": lambda n: store.put(f"put/{n}", body, metadata={"mode": "33188"}),
            "COPY": lambda n: store.copy(
                "small", f"copy/{n}", source_size=SMALL, source_head=small
            ),
            "LIST 1,000": lambda _: store.list_page("list/", delimited=True),
            "DELETE 1,000": lambda _: store.delete_many(absent),
            "GET 8 MiB": lambda _: store.get_range("large", 0, LARGE),
            "PUT 8 MiB": lambda n: store.put(
                f"put/{n}", FileSlice(ground.fd, 0, LARGE), metadata={}
            ),
        }


@asynccontextmanager
async def plain_aiobotocore(ground: Ground) -> AsyncIterator[Adapter]:
    """Make the calls of aiobotocore with its httpx session, as its documentation shows; bodies in one piece."""
    place = ground.endpoint
    bucket = ground.bucket
    body = os.urandom(SMALL)
    absent = [{"Key": f"absent/{number:05}"} for number in range(LISTED)]
    config = AioConfig(
        http_session_cls=HttpxSession, s3={"addressing_style": "path"}, max_pool_connections=64
    )
    making = AioSession().create_client(
        "s3",
        endpoint_url=place.url,
        region_name=place.region,
        aws_access_key_id=place.access_key,
        aws_secret_access_key=place.secret_key,
        config=config,
    )
    async with making as client:

        async def get(key: str, length: int) -> bytes:
            answer = await client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{length - 1}")
            async with answer["Body"] as stream:
                data: bytes = await stream.read()
            return data

        yield {
            "HEAD": lambda _: client.head_object(Bucket=bucket, Key="small"),
            "GET 1 KiB": lambda _: get("small", SMALL),
            "PUT 1 KiB": lambda n: client.put_object(
                Bucket=bucket, Key=f"put/{n}", Body=body, Metadata={"mode": "33188"}
            ),
            "COPY": lambda n: client.copy_object(
                Bucket=bucket, Key=f"copy/{n}", CopySource={"Bucket": bucket, "Key": "small"}
            ),
            "LIST 1,000": lambda _: client.list_objects_v2(
                Bucket=bucket, Prefix="list/", Delimiter="/"
            ),
            "DELETE 1,000": lambda _: client.delete_objects(
                Bucket=bucket, Delete={"Objects": absent, "Quiet": True}
            ),
            "GET 8 MiB": lambda _: get("large", LARGE),
        }


@asynccontextmanager
async def plain_obstore(ground: Ground) -> AsyncIterator[Adapter]:
    """Make the calls of obstore in threads."""
    obstore: Any = importlib.import_module("obstore")  # Any: not a dependency
    stores: Any = importlib.import_module("obstore.store")
    place = ground.endpoint
    store = stores.S3Store(
        ground.bucket,
        endpoint=place.url,
        region=place.region,
        access_key_id=place.access_key,
        secret_access_key=place.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    body = os.urandom(SMALL)
    threads = trio.CapacityLimiter(64)

    def call(function: Callable[..., Any], *args: Any, **named: Any) -> Awaitable[object]:  # noqa: ANN401 obstore's
        return trio.to_thread.run_sync(lambda: function(store, *args, **named), limiter=threads)

    def put_large(number: int) -> object:
        return obstore.put(
            store, f"put/{number}", os.pread(ground.fd, LARGE, 0), use_multipart=False
        )

    yield {
        "HEAD": lambda _: call(obstore.head, "small"),
        "GET 1 KiB": lambda _: call(obstore.get_range, "small", start=0, end=SMALL),
        "PUT 1 KiB": lambda n: call(
            obstore.put, f"put/{n}", body, attributes={"mode": "33188"}, use_multipart=False
        ),
        "COPY": lambda n: call(obstore.copy, "small", f"copy/{n}"),
        "LIST 1,000": lambda _: call(lambda s: list(obstore.list(s, "list"))),
        "GET 8 MiB": lambda _: call(obstore.get_range, "large", start=0, end=LARGE),
        "PUT 8 MiB": lambda n: trio.to_thread.run_sync(put_large, n, limiter=threads),
    }


@asynccontextmanager
async def bare_sockets(ground: Ground) -> AsyncIterator[Adapter]:
    """Send prepared requests over plain connections; for servers that verify no signature and end bodies by length."""
    place = urlsplit(ground.endpoint.url)
    idle: list[trio.SocketStream] = []

    async def exchange(verb: str, path: str, headers: str, body_bytes: int) -> None:
        stream = (
            idle.pop()
            if idle
            else await trio.open_tcp_stream(place.hostname or "", place.port or 80)
        )
        request = (
            f"{verb} /{ground.bucket}/{path} HTTP/1.1\r\nHost: {place.netloc}\r\n{headers}\r\n"
        )
        await stream.send_all(request.encode())
        if verb == "PUT":
            await _send(stream, ground.fd, body_bytes)
        head = await stream.receive_some(65536)
        end = head.index(b"\r\n\r\n") + 4
        if verb == "GET":
            await _receive(stream, bytearray(body_bytes), head[end:])
        idle.append(stream)

    async with AsyncExitStack() as stack:
        yield {
            "HEAD": lambda _: exchange("HEAD", "small", "", 0),
            "GET 1 KiB": lambda _: exchange("GET", "small", "", SMALL),
            "PUT 1 KiB": lambda n: exchange(
                "PUT", f"put/{n}", f"Content-Length: {SMALL}\r\n", SMALL
            ),
            "GET 8 MiB": lambda _: exchange("GET", "large", "", LARGE),
            "PUT 8 MiB": lambda n: exchange(
                "PUT", f"put/{n}", f"Content-Length: {LARGE}\r\n", LARGE
            ),
        }
        for stream in idle:
            stack.push_async_callback(stream.aclose)


async def _receive(stream: trio.SocketStream, into: bytearray, begun: bytes) -> None:
    view = memoryview(into)
    view[: len(begun)] = begun
    have = len(begun)
    while have < len(view):
        have += await stream.socket.recv_into(view[have:])


async def _send(stream: trio.SocketStream, fd: int, length: int) -> None:
    sent = 0
    while sent < length:
        try:
            sent += os.sendfile(stream.socket.fileno(), fd, sent, length - sent)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(stream.socket)


ADAPTERS: Final[dict[str, Callable[[Ground], Any]]] = {
    "socket": bare_sockets,
    "s3mgr": our_store,
    "aiobotocore": plain_aiobotocore,
    "obstore": plain_obstore,
}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(call: Call, times: int, concurrency: int) -> Figure:
    """Make *times* requests, *concurrency* at the same time."""
    for number in range(WARM_UP):
        await call(number)
    numbers = iter(range(times))

    async def some() -> None:
        for number in numbers:
            await call(number)

    cpu_s, wall_s = _cpu_s(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(some)
    return Figure((_cpu_s() - cpu_s) / times, (time.perf_counter() - wall_s) / times)


async def compare(
    ground: Ground, adapters: list[str], only: list[str], scale: float, rounds: int
) -> None:
    """Measure everything and print a line for each operation and concurrency as soon as it is known."""
    print(f"{'operation':14}{'at once':>8}" + "".join(f"{name:>25}" for name in adapters))
    print(" " * 22 + f"{'CPU ms    wall ms':>25}" * len(adapters))
    async with AsyncExitStack() as stack:
        made = {name: await stack.enter_async_context(ADAPTERS[name](ground)) for name in adapters}
        for operation in OPERATIONS:
            if only and operation.name.split()[0] not in only:
                continue
            for concurrency in CONCURRENCY:
                best: dict[str, Figure] = {}
                times = max(concurrency, math.ceil(operation.times * scale))
                # In turns, and the best of them: what else the machine does disturbs all alike.
                for _ in range(rounds):
                    for name, calls in made.items():
                        if operation.name in calls:
                            got = await measure(calls[operation.name], times, concurrency)
                            best[name] = min(best.get(name, got), got, key=lambda f: f.cpu_s)
                _report(operation, concurrency, adapters, best)


def _report(
    operation: Operation, concurrency: int, adapters: list[str], best: dict[str, Figure]
) -> None:
    line = f"{operation.name:14}{concurrency:>8}"
    for name in adapters:
        figure = best.get(name)
        if figure is None:
            line += f"{'-':>25}"
            continue
        text = f"{figure.cpu_s * 1e3:.3f}  {figure.wall_s * 1e3:9.3f}"
        if operation.transferred_bytes:
            text = f"({figure.cpu_s / operation.transferred_bytes * 1e9:.2f} s/GB) {text}"
        line += f"{text:>25}"
    print(line, flush=True)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="bench-secret")
    parser.add_argument("--adapter", action="append", choices=list(ADAPTERS), default=[])
    parser.add_argument("--only", action="append", default=[], help="GET, HEAD, LIST, PUT, …")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer requests")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    adapters = chosen.adapter or ["socket", "s3mgr", "aiobotocore"]
    endpoint = Endpoint("ministack", chosen.endpoint, chosen.access_key, chosen.secret_key)
    with prepared(endpoint) as ground:
        trio.run(compare, ground, adapters, chosen.only, chosen.scale, chosen.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
