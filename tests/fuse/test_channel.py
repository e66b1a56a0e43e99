"""The conversation between supervisor and worker: what both ends may rely on when the other misbehaves."""

import array
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import trio
import trio.testing

from s3mgrd import errors
from s3mgrd.errors import (
    Conflict,
    InvalidSpec,
    NotFound,
    S3mgrError,
    TooLarge,
    Unavailable,
    WorkerLost,
)
from s3mgrd.worker import channel as channel_module
from s3mgrd.worker.channel import (
    MAX_QUEUED_EVENTS,
    MAX_SERVED,
    Body,
    Channel,
    EventQueue,
    Fds,
    error_reply,
    open_channel,
    raise_error,
)
from s3mgrd.worker.protocol import (
    MAX_MESSAGE_BYTES,
    ConflictEvent,
    ErrorReply,
    Flush,
    GetStats,
    LogEvent,
    Ok,
    Packet,
    Reply,
    Report,
    SessionEnded,
    StatusEvent,
    Stop,
    WorkerEvent,
)
from tests.descriptors import held_by

encode = msgspec.json.encode


def status(dirty: int) -> StatusEvent:
    return StatusEvent(health="ok", dirty_bytes=dirty)


def log_event(text: str) -> LogEvent:
    return LogEvent(level="WARNING", message=text)


@dataclass
class Pair:
    ours: Channel
    theirs: Channel
    incoming: EventQueue


async def obey(body: Body, fds: Fds) -> tuple[Reply, Fds]:
    """Answer `Flush` after its time, `Stop` with the descriptors that came, everything else with `Ok`."""
    if isinstance(body, Flush):
        await trio.sleep(body.timeout_s)
    return (Ok(), fds) if isinstance(body, Stop) else (Ok(), ())


@asynccontextmanager
async def conversation() -> AsyncIterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    incoming = EventQueue()
    async with (
        open_channel(left, obey, incoming=incoming) as ours,
        open_channel(right, obey) as theirs,
    ):
        yield Pair(ours, theirs, incoming)


@asynccontextmanager
async def against_raw() -> AsyncIterator[tuple[Channel, socket.socket, EventQueue]]:
    """Converse with a peer that the test plays itself."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    incoming = EventQueue()
    with right:
        async with open_channel(left, obey, incoming=incoming) as channel:
            yield channel, right, incoming


def copies_of(fd: int) -> int:
    """How many descriptors of this process are open on the same pipe or socket; others come and go with other tests' threads."""
    opened = os.readlink(f"/proc/self/fd/{fd}")
    return sum(target == opened for _, target in held_by())


async def test_both_sides_may_ask_at_the_same_time() -> None:
    async with conversation() as pair, trio.open_nursery() as nursery:
        for _ in range(MAX_SERVED // 2):
            nursery.start_soon(pair.ours.request, GetStats())
            nursery.start_soon(pair.theirs.request, GetStats())


async def test_descriptors_travel_both_ways() -> None:
    read_fd, write_fd = os.pipe()
    async with conversation() as pair:
        _, (copy,) = await pair.ours.request(Stop(), (write_fd,))
        os.write(copy, b"through")
        assert os.read(read_fd, 10) == b"through"
        assert not os.get_inheritable(copy)
        os.close(copy)
        # The handler of this one ignores what it was given: it owned a copy, and must have closed it; ours is whole.
        os.fstat(write_fd)
    os.close(read_fd)
    os.close(write_fd)


async def test_a_late_reply_is_dropped_with_its_descriptors() -> None:
    async with against_raw() as (channel, peer, _):
        read_fd, write_fd = os.pipe()
        with trio.move_on_after(0.01):
            await channel.request(GetStats())
        before = copies_of(write_fd)
        packet = encode(Packet(id=1, reply=True, body=Ok()))
        socket.send_fds(peer, [packet], [write_fd])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert copies_of(write_fd) == before
        os.close(read_fd)
        os.close(write_fd)


async def test_a_message_over_the_limit_is_refused_and_the_conversation_goes_on() -> None:
    async with conversation() as pair:
        with pytest.raises(TooLarge, match=f"limit of {MAX_MESSAGE_BYTES}"):
            await pair.ours.request(Report(body=b"x" * MAX_MESSAGE_BYTES))
        await pair.ours.send_event(log_event("x" * MAX_MESSAGE_BYTES))
        assert await pair.ours.request(GetStats()) == (Ok(), ())


async def test_the_largest_message_passes() -> None:
    async with conversation() as pair:
        room = MAX_MESSAGE_BYTES - len(encode(Packet(body=log_event(""))))
        await pair.theirs.send_event(log_event("x" * room))
        assert await pair.incoming.get() == log_event("x" * room)


NONSENSE = [
    b"not json",
    b"{}",
    b"\xff" * 100,
    b'{"id": 1, "body": {"type": "no-such-message"}}',
    b"x" * (MAX_MESSAGE_BYTES + 1),
    encode(Packet(body=GetStats())),  # a request without an id
    b"[" * 50_000,
]


@pytest.mark.parametrize("packet", NONSENSE, ids=lambda packet: repr(packet[:20]))
async def test_nonsense_ends_the_conversation_only(packet: bytes) -> None:
    """A request that is open then fails, and what came along as descriptors is closed."""
    async with against_raw() as (channel, peer, incoming):
        read_fd, write_fd = os.pipe()
        before = copies_of(write_fd)

        async def ask() -> None:
            with pytest.raises(WorkerLost):
                await channel.request(GetStats())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            socket.send_fds(peer, [packet], [write_fd])
        await channel.ended.wait()
        assert await incoming.get() is None
        with pytest.raises(WorkerLost):
            await channel.request(GetStats())
        assert copies_of(write_fd) == before
        os.close(read_fd)
        os.close(write_fd)


async def test_a_reply_that_is_no_reply_ends_the_conversation() -> None:
    async with against_raw() as (channel, peer, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(WorkerLost):
                await channel.request(GetStats())

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(encode(Packet(id=1, reply=True, body=GetStats())))


async def test_too_many_descriptors_end_the_conversation() -> None:
    async with against_raw() as (channel, peer, _):
        fds = array.array("i", [peer.fileno()] * 10).tobytes()
        packet = encode(Packet(id=1, body=GetStats()))
        before = copies_of(peer.fileno())
        peer.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        await channel.ended.wait()
        assert copies_of(peer.fileno()) == before


async def test_a_peer_that_goes_away_fails_what_is_open(autojump_clock: trio.abc.Clock) -> None:
    async with against_raw() as (channel, peer, incoming), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(WorkerLost):
                await channel.request(GetStats())

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        peer.close()
        assert await incoming.get() is None


async def test_more_requests_than_can_be_served_are_refused(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with conversation() as pair:
        refused: list[Exception] = []

        async def ask() -> None:
            try:
                await pair.ours.request(Flush(timeout_s=5))
            except Unavailable as exc:
                refused.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(MAX_SERVED + 3):
                nursery.start_soon(ask)
        assert [str(exc) for exc in refused] == ["too many requests at a time"] * 3
        assert await pair.ours.request(GetStats()) == (Ok(), ())


async def test_idle_waits_for_the_last_answer(autojump_clock: trio.abc.Clock) -> None:
    async with conversation() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.ours.request, Flush(timeout_s=3))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await pair.theirs.idle()
        assert trio.current_time() - began == pytest.approx(3)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, S3mgrError)
        and kind.__init__ in (S3mgrError.__init__, InvalidSpec.__init__)
    ],
)
def test_every_error_survives_the_wire(kind: type[S3mgrError]) -> None:
    sent = kind("what happened", hint="what to do", request_id="id")
    reply = msgspec.json.decode(encode(error_reply(sent)), type=ErrorReply)
    with pytest.raises(S3mgrError) as received:
        raise_error(reply)
    assert type(received.value) is kind
    assert vars(received.value) == vars(sent)


def test_the_pointer_of_an_invalid_spec_survives_the_wire() -> None:
    with pytest.raises(InvalidSpec) as received:
        raise_error(error_reply(InvalidSpec("no", pointer="/spec/region")))
    assert received.value.pointer == "/spec/region"


def test_an_error_that_carries_more_arrives_as_its_plain_base() -> None:
    with pytest.raises(Conflict, match="detail") as received:
        raise_error(ErrorReply(kind="DirtyData", detail="detail", hint="hint"))
    assert type(received.value) is Conflict


@pytest.mark.parametrize("kind", ["NoSuchError", "Final", "OSError", "__doc__"])
def test_an_unknown_kind_of_error_is_still_an_error(kind: str) -> None:
    with pytest.raises(Unavailable, match="detail"):
        raise_error(ErrorReply(kind=kind, detail="detail"))


async def test_only_the_newest_status_waits() -> None:
    queue = EventQueue()
    for dirty in range(5):
        queue.put(status(dirty))
    queue.put(SessionEnded())
    assert await queue.get() == SessionEnded()
    assert await queue.get() == status(4)


async def test_log_events_give_way_and_ends_do_not() -> None:
    queue = EventQueue()
    queue.put(SessionEnded())
    for number in range(MAX_QUEUED_EVENTS + 10):
        queue.put(log_event(str(number)))
    queue.close()
    taken = [event async for event in drain(queue)]
    assert taken[0] == SessionEnded()
    assert taken[1] == log_event("11")
    assert len(taken) == MAX_QUEUED_EVENTS


async def drain(queue: EventQueue) -> AsyncIterator[object]:
    while (event := await queue.get()) is not None:
        yield event


async def test_status_events_keep_their_distance_and_others_pass(
    autojump_clock: trio.abc.Clock,
) -> None:
    queue = EventQueue(status_interval_s=0.5)
    queue.put(status(1))
    assert await queue.get() == status(1)
    queue.put(status(2))
    queue.put(log_event("at once"))
    began = trio.current_time()
    assert await queue.get() == log_event("at once")
    assert trio.current_time() == began
    assert await queue.get() == status(2)
    assert trio.current_time() - began == pytest.approx(0.5)


async def test_what_could_not_be_delivered_comes_first_and_is_not_newer_than_the_newest() -> None:
    queue = EventQueue()
    queue.put(log_event("second"))
    queue.put(status(2))
    queue.put_back(log_event("first"))
    queue.put_back(status(1))
    queue.close()
    assert [event async for event in drain(queue)] == [
        log_event("first"),
        log_event("second"),
        status(2),
    ]


@pytest.mark.parametrize(
    "event",
    [
        log_event("x"),
        status(1),
        SessionEnded(),
        ConflictEvent(action="kept", id=7, path="a", size_bytes=1, reason="recovered"),
    ],
)
async def test_every_event_arrives(event: WorkerEvent) -> None:
    async with conversation() as pair:
        await pair.theirs.send_event(event)
        assert await pair.incoming.get() == event


async def test_events_that_nobody_took_wait_for_the_next_conversation() -> None:
    outgoing = EventQueue()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    right.close()
    async with open_channel(left, obey, outgoing=outgoing):
        outgoing.put(SessionEnded())
        await trio.testing.wait_all_tasks_blocked()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    incoming = EventQueue()
    async with (
        open_channel(left, obey, outgoing=outgoing),
        open_channel(right, obey, incoming=incoming),
    ):
        assert await incoming.get() == SessionEnded()


async def test_an_exception_in_the_body_comes_out_bare() -> None:
    with pytest.raises(NotFound):
        async with conversation():
            raise NotFound("x")


def test_the_limits_fit_a_default_socket() -> None:
    """A packet of the limit must fit into the kernel's default send buffer, with its overhead."""
    assert MAX_MESSAGE_BYTES < 208 << 10
    assert channel_module.SEND_BUFFER_BYTES > MAX_MESSAGE_BYTES
