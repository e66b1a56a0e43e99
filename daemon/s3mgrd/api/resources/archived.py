"""Archived objects of one mount: which they are, and having S3 restore copies of them that can be read."""

from typing import Annotated, Final

from msgspec import Meta

from s3mgr.schema import ArchivedList, ProblemType, RestoreReport, RestoreRequest
from s3mgrd.api.requests import Call, NoQuery, TreeQuery
from s3mgrd.api.routes import STORE_PROBLEMS, Answer, AnyRoute, Reply, Route


class ArchivedQuery(TreeQuery, frozen=True, forbid_unknown_fields=True):
    """Which page of the archived objects, and of which path."""

    limit: Annotated[int, Meta(ge=1, le=100, description="Most objects.")] = 100


async def list_archived(call: Call[ArchivedQuery, None]) -> Reply:
    """List the objects in archives, asking S3: whether copies of them are being restored, and until when they can be read."""
    found = await call.service.list_archived(
        call.who,
        call.name,
        path=call.query.path,
        cursor=call.query.cursor,
        limit=call.query.limit,
    )
    return Reply(200, found)


async def restore_objects(call: Call[NoQuery, RestoreRequest]) -> Reply:
    """Have S3 restore copies of archived objects, those of one page; S3 takes minutes to days for it."""
    return Reply(200, await call.service.restore_objects(call.who, call.name, call.body))


_PROBLEMS: Final = (*STORE_PROBLEMS, ProblemType.CREDENTIALS_REJECTED)

ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/mounts/{name}/archived",
        list_archived,
        query=ArchivedQuery,
        answers=(Answer(200, "One page of archived objects.", ArchivedList),),
        problems=_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/archived/restore",
        restore_objects,
        query=NoQuery,
        body=RestoreRequest,
        body_required=False,
        answers=(Answer(200, "What S3 restores now, and what it refused.", RestoreReport),),
        problems=_PROBLEMS,
    ),
)
