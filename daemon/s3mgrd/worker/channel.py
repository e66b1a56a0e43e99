"""The conversation between a supervisor and a worker, on either side of it: packets, requests, replies, events.

Concurrency: `open_channel` runs one reading task, one task per request that the other side makes, and one that sends
events; they share the socket under a send lock. All end with the context.

Bounds: a packet is at most `MAX_MESSAGE_BYTES`; at most `MAX_SERVED` requests of the other side are worked on at a time
(further ones are answered by `Unavailable`); events wait in an `EventQueue`. A packet that makes no sense ends the
conversation, not the process: whoever sent it is not who we think.
"""

import array
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NoReturn

import msgspec
import trio

from s3mgrd import errors
from s3mgrd.errors import Defect, InvalidSpec, S3mgrError, TooLarge, Unavailable, WorkerLost
from s3mgrd.worker.background import background_nursery
from s3mgrd.worker.protocol import (
    MAX_MESSAGE_BYTES,
    ConflictEvent,
    CredentialGrant,
    Descriptors,
    ErrorReply,
    LogEvent,
    Packet,
    Reply,
    StatusEvent,
    SupervisorRequest,
    WorkerEvent,
    WorkerRequest,
)

MAX_DESCRIPTORS: Final = 4
MAX_SERVED: Final = 64
MAX_QUEUED_EVENTS: Final = 256
SEND_BUFFER_BYTES: Final = 256 << 10
CMSG_BYTES: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)

Body = SupervisorRequest | WorkerRequest | Reply | WorkerEvent
Fds = tuple[int, ...]
Handler = Callable[[Body, Fds], Awaitable[tuple[Reply, Fds]]]
"""Answers a request; owns the descriptors it is given, keeps those it returns."""

log = logging.getLogger(__name__)
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Packet)


class MalformedPacket(Exception):
    """What came is no packet of this protocol. Never leaves this module: it ends the conversation."""


class EventQueue:
    """Events on their way: the newest status only, a bounded number of log and conflict events (oldest dropped), every end.

    Args:
        status_interval_s: least time between two status events that are given out.
    """

    def __init__(self, *, status_interval_s: float = 0.0) -> None:
        self._status: StatusEvent | None = None
        self._others: deque[WorkerEvent] = deque()
        self._interval_s: Final = status_interval_s
        self._next_status_at = float("-inf")
        self._changed = trio.Event()
        self._closed = False

    def put(self, event: WorkerEvent) -> None:
        """Add *event*; never waits."""
        if isinstance(event, StatusEvent):
            self._status = event
        else:
            self._others.append(event)
            if len(self._others) > MAX_QUEUED_EVENTS:
                self._drop_oldest()
        self._changed.set()

    def put_back(self, event: WorkerEvent) -> None:
        """Return what was taken and not delivered; a newer status wins over it."""
        if not isinstance(event, StatusEvent):
            self._others.appendleft(event)
        elif self._status is None:
            self._status = event
        self._changed.set()

    def _drop_oldest(self) -> None:
        for position, event in enumerate(self._others):
            if isinstance(event, LogEvent | ConflictEvent):
                del self._others[position]
                return
        self._others.popleft()

    def close(self) -> None:
        """Let `get` end once everything has been taken."""
        self._closed = True
        self._changed.set()

    async def get(self) -> WorkerEvent | None:
        """Wait for the next event; None: closed and empty. One taker at a time; cancel-safe."""
        while True:
            if self._others:
                return self._others.popleft()
            wait_s = self._next_status_at - trio.current_time()
            if self._status is not None and (wait_s <= 0 or self._closed):
                status, self._status = self._status, None
                self._next_status_at = trio.current_time() + self._interval_s
                return status
            if self._closed:
                return None
            self._changed = trio.Event()
            with trio.move_on_after(wait_s if self._status is not None else float("inf")):
                await self._changed.wait()


class Channel:
    """One end of the conversation; made by `open_channel`."""

    def __init__(self, sock: trio.socket.SocketType, handler: Handler, events: EventQueue) -> None:
        self._socket = sock
        self._handler = handler
        self._incoming = events
        self._send_lock = trio.Lock()
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._served = 0
        self._answered = trio.Event()
        self._closed = False
        self.ended = trio.Event()
        """Set when the other side has gone, or has said nonsense."""

    async def request(self, body: Body, fds: Fds = ()) -> tuple[Reply, Fds]:
        """Send a request with descriptors (they stay the caller's) and wait for the reply, and its descriptors.

        Cancel-safe: a late reply is dropped and its descriptors closed.

        Raises:
            WorkerLost: the other side went away.
            TooLarge: the message does not fit into a packet; nothing was sent.
            S3mgrError: what the other side answered, as the class that it names.
        """
        if self._closed:
            raise _lost()
        self._last_id += 1
        number, pending = self._last_id, _Pending()
        self._pending[number] = pending
        try:
            await self._send(Packet(id=number, body=body), fds)
            await pending.arrived.wait()
        except BaseException:
            pending.abandon()
            raise
        finally:
            self._pending.pop(number, None)
        if pending.reply is None:
            raise _lost()
        if isinstance(pending.reply, ErrorReply):
            pending.abandon()
            raise_error(pending.reply)
        return pending.reply, pending.fds

    async def send_event(self, event: WorkerEvent) -> None:
        """Send *event*; one that is too large for a packet is dropped with a word in the log."""
        try:
            await self._send(Packet(body=event))
        except TooLarge as exc:
            log.warning("an event is lost: %s", exc.detail)

    async def _send(self, packet: Packet, fds: Fds = ()) -> None:
        data = _encoder.encode(packet)
        if len(data) > MAX_MESSAGE_BYTES:
            name = type(packet.body).__name__
            raise TooLarge(
                f"{name} of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES} bytes a message"
            )
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        )
        try:
            async with self._send_lock:
                await self._socket.sendmsg([data], ancillary)
        except (OSError, trio.ClosedResourceError) as exc:
            raise _lost() from exc

    async def _receive(self) -> tuple[Packet, Fds] | None:
        """Wait for a packet; None: the other side has closed."""
        try:
            data, ancillary, flags, _ = await self._socket.recvmsg(
                MAX_MESSAGE_BYTES + 1, CMSG_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (ConnectionError, trio.ClosedResourceError):
            return None
        fds = _descriptors(ancillary)
        if not data:
            close_all(fds)
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > MAX_MESSAGE_BYTES:
            close_all(fds)
            raise MalformedPacket("a packet was cut off")
        try:
            return _decoder.decode(data), fds
        except msgspec.MsgspecError as exc:
            close_all(fds)
            raise MalformedPacket(str(exc)) from exc

    async def _read(self, nursery: trio.Nursery) -> None:
        """Read until the other side has gone."""
        try:
            while (received := await self._receive()) is not None:
                packet, fds = received
                if packet.reply:
                    self._take_reply(packet, fds)
                elif packet.id:
                    self._begin_serving(nursery, packet, fds)
                else:
                    close_all(fds)
                    self._take_event(packet.body)
        except MalformedPacket as exc:
            log.warning("the conversation ends: %s", exc)

    def _take_reply(self, packet: Packet, fds: Fds) -> None:
        pending = self._pending.get(packet.id)
        if pending is None:
            close_all(fds)
        elif isinstance(packet.body, Reply):
            pending.resolve(packet.body, fds)
        else:
            close_all(fds)
            raise MalformedPacket(f"{type(packet.body).__name__} is no reply")

    def _take_event(self, body: Body) -> None:
        if not isinstance(body, WorkerEvent):
            raise MalformedPacket(f"{type(body).__name__} is no event")
        self._incoming.put(body)

    def _begin_serving(self, nursery: trio.Nursery, packet: Packet, fds: Fds) -> None:
        self._served += 1
        nursery.start_soon(self._serve, packet, fds)

    async def _serve(self, packet: Packet, fds: Fds) -> None:
        """Answer one request of the other side."""
        reply: Reply
        reply_fds: Fds = ()
        try:
            if self._served > MAX_SERVED:
                close_all(fds)
                reply = error_reply(Unavailable("too many requests at a time"))
            else:
                reply, reply_fds = await self._handler(packet.body, fds)
        except S3mgrError as exc:
            reply = error_reply(exc)
        except Exception:
            # A defect in one answer must not take the mount away from those who use it.
            log.exception("the request %s failed", type(packet.body).__name__)
            reply = error_reply(
                Defect(
                    "the mount's worker met an error that nobody foresaw",
                    hint="its log has the details: s3mgr logs NAME",
                )
            )
        try:
            await self._send(Packet(id=packet.id, reply=True, body=reply), reply_fds)
        except TooLarge as exc:
            await self._send_quietly(Packet(id=packet.id, reply=True, body=error_reply(exc)))
        except WorkerLost:
            return  # nobody is left to be told
        finally:
            self._served -= 1
            self._answered.set()

    async def idle(self) -> None:
        """Wait until every request of the other side is answered."""
        while self._served:
            self._answered = trio.Event()
            await self._answered.wait()

    async def _send_quietly(self, packet: Packet) -> None:
        try:
            await self._send(packet)
        except WorkerLost:
            return

    def _close(self) -> None:
        self._closed = True
        for pending in self._pending.values():
            pending.arrived.set()
        self._incoming.close()
        self.ended.set()


class _Pending:
    """A request that waits for its reply."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.reply: Reply | None = None
        self.fds: Fds = ()

    def resolve(self, reply: Reply, fds: Fds) -> None:
        if self.arrived.is_set():
            close_all(fds)
            return
        self.reply, self.fds = reply, fds
        self.arrived.set()

    def abandon(self) -> None:
        """Close what came with a reply that nobody will take."""
        close_all(self.fds)
        self.fds = ()


@asynccontextmanager
async def open_channel(
    sock: socket.socket,
    handler: Handler,
    *,
    incoming: EventQueue | None = None,
    outgoing: EventQueue | None = None,
) -> AsyncIterator[Channel]:
    """Converse over *sock* (connected, SOCK_SEQPACKET; owned from here on) until the context ends.

    Args:
        sock: our end.
        handler: answers the other side's requests.
        incoming: where its events go; closed when the conversation ends.
        outgoing: events to send, as fast as the other side takes them.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    trio_socket = trio.socket.from_stdlib_socket(sock)
    channel = Channel(trio_socket, handler, incoming or EventQueue())

    async def read(nursery: trio.Nursery) -> None:
        try:
            await channel._read(nursery)
        finally:
            channel._close()

    async def send_events(queue: EventQueue) -> None:
        while (event := await queue.get()) is not None:
            try:
                await channel.send_event(event)
            except WorkerLost:
                queue.put_back(event)  # for the next conversation
                return
            except trio.Cancelled:
                queue.put_back(event)
                raise

    try:
        async with background_nursery() as nursery:
            nursery.start_soon(read, nursery)
            if outgoing is not None:
                nursery.start_soon(send_events, outgoing)
            yield channel
    finally:
        channel._close()
        trio_socket.close()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> Fds:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def error_reply(exc: S3mgrError) -> ErrorReply:
    """Put an error on the wire."""
    return ErrorReply(
        kind=type(exc).__name__,
        detail=exc.detail,
        hint=exc.hint,
        request_id=exc.request_id,
        pointer=exc.pointer if isinstance(exc, InvalidSpec) else "",
    )


def raise_error(reply: ErrorReply) -> NoReturn:
    """Raise the error that came over the wire.

    A class we do not know becomes `Unavailable`; one that carries more than travels becomes its nearest plain base.
    """
    kind = getattr(errors, reply.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, S3mgrError)):
        kind = Unavailable
    if kind is InvalidSpec:
        raise InvalidSpec(
            reply.detail, hint=reply.hint, pointer=reply.pointer, request_id=reply.request_id
        )
    plain: type[S3mgrError] = next(
        k
        for k in kind.__mro__
        if getattr(k, "__init__") is S3mgrError.__init__  # noqa: B009 - mypy
    )
    raise plain(reply.detail, hint=reply.hint, request_id=reply.request_id)


def _lost() -> WorkerLost:
    return WorkerLost("the other side of the control socket went away")


__all__ = [
    "Body",
    "Channel",
    "CredentialGrant",
    "Descriptors",
    "EventQueue",
    "Fds",
    "Handler",
    "close_all",
    "error_reply",
    "open_channel",
    "raise_error",
]
