"""Connections: TLS, proxies, connections that end while nobody looks, servers that refuse a body."""

import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from s3mgrd.errors import Denied, TimedOut, Unavailable
from s3mgrd.s3.client import open_store
from s3mgrd.s3.connections import SocketConnection, WaitedTooLong
from s3mgrd.s3.port import FileSlice
from s3mgrd.s3.tls import shared_context
from tests.servers.certificates import make_certificate
from tests.servers.scripted import Answer, Request, error, serve
from tests.unit.s3.support import settings, until

MIB = 1 << 20


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """A server's context that stores trust."""
    context, authority = make_certificate(tmp_path, "DNS:localhost,DNS:s3.example,IP:127.0.0.1")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    shared_context.cache_clear()
    yield context
    shared_context.cache_clear()


class Memory:
    """A bucket: what was put is read back by ranges."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Answer:
        if request.method == "PUT":
            self.objects[request.target] = request.body
            return Answer(headers={"ETag": '"e"'})
        data = self.objects[request.target]
        start, stop = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        part = data[start : stop + 1]
        span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return Answer("206 Partial Content", part, {"Content-Range": span, "ETag": '"e"'})


@pytest.mark.parametrize("is_tls", [False, True])
async def test_large_bodies_arrive_whole(is_tls: bool, tls: ssl.SSLContext) -> None:
    data = os.urandom(5 * MIB + 3)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        context = tls if is_tls else None
        async with (
            serve(Memory(), tls=context) as server,
            open_store(settings(server.url)) as store,
        ):
            await store.put("bytes", data, metadata={})
            await store.put("file", FileSlice(file.fileno(), 1, len(data) - 1), metadata={})
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(store.get_range, "bytes", 0, len(data))
            assert (await store.get_range("bytes", 0, len(data))).data == data
            read = await store.get_range("file", 2, 4 * MIB)
            assert read.data == data[3 : 4 * MIB + 1]
            assert store.stats.sent_bytes == 2 * len(data) - 1


@asynccontextmanager
async def connected(timeout_s: float) -> AsyncIterator[tuple[SocketConnection, socket.socket]]:
    """Connect by TCP; yields our side and the other's socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield SocketConnection(ours, timeout_s), theirs


async def test_a_body_wakes_us_for_much_of_it_at_a_time() -> None:
    """To be woken costs as much as to receive; the end of the body and the end of the connection count as much."""
    async with connected(60) as (connection, theirs), trio.open_nursery() as nursery:
        view = memoryview(bytearray(64 << 10))
        got: list[int] = []

        async def receive() -> None:
            await connection.receive_into(view, got.append)

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        theirs.sendall(bytes(20 << 10))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert got == []
        theirs.sendall(bytes(44 << 10))
        await until(lambda: got == [64 << 10])
        theirs.sendall(b"x")
        assert await connection.receive() == b"x", "the next head waits for no more than there is"
        assert connection._wakes_at == 1
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        theirs.sendall(b"short")
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: got == [64 << 10, 5])


async def test_a_body_that_comes_slowly_is_no_silence(autojump_clock: MockClock) -> None:
    """Whoever waits for much is not told of little; that is not the same as nothing."""
    async with connected(60) as (connection, theirs), trio.open_nursery() as nursery:
        got: list[int] = []
        ended: list[float] = []

        async def receive() -> None:
            with pytest.raises(WaitedTooLong):
                await connection.receive_into(memoryview(bytearray(1 << 20)), got.append)
            ended.append(trio.current_time())

        theirs.sendall(b"some")
        nursery.start_soon(receive)
        await trio.sleep(50)
        theirs.sendall(b"more!")
        await trio.sleep(60)
        assert got == [4, 5], "it was looked at after a minute"
        assert not ended
        await trio.sleep(20)
        assert ended, "the next minute brought nothing"


async def test_a_file_that_ends_early_is_not_sent_through_tls_either(tls: ssl.SSLContext) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"short")
        file.flush()
        async with serve(Memory(), tls=tls) as server, open_store(settings(server.url)) as store:
            with pytest.raises(Exception, match="ends 95 bytes before"):
                await store.put("k", FileSlice(file.fileno(), 0, 100), metadata={})
            assert store.open_connections == 0


@pytest.mark.parametrize("flag", [os.RWF_NOWAIT, 1 << 30])
async def test_a_file_that_must_be_waited_for_is_sent_through_tls(
    flag: int, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that no kernel knows stands for what is not in memory: both are refused."""
    monkeypatch.setattr(os, "RWF_NOWAIT", flag)
    data = os.urandom(MIB + 3)
    bucket = Memory()
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        async with serve(bucket, tls=tls) as server, open_store(settings(server.url)) as store:
            await store.put("k", FileSlice(file.fileno(), 2, len(data) - 2), metadata={})
    assert list(bucket.objects.values()) == [data[2:]]


# Connections that are used again, or not.


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    """A store that tries nothing twice notices nothing: requests after a pause cost no failure."""
    closing = Answer(cut=10_000)  # the whole answer, then the end
    async with serve([closing]) as server, open_store(settings(server.url)) as store:
        for number in range(1, 4):
            await store.put("k", b"x", metadata={})
            await until(lambda: server.connections == 0)
            assert len(server.requests) == number
        assert store.stats.retries == 0


async def test_a_connection_is_not_kept_for_ever(mock_clock: trio.testing.MockClock) -> None:
    async with serve([Answer()]) as server, open_store(settings(server.url)) as store:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: store.put("k", b"x", metadata={}))
        assert store.open_connections == 3
        mock_clock.jump(20)
        await store.put("k", b"x", metadata={})
        assert store.open_connections == 1


async def test_a_server_may_say_that_it_closes() -> None:
    answer = Answer(headers={"Connection": "close"})
    async with serve([answer]) as server, open_store(settings(server.url)) as store:
        await store.put("k", b"x", metadata={})
        assert store.open_connections == 0


@asynccontextmanager
async def refusing_server(answer: bytes) -> AsyncIterator[str]:
    """Answer as soon as a head has come, and close without reading the body."""

    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(100)
            await stream.send_all(answer)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, refuse, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_refused_body_ends_in_an_error_and_no_connection() -> None:
    """What the server said may be lost with the connection; what is left is never a success."""
    answer = error("403 Forbidden", "AccessDenied", "not you").encode(head=False)
    async with refusing_server(answer) as url, open_store(settings(url)) as store:
        with pytest.raises((Denied, Unavailable)):
            await store.put("k", b"x" * (20 * MIB), metadata={})
        assert store.open_connections == 0


async def test_a_server_that_reads_nothing_is_given_up() -> None:
    async def hang(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with open_store(settings(url, read_timeout_s=0.1)) as store:
            with pytest.raises(TimedOut):
                await store.put("k", b"x" * (64 * MIB), metadata={})
            assert store.open_connections == 0
        nursery.cancel_scope.cancel()


# Proxies.


class Tunnels:
    """A proxy that tunnels to *port*, whatever is asked for."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, answer: bytes) -> None:
        self._port = port
        self._tls = tls
        self._answer = answer
        self.heads: list[str] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        if self._tls is not None:
            stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        try:
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await stream.receive_some(1000)
                self.heads.append(head.decode())
                await stream.send_all(self._answer)
                if not self._answer.startswith(b"HTTP/1.1 2"):
                    return
                there = await trio.open_tcp_stream("127.0.0.1", self._port)
                async with there, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, stream, there, nursery.cancel_scope)
                    nursery.start_soon(self._pump, there, stream, nursery.cancel_scope)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _pump(
        self, source: trio.abc.Stream, target: trio.abc.Stream, scope: trio.CancelScope
    ) -> None:
        while data := await source.receive_some(65536):
            await target.send_all(data)
        scope.cancel()


@asynccontextmanager
async def proxy_to(
    port: int, tls: ssl.SSLContext | None = None, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n"
) -> AsyncIterator[tuple[Tunnels, int]]:
    proxy = Tunnels(port, tls, answer)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy, listeners)
        yield proxy, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture
def _no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_exceptions")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_tls_goes_through_a_tunnel(
    scheme: str, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(MIB)
    context = tls if scheme == "https" else None
    async with serve(Memory(), tls=tls) as server, proxy_to(server.port, context) as (proxy, port):
        monkeypatch.setenv("https_proxy", f"{scheme}://user:p%40ss@127.0.0.1:{port}")
        async with open_store(settings("https://s3.example:8443")) as store:
            await store.put("k", data, metadata={})
            assert (await store.get_range("k", 0, len(data))).data == data
            assert store.open_connections <= 1
        assert store.open_connections == 0
    assert proxy.heads[0].startswith("CONNECT s3.example:8443 HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in proxy.heads[0]
    assert server.requests[0].headers["host"] == "s3.example:8443"
    assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.usefixtures("_no_exceptions")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_refuses_is_named(
    scheme: str, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = b"HTTP/1.1 407 Authentication Required\r\n\r\n"
    context = tls if scheme == "https" else None
    async with proxy_to(0, context, answer) as (_, port):
        monkeypatch.setenv("https_proxy", f"{scheme}://127.0.0.1:{port}")
        async with open_store(settings("https://s3.example")) as store:
            with pytest.raises(Unavailable) as caught:
                await store.put("k", b"x", metadata={})
    assert "the proxy on the way" in caught.value.detail
    assert "407" in caught.value.detail
    assert store.open_connections == 0


@pytest.mark.usefixtures("_no_exceptions")
async def test_a_proxy_without_a_certificate_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = make_certificate(tmp_path)
    async with proxy_to(0, context) as (_, port):
        monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{port}")
        async with open_store(settings("https://s3.example")) as store:
            with pytest.raises(Unavailable) as caught:
                await store.put("k", b"x", metadata={})
    assert "TLS" in caught.value.detail


@pytest.mark.usefixtures("_no_exceptions")
async def test_other_kinds_of_proxies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    async with open_store(settings("https://s3.example")) as store:
        with pytest.raises(Unavailable) as caught:
            await store.put("k", b"x", metadata={})
    assert "'socks5' cannot be used" in caught.value.detail
