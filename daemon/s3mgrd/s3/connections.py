"""Connections to the endpoint: sockets that trio waits for, TLS, proxies.

Why not trio's streams: each of their calls is a checkpoint or two, and their TLS passes pieces of 16 KiB on. Here a call
that can be done at once costs one system call, bytes of an object go from the kernel (or from OpenSSL) into the buffer
where they stay, and a file goes into a socket without passing through this process (sendfile).

Concurrency: one task at a time uses a connection. Cancelled in the middle of anything, it must be closed.
"""

import base64
import os
import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import trio
from botocore.utils import get_environ_proxies

from s3mgrd.s3.settings import is_loopback

READ_BYTES: Final = 64 << 10
"""Most that is read at once where the amount is not known: heads and small answers."""
BULK_BYTES: Final = 256 << 10
"""How much encrypted data OpenSSL gets at once."""
TURN_BYTES: Final = 1 << 20
"""After how many bytes other tasks get their turn though the connection has more: 1 MiB takes about 0.2 ms."""
PATIENT_BYTES: Final = 512 << 10
"""How much of a body the kernel gathers before it wakes us: to be woken costs as much as to receive 100 KiB."""
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

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """Wait for bytes; empty: the other side has closed."""

    async def receive_into(self, view: memoryview, arrived: Callable[[int], None]) -> None:
        """Fill *view*, or what the other side sends of it before it closes; *arrived* is told of the bytes as they come."""

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
    """A connection on a non-blocking socket, which it owns; a wait for the other side takes at most *timeout_s*."""

    sends_files: Final = True

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._socket: Final = sock
        self._timeout_s: Final = timeout_s
        self._wakes_at = 1

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """See the protocol."""
        while True:
            try:
                return self._socket.recv(max_bytes)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)

    async def receive_into(self, view: memoryview, arrived: Callable[[int], None]) -> None:
        """See the protocol."""
        have = 0

        def note(size: int) -> None:
            nonlocal have
            have += size
            arrived(size)

        async def wait(missing: int) -> None:
            self._wake_at(min(missing, PATIENT_BYTES))
            self._have_patience(patience)
            await trio.lowlevel.wait_readable(self._socket)

        while True:
            # One scope for all waits: to make one costs as much as to receive 20 KiB.
            with trio.move_on_after(self._timeout_s) as patience:
                await _fill(view[have:], self._receive_now, wait, note)
            if not patience.cancelled_caught or have == len(view):
                break
            got = self._receive_now(view[have:])
            if got is None:
                raise WaitedTooLong
            note(got)  # it came, too little of it to wake us
        self._wake_at(1)

    def _receive_now(self, view: memoryview) -> int | None:
        """Fill some of *view*; 0: the other side has closed, None: nothing is there."""
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            return None

    def _have_patience(self, patience: trio.CancelScope) -> None:
        """Let one more wait take its time, or a little less: a deadline that stays need not be entered again."""
        until = trio.current_time() + self._timeout_s
        if until - patience.deadline > self._timeout_s / 16:
            patience.deadline = until

    def _wake_at(self, size: int) -> None:
        """Have the kernel say that there is something when so many bytes are there, or no more will come."""
        if size != self._wakes_at:
            self._wakes_at = size
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    async def send(self, data: bytes | memoryview) -> None:
        """See the protocol."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)

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


class TlsConnection:
    """TLS over another connection, which it owns.

    OpenSSL works in memory: left to read from the socket itself it makes two system calls for each 16 KiB, which costs a
    fifth more. It also lets TLS go through TLS, for proxies.
    """

    sends_files: Final = False

    def __init__(self, inner: Connection, context: ssl.SSLContext, host: str) -> None:
        self._inner: Final = inner
        self._incoming: Final = ssl.MemoryBIO()
        self._outgoing: Final = ssl.MemoryBIO()
        self._tls: Final = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def shake_hands(self) -> None:
        """Begin. The time it may take is the caller's to bound.

        Raises:
            OSError: TLS does not come about.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._receive_more()
            else:
                await self._flush()
                return

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """See the protocol."""
        while True:
            try:
                return self._tls.read(max_bytes)
            except ssl.SSLWantReadError:
                await self._receive_more()
            except ssl.SSLEOFError:
                return b""  # closed without a farewell; lengths tell whether something is missing

    async def receive_into(self, view: memoryview, arrived: Callable[[int], None]) -> None:
        """See the protocol."""
        await _fill(view, self._receive_now, lambda _: self._receive_more(), arrived)

    def _receive_now(self, view: memoryview) -> int | None:
        """Fill some of *view*, 16 KiB at most; 0: the other side has closed, None: nothing is there."""
        try:
            return int(self._tls.read(len(view), view))
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLEOFError:
            return 0  # as in `receive`

    async def send(self, data: bytes | memoryview) -> None:
        """See the protocol."""
        view = memoryview(data)
        while view:
            try:
                written = self._tls.write(view[:BULK_BYTES])
            except ssl.SSLWantReadError:
                await self._receive_more()
            else:
                view = view[written:]
                await self._flush()

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        """See the protocol."""
        raise NotImplementedError

    def is_usable(self) -> bool:
        """See the protocol."""
        if not self._inner.is_usable():
            return False
        try:
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return True  # nothing, or session tickets, which came after the last answer
        except ssl.SSLError:
            return False
        return False

    def close(self) -> None:
        """See the protocol."""
        self._inner.close()

    async def _receive_more(self) -> None:
        await self._flush()
        data = await self._inner.receive(BULK_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._inner.send(self._outgoing.read())


async def _fill(
    view: memoryview,
    receive_now: Callable[[memoryview], int | None],
    wait: Callable[[int], Awaitable[None]],
    arrived: Callable[[int], None],
) -> None:
    """Fill *view*, or what comes of it before the other side closes (0); where nothing is there (None), *wait* for what is missing."""
    turn = 0
    while view:
        got = receive_now(view)
        if got is None:
            await wait(len(view))
            turn = 0
            continue
        if not got:
            return
        arrived(got)
        view = view[got:]
        turn += got
        if turn >= TURN_BYTES:
            turn = 0
            await trio.lowlevel.checkpoint()


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
        to = proxy or address
        connection: Connection = SocketConnection(
            await _open_socket(to.host, to.port), self.read_timeout_s
        )
        try:
            if proxy is not None and proxy.is_tls:
                connection = await self._secured(connection, proxy.host)
            if proxy is not None and address.is_tls:
                await _tunnel(connection, proxy, address)
            if address.is_tls:
                connection = await self._secured(connection, address.host)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _secured(self, connection: Connection, host: str) -> Connection:
        secured = TlsConnection(connection, self.tls, host)
        await secured.shake_hands()
        return secured


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
