"""A small HTTP client over a unix socket on trio: everything is visible, nothing is retried or pooled."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import trio

TIMEOUT_S = 20


@dataclass
class Answer:
    """A complete answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """The problem's type."""
        assert self.headers["content-type"] == "application/problem+json", self
        slug: str = self.json["type"].removeprefix("urn:s3mgr:problem:")
        return slug


@dataclass
class Client:
    """Opens one connection per request."""

    path: Path
    headers: dict[str, str] = field(default_factory=dict)

    async def request(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """Send a request and read the whole answer; *body* is sent as JSON, *raw* as it is."""
        if raw is None and body is not None:
            raw = json.dumps(body).encode()
        async with self.open(method, target, raw=raw, headers=headers) as answer:
            return Answer(answer.status, answer.headers, b"".join([c async for c in answer.chunks]))

    async def get(self, target: str, **headers: str) -> Answer:
        """GET with the given headers, underscores standing for dashes."""
        return await self.request(
            "GET", target, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator["Stream"]:
        """Send a request and give its answer's head and, chunk by chunk, its body."""
        lines = {"Host": "localhost", "Connection": "close", **self.headers, **(headers or {})}
        if raw is not None:
            lines.setdefault("Content-Type", "application/json")
            if "Transfer-Encoding" not in lines:
                lines.setdefault("Content-Length", str(len(raw)))
        head = f"{method} {target} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        with trio.fail_after(TIMEOUT_S):
            connection = await trio.open_unix_socket(str(self.path))
        async with connection:
            stream = Stream(connection, method)
            # A body may be refused before it was sent whole; the answer says why.
            with contextlib.suppress(trio.BrokenResourceError):
                await connection.send_all(head.encode("latin-1") + (raw or b""))
            with trio.fail_after(TIMEOUT_S):
                await stream.read_head()
            yield stream


class Stream:
    """An answer whose body is read as it comes."""

    def __init__(self, connection: trio.SocketStream, method: str) -> None:
        self.connection = connection
        self._parser = h11.Connection(h11.CLIENT)
        # The parser must know the method to know whether a body follows.
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        self._parser.send(h11.EndOfMessage())
        self.status = 0
        self.headers: dict[str, str] = {}

    async def read_head(self) -> None:
        """Read up to the end of the headers."""
        event = await self._next()
        assert isinstance(event, h11.Response), event
        self.status = event.status_code
        self.headers = {k.decode(): v.decode() for k, v in event.headers}

    @property
    async def chunks(self) -> AsyncIterator[bytes]:
        """The body."""
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event

    async def chunk(self) -> bytes | None:
        """Read the next chunk; None at the end."""
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def _next(self) -> object:
        while True:
            event = self._parser.next_event()
            if event is not h11.NEED_DATA:
                return event
            with trio.fail_after(TIMEOUT_S):
                self._parser.receive_data(await self.connection.receive_some(65536))
