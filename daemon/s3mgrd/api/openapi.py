"""The OpenAPI 3.1 document, from the wire types and the declared routes.

quart-schema was weighed and left out. What it would document is what its decorators see, and here that falls short where
clients need it most: every response is written as ``application/json``, so no problem can be declared as what it is; response
headers land inside ``content``, which is not valid OpenAPI; one status has one type, required query parameters are not marked,
path parameters lose their pattern, and streams and request headers beyond a model cannot be said at all. Its validation
gives no pointers and reads JSON with the standard library first, which lets NaN and huge numbers through. What is left is `msgspec`'s own schema
of a type, which this module calls directly.
"""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from s3mgr import __version__, schema
from s3mgr.schema import OptionDoc, Problem, ProblemType
from s3mgr.schema.mounts import NAME_PATTERN
from s3mgrd.api.problems import ERRORS, STATUSES
from s3mgrd.api.routes import JSON, PROBLEM_JSON, Answer, AnyRoute

Json = dict[str, Any]  # Any: JSON

_REF: Final = "#/components/schemas/{name}"
_VARIABLE: Final = re.compile(r"{(\w+)}")

PATH_PARAMETERS: Final[dict[str, Json]] = {
    "name": {
        "description": "Name of a mount.",
        "schema": {"type": "string", "pattern": NAME_PATTERN},
    },
    "id": {
        "description": "Id of an operation or of a conflict copy.",
        "schema": {"type": "string", "minLength": 1},
    },
}

REQUEST_HEADERS: Final[dict[str, str]] = {
    "If-Match": "Only if the mount's generation is one of these entity tags; `*`: only if it exists.",
    "If-None-Match": "`*`: only if the mount does not exist.",
    "Prefer": "`respond-async`: answer 202 at once instead of waiting.",
    "Idempotency-Key": "A repeated request with the same key does not act again.",
    "Last-Event-ID": "Begin after this cursor.",
}

RESPONSE_HEADERS: Final[dict[str, str]] = {
    "ETag": "The generation of the spec, as an entity tag for If-Match.",
    "Location": "Where the result, or the operation that leads to it, is found.",
    "Preference-Applied": "`respond-async` when that was asked for.",
    "Retry-After": "Seconds after which to try again.",
    "X-Request-Id": "The request's id in the daemon's log.",
}


def wire_types() -> list[type]:
    """Return every type of `s3mgr.schema` that crosses the wire."""
    exported = (getattr(schema, name) for name in schema.__all__)
    structs = [
        item
        for item in exported
        if isinstance(item, type) and issubclass(item, msgspec.Struct) and item is not OptionDoc
    ]
    return [*structs, ProblemType]


def build_document(routes: Sequence[AnyRoute]) -> Json:
    """Describe *routes* and all wire types."""
    _, components = msgspec.json.schema_components(wire_types(), ref_template=_REF)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "s3mgr",
            "version": __version__,
            "summary": "Keep S3 buckets mounted as local file systems.",
            "description": "Served over a unix socket; who asks is told by the kernel. Requests with unknown fields "
            "are refused; clients must ignore unknown fields of answers.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The daemon's unix socket."}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: AnyRoute) -> Json:
    operation: Json = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "parameters": [
            *_path_parameters(route.path),
            *_query_parameters(route.query),
            *_header_parameters(route.request_headers),
        ],
        "responses": {
            **{str(answer.status): _answer(answer) for answer in route.answers},
            **_problems(route.all_problems),
        },
    }
    if route.body is not None:
        media_types = [JSON]
        if route.method == "PATCH":
            media_types.append("application/merge-patch+json")
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {media: {"schema": _reference(route.body)} for media in media_types},
        }
    return operation


def _reference(wire_type: type) -> Json:
    return {"$ref": _REF.format(name=wire_type.__name__)}


def _path_parameters(path: str) -> Iterable[Json]:
    for name in _VARIABLE.findall(path):
        yield {"name": name, "in": "path", "required": True, **PATH_PARAMETERS[name]}


def _query_parameters(query: type[msgspec.Struct]) -> Iterable[Json]:
    _, components = msgspec.json.schema_components([query], ref_template=_REF)
    described = components[query.__name__]
    for name, property_schema in described["properties"].items():
        yield {
            "name": name,
            "in": "query",
            "required": name in described.get("required", ()),
            "description": property_schema.pop("description"),
            "schema": property_schema,
        }


def _header_parameters(names: Iterable[str]) -> Iterable[Json]:
    for name in names:
        yield {
            "name": name,
            "in": "header",
            "required": False,
            "description": REQUEST_HEADERS[name],
            "schema": {"type": "string"},
        }


def _response_headers(names: Iterable[str]) -> Json:
    return {
        name: {"description": RESPONSE_HEADERS[name], "schema": {"type": "string"}}
        for name in (*names, "X-Request-Id")
    }


def _answer(answer: Answer) -> Json:
    described: Json = {
        "description": answer.description,
        "headers": _response_headers(answer.headers),
    }
    if answer.body is not None:
        described["content"] = {JSON: {"schema": _reference(answer.body)}}
    elif answer.media_type is not None:
        kind = "object" if answer.media_type == JSON else "string"
        described["content"] = {answer.media_type: {"schema": {"type": kind}}}
    return described


def statuses_of(problem: ProblemType) -> set[int]:
    """Return every HTTP status that *problem* is answered with."""
    kinds = (*ERRORS.values(), *STATUSES.values())
    return {kind.status for kind in kinds if kind.type is problem}


def _problems(problems: Iterable[ProblemType]) -> Json:
    by_status: dict[int, list[ProblemType]] = {}
    for problem in problems:
        for status in statuses_of(problem):
            by_status.setdefault(status, []).append(problem)
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{t}`' for t in types)}.",
            "headers": _response_headers(("Retry-After",) if status == 503 else ()),
            "content": {PROBLEM_JSON: {"schema": _reference(Problem)}},
            "x-problem-types": [str(problem) for problem in types],
        }
        for status, types in sorted(by_status.items())
    }
