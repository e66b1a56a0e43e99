"""One mount: the task that drives what is towards what is wanted.

Concurrency. `MountActor.run` is the only task that touches worker and connection (through `Link`). Everybody else
sets a `Goal` or a flag and wakes it; none of that has a checkpoint. Steps that may take long run inside
`_interruptible`, which a new goal cancels; every step leaves the actor in a state that the loop can go on from.
The record (what is wanted) is changed by the manager and by this task, always through `update`, which holds the
record's lock for one write to the store and nothing else.

How a mount ends is in `unmounting`.
"""

import logging
from collections import deque
from functools import partial
from typing import Final

import trio

from s3mgrd.errors import Conflict, S3mgrError, Stopping, TimedOut, Unavailable
from s3mgrd.mounts.core import Goal, MountCore, Surroundings
from s3mgrd.mounts.link import new_connection_id
from s3mgrd.mounts.machine import Reason
from s3mgrd.mounts.operations import RunningOperation
from s3mgrd.mounts.session import describe_exit
from s3mgrd.mounts.store import MountRecord
from s3mgrd.mounts.unmounting import OUTSIDE, Unmounting
from s3mgrd.worker.protocol import ConflictEvent, LogEvent, StatusEvent, WorkerEvent

log = logging.getLogger(__name__)

# What only a person can mend (missing bucket, wrong keys) need not be asked for every second.
PERMANENT_RETRY_MIN_S: Final = 60.0
# A live connection's worker comes up without S3, so this is generous.
RESUME_TIMEOUT_S: Final = 30.0
APPLY_TIMEOUT_S: Final = 10.0


class MountActor(MountCore):
    """A mount and its task.

    Attributes:
        holds_other_data: what workers keep for this name belongs to another bucket or prefix, and nothing of it is
            unsaved: it is removed before the next mount.
    """

    def __init__(self, record: MountRecord, around: Surroundings) -> None:
        super().__init__(record, around)
        self._deaths: deque[float] = deque()
        self._failures = 0
        # After a crash loop: nothing is tried until somebody asks.
        self._held = False
        self._restarts: list[RunningOperation] = []
        self.holds_other_data = False
        self._unmounting: Final = Unmounting(self, partial(self.replace_worker, show_state=False))

    def set_goal(self, goal: Goal, *, superseded: S3mgrError | None = None) -> None:
        """Work towards *goal* from now on; see `MountCore.set_goal`."""
        self._held = False
        self._failures = 0
        super().set_goal(goal, superseded=superseded)

    def restart(self, operation: RunningOperation) -> None:
        """Replace the worker; if nothing is mounted, try to mount now."""
        tended = self.link.connection is not None and self.goal.kind == "mounted"
        if tended and not self.is_finishing:
            self._restarts.append(operation)
            self.wake_up()
        else:
            self.set_goal(Goal(kind="mounted", operation=operation))

    def record_changed(self) -> None:
        """Notice that the record changed: tell the worker, or try again at once what failed before."""
        if self.goal.kind == "mounted" and self.link.connection is None:
            self.set_goal(Goal(kind="mounted", operation=self.goal.operation))
        self.wake_up()

    def fail_internally(self) -> None:
        """Begin as failed, because the actor before met a bug; nothing is tried until somebody asks."""
        self.goal = Goal(kind="mounted" if self.record.desired == "mounted" else "idle")
        self._held = True
        self.status_keeper.enter(
            "failed",
            "internal",
            "the daemon met an error that nobody foresaw; its log has the details",
            hint=f"Please report it. To try again: s3mgr restart {self.name}",
        )

    # The task.

    async def run(self, *, adopt: bool = False) -> None:
        """Reconcile until the mount is forgotten or the daemon stops. *adopt*: look for what an earlier daemon left."""
        try:
            async with trio.open_nursery() as nursery:
                self.link.enter(nursery)
                try:
                    if adopt:
                        await self._adopt()
                    while not self.is_finishing:
                        await self._step()
                except trio.Cancelled:
                    # The daemon ends without a stop, as if it had crashed: the worker and its users go on, and
                    # the next daemon finds them.
                    self.link.close_connection()
                    raise
                except Exception:
                    await self.link.dismantle()
                    raise
                await self.link.dismantle()
                nursery.cancel_scope.cancel()
        finally:
            self.is_finishing = True
            gone = Stopping(f"'{self.name}' went away")
            self._fail_restarts(gone)
            if self.goal.operation is not None:
                self.goal.operation.fail(gone)
            self.settled.set()
            self.finished.set()

    async def _step(self) -> None:
        if self._restarts and (self.goal.kind != "mounted" or self.link.connection is None):
            self._fail_restarts(
                Conflict(
                    f"'{self.name}' went down before its worker was replaced",
                    hint=f"See why: s3mgr show {self.name}",
                )
            )
        match self.goal.kind:
            case "idle":
                await self.next_wake()
            case "mounted" if self.link.connection is not None and not self.link.detached:
                await self._tend()
            case "mounted" if self._held:
                await self.next_wake()
            case "mounted":
                await self._attempt(self.goal)
            case "unmounted" | "stopped":
                await self._unmounting.run(self.goal)

    async def _adopt(self) -> None:
        """Take over what an earlier daemon left, and go on with what it was told."""
        found = await self.link.adopt()
        if found == "serving":
            self.status_keeper.serving(Reason.ADOPTED)
        if self.goal.kind != "idle":
            return  # somebody asked meanwhile, or before this task began, and knows better
        record = self.record
        resume_unmount = Goal(kind="unmounted", timeout_s=self.around.config.drain_timeout_s)
        if found == "ended":
            await self._ended_outside()
        elif found in ("serving", "kept"):  # in the latter case, a worker is started first thing
            self.goal = Goal(kind="mounted") if record.desired == "mounted" else resume_unmount
        elif record.desired == "mounted" and record.spec.persist and not record.provisional:
            self.goal = Goal(kind="mounted")
        elif record.desired == "mounted" or record.forget:
            # Nobody waits for it and nobody wants it back; but what it may hold is uploaded first.
            self.goal = resume_unmount
            await self.update_if_possible(desired="unmounted", forget=True, provisional=False)
        else:
            self.status_keeper.enter("unmounted", record.reason or Reason.ASKED)

    async def _attempt(self, goal: Goal) -> None:
        """Try to mount once; on failure, wait until it is time to try again or the goal changes."""
        error: S3mgrError | None = None

        async def connect() -> None:
            nonlocal error
            try:
                with trio.fail_after(self.around.config.mount_timeout_s):
                    await self._connect()
            except S3mgrError as caught:
                error = caught
            except trio.TooSlowError:
                error = TimedOut(
                    f"mounting took longer than {self.around.config.mount_timeout_s:g} s",
                    hint="Is the endpoint reachable? The worker's log says what it waits for: "
                    f"s3mgr logs {self.name}",
                )

        if self.link.session is not None or self.link.connection is not None:
            # It is wanted again while it drained behind an unmounted tree; the journal keeps the rest.
            await self.link.dismantle()
            if self.goal is not goal:
                return
        if self.status_keeper.state in ("draining", "unmounted"):
            self.status_keeper.enter("pending", Reason.REQUESTED)
        self.status_keeper.enter("mounting", Reason.CONNECTING)
        ended = await self.interruptible(connect)
        if ended and error is None:
            self._failures = 0
            if goal.operation is not None:
                goal.operation.succeed()
            self.settled.set()
            return
        await self.link.dismantle()
        if error is not None and self.goal is goal:
            await self._failed(error, goal)

    async def _connect(self) -> None:
        await self.link.check_mountpoint()
        connection_id = new_connection_id()
        if self.holds_other_data:
            await self.around.workers.forget(self.name)
            self.holds_other_data = False
        record = self.record
        self.status_keeper.forget_health()
        await self.link.start_worker(connection_id=connection_id, probe=True)
        await self.link.mount(connection_id=connection_id)
        # Durable before the first write can be acknowledged: this journal must never be thrown away unseen.
        await self.update(may_be_dirty=True, reason="")
        await self.link.serve(resumed=False)
        await self.update(provisional=False)
        self.observe(record.generation)
        self.status_keeper.serving(Reason.READY)

    async def _failed(self, error: S3mgrError, goal: Goal) -> None:
        slug = self.around.describe(error, self.name).slug
        if self.record.provisional:
            log.warning(
                "cannot be mounted and is forgotten: %s", error.detail, extra={"mount": self.name}
            )
            self.status_keeper.enter("failed", slug, error.detail, hint=error.hint)
            await self.forget(keep_data=self.record.may_be_dirty)
            if goal.operation is not None:
                goal.operation.fail(error)
            return
        delay_s = self._retry_delay(permanent=not isinstance(error, Unavailable))
        self.status_keeper.enter(
            "failed",
            slug,
            error.detail,
            hint=error.hint,
            retry_in_s=delay_s,
            log_tail=await self.log_tail(),
        )
        if goal.operation is not None:
            goal.operation.fail(error)
        self.settled.set()
        if self.goal is goal:
            await self.interruptible(partial(trio.sleep, delay_s))

    def _retry_delay(self, *, permanent: bool) -> float:
        config = self.around.config
        first_s = PERMANENT_RETRY_MIN_S if permanent else config.retry_min_s
        delay_s = min(config.retry_max_s, first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        # Up to a quarter less, so that many mounts of one endpoint do not knock at once.
        return delay_s * (1 - self.around.jitter() / 4)

    async def _tend(self) -> None:
        """See to a mount that is up until it is no longer, or no longer wanted."""
        goal = self.goal
        if goal.operation is not None:
            goal.operation.succeed()
        while self.goal is goal:
            if self.link.ended_outside:
                await self._ended_outside()
                return
            if self.link.live_session is None:
                if not await self.replace_worker():
                    return
            elif self._restarts:
                await self._restart()
            elif self.status_keeper.now.observed_generation != self.record.generation:
                await self._apply()
            else:
                self.settled.set()
                await self.next_wake()

    async def _ended_outside(self) -> None:
        """Respect that somebody unmounted the tree: want it no more, but upload what it holds."""
        forget = self.record.forget or self.record.spec.origin == "fstab"
        self.status_keeper.enter("draining", Reason.UNMOUNTED_OUTSIDE, OUTSIDE)
        if self.goal.kind in ("mounted", "idle"):
            self.goal = Goal(kind="unmounted", timeout_s=float("inf"), outside=True)
        await self.update_if_possible(
            desired="unmounted", reason=Reason.UNMOUNTED_OUTSIDE, forget=forget
        )

    async def replace_worker(self, *, show_state: bool = True) -> bool:
        """Put a new worker on the connection after one died; returns whether there still is a connection.

        The first death in the window is answered at once, each further one after a longer wait; past the limit
        the connection is aborted. Interrupted, there may be no worker; the caller comes back or takes it apart.
        """
        assert self.link.connection is not None, "there is nothing to serve"  # noqa: S101 - a bug, not an input
        session = self.link.session
        end = describe_exit(session.exit if session is not None else None)
        config, now = self.around.config, trio.current_time()
        while self._deaths and self._deaths[0] <= now - config.restart_window_s:
            self._deaths.popleft()
        self._deaths.append(now)
        if len(self._deaths) > config.restart_limit:
            await self._give_up(end)
            return False
        if not self.link.connection.can_resend:
            if show_state:
                await self._remount(end)
            else:
                self.link.abort()  # nobody wants it back
            return False
        delay_s = 0.0
        if len(self._deaths) > 1:
            doublings = min(len(self._deaths) - 2, 30)
            delay_s = min(config.restart_backoff_max_s, config.restart_backoff_s * 2.0**doublings)
        if show_state:
            self.status_keeper.enter(
                "degraded",
                Reason.WORKER_RESTARTING,
                f"the worker {end}; programs wait for the next one",
                retry_in_s=delay_s,
            )
        await self.interruptible(lambda: self._resume(delay_s, show_state=show_state))
        return True

    async def _resume(self, delay_s: float, *, show_state: bool) -> None:
        await trio.sleep(delay_s)
        connection = self.link.connection
        assert connection is not None, "the caller looked"  # noqa: S101 - a bug, not an input
        generation = self.record.generation
        self.status_keeper.forget_health()
        try:
            with trio.fail_after(RESUME_TIMEOUT_S):
                await self.link.start_worker(connection_id=connection.id, probe=False)
                await self.link.serve(resumed=True)
        except (S3mgrError, trio.TooSlowError) as error:
            log.warning("the next worker failed, too: %s", error, extra={"mount": self.name})
            await self.link.drop_worker()  # counts as a death when the caller looks again
            return
        self.status_keeper.count_restart()
        self.observe(generation)
        if show_state:
            self.status_keeper.serving(Reason.RESUMED)

    async def _restart(self) -> None:
        """Replace a living worker because somebody asked; programs wait meanwhile."""
        operations, self._restarts = self._restarts, []
        connection, goal = self.link.connection, self.goal
        self.status_keeper.enter(
            "degraded", Reason.WORKER_REPLACED, "a restart was asked for; programs wait"
        )
        await self.link.stop_worker()
        if connection is not None and not connection.can_resend:
            await self._remount("was replaced")
            if self.goal is goal:
                self.goal = Goal(kind="mounted", operation=operations.pop())
            self._restarts += operations
            return
        self._deaths.clear()
        await self.interruptible(lambda: self._resume(0.0, show_state=True))
        for operation in operations:
            if self.link.live_session is not None:
                operation.succeed()
            else:
                operation.fail(
                    Unavailable(
                        "the new worker did not come up; it is tried again",
                        hint=f"See its log: s3mgr logs {self.name}",
                    )
                )

    async def _apply(self) -> None:
        generation = self.record.generation
        try:
            with trio.fail_after(APPLY_TIMEOUT_S):
                await self.link.apply()
        except (S3mgrError, trio.TooSlowError) as error:
            # A worker that died gets them with its successor; one that refuses would refuse again.
            log.warning(
                "the worker did not take the options: %s", error, extra={"mount": self.name}
            )
        self.observe(generation)

    async def _give_up(self, end: str) -> None:
        self.link.abort()
        await self.link.dismantle()
        self._held = True
        self._deaths.clear()
        config = self.around.config
        self.status_keeper.enter(
            "failed",
            Reason.WORKER_CRASH_LOOP,
            f"the worker {end}, the {config.restart_limit + 1}th time within {config.restart_window_s:g} s",
            hint=f"See s3mgr logs {self.name}, then try again with: s3mgr restart {self.name}",
            log_tail=await self.log_tail(),
        )
        error = Unavailable(self.status_keeper.now.message, hint=self.status_keeper.now.hint)
        if self.goal.operation is not None:
            self.goal.operation.fail(error)
        self._fail_restarts(error)
        self.settled.set()

    def _fail_restarts(self, error: S3mgrError) -> None:
        restarts, self._restarts = self._restarts, []
        for operation in restarts:
            operation.fail(error)

    async def _remount(self, end: str) -> None:
        """Replace a connection that cannot be resumed: what was in flight fails, what comes finds a new mount."""
        self.status_keeper.enter(
            "mounting",
            Reason.REMOUNTING,
            f"the worker {end}; this kernel cannot hand its requests to another one",
        )
        self.link.abort()
        await self.link.dismantle()
        self.status_keeper.count_restart()

    def on_event(self, event: WorkerEvent) -> None:
        """Take what the worker reports; no checkpoint."""
        match event:
            case StatusEvent():
                self.status_keeper.report(event)
                self.around.renames(self, event.renames)
                self.around.warming(event.warming)
                self._unmounting.progress(event)
                self._show_health()
            case ConflictEvent():
                self.around.conflict(self, event)
            case LogEvent(level=level, message=message):
                log.log(
                    logging.getLevelNamesMapping()[level],
                    "worker: %s",
                    message,
                    extra={"mount": self.name},
                )
            case _:
                pass  # SessionEnded: the session notes it

    def _show_health(self) -> None:
        ours = (Reason.WORKER_RESTARTING, Reason.WORKER_REPLACED)
        if self.is_up and self.status_keeper.now.reason not in ours:
            self.status_keeper.show_health()
