"""Workers in memory: they answer at once, or as a test scripts them, and die on command."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from s3mgr.schema import (
    CacheReport,
    FlushReport,
    InvalidateReport,
    MountSpec,
    MountStats,
)
from s3mgrd.errors import S3mgrError, WorkerLost
from s3mgrd.mounts.ports import CredentialsSource, Worker, WorkerExit
from s3mgrd.worker.protocol import (
    Configure,
    Configured,
    CredentialGrant,
    Descriptors,
    Discard,
    Drain,
    Flush,
    GetCache,
    GetStats,
    Invalidate,
    Ok,
    Reply,
    Report,
    Serve,
    SessionEnded,
    StatusEvent,
    Stop,
    SupervisorRequest,
    WorkerEvent,
)

Script = Callable[["FakeWorker", SupervisorRequest], Awaitable[Reply | None]]
"""Answers a request in its own way; None: as usual."""


def report(body: object) -> Report:
    return Report(body=msgspec.json.encode(body))


class FakeWorker:
    """One worker. `files` and `size_bytes` are what it has not uploaded; a drain empties it unless `stuck`."""

    def __init__(self, workers: "FakeWorkers", name: str, pid: int) -> None:
        self.workers = workers
        self.name = name
        self.pid = pid
        self.serving = False
        self.ended = False
        self.connection_id = ""
        self.configured: Configure | None = None
        self.requests: list[SupervisorRequest] = []
        self.source: CredentialsSource | None = None
        self.stuck = False
        self.deaf_to_stop = False
        self._send, self._receive = trio.open_memory_channel[WorkerEvent](1000)
        self._exit = trio.Event()
        self._result = WorkerExit(status=None, signal=None)

    @property
    def events(self) -> trio.MemoryReceiveChannel[WorkerEvent]:
        return self._receive

    @property
    def is_alive(self) -> bool:
        return not self._exit.is_set()

    def set_credentials_source(self, source: CredentialsSource) -> None:
        self.source = source

    def memory_bytes(self) -> int | None:
        return 50 << 20

    def emit(self, event: WorkerEvent) -> None:
        """Send an event to the supervisor."""
        self._send.send_nowait(event)

    def end_session(self) -> None:
        """Notice that the kernel connection is gone."""
        self.ended, self.serving = True, False
        self.emit(SessionEnded())

    def die(self, *, status: int | None = None, signal: int | None = 9) -> None:
        """End the process."""
        if self.is_alive:
            self._result = WorkerExit(status=status, signal=signal)
            self._exit.set()
            self._send.close()

    def kill(self) -> None:
        self.die()

    async def wait(self) -> WorkerExit:
        await self._exit.wait()
        return self._result

    async def descriptors(self) -> tuple[Descriptors, int, int]:
        await trio.lowlevel.checkpoint()
        return (
            Descriptors(
                connection_id=self.connection_id, flags=1, flags2=2, max_write=1 << 20, minor=45
            ),
            100,
            101,
        )

    async def request(self, message: SupervisorRequest, *, fds: tuple[int, ...] = ()) -> Reply:
        await trio.lowlevel.checkpoint()
        if not self.is_alive:
            raise WorkerLost("the worker is gone")
        self.requests.append(message)
        answer: list[Reply] = []
        failure: list[S3mgrError] = []

        async def serve() -> None:
            try:
                answer.append(await self._answer(message))
            except S3mgrError as error:
                failure.append(error)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await self._exit.wait()
            nursery.cancel_scope.cancel()
        if failure:
            raise failure[0]
        if not answer:
            raise WorkerLost("the worker ended during the request")
        return answer[0]

    def asked(self, kind: type[SupervisorRequest]) -> list[Any]:
        """The requests of one kind so far."""
        return [r for r in self.requests if isinstance(r, kind)]

    async def _answer(self, message: SupervisorRequest) -> Reply:
        for script in (self.workers.scripts.get(self.name), self.workers.script):
            if script is not None and (scripted := await script(self, message)) is not None:
                return scripted
        left = self.workers.dirty.get(self.name, (0, 0))
        match message:
            case Configure():
                self.configured = message
                self.connection_id = message.connection_id
                return Configured(
                    journal_files=left[0],
                    journal_bytes=left[1],
                    conflicts=self.workers.conflicts.get(self.name, 0),
                )
            case Serve():
                self.serving = True
                return Ok()
            case Drain() | Flush():
                if self.stuck:
                    await trio.sleep(message.timeout_s)
                else:
                    left = self.workers.dirty[self.name] = (0, 0)
                return report(
                    FlushReport(
                        uploaded_files=0,
                        remaining_files=left[0],
                        remaining_bytes=left[1],
                        conflicts=self.workers.conflicts.get(self.name, 0),
                    )
                )
            case Discard():
                self.workers.dirty[self.name] = (0, 0)
                self.workers.conflicts.pop(self.name, None)
            case Stop():
                if self.deaf_to_stop:
                    await trio.sleep_forever()
                self.die(status=0, signal=None)
            case GetStats():
                return report(MountStats(worker_pid=self.pid, uptime_s=1.0, memory_bytes=1))
            case GetCache():
                return report(
                    CacheReport(
                        entries_total=1,
                        directories_listed=1,
                        hidden_keys=0,
                        metadata_bytes=1,
                        data_bytes=0,
                        data_limit_bytes=0,
                        staged_bytes=0,
                        metadata_hits=0,
                        metadata_misses=0,
                        data_hits=0,
                        data_misses=0,
                    )
                )
            case Invalidate():
                return report(InvalidateReport(listings=1, entries=2))
            case _:
                pass
        return Ok()


class FakeWorkers:
    """The workers port.

    Attributes:
        dirty: what the journal of each mount holds: files and bytes; survives workers.
        conflicts: how many conflict copies each mount has.
        script, scripts: answers of every worker, of the workers of one mount.
        start_errors: raised by the next starts, in order.
        left_behind: workers of an earlier daemon, by mount.
        kept_behind: connections that outlived the workers of an earlier daemon, by mount: their ids.
        keepers: how many keep the connection of each mount that is or was served.
    """

    def __init__(self) -> None:
        self.started: list[FakeWorker] = []
        self.dirty: dict[str, tuple[int, int]] = {}
        self.conflicts: dict[str, int] = {}
        self.script: Script | None = None
        self.scripts: dict[str, Script] = {}
        self.start_errors: list[S3mgrError] = []
        self.grant_errors: list[S3mgrError] = []
        self.left_behind: dict[str, FakeWorker] = {}
        self.kept_behind: dict[str, str] = {}
        self.keepers: dict[str, int] = {}
        self.forgotten: list[str] = []
        self.resolved: list[MountSpec] = []

    @asynccontextmanager
    async def start(self, mount: str) -> AsyncIterator[Worker]:
        await trio.lowlevel.checkpoint()
        if self.start_errors:
            raise self.start_errors.pop(0)
        assert not any(w.is_alive and w.name == mount for w in self.started), "two workers at once"
        worker = FakeWorker(self, mount, 1000 + len(self.started))
        self.started.append(worker)
        yield worker

    @asynccontextmanager
    async def adopt(self, mount: str) -> AsyncIterator[Worker | None]:
        await trio.lowlevel.checkpoint()
        worker = self.left_behind.get(mount)
        if worker is not None:
            self.started.append(worker)
        yield worker

    @asynccontextmanager
    async def keeper(self, mount: str) -> AsyncIterator[int]:
        await trio.lowlevel.checkpoint()
        yield 102
        self.keepers[mount] = 1

    async def kept(self, mount: str) -> tuple[Descriptors, int, int] | None:
        await trio.lowlevel.checkpoint()
        connection_id = self.kept_behind.get(mount)
        if connection_id is None:
            return None
        self.keepers[mount] = 1
        return (
            Descriptors(connection_id=connection_id, flags=1, flags2=2, max_write=1, minor=45),
            100,
            101,
        )

    async def release(self, mount: str) -> None:
        await trio.lowlevel.checkpoint()
        assert not any(w.is_alive and w.name == mount for w in self.started), "a worker still runs"
        self.keepers.pop(mount, None)

    async def credentials(self, spec: MountSpec) -> CredentialGrant:
        await trio.lowlevel.checkpoint()
        if self.grant_errors:
            raise self.grant_errors.pop(0)
        self.resolved.append(spec)
        return CredentialGrant(access_key="found", secret_key="found-secret")

    def log_path(self, mount: str) -> str:
        return f"/logs/{mount}.log"

    async def forget(self, mount: str) -> None:
        await trio.lowlevel.checkpoint()
        assert not any(w.is_alive and w.name == mount for w in self.started), "a worker still runs"
        self.forgotten.append(mount)
        self.dirty.pop(mount, None)

    def live(self, name: str) -> FakeWorker:
        """The one worker of *name* that runs."""
        found = [w for w in self.started if w.name == name and w.is_alive]
        assert len(found) == 1, f"{name} has {len(found)} live workers"
        return found[0]

    def alive(self) -> list[str]:
        """The mounts that have a worker."""
        return sorted(w.name for w in self.started if w.is_alive)


def status_event(**fields: Any) -> StatusEvent:  # noqa: ANN401 - whatever the event has
    return StatusEvent(**{"health": "ok", **fields})
