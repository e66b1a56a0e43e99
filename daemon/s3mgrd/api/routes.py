"""How a resource declares its routes: once, for the application and for the OpenAPI document.

A handler takes a `Call` and returns a `Reply`; everything that HTTP adds is declared beside it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import msgspec

from s3mgr.schema import Operation, ProblemType
from s3mgrd.api.requests import Call

Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B")

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
PROBLEM_JSON: Final = "application/problem+json"

COMMON_PROBLEMS: Final = (
    ProblemType.INVALID_REQUEST,
    ProblemType.UNAUTHENTICATED,
    ProblemType.NOT_PERMITTED,
    ProblemType.METHOD_NOT_ALLOWED,
    ProblemType.INTERNAL,
)
"""What every route may answer."""

BODY_PROBLEMS: Final = (
    ProblemType.INVALID_SPEC,
    ProblemType.BODY_TOO_LARGE,
    ProblemType.REQUEST_TIMEOUT,
)
"""What every route with a body may answer."""

WORKER_PROBLEMS: Final = (
    ProblemType.NOT_FOUND,
    ProblemType.NOT_MOUNTED,
    ProblemType.MOUNT_FAILED,
)
"""What every route that asks a mount's worker may answer."""

STORE_PROBLEMS: Final = (*WORKER_PROBLEMS, ProblemType.BUCKET_UNREACHABLE)
"""What it may answer where the worker asks S3."""


class Stream(Protocol):
    """The body of an answer that does not end by itself."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Let go of everything; called exactly once, also when the client vanished."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, before it becomes HTTP.

    Attributes:
        status: the HTTP status; problems are raised, not returned.
        body: what is sent as JSON; None: nothing.
        headers: more headers.
        stream: instead of *body*, bytes as they come.
        raw: instead of *body*, JSON that is ready.
    """

    status: int
    body: msgspec.Struct | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One kind of success, for the document.

    Attributes:
        status: the HTTP status.
        description: when it is given.
        body: the type of its JSON; None: no body, or one that *media_type* describes.
        headers: headers that come with it.
        media_type: the type of the body where it is not a wire type as JSON.
    """

    status: int
    description: str
    body: type[msgspec.Struct] | None = None
    headers: tuple[str, ...] = ()
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Route(Generic[Q, B]):
    """One method of one path.

    Attributes:
        method: the HTTP method; GET brings HEAD with it.
        path: with variable parts in braces.
        handler: its docstring's first line is the summary in the document.
        query: what its query parameters are parsed into; unknown ones are refused.
        answers: every success.
        problems: the problems beyond those of all routes.
        body: what its body is parsed into; None: a body is ignored.
        body_required: False: an empty body means an empty object.
        request_headers: headers that it understands.
    """

    method: Literal["GET", "PUT", "PATCH", "POST", "DELETE"]
    path: str
    handler: Callable[[Call[Q, B]], Awaitable[Reply]]
    query: type[Q]
    answers: tuple[Answer, ...]
    problems: tuple[ProblemType, ...] = ()
    body: type[B] | None = None
    body_required: bool = True
    request_headers: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line that says what it does."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]

    @property
    def all_problems(self) -> tuple[ProblemType, ...]:
        """Every problem that it may answer, without repetition."""
        bodies = BODY_PROBLEMS if self.body is not None else ()
        return tuple(dict.fromkeys((*COMMON_PROBLEMS, *bodies, *self.problems)))


AnyRoute = Route[Any, Any]  # Any: a table of routes mixes query and body types
AnyCall = Call[Any, Any]  # Any: as above

ACCEPTED: Final = Answer(
    202,
    "Not settled yet: the work goes on, follow the operation.",
    Operation,
    ("Location", "Preference-Applied"),
)


def accepted(operation: Operation, *, preferred: bool) -> Reply:
    """Answer 202 for *operation*, which goes on; *preferred*: the caller asked not to wait."""
    headers = {"Location": f"/v1/operations/{operation.id}"}
    if preferred:
        headers["Preference-Applied"] = "respond-async"
    return Reply(202, operation, headers)
