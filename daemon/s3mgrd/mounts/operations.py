"""Long work that goes on whether or not somebody waits for it: its record, progress and end.

An operation is stored when it begins and, a moment later, when it ended; progress lives in memory and in events.
What was running when a daemon died is failed by the next one, whose reconciler decides what happens to the mount.
"""

import logging
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
from s3mgrd.mounts.store import OperationRecord, Store

KEPT: Final = timedelta(days=1)
# A daemon that is asked for thousands of mounts an hour must not keep a day of them in memory.
MAX_KEPT: Final = 5000
# Progress events no closer than this; the last one is never left out, since the end is an event too.
PROGRESS_INTERVAL_S: Final = 0.5

# A burst of ends is one commit.
BATCH_S: Final = 0.05
RETRY_S: Final = 5.0

log = logging.getLogger(__name__)

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
        """Report how many bytes are done; *total* None: nobody knows of how many."""
        self.report(Progress(done=done, total=total, unit="bytes"))

    def report(self, progress: Progress, message: str = "") -> None:
        """Report how far it is, and what goes wrong meanwhile."""
        operation = self.operation
        if not self.is_running or (progress, message) == (operation.progress, operation.message):
            return
        self._replace(progress=progress, message=message)
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

    def settle(self) -> None:
        """Mark it as ended, which it was when it was stored."""
        self._ended.set()

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
    """All operations that are running or were, within `KEPT`.

    *changed* is called for each change, without a checkpoint. `run` stores the ends.
    """

    def __init__(
        self, store: Store, boot_id: str, describe: DescribeProblem, changed: Listener
    ) -> None:
        self._store: Final = store
        self._boot_id: Final = boot_id
        self._describe: Final = describe
        self._listener: Final = changed
        self._all: dict[str, RunningOperation] = {}
        self._unstored: dict[str, OperationRecord] = {}
        self._wake = trio.Event()

    def load(self, records: tuple[OperationRecord, ...]) -> None:
        """Take over what was stored, and fail what another daemon left running."""
        for record in records:
            running = RunningOperation(record, self._describe, self._changed)
            self._all[record.operation.id] = running
            if record.operation.state == "running":
                running.fail(
                    Stopping(
                        "the daemon ended while this was going on",
                        hint="s3mgr ls shows what became of the mount.",
                    )
                )
            else:
                running.settle()

    async def begin(
        self, kind: OperationKind, target: str, owner_uid: int, *, detail: str = ""
    ) -> RunningOperation:
        """Create and store one; the caller sees that somebody ends it. Raises what the store raises."""
        self._prune()
        operation = Operation(
            id=str(uuid.uuid4()),
            kind=kind,
            target=target,
            state="running",
            created_at=datetime.now(UTC),
            boot_id=self._boot_id,
            detail=detail,
        )
        record = OperationRecord(operation=operation, owner_uid=owner_uid)
        await self._store.save_operations((record,))
        running = RunningOperation(record, self._describe, self._changed)
        self._all[operation.id] = running
        self._listener(record)
        return running

    def follow(
        self,
        operation_id: str,
        kind: OperationKind,
        *,
        target: str,
        owner_uid: int,
        detail: str,
        created_at: datetime,
    ) -> RunningOperation:
        """Begin one that goes on elsewhere, or take it up again though it was given up; stored when it ends. No checkpoint."""
        self._unstored.pop(operation_id, None)
        operation = Operation(
            id=operation_id,
            kind=kind,
            target=target,
            state="running",
            created_at=created_at,
            boot_id=self._boot_id,
            detail=detail,
        )
        running = RunningOperation(
            OperationRecord(operation=operation, owner_uid=owner_uid), self._describe, self._changed
        )
        self._all[operation_id] = running
        self._listener(running.record)
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

    async def run(self) -> None:
        """Store what ended, for ever. Cancel it after `flush`."""
        while True:
            await self._wake.wait()
            await trio.sleep(BATCH_S)
            try:
                await self.flush()
            except S3mgrError as error:
                log.error("operations cannot be stored: %s", error.detail)  # noqa: TRY400 - the disk's fault, no stack
                await trio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Store what is not stored yet, and remove what is too old. Raises what the store raises."""
        self._wake = trio.Event()
        batch, self._unstored = self._unstored, {}
        try:
            await self._store.save_operations(tuple(batch.values()))
            await self._store.prune_operations(self._prune())
        except S3mgrError:
            self._unstored = batch | self._unstored
            self._wake.set()
            raise

    def _changed(self, record: OperationRecord) -> None:
        self._listener(record)
        if record.operation.state != "running":
            self._unstored[record.operation.id] = record
            self._wake.set()

    def _prune(self) -> datetime:
        """Forget what ended too long ago; returns the time before which an end is too long ago."""
        limit = datetime.now(UTC) - KEPT
        ended = [r for r in self.all() if r.operation.finished_at is not None]
        surplus = max(0, len(ended) - MAX_KEPT)
        for index, running in enumerate(ended):
            finished = running.operation.finished_at
            if index < surplus or (finished is not None and finished < limit):
                del self._all[running.operation.id]
        return limit
