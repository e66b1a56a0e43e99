"""Observation of one mount: counters, caches, log."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from s3mgr.schema import CacheReport, LogTail, MountStats, ProblemType
from s3mgrd.api.requests import Call, NoQuery, TreeQuery
from s3mgrd.api.routes import WORKER_PROBLEMS, Answer, AnyRoute, Reply, Route


class CacheQuery(TreeQuery, frozen=True, forbid_unknown_fields=True):
    """Which page of the cache's entries."""

    limit: Annotated[
        int, Meta(ge=0, le=1000, description="Most entries; 0 gives the totals only.")
    ] = 100


class LogsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which lines of the log."""

    lines: Annotated[int, Meta(ge=0, le=10_000, description="Most lines.")] = 100
    offset: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None,
        Meta(description="`offset` of an earlier answer: only what came after it."),
    ] = None


async def mount_stats(call: Call[NoQuery, None]) -> Reply:
    """Read the counters of the mount's worker."""
    return Reply(200, await call.service.mount_stats(call.who, call.name))


async def mount_cache(call: Call[CacheQuery, None]) -> Reply:
    """Read what the metadata and data caches hold: totals, and of one directory what is known, page by page."""
    report = await call.service.mount_cache(
        call.who,
        call.name,
        path=call.query.path,
        cursor=call.query.cursor,
        limit=call.query.limit,
    )
    return Reply(200, report)


async def mount_logs(call: Call[LogsQuery, None]) -> Reply:
    """Read the end of the worker's log, or what came after an offset."""
    tail = await call.service.mount_logs(
        call.who, call.name, lines=call.query.lines, offset=call.query.offset
    )
    return Reply(200, tail)


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/mounts/{name}/stats",
        mount_stats,
        query=NoQuery,
        answers=(Answer(200, "The counters.", MountStats),),
        problems=WORKER_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/mounts/{name}/cache",
        mount_cache,
        query=CacheQuery,
        answers=(Answer(200, "Totals and one page of entries.", CacheReport),),
        problems=WORKER_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/mounts/{name}/logs",
        mount_logs,
        query=LogsQuery,
        answers=(Answer(200, "The lines.", LogTail),),
        problems=(ProblemType.NOT_FOUND,),
    ),
)
