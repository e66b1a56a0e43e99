"""MiniStack's application, with four defects taken away, and with archives.

It stores what it got of a body whose sender went away; S3 never does, an object is there as a whole or not at all. And
it puts a body together in time that grows with the square of its size. So a request is passed on once its body is
complete, in one piece. Of versions that are not current it gives the whole where a range is asked for. Its CRC-64/NVME, in
Python, takes half a second for 8 MiB, and CRC-32C, which S3 knows, it refuses. What an archive is, it does not know:
`tests.servers.cold` does.
"""

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import ministack.app  # type: ignore[import-untyped]
import ministack.services.s3  # type: ignore[import-untyped]
from awscrt.checksums import crc32c, crc64nvme  # type: ignore[import-untyped]

from tests.servers.cold import Archives

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_compute = ministack.services.s3._compute_s3_checksum
_NATIVE = {"CRC32C": (crc32c, 4), "CRC64NVME": (crc64nvme, 8)}


def _compute_natively(name: str, body: bytes) -> str | None:
    native = _NATIVE.get((name or "").upper().replace("_", ""))
    if native is None:
        answer: str | None = _compute(name, body)
        return answer
    compute, size = native
    return b64encode(compute(body).to_bytes(size, "big")).decode("ascii")


ministack.services.s3._compute_s3_checksum = _compute_natively
_service = Archives(ministack.app.app)


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Serve one connection's scope (ASGI)."""
    if scope["type"] != "http":
        await ministack.app.app(scope, receive, send)
        return
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    whole: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    headers = {name.lower(): value for name, value in scope["headers"]}
    asked = re.fullmatch(rb"bytes=(\d+)-(\d+)", headers.get(b"range", b""))
    is_old = scope["method"] == "GET" and b"versionId=" in scope["query_string"]
    if asked is None or not is_old:
        await _service(scope, replay, send)
        return
    answer: list[Message] = []

    async def keep(message: Message) -> None:
        answer.append(message)

    await _service(scope, replay, keep)
    for message in _cut(answer, int(asked[1]), int(asked[2]) + 1):
        await send(message)


def _cut(answer: list[Message], first: int, stop: int) -> list[Message]:
    """Make of an answer with a whole object one with a range of it."""
    head = answer[0]
    body = b"".join(message.get("body", b"") for message in answer[1:])
    if head["status"] != 200:
        return answer
    part = body[first:stop]
    headers = [pair for pair in head["headers"] if pair[0].lower() != b"content-length"]
    headers += [
        (b"content-length", str(len(part)).encode()),
        (b"content-range", f"bytes {first}-{first + len(part) - 1}/{len(body)}".encode()),
    ]
    return [
        {**head, "status": 206, "headers": headers},
        {"type": "http.response.body", "body": part},
    ]
