"""HTTP/1.1 for the requests of one store: a pool of connections, requests out, answers in.

What S3 needs and no more, because this is what every request passes through: h11 and an HTTP client of general use cost
0.6 ms a request, this costs 0.05 ms. The target is sent byte for byte: keys may contain ``//``, ``..`` and every other
thing that URL libraries normalise. A connection whose answer was not read to its end is never used again.

Concurrency: one `Exchange` per attempt of a call, used by the task that makes the attempt. The pool's state changes
between awaits only. Cancelling an attempt closes its connection (`Exchange.close`).
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from s3mgrd.s3.answer import AnswerReader, ClosedEarly, NotHttp
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.connections import Address, Connect, Connection, Proxy, WaitedTooLong, find_proxy

KEEPALIVE_S: Final = 15.0
"""How long an idle connection is kept; below what S3 and common proxies allow, so that they rarely close first."""
MAX_ANSWER_BYTES: Final = 64 << 20
"""Most bytes of an answer that is not an object: a listing is below 2 MB, an endless one is not S3's."""


class Unsendable(ValueError):
    """The request cannot be written down as HTTP."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request: target as it goes over the wire, headers with Host and Content-Length."""

    address: Address
    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: UploadBody | bytes = field(default=b"", repr=False)

    def head(self, proxy: Proxy | None) -> bytes:
        """Write the head down.

        Raises:
            Unsendable: a header would end the line.
        """
        target = self.target
        lines = [f"{name}: {value}\r\n" for name, value in self.headers.items()]
        if proxy is not None and not self.address.is_tls:
            target = f"http://{self.headers['host']}{target}"
            if proxy.authorization is not None:
                lines.append(f"Proxy-Authorization: {proxy.authorization}\r\n")
        text = f"{self.method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n"
        ends = len(lines) + 2
        if text.count("\n") != ends or text.count("\r") != ends or "\0" in text:
            raise Unsendable("a header has a character that HTTP does not allow")
        return text.encode("utf-8")


class Pool:
    """The connections of one store. `open_connections` counts idle ones, too; how many there may be is not decided here."""

    def __init__(self, connect: Connect, connect_timeout_s: float) -> None:
        self._connect: Final = connect
        self._connect_timeout_s: Final = connect_timeout_s
        self._proxies: Final[dict[Address, Proxy | None]] = {}
        self._idle: list[tuple[float, Address, Connection]] = []
        """Least recently used first, with the time until which each may be used."""
        self.open_connections = 0

    def proxy_for(self, address: Address) -> Proxy | None:
        """Return the proxy on the way to *address*. Raises `ProxyRefused`."""
        if address not in self._proxies:
            self._proxies[address] = find_proxy(address)
        return self._proxies[address]

    async def acquire(self, address: Address) -> Connection:
        """Return an idle connection or open one.

        Raises:
            WaitedTooLong, OSError, ProxyRefused: there is none to be had.
        """
        self._close_old()
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][1] == address:
                connection = self._idle.pop(index)[2]
                if connection.is_usable():
                    return connection
                self.discard(connection)
        # Counted from the beginning: what is being opened takes a descriptor as well.
        self.open_connections += 1
        try:
            return await self._open(address)
        except BaseException:
            self.open_connections -= 1
            raise

    async def _open(self, address: Address) -> Connection:
        with trio.move_on_after(self._connect_timeout_s):
            return await self._connect(address, self.proxy_for(address))
        raise WaitedTooLong(connecting=True)

    def release(self, address: Address, connection: Connection) -> None:
        """Take back a connection that waits for the next request."""
        self._idle.append((trio.current_time() + KEEPALIVE_S, address, connection))
        self._close_old()

    def discard(self, connection: Connection) -> None:
        """Close a connection."""
        connection.close()
        self.open_connections -= 1

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self.discard(self._idle.pop()[2])

    def _close_old(self) -> None:
        now = trio.current_time()
        while self._idle and self._idle[0][0] < now:
            self.discard(self._idle.pop(0)[2])


@dataclass(slots=True)
class Exchange:
    """One request and its answer: what happened on the wire in one attempt."""

    sent: bool = False
    """Bytes of the request were handed to a connection: S3 may have acted on it."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer; names in lower case, those that come twice joined by a comma."""
    body: bytes = b""
    """Of an answer that is not an object's data, once it was read."""
    keeps_body: bool = False
    """For `s3mgrd.s3.library`: botocore is not to parse the body of a successful answer."""
    _pool: Pool | None = None
    _address: Address | None = None
    _connection: Connection | None = None
    _reader: AnswerReader | None = None
    _is_whole: bool = False
    """All of the request was sent."""

    @property
    def body_start(self) -> bytes:
        """The beginning of an answer that is not an object's data, for messages about endpoints that are not S3."""
        return self.body[:512]

    @property
    def received(self) -> int:
        """Bytes of the answer's body."""
        return 0 if self._reader is None else self._reader.received

    @property
    def body_length(self) -> int | None:
        """How long the body is; None where that shows only at its end."""
        return None if self._reader is None else self._reader.length

    async def run(self, pool: Pool, request: HttpRequest) -> None:
        """Send *request* and read the answer's head. `close` must be called, whatever happens.

        Raises:
            WaitedTooLong, OSError, ProxyRefused, NotHttp, ClosedEarly: as they say.
            Unsendable, Corrupt: from the request.
        """
        head = request.head(pool.proxy_for(request.address))
        self._pool, self._address = pool, request.address
        self._connection = await pool.acquire(request.address)
        self.sent = True
        reader = AnswerReader(self._connection)
        try:
            await _send(self._connection, head, request.body)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a body may close; what it has said before tells why.
            with suppress(OSError, NotHttp, ClosedEarly, WaitedTooLong):
                await reader.receive_head(request.method)
            if not reader.status:
                raise
        else:
            self._is_whole = True
            await reader.receive_head(request.method)
        self._reader = reader
        self.status, self.headers = reader.status, reader.headers

    async def read_body(self) -> bytes:
        """Read the whole body of an answer that is not an object's data, into `body`.

        Raises:
            AnswerTooLong: as it says.
            WaitedTooLong, OSError, NotHttp, ClosedEarly: as they say.
        """
        self.body = bytes(await self.read_data(MAX_ANSWER_BYTES))
        return self.body

    async def read_data(self, limit: int) -> bytes | memoryview:
        """Read an object's data, at most *limit* bytes; see `AnswerReader.read`."""
        return b"" if self._reader is None else await self._reader.read(limit)

    def close(self) -> None:
        """Give the connection back, or close it when the answer was not read to its end. No checkpoint."""
        if self._connection is None or self._pool is None or self._address is None:
            return
        connection, self._connection = self._connection, None
        if self._is_whole and self._reader is not None and self._reader.is_complete:
            self._pool.release(self._address, connection)
        else:
            self._pool.discard(connection)


async def _send(connection: Connection, head: bytes, body: UploadBody | bytes) -> None:
    if isinstance(body, UploadBody) and body.inline is None:
        await connection.send(head)
        await body.send(connection)
        return
    inline = body.inline if isinstance(body, UploadBody) else body
    await connection.send(head + inline if inline else head)
