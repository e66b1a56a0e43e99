"""A typed client of the daemon's API: one method per route, wire types in and out.

    from s3mgr.api import Client
    with_default_socket = Client.connect()
    for mount in with_default_socket.list_mounts().items: ...

Synchronous. Answers are decoded leniently: fields that this version does not know are ignored. Every method
may raise what `s3mgr.transport` raises, `BadAnswer`, and `ProblemError` for any answer that is not a success.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from s3mgr.errors import BadAnswer, InvalidRequest, ProblemError
from s3mgr.schema import (
    ArchivedList,
    CachedFiles,
    CachePaths,
    CacheReport,
    ConflictList,
    Event,
    EvictReport,
    FlushReport,
    FlushRequest,
    HurryRequest,
    Info,
    InvalidateReport,
    InvalidateRequest,
    LogTail,
    Mount,
    MountList,
    MountRequest,
    MountStats,
    Operation,
    PinList,
    Problem,
    RestoreConflictRequest,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UnpinReport,
    UploadQueue,
)
from s3mgr.transport import (
    HOST_VARIABLE,
    Address,
    Response,
    Transport,
    default_address,
    parse_address,
    user_socket,
)

UnmountMode = Literal["clean", "lazy", "discard"]
Trace = Callable[[str], None]
T = TypeVar("T")

# The daemon sends a comment every 15 s; three missed ones mean that it is gone.
EVENT_SILENCE_S: Final = 45.0
# S3 has to be asked, and may be slow.
RESTORE_PATIENCE_S: Final = 60.0
# All that is known of a large tree is looked through.
CACHE_PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a PUT, DELETE or restart answered.

    Attributes:
        created: a new mount was created.
        operation_id: the work still goes on under this id; None: it is done.
        mount: the mount as it is after a PUT that is done.
    """

    created: bool
    operation_id: str | None
    mount: Mount | None = None


class Client:
    """The API behind one address. Cheap to make; connects per request."""

    def __init__(self, transport: Transport, *, trace: Trace | None = None) -> None:
        """Speak through *transport*.

        Args:
            transport: how to reach the daemon.
            trace: told one line about each request, without bodies.
        """
        self._transport = transport
        self._trace = trace

    @classmethod
    def connect(
        cls,
        host: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        trace: Trace | None = None,
    ) -> "Client":
        """Make a client of *host*, or of the default address (see `s3mgr.transport.default_address`).

        Nothing is sent yet.

        Raises:
            InvalidAddress: *host* or ``S3MGR_HOST`` is malformed.
        """
        variables = os.environ if environ is None else environ
        address = parse_address(host) if host else default_address(variables, uid=os.geteuid())
        return cls(
            Transport(address, timeout_s=timeout_s, own_socket=user_socket(variables)), trace=trace
        )

    @property
    def address(self) -> Address:
        """Where the daemon is."""
        return self._transport.address

    # Mounts

    def list_mounts(self, *, state: str | None = None, label: str | None = None) -> MountList:
        """List the mounts that this user may see."""
        return self.decode(self.list_mounts_json(state=state, label=label), MountList)

    def list_mounts_json(self, *, state: str | None = None, label: str | None = None) -> bytes:
        """List mounts as the daemon wrote them, fields that this version does not know included."""
        return self._call("GET", "/v1/mounts", query={"state": state, "label": label}).body

    def get_mount(self, name: str) -> Mount:
        """Get spec and status of one mount."""
        return self.decode(self.get_mount_json(name), Mount)

    def get_mount_json(self, name: str) -> bytes:
        """Get one mount as the daemon wrote it."""
        return self._call("GET", _mount(name)).body

    def put_mount(
        self, name: str, request: MountRequest, *, wait_s: float | None, only_create: bool = False
    ) -> Accepted:
        """Store the spec and have it mounted.

        Args:
            name: identity of the mount.
            request: spec and credentials.
            wait_s: wait this long for it to be mounted; None: only store the wish.
            only_create: refuse (412) if the name exists.
        """
        headers = {} if wait_s is not None else {"Prefer": "respond-async"}
        if only_create:
            headers["If-None-Match"] = "*"
        try:
            body = msgspec.json.encode(request)
        except UnicodeEncodeError as exc:
            raise InvalidRequest("the request holds text that is not valid UTF-8") from exc
        answer = self._call(
            "PUT",
            _mount(name),
            query={"wait_s": wait_s},
            body=body,
            headers=headers,
            patience_s=wait_s or 0,
        )
        accepted = _accepted(answer)
        if accepted.operation_id is not None:
            return accepted
        return replace(accepted, mount=self.decode(answer.body, Mount))

    def delete_mount(
        self,
        name: str,
        *,
        mode: UnmountMode = "clean",
        timeout_s: float | None = None,
        keep: bool = False,
        wait_s: float | None = 30.0,
    ) -> Accepted:
        """Unmount and, unless *keep*, forget. A mount that does not exist is a success.

        Args:
            name: identity of the mount.
            mode: ``clean`` drains first; ``lazy`` detaches first; ``discard`` drops what S3 does not have.
            timeout_s: the daemon gives up draining after this; None: its default.
            keep: keep the spec, so that it can be mounted again.
            wait_s: wait this long for the end; None: do not wait.
        """
        query = {
            "mode": mode,
            "timeout_s": timeout_s,
            "keep": "true" if keep else None,
            "wait_s": wait_s,
        }
        headers = {} if wait_s is not None else {"Prefer": "respond-async"}
        return _accepted(
            self._call("DELETE", _mount(name), query=query, headers=headers, patience_s=wait_s or 0)
        )

    def restart_mount(self, name: str, *, wait_s: float | None = 30.0) -> Accepted:
        """Replace the worker on the live connection."""
        headers = {} if wait_s is not None else {"Prefer": "respond-async"}
        return _accepted(
            self._call(
                "POST",
                _mount(name, "restart"),
                query={"wait_s": wait_s},
                headers=headers,
                patience_s=wait_s or 0,
            )
        )

    def flush_mount(self, name: str, *, timeout_s: float) -> FlushReport:
        """Upload what S3 does not have yet, and wait at most *timeout_s*."""
        answer = self._call(
            "POST",
            _mount(name, "flush"),
            body=msgspec.json.encode(FlushRequest(timeout_s=timeout_s)),
            patience_s=timeout_s,
        )
        return self.decode(answer.body, FlushReport)

    def invalidate_mount(self, name: str, path: str = "") -> InvalidateReport:
        """Forget listings and names below *path*, which is relative to the mount."""
        answer = self._call(
            "POST",
            _mount(name, "invalidate"),
            body=msgspec.json.encode(InvalidateRequest(path=path)),
        )
        return self.decode(answer.body, InvalidateReport)

    def list_conflicts(
        self, name: str, *, cursor: str | None = None, limit: int = 100
    ) -> ConflictList:
        """Get one page of the data that lost against other writers, and the totals."""
        query = {"cursor": cursor, "limit": limit}
        answer = self._call("GET", _mount(name, "conflicts"), query=query)
        return self.decode(answer.body, ConflictList)

    def restore_conflict(
        self, name: str, conflict_id: int, *, path: str | None = None, partial: bool = False
    ) -> RestoredConflict:
        """Make a file of a conflict copy: at *path*, which must not exist, or beside the original."""
        try:
            body = msgspec.json.encode(RestoreConflictRequest(path=path, partial=partial))
        except UnicodeEncodeError as exc:
            raise InvalidRequest("the path is not valid UTF-8") from exc
        answer = self._call(
            "POST",
            _mount(name, f"conflicts/{conflict_id}/restore"),
            body=body,
            patience_s=RESTORE_PATIENCE_S,
        )
        return self.decode(answer.body, RestoredConflict)

    def discard_conflict(self, name: str, conflict_id: int) -> None:
        """Throw a conflict copy away, for good."""
        self._call("DELETE", _mount(name, f"conflicts/{conflict_id}"))

    def list_archived(
        self, name: str, path: str = "", *, cursor: str | None = None, limit: int = 100
    ) -> ArchivedList:
        """Get one page of the archived objects at *path* and below."""
        query = {"path": path, "cursor": cursor, "limit": limit}
        answer = self._call(
            "GET", _mount(name, "archived"), query=query, patience_s=RESTORE_PATIENCE_S
        )
        return self.decode(answer.body, ArchivedList)

    def restore_objects(self, name: str, request: RestoreRequest) -> RestoreReport:
        """Have S3 restore a page of archived objects."""
        answer = self._call(
            "POST",
            _mount(name, "archived/restore"),
            body=msgspec.json.encode(request),
            patience_s=RESTORE_PATIENCE_S,
        )
        return self.decode(answer.body, RestoreReport)

    def mount_queue(self, name: str, *, cursor: str | None = None, limit: int = 100) -> UploadQueue:
        """Get one page of what waits to be uploaded in the background, and the totals."""
        query = {"cursor": cursor, "limit": limit}
        return self.decode(self._call("GET", _mount(name, "queue"), query=query).body, UploadQueue)

    def pause_queue(self, name: str) -> UploadQueue:
        """Hold uploads in the background back, until `resume_queue`; gives the totals."""
        return self.decode(self._call("POST", _mount(name, "queue/pause")).body, UploadQueue)

    def resume_queue(self, name: str) -> UploadQueue:
        """Let uploads in the background go on; gives the totals."""
        return self.decode(self._call("POST", _mount(name, "queue/resume")).body, UploadQueue)

    def hurry_upload(self, name: str, path: str) -> UploadQueue:
        """Have the file at *path* uploaded next; gives the totals."""
        try:
            body = msgspec.json.encode(HurryRequest(path=path))
        except UnicodeEncodeError as exc:
            raise InvalidRequest("the path is not valid UTF-8") from exc
        answer = self._call("POST", _mount(name, "queue/hurry"), body=body)
        return self.decode(answer.body, UploadQueue)

    def mount_stats(self, name: str) -> MountStats:
        """Get the counters of the mount's worker."""
        return self.decode(self._call("GET", _mount(name, "stats")).body, MountStats)

    def mount_cache(
        self, name: str, *, path: str = "", cursor: str | None = None, limit: int = 1000
    ) -> CacheReport:
        """Get totals of the mount's caches and one page of entries below *path*."""
        query = {"path": path or None, "cursor": cursor, "limit": limit}
        return self.decode(self._call("GET", _mount(name, "cache"), query=query).body, CacheReport)

    def warm_cache(
        self, name: str, paths: Sequence[str], *, pin: bool = False, wait_s: float | None = 30.0
    ) -> Operation:
        """Bring files into the mount's block cache, for good with *pin*; the work may go on after *wait_s*."""
        answer = self._call(
            "POST",
            _mount(name, "cache/pin" if pin else "cache/warm"),
            query={"wait_s": wait_s},
            body=_paths(paths),
            headers={} if wait_s is not None else {"Prefer": "respond-async"},
            patience_s=wait_s or 0,
        )
        return self.decode(answer.body, Operation)

    def unpin_cache(self, name: str, paths: Sequence[str]) -> UnpinReport:
        """Take back pins of the mount's block cache."""
        answer = self._call(
            "POST", _mount(name, "cache/unpin"), body=_paths(paths), patience_s=CACHE_PATIENCE_S
        )
        return self.decode(answer.body, UnpinReport)

    def evict_cache(self, name: str, paths: Sequence[str]) -> EvictReport:
        """Give up what is in the mount's block cache of files."""
        answer = self._call(
            "POST", _mount(name, "cache/evict"), body=_paths(paths), patience_s=CACHE_PATIENCE_S
        )
        return self.decode(answer.body, EvictReport)

    def list_pins(self, name: str) -> PinList:
        """Get the pins of the mount's block cache."""
        answer = self._call("GET", _mount(name, "cache/pins"), patience_s=CACHE_PATIENCE_S)
        return self.decode(answer.body, PinList)

    def cached_files(self, name: str, *, by: str = "bytes", limit: int = 20) -> CachedFiles:
        """Get the files that lead in the mount's block cache, by bytes, hits or misses."""
        query = {"by": by, "limit": limit}
        answer = self._call("GET", _mount(name, "cache/files"), query=query)
        return self.decode(answer.body, CachedFiles)

    def mount_logs(self, name: str, *, lines: int = 100, offset: int | None = None) -> LogTail:
        """Get the last *lines* lines of the worker's log, or at most so many after *offset*."""
        query = {"lines": lines, "offset": offset}
        return self.decode(self._call("GET", _mount(name, "logs"), query=query).body, LogTail)

    # Operations, events, the daemon

    def get_operation(self, operation_id: str, *, wait_s: float = 0.0) -> Operation:
        """Get the state and progress of long work, once it has ended or after *wait_s*."""
        answer = self._call(
            "GET",
            f"/v1/operations/{quote(operation_id, safe='')}",
            query={"wait_s": wait_s or None},
            patience_s=wait_s,
        )
        return self.decode(answer.body, Operation)

    @contextmanager
    def events(self, *, since: int | None = None) -> Iterator[Iterator[Event]]:
        """Subscribe to events after the cursor *since*; None: only new ones.

        The iterator ends when the daemon ends the stream; subscribe again with the last event's cursor.
        """
        query = {"since": since}
        target = _target("/v1/events", query)
        with self._transport.stream(target, silence_s=EVENT_SILENCE_S) as (answer, lines):
            self._check(answer)
            yield self._events(lines)

    def _events(self, lines: Iterator[bytes]) -> Iterator[Event]:
        data: list[bytes] = []
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    data.append(value.removeprefix(b" "))
            elif data:
                # `id` and `event` repeat what the event itself says.
                yield self.decode(b"\n".join(data), Event)
                data = []

    def info(self) -> Info:
        """Get the daemon's version, kernel and warnings."""
        return self.decode(self._call("GET", "/v1/info").body, Info)

    def decode(self, body: bytes, type_: type[T]) -> T:
        """Read an answer of the daemon.

        Raises:
            BadAnswer: it is not what this version understands.
        """
        try:
            return msgspec.json.decode(body, type=type_)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BadAnswer(
                f"cannot understand the daemon's answer: {exc}",
                hint="client and daemon may be of different versions: s3mgr version --verbose",
            ) from exc

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,  # Any: whatever str() makes a parameter of
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience_s: float = 0.0,
    ) -> Response:
        target = _target(path, query or {})
        begun = time.monotonic()
        answer = self._transport.request(
            method, target, body=body, headers=headers, patience_s=patience_s
        )
        if self._trace is not None:
            took_ms = (time.monotonic() - begun) * 1000
            request_id = answer.headers.get("x-request-id", "-")
            self._trace(f"{method} {target} {answer.status} {took_ms:.0f} ms {request_id}")
        self._check(answer)
        return answer

    def _check(self, answer: Response) -> None:
        if 200 <= answer.status < 300:
            return
        try:
            problem = msgspec.json.decode(answer.body, type=Problem)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BadAnswer(
                f"the daemon answered {answer.status} without saying why",
                hint="is this the socket of s3mgrd? It can be set with --host or " + HOST_VARIABLE,
            ) from exc
        raise ProblemError(problem)


def _mount(name: str, action: str = "") -> str:
    path = f"/v1/mounts/{quote(name, safe='')}"
    return f"{path}/{action}" if action else path


def _paths(paths: Sequence[str]) -> bytes:
    return msgspec.json.encode(CachePaths(paths=list(paths)))


def _target(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _accepted(answer: Response) -> Accepted:
    if answer.status != 202:
        return Accepted(created=answer.status == 201, operation_id=None)
    location = answer.headers.get("location", "")
    operation_id = location.rpartition("/")[2]
    if not operation_id:
        raise BadAnswer("the daemon accepted the work but did not say under which operation")
    return Accepted(created=False, operation_id=operation_id)
