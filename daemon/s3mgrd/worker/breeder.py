"""The supervisor's side of the zygote: starts it, asks it for children, knows when they end, replaces it when it dies.

Concurrency: `Breeder.run` keeps one zygote alive; requests that come while there is none wait for the next. A child
that outlives its zygote becomes the supervisor's own (it is a child subreaper), so its exit is still known.
"""

import array
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import trio

from s3mgrd.errors import Unavailable
from s3mgrd.mounts.ports import WorkerExit
from s3mgrd.worker.channel import close_all
from s3mgrd.worker.zygote_messages import (
    MAX_PACKET_BYTES,
    Exited,
    Forked,
    ForkFailed,
    FromZygote,
    Ready,
    Setup,
    ToZygote,
)

READY_TIMEOUT_S: Final = 60.0  # cold imports on a slow disk
FORK_TIMEOUT_S: Final = 10.0
EXIT_REPORT_TIMEOUT_S: Final = 2.0
STOP_TIMEOUT_S: Final = 5.0
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0
CMSG_BYTES: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)

PASSED_ENVIRONMENT: Final = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", "USER", "LOGNAME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("PYTHONPATH", "PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONMALLOC"),
    }
)
"""What workers see of the daemon's environment. Not service manager variables, and no AWS_* that holds a secret or
could change which keys are used: credentials reach a worker over its control socket only."""

log = logging.getLogger(__name__)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of *environment* a zygote may have."""
    return {
        name: value
        for name, value in environment.items()
        if name in PASSED_ENVIRONMENT or name.startswith("LC_")
    }


class ZygoteLost(Unavailable):
    """The zygote died while it was asked. Ask again, with everything made anew: a child may have come of it.

    Not raised when there is no zygote, or when it says that it cannot fork.
    """


class Child:
    """A process that a zygote forked, or that an earlier supervisor left; owns its pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.exited = trio.Event()
        self.result = WorkerExit(None, None)
        self._pidfd = pidfd
        self._reported = trio.Event()

    def report(self, code: int) -> None:
        """Note what the zygote says about its end."""
        self.result = _exit_of(code)
        self._reported.set()

    def orphaned(self) -> None:
        """Note that its zygote is gone: nothing will be reported any more."""
        self._reported.set()

    async def watch(self) -> None:
        """Wait for the end of the process and set `exited`; run by one task."""
        await trio.lowlevel.wait_readable(self._pidfd)
        if not self._reap():
            with trio.move_on_after(EXIT_REPORT_TIMEOUT_S):
                await self._reported.wait()
            self._reap()
        self.exited.set()

    def _reap(self) -> bool:
        """Collect the status if it is our own child, i.e. its zygote died first."""
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return self._reported.is_set()
        if status is None:
            return False
        by_signal = status.si_code != os.CLD_EXITED
        self.report(-status.si_status if by_signal else status.si_status)
        return True

    def kill(self) -> None:
        """End it with SIGKILL; nothing when it has ended, or when `close` was called."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Close the pidfd; the process goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _exit_of(code: int) -> WorkerExit:
    return WorkerExit(None, -code) if code < 0 else WorkerExit(code, None)


class _Generation:
    """One zygote process and the conversation with it."""

    def __init__(self, process: trio.Process, sock: trio.socket.SocketType) -> None:
        self.process = process
        self._socket = sock
        self._last_id = 0
        self._pending: dict[int, trio.MemorySendChannel[Child | ForkFailed]] = {}
        self._children: dict[int, Child] = {}
        self._send_lock = trio.Lock()

    async def send(self, message: ToZygote, fds: tuple[int, ...] = ()) -> None:
        data = msgspec.json.encode(message)
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        )
        async with self._send_lock:
            await self._socket.sendmsg([data], ancillary)

    async def receive(self) -> tuple[FromZygote, tuple[int, ...]] | None:
        """Wait for a message; None: the zygote has died."""
        try:
            data, ancillary, _, _ = await self._socket.recvmsg(
                MAX_PACKET_BYTES, CMSG_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return None
        fds = array.array("i")
        for _, _, raw in ancillary:
            fds.frombytes(raw)
        if not data:
            return None
        message: FromZygote = msgspec.json.decode(data, type=FromZygote)
        return message, tuple(fds)

    async def fork(self, make: Callable[[int], ToZygote], fds: tuple[int, ...]) -> Child:
        self._last_id += 1
        number = self._last_id
        answer: trio.MemoryReceiveChannel[Child | ForkFailed]
        self._pending[number], answer = trio.open_memory_channel[Child | ForkFailed](1)
        try:
            with trio.fail_after(FORK_TIMEOUT_S):
                await self.send(make(number), fds)
                child = await answer.receive()
        except (OSError, trio.EndOfChannel, trio.ClosedResourceError) as exc:
            raise ZygoteLost("the process that forks workers has died") from exc
        except trio.TooSlowError as exc:
            raise Unavailable("the process that forks workers does not answer") from exc
        except trio.Cancelled:
            self._disown(answer)
            raise
        finally:
            self._pending.pop(number, None)
        if isinstance(child, ForkFailed):
            raise Unavailable(f"cannot start a process: {child.detail}")
        return child

    async def read(self) -> None:
        """Take messages until the zygote has died."""
        while (received := await self.receive()) is not None:
            message, fds = received
            if isinstance(message, Forked):
                (pidfd,) = fds
                child = Child(message.pid, pidfd)
                self._children[message.pid] = child
                self._answer(message.id, child)
            else:
                close_all(fds)
                if isinstance(message, ForkFailed):
                    self._answer(message.id, message)
                elif isinstance(message, Exited):
                    child_that_ended = self._children.pop(message.pid, None)
                    if child_that_ended is not None:
                        child_that_ended.report(message.code)

    def _disown(self, answer: trio.MemoryReceiveChannel[Child | ForkFailed]) -> None:
        """End a child that arrived just when nobody wanted it any more."""
        try:
            child = answer.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return
        if isinstance(child, Child):
            child.kill()
            child.close()

    def _answer(self, number: int, answer: Child | ForkFailed) -> None:
        pending = self._pending.get(number)
        if pending is not None:
            pending.send_nowait(answer)
        elif isinstance(answer, Child):  # nobody wants it any more
            answer.kill()
            answer.close()
            self._children.pop(answer.pid, None)

    def lost(self) -> None:
        """Tell everybody that this zygote is gone."""
        for pending in self._pending.values():
            pending.close()
        for child in self._children.values():
            child.orphaned()
        self._socket.close()


class Breeder:
    """Keeps a zygote and has it fork.

    Args:
        setup: what the zygote is to import and whom its workers run as.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._generation: _Generation | None = None
        self._arrived = trio.Event()

    async def run(self) -> None:
        """Keep a zygote alive until cancelled."""
        backoff_s = BACKOFF_MIN_S
        while True:
            started_at = trio.current_time()
            await self._live_once()
            if trio.current_time() - started_at > READY_TIMEOUT_S:
                backoff_s = BACKOFF_MIN_S
            log.warning("the zygote has died; starting another")
            await trio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def fork(self, make: Callable[[int], ToZygote], *, fds: tuple[int, ...]) -> Child:
        """Have a child forked for the message that *make* makes of a request id; the descriptors stay the caller's.

        Raises:
            ZygoteLost: the zygote died just now.
            Unavailable: it could not be made.
        """
        with trio.move_on_after(READY_TIMEOUT_S):
            while (generation := self._generation) is None:
                await self._arrived.wait()
            return await generation.fork(make, fds)
        raise Unavailable(
            "the process that forks workers does not start", hint="the daemon's log says why"
        )

    async def _live_once(self) -> None:
        """Start a zygote, serve it until it dies, leave nothing of it behind."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = await trio.lowlevel.open_process(
                # -P: do not import from the working directory.
                [sys.executable, "-P", "-m", "s3mgrd.worker.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=clean_environment(os.environ),
                start_new_session=True,  # Ctrl-C is for the supervisor
            )
        generation = _Generation(process, trio.socket.from_stdlib_socket(ours))
        try:
            await self._converse(generation)
        finally:
            if self._generation is None:
                process.kill()  # it still warms up: nobody waits for seconds of imports
            self._generation = None
            generation.lost()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_TIMEOUT_S):
                await process.wait()  # its end of the socket is closed: it goes by itself
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_TIMEOUT_S):
                    await process.wait()

    async def _converse(self, generation: _Generation) -> None:
        try:
            await generation.send(self._setup)
            with trio.fail_after(READY_TIMEOUT_S):
                received = await generation.receive()
        except (OSError, trio.TooSlowError):
            return
        if received is None or not isinstance(received[0], Ready):
            return
        self._generation = generation
        self._arrived.set()
        self._arrived = trio.Event()
        await generation.read()
