"""The worker's control socket: who may connect, hello, and which method of the service answers which message.

Concurrency: `ControlServer.run` accepts for as long as the worker lives; one conversation at a time, and a new one
replaces the old. A supervisor that goes away changes nothing for the mount: the next one connects here.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol

import msgspec
import trio

from s3mgr import __version__
from s3mgr.schema import (
    ArchivedList,
    CachedFiles,
    CacheReport,
    ConflictList,
    Credentials,
    EvictReport,
    FlushReport,
    InvalidateReport,
    LiveOptions,
    MountStats,
    PinList,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UnpinReport,
    UploadQueue,
    WarmReport,
)
from s3mgrd.errors import Conflict, NotMounted, Unavailable, Unsupported
from s3mgrd.peers import peer_of
from s3mgrd.worker.channel import Body, Channel, EventQueue, Fds, close_all, open_channel
from s3mgrd.worker.protocol import (
    PROTOCOL_VERSION,
    Configure,
    Configured,
    CredentialGrant,
    Descriptors,
    Discard,
    DiscardConflict,
    Drain,
    Evict,
    Flush,
    GetArchived,
    GetCache,
    GetCachedFiles,
    GetConflicts,
    GetCredentials,
    GetDescriptors,
    GetPins,
    GetQueue,
    GetStats,
    Hello,
    HelloReply,
    HurryUpload,
    Invalidate,
    Ok,
    PauseQueue,
    Reply,
    Report,
    RestoreConflict,
    RestoreObjects,
    ResumeQueue,
    Serve,
    SessionEnded,
    SetCredentials,
    SetOptions,
    StatusEvent,
    Stop,
    StopWarming,
    Unpin,
    Warm,
    WorkerEvent,
)

STATUS_INTERVAL_S: Final = 0.5
CREDENTIALS_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 30.0

log = logging.getLogger(__name__)

Attach = Callable[[Descriptors, int, int, int], Awaitable[None]]


class WorkerService(Protocol):
    """What a worker can do; the composition root implements it. Every method may raise `S3mgrError`."""

    async def configure(self, message: Configure) -> Configured:
        """Open the store and the files; called once."""

    async def serve(self, message: Serve, fuse_fd: int, ring_fd: int) -> None:
        """Begin to serve the kernel connection and return once libfuse reads from it; the descriptors stay the caller's.

        When the session has ended, `ControlServer.session_ended` is to be called.
        """

    async def stats(self) -> MountStats:
        """Count what was done."""

    async def cache(self, path: str, cursor: str | None, limit: int) -> CacheReport:
        """Describe what is cached below *path*."""

    async def conflicts(self, cursor: str | None, limit: int) -> ConflictList:
        """List the conflict copies."""

    async def restore_conflict(
        self, conflict_id: int, path: str | None, *, partial: bool
    ) -> RestoredConflict:
        """Make a file of a conflict copy."""

    async def discard_conflict(self, conflict_id: int) -> None:
        """Throw a conflict copy away."""

    async def archived(self, path: str, cursor: str | None, limit: int) -> ArchivedList:
        """List archived objects below *path*."""

    async def restore_objects(self, request: RestoreRequest) -> RestoreReport:
        """Have S3 restore archived objects."""

    async def queue(self, cursor: str | None, limit: int) -> UploadQueue:
        """List what waits to be uploaded."""

    async def pause_queue(self) -> UploadQueue:
        """Hold uploads in the background back."""

    async def resume_queue(self) -> UploadQueue:
        """Let uploads in the background go on."""

    async def hurry_upload(self, path: str) -> UploadQueue:
        """Have one file uploaded next."""

    async def warm(self, warm_id: str, paths: Sequence[str], *, pin: bool) -> WarmReport:
        """Bring files into the block cache."""

    async def stop_warming(self, warm_id: str) -> None:
        """Give up what `warm` goes on with."""

    async def evict(self, paths: Sequence[str]) -> EvictReport:
        """Give up what is in the block cache of files."""

    async def unpin(self, paths: Sequence[str]) -> UnpinReport:
        """Take back pins."""

    async def pins(self) -> PinList:
        """List the pins."""

    async def cached_files(self, by: Literal["bytes", "hits", "misses"], limit: int) -> CachedFiles:
        """List the files that lead in the block cache."""

    async def flush(self, timeout_s: float) -> FlushReport:
        """Upload what S3 does not have."""

    async def invalidate(self, path: str) -> InvalidateReport:
        """Forget names below *path*."""

    async def set_options(self, options: LiveOptions) -> None:
        """Change options now."""

    async def set_credentials(self, credentials: Credentials) -> None:
        """Use other keys from now on."""

    async def drain(self, timeout_s: float) -> FlushReport:
        """Upload what is left before the end."""

    async def discard(self) -> None:
        """Throw away what S3 does not have."""

    async def stop(self) -> None:
        """Close everything; after this returns the answer is sent and `ControlServer.run` ends."""


class ControlServer:
    """Serves the control socket of one worker.

    Args:
        listener: bound and listening, made by the supervisor; owned from here on.
        mount: name of the mount.
        service: what answers.
        attach: is given what is served, before it is: the descriptors of `Serve`, which stay ours, and what describes
            them. See `s3mgrd.worker.messenger.Messenger.attach`.
    """

    def __init__(
        self,
        listener: socket.socket,
        mount: str,
        service: WorkerService,
        attach: Attach | None = None,
    ) -> None:
        self._listener = listener
        self._mount = mount
        self._service = service
        self._attach = attach
        self._events = EventQueue(status_interval_s=STATUS_INTERVAL_S)
        self._last_status: StatusEvent | None = None
        self._conversation: _Conversation | None = None
        self._stopped = trio.Event()
        self._connection_id = ""
        self._serve: Serve | None = None
        self._fds: Fds = ()
        self._ended = False

    def emit(self, event: WorkerEvent) -> None:
        """Report *event*; never waits. Kept for the next supervisor while there is none, see `EventQueue`."""
        if isinstance(event, StatusEvent):
            self._last_status = event
        self._events.put(event)

    def session_ended(self) -> None:
        """Note that the kernel connection is gone, close our descriptors of it, and report it."""
        if self._serve is not None:
            self._serve = None
            close_all(self._fds)
            self._fds = ()
            self._ended = True
            self.emit(SessionEnded())

    async def get_credentials(self) -> CredentialGrant:
        """Ask the supervisor for keys.

        Raises:
            Unavailable: there is no supervisor just now, or it did not answer; ask again later.
            CredentialsRejected: it has none.
        """
        conversation = self._conversation
        if conversation is None or conversation.channel is None:
            raise Unavailable("no supervisor is there to ask for credentials")
        with trio.move_on_after(CREDENTIALS_TIMEOUT_S):
            reply, fds = await conversation.channel.request(GetCredentials())
            close_all(fds)
            if isinstance(reply, CredentialGrant):
                return reply
            raise Unavailable(f"{type(reply).__name__} is no credentials")
        raise Unavailable("the supervisor gave no credentials in time")

    async def run(self) -> None:
        """Accept supervisors until one has sent `Stop`."""
        # The kernel noted who called listen(2): the supervisor itself, whatever this process has become since.
        allowed = {0, peer_of(self._listener).uid}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, nursery, allowed)
            await self._stopped.wait()
            nursery.cancel_scope.cancel()
        close_all(self._fds)
        self._fds = ()

    async def _accept(self, nursery: trio.Nursery, allowed: set[int]) -> None:
        with trio.socket.from_stdlib_socket(self._listener) as listener:
            while True:
                accepted, _ = await listener.accept()
                peer = socket.socket(fileno=accepted.detach())
                uid = peer_of(peer).uid
                if uid not in allowed:
                    log.warning("refused a control connection of uid %d", uid)
                    peer.close()
                    continue
                if self._conversation is not None:
                    self._conversation.scope.cancel()
                self._conversation = conversation = _Conversation()
                nursery.start_soon(self._converse, conversation, peer)

    async def _converse(self, conversation: "_Conversation", peer: socket.socket) -> None:
        async def answer(body: Body, fds: Fds) -> tuple[Reply, Fds]:
            return await self._answer(conversation, body, fds)

        with conversation.scope:
            async with (
                open_channel(peer, answer, outgoing=self._events) as channel,
                trio.open_nursery() as nursery,
            ):
                conversation.channel = channel
                nursery.start_soon(_cancel_at, channel.ended, nursery.cancel_scope)
                await conversation.stopping.wait()
                await channel.idle()  # the answer to Stop is out
                nursery.cancel_scope.cancel()
        if self._conversation is conversation:
            self._conversation = None
        if conversation.stopping.is_set():
            self._stopped.set()

    async def _answer(
        self, conversation: "_Conversation", body: Body, fds: Fds
    ) -> tuple[Reply, Fds]:
        """Answer one request of the supervisor."""
        if isinstance(body, Serve):
            return await self._begin_to_serve(body, fds), ()
        close_all(fds)
        match body:
            case Hello():
                return self._hello(conversation, body), ()
            case _ if not conversation.greeted:
                raise Conflict("say hello first")
            case GetDescriptors():
                return self._descriptors()
            case Configure():
                self._connection_id = body.connection_id
                return await self._service.configure(body), ()
            case _:
                return await self._dispatch(conversation, body), ()

    async def _dispatch(self, conversation: "_Conversation", body: Body) -> Reply:
        service = self._service
        match body:
            case GetStats():
                return _report(await service.stats())
            case GetCache():
                return _report(await service.cache(body.path, body.cursor, body.limit))
            case GetConflicts():
                return _report(await service.conflicts(body.cursor, body.limit))
            case RestoreConflict():
                return _report(
                    await service.restore_conflict(body.id, body.path, partial=body.partial)
                )
            case DiscardConflict():
                await service.discard_conflict(body.id)
            case GetArchived():
                return _report(await service.archived(body.path, body.cursor, body.limit))
            case RestoreObjects():
                return _report(await service.restore_objects(body.request))
            case GetQueue():
                return _report(await service.queue(body.cursor, body.limit))
            case PauseQueue():
                return _report(await service.pause_queue())
            case ResumeQueue():
                return _report(await service.resume_queue())
            case HurryUpload():
                return _report(await service.hurry_upload(body.path))
            case Warm():
                return _report(await service.warm(body.id, body.paths, pin=body.pin))
            case StopWarming():
                await service.stop_warming(body.id)
            case Evict():
                return _report(await service.evict(body.paths))
            case Unpin():
                return _report(await service.unpin(body.paths))
            case GetPins():
                return _report(await service.pins())
            case GetCachedFiles():
                return _report(await service.cached_files(body.by, body.limit))
            case Flush():
                return _report(await service.flush(body.timeout_s))
            case Invalidate():
                return _report(await service.invalidate(body.path))
            case Drain():
                return _report(await service.drain(body.timeout_s))
            case SetOptions():
                await service.set_options(body.options)
            case SetCredentials():
                await service.set_credentials(body.credentials)
            case Discard():
                await service.discard()
            case Stop():
                # A supervisor that goes away now has asked nevertheless: a worker closed by half is no use.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_TIMEOUT_S):
                    await service.stop()
                conversation.stopping.set()
            case _:
                raise Unsupported(f"this worker does not know {type(body).__name__}")
        return Ok()

    def _hello(self, conversation: "_Conversation", body: Hello) -> HelloReply:
        if body.protocol != PROTOCOL_VERSION:
            raise Unsupported(
                f"this worker speaks protocol {PROTOCOL_VERSION}, the supervisor {body.protocol}",
                hint="unmount, then mount again with the new version",
            )
        conversation.greeted = True
        if self._last_status is not None:  # a new supervisor knows nothing yet
            self._events.put(self._last_status)
        return HelloReply(
            protocol=PROTOCOL_VERSION,
            version=__version__,
            pid=os.getpid(),
            mount=self._mount,
            serving=self._serve is not None,
            ended=self._ended,
        )

    async def _begin_to_serve(self, body: Serve, fds: Fds) -> Ok:
        if len(fds) != 3 or self._serve is not None:
            close_all(fds)
            if len(fds) != 3:
                raise Conflict(f"Serve needs three descriptors, not {len(fds)}")
            raise Conflict("this worker serves a connection already")
        fuse_fd, ring_fd, keeper_fd = fds
        fds = fuse_fd, ring_fd
        self._serve, self._fds, self._ended = body, fds, False
        try:
            try:
                if self._attach is not None:
                    await self._attach(self._describe(body), fuse_fd, ring_fd, keeper_fd)
            finally:
                os.close(keeper_fd)
            await self._service.serve(body, fuse_fd, ring_fd)
        except BaseException:
            if self._serve is body:
                self._serve, self._fds = None, ()
                close_all(fds)
            raise
        return Ok()

    def _descriptors(self) -> tuple[Descriptors, Fds]:
        serve = self._serve
        if serve is None:
            raise NotMounted("this worker serves no connection")
        return self._describe(serve), self._fds

    def _describe(self, serve: Serve) -> Descriptors:
        return Descriptors(
            connection_id=self._connection_id,
            flags=serve.flags,
            flags2=serve.flags2,
            max_write=serve.max_write,
            minor=serve.minor,
        )


class _Conversation:
    """One supervisor's connection."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.channel: Channel | None = None
        self.greeted = False
        self.stopping = trio.Event()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _report(body: msgspec.Struct) -> Report:
    return Report(body=msgspec.json.encode(body))
