"""aiobotocore on our connections: for the calls that are rare, so that everything S3 can do is within reach.

aiobotocore picks its trio-capable code for subclasses of `HttpxSession`. Ours keeps that type and sends through the
store's own pool (`s3mgrd.s3.http`): one budget of connections, one TLS context, one kind of network errors.

Concurrency: one `Exchange` per attempt, in a context variable of the task that makes the attempt.
"""

from contextvars import ContextVar
from typing import Protocol
from urllib.parse import urlsplit

from aiobotocore.awsrequest import HttpxAWSResponse
from aiobotocore.httpxsession import HttpxSession
from botocore.compat import HTTPHeaders

from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.connections import Address
from s3mgrd.s3.http import Exchange, HttpRequest, Pool

current_exchange: ContextVar[Exchange] = ContextVar("current_exchange")


class PreparedRequest(Protocol):
    """What botocore hands to a session: botocore's `AWSPreparedRequest`, as far as we use it."""

    method: str
    url: str
    headers: HTTPHeaders
    body: object
    stream_output: bool


class _Answer:
    """The `raw` of aiobotocore's response: what aiobotocore calls on answers that it reads itself."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def aread(self) -> bytes:
        body = await self._exchange.read_body()
        if self._exchange.keeps_body and self._exchange.status < 300:
            return b""
        return body


def session_class(pool: Pool) -> type[HttpxSession]:
    """Make the session class of one store: aiobotocore instantiates a class, so the store's pool goes into it."""

    class BoundSession(StoreSession):
        _pool = pool

    return BoundSession


# aiobotocore is untyped: its session is a subclass of Any, its arguments come as keywords we pass on.
class StoreSession(HttpxSession):  # type: ignore[misc]
    """Sends requests through a pool, whose exceptions pass through; `s3mgrd.s3.failures` maps them."""

    _pool: Pool

    async def __aenter__(self) -> "StoreSession":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Do nothing: the pool is not the session's."""

    async def close(self) -> None:
        """Do nothing: see `__aexit__`."""

    async def send(self, request: PreparedRequest) -> HttpxAWSResponse:
        """Send one request and return when the answer's headers are there (its body, too, unless it is streamed)."""
        exchange = current_exchange.get()
        await exchange.run(self._pool, _http_request(request))
        answer = HttpxAWSResponse(
            request.url,
            exchange.status,
            HTTPHeaders.from_pairs(list(exchange.headers.items())),
            _Answer(exchange),
        )
        if not request.stream_output:
            await answer.content
        return answer


def _http_request(request: PreparedRequest) -> HttpRequest:
    """Take over what botocore has made, without touching what comes after the host."""
    parts = urlsplit(request.url)
    is_tls = parts.scheme == "https"
    address = Address(is_tls, parts.hostname or "", parts.port or (443 if is_tls else 80))
    # "Expect: 100-continue", which botocore adds to every upload, buys nothing here: nobody waits for the answer.
    headers = {
        name.lower(): value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
        if name.lower() != "expect"
    }
    # As botocore signs it: without a default port.
    netloc = parts.netloc.rpartition("@")[2]
    headers["host"] = netloc.removesuffix(":443" if is_tls else ":80")
    headers["accept-encoding"] = "identity"
    start = len(parts.scheme) + len("://") + len(parts.netloc)
    target = request.url[start:] or "/"
    return HttpRequest(address, request.method, target, headers, _content(request.body))


def _content(body: object) -> UploadBody | bytes:
    if isinstance(body, UploadBody):
        return body
    if body is None:
        return b""
    if isinstance(body, (bytes, bytearray)):
        return bytes(body)
    if isinstance(body, str):
        return body.encode("utf-8")
    raise TypeError(f"a request body of type {type(body).__name__} does not come from this package")
