"""HTTP below aiobotocore: one connection pool of a store, on trio.

aiobotocore picks its trio-capable code for subclasses of `HttpxSession`. Ours keeps that type and sends through
httpcore2, the layer below httpx2, because that is where its public API lets us

- read from sockets in pieces of `READ_BYTES` rather than 64 KiB (ranged GETs cost half the CPU),
- send the request target byte for byte: keys may contain ``//``, ``..`` and every other thing URLs normalise,
- know whether a request went out before it failed, and how many connections are open,
- use a TLS context that was made before the worker lost its rights (`s3mgrd.s3.tls`).

Concurrency: one `Exchange` per attempt, in a context variable of the task that makes the attempt; the session
itself has no other state than the pool. Cancelling an attempt closes its connection (httpcore2 does, and `Exchange.close`
does for an answer whose body nobody has read).
"""

import ssl
from collections.abc import AsyncIterable, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

import httpcore2
import trio
from aiobotocore.awsrequest import HttpxAWSResponse
from aiobotocore.httpxsession import HttpxSession
from botocore.compat import HTTPHeaders

from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.settings import is_loopback

READ_BYTES: Final = 256 << 10
MAX_CONNECTIONS: Final = 300
"""Above the highest `concurrency` of a mount: our limiter decides, not the pool."""
KEEPALIVE_S: Final = 15.0
"""How long an idle connection is kept; below what S3 and common proxies allow, so that they rarely close first."""
MAX_ANSWER_BYTES: Final = 64 << 20
"""Most bytes of an answer that is not an object: a listing is below 2 MB, an endless one is not S3's."""


class AnswerTooLong(Exception):
    """An answer that is not an object's data exceeds `MAX_ANSWER_BYTES`."""


@dataclass(slots=True)
class Exchange:
    """What happened on the wire in one attempt."""

    sent: bool = False
    """Bytes of the request were handed to a connection: S3 may have acted on it."""
    first_bytes: bytes = b""
    """What the other side said first, for messages about servers of another protocol."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer; names in lower case."""
    keeps_body: bool = False
    """Keep the body of a successful answer here instead of letting botocore parse it."""
    body: bytes = b""
    body_start: bytes = b""
    """The beginning of an answer that is not an object's data, for messages about endpoints that are not S3."""
    received: int = 0
    """Bytes of the answer's body."""
    response: httpcore2.Response | None = None

    async def close(self) -> None:
        """Give the connection back, or close it when the answer was not read to its end."""
        if self.response is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await self.response.aclose()


current_exchange: ContextVar[Exchange] = ContextVar("current_exchange")


class NetworkBackend(httpcore2.AsyncNetworkBackend):
    """Connects by trio and counts connections that are open; reads in large pieces."""

    def __init__(self, inner: httpcore2.AsyncNetworkBackend | None = None) -> None:
        self._inner: Final = httpcore2.TrioBackend() if inner is None else inner
        self.open_connections = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,  # Any: httpcore2's own union of tuples
    ) -> httpcore2.AsyncNetworkStream:
        """Open one connection."""
        stream = await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _CountedStream(stream, self)


class _CountedStream(httpcore2.AsyncNetworkStream):
    def __init__(self, inner: httpcore2.AsyncNetworkStream, backend: NetworkBackend) -> None:
        self._inner = inner
        self._backend = backend
        self._open = True
        backend.open_connections += 1

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # h11 takes whatever amount it is given.
        data = await self._inner.read(max(max_bytes, READ_BYTES), timeout)
        exchange = current_exchange.get()
        if not exchange.first_bytes:
            exchange.first_bytes = data[:8]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        current_exchange.get().sent = True
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._backend.open_connections -= 1
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            self._inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            # httpcore2 closes the transport on errors, but not on cancellation.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self.aclose()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 httpcore2's signature: depends on the name
        return self._inner.get_extra_info(info)


class _Answer:
    """The `raw` of aiobotocore's response: what aiobotocore calls on answers that it reads itself."""

    def __init__(self, exchange: Exchange, response: httpcore2.Response) -> None:
        self._exchange = exchange
        self._response = response

    async def aread(self) -> bytes:
        chunks = []
        size = 0
        async with aclosing(self._response.aiter_stream()) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise AnswerTooLong
        body = b"".join(chunks)
        self._exchange.received = size
        self._exchange.body_start = body[:512]
        await self._response.aclose()
        if self._exchange.keeps_body and self._exchange.status < 300:
            self._exchange.body = body
            return b""
        return body


class PreparedRequest(Protocol):
    """What botocore hands to a session: botocore's `AWSPreparedRequest`, as far as we use it."""

    method: str
    url: str
    headers: HTTPHeaders
    body: object
    stream_output: bool


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one store gives to its session."""

    backend: NetworkBackend
    tls: ssl.SSLContext
    connect_timeout_s: float
    read_timeout_s: float

    @property
    def timeouts(self) -> dict[str, float | None]:
        """Return httpcore2's timeout extension. Waiting for a connection is bounded by our own limiter."""
        return {
            "connect": self.connect_timeout_s,
            "read": self.read_timeout_s,
            "write": self.read_timeout_s,
            "pool": None,
        }


def session_class(wiring: Wiring) -> type[HttpxSession]:
    """Make the session class of one store: aiobotocore instantiates a class, so the store's own things go into it."""

    class BoundSession(StoreSession):
        _wiring = wiring

    return BoundSession


# aiobotocore is untyped: its session is a subclass of Any, its arguments come as keywords we pass on.
class StoreSession(HttpxSession):  # type: ignore[misc]
    """Sends requests through httpcore2. Exceptions of httpcore2 pass through; `s3mgrd.s3.failures` maps them."""

    _wiring: Wiring

    async def __aenter__(self) -> "StoreSession":
        self._pool: httpcore2.AsyncConnectionPool | None = None
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await pool.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self.__aexit__(None, None, None)

    async def send(self, request: PreparedRequest) -> HttpxAWSResponse:
        """Send one request and return when the answer's headers are there (its body, too, unless it is streamed)."""
        exchange = current_exchange.get()
        if self._pool is None:
            self._pool = self._make_pool(request.url)
        response = await self._pool.handle_async_request(
            httpcore2.Request(
                request.method,
                _target(request.url),
                headers=_headers(request),
                content=_content(request.body),
                extensions={"timeout": self._wiring.timeouts},
            )
        )
        exchange.response = response
        exchange.status = response.status
        pairs = [(_text(name), _text(value)) for name, value in response.headers]
        exchange.headers = {name.lower(): value for name, value in pairs}
        answer = HttpxAWSResponse(
            request.url,
            response.status,
            HTTPHeaders.from_pairs(pairs),
            _Answer(exchange, response),
        )
        if not request.stream_output:
            await answer.content
        return answer

    def _make_pool(self, url: str) -> httpcore2.AsyncConnectionPool:
        proxy = None
        proxy_url = self._proxy_config.proxy_url_for(url)
        if proxy_url and not is_loopback(urlsplit(url).hostname or ""):
            parts = urlsplit(proxy_url)
            auth = None
            if parts.username is not None:
                auth = (unquote(parts.username), unquote(parts.password or ""))
            location = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            tls = self._wiring.tls if parts.scheme == "https" else None
            proxy = httpcore2.Proxy(location, auth=auth, ssl_context=tls)
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._wiring.tls,
            proxy=proxy,
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=self._wiring.backend,
        )


def _target(url: str) -> httpcore2.URL:
    """Split *url* without touching what comes after the host."""
    parts = urlsplit(url)
    start = len(parts.scheme) + len("://") + len(parts.netloc)
    return httpcore2.URL(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port,
        target=url[start:] or "/",
    )


def _headers(request: PreparedRequest) -> list[tuple[bytes, bytes]]:
    # "Expect: 100-continue", which botocore adds to every upload, buys nothing here: nobody waits for the answer.
    headers = [
        (name.encode("ascii"), value if isinstance(value, bytes) else str(value).encode("utf-8"))
        for name, value in request.headers.items()
        if name.lower() != "expect"
    ]
    headers.append((b"Host", _host(request.url)))
    headers.append((b"Accept-Encoding", b"identity"))
    return headers


def _host(url: str) -> bytes:
    """Make the Host header as botocore signs it: without a default port."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    default = {"http": ":80", "https": ":443"}[parts.scheme]
    return host.removesuffix(default).encode("ascii")


def _content(body: object) -> bytes | AsyncIterable[bytes] | None:
    if isinstance(body, UploadBody):
        return body
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, (str, bytearray)):
        return body.encode("utf-8") if isinstance(body, str) else bytes(body)
    raise TypeError(f"a request body of type {type(body).__name__} does not come from this package")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
