"""How a mount ends: the tree goes first, then what S3 does not have is uploaded behind it, then the worker.

The tree goes first so that nothing new is written while the last uploads run, and because a busy tree is the one
thing that refuses: nothing has changed then. What cannot be uploaded in time stays in the journal, the spec is
kept with it, and whoever asked is told.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from s3mgr.schema import FlushReport
from s3mgrd.errors import Conflict, DirtyData, S3mgrError, TimedOut, Unavailable
from s3mgrd.mounts.core import Goal, MountCore
from s3mgrd.mounts.link import new_connection_id
from s3mgrd.mounts.machine import Reason
from s3mgrd.mounts.reports import decode_report
from s3mgrd.worker.protocol import Discard, Drain, StatusEvent

log = logging.getLogger(__name__)

# The kernel writes its dirty pages to the worker before it lets go; the worker only has to put them on disk.
UNMOUNT_TIMEOUT_S: Final = 60.0
DISCARD_TIMEOUT_S: Final = 60.0
# A worker answers a drain when its time is up; this much later it hangs.
ANSWER_GRACE_S: Final = 10.0
OUTSIDE: Final = "somebody unmounted it; what is left is being uploaded"
# Waits between attempts to drain that did not empty the journal.
PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Left:
    """What a drain could not get to S3. `error`: why nothing is known, or why it could not go on.

    `operations` counts what is no file's data: names, attributes, deletes. They are as unsaved as data is. `conflicts`
    are copies that nothing can upload: they stay until the user decides, and so does the mount's definition.
    """

    files: int = 0
    size_bytes: int = 0
    operations: int = 0
    conflicts: int = 0
    conflict_bytes: int = 0
    error: S3mgrError | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether S3 has everything."""
        return not (self.files or self.operations) and self.error is None

    def __str__(self) -> str:
        data = f"{_counted(self.files, 'file')} with {_counted(self.size_bytes, 'byte')}"
        changes = f"{_counted(self.operations, 'change')} of names and attributes"
        if not self.operations:
            return data
        return f"{data} and {changes}" if self.files else changes


class Unmounting:
    """The end of one mount, as often as it is asked for.

    Args:
        core: the mount.
        replace_worker: puts a new worker on the connection; False: the connection is gone.
    """

    def __init__(self, core: MountCore, replace_worker: Callable[[], Awaitable[bool]]) -> None:
        self._core: Final = core
        self._replace_worker: Final = replace_worker
        self._most_dirty_bytes = 0

    def progress(self, event: StatusEvent) -> None:
        """Pass on how far the drain is, if one runs that somebody waits for; no checkpoint."""
        operation = self._core.goal.operation
        if self._core.status_keeper.state != "draining" or operation is None:
            return
        self._most_dirty_bytes = max(self._most_dirty_bytes, event.dirty_bytes)
        operation.progress(
            done=self._most_dirty_bytes - event.dirty_bytes, total=self._most_dirty_bytes
        )

    async def run(self, goal: Goal) -> None:
        """Take the mount down as *goal* says. A new goal interrupts it and finds a state to go on from."""
        core, link = self._core, self._core.link
        self._most_dirty_bytes = core.status_keeper.now.dirty_bytes
        nothing_runs = link.connection is None and link.live_session is None
        if goal.kind == "stopped" and nothing_runs:
            core.is_finishing = True
            return
        if not nothing_runs or core.record.may_be_dirty:
            message = OUTSIDE if goal.outside else ""
            core.status_keeper.enter("draining", self._reason(goal), message)
        if link.connection is not None and not link.detached and not await self._detach(goal):
            return
        left = Left()

        async def empty() -> None:
            nonlocal left
            left = await self._empty(goal)

        if core.goal is not goal or not await core.interruptible(empty):
            return
        await link.stop_worker()
        await link.let_go()
        if goal.kind == "stopped":
            await self._finish_stop(left)
        elif goal.mode == "discard":
            await self._finish_discard(goal)
        elif left.is_nothing:
            await self._finish_clean(goal, left)
        else:
            await self._finish_dirty(goal, left)

    def _reason(self, goal: Goal) -> Reason:
        if goal.kind == "stopped":
            return Reason.DAEMON_STOPPING
        return Reason.UNMOUNTED_OUTSIDE if goal.outside else Reason.UNMOUNTING

    async def _detach(self, goal: Goal) -> bool:
        """Unmount the tree; returns False when it stays and is wanted again."""
        lazy = goal.mode == "lazy" or goal.outside
        failure = await self._try_detach(
            lazy=lazy,
            timeout_s=min(UNMOUNT_TIMEOUT_S, goal.timeout_s)
            if goal.kind == "stopped"
            else UNMOUNT_TIMEOUT_S,
        )
        if failure is None or self._core.link.connection is None:
            return True  # it went, or it was given up because its workers kept dying
        if goal.kind == "stopped":
            log.info("busy, so it is detached", extra={"mount": self._core.name})
            failure = await self._try_detach(lazy=True, timeout_s=UNMOUNT_TIMEOUT_S)
            if failure is not None:
                log.warning(
                    "cannot be unmounted: %s", failure.detail, extra={"mount": self._core.name}
                )
            return True
        await self._stay(goal, failure)
        return False

    async def _try_detach(self, *, lazy: bool, timeout_s: float) -> S3mgrError | None:
        core = self._core
        failure: S3mgrError | None = None
        # The kernel writes its dirty pages out first: a worker that dies now must be replaced, or it waits for ever.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_served)
            try:
                with trio.fail_after(timeout_s):
                    await core.link.detach(lazy=lazy)
            except S3mgrError as error:
                failure = error
            except trio.TooSlowError:
                failure = TimedOut(f"unmounting '{core.name}' took longer than {timeout_s:g} s")
            nursery.cancel_scope.cancel()
        return failure

    async def _keep_served(self) -> None:
        link = self._core.link
        while link.connection is not None:
            session = link.live_session
            if session is not None:
                await session.gone.wait()
            elif not await self._replace_worker():
                return

    async def _stay(self, goal: Goal, failure: S3mgrError) -> None:
        """Go back to being mounted, because the tree would not go."""
        core = self._core
        if isinstance(failure, Conflict):
            failure = Conflict(
                f"'{core.name}' is in use at {core.record.spec.mountpoint}",
                hint=f"Close what uses it (fuser -vm {core.record.spec.mountpoint} shows it), or detach it at once: "
                f"s3mgr unmount --lazy {core.name}",
            )
        await core.update_if_possible(desired="mounted", forget=False, reason="")
        core.status_keeper.serving(Reason.READY)
        if core.goal is goal:
            core.goal = Goal(kind="mounted")
        if goal.operation is not None:
            goal.operation.fail(failure)

    async def _empty(self, goal: Goal) -> Left:
        core, link = self._core, self._core.link
        if goal.mode == "discard":
            await self._discard()
            return Left()
        if link.live_session is None and not core.record.may_be_dirty:
            return Left()
        if link.live_session is None and goal.kind == "stopped":
            return Left(error=Unavailable("its worker had died"))
        if (goal.mode == "lazy" or goal.outside) and link.connection is not None:
            await self._wait_for_users(goal)
        return await self._drain(goal)

    async def _discard(self) -> None:
        session = self._core.link.live_session
        if session is None:
            return  # what workers keep is removed anyway
        try:
            with trio.fail_after(DISCARD_TIMEOUT_S):
                await session.request(Discard())
        except (S3mgrError, trio.TooSlowError) as error:
            log.warning("the worker could not discard: %s", error, extra={"mount": self._core.name})

    async def _wait_for_users(self, goal: Goal) -> None:
        """Let programs that still have something open in the detached tree come to their end."""
        core = self._core
        session = core.link.live_session
        if session is None or session.ended.is_set():
            return
        core.status_keeper.enter(
            "draining", self._reason(goal), "detached; waits for programs that still use it"
        )
        with trio.move_on_after(goal.timeout_s):
            while session.is_alive and not session.ended.is_set():
                await core.next_wake()

    async def _drain(self, goal: Goal) -> Left:
        """Upload until nothing is left, the time is up, or going on is pointless."""
        core = self._core
        deadline = trio.current_time() + goal.timeout_s
        pause_s = PAUSE_MIN_S
        while True:
            left = await self._drain_once(deadline - trio.current_time())
            remaining_s = deadline - trio.current_time()
            if left.is_nothing or remaining_s <= 0:
                return left
            if left.error is not None and not isinstance(left.error, Unavailable):
                if not goal.outside:
                    return left
                pause_s = PAUSE_MAX_S  # somebody may mend it; nobody waits
            core.status_keeper.enter(
                "draining", self._reason(goal), self._explain(left), retry_in_s=pause_s
            )
            await trio.sleep(min(pause_s, remaining_s))
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _drain_once(self, remaining_s: float) -> Left:
        core, link = self._core, self._core.link
        timeout_s = max(0.0, min(remaining_s, core.around.config.drain_timeout_s))
        try:
            if link.live_session is None:
                with trio.fail_after(core.around.config.mount_timeout_s):
                    # Without asking the bucket: an empty journal needs no S3.
                    found = await link.start_worker(connection_id=new_connection_id(), probe=False)
                if not (found.journal_files or found.journal_operations):
                    return Left(conflicts=found.conflicts, conflict_bytes=found.conflict_bytes)
            session = link.live_session
            if session is None:
                return Left(error=Unavailable("the worker died"))
            with trio.fail_after(timeout_s + ANSWER_GRACE_S):
                reply = await session.request(Drain(timeout_s=timeout_s))
            report = decode_report(reply, FlushReport)
        except S3mgrError as error:
            return Left(error=error)
        except trio.TooSlowError:
            return Left(error=TimedOut("the worker does not answer"))
        return Left(
            files=report.remaining_files,
            size_bytes=report.remaining_bytes,
            operations=report.remaining_operations,
            conflicts=report.conflicts,
            conflict_bytes=report.conflict_bytes,
        )

    def _explain(self, left: Left) -> str:
        if left.error is not None:
            return f"uploading what is left failed and is tried again: {left.error.detail}"
        return f"S3 does not have {left} yet"

    async def _finish_stop(self, left: Left) -> None:
        core = self._core
        if left.is_nothing:
            await core.update_if_possible(may_be_dirty=left.conflicts > 0)
            message = f"everything is in S3{_but_copies(left)}"
        elif left.error is None:
            message = f"{left} stay in the journal"
        else:
            message = f"what is left stays in the journal: {left.error.detail}"
        self._show_left(left)
        core.status_keeper.enter("unmounted", Reason.DAEMON_STOPPING, message)
        core.is_finishing = True

    async def _finish_discard(self, goal: Goal) -> None:
        core = self._core
        try:
            await core.around.workers.forget(core.name)
        except S3mgrError as error:
            left = Left(error=error)
            await self._finish_dirty(goal, left)
            return
        await self._finish_clean(goal, Left())

    async def _finish_clean(self, goal: Goal, left: Left) -> None:
        core = self._core
        if goal.outside or core.record.reason == Reason.UNMOUNTED_OUTSIDE:
            reason = Reason.UNMOUNTED_OUTSIDE
        elif left.conflicts:
            reason = Reason.CONFLICTS_KEPT
        else:
            reason = Reason.DISCARDED if goal.mode == "discard" else Reason.ASKED
        message = hint = ""
        forget = core.record.forget
        if left.conflicts:
            message, forget = f"everything is in S3{_but_copies(left)}", False
            hint = f"Mount it again to see them: s3mgr conflicts {core.name}"
        await core.update_if_possible(may_be_dirty=left.conflicts > 0, forget=forget, reason=reason)
        self._show_left(left)
        core.status_keeper.enter("unmounted", reason, message, hint=hint)
        if core.goal is not goal:
            return  # asked for again just now; its operation has ended
        core.goal = Goal(kind="idle")
        if core.record.forget:
            await core.forget()
        if goal.operation is not None:
            goal.operation.succeed()

    def _show_left(self, left: Left) -> None:
        self._core.status_keeper.left(
            dirty_bytes=left.size_bytes,
            dirty_files=left.files,
            operations=left.operations,
            conflicts=left.conflicts,
            conflict_bytes=left.conflict_bytes,
        )

    async def _finish_dirty(self, goal: Goal, left: Left) -> None:
        core = self._core
        reason = Reason.CANCELLED if goal.cancelled else Reason.UNDRAINED
        if left.error is None:
            what = f"S3 does not have {left} of '{core.name}'"
        else:
            what = f"'{core.name}' could not be emptied: {left.error.detail}"
        hint = (
            "They are kept, and uploaded when it is mounted again. To throw them away: "
            f"s3mgr unmount --discard {core.name}"
        )
        await core.update_if_possible(forget=False, reason=reason)
        self._show_left(left)
        core.status_keeper.enter("unmounted", reason, what, hint=hint)
        if core.goal is goal:
            core.goal = Goal(kind="idle")
        if goal.operation is None:
            return
        if goal.cancelled:
            goal.operation.cancel()
        else:
            goal.operation.fail(
                DirtyData(what, hint=hint, dirty_bytes=left.size_bytes, dirty_files=left.files)
            )


def _but_copies(left: Left) -> str:
    """Say what is kept although S3 has everything."""
    if not left.conflicts:
        return ""
    copies = "1 conflict copy" if left.conflicts == 1 else f"{left.conflicts} conflict copies"
    return f"; {copies} of what lost against other writers {'is' if left.conflicts == 1 else 'are'} kept here"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
