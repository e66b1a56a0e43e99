"""Requests at the edge: bytes and strings become typed values here, or a problem.

What a handler gets is a `Call`: who asks, the parsed query and body, and the service. It never sees HTTP's strings.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
import trio
from msgspec import Meta

from s3mgr.schema import Operation
from s3mgr.schema.mounts import NAME_PATTERN
from s3mgrd.api.idempotency import Restarts
from s3mgrd.api.problems import InvalidParameter, MalformedRequest, UnsupportedMediaType
from s3mgrd.api.settings import ApiSettings
from s3mgrd.errors import InvalidSpec, NotFound, PreconditionFailed, Stopping
from s3mgrd.mounts.service import MountService, Principal

Q = TypeVar("Q")
B = TypeVar("B")
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

MOUNT_NAME: Final = re.compile(NAME_PATTERN.rstrip("$"))
CONFLICT_ID: Final = re.compile(r"[1-9][0-9]{0,17}")
OPERATION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ENTITY_TAG: Final = re.compile(r'(W/)?"([^"]*)"')
_ENTITY_TAGS: Final = re.compile(rf"\s*{_ENTITY_TAG.pattern}(?:\s*,\s*{_ENTITY_TAG.pattern})*\s*")
_GENERATION: Final = re.compile(r"[1-9][0-9]{0,17}|0")
# msgspec: "Expected `int`, got `str` - at `$.spec.options.uid`"; for the key of an object "at `key` in `$.labels`".
_LOCATION: Final = re.compile(r"^(?P<what>.*) - at (?:`key` in )?`\$(?P<path>[^`]*)`$", re.DOTALL)
_FIELD: Final = re.compile(
    r"^Object (?:contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL
)
_STEP: Final = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<index>\d+)\]|(?P<some>\[\.\.\.\])")
JSON_TYPES: Final = frozenset({"application/json", "application/merge-patch+json"})


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route without query parameters."""


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page of a list that is given with its totals."""

    cursor: Annotated[
        Annotated[str, Meta(max_length=64)] | None,
        Meta(description="`cursor` of the page before."),
    ] = None
    limit: Annotated[
        int, Meta(ge=0, le=100, description="Most items; 0 gives the totals only.")
    ] = 100


class TreeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page of what lies below a path. A route adds its `limit`."""

    path: Annotated[
        str,
        Meta(
            max_length=4096, description="A directory of the mount, or a file; empty for its root."
        ),
    ] = ""
    cursor: Annotated[
        Annotated[str, Meta(max_length=8192)] | None,
        Meta(description="`cursor` of the page before."),
    ] = None


@dataclass(frozen=True, slots=True)
class Environment:
    """What all requests share.

    Attributes:
        service: the domain.
        settings: the limits.
        stopping: set when the server begins to stop; waits end early then.
        document: the OpenAPI document, JSON.
        restarts: what keyed restarts have started.
    """

    service: MountService
    settings: ApiSettings
    stopping: trio.Event
    document: bytes
    restarts: Restarts


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """One request, parsed.

    Attributes:
        env: what all requests share.
        who: the caller.
        method: the HTTP method.
        path_args: the variable parts of the path; use `name`, `operation_id` and `conflict_id`.
        headers: the request's headers; names are in Title-Case, repeated ones joined by commas.
        query: the query parameters.
        body: the body; None where the route has none.
        nursery: ends with the request; for tasks that feed a streamed answer.
    """

    env: Environment
    who: Principal
    method: str
    path_args: Mapping[str, str]
    headers: Mapping[str, str]
    query: Q
    body: B
    nursery: trio.Nursery

    @property
    def name(self) -> str:
        """The mount's name in the path.

        Raises:
            InvalidParameter: no mount can have that name.
        """
        name = self.path_args["name"]
        if not MOUNT_NAME.fullmatch(name):
            raise InvalidParameter(
                f"{name!a} cannot be the name of a mount.",
                hint="A name has up to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit.",
            )
        return name

    @property
    def operation_id(self) -> str:
        """The operation's id in the path.

        Raises:
            NotFound: no operation can have that id.
        """
        operation_id = self.path_args["id"]
        if not OPERATION_ID.fullmatch(operation_id):
            raise NotFound("There is no such operation.")
        return operation_id

    @property
    def conflict_id(self) -> int:
        """The conflict copy's id in the path.

        Raises:
            NotFound: no copy can have that id.
        """
        conflict_id = self.path_args["id"]
        if not CONFLICT_ID.fullmatch(conflict_id):
            raise NotFound("There is no such conflict copy.")
        return int(conflict_id)

    @property
    def service(self) -> MountService:
        """The domain."""
        return self.env.service

    @property
    def respond_async(self) -> bool:
        """Whether the caller prefers not to wait (RFC 7240)."""
        wishes = self.headers.get("Prefer", "").split(",")
        return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)

    @property
    def only_create(self) -> bool:
        """Whether the caller sent ``If-None-Match: *``.

        Raises:
            MalformedRequest: anything but ``*``: no version of a mount can be what must *not* be there.
        """
        header = self.headers.get("If-None-Match")
        if header is not None and header.strip() != "*":
            raise MalformedRequest("If-None-Match can only be *.")
        return header is not None

    def expected_generation(self) -> int | None:
        """Evaluate If-Match (RFC 9110 §13.1.1) against the mount in the path.

        Returns:
            The generation that must still be there when the change is made; None: the caller does not care.

        Raises:
            PreconditionFailed: the mount is not there, or its generation is none of those named.
            MalformedRequest: the header is not a list of entity tags.
        """
        header = self.headers.get("If-Match")
        if header is None:
            return None
        try:
            generation = self.service.get_mount(self.who, self.name).generation
        except NotFound as exc:
            raise PreconditionFailed(
                f"The mount '{self.name}' does not exist, and If-Match asks for it.",
                hint="Create it without If-Match.",
            ) from exc
        if header.strip() != "*" and generation not in _generations(header):
            raise PreconditionFailed(
                f"The mount '{self.name}' is at generation {generation}, not at the one in If-Match.",
                hint="Read it again and decide anew.",
            )
        return generation


def _generations(header: str) -> set[int]:
    """Read a list of entity tags; weak ones and those that are no generation match nothing."""
    if not _ENTITY_TAGS.fullmatch(header):
        raise MalformedRequest('If-Match is not a list of entity tags such as "3".')
    return {
        int(tag)
        for weak, tag in _ENTITY_TAG.findall(header)
        if not weak and _GENERATION.fullmatch(tag)
    }


async def settle(
    call: Call[Any, Any], operation: Operation, wait_s: float
) -> Operation:  # Any: of every route
    """Wait up to *wait_s* seconds, or until the server stops, for the end of *operation*.

    Cancelling stops the waiting; the operation goes on.

    Returns:
        The operation as it is now; it may still be running.
    """
    if wait_s > 0:
        with trio.move_on_after(wait_s):
            try:
                return await until_stopping(
                    call.env.stopping, lambda: call.service.wait_operation(operation.id)
                )
            except* Stopping:
                pass
    return call.service.get_operation(call.who, operation.id)


async def until_stopping(stopping: trio.Event, wait: Callable[[], Awaitable[T]]) -> T:
    """Await *wait*, but not past the beginning of the server's stop.

    Raises:
        ExceptionGroup: of what *wait* raises.
        Stopping: the server stops.
    """
    results: list[T] = []

    async def give_up() -> None:
        await stopping.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        results.append(await wait())
        nursery.cancel_scope.cancel()
    if not results:
        raise Stopping("The daemon is stopping.", hint="Ask again when it is back.")
    return results[0]


def parse_query(args: Mapping[str, list[str]], shape: type[S]) -> S:
    """Read query parameters into *shape*.

    Raises:
        InvalidParameter: one is unknown, given twice, of the wrong type or out of range.
    """
    known = shape.__struct_fields__
    hint = f"Parameters of this resource: {', '.join(known) or 'none'}."
    for name, values in args.items():
        if name not in known:
            raise InvalidParameter(f"There is no parameter {name!a}.", hint=hint)
        if len(values) > 1:
            raise InvalidParameter(f"The parameter {name!a} is given more than once.")
    try:
        return msgspec.convert(
            {name: values[0] for name, values in args.items()}, shape, strict=False
        )
    except msgspec.ValidationError as exc:
        pointer, what = locate(str(exc))
        name = pointer.removeprefix("/")
        raise InvalidParameter(f"The parameter '{name}' is not valid: {what}.", hint=hint) from exc


def parse_body(raw: bytes, content_type: str, shape: type[B], *, required: bool) -> B:
    """Read a JSON body into *shape*; where it is not *required*, an empty one is an empty object.

    Raises:
        UnsupportedMediaType: it says that it is something else than JSON.
        MalformedRequest: it is not JSON in UTF-8.
        InvalidSpec: it is JSON, but a field is unknown, missing, ill-typed or out of range; `pointer` tells which.
    """
    if not raw and not required:
        raw = b"{}"
        content_type = ""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type and media_type not in JSON_TYPES:
        raise UnsupportedMediaType(
            f"The body's Content-Type is {media_type!a}.",
            hint="Send JSON with the header Content-Type: application/json.",
        )
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as exc:
        pointer, what = locate(str(exc))
        raise InvalidSpec(
            f"{what} at '{pointer}'." if pointer else f"{what}.",
            hint="The document at /openapi.json has every field with its type and range.",
            pointer=pointer,
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedRequest(f"The body is not JSON: {exc}.") from exc


def locate(message: str) -> tuple[str, str]:
    """Split a message of msgspec into an RFC 6901 pointer and what is wrong there.

    An unknown or missing field is pointed at itself, not at the object around it. Keys of free-form objects are not
    in msgspec's messages; the pointer then ends at the object.
    """
    located = _LOCATION.match(message)
    what, path = (located["what"], located["path"]) if located else (message, "")
    pointer = ""
    for step in _STEP.finditer(path):
        if step["some"]:
            break
        pointer += "/" + _escape(step["field"] or step["index"])
    if field := _FIELD.match(what):
        pointer += "/" + _escape(field["name"])
    return pointer, what


def _escape(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")
