"""Operations: follow and cancel long work."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from s3mgr.schema import Operation, OperationList, ProblemType
from s3mgrd.api.requests import Call, NoQuery, settle
from s3mgrd.api.resources.mounts import WAIT_MAX_S
from s3mgrd.api.routes import Answer, AnyRoute, Reply, Route


class OperationsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Filters of the list."""

    mount: Annotated[
        Annotated[str, Meta(max_length=63)] | None,
        Meta(description="Only operations on this mount."),
    ] = None


class OperationQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a look at one operation waits."""

    wait_s: Annotated[
        float,
        Meta(ge=0, le=WAIT_MAX_S, description="Seconds to wait for its end; 0 answers at once."),
    ] = 0.0


async def list_operations(call: Call[OperationsQuery, None]) -> Reply:
    """List running operations and those that ended within a day."""
    operations = call.service.list_operations(call.who, mount=call.query.mount)
    return Reply(200, OperationList(items=operations))


async def get_operation(call: Call[OperationQuery, None]) -> Reply:
    """Read one operation, if asked only when it has ended."""
    operation = call.service.get_operation(call.who, call.operation_id)
    if operation.state == "running":
        operation = await settle(call, operation, call.query.wait_s)
    return Reply(200, operation)


async def cancel_operation(call: Call[NoQuery, None]) -> Reply:
    """Stop an upload before an unmount; other work cannot be cancelled."""
    return Reply(200, await call.service.cancel_operation(call.who, call.operation_id))


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/operations",
        list_operations,
        query=OperationsQuery,
        answers=(Answer(200, "The operations.", OperationList),),
    ),
    Route(
        "GET",
        "/v1/operations/{id}",
        get_operation,
        query=OperationQuery,
        answers=(Answer(200, "The operation; `error` is set when it failed.", Operation),),
        problems=(ProblemType.NOT_FOUND,),
    ),
    Route(
        "DELETE",
        "/v1/operations/{id}",
        cancel_operation,
        query=NoQuery,
        answers=(Answer(200, "The operation as it is now.", Operation),),
        problems=(ProblemType.NOT_FOUND, ProblemType.CONFLICT),
    ),
)
