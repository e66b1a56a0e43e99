"""What is known of one mount: its state and what its worker reports. Illegal transitions are bugs and raise."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from s3mgr.schema import FlushReport, MountState, MountStatus
from s3mgrd.mounts.machine import UP, Reason, may_follow
from s3mgrd.worker.protocol import StatusEvent

log = logging.getLogger(__name__)

BUCKET_GONE_HINT: Final = (
    "Make the bucket again: the mount goes on by itself, and what S3 does not have is kept."
)


class StatusKeeper:
    """Holds a `MountStatus`; *changed* is called, without a checkpoint, when state, reason or message change."""

    def __init__(
        self, name: str, state: MountState, reason: str, changed: Callable[[], None]
    ) -> None:
        self._name: Final = name
        self._changed: Final = changed
        self._status = MountStatus(state=state, reason=reason, since=datetime.now(UTC))
        self._health: StatusEvent | None = None

    @property
    def now(self) -> MountStatus:
        """The status without what only the operating system knows (pid, memory)."""
        return self._status

    @property
    def state(self) -> MountState:
        """The state alone."""
        return self._status.state

    @property
    def is_up(self) -> bool:
        """Whether the mount is served: programs can use it, by waiting or, without a bucket, by what is on this machine."""
        return self.state in UP or self._status.reason == Reason.BUCKET_GONE

    def enter(
        self,
        state: MountState,
        reason: str,
        message: str = "",
        *,
        hint: str = "",
        retry_in_s: float | None = None,
        log_tail: list[str] | None = None,
    ) -> None:
        """Go to *state*; staying in it with another reason is fine."""
        old = self._status
        if not may_follow(old.state, state):
            raise AssertionError(f"{self._name}: {old.state} cannot become {state} ({reason})")
        now = datetime.now(UTC)
        self._status = msgspec.structs.replace(
            old,
            state=state,
            since=old.since if old.state == state else now,
            reason=reason,
            message=message,
            hint=hint,
            retry_at=None if retry_in_s is None else now + timedelta(seconds=retry_in_s),
            log_tail=log_tail or [],
        )
        shown = (old.state, old.reason, old.message)
        if shown == (state, reason, message):
            return
        level = logging.WARNING if state in ("failed", "degraded") else logging.INFO
        log.log(level, "%s (%s) %s", state, reason, message, extra={"mount": self._name})
        self._changed()

    def serving(self, reason: str) -> None:
        """Go to mounted, or on to degraded where the worker has said so already: it says it once."""
        self.enter("mounted", reason)
        self.show_health()

    def show_health(self) -> None:
        """Let a mount that is up look as its worker last said it is."""
        event = self._health
        if event is None:
            return
        match event.health:
            case "degraded":
                self.enter("degraded", event.reason or "degraded", event.message)
            case "bucket-gone":
                self.enter("failed", Reason.BUCKET_GONE, event.message, hint=BUCKET_GONE_HINT)
            case "ok":
                if self.state != "mounted":
                    self.enter("mounted", Reason.READY)

    def forget_health(self) -> None:
        """Note that another worker begins, which has said nothing yet."""
        self._health = None

    def observe(self, generation: int) -> None:
        """Note that the worker runs with this generation of the spec."""
        self._status = msgspec.structs.replace(self._status, observed_generation=generation)

    def count_restart(self) -> None:
        """Note that a worker was replaced."""
        self._status = msgspec.structs.replace(self._status, restarts=self._status.restarts + 1)

    def report(self, event: StatusEvent) -> None:
        """Take over the counters that the worker sent, and remember how it says it is."""
        self._health = event
        self._status = msgspec.structs.replace(
            self._status,
            dirty_bytes=event.dirty_bytes,
            dirty_files=event.dirty_files,
            pending_operations=event.pending_operations,
            uploads_paused=event.uploads_paused,
            failed_uploads=event.failed_uploads,
            renames=event.renames,
            conflicts=event.conflicts,
            conflict_bytes=event.conflict_bytes,
            conditional_writes=event.conditional_writes,
            conditions=event.conditions,
            checksums=event.checksums,
            checksum_algorithm=event.checksum_algorithm,
        )

    def flushed(self, report: FlushReport) -> None:
        """Take over what a flush has left: whoever asks after it must not be told of what it sent."""
        self._status = msgspec.structs.replace(
            self._status,
            dirty_bytes=report.remaining_bytes,
            dirty_files=report.remaining_files,
            pending_operations=report.remaining_operations,
            failed_uploads=report.failed_uploads,
            conflicts=report.conflicts,
            conflict_bytes=report.conflict_bytes,
        )

    def paused(self, *, is_paused: bool) -> None:
        """Note that uploads in the background are held back, or not any more: the worker's next report is under way."""
        self._status = msgspec.structs.replace(self._status, uploads_paused=is_paused)

    def left(
        self,
        *,
        dirty_bytes: int,
        dirty_files: int,
        operations: int,
        conflicts: int,
        conflict_bytes: int,
    ) -> None:
        """Note what is left on the disk when no worker runs any more."""
        self._status = msgspec.structs.replace(
            self._status,
            dirty_bytes=dirty_bytes,
            dirty_files=dirty_files,
            pending_operations=operations,
            failed_uploads=self._status.failed_uploads if dirty_files else [],
            conflicts=conflicts,
            conflict_bytes=conflict_bytes,
        )
