"""A laboratory for the process side: real mounts, a real zygote, and nothing left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import trio

from s3mgr.schema import MountSpec
from s3mgrd.fuse import syscalls
from s3mgrd.fuse.connection import FuseConnection, FuseKernel
from s3mgrd.fuse.mountinfo import read_mountinfo
from s3mgrd.worker import keepers
from s3mgrd.worker.protocol import Configure, Ok, Serve
from s3mgrd.worker.spawn import WorkerProcess, WorkerProcesses
from s3mgrd.worker.workdirs import WorkDirs

WAIT_S = 20.0
T = TypeVar("T")


class Lab:
    """One supervisor's means, and helpers to use them."""

    def __init__(self, base: Path, stack: ExitStack, nursery: trio.Nursery) -> None:
        self.base = base
        self.state_dir = base / "state"
        self.cache_dir = base / "cache"
        self.kernel = FuseKernel(user_mode=False)
        self._stack = stack
        self._nursery = nursery
        self.pids: set[int] = set()
        self._made: set[str] = set()

    async def supervisor(self) -> WorkerProcesses:
        """Start a supervisor's worker processes; it lives until the test's end."""
        return await self.keep(self.new_workers())

    async def keep(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter *context* and hold it to the test's end, in a task of its own: fixtures and tests are different tasks."""

        async def hold(*, task_status: trio.TaskStatus[T]) -> None:
            async with context as value:
                task_status.started(value)
                await trio.sleep_forever()

        value: T = await self._nursery.start(hold)
        return value

    def new_workers(self, *, worker_user: str | None = "nobody") -> WorkerProcesses:
        """Make (not start) a supervisor's worker processes."""
        return WorkerProcesses(
            self.state_dir,
            self.cache_dir,
            worker_user,
            entry="tests.fuse.demo_worker:run",
            warm=(),
            resolver="tests.fuse.demo_worker:resolve",
        )

    @asynccontextmanager
    async def worker(self, workers: WorkerProcesses, mount: str) -> AsyncIterator[WorkerProcess]:
        """Start a worker that is killed at the test's end."""
        with trio.fail_after(WAIT_S):
            async with workers.start(mount) as worker:
                self.pids.add(worker.pid)
                yield worker

    def spec(self, name: str, **changes: object) -> MountSpec:
        """Describe a mount whose mountpoint exists; made once, for later it may be a mount that nobody serves."""
        mountpoint = self.base / "mnt" / name
        if name not in self._made:
            self._made.add(name)
            mountpoint.mkdir(parents=True)
        return MountSpec(bucket="demo", mountpoint=str(mountpoint), **changes)  # type: ignore[arg-type] # any field

    async def mount(self, name: str, *, writeback_cache: bool = False) -> FuseConnection:
        """Mount; the connection is closed at the test's end."""
        connection = await self.kernel.mount(
            self.spec(name),
            name=name,
            connection_id=f"id-of-{name}",
            writeback_cache=writeback_cache,
        )
        self._stack.callback(connection.close)
        return connection

    async def serve(
        self, worker: WorkerProcess, connection: FuseConnection, *, resumed: bool = False
    ) -> None:
        """Have *worker* serve *connection*."""
        name = connection.id.removeprefix("id-of-")
        await worker.request(
            Configure(
                name=name,
                spec=self.spec(name),
                credentials=None,
                connection_id=connection.id,
                probe=False,
                supervisor_uid=os.getuid(),
            )
        )
        message = Serve(
            resumed=resumed,
            resend=connection.can_resend,
            flags=connection.flags,
            flags2=connection.flags2,
            max_write=connection.max_write,
            minor=connection.minor,
        )
        dirs = WorkDirs(self.state_dir, self.cache_dir, None)
        async with keepers.renewed(dirs, name) as keeper_fd:
            fds = connection.fuse_fd, connection.ring_fd, keeper_fd
            assert await worker.request(message, fds=fds) == Ok()

    def program(self, code: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a Python program outside of the supervisor; it is killed at the test's end."""
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        self._stack.callback(_end, process)
        return process

    async def output(self, process: subprocess.Popen[bytes], text: bytes = b"") -> str:
        """Send *text* to a program that succeeds, wait for its end, and return what it printed."""
        with trio.fail_after(WAIT_S):
            out, err = await trio.to_thread.run_sync(
                process.communicate, text, abandon_on_cancel=True
            )
        assert process.returncode == 0, err.decode()
        return out.decode().strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


def kill_all(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def detach(base: Path) -> None:
    for entry in reversed(read_mountinfo()):
        if entry.mountpoint.startswith(f"{base}/"):
            with suppress(OSError):
                syscalls.abort_connection(entry.connection)
            with suppress(OSError):
                syscalls.unmount(entry.mountpoint, lazy=True)
