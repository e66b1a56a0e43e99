"""Long work that goes on whether or not somebody waits for it: its record, progress and end.

An operation is stored when it begins and when it ends; progress lives in memory and in events. What was running
when a daemon died is failed by the next one: its own reconciler decides what happens to the mount.
"""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import trio

from s3mgr.schema import Operation, OperationKind, OperationState, Problem, Progress
from s3mgrd.errors import NotFound, S3mgrError, Stopping
from s3mgrd.mounts.ports import DescribeProblem
from s3mgrd.mounts.store import OperationRecord

KEPT: Final = timedelta(days=1)
# A daemon that is asked for thousands of mounts an hour must not keep a day of them in memory.
MAX_KEPT: Final = 5000
# Progress events no closer than this; the last one is never left out, since the end is an event too.
PROGRESS_INTERVAL_S: Final = 0.5

Listener = Callable[[OperationRecord], None]


class RunningOperation:
    """One operation while it runs: whoever does the work reports here; anybody may wait.

    Ending it twice is harmless: the first end counts.
    """

    def __init__(
        self, record: OperationRecord, describe: DescribeProblem, changed: Listener
    ) -> None:
        self._record = record
        self._describe: Final = describe
        self._changed: Final = changed
        self._ended: Final = trio.Event()
        self._last_progress = float("-inf")

    @property
    def record(self) -> OperationRecord:
        """The operation as it is now."""
        return self._record

    @property
    def operation(self) -> Operation:
        """The wire form."""
        return self._record.operation

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def progress(self, *, done: int, total: int | None) -> None:
        """Report how many bytes are done."""
        if not self.is_running:
            return
        progress = Progress(done=done, total=total, unit="bytes")
        if progress == self.operation.progress:
            return
        self._replace(progress=progress)
        now = trio.current_time()
        if now - self._last_progress >= PROGRESS_INTERVAL_S:
            self._last_progress = now
            self._changed(self._record)

    def succeed(self) -> None:
        """End it well."""
        self._end("succeeded", None)

    def fail(self, error: S3mgrError) -> None:
        """End it with *error*."""
        self._end("failed", self._describe(error, self.operation.target))

    def cancel(self) -> None:
        """End it because somebody asked for that."""
        self._end("cancelled", None)

    async def wait(self) -> Operation:
        """Return the operation when it has ended."""
        await self._ended.wait()
        return self.operation

    def _end(self, state: OperationState, error: Problem | None) -> None:
        if not self.is_running:
            return
        self._replace(state=state, error=error, finished_at=datetime.now(UTC))
        self._ended.set()
        self._changed(self._record)

    def _replace(self, **changes: object) -> None:
        operation = msgspec.structs.replace(self.operation, **changes)
        self._record = replace(self._record, operation=operation)


class Operations:
    """All operations that are running or were, within `KEPT`. `changed` is called for each change, without a checkpoint."""

    def __init__(self, boot_id: str, describe: DescribeProblem, changed: Listener) -> None:
        self._boot_id: Final = boot_id
        self._describe: Final = describe
        self._changed: Final = changed
        self._all: dict[str, RunningOperation] = {}

    def load(self, records: tuple[OperationRecord, ...]) -> list[OperationRecord]:
        """Take over what was stored; returns those that another daemon left running, which are failed now."""
        lost = []
        for record in records:
            running = RunningOperation(record, self._describe, lambda _record: None)
            if record.operation.state == "running":
                running.fail(
                    Stopping(
                        "the daemon ended while this was running",
                        hint="s3mgr ls shows what became of the mount.",
                    )
                )
                lost.append(running.record)
            else:
                running._ended.set()
            self._all[record.operation.id] = running
        return lost

    def begin(self, kind: OperationKind, target: str, owner_uid: int) -> RunningOperation:
        """Create one; the caller stores it and sees that somebody ends it."""
        self.prune()
        operation = Operation(
            id=str(uuid.uuid4()),
            kind=kind,
            target=target,
            state="running",
            created_at=datetime.now(UTC),
            boot_id=self._boot_id,
        )
        record = OperationRecord(operation=operation, owner_uid=owner_uid)
        running = RunningOperation(record, self._describe, self._changed)
        self._all[operation.id] = running
        self._changed(record)
        return running

    def get(self, operation_id: str) -> RunningOperation:
        """Find one. Raises `NotFound`."""
        try:
            return self._all[operation_id]
        except KeyError:
            raise NotFound(
                f"there is no operation {operation_id[:80]!r}",
                hint="Operations are kept for a day after they ended.",
            ) from None

    def all(self) -> list[RunningOperation]:
        """List all, oldest first."""
        return sorted(self._all.values(), key=lambda running: running.operation.created_at)

    def prune(self) -> datetime:
        """Forget what ended too long ago; returns the time before which an end is too long ago."""
        limit = datetime.now(UTC) - KEPT
        ended = [r for r in self.all() if r.operation.finished_at is not None]
        surplus = max(0, len(ended) - MAX_KEPT)
        for index, running in enumerate(ended):
            finished = running.operation.finished_at
            if index < surplus or (finished is not None and finished < limit):
                del self._all[running.operation.id]
        return limit
