"""The Quart-Trio application: routes to handlers, exceptions to problems.

Only this module knows Quart. Handlers get a `Call` and return a `Reply`; whatever they raise becomes a problem
here, and this is one of the three places where a broad ``except`` (Quart's handler for `Exception`) may stand.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, cast

import msgspec
import trio
from hypercorn.typing import HTTPScope
from quart import Response, request
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from s3mgr.schema import Problem
from s3mgrd.api.gate import Gate, RequestInfo, request_info
from s3mgrd.api.idempotency import Restarts
from s3mgrd.api.openapi import build_document
from s3mgrd.api.problems import (
    OperationFailed,
    Unauthenticated,
    describe,
    describe_failed,
    describe_status,
    describe_unforeseen,
)
from s3mgrd.api.requests import Call, Environment, parse_body, parse_query
from s3mgrd.api.resources import ROUTES
from s3mgrd.api.routes import JSON, PROBLEM_JSON, AnyRoute, Reply, Stream
from s3mgrd.api.settings import ApiSettings
from s3mgrd.errors import Denied, S3mgrError
from s3mgrd.mounts.service import MountService, Principal

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5


def create_app(
    service: MountService,
    stopping: trio.Event,
    settings: ApiSettings,
    routes: Sequence[AnyRoute] = ROUTES,
) -> QuartTrio:
    """Make the ASGI application.

    Args:
        service: the domain.
        stopping: set when the server begins to stop: event streams end then, and waits answer early.
        settings: the limits.
        routes: what to serve.
    """
    app = QuartTrio(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["BODY_TIMEOUT"] = settings.body_timeout_s
    # Quart would silently cut an answer off; the server drops clients that do not read instead.
    app.config["RESPONSE_TIMEOUT"] = None
    # A redirect is no answer to a program that mistyped a path.
    app.url_map.merge_slashes = False
    env = Environment(
        service, settings, stopping, msgspec.json.encode(build_document(routes)), Restarts()
    )
    for route in routes:
        app.add_url_rule(
            route.path.replace("{", "<").replace("}", ">"),
            endpoint=f"{route.method} {route.path}",
            view_func=_view(route, env),
            methods=[route.method],
        )
    app.before_request(_refuse_browsers)
    app.register_error_handler(Exception, _answer_problem)
    app.asgi_app = Gate(app.asgi_app)  # type: ignore[method-assign]  # Quart's documented way to add a layer
    return app


def _view(route: AnyRoute, env: Environment) -> Callable[..., Awaitable[Response]]:
    async def view(**path_args: str) -> Response:
        info = _info()
        info.route = route.path
        call = Call(
            env=env,
            who=_caller(info),
            method=request.method,
            path_args=path_args,
            headers=_headers(),
            query=parse_query(dict(request.args.lists()), route.query),
            body=await _body(route),
            nursery=info.nursery,
        )
        return _response(await route.handler(call))

    return view


async def _body(route: AnyRoute) -> object:
    if route.body is None:
        return None
    raw = cast(bytes, await request.get_data(as_text=False))
    return parse_body(
        raw, request.headers.get("Content-Type", ""), route.body, required=route.body_required
    )


def _info() -> RequestInfo:
    return request_info(cast(HTTPScope, request.scope))


def _caller(info: RequestInfo) -> Principal:
    if info.principal is None:
        raise Unauthenticated("The connection carries no identity.")
    return info.principal


def _headers() -> Mapping[str, str]:
    names = {name.title() for name in request.headers.keys()}  # noqa: SIM118  # a multidict: iterating gives pairs
    return {name: ", ".join(request.headers.getlist(name)) for name in names}


def _refuse_browsers() -> None:
    """Refuse what a web page could make a browser send: nothing of ours is served to browsers.

    Raises:
        Denied: the request names the page that it comes from.
    """
    for header in ("Origin", "Referer"):
        if header in request.headers:
            raise Denied(
                f"Requests with the header {header} are refused.",
                hint="This API is not for web pages.",
            )


class _StreamBody(ResponseBody):
    """Lets Quart send a `Stream`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._stream.aclose()


def _response(reply: Reply) -> Response:
    if reply.stream is not None:
        response = Response(_StreamBody(reply.stream), status=reply.status)
        response.timeout = None
    elif reply.body is not None:
        response = Response(msgspec.json.encode(reply.body), status=reply.status, content_type=JSON)
    elif reply.raw is not None:
        response = Response(reply.raw, status=reply.status, content_type=JSON)
    else:
        response = Response(b"", status=reply.status)
        response.headers.pop("Content-Type", None)
    response.headers.update(reply.headers)
    return response


async def _answer_problem(error: Exception) -> Response:
    """Turn whatever was raised into a problem; what nobody foresaw is logged and not told."""
    info = _info()
    headers = {}
    if isinstance(error, S3mgrError):
        problem = describe(error, _mount_name(), info.urn)
    elif isinstance(error, OperationFailed):
        problem = describe_failed(error.problem, info.urn)
    elif isinstance(error, HTTPException):
        status = error.code or 500
        problem = describe_status(status, error.description or error.name, info.urn)
        headers = {k: v for k, v in error.get_headers() if k.lower() == "allow"}
    else:
        problem = describe_unforeseen(info.urn)
    if problem.status == 500:
        log.error("%s failed", info.route, exc_info=error, extra={"request_id": info.id})
    if problem.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return _problem_response(problem, headers)


def _mount_name() -> str | None:
    return (request.view_args or {}).get("name")


def _problem_response(problem: Problem, headers: Mapping[str, str]) -> Response:
    return Response(
        msgspec.json.encode(problem),
        status=problem.status,
        content_type=PROBLEM_JSON,
        headers=dict(headers),
    )
