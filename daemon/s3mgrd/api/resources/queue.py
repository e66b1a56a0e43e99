"""The queue of uploads of one mount: look at it, hold it back, let it go on, have one file go next."""

from typing import Final

from s3mgr.schema import HurryRequest, ProblemType, UploadQueue
from s3mgrd.api.requests import Call, NoQuery, PageQuery
from s3mgrd.api.routes import STORE_PROBLEMS, Answer, AnyRoute, Reply, Route


async def read_queue(call: Call[PageQuery, None]) -> Reply:
    """List the files that wait to be uploaded in the background, in the order in which they go."""
    found = await call.service.mount_queue(
        call.who, call.name, cursor=call.query.cursor, limit=call.query.limit
    )
    return Reply(200, found)


async def pause_queue(call: Call[NoQuery, None]) -> Reply:
    """Hold uploads in the background back, also after restarts; what a program, a flush or an unmount waits for is uploaded."""
    return Reply(200, await call.service.pause_queue(call.who, call.name))


async def resume_queue(call: Call[NoQuery, None]) -> Reply:
    """Let uploads in the background go on."""
    return Reply(200, await call.service.resume_queue(call.who, call.name))


async def hurry_upload(call: Call[NoQuery, HurryRequest]) -> Reply:
    """Have one file uploaded next, without waiting for its retry, and also while the queue is paused."""
    return Reply(200, await call.service.hurry_upload(call.who, call.name, path=call.body.path))


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/mounts/{name}/queue",
        read_queue,
        query=PageQuery,
        answers=(Answer(200, "Totals and one page of files.", UploadQueue),),
        problems=STORE_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/queue/pause",
        pause_queue,
        query=NoQuery,
        answers=(Answer(200, "It is paused; the totals.", UploadQueue),),
        problems=STORE_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/queue/resume",
        resume_queue,
        query=NoQuery,
        answers=(Answer(200, "It goes on; the totals.", UploadQueue),),
        problems=STORE_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/queue/hurry",
        hurry_upload,
        query=NoQuery,
        body=HurryRequest,
        answers=(Answer(200, "That file goes next; the totals.", UploadQueue),),
        problems=(*STORE_PROBLEMS, ProblemType.CONFLICT),
    ),
)
