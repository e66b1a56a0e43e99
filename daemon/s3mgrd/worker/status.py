"""How a mount is, as its worker tells the supervisor: what S3 lacks, and what is wrong, the worst first."""

from dataclasses import asdict
from typing import Literal

from s3mgr.schema import ConditionSupport, FailedUpload, WarmProgress
from s3mgrd.cache.damage import SetAside
from s3mgrd.errors import BucketNotFound, CredentialsRejected, Denied, S3mgrError
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting import inspection
from s3mgrd.worker.protocol import StatusEvent


def status_of(
    fs: FileSystem, damaged: SetAside | None, warming: list[WarmProgress] | None = None
) -> StatusEvent:
    """Describe how a mount is.

    Args:
        fs: its file system.
        damaged: the mount.db that was not trusted when the worker began.
        warming: what is being brought into the block cache.
    """
    left = fs.syncer.left()
    failed = inspection.failed_uploads(fs)
    conflicts, conflict_bytes = fs.volume.journal.count_conflicts()
    reason, message = _trouble(fs, failed, damaged)
    health: Literal["ok", "degraded", "bucket-gone"] = "degraded" if reason else "ok"
    if isinstance(fs.health.trouble, BucketNotFound):
        health = "bucket-gone"
    return StatusEvent(
        health=health,
        reason=reason,
        message=message,
        dirty_bytes=left.bytes,
        dirty_files=left.files,
        pending_operations=left.operations,
        uploads_paused=fs.stages.backlog.is_paused,
        failed_uploads=failed,
        renames=inspection.pending_renames(fs),
        warming=warming or [],
        conflicts=conflicts,
        conflict_bytes=conflict_bytes,
        conditional_writes=fs.volume.store.conditions.writes,
        conditions=ConditionSupport(**asdict(fs.volume.store.conditions)),
        checksums=fs.volume.store.checksums.support,
        checksum_algorithm=fs.volume.store.checksums.algorithm,
    )


def _trouble(
    fs: FileSystem, failed: list[FailedUpload], damaged: SetAside | None
) -> tuple[str, str]:
    """Return the reason and the message of what is wrong; both empty where nothing is."""
    trouble = fs.health.trouble
    outage_ns = fs.volume.store.outage.since_ns
    if outage_ns is not None:
        since = inspection.as_time(outage_ns).isoformat(timespec="seconds").replace("+00:00", "Z")
        why = trouble.detail if trouble is not None else "no answer"
        return (
            "offline",
            f"S3 cannot be reached since {since}; what is known and cached is served ({why})",
        )
    if trouble is not None:
        return _reason(trouble), trouble.detail
    backlog = fs.stages.backlog
    if backlog.is_paused:
        waiting = (
            f"; waiting for room: {_counted(backlog.waiting, 'writer')}" if backlog.waiting else ""
        )
        return (
            "uploads-paused",
            "uploads in the background are paused; queued: "
            f"{_counted(backlog.files, 'file')} with {backlog.bytes} bytes{waiting}",
        )
    if failed:
        return (
            "uploads-failed",
            f"{_counted(len(failed), 'file')} could not be uploaded, "
            f"and the data is kept; {failed[0].path}: {failed[0].error}",
        )
    if backlog.waiting:
        return (
            "dirty-limit",
            f"waiting for room: {_counted(backlog.waiting, 'writer')}; queued for upload: "
            f"{_counted(backlog.files, 'file')} with {backlog.bytes} bytes",
        )
    errors = fs.syncer.errors()
    if errors:
        return "changes-failed", f"changes are kept and tried again: {errors[0]}"
    refused = fs.syncer.deleter.refused()
    if refused:
        return (
            "delete-refused",
            f"S3 keeps {len(refused)} {'object' if len(refused) == 1 else 'objects'} that were removed, and the mount shows them "
            f"again; {refused[-1].key}: {refused[-1].reason}",
        )
    if damaged is not None:
        return "metadata-damaged", str(damaged)
    return "", ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _reason(error: S3mgrError) -> str:
    if isinstance(error, BucketNotFound):
        return "bucket-gone"
    if isinstance(error, CredentialsRejected):
        return "credentials-rejected"
    return "access-denied" if isinstance(error, Denied) else "s3-unavailable"
