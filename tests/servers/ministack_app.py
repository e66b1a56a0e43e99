"""MiniStack's application, with two defects taken away, and with archives.

It stores what it got of a body whose sender went away; S3 never does, an object is there as a whole or not at all. And
it puts a body together in time that grows with the square of its size. So a request is passed on once its body is
complete, in one piece. What an archive is, it does not know: `tests.servers.cold` does.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import ministack.app  # type: ignore[import-untyped]

from tests.servers.cold import Archives

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

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

    await _service(scope, replay, send)
