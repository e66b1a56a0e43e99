"""MiniStack's application, with one defect taken away: it stores what it got of a body whose sender went away.

S3 never does; an object is there as a whole or not at all. Here a request is passed on once its body is complete.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import ministack.app  # type: ignore[import-untyped]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Serve one connection's scope (ASGI)."""
    if scope["type"] != "http":
        await ministack.app.app(scope, receive, send)
        return
    body: list[Message] = []
    while not body or body[-1].get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body.append(message)
    body.reverse()

    async def replay() -> Message:
        return body.pop() if body else await receive()

    await ministack.app.app(scope, replay, send)
