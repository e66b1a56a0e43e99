"""A server that does what a test says, byte for byte, in the test's own event loop."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(slots=True)
class Request:
    """One request as it came over the wire; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """What to send. `cut`: close the connection after that many bytes; 0 closes it without a word.

    `length`: what Content-Length claims, instead of the body's.
    """

    status: str = "200 OK"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    cut: int | None = None
    hang: bool = False
    """Never answer, until the client goes away."""

    def encode(self, *, head: bool) -> bytes:
        lines = [f"HTTP/1.1 {self.status}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines.append(f"Content-Length: {len(self.body) if self.length is None else self.length}")
        raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if head else self.body)
        return raw if self.cut is None else raw[: self.cut]


def error(status: str, code: str, message: str = "", **fields: str) -> Answer:
    """Make an error answer as S3 does."""
    inner = "".join(f"<{name}>{text}</{name}>" for name, text in fields.items())
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{inner}</Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


Handler = Callable[[Request], Answer | Awaitable[Answer]]


@dataclass(slots=True)
class ScriptedServer:
    """The running server: where it is, what it was asked, how many connections are open."""

    port: int
    scheme: str
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@asynccontextmanager
async def serve(
    script: list[Answer] | Handler, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    """Serve on loopback: the answers of a list in turn (the last one for ever), or what a function says."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    server = ScriptedServer(port, "https" if tls else "http")
    answers = list(script) if isinstance(script, list) else None

    async def answer(request: Request) -> Answer:
        if answers is not None:
            return answers.pop(0) if len(answers) > 1 else answers[0]
        assert not isinstance(script, list)
        result = script(request)
        return result if isinstance(result, Answer) else await result

    async def handle(stream: trio.abc.Stream) -> None:
        server.connections += 1
        try:
            if tls is not None:
                stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            async with stream:
                buffer = b""
                while True:
                    got = await _read_request(stream, buffer)
                    if got is None:
                        return
                    request, buffer = got
                    server.requests.append(request)
                    reply = await answer(request)
                    if reply.hang:
                        while await stream.receive_some():
                            pass
                        return
                    if raw := reply.encode(head=request.method == "HEAD"):
                        await stream.send_all(raw)
                    if reply.cut is not None:
                        return
        except trio.BrokenResourceError:
            return
        finally:
            server.connections -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


async def _read_request(stream: trio.abc.Stream, buffer: bytes) -> tuple[Request, bytes] | None:
    while b"\r\n\r\n" not in buffer:
        data = await stream.receive_some(65536)
        if not data:
            return None
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await _read_body(stream, rest, int(headers.get("content-length", 0)))
    if body is None:
        return None
    length = int(headers.get("content-length", 0))
    return Request(method, target, headers, body[:length]), body[length:]


async def _read_body(stream: trio.abc.Stream, data: bytes, length: int) -> bytes | None:
    chunks = [data]
    missing = length - len(data)
    while missing > 0:
        more = bytes(await stream.receive_some(1 << 20))
        if not more:
            return None
        chunks.append(more)
        missing -= len(more)
    return b"".join(chunks)
