"""The event stream: resumable, alive when nothing happens, and over when it has to be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from s3mgr.schema import Event
from s3mgrd.api.resources.events import HEARTBEAT, OPENING, frame
from s3mgrd.api.settings import ApiSettings
from s3mgrd.errors import Denied
from tests.fakes.service import EPOCH, SUBSCRIBER_QUEUE, FakeService
from tests.unit.api.client import TIMEOUT_S, Client, Stream
from tests.unit.api.conftest import serving, until


@asynccontextmanager
async def watching(
    client: Client, target: str = "/v1/events", **headers: str
) -> AsyncIterator[Stream]:
    """Open the stream and read its opening."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.open("GET", target, headers=sent) as stream:
        assert stream.status == 200
        assert await stream.chunk() == OPENING
        yield stream


async def test_an_event_is_framed_with_cursor_type_and_json(
    client: Client, service: FakeService
) -> None:
    async with watching(client) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["cache-control"] == "no-store"
        event = service.emit("mount.added", "logs")
        chunk = await stream.chunk()
    assert chunk == frame(event)
    lines = frame(event).decode().splitlines()
    assert lines[0:2] == ["id: 1", "event: mount.added"]
    assert msgspec.json.decode(lines[2].removeprefix("data: "), type=Event) == event


def test_text_with_line_ends_cannot_break_a_frame() -> None:
    event = Event(cursor=1, type="reset", time=EPOCH, mount="a\r\n\ndata: x\u2028")
    assert frame(event).count(b"\n") == 4
    assert b"\r" not in frame(event)


async def test_the_subscription_exists_before_the_headers_are_seen(
    client: Client, service: FakeService
) -> None:
    """Whoever has seen 200 misses nothing that happens afterwards."""
    async with client.open("GET", "/v1/events") as stream:
        assert service.subscriber_count == 1
        service.emit("mount.changed", "logs")
        assert await stream.chunk() == OPENING
        assert b"mount.changed" in (await stream.chunk() or b"")


@pytest.mark.parametrize(
    ("target", "headers", "first"),
    [
        ("/v1/events", {}, None),
        ("/v1/events?since=0", {}, 1),
        ("/v1/events?since=2", {}, 3),
        ("/v1/events", {"Last_Event_ID": "1"}, 2),
        ("/v1/events?since=0", {"Last_Event_ID": "2"}, 3),
    ],
)
async def test_a_client_resumes_after_the_cursor_it_has(
    client: Client,
    service: FakeService,
    target: str,
    headers: dict[str, str],
    first: int | None,
) -> None:
    """A browser repeats the URL with its old ``since``; its Last-Event-ID is the newer one."""
    for _ in range(3):
        service.emit("mount.changed", "logs")
    async with watching(client, target, **headers) as stream:
        service.emit("mount.removed", "logs")
        chunk = await stream.chunk()
    assert chunk is not None
    assert chunk.startswith(b"id: %d\n" % (first or 4))


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "", "\uff19", "9" * 20, str(1 << 63)])
async def test_a_last_event_id_that_is_no_cursor_is_refused(client: Client, cursor: str) -> None:
    header = cursor.encode().decode("latin-1")
    answer = await client.get("/v1/events", Last_Event_ID=header)
    assert (answer.status, answer.slug) == (422, "invalid-request")


async def test_a_refused_subscription_is_a_problem_not_an_empty_stream(
    client: Client, service: FakeService
) -> None:
    service.failures["subscribe"] = Denied("not for you")
    answer = await client.get("/v1/events")
    assert (answer.status, answer.slug) == (403, "not-permitted")


async def test_silence_is_broken_by_heartbeats(service: FakeService, socket_path: Path) -> None:
    settings = ApiSettings(heartbeat_s=0.01)
    async with (
        serving(service, socket_path, settings=settings),
        watching(Client(socket_path)) as stream,
    ):
        assert await stream.chunk() == HEARTBEAT
        assert await stream.chunk() == HEARTBEAT
        event = service.emit("mount.changed", "logs")
        while (chunk := await stream.chunk()) == HEARTBEAT:
            pass
        assert chunk == frame(event)
        assert await stream.chunk() == HEARTBEAT


async def test_a_client_that_leaves_ends_its_subscription(
    client: Client, service: FakeService
) -> None:
    async with watching(client):
        assert service.subscriber_count == 1
    await until(lambda: service.subscriber_count == 0)


async def test_the_stream_ends_when_the_service_ends_it(
    client: Client, service: FakeService
) -> None:
    async with watching(client) as stream:
        service.emit("daemon.stopping")
        service.end_subscriptions()
        assert b"daemon.stopping" in (await stream.chunk() or b"")
        assert await stream.chunk() is None
    await until(lambda: service.subscriber_count == 0)


async def test_a_stop_ends_streams_at_once(service: FakeService, socket_path: Path) -> None:
    """Streams must not use up the grace: it is for requests that are nearly done."""
    settings = ApiSettings(grace_s=1000.0)
    with trio.fail_after(TIMEOUT_S):
        async with (
            serving(service, socket_path, settings=settings) as shutdown,
            watching(Client(socket_path)) as stream,
        ):
            shutdown.set()
            assert await stream.chunk() is None
    assert service.subscriber_count == 0


async def test_a_client_that_reads_too_slowly_is_dropped(
    client: Client, service: FakeService
) -> None:
    """The socket buffers some; then the service's queue fills, and the stream ends with a cursor to resume from."""
    async with watching(client) as stream:
        for _ in range(50):
            for _ in range(SUBSCRIBER_QUEUE // 2):
                service.emit("mount.changed", "x" * 1000)
            await trio.testing.wait_all_tasks_blocked(0.001)
            if service.subscriber_count == 0:
                break
        assert service.subscriber_count == 0
        cursors = []
        while (chunk := await stream.chunk()) is not None:
            cursors += [
                int(line.removeprefix(b"id: "))
                for line in chunk.splitlines()
                if line.startswith(b"id: ")
            ]
    assert cursors == list(range(1, len(cursors) + 1))
    assert len(cursors) < service.cursor
