"""Events: a server-sent stream of what changes, resumable by cursor.

Tasks: one pump per stream, in the request's nursery, holds the subscription and hands its events over one by one, so that
the subscription exists before the first byte is sent and ends with the request. A client that reads too slowly blocks the
pump; the service then ends the subscription, the stream ends, and the client comes back with the cursor it has.
"""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta, Struct

from s3mgr.schema import Event
from s3mgrd.api.problems import InvalidParameter
from s3mgrd.api.requests import Call
from s3mgrd.api.routes import EVENT_STREAM, Answer, AnyRoute, Reply, Route

CURSOR: Final = re.compile(r"[0-9]{1,19}")
CURSOR_MAX: Final = (1 << 63) - 1
# How long a browser's EventSource waits before it comes back, in milliseconds.
OPENING: Final = b"retry: 2000\n\n"
HEARTBEAT: Final = b": nothing new\n\n"


class EventsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the stream begins."""

    since: Annotated[
        Annotated[int, Meta(ge=0, le=CURSOR_MAX)] | None,
        Meta(
            description="Begin after this cursor; without it, with what happens next. Last-Event-ID overrides it."
        ),
    ] = None


class EventStream:
    """Frames of the events that arrive on a channel, and a comment whenever it was silent for long."""

    def __init__(self, events: trio.MemoryReceiveChannel[Event], *, heartbeat_s: float) -> None:
        self._events = events
        self._heartbeat_s = heartbeat_s
        self._opened = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._opened:
            self._opened = True
            return OPENING
        with trio.move_on_after(self._heartbeat_s):
            try:
                return frame(await self._events.receive())
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
        return HEARTBEAT

    async def aclose(self) -> None:
        """Tell the pump that nobody listens any more."""
        self._events.close()


def frame(event: Event) -> bytes:
    """Write *event* as one server-sent event; JSON has no line ends, so one data line is enough."""
    data = msgspec.json.encode(event)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.cursor, event.type.encode(), data)


async def watch_events(call: Call[EventsQuery, None]) -> Reply:
    """Watch what changes (server-sent events); `reset` means: too old, list again."""
    since = _since(call)
    if call.method == "HEAD":
        return Reply(200, headers={"Content-Type": EVENT_STREAM})
    channel: trio.MemoryReceiveChannel[Event] = await call.nursery.start(_pump, call, since)
    return Reply(
        200,
        stream=EventStream(channel, heartbeat_s=call.env.settings.heartbeat_s),
        # Without the second, nginx would collect events before it passes them on.
        headers={"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"},
    )


def _since(call: Call[EventsQuery, None]) -> int | None:
    """Return the cursor to begin after; a client that comes back repeats its URL, so the header is the newer one."""
    header = call.headers.get("Last-Event-Id")
    if header is None:
        return call.query.since
    if not CURSOR.fullmatch(header) or int(header) > CURSOR_MAX:
        raise InvalidParameter("Last-Event-ID is not a cursor.", hint="Cursors are whole numbers.")
    return int(header)


async def _pump(
    call: Call[EventsQuery, None],
    since: int | None,
    *,
    task_status: trio.TaskStatus[trio.MemoryReceiveChannel[Event]],
) -> None:
    """Pass events on until the service ends them, the client goes, or the server stops."""

    async def end_at_stop() -> None:
        await call.env.stopping.wait()
        nursery.cancel_scope.cancel()

    sender, receiver = trio.open_memory_channel[Event](0)
    async with sender, trio.open_nursery() as nursery:
        nursery.start_soon(end_at_stop)
        async with call.service.subscribe(call.who, since=since) as events:
            task_status.started(receiver)
            try:
                async for event in events:
                    await sender.send(event)
            except trio.BrokenResourceError:
                pass  # The stream was closed: nobody listens any more.
        nursery.cancel_scope.cancel()


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET",
        "/v1/events",
        watch_events,
        query=EventsQuery,
        answers=(
            Answer(
                200,
                "A stream that ends when the daemon stops or the client is too slow. `id` is the cursor, `event` the "
                "type, `data` an `Event`.",
                media_type=EVENT_STREAM,
            ),
        ),
        request_headers=("Last-Event-ID",),
    ),
)
