"""A daemon for the client's tests: HTTP on a unix socket, wire types and problems, no mounts.

It behaves like s3mgrd where nothing is scripted, records every request, and answers with what a test put
into `script` first.
"""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from s3mgr.schema import (
    AbsentName,
    CacheEntry,
    CacheReport,
    Event,
    FlushReport,
    HiddenKey,
    Info,
    InvalidateReport,
    KernelInfo,
    LogTail,
    Mount,
    MountList,
    MountOptions,
    MountRequest,
    MountSpec,
    MountStatus,
    Operation,
    Problem,
)

WHEN = datetime(2024, 5, 17, 8, 30, tzinfo=UTC)


def make_mount(
    name: str = "logs",
    *,
    bucket: str = "logs",
    mountpoint: str | None = None,
    prefix: str = "",
    generation: int = 1,
    **status: Any,  # noqa: ANN401  any field of MountStatus
) -> Mount:
    """Make a mount as the daemon would report it."""
    return Mount(
        name=name,
        generation=generation,
        owner_uid=0,
        created_at=WHEN,
        desired="mounted",
        has_credentials=True,
        spec=MountSpec(
            bucket=bucket,
            mountpoint=mountpoint or f"/mnt/{name}",
            options=MountOptions(prefix=prefix),
        ),
        status=MountStatus(**{"state": "mounted", "since": WHEN, **status}),
    )


def make_problem(slug: str, status: int, detail: str, **more: Any) -> Problem:  # noqa: ANN401  its fields
    """Make a problem."""
    return Problem(
        type=f"urn:s3mgr:problem:{slug}", title=slug, status=status, detail=detail, **more
    )


def make_operation(state: str = "succeeded", **more: Any) -> Operation:  # noqa: ANN401  its fields
    """Make an operation."""
    fields = {
        "id": "op-1",
        "kind": "unmount",
        "target": "logs",
        "state": state,
        "created_at": WHEN,
        "boot_id": "boot",
    }
    return Operation(**{**fields, **more})


@dataclass(frozen=True)
class Request:
    """What the client sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  JSON
        """The body."""
        return msgspec.json.decode(self.body)


@dataclass
class Answer:
    """What to send back: a wire type, or bytes as they are."""

    status: int
    body: object = b""
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Answer]


class FakeDaemon:
    """The state of the fake, and its socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounts: dict[str, Mount] = {}
        self.requests: list[Request] = []
        self.script: dict[tuple[str, str], list[Answer] | Handler] = {}
        self.operations: list[Operation] = []
        self.events: list[list[Event]] = []
        self.seen = threading.Condition()

    @property
    def host(self) -> str:
        """Its address."""
        return f"unix://{self.path}"

    def add(self, *mounts: Mount) -> None:
        """Have it report *mounts*."""
        self.mounts.update({mount.name: mount for mount in mounts})

    def answer(self, method: str, path: str, *answers: Answer) -> None:
        """Answer the next requests so; the last answer stays."""
        self.script[method, path] = list(answers)

    def refuse(self, method: str, path: str, problem: Problem) -> None:
        """Answer with *problem*."""
        self.answer(method, path, Answer(problem.status, problem))

    def sent(self, method: str) -> list[Request]:
        """The requests with *method* so far."""
        return [request for request in self.requests if request.method == method]

    def wait_for(self, method: str, path: str) -> None:
        """Block until such a request has come."""
        with self.seen:
            assert self.seen.wait_for(
                lambda: any((r.method, r.path) == (method, path) for r in self.requests), 20
            )

    def handle(self, request: Request) -> Answer:
        """Answer one request."""
        scripted = self.script.get((request.method, request.path))
        if callable(scripted):
            return scripted(request)
        if scripted:
            return scripted.pop(0) if len(scripted) > 1 else scripted[0]
        return self._behave(request)

    def _behave(self, request: Request) -> Answer:
        match request.method, unquote(request.path).split("/")[1:]:
            case "GET", ["v1", "mounts"]:
                return Answer(200, MountList(items=list(self.mounts.values()), cursor=7))
            case "GET", ["v1", "operations", _]:
                operation = self.operations[0]
                if len(self.operations) > 1:
                    self.operations.pop(0)
                return Answer(200, operation)
            case "GET", ["v1", "info"]:
                return Answer(200, INFO)
            case "PUT", ["v1", "mounts", name]:
                return self._put(name, request)
            case "DELETE", ["v1", "mounts", name]:
                self.mounts.pop(name, None)
                return Answer(204)
            case method, ["v1", "mounts", name, *action] if name in self.mounts:
                return self._act(method, action, self.mounts[name])
            case _:
                return Answer(404, make_problem("not-found", 404, "There is nothing here."))

    def _put(self, name: str, request: Request) -> Answer:
        known = self.mounts.get(name)
        if known is not None and request.headers.get("if-none-match") == "*":
            return Answer(412, make_problem("precondition-failed", 412, "The mount exists."))
        spec = msgspec.json.decode(request.body, type=MountRequest).spec
        if known is None:
            mount = msgspec.structs.replace(make_mount(name), spec=spec)
        elif known.spec == spec:
            mount = known
        else:
            mount = msgspec.structs.replace(known, spec=spec, generation=known.generation + 1)
        self.mounts[name] = mount
        return Answer(201 if known is None else 200, mount)

    def _act(self, method: str, action: list[str], mount: Mount) -> Answer:
        match method, action:
            case "GET", []:
                return Answer(200, mount)
            case "GET", ["cache"]:
                return Answer(200, CACHE)
            case "GET", ["logs"]:
                return Answer(200, LogTail(lines=["first", "second"], offset=13))
            case "POST", ["flush"]:
                return Answer(
                    200, FlushReport(uploaded_files=3, remaining_files=0, remaining_bytes=0)
                )
            case "POST", ["invalidate"]:
                return Answer(200, InvalidateReport(listings=2, entries=40))
            case "POST", ["restart"]:
                return Answer(200, make_operation(kind="restart"))
            case _:
                return Answer(405, make_problem("method-not-allowed", 405, "No."))


INFO = Info(
    version="0.1.0",
    api_version="1",
    pid=4242,
    boot_id="boot",
    started_at=WHEN,
    user_mode=False,
    state_dir="/var/lib/s3mgr",
    cache_dir="/var/cache/s3mgr",
    worker_user="s3mgr",
    kernel=KernelInfo(release="6.18.0", fuse_minor=45, resend=True),
    libraries={"pyfuse3": "3.5.0"},
    warnings=["the disk of the cache is nearly full"],
)
CACHE = CacheReport(
    entries_total=12,
    directories_listed=3,
    hidden_keys=1,
    metadata_bytes=4096,
    data_bytes=1 << 20,
    data_limit_bytes=1 << 30,
    staged_bytes=0,
    metadata_hits=30,
    metadata_misses=10,
    data_hits=0,
    data_misses=0,
    listing_hits=1,
    listing_misses=1,
    absent_names=1,
    items=[
        CacheEntry(
            path="a/b.txt",
            kind="file",
            inode=17,
            size_bytes=2048,
            age_s=3.5,
            source="request",
            fresh_s=26.5,
            attributes="known",
        )
    ],
    hidden=[HiddenKey(key="a//b\n", reason="empty component")],
    absent=[AbsentName(name="nothing", fresh_s=0)],
)


class _RequestHandler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        split = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(
            self.command,
            split.path,
            dict(parse_qsl(split.query)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(length),
        )
        fake = self.server.fake
        with fake.seen:
            fake.requests.append(request)
            fake.seen.notify_all()
        if request.path == "/v1/events" and ("GET", "/v1/events") not in fake.script:
            self._stream(fake)
            return
        answer = fake.handle(request)
        body = answer.body if isinstance(answer.body, bytes) else msgspec.json.encode(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("X-Request-Id", "request-1")
        if answer.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, fake: FakeDaemon) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b"retry: 2000\n\n: nothing new\n\n")
        for event in fake.events.pop(0) if fake.events else []:
            data = msgspec.json.encode(event)
            frame = b"id: %d\nevent: %b\ndata: %b\n\n" % (event.cursor, event.type.encode(), data)
            # Split where it hurts: a frame need not arrive in one piece.
            self._chunk(frame[:11])
            self._chunk(frame[11:])
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, *_args: object) -> None:
        """Stay silent."""

    def address_string(self) -> str:
        """A unix peer has no address."""
        return "unix"


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    fake: FakeDaemon

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is part of the tests."""


@contextmanager
def running(path: Path) -> Iterator[FakeDaemon]:
    """Serve a fake on *path*."""
    fake = FakeDaemon(path)
    server = _Server(str(path), _RequestHandler)
    server.fake = fake
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
