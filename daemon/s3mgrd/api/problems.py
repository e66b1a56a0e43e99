"""Errors to RFC 9457 problems: the only table that does it, and the errors that only HTTP can have.

    UserError
    ├── MalformedRequest      not JSON, a header that cannot be read, a body where none belongs
    ├── InvalidParameter      an unknown or ill-typed query parameter, an impossible name in the path
    └── UnsupportedMediaType  a body that says it is not JSON
    Denied
    └── Unauthenticated       nobody knows who asks
    Unavailable
    └── NotReady              the daemon has not finished its start

Hint and detail come from the error; type, status, title and whether a retry may help come from here. Nothing here
knows Quart, so that the composition root can hand `describe` to the domain for the problems of operations.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from s3mgr.schema import FieldError, Operation, Problem, ProblemType
from s3mgr.schema.problems import URN
from s3mgrd import errors

INTERNAL_DETAIL: Final = "The daemon met an error that nobody foresaw; its log has the details."
INTERNAL_HINT: Final = "Look for the request id in the daemon's log, and report it."


class MalformedRequest(errors.UserError):
    """The request cannot be read at all. Not raised for readable JSON of the wrong shape."""


class InvalidParameter(errors.UserError):
    """A query parameter or a name in the path is unknown, repeated, ill-typed or out of range."""


class UnsupportedMediaType(errors.UserError):
    """The body's Content-Type is not JSON. Not raised when there is none."""


class Unauthenticated(errors.Denied):
    """The connection carries no identity. Not raised for a known identity without the right."""


class NotReady(errors.Unavailable):
    """The daemon runs but has not finished its start."""


class OperationFailed(Exception):
    """An operation that the request waited for ended with *problem*."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem: Final = problem


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems from one error class have in common."""

    type: ProblemType
    status: int
    title: str
    retryable: bool = False


_T = ProblemType
_CREDENTIALS = Kind(_T.CREDENTIALS_REJECTED, 502, "S3 rejects the credentials")
_UNREACHABLE = Kind(_T.BUCKET_UNREACHABLE, 502, "S3 cannot be reached", retryable=True)
_INTERNAL = Kind(_T.INTERNAL, 500, "Internal error")
_BAD_REQUEST = Kind(_T.INVALID_REQUEST, 400, "The request cannot be understood")
_BAD_PARAMETER = Kind(_T.INVALID_REQUEST, 422, "A parameter is not valid")
_BAD_MEDIA_TYPE = Kind(_T.INVALID_REQUEST, 415, "The request body must be JSON")
_INVALID_SPEC = Kind(_T.INVALID_SPEC, 422, "The request body is not valid")
_TOO_LARGE = Kind(_T.BODY_TOO_LARGE, 413, "The request is too large")

ERRORS: Final[dict[type[errors.S3mgrError], Kind]] = {
    errors.S3mgrError: _INTERNAL,
    errors.UserError: _INVALID_SPEC,
    errors.InvalidConfig: _INTERNAL,
    errors.InvalidSpec: _INVALID_SPEC,
    errors.MountpointInvalid: Kind(_T.MOUNTPOINT_INVALID, 422, "The mountpoint cannot be used"),
    errors.TooLarge: _TOO_LARGE,
    errors.NotFound: Kind(_T.NOT_FOUND, 404, "Not found"),
    errors.BucketNotFound: Kind(_T.BUCKET_NOT_FOUND, 404, "The bucket does not exist"),
    errors.Denied: Kind(_T.NOT_PERMITTED, 403, "Not permitted"),
    errors.CredentialsRejected: _CREDENTIALS,
    errors.Conflict: Kind(_T.CONFLICT, 409, "Conflict with the current state"),
    errors.PreconditionFailed: Kind(_T.PRECONDITION_FAILED, 412, "The mount changed meanwhile"),
    errors.NameConflict: Kind(_T.NAME_CONFLICT, 409, "The name is taken"),
    errors.SpecConflict: Kind(_T.SPEC_CONFLICT, 409, "The mount is up with another spec"),
    errors.DirtyData: Kind(_T.DIRTY_DATA, 409, "Data is left that S3 does not have"),
    errors.MountpointBusy: Kind(_T.MOUNTPOINT_BUSY, 409, "Something is mounted there already"),
    errors.NotMounted: Kind(_T.NOT_MOUNTED, 409, "The mount is not up"),
    errors.Unavailable: _UNREACHABLE,
    errors.TimedOut: _UNREACHABLE,
    errors.Stopping: Kind(_T.DRAINING, 503, "The daemon is stopping", retryable=True),
    errors.WorkerLost: Kind(_T.MOUNT_FAILED, 502, "The mount's worker failed", retryable=True),
    errors.Archived: Kind(_T.CONFLICT, 409, "The object is archived"),
    errors.Unsupported: Kind(_T.UNSUPPORTED, 501, "Not supported here"),
    errors.Unforeseen: Kind(
        _T.BUCKET_UNREACHABLE, 502, "S3 refuses for a reason that is not known"
    ),
    errors.Corrupt: _INTERNAL,
    errors.Defect: _INTERNAL,
    MalformedRequest: _BAD_REQUEST,
    InvalidParameter: _BAD_PARAMETER,
    UnsupportedMediaType: _BAD_MEDIA_TYPE,
    Unauthenticated: Kind(_T.UNAUTHENTICATED, 401, "Who asks is not known"),
    NotReady: Kind(_T.NOT_READY, 503, "The daemon is not ready", retryable=True),
}

STATUSES: Final[dict[int, Kind]] = {
    400: _BAD_REQUEST,
    404: ERRORS[errors.NotFound],
    405: Kind(_T.METHOD_NOT_ALLOWED, 405, "The resource does not have that method"),
    408: Kind(_T.REQUEST_TIMEOUT, 408, "The request took too long to arrive", retryable=True),
    413: _TOO_LARGE,
    415: _BAD_MEDIA_TYPE,
    500: _INTERNAL,
}
"""What the HTTP framework itself refuses, by status."""


def kind_of(error: errors.S3mgrError) -> Kind:
    """Return the table's row for the class of *error* or for the nearest class above it."""
    return next(ERRORS[cls] for cls in type(error).__mro__ if cls in ERRORS)


def describe(error: errors.S3mgrError, mount: str | None, instance: str = "") -> Problem:
    """Describe *error* as a problem of *mount* (None: of no mount); *instance* is the request's URN."""
    kind = kind_of(error)
    pointer = getattr(error, "pointer", "")
    return Problem(
        type=URN + kind.type,
        title=kind.title,
        status=kind.status,
        detail=error.detail,
        instance=instance,
        hint=error.hint,
        retryable=kind.retryable,
        mount=mount,
        errors=[FieldError(pointer=pointer, detail=error.detail)] if pointer else [],
    )


def describe_status(status: int, detail: str, instance: str) -> Problem:
    """Describe a refusal by the HTTP framework; a status that is not in the table keeps its number."""
    kind = STATUSES.get(status) or (_INTERNAL if status >= 500 else _BAD_REQUEST)
    return Problem(
        type=URN + kind.type,
        title=kind.title,
        status=status,
        detail=detail,
        instance=instance,
        retryable=kind.retryable,
    )


def describe_unforeseen(instance: str) -> Problem:
    """Describe an exception that is none of ours, without a word of what it was."""
    return Problem(
        type=URN + _INTERNAL.type,
        title=_INTERNAL.title,
        status=_INTERNAL.status,
        detail=INTERNAL_DETAIL,
        instance=instance,
        hint=INTERNAL_HINT,
    )


def describe_failed(problem: Problem, instance: str) -> Problem:
    """Re-address the problem of an operation to the request that waited for it."""
    # An operation of an earlier daemon may carry anything; a status that HTTP cannot send must not get out.
    status = problem.status if 400 <= problem.status <= 599 else _INTERNAL.status
    return msgspec.structs.replace(problem, status=status, instance=instance)


def raise_unless_succeeded(operation: Operation) -> None:
    """Raise what went wrong with an *operation* that has ended; nothing when it succeeded.

    Raises:
        OperationFailed: it failed; carries its problem.
        Conflict: somebody cancelled it.
    """
    if operation.state == "succeeded":
        return
    if operation.state == "cancelled":
        raise errors.Conflict(
            f"The {operation.kind} of '{operation.target}' was cancelled by another request.",
            hint="Look at its state, then try again.",
        )
    raise OperationFailed(operation.error or describe_unforeseen(""))
