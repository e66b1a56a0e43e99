"""Mounts: list, read, create or replace, patch, unmount."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from s3mgr.schema import Mount, MountList, MountPatch, MountRequest, MountState, ProblemType
from s3mgrd.api.problems import raise_unless_succeeded
from s3mgrd.api.requests import Call, NoQuery, settle
from s3mgrd.api.routes import ACCEPTED, Answer, AnyRoute, Reply, Route, accepted
from s3mgrd.errors import NameConflict, PreconditionFailed
from s3mgrd.mounts.service import UnmountMode

WAIT_DEFAULT_S: Final = 30.0
WAIT_MAX_S: Final = 3600.0

WaitS = Annotated[
    float,
    Meta(ge=0, le=WAIT_MAX_S, description="Seconds to wait for the end before 202 is answered."),
]


class ListQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Filters of the list."""

    state: Annotated[MountState | None, Meta(description="Only mounts in this state.")] = None
    label: Annotated[
        Annotated[str, Meta(max_length=320)] | None,
        Meta(description="Only mounts with this label: `key` or `key=value`."),
    ] = None


class PutQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How long PUT waits."""

    wait_s: WaitS = WAIT_DEFAULT_S


class DeleteQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How a mount goes away."""

    wait_s: WaitS = WAIT_DEFAULT_S
    mode: Annotated[
        UnmountMode,
        Meta(
            description="`clean`: upload first, then unmount. `lazy`: detach at once, upload behind it. "
            "`discard`: throw away what S3 does not have."
        ),
    ] = "clean"
    timeout_s: Annotated[
        float, Meta(ge=0, le=86400, description="Longest time to upload what is left, seconds.")
    ] = 300.0
    keep: Annotated[bool, Meta(description="Unmount, but do not forget the spec.")] = False


async def list_mounts(call: Call[ListQuery, None]) -> Reply:
    """List the mounts that the caller may see, and the event cursor to watch from."""
    mounts = call.service.list_mounts(call.who, state=call.query.state, label=call.query.label)
    return Reply(200, mounts)


async def get_mount(call: Call[NoQuery, None]) -> Reply:
    """Read one mount: spec and status."""
    return _mount_reply(200, call.service.get_mount(call.who, call.name))


async def put_mount(call: Call[PutQuery, MountRequest]) -> Reply:
    """Create a mount or replace its spec, and wait until it is mounted."""
    wait_s = 0.0 if call.respond_async else call.query.wait_s
    try:
        mount, created, operation = await call.service.put_mount(
            call.who,
            call.name,
            call.body,
            only_create=call.only_create,
            if_generation=call.expected_generation(),
            keep_on_failure=wait_s == 0,
        )
    except NameConflict as exc:
        if not call.only_create:
            raise
        # What the caller made a condition has its own status (RFC 9110 §13.1.2).
        raise PreconditionFailed(exc.detail, hint=exc.hint) from exc
    if operation is not None:
        operation = await settle(call, operation, wait_s)
        if operation.state == "running":
            return accepted(operation, preferred=call.respond_async)
        raise_unless_succeeded(operation)
        mount = call.service.get_mount(call.who, call.name)
    return _mount_reply(201 if created else 200, mount)


async def patch_mount(call: Call[NoQuery, MountPatch]) -> Reply:
    """Change what may change while the mount is up (RFC 7396 merge-patch)."""
    mount = await call.service.patch_mount(
        call.who, call.name, call.body, if_generation=call.expected_generation()
    )
    return _mount_reply(200, mount)


async def delete_mount(call: Call[DeleteQuery, None]) -> Reply:
    """Unmount, and forget unless asked to keep; a mount that does not exist is a success."""
    # The service takes no generation here, so a change between this look and its own is not seen.
    call.expected_generation()
    operation = await call.service.delete_mount(
        call.who,
        call.name,
        mode=call.query.mode,
        timeout_s=call.query.timeout_s,
        keep=call.query.keep,
    )
    if operation is not None:
        wait_s = 0.0 if call.respond_async else call.query.wait_s
        operation = await settle(call, operation, wait_s)
        if operation.state == "running":
            return accepted(operation, preferred=call.respond_async)
        raise_unless_succeeded(operation)
    return Reply(204)


def _mount_reply(status: int, mount: Mount) -> Reply:
    # The tag names the generation of the spec, which is what If-Match is compared with. The status changes without
    # it, so it must never make a 304.
    headers = {"ETag": f'"{mount.generation}"'}
    if status == 201:
        headers["Location"] = f"/v1/mounts/{mount.name}"
    return Reply(status, mount, headers)


_MOUNT_FAILURES: Final = (
    ProblemType.MOUNTPOINT_INVALID,
    ProblemType.MOUNTPOINT_BUSY,
    ProblemType.BUCKET_NOT_FOUND,
    ProblemType.BUCKET_UNREACHABLE,
    ProblemType.CREDENTIALS_REJECTED,
    ProblemType.MOUNT_FAILED,
    ProblemType.UNSUPPORTED,
)

ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/mounts",
        list_mounts,
        query=ListQuery,
        answers=(Answer(200, "The mounts and the cursor.", MountList),),
    ),
    Route(
        "GET",
        "/v1/mounts/{name}",
        get_mount,
        query=NoQuery,
        answers=(Answer(200, "The mount.", Mount, ("ETag",)),),
        problems=(ProblemType.NOT_FOUND,),
    ),
    Route(
        "PUT",
        "/v1/mounts/{name}",
        put_mount,
        query=PutQuery,
        body=MountRequest,
        answers=(
            Answer(200, "It existed; it is as asked for and mounted.", Mount, ("ETag",)),
            Answer(201, "It was created and is mounted.", Mount, ("ETag", "Location")),
            ACCEPTED,
        ),
        problems=(
            ProblemType.NAME_CONFLICT,
            ProblemType.SPEC_CONFLICT,
            ProblemType.CONFLICT,
            ProblemType.PRECONDITION_FAILED,
            ProblemType.DRAINING,
            *_MOUNT_FAILURES,
        ),
        request_headers=("If-Match", "If-None-Match", "Prefer"),
    ),
    Route(
        "PATCH",
        "/v1/mounts/{name}",
        patch_mount,
        query=NoQuery,
        body=MountPatch,
        answers=(Answer(200, "The mount as it is now.", Mount, ("ETag",)),),
        problems=(
            ProblemType.NOT_FOUND,
            ProblemType.PRECONDITION_FAILED,
            ProblemType.CREDENTIALS_REJECTED,
            ProblemType.MOUNT_FAILED,
            ProblemType.DRAINING,
        ),
        request_headers=("If-Match",),
    ),
    Route(
        "DELETE",
        "/v1/mounts/{name}",
        delete_mount,
        query=DeleteQuery,
        answers=(Answer(204, "It is gone, or was never there."), ACCEPTED),
        problems=(
            ProblemType.DIRTY_DATA,
            ProblemType.CONFLICT,
            ProblemType.PRECONDITION_FAILED,
            ProblemType.BUCKET_UNREACHABLE,
            ProblemType.CREDENTIALS_REJECTED,
            ProblemType.MOUNT_FAILED,
            ProblemType.DRAINING,
        ),
        request_headers=("If-Match", "Prefer"),
    ),
)
