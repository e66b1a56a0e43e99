"""What a mount's task and the steps of its life share: the wish, the goal, the status, the link.

Concurrency: see `mount`.
"""

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec
import trio

from s3mgr.schema import LogTail, MountStatus, PendingRename, WarmProgress
from s3mgrd.config import Config
from s3mgrd.errors import Conflict, NotMounted, S3mgrError, Stopping, TimedOut, WorkerLost
from s3mgrd.mounts.link import Link
from s3mgrd.mounts.machine import Reason
from s3mgrd.mounts.operations import RunningOperation
from s3mgrd.mounts.ports import DescribeProblem, DescriptorStore, Kernel, Workers
from s3mgrd.mounts.service import UnmountMode
from s3mgrd.mounts.session import WorkerSession
from s3mgrd.mounts.status import StatusKeeper
from s3mgrd.mounts.store import MountRecord, Store
from s3mgrd.worker.protocol import ConflictEvent, Reply, SupervisorRequest, WorkerEvent

log = logging.getLogger(__name__)

LOG_TAIL_LINES: Final = 20

LogReader = Callable[[str, int, int | None], Awaitable[LogTail]]
"""Path, most lines, offset to go on from → the tail of a worker's log."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Goal:
    """What the task works towards; compared by identity, so that asking again is something new.

    Attributes:
        kind: "idle": nothing to do, the mount is down; "stopped": the daemon ends, the wish stays.
        timeout_s: of an unmount: how long to drain. inf: until nothing is left.
        outside: the tree was unmounted by somebody else.
        cancelled: somebody gave up the drain that went on.
        operation: who waits.
    """

    kind: Literal["mounted", "unmounted", "stopped", "idle"]
    mode: UnmountMode = "clean"
    timeout_s: float = 0.0
    outside: bool = False
    cancelled: bool = False
    operation: RunningOperation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every mount of a daemon shares.

    Attributes:
        changed: called when the mount's status changed; no checkpoint.
        forgotten: called when the mount is gone and its name is free; no checkpoint.
        conflict: called with what becomes of a conflict copy of the mount; no checkpoint.
        warming: called with how far a worker is in bringing files into its cache; no checkpoint.
        renames: called with the renames of directories that S3 has yet to follow, as the worker says; no checkpoint.
        jitter: returns a number in [0, 1).
    """

    config: Config
    kernel: Kernel
    workers: Workers
    descriptors: DescriptorStore
    store: Store
    read_log: LogReader
    describe: DescribeProblem
    changed: Callable[["MountCore"], None]
    forgotten: Callable[["MountCore"], None]
    conflict: Callable[["MountCore", ConflictEvent], None]
    renames: Callable[["MountCore", Sequence[PendingRename]], None]
    warming: Callable[[Sequence[WarmProgress]], None]
    supervisor_uid: int
    jitter: Callable[[], float] = field(default=random.random)


class MountCore(ABC):
    """The state of one mount.

    Attributes:
        record: what is wanted, as it is stored.
        goal: what the task works towards.
        is_finishing: the task ends: the mount is being forgotten, or the daemon stops. No new goal helps.
        finished: set when the task has ended.
        settled: set once the first attempt, or adoption, has come to a result.
    """

    def __init__(self, record: MountRecord, around: Surroundings) -> None:
        self.record = record
        self.goal = Goal(kind="idle")
        self.is_finishing = False
        self.finished: Final = trio.Event()
        self.settled: Final = trio.Event()
        self.around: Final = around
        reason = Reason.REQUESTED if record.provisional else Reason.STORED
        self.status_keeper: Final = StatusKeeper(record.name, "pending", reason, self._changed)
        self.link: Final = Link(
            record.name,
            around.kernel,
            around.workers,
            around.descriptors,
            record=lambda: self.record,
            on_event=self.on_event,
            wake=self.wake_up,
            interrupt=self.interrupt,
            supervisor_uid=around.supervisor_uid,
        )
        self._wake = trio.Event()
        self._applied = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._record_lock: Final = (
            trio.Lock()
        )  # held for one write to the store; no other lock inside

    @abstractmethod
    def on_event(self, event: WorkerEvent) -> None:
        """Take what the worker reports; no checkpoint."""

    @property
    def name(self) -> str:
        """The mount's name."""
        return self.record.name

    @property
    def status(self) -> MountStatus:
        """What is, right now."""
        session = self.link.live_session
        if session is None:
            return self.status_keeper.now
        return msgspec.structs.replace(
            self.status_keeper.now,
            worker_pid=session.worker.pid,
            worker_memory_bytes=session.worker.memory_bytes(),
        )

    @property
    def is_up(self) -> bool:
        """Whether it is served; see `StatusKeeper.is_up`."""
        return self.status_keeper.is_up

    def set_goal(self, goal: Goal, *, superseded: S3mgrError | None = None) -> None:
        """Work towards *goal* from now on; what went on is interrupted.

        Whoever waits for the goal before learns *superseded*, by default that another request came in between. A
        mount that is going away, or a daemon that stops, takes no other goal: whoever asks learns that.
        """
        current = self.goal.operation
        if self.is_finishing or (self.goal.kind == "stopped" and goal.kind != "stopped"):
            if goal.operation is not None and goal.operation is not current:
                goal.operation.fail(
                    Stopping(
                        f"'{self.name}' is just going away", hint="Look again in a moment: s3mgr ls"
                    )
                )
            return
        self.goal = goal
        if current is not None and current is not goal.operation:
            current.fail(
                superseded
                or Conflict(
                    f"another request for '{self.name}' came in between",
                    hint=f"See what it is doing: s3mgr show {self.name}",
                )
            )
        self.interrupt()

    async def update(self, **changes: object) -> MountRecord:
        """Store the record with *changes*; only then they hold. Raises what the store raises."""
        async with self._record_lock:
            record = replace(self.record, **changes)  # type: ignore[arg-type]  # names and types are the record's
            if record != self.record:
                await self.around.store.save_mount(record)
                self.record = record
            return record

    async def ask(
        self, message: SupervisorRequest, *, timeout_s: float, is_repeatable: bool = True
    ) -> Reply:
        """Pass a request on to the worker of a mount that is up; where that one died, to the next.

        Args:
            message: what to ask.
            timeout_s: how long to wait in all.
            is_repeatable: the next worker may be asked for what the last one may have done before it died.

        Raises:
            NotMounted: it is not up.
            TimedOut, WorkerLost, and what the worker answers.
        """
        try:
            with trio.fail_after(timeout_s):
                while True:
                    session = await self._serving_session()
                    try:
                        return await session.request(message)
                    except WorkerLost:
                        if not is_repeatable:
                            raise
                        await session.gone.wait()
        except trio.TooSlowError:
            raise TimedOut(
                f"the worker of '{self.name}' did not answer within {timeout_s:g} s",
                hint=f"See its log: s3mgr logs {self.name}",
            ) from None

    async def sync(self) -> None:
        """Have the kernel send the worker the writes it has gathered; nothing where the mount is not up."""
        connection = self.link.connection
        if self.is_up and connection is not None:
            await connection.sync()

    async def _serving_session(self) -> WorkerSession:
        """Return the worker; waits while one that died is being replaced."""
        while True:
            if not self.is_up or self.link.connection is None:
                raise NotMounted(
                    f"'{self.name}' is {self.status_keeper.state}",
                    hint=f"See why: s3mgr show {self.name}",
                )
            session = self.link.live_session
            # The next worker is there before it can be asked.
            is_resumed = self.status_keeper.now.reason not in (
                Reason.WORKER_RESTARTING,
                Reason.WORKER_REPLACED,
            )
            if session is not None and is_resumed:
                return session
            await self._applied.wait()

    def interrupt(self) -> None:
        """Stop the step that goes on, if it can be interrupted, and look at the goal again."""
        if self._scope is not None:
            self._scope.cancel()
        self.wake_up()

    def _changed(self) -> None:
        if self.status_keeper.state in ("failed", "unmounted"):
            self.settled.set()
        self._note_applied()
        self.around.changed(self)

    def observe(self, generation: int) -> None:
        """Note that the worker runs with this generation of the spec."""
        self.status_keeper.observe(generation)
        self._note_applied()

    async def wait_applied(self) -> None:
        """Wait until the worker runs with the record as it is, or none does."""
        while self.is_up and self.status_keeper.now.observed_generation != self.record.generation:
            await self._applied.wait()

    def _note_applied(self) -> None:
        self._applied.set()
        self._applied = trio.Event()

    def wake_up(self) -> None:
        """Make the task look again at what is wanted and what is."""
        self._wake.set()

    async def next_wake(self, timeout_s: float = float("inf")) -> None:
        """Wait until something may have changed, or for *timeout_s*."""
        with trio.move_on_after(timeout_s):
            await self._wake.wait()
        self._wake = trio.Event()

    async def interruptible(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Run *step* until it ends or a new goal interrupts it; returns whether it ended."""
        with trio.CancelScope() as scope:
            self._scope = scope
            try:
                await step()
            finally:
                self._scope = None
        return not scope.cancelled_caught

    async def update_if_possible(self, **changes: object) -> None:
        """`update`, but carry on with the change in memory when the disk does not take it."""
        try:
            await self.update(**changes)
        except S3mgrError as error:
            log.error(  # noqa: TRY400 - the disk's fault, no stack
                "the change cannot be stored: %s", error.detail, extra={"mount": self.name}
            )
            self.record = replace(self.record, **changes)  # type: ignore[arg-type]  # as in `update`

    async def forget(self, *, keep_data: bool = False) -> None:
        """Remove the mount and, unless *keep_data*, what workers keep for it; the task ends after that."""
        self.is_finishing = True
        await self.link.dismantle()
        try:
            if not keep_data:
                await self.around.workers.forget(self.name)
            await self.around.store.forget_mount(self.name)
        except S3mgrError as error:
            log.error(  # noqa: TRY400 - the disk's fault, no stack
                "cannot be removed completely: %s", error.detail, extra={"mount": self.name}
            )
        self.around.forgotten(self)

    async def log_tail(self) -> list[str]:
        """Read the last lines of the worker's log; none when it cannot be read."""
        try:
            tail = await self.around.read_log(
                self.around.workers.log_path(self.name), LOG_TAIL_LINES, None
            )
        except S3mgrError:
            return []
        return tail.lines
