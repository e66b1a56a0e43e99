"""Workers for the supervisor: their directories, sockets and logs, their start, adoption and end.

Concurrency: `WorkerProcesses` is an async context manager; its tasks keep the zygote and the logs' size. Each worker's
conversation lives in the context that `start` or `adopt` gives.
"""

import ctypes
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
)
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import trio

from s3mgr import __version__
from s3mgr.schema import MountSpec
from s3mgrd.errors import CredentialsRejected, TimedOut, Unavailable, Unsupported, WorkerLost
from s3mgrd.mounts.ports import CredentialsSource, WorkerExit
from s3mgrd.worker import keepers, workdirs
from s3mgrd.worker.background import background_nursery
from s3mgrd.worker.breeder import Breeder, Child, ZygoteLost
from s3mgrd.worker.channel import (
    Body,
    Channel,
    EventQueue,
    Fds,
    close_all,
    open_channel,
    raise_error,
)
from s3mgrd.worker.privileges import Identity, find_identity
from s3mgrd.worker.protocol import (
    PROTOCOL_VERSION,
    CredentialGrant,
    Descriptors,
    ErrorReply,
    GetCredentials,
    GetDescriptors,
    Hello,
    HelloReply,
    Reply,
    SupervisorRequest,
    WorkerEvent,
)
from s3mgrd.worker.zygote_messages import ForkWorker, ResolveCredentials, Setup

HELLO_TIMEOUT_S: Final = 20.0
RESOLVE_TIMEOUT_S: Final = 60.0
LOG_CHECK_INTERVAL_S: Final = 30.0
REAP_INTERVAL_S: Final = 0.2
MAX_ANSWER_BYTES: Final = 64 << 10
PR_SET_CHILD_SUBREAPER: Final = 36

DEFAULT_ENTRY: Final = "s3mgrd.worker.main:run_worker"
DEFAULT_WARM: Final = ("s3mgrd.s3.warm:warm",)
DEFAULT_RESOLVER: Final = "s3mgrd.s3.credentials:resolve"

log = logging.getLogger(__name__)


class WorkerProcess:
    """A worker and the conversation with it; implements `s3mgrd.mounts.ports.Worker`."""

    def __init__(
        self,
        channel: Channel,
        child: Child,
        events: trio.MemoryReceiveChannel[WorkerEvent],
        answers: "_Answers",
        hello: HelloReply,
    ) -> None:
        self.pid = child.pid
        self.serving = hello.serving
        self.ended = hello.ended
        self._answers = answers
        self._channel = channel
        self._child = child
        self._events = events

    @property
    def events(self) -> trio.MemoryReceiveChannel[WorkerEvent]:
        """What the worker reports; ends with the conversation."""
        return self._events

    def set_credentials_source(self, source: CredentialsSource) -> None:
        """Answer the worker's requests for credentials by *source*."""
        self._answers.source = source

    async def request(self, message: SupervisorRequest, *, fds: tuple[int, ...] = ()) -> Reply:
        """Send *message* and wait for the reply; see `s3mgrd.mounts.ports.Worker`."""
        reply, received = await self._channel.request(message, fds)
        close_all(received)
        return reply

    async def descriptors(self) -> tuple[Descriptors, int, int]:
        """Take duplicates of its kernel connection and ring; the caller owns both."""
        reply, fds = await self._channel.request(GetDescriptors())
        if isinstance(reply, Descriptors) and len(fds) == 2:
            return reply, fds[0], fds[1]
        close_all(fds)
        raise WorkerLost(f"the worker gave {len(fds)} descriptors instead of two")

    async def wait(self) -> WorkerExit:
        """Wait until the process has ended."""
        await self._child.exited.wait()
        return self._child.result

    def kill(self) -> None:
        """End the process with SIGKILL; nothing when it has ended. Only within the context that gave this worker."""
        self._child.kill()

    def memory_bytes(self) -> int | None:
        """Resident memory that is not shared with files, from /proc; None when the process is gone."""
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                _, resident, shared, *_ = file.read().split()
        except OSError:
            return None
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


class _Answers:
    """Answers what a worker asks of its supervisor."""

    def __init__(self) -> None:
        self.source: CredentialsSource | None = None

    async def __call__(self, body: Body, fds: Fds) -> tuple[Reply, Fds]:
        close_all(fds)
        if not isinstance(body, GetCredentials):
            raise Unsupported(f"a supervisor does not answer {type(body).__name__}")
        if self.source is None:
            raise Unavailable("the supervisor is not ready to give credentials")
        return await self.source(), ()


class WorkerProcesses:
    """Makes worker processes; implements `s3mgrd.mounts.ports.Workers`. An async context manager.

    Args:
        state_dir: holds the workers' databases, logs and sockets.
        cache_dir: holds what they can fetch again.
        worker_user: whom workers run as; None: as the daemon itself (it is an ordinary user).
        entry: what a worker runs, ``module:function``; see `s3mgrd.worker.zygote.Entry`.
        warm: what the zygote calls before it forks, to import and prepare.
        resolver: resolves credentials: called with a `MountSpec`, returns a `CredentialGrant`.
        heir: what the zygote calls with the state directory when this process has gone; see `s3mgrd.worker.zygote.Heir`.
    """

    def __init__(
        self,
        state_dir: Path,
        cache_dir: Path,
        worker_user: str | None,
        *,
        entry: str = DEFAULT_ENTRY,
        warm: tuple[str, ...] = DEFAULT_WARM,
        resolver: str = DEFAULT_RESOLVER,
        heir: str = "",
    ) -> None:
        self._identity: Identity | None = find_identity(worker_user) if worker_user else None
        self._dirs = workdirs.WorkDirs(state_dir.absolute(), cache_dir.absolute(), self._identity)
        setup = Setup(
            entry=entry,
            warm=warm,
            resolver=resolver,
            heir=heir,
            state_dir=str(state_dir.absolute()),
            uid=self._identity.uid if self._identity else None,
            gid=self._identity.gid if self._identity else None,
        )
        self._breeder = Breeder(setup)
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        """Make the directories and start the zygote; `start` waits for it."""
        await trio.to_thread.run_sync(self._dirs.prepare)
        _set_subreaper(on=True)
        nursery = await self._stack.enter_async_context(background_nursery())
        nursery.start_soon(self._breeder.run)
        nursery.start_soon(self._keep_logs_small)
        self._nursery = nursery
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the zygote. Workers go on."""
        try:
            await self._stack.__aexit__(kind, value, traceback)
        finally:
            _set_subreaper(on=False)

    @asynccontextmanager
    async def start(self, mount: str) -> AsyncIterator[WorkerProcess]:
        """Fork a worker and say hello; see `s3mgrd.mounts.ports.Workers`."""
        try:
            child, sock = await self._spawn(mount)
        except ZygoteLost:
            child, sock = await self._spawn(mount)
        greeted = False

        def identify(_: HelloReply) -> Child:
            nonlocal greeted
            greeted = True
            return child

        try:
            async with self._converse(sock, mount, identify) as worker:
                yield worker
        finally:
            if not greeted:
                child.kill()
            child.close()
            if self._nursery is not None:
                self._nursery.start_soon(_reap_group, child.pid)

    async def _spawn(self, mount: str) -> tuple[Child, socket.socket]:
        """Make the worker's files, its process, and a connection to it."""
        prepare = partial(self._prepare, mount)
        listener, log_fd = await trio.to_thread.run_sync(prepare)
        try:
            child = await self._breeder.fork(
                lambda number: ForkWorker(
                    id=number,
                    mount=mount,
                    mount_dir=str(self._dirs.mount_dir(mount)),
                    cache_dir=str(self._dirs.mount_cache_dir(mount)),
                ),
                fds=(listener.fileno(), log_fd),
            )
            # The socket listens already: this does not wait for the worker.
            sock = self._dirs.connect(mount)
        finally:
            listener.close()
            os.close(log_fd)
        if sock is None:
            child.kill()
            child.close()
            raise Unavailable(f"the worker of {mount!r} ended before it could be greeted")
        return child, sock

    def _prepare(self, mount: str) -> tuple[socket.socket, int]:
        try:
            self._dirs.prepare_mount(mount)
            log_fd = self._dirs.open_log(mount)
        except OSError as exc:
            raise Unavailable(
                f"cannot make the files of {mount!r}: {exc.strerror}: {exc.filename}",
                hint="check the state and cache directories: space, permissions, file system",
            ) from exc
        try:
            return self._dirs.listen(mount), log_fd
        except BaseException:
            os.close(log_fd)
            raise

    @asynccontextmanager
    async def adopt(self, mount: str) -> AsyncIterator[WorkerProcess | None]:
        """Find the worker that an earlier supervisor left; see `s3mgrd.mounts.ports.Workers`."""
        sock = await trio.to_thread.run_sync(self._dirs.connect, mount)
        if sock is None:
            yield None
            return
        with ExitStack() as owned:

            def identify(hello: HelloReply) -> Child:
                child = self._adopt_process(hello.pid, mount)
                owned.callback(child.close)
                return child

            async with self._converse(sock, mount, identify) as worker:
                yield worker

    def keeper(self, mount: str) -> AbstractAsyncContextManager[int]:
        """Give the socket that `Serve` takes along; see `s3mgrd.mounts.ports.Workers`."""
        return keepers.renewed(self._dirs, mount)

    async def kept(self, mount: str) -> tuple[Descriptors, int, int] | None:
        """Take the connection that outlived its worker; see `s3mgrd.mounts.ports.Workers`."""
        return await keepers.ask(self._dirs, mount)

    async def release(self, mount: str) -> None:
        """Keep the connection no longer than its worker lives; see `s3mgrd.mounts.ports.Workers`."""
        await trio.to_thread.run_sync(keepers.release, self._dirs, mount)

    def _adopt_process(self, pid: int, mount: str) -> Child:
        """Open the process that a worker says it is.

        It is only believed to be a process of the worker user: nothing else may be ended by its word.
        """
        expected = self._identity.uid if self._identity else os.getuid()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            raise Unavailable(f"the worker of {mount!r} names no living process") from exc
        try:
            actual = _uid_of(pid)
        except OSError:
            actual = None
        if actual != expected:
            os.close(pidfd)
            raise Unavailable(f"the worker of {mount!r} names a process that is not its own")
        child = Child(pid, pidfd)
        child.orphaned()  # whoever may wait for it, we shall not be told
        return child

    @asynccontextmanager
    async def _converse(
        self, sock: socket.socket, mount: str, identify: Callable[[HelloReply], Child]
    ) -> AsyncIterator[WorkerProcess]:
        """Greet the worker at the other end of *sock* and talk with it until the context ends."""
        queue, answers = EventQueue(), _Answers()
        send, receive = trio.open_memory_channel[WorkerEvent](0)
        async with (
            background_nursery() as nursery,
            open_channel(sock, answers, incoming=queue) as channel,
        ):
            hello = await self._greet(channel, mount)
            child = identify(hello)
            nursery.start_soon(child.watch)
            nursery.start_soon(_pump, queue, send)
            with receive:
                yield WorkerProcess(channel, child, receive, answers, hello)

    async def _greet(self, channel: Channel, mount: str) -> HelloReply:
        try:
            with trio.fail_after(HELLO_TIMEOUT_S):
                reply, fds = await channel.request(
                    Hello(protocol=PROTOCOL_VERSION, version=__version__)
                )
        except trio.TooSlowError as exc:
            raise TimedOut(f"the worker of {mount!r} does not answer") from exc
        except WorkerLost as exc:
            raise Unavailable(
                f"the worker of {mount!r} ended at its start",
                hint=f"its log says why: {self.log_path(mount)}",
            ) from exc
        close_all(fds)
        if not isinstance(reply, HelloReply) or reply.mount != mount:
            raise Unavailable(f"what listens at the control socket of {mount!r} is no worker of it")
        return reply

    async def credentials(self, spec: MountSpec) -> CredentialGrant:
        """Resolve the daemon's own credentials for *spec*; see `s3mgrd.mounts.ports.Workers`.

        In a process of its own, as the daemon's user: libraries that read configuration files, run helper programs
        and wait for metadata services have no business in the supervisor.

        Raises:
            CredentialsRejected: there are none.
            TimedOut: a source did not answer.
        """
        try:
            answer = await self._resolve(spec)
        except ZygoteLost:
            answer = await self._resolve(spec)
        return _grant(answer)

    async def _resolve(self, spec: MountSpec) -> bytes:
        """Have a process resolve credentials and return what it writes."""
        environment = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(read_fd) as pipe:
            try:
                child = await self._breeder.fork(
                    lambda number: ResolveCredentials(
                        id=number, spec=spec, environment=environment
                    ),
                    fds=(write_fd,),
                )
            finally:
                os.close(write_fd)
            try:
                with trio.fail_after(RESOLVE_TIMEOUT_S):
                    return await _read_all(pipe)
            except trio.TooSlowError as exc:
                raise TimedOut(
                    "the sources of credentials did not answer in time",
                    hint="check credential_process programs and metadata services",
                ) from exc
            finally:
                child.kill()
                child.close()

    def log_path(self, mount: str) -> str:
        """Where the worker of *mount* writes its log."""
        return str(self._dirs.log_path(mount))

    async def forget(self, mount: str) -> None:
        """Remove everything that is kept for *mount*; see `s3mgrd.mounts.ports.Workers`."""
        await trio.to_thread.run_sync(self._dirs.forget, mount)

    async def _keep_logs_small(self) -> None:
        while True:
            await trio.sleep(LOG_CHECK_INTERVAL_S)
            await trio.to_thread.run_sync(self._rotate_logs)

    def _rotate_logs(self) -> None:
        for path in self._dirs.log_paths():
            try:
                workdirs.rotate_log(path)
            except OSError as exc:
                log.warning("cannot cut the log %s: %s", path, exc)


async def _reap_group(pid: int) -> None:
    """Collect what a worker leaves behind: its messenger, which becomes a child of ours when the worker dies.

    It ends when the next worker serves, or when the connection has ended. A worker is the leader of its
    process group, and no other group can have its number while a process of it is left.
    """
    while True:
        try:
            os.waitid(os.P_PGID, pid, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - WNOHANG
        except ChildProcessError:
            return
        await trio.sleep(REAP_INTERVAL_S)


async def _pump(queue: EventQueue, send: trio.MemorySendChannel[WorkerEvent]) -> None:
    """Hand events on, one at a time, so that those not taken yet stay in the queue, which knows what may go."""
    async with send:
        try:
            while (event := await queue.get()) is not None:
                await send.send(event)
        except trio.BrokenResourceError:
            return


async def _read_all(pipe: trio.lowlevel.FdStream) -> bytes:
    answer = bytearray()
    async for part in pipe:
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            break
    return bytes(answer)


def _grant(answer: bytes) -> CredentialGrant:
    """Read a resolver's answer."""
    try:
        reply = msgspec.json.decode(answer, type=CredentialGrant | ErrorReply)
    except msgspec.MsgspecError as exc:
        raise CredentialsRejected(
            "credentials could not be resolved: the resolver failed",
            hint="the daemon's log says why",
        ) from exc
    if isinstance(reply, ErrorReply):
        raise_error(reply)
    return reply


def _uid_of(pid: int) -> int | None:
    """Return the user of a process; the owner of /proc/PID would not do, it is root for undumpable ones."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("Uid:"):
                return int(line.split()[1])
    return None


def _set_subreaper(*, on: bool) -> None:
    """Become, or stop being, the parent of descendants whose own parent has died."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(on), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
