"""Bringing files into a mount's block cache, as operations: a worker does it and tells how far it is.

A worker that dies is followed by one that is asked the same again, and finds there what the first one fetched.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import trio

from s3mgr.schema import Progress, WarmProgress, WarmReport
from s3mgrd.errors import S3mgrError, UserError
from s3mgrd.mounts.core import MountCore
from s3mgrd.mounts.operations import Operations, RunningOperation
from s3mgrd.mounts.reports import decode_report
from s3mgrd.worker.protocol import StopWarming, Warm

STOP_TIMEOUT_S: Final = 10.0
MAX_PATHS_BYTES: Final = 64 << 10


def sendable(paths: Sequence[str]) -> list[str]:
    """Return *paths* for a message to a worker. Raises `UserError`: they do not fit into one."""
    if sum(len(path.encode()) + 4 for path in paths) > MAX_PATHS_BYTES:
        raise UserError(
            "so many paths do not fit into one request",
            hint="name directories instead of what is in them",
        )
    return list(paths)


class Warmings:
    """The operations of all mounts that bring files into caches."""

    def __init__(self, operations: Operations) -> None:
        self._operations: Final = operations
        self._running: dict[str, RunningOperation] = {}

    async def begin(
        self,
        nursery: trio.Nursery,
        actor: MountCore,
        kind: Literal["warm", "pin"],
        paths: Sequence[str],
    ) -> RunningOperation:
        """Ask the worker, and follow what it does in a task of *nursery*."""
        wanted = sendable(paths)
        detail = ", ".join(path or "/" for path in paths[:10]) + (" …" if len(paths) > 10 else "")
        running = await self._operations.begin(
            kind, actor.name, actor.record.owner_uid, detail=detail
        )
        nursery.start_soon(self._follow, actor, running, wanted)
        return running

    def report(self, warming: Sequence[WarmProgress]) -> None:
        """Take over what a worker says of how far it is. No checkpoint."""
        for progress in warming:
            running = self._running.get(progress.id)
            if running is not None:
                running.progress(done=progress.bytes_done, total=progress.bytes_total)

    async def cancel(self, actor: MountCore, running: RunningOperation) -> None:
        """Stop one; what is fetched stays."""
        running.cancel()
        try:
            await actor.ask(StopWarming(id=running.operation.id), timeout_s=STOP_TIMEOUT_S)
        except S3mgrError:
            return  # no worker: nothing goes on

    async def _follow(self, actor: MountCore, running: RunningOperation, paths: list[str]) -> None:
        operation = running.operation
        self._running[operation.id] = running
        message = Warm(id=operation.id, paths=paths, pin=operation.kind == "pin")
        try:
            report = decode_report(await actor.ask(message, timeout_s=math.inf), WarmReport)
        except S3mgrError as error:
            running.fail(error)
        else:
            left_out = ""
            if report.skipped:
                left_out = f"files left out, because they changed meanwhile or lie in an archive: {report.skipped}"
            running.report(Progress(done=report.bytes, total=report.bytes, unit="bytes"), left_out)
            running.succeed()
        finally:
            del self._running[operation.id]
