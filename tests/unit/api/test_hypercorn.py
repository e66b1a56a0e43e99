"""What is used of hypercorn without being its documented API: fails first when a new version changes it."""

import importlib.metadata
import inspect

import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from s3mgrd.api.connections import ClientStream


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read() -> None:
    """Another minor version may do otherwise: read its ``trio`` package, then change this and the pin."""
    assert importlib.metadata.version("hypercorn").split(".")[:2] == ["0", "18"]


def test_constructors_take_what_we_give() -> None:
    assert parameters(TCPServer) == ["app", "config", "context", "state", "stream"]
    assert parameters(Lifespan) == ["app", "config", "state"]
    assert parameters(WorkerContext) == ["max_requests"]
    assert parameters(ASGIWrapper) == ["app"]


def test_the_lifespan_is_driven_by_three_methods() -> None:
    for name in ("handle_lifespan", "wait_for_startup", "wait_for_shutdown"):
        assert inspect.iscoroutinefunction(getattr(Lifespan, name)), name


async def test_connections_learn_of_the_stop_from_the_context() -> None:
    context = WorkerContext(None)
    assert not context.terminated.is_set()
    await context.terminated.set()
    assert context.terminated.is_set()


def test_the_settings_that_we_set_exist() -> None:
    config = Config()
    for name in (
        "accesslog",
        "errorlog",
        "h11_max_incomplete_size",
        "include_server_header",
        "keep_alive_timeout",
    ):
        assert hasattr(config, name), name


def test_a_connection_needs_no_more_of_its_stream_than_ours_has() -> None:
    """Hypercorn takes a stream without ``do_handshake`` for one without TLS."""
    source = inspect.getsource(TCPServer)
    used = {
        part.split("(")[0].split(".")[0].split()[0].rstrip(")")
        for part in source.split("self.stream.")[1:]
    }
    tls_only = {"do_handshake", "selected_alpn_protocol", "transport_stream"}
    assert used - tls_only == {"aclose", "receive_some", "send_all", "send_eof", "socket"}
    assert not any(hasattr(ClientStream, name) for name in tls_only)


async def test_a_connection_is_served_and_closed_over_a_bare_stream() -> None:
    """The smallest use of all of it together."""

    async def app(scope: object, receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    ours, theirs = trio.socket.socketpair()
    async with trio.SocketStream(theirs) as client:
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        stream = ClientStream(trio.SocketStream(ours), send_timeout_s=10)
        with trio.fail_after(10):
            await TCPServer(ASGIWrapper(app), Config(), WorkerContext(None), {}, stream)  # type: ignore[arg-type]  # as in the server
            assert (await client.receive_some(100)).startswith(b"HTTP/1.1 204")


async def test_two_tasks_may_send_and_each_is_sent_whole() -> None:
    """Hypercorn answers a broken request while the application still answers it: trio allows one sender at a time."""
    ours, theirs = trio.socket.socketpair()
    stream = ClientStream(trio.SocketStream(ours), send_timeout_s=10)
    first, second = b"a" * (1 << 20), b"b" * (1 << 20)
    received = bytearray()
    async with trio.SocketStream(theirs) as client, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, first)
        nursery.start_soon(stream.send_all, second)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stream.send_eof)
        while len(received) < len(first) + len(second):
            received += await client.receive_some(1 << 16)
    await stream.aclose()
    assert bytes(received) in (first + second, second + first)
