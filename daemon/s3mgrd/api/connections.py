"""Connections: who each one is, how many there are, and how each of them ends whatever its client does.

Concurrency: one task per connection runs `Connections.serve`. `abort` may be called from any task; it closes sockets
under tasks that use them, which those see as `trio.ClosedResourceError`.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ConnectionState,
    LifespanState,
    Scope,
)

from s3mgrd.api import auth
from s3mgrd.api.settings import ApiSettings
from s3mgrd.mounts.service import Principal

log = logging.getLogger(__name__)

Identify = Callable[[trio.SocketStream], Principal]
"""Tells who is at the other end; raises `OSError` when that cannot be known."""

# What is sent within one send timeout. A live client of a local socket empties it in far less.
_CHUNK_BYTES: Final = 1 << 16


class ClientStream:
    """A stream whose sends end: a client that takes no bytes for too long is disconnected.

    hypercorn shields its sends from cancellation, so the limit has to be in here, inside that shield. Has the part of
    `trio.SocketStream` that hypercorn uses.
    """

    def __init__(self, stream: trio.SocketStream, *, send_timeout_s: float) -> None:
        self._stream = stream
        self._send_timeout_s = send_timeout_s
        # hypercorn answers from two tasks where an application answers before the request has ended badly.
        self._sending = trio.Lock()
        # hypercorn asks it for both ends' addresses.
        self.socket: Final = stream.socket

    async def send_all(self, data: bytes) -> None:
        """Send *data*.

        Raises:
            trio.BrokenResourceError: the client is gone, or was disconnected because it does not read.
            trio.ClosedResourceError: the connection was closed meanwhile.
        """
        async with self._sending:
            for start in range(0, len(data), _CHUNK_BYTES):
                with trio.move_on_after(self._send_timeout_s) as limit:
                    await self._stream.send_all(data[start : start + _CHUNK_BYTES])
                if limit.cancelled_caught:
                    log.info(
                        "disconnected a client that did not read for %g s", self._send_timeout_s
                    )
                    self.abort()
                    raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int) -> bytes:
        """Receive at least one byte; none at the end."""
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; not in the middle of what another task sends."""
        async with self._sending:
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close the connection now, under whoever uses it."""
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Protocol:
    """What hypercorn needs for every connection.

    Attributes:
        app: the ASGI application.
        config: hypercorn's settings.
        context: tells its connections when the server stops.
        state: the lifespan's state; each connection gets a copy.
    """

    app: ASGIFramework
    config: Config
    context: WorkerContext
    state: LifespanState


class Connections:
    """All open connections of a server."""

    def __init__(self, protocol: Protocol, settings: ApiSettings) -> None:
        self._protocol = protocol
        self._settings = settings
        self._streams: set[ClientStream] = set()
        self._per_uid: Counter[int] = Counter()

    async def serve(self, identify: Identify, stream: trio.SocketStream) -> None:
        """Serve one connection until either side closes it; never raises, so that no client can end the server."""
        try:
            principal = identify(stream)
        except OSError as exc:
            log.warning("refused a connection whose peer is not known: %s", exc)
            return
        if not self._has_room(principal):
            log.warning("refused a connection of uid %d: it has too many", principal.uid)
            return
        client = ClientStream(stream, send_timeout_s=self._settings.send_timeout_s)
        protocol = self._protocol
        try:
            with self._counted(client, principal):
                await TCPServer(
                    ASGIWrapper(_identified(protocol.app, principal)),
                    protocol.config,
                    protocol.context,
                    # One dict for all connections would let one of them write into the others'.
                    ConnectionState(dict(protocol.state)),
                    cast(Any, client),  # Any: typed as a TLS stream, used as any stream
                )
        except* Exception:
            log.exception("a connection of uid %d failed", principal.uid)

    def abort(self) -> None:
        """Close all of them under their tasks."""
        if self._streams:
            log.warning("closing %d connections that did not end in time", len(self._streams))
        for stream in tuple(self._streams):
            stream.abort()

    def _has_room(self, principal: Principal) -> bool:
        if principal.is_admin:
            return True
        return self._per_uid[principal.uid] < self._settings.connections_per_user

    @contextlib.contextmanager
    def _counted(self, stream: ClientStream, principal: Principal) -> Iterator[None]:
        self._streams.add(stream)
        self._per_uid[principal.uid] += 1
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._per_uid[principal.uid] -= 1
            if not self._per_uid[principal.uid]:
                del self._per_uid[principal.uid]


def _identified(app: ASGIFramework, principal: Principal) -> ASGIFramework:
    """Wrap *app* so that every scope of a connection says whose it is."""

    async def identified(
        scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "lifespan":
            scope["extensions"][auth.EXTENSION] = {"principal": principal}
        await app(scope, receive, send)

    return identified
