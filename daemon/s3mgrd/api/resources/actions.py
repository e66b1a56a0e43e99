"""Actions on a mount: upload now, forget what is cached, replace the worker."""

from typing import Final

from msgspec import Struct

from s3mgr.schema import (
    FlushReport,
    FlushRequest,
    InvalidateReport,
    InvalidateRequest,
    Operation,
    ProblemType,
)
from s3mgrd.api.problems import MalformedRequest, raise_unless_succeeded
from s3mgrd.api.requests import Call, NoQuery, settle, until_stopping
from s3mgrd.api.resources.mounts import WAIT_DEFAULT_S, WaitS
from s3mgrd.api.routes import (
    ACCEPTED,
    STORE_PROBLEMS,
    Answer,
    AnyCall,
    AnyRoute,
    Reply,
    Route,
    accepted,
)
from s3mgrd.errors import NotFound

KEY_MAX_LENGTH: Final = 255


class RestartQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How long restart waits."""

    wait_s: WaitS = WAIT_DEFAULT_S


def idempotency_key(call: AnyCall) -> str | None:
    """Return the caller's Idempotency-Key; None: there is none.

    Raises:
        MalformedRequest: it is empty or too long.
    """
    key = call.headers.get("Idempotency-Key")
    if key is not None and not 0 < len(key) <= KEY_MAX_LENGTH:
        raise MalformedRequest(f"An Idempotency-Key has 1 to {KEY_MAX_LENGTH} characters.")
    return key


async def flush_mount(call: Call[NoQuery, FlushRequest]) -> Reply:
    """Upload what S3 does not have yet, and wait for it."""
    idempotency_key(call)
    report = await until_stopping(
        call.env.stopping,
        lambda: call.service.flush_mount(call.who, call.name, timeout_s=call.body.timeout_s),
    )
    return Reply(200, report)


async def invalidate_mount(call: Call[NoQuery, InvalidateRequest]) -> Reply:
    """Forget what is cached below a path, so that the next look asks S3."""
    idempotency_key(call)
    return Reply(200, await call.service.invalidate_mount(call.who, call.name, path=call.body.path))


async def restart_mount(call: Call[RestartQuery, None]) -> Reply:
    """Replace the worker on the live connection; programs only notice a pause."""
    operation = await _restart_once(call)
    wait_s = 0.0 if call.respond_async else call.query.wait_s
    operation = await settle(call, operation, wait_s)
    if operation.state == "running":
        return accepted(operation, preferred=call.respond_async)
    raise_unless_succeeded(operation)
    return Reply(200, operation)


async def _restart_once(call: Call[RestartQuery, None]) -> Operation:
    key = idempotency_key(call)
    if key is None:
        return await call.service.restart_mount(call.who, call.name)
    restarts = call.env.restarts
    async with restarts.lock:
        if known := restarts.find(call.who.uid, call.name, key):
            try:
                return call.service.get_operation(call.who, known)
            except NotFound:
                pass  # It ended so long ago that it was forgotten: this is a new wish.
        operation = await call.service.restart_mount(call.who, call.name)
        restarts.remember(call.who.uid, call.name, key, operation.id)
        return operation


_ACTION_PROBLEMS: Final = (*STORE_PROBLEMS, ProblemType.DRAINING)

ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "POST",
        "/v1/mounts/{name}/flush",
        flush_mount,
        query=NoQuery,
        body=FlushRequest,
        body_required=False,
        answers=(Answer(200, "What was uploaded and what is left.", FlushReport),),
        problems=(*_ACTION_PROBLEMS, ProblemType.CREDENTIALS_REJECTED),
        request_headers=("Idempotency-Key",),
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/invalidate",
        invalidate_mount,
        query=NoQuery,
        body=InvalidateRequest,
        body_required=False,
        answers=(Answer(200, "What was forgotten.", InvalidateReport),),
        problems=_ACTION_PROBLEMS,
        request_headers=("Idempotency-Key",),
    ),
    Route(
        "POST",
        "/v1/mounts/{name}/restart",
        restart_mount,
        query=RestartQuery,
        answers=(Answer(200, "The new worker serves the mount.", Operation), ACCEPTED),
        problems=(*_ACTION_PROBLEMS, ProblemType.CONFLICT),
        request_headers=("Idempotency-Key", "Prefer"),
    ),
)
