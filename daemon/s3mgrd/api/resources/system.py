"""The daemon itself: what it is, whether it lives, whether it is ready, and what its API looks like."""

from typing import Final

from s3mgr.schema import Info, ProblemType, Readiness
from s3mgrd.api.problems import NotReady
from s3mgrd.api.requests import Call, NoQuery
from s3mgrd.api.routes import JSON, Answer, AnyRoute, Reply, Route


async def info(call: Call[NoQuery, None]) -> Reply:
    """Read the daemon's version, directories, kernel features and warnings."""
    return Reply(200, call.service.info())


async def live(call: Call[NoQuery, None]) -> Reply:
    """Tell that the daemon's loop turns."""
    return Reply(204)


async def ready(call: Call[NoQuery, None]) -> Reply:
    """Tell whether the daemon has finished its start; one broken bucket does not make it unready."""
    readiness = call.service.readiness()
    if not readiness.ready:
        failed = ", ".join(sorted(name for name, passed in readiness.checks.items() if not passed))
        raise NotReady(
            f"The daemon is not ready: {failed}.", hint="Wait; its log says what it is doing."
        )
    return Reply(200, readiness)


async def openapi(call: Call[NoQuery, None]) -> Reply:
    """Read this document."""
    return Reply(200, raw=call.env.document)


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route("GET", "/v1/info", info, query=NoQuery, answers=(Answer(200, "The daemon.", Info),)),
    Route("GET", "/livez", live, query=NoQuery, answers=(Answer(204, "It lives."),)),
    Route(
        "GET",
        "/readyz",
        ready,
        query=NoQuery,
        answers=(Answer(200, "It is ready.", Readiness),),
        problems=(ProblemType.NOT_READY,),
    ),
    Route(
        "GET",
        "/openapi.json",
        openapi,
        query=NoQuery,
        answers=(Answer(200, "An OpenAPI 3.1 document.", media_type=JSON),),
    ),
)
