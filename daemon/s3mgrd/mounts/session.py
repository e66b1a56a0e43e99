"""One conversation with one worker, as a task: it pumps events, notices the end, and closes in order."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from s3mgrd.errors import S3mgrError, TimedOut
from s3mgrd.mounts.ports import CredentialsSource, Worker, WorkerExit
from s3mgrd.worker.protocol import Reply, SessionEnded, Stop, SupervisorRequest, WorkerEvent

log = logging.getLogger(__name__)

# A worker that was told to stop closes a database; one that takes longer hangs.
STOP_TIMEOUT_S: Final = 10.0
# SIGKILL is immediate unless the process sits in an uninterruptible call.
KILL_TIMEOUT_S: Final = 5.0
# Between the end of the control socket and the exit of the process.
LAST_WORDS_S: Final = 1.0


class WorkerSession:
    """A worker that runs, and what is known of it.

    Attributes:
        gone: set when the process has ended, or can no longer be talked to and was killed.
        ended: set when the kernel connection that it served is gone.
        exit: how the process ended; None while it runs.
    """

    def __init__(
        self, worker: Worker, on_event: Callable[[WorkerEvent], None], wake: Callable[[], None]
    ) -> None:
        self.worker: Final = worker
        self.gone: Final = trio.Event()
        self.ended: Final = trio.Event()
        self.exit: WorkerExit | None = None
        self._on_event: Final = on_event
        self._wake: Final = wake
        self._close: Final = trio.Event()
        self._closed: Final = trio.Event()
        if worker.ended:
            self.ended.set()

    @property
    def is_alive(self) -> bool:
        """Whether the worker can be asked for anything."""
        return not self.gone.is_set()

    async def request(self, message: SupervisorRequest, *, fds: tuple[int, ...] = ()) -> Reply:
        """Ask the worker; see `Worker.request`."""
        return await self.worker.request(message, fds=fds)

    async def stop(self) -> None:
        """Ask the worker to end, kill it if it does not, and close the conversation.

        Takes at most `STOP_TIMEOUT_S` + `KILL_TIMEOUT_S`. Cancelled, it kills at once: nothing is lost by that,
        what was acknowledged is in the journal.
        """
        if self.is_alive:
            try:
                with trio.fail_after(STOP_TIMEOUT_S):
                    await self.worker.request(Stop())
                    await self.gone.wait()
            except trio.TooSlowError:
                log.warning(
                    "worker %d does not stop within %g s and is killed",
                    self.worker.pid,
                    STOP_TIMEOUT_S,
                )
            except S3mgrError as error:
                log.debug("worker %d while stopping: %s", self.worker.pid, error.detail)
            except trio.Cancelled:
                self.worker.kill()
                self._close.set()
                raise
        await self.kill()

    async def kill(self) -> None:
        """End the worker now and close the conversation; at most `KILL_TIMEOUT_S`."""
        self.worker.kill()
        try:
            with trio.move_on_after(KILL_TIMEOUT_S):
                await self.gone.wait()
        finally:
            self._close.set()  # also when cancelled: nobody comes back to this session
        await self.leave()

    async def leave(self) -> None:
        """Close the conversation; the process lives on if it does."""
        self._close.set()
        with trio.move_on_after(KILL_TIMEOUT_S):
            await self._closed.wait()

    async def _pump(self) -> None:
        async for event in self.worker.events:
            if isinstance(event, SessionEnded):
                self.ended.set()
                self._wake()
            self._on_event(event)
        with trio.move_on_after(LAST_WORDS_S):
            await self.gone.wait()
        if self.is_alive:
            # It serves programs but nobody can reach it: a new one can do better.
            log.warning("worker %d closed its control socket and is killed", self.worker.pid)
            self.worker.kill()

    async def _watch(self) -> None:
        self.exit = await self.worker.wait()
        self.gone.set()
        self._wake()

    async def run(self) -> None:
        """Pump until the conversation is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            nursery.start_soon(self._watch)
            await self._close.wait()
            nursery.cancel_scope.cancel()

    def mark_closed(self) -> None:
        """Tell whoever waits in `leave` that nothing of the conversation is left."""
        self._closed.set()


async def converse(
    opening: AbstractAsyncContextManager[Worker | None],
    credentials: CredentialsSource,
    on_event: Callable[[WorkerEvent], None],
    wake: Callable[[], None],
    *,
    task_status: trio.TaskStatus[WorkerSession | None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hold one conversation; started with the session, or with None when there is no worker to adopt.

    Raises what *opening* raises, before it has started.
    """
    async with opening as worker:
        if worker is None:
            task_status.started(None)
            return
        worker.set_credentials_source(credentials)
        session = WorkerSession(worker, on_event, wake)
        task_status.started(session)
        try:
            await session.run()
        finally:
            session.mark_closed()


async def ask(
    session: WorkerSession, message: SupervisorRequest, *, timeout_s: float, what: str
) -> Reply:
    """Ask with a limit. Raises `TimedOut` besides what `Worker.request` raises."""
    try:
        with trio.fail_after(timeout_s):
            return await session.request(message)
    except trio.TooSlowError:
        raise TimedOut(
            f"the worker did not answer within {timeout_s:g} s ({what})",
            hint="See its log: s3mgr logs NAME.",
        ) from None


def describe_exit(end: WorkerExit | None) -> str:
    """Say in words how a worker ended."""
    if end is None or (end.status is None and end.signal is None):
        return "ended"
    if end.signal is not None:
        return f"was ended by signal {end.signal}"
    return f"exited with status {end.status}"
