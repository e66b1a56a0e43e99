"""The outermost ASGI layer: what holds for every request, whoever answers it.

It gives each request an id and a nursery that ends with it, adds the headers that every answer carries, refuses
websockets, and writes the access log: mutations at INFO, the rest at DEBUG, also for clients that left before
their answer.
"""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    Scope,
    WebsocketScope,
)

from s3mgr import __version__
from s3mgrd.api import auth
from s3mgrd.api.problems import describe_status
from s3mgrd.api.routes import PROBLEM_JSON
from s3mgrd.mounts.service import Principal

log = logging.getLogger("s3mgrd.api.access")

EXTENSION: Final = "s3mgr.request"
"""Key in an ASGI scope's extensions; its value is ``{"request": RequestInfo}``."""

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_ANSWER: Final = 0
_FIXED_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"server", f"s3mgrd/{__version__}".encode()),
    (b"s3mgr-version", __version__.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


@dataclass(slots=True)
class RequestInfo:
    """What is known of a request beside HTTP.

    Attributes:
        id: unique; in the log, in ``X-Request-Id`` and in every problem.
        principal: who asks; None: the connection carries no identity.
        nursery: ends with the request.
        route: the route's path; set by the application once it is known.
    """

    id: str
    principal: Principal | None
    nursery: trio.Nursery
    route: str = "-"

    @property
    def urn(self) -> str:
        """The id as a problem's `instance`."""
        return f"urn:uuid:{self.id}"


def request_info(scope: HTTPScope) -> RequestInfo:
    """Return what the gate has put into *scope*."""
    return cast(RequestInfo, scope["extensions"][EXTENSION]["request"])


def _principal(scope: HTTPScope | WebsocketScope) -> Principal | None:
    return cast(Principal | None, scope["extensions"].get(auth.EXTENSION, {}).get("principal"))


class Gate:
    """Wraps an ASGI application."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request, or the application's lifespan."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(
        self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        request_id = str(uuid.uuid4())
        started = trio.current_time()
        status = _NO_ANSWER
        answered = False
        route = "-"

        async def send_marked(event: ASGISendEvent) -> None:
            nonlocal status, answered
            if event["type"] == "http.response.start":
                status = event["status"]
                headers = [*event["headers"], *_headers(request_id)]
                event = {**event, "headers": headers}
            elif event["type"] == "http.response.body" and not event.get("more_body", False):
                answered = True
            await send(event)

        async def receive_until_answered() -> ASGIReceiveEvent:
            event = await receive()
            # hypercorn reports the end of every request as a disconnect, from within the last send. Quart-Trio would
            # cancel the task that is in that send, which then neither closes the connection nor watches it for
            # idleness and for the server's stop.
            if event["type"] == "http.disconnect" and answered:
                await trio.sleep_forever()
            return event

        try:
            async with trio.open_nursery() as nursery:
                info = RequestInfo(request_id, _principal(scope), nursery)
                extensions = {**scope["extensions"], EXTENSION: {"request": info}}
                path = _origin_form(scope["path"])
                try:
                    await self._app(
                        {**scope, "path": path, "extensions": extensions},
                        receive_until_answered,
                        send_marked,
                    )
                finally:
                    route = info.route
                nursery.cancel_scope.cancel()
        finally:
            _log_access(scope, request_id, route, status, trio.current_time() - started)


def _origin_form(path: str) -> str:
    """Return the path of a request target that may be a whole URL (RFC 9112 §3.2.2), empty or ``*``."""
    if path.startswith("/"):
        return path
    try:
        return "/" + urlsplit(path).path.removeprefix("/")
    except ValueError:  # An impossible host, e.g. an unclosed bracket.
        return "/"


def _headers(request_id: str) -> Sequence[tuple[bytes, bytes]]:
    return (*_FIXED_HEADERS, (b"x-request-id", request_id.encode()))


async def _refuse_websocket(scope: WebsocketScope, send: ASGISendCallable) -> None:
    request_id = str(uuid.uuid4())
    problem = describe_status(400, "This API has no websockets.", f"urn:uuid:{request_id}")
    headers = [(b"content-type", PROBLEM_JSON.encode()), *_headers(request_id)]
    await send({"type": "websocket.http.response.start", "status": 400, "headers": headers})
    await send(
        {
            "type": "websocket.http.response.body",
            "body": msgspec.json.encode(problem),
            "more_body": False,
        }
    )


def _log_access(scope: HTTPScope, request_id: str, route: str, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["method"] in _READING else logging.INFO
    if not log.isEnabledFor(level):
        return
    principal = _principal(scope)
    log.log(
        level,
        "%s %s %s",
        scope["method"],
        # As sent, percent-encoded: a decoded path could forge lines.
        scope["raw_path"].decode("ascii", "backslashreplace"),
        status or "left before the answer",
        extra={
            "uid": None if principal is None else principal.uid,
            "route": route,
            "ms": round(seconds * 1000),
            "request_id": request_id,
        },
    )
