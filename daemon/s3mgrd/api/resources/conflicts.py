"""Conflict copies of one mount: list them, make files of them, throw them away."""

from typing import Final

from s3mgr.schema import ConflictList, ProblemType, RestoreConflictRequest, RestoredConflict
from s3mgrd.api.requests import Call, NoQuery, PageQuery
from s3mgrd.api.routes import STORE_PROBLEMS, Answer, AnyRoute, Reply, Route


async def list_conflicts(call: Call[PageQuery, None]) -> Reply:
    """List the data that lost against other writers and is kept locally."""
    found = await call.service.list_conflicts(
        call.who, call.name, cursor=call.query.cursor, limit=call.query.limit
    )
    return Reply(200, found)


async def restore_conflict(call: Call[NoQuery, RestoreConflictRequest]) -> Reply:
    """Make a file of a conflict copy, under a name that does not exist; it is uploaded like every new file."""
    restored = await call.service.restore_conflict(
        call.who, call.name, call.conflict_id, path=call.body.path, partial=call.body.partial
    )
    return Reply(200, restored)


async def discard_conflict(call: Call[NoQuery, None]) -> Reply:
    """Throw a conflict copy away, for good."""
    await call.service.discard_conflict(call.who, call.name, call.conflict_id)
    return Reply(204)


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/mounts/{name}/conflicts",
        list_conflicts,
        query=PageQuery,
        answers=(Answer(200, "Totals and one page of copies.", ConflictList),),
        problems=STORE_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/conflicts/{id}/restore",
        restore_conflict,
        query=NoQuery,
        body=RestoreConflictRequest,
        body_required=False,
        answers=(Answer(200, "It is a file now.", RestoredConflict),),
        problems=(*STORE_PROBLEMS, ProblemType.CONFLICT, ProblemType.CREDENTIALS_REJECTED),
    ),
    Route(
        "DELETE",
        "/v1/mounts/{name}/conflicts/{id}",
        discard_conflict,
        query=NoQuery,
        answers=(Answer(204, "It is gone."),),
        problems=STORE_PROBLEMS,
    ),
)
