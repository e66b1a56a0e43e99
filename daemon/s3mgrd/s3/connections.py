"""Connections to the endpoint: sockets that trio waits for, TLS directly on them, proxies.

Why not trio's streams: each of their calls is a checkpoint or two, and their TLS goes through memory buffers in pieces of
16 KiB. Here a call that can be done at once costs one system call, bytes of an object go from the kernel (or from
OpenSSL) into the buffer where they stay, and a file goes into a socket without passing through this process (sendfile).

Concurrency: one task at a time uses a connection. Cancelled in the middle of anything, it must be closed.
"""

import base64
import os
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import trio
from botocore.utils import get_environ_proxies

from s3mgrd.s3.settings import is_loopback

READ_BYTES: Final = 64 << 10
"""Most that is read at once where the amount is not known: heads and small answers."""
TURN_BYTES: Final = 1 << 20
"""After how many bytes other tasks get their turn though the connection has more: 1 MiB takes about 0.2 ms."""
MAX_PROXY_ANSWER_BYTES: Final = 64 << 10


class WaitedTooLong(Exception):
    """Nothing happened on a connection for as long as one may wait; `connecting`: there was none yet."""

    def __init__(self, *, connecting: bool = False) -> None:
        super().__init__()
        self.connecting: Final = connecting


class ProxyRefused(Exception):
    """The proxy on the way does not let us through; the argument is what it says."""


class Connection(Protocol):
    """A byte stream to the endpoint. Errors of the network are OSErrors; ssl.SSLError is one."""

    async def receive(self) -> bytes:
        """Wait for bytes, at most `READ_BYTES`; empty: the other side has closed."""

    async def receive_into(self, view: memoryview) -> int:
        """Fill some of *view* and return how much; 0: the other side has closed."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of *data*."""

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        """Send bytes of a file; returns how many, fewer only where the file ends. Only if `sends_files`."""

    @property
    def sends_files(self) -> bool:
        """Whether `send_file` works: not through TLS."""

    def is_usable(self) -> bool:
        """Tell whether an idle connection can be used again: silent and not closed by the other side."""

    def close(self) -> None:
        """Close at once; may be called twice."""


class SocketConnection:
    """A connection on a non-blocking socket, or on an `ssl.SSLSocket` after `start_tls`. Owns the socket."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._socket = sock
        self._tls: ssl.SSLSocket | None = None
        self._timeout_s: Final = timeout_s

    @property
    def sends_files(self) -> bool:
        """See the protocol."""
        return self._tls is None

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Shake hands. The time it may take is the caller's to bound."""
        # The new object takes the descriptor over, also when it cannot be made.
        self._tls = self._socket = context.wrap_socket(
            self._socket, server_hostname=host, do_handshake_on_connect=False
        )
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)
            else:
                return

    async def receive(self) -> bytes:
        """See the protocol."""
        while True:
            try:
                return self._socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._wait(trio.lowlevel.wait_readable)
            except ssl.SSLWantWriteError:
                await self._wait(trio.lowlevel.wait_writable)
            except ssl.SSLEOFError:
                return b""  # closed without a farewell; lengths tell whether something is missing

    async def receive_into(self, view: memoryview) -> int:
        """See the protocol. With TLS OpenSSL gives 16 KiB at a time: takes what is there before it returns."""
        have = 0
        while have < min(len(view), TURN_BYTES):
            try:
                got = self._socket.recv_into(view[have:])
            except (BlockingIOError, ssl.SSLWantReadError):
                if have:
                    return have
                await self._wait(trio.lowlevel.wait_readable)
                continue
            except ssl.SSLWantWriteError:
                await self._wait(trio.lowlevel.wait_writable)
                continue
            except ssl.SSLEOFError:
                return have
            have += got
            if not got or self._tls is None:
                return have
        return have

    async def send(self, data: bytes | memoryview) -> None:
        """See the protocol."""
        view = memoryview(data)
        while view:
            try:
                sent = self._socket.send(view)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._wait(trio.lowlevel.wait_writable)
            except ssl.SSLWantReadError:
                await self._wait(trio.lowlevel.wait_readable)
            else:
                view = view[sent:]

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        """See the protocol."""
        sent = 0
        while sent < length:
            try:
                # A turn at a time: what is not in memory is read from disk while we wait.
                count = min(length - sent, TURN_BYTES)
                done = os.sendfile(self._socket.fileno(), fd, offset + sent, count)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
                continue
            if not done:
                break
            sent += done
            await trio.lowlevel.checkpoint()
        return sent

    def is_usable(self) -> bool:
        """See the protocol."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """See the protocol."""
        self._socket.close()

    async def _wait(self, event: Callable[[socket.socket], Awaitable[None]]) -> None:
        with trio.move_on_after(self._timeout_s) as scope:
            await event(self._socket)
        if scope.cancelled_caught:
            raise WaitedTooLong


class StreamConnection:
    """A connection on a TLS stream of trio's: for TLS inside of TLS, which needs memory between the two."""

    sends_files: Final = False

    def __init__(
        self, stream: trio.abc.Stream, transport: trio.SocketStream, timeout_s: float
    ) -> None:
        self._stream: Final = stream
        self._transport: Final = transport
        self._timeout_s: Final = timeout_s

    async def receive(self) -> bytes:
        """See the protocol."""
        with _stream_errors(self._timeout_s):
            return bytes(await self._stream.receive_some(READ_BYTES))

    async def receive_into(self, view: memoryview) -> int:
        """See the protocol."""
        with _stream_errors(self._timeout_s):
            data = await self._stream.receive_some(len(view))
        view[: len(data)] = data
        return len(data)

    async def send(self, data: bytes | memoryview) -> None:
        """See the protocol."""
        with _stream_errors(self._timeout_s):
            await self._stream.send_all(data)

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        """See the protocol."""
        raise NotImplementedError

    def is_usable(self) -> bool:
        """See the protocol. Nobody can tell, and proxies of this kind are rare: it is used once."""
        return False

    def close(self) -> None:
        """See the protocol."""
        self._transport.socket.close()


@contextmanager
def _stream_errors(timeout_s: float) -> Iterator[None]:
    """Bound a wait, and make errors of the network of what a stream raises."""
    with trio.move_on_after(timeout_s) as scope:
        try:
            yield
        except trio.BrokenResourceError as exc:
            raise ConnectionResetError(str(exc.__cause__ or exc)) from exc
        return
    if scope.cancelled_caught:
        raise WaitedTooLong


@dataclass(frozen=True, slots=True)
class Address:
    """What requests are sent to."""

    is_tls: bool
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port as URLs and CONNECT write them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """The way to the endpoint, where it is not direct. `authorization` is a secret header value."""

    is_tls: bool
    host: str
    port: int
    authorization: str | None = field(repr=False)


def find_proxy(address: Address) -> Proxy | None:
    """Read from the environment whether requests to *address* go through a proxy, as all AWS tools do.

    Raises:
        ProxyRefused: the proxy's URL cannot be used.
    """
    if is_loopback(address.host):
        return None
    url = f"{'https' if address.is_tls else 'http'}://{address.netloc}/"
    proxies: dict[str, str] = get_environ_proxies(url)
    given = proxies.get("https" if address.is_tls else "http")
    if not given:
        return None
    parts = urlsplit(given if "://" in given else f"http://{given.removeprefix('//')}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProxyRefused(f"a proxy of the kind {parts.scheme!r} cannot be used")
    is_tls = parts.scheme == "https"
    return Proxy(is_tls, parts.hostname, parts.port or (443 if is_tls else 80), _basic(parts))


def _basic(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(user.encode()).decode('ascii')}"


Connect = Callable[[Address, Proxy | None], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class Connector:
    """Opens connections to the endpoint of one store."""

    tls: ssl.SSLContext
    read_timeout_s: float

    async def __call__(self, address: Address, proxy: Proxy | None) -> Connection:
        """Connect, through *proxy* where there is one, TLS included; the caller bounds the time.

        Raises:
            OSError: no connection, or TLS failed.
            ProxyRefused: as it says.
        """
        if proxy is not None and proxy.is_tls:
            return await self._through_tls(proxy, address)
        to = proxy or address
        connection = SocketConnection(await _open_socket(to.host, to.port), self.read_timeout_s)
        try:
            if address.is_tls:
                if proxy is not None:
                    await _tunnel(connection, proxy, address)
                await connection.start_tls(self.tls, address.host)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _through_tls(self, proxy: Proxy, address: Address) -> Connection:
        transport = await trio.open_tcp_stream(proxy.host, proxy.port)
        try:
            stream: trio.abc.Stream = await self._wrap(transport, proxy.host)
            connection = StreamConnection(stream, transport, self.read_timeout_s)
            if address.is_tls:
                await _tunnel(connection, proxy, address)
                stream = await self._wrap(stream, address.host)
                connection = StreamConnection(stream, transport, self.read_timeout_s)
        except trio.BrokenResourceError as exc:
            transport.socket.close()
            raise ConnectionResetError(str(exc.__cause__ or exc)) from exc
        except BaseException:
            transport.socket.close()
            raise
        return connection

    async def _wrap(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        tls = trio.SSLStream(stream, self.tls, server_hostname=host, https_compatible=True)
        await tls.do_handshake()
        return tls


async def _open_socket(host: str, port: int) -> socket.socket:
    stream = await trio.open_tcp_stream(host, port)
    # From here no checkpoint until somebody owns the socket.
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    # trio wants to be woken for every 16 KiB that have left; the kernel's own measure suits large bodies.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    return sock


async def _tunnel(connection: Connection, proxy: Proxy, address: Address) -> None:
    """Ask *proxy* for a tunnel."""
    lines = [f"CONNECT {address.netloc} HTTP/1.1", f"Host: {address.netloc}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    await connection.send(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = await connection.receive()
        if not data or len(answer) > MAX_PROXY_ANSWER_BYTES:
            raise ProxyRefused("it closed the connection")
        answer += data
    status = answer.split(b"\r\n", 1)[0].partition(b" ")[2].decode("latin-1")
    if not status.startswith("2"):
        raise ProxyRefused(status)
