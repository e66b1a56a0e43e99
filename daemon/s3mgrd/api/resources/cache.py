"""The block cache of one mount: bring files there, give them up, have them stay, and see what is in it."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from s3mgr.schema import (
    CachedFiles,
    CachePaths,
    EvictReport,
    Operation,
    PinList,
    ProblemType,
    UnpinReport,
)
from s3mgrd.api.problems import raise_unless_succeeded
from s3mgrd.api.requests import Call, NoQuery, settle
from s3mgrd.api.resources.mounts import WAIT_DEFAULT_S, WaitS
from s3mgrd.api.routes import (
    ACCEPTED,
    STORE_PROBLEMS,
    WORKER_PROBLEMS,
    Answer,
    AnyRoute,
    Reply,
    Route,
    accepted,
)


class WarmQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How long warm and pin wait."""

    wait_s: WaitS = WAIT_DEFAULT_S


class FilesQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which files."""

    by: Annotated[
        Literal["bytes", "hits", "misses"],
        Meta(
            description="What they lead by: bytes in the cache, bytes read from it, bytes that S3 was asked for."
        ),
    ] = "bytes"
    limit: Annotated[int, Meta(ge=1, le=100, description="Most files.")] = 20


async def warm_cache(call: Call[WarmQuery, CachePaths]) -> Reply:
    """Bring files, and directories with all below, into the block cache; refused where it has no room for all."""
    return await _settled(
        call, await call.service.warm_cache(call.who, call.name, paths=call.body.paths)
    )


async def pin_cache(call: Call[WarmQuery, CachePaths]) -> Reply:
    """Bring what is at the paths into the block cache and keep it there, each new version too, until it is unpinned."""
    return await _settled(
        call, await call.service.pin_cache(call.who, call.name, paths=call.body.paths)
    )


async def _settled(call: Call[WarmQuery, CachePaths], operation: Operation) -> Reply:
    wait_s = 0.0 if call.respond_async else call.query.wait_s
    operation = await settle(call, operation, wait_s)
    if operation.state == "running":
        return accepted(operation, preferred=call.respond_async)
    raise_unless_succeeded(operation)
    return Reply(200, operation)


async def unpin_cache(call: Call[NoQuery, CachePaths]) -> Reply:
    """Take back the pins at the paths and below."""
    return Reply(200, await call.service.unpin_cache(call.who, call.name, paths=call.body.paths))


async def evict_cache(call: Call[NoQuery, CachePaths]) -> Reply:
    """Give up what is in the block cache of the files at the paths and below, unless they are pinned."""
    return Reply(200, await call.service.evict_cache(call.who, call.name, paths=call.body.paths))


async def list_pins(call: Call[NoQuery, None]) -> Reply:
    """List what is pinned, and how much of it is in the block cache."""
    return Reply(200, await call.service.list_pins(call.who, call.name))


async def cached_files(call: Call[FilesQuery, None]) -> Reply:
    """List the files that lead in the block cache, by bytes, hits or misses."""
    found = await call.service.cached_files(
        call.who, call.name, by=call.query.by, limit=call.query.limit
    )
    return Reply(200, found)


def _bringing(
    verb: str, handler: Callable[[Call[WarmQuery, CachePaths]], Awaitable[Reply]]
) -> AnyRoute:
    return Route(
        "POST",
        f"/v1/mounts/{{name}}/cache/{verb}",
        handler,
        query=WarmQuery,
        body=CachePaths,
        answers=(Answer(200, "All of it is in the cache.", Operation), ACCEPTED),
        problems=(
            *STORE_PROBLEMS,
            ProblemType.CONFLICT,
            ProblemType.CREDENTIALS_REJECTED,
            ProblemType.DRAINING,
        ),
        request_headers=("Prefer",),
    )


def _taking_back(
    verb: str, handler: Callable[[Call[NoQuery, CachePaths]], Awaitable[Reply]], answer: Answer
) -> AnyRoute:
    return Route(
        "POST",
        f"/v1/mounts/{{name}}/cache/{verb}",
        handler,
        query=NoQuery,
        body=CachePaths,
        answers=(answer,),
        problems=(*WORKER_PROBLEMS, ProblemType.CONFLICT, ProblemType.BUCKET_UNREACHABLE),
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    _bringing("warm", warm_cache),
    _bringing("pin", pin_cache),
    _taking_back("unpin", unpin_cache, Answer(200, "What was unpinned.", UnpinReport)),
    _taking_back("evict", evict_cache, Answer(200, "What was given up.", EvictReport)),
    Route(
        "GET",
        "/v1/mounts/{name}/cache/pins",
        list_pins,
        query=NoQuery,
        answers=(Answer(200, "The pins.", PinList),),
        problems=WORKER_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/mounts/{name}/cache/files",
        cached_files,
        query=FilesQuery,
        answers=(Answer(200, "The files.", CachedFiles),),
        problems=WORKER_PROBLEMS,
    ),
)
