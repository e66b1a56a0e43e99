"""What can be seen of a file system from outside: counters, what is cached, what failed. Changes nothing."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from s3mgr.schema import (
    ConflictCopy,
    ConflictList,
    DiskCacheStats,
    FailedUpload,
    LatencyBucket,
    MountStats,
    OperationCount,
    PendingRename,
    RequestCount,
)
from s3mgrd.cache.blocks import BlockCache
from s3mgrd.errors import UserError
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.journal.tables import StagedRow
from s3mgrd.s3.counting import CallStats, upper_s

CONFLICT_PAGE_BYTES: Final = 16 << 10
"""Bytes of paths in one page of conflict copies: a message to the supervisor has a limit."""
MAX_FAILED: Final = 100
"""Failed uploads that are listed; more are counted only."""
MAX_RENAMES: Final = 20
"""Renames that are listed, the oldest first."""
SHORT_NS: Final = NS
"""What S3 follows sooner is nothing to tell of."""


def stats(fs: FileSystem, *, uptime_s: float) -> MountStats:
    """Count what one worker did."""
    volume, counters, reader = fs.volume, fs.counters, fs.reader
    store, backlog = volume.store.stats, fs.stages.backlog
    conflicts, conflict_bytes = volume.journal.count_conflicts()
    return MountStats(
        worker_pid=os.getpid(),
        uptime_s=round(uptime_s, 3),
        memory_bytes=memory_bytes(),
        busy_s=_rounded(counters.busy.seconds()),
        waiting_s=_rounded(counters.waiting.seconds()),
        s3_busy_s=_rounded(store.busy.seconds()),
        cpu_s=_rounded(time.process_time()),
        loop_cpu_s=_rounded(time.thread_time()),
        fuse=[
            OperationCount(
                name=name,
                count=c.count,
                errors=c.errors,
                seconds=_rounded(c.seconds),
                s3_s=_rounded(c.s3_s),
                disk_s=_rounded(c.disk_s),
                latency=_latency(c),
            )
            for name, c in sorted(counters.calls.items())
        ],
        s3=[
            RequestCount(
                name=name,
                count=c.count,
                errors=c.errors,
                seconds=_rounded(c.seconds),
                retries=c.retries,
                first_s=_rounded(c.first_s),
                queued_s=_rounded(c.queued_s),
                received_bytes=c.received_bytes,
                sent_bytes=c.sent_bytes,
                latency=_latency(c),
            )
            for name, c in sorted(store.calls.items())
        ],
        s3_retries=store.retries,
        s3_received_bytes=store.received_bytes,
        s3_sent_bytes=store.sent_bytes,
        s3_running=store.busy.running,
        concurrency=volume.settings.concurrency,
        read_bytes=counters.read_bytes,
        written_bytes=counters.written_bytes,
        ahead_bytes=reader.ahead_bytes,
        ahead_used_bytes=reader.ahead_used_bytes,
        ahead_wasted_bytes=reader.ahead_wasted_bytes,
        damaged_objects=reader.comparer.damaged,
        metadata_hits=fs.namespace.hits,
        metadata_misses=fs.namespace.misses,
        disk_cache=disk_cache(volume.blocks),
        dirty_bytes=fs.stages.lacking.bytes,
        queued_files=backlog.files,
        queued_bytes=backlog.bytes,
        writers_waiting=backlog.waiting,
        buffered_bytes=reader.held_bytes,
        conflicts=conflicts,
        conflict_bytes=conflict_bytes,
        conflicts_lost=fs.conflicts.lost_total,
    )


def memory_bytes() -> int:
    """Return this process's proportional set size: pages shared with other workers count in part."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


def failed_uploads(fs: FileSystem) -> list[FailedUpload]:
    """List the files that S3 refused or did not get, oldest first."""
    found = []
    for row in fs.volume.journal.failed_staged(limit=MAX_FAILED):
        node = fs.volume.nodes.get(row.inode)
        stage = fs.stages.get(node.id) if node is not None else None
        found.append(
            FailedUpload(
                path=staged_path(fs.volume, row),
                size_bytes=stage.file.size if stage is not None else 0,
                error=row.error or "",
                since=as_time(row.since_ns),
                tries=row.tries,
                retry_at=None if row.retry_ns is None else as_time(row.retry_ns),
            )
        )
    return found


def staged_path(volume: Volume, row: StagedRow) -> str:
    """Return the path of a staged file, as people are told it."""
    node = volume.nodes.get(row.inode)
    return volume.path(node) if node is not None else f"inode {row.inode}"


def pending_renames(fs: FileSystem) -> list[PendingRename]:
    """List the renames of directories that S3 has yet to follow."""
    volume = fs.volume
    found = []
    for row in volume.moves.all() if volume.moving else ():
        node = volume.nodes.get(row.inode)
        if node is None or node.is_detached or volume.now_ns() - row.since_ns < SHORT_NS:
            continue
        progress = fs.mover.progress(row)
        found.append(
            PendingRename(
                id=f"{row.inode}-{row.since_ns}",
                source=row.source.removeprefix(volume.settings.prefix),
                target=volume.path(node),
                since=as_time(row.since_ns),
                objects_done=progress.objects_done,
                objects_total=progress.objects,
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes,
                error=fs.syncer.error_of(("move", row.inode)),
            )
        )
        if len(found) == MAX_RENAMES:
            break
    return found


def conflict_list(fs: FileSystem, cursor: str | None, limit: int) -> ConflictList:
    """List conflict copies, oldest first.

    Raises:
        UserError: *cursor* is none of ours.
    """
    journal = fs.volume.journal
    rows = journal.conflicts(after=_position(cursor), limit=limit)
    items: list[ConflictCopy] = []
    room = CONFLICT_PAGE_BYTES
    for row in rows:
        room -= len(row.path.encode())
        if items and room < 0:
            break
        node, staged = fs.volume.node(row.inode), journal.staged(row.inode)
        items.append(
            ConflictCopy(
                id=row.inode,
                path=row.path,
                size_bytes=fs.stages.size(node),
                mtime=as_time(fs.stages.mtime_ns(node)),
                lost_at=as_time(row.lost_ns),
                reason=row.reason,
                base_etag=staged.base_etag if staged is not None else None,
                winner_etag=row.winner_etag,
                missing_bytes=row.missing,
                is_open=fs.kernel_holds(node.id),
            )
        )
    total, total_bytes = journal.count_conflicts()
    is_last = len(items) == len(rows) < max(limit, 1)
    return ConflictList(
        total=total,
        total_bytes=total_bytes,
        items=items,
        cursor=None if is_last or not items else str(items[-1].id),
    )


def _position(cursor: str | None) -> int:
    """Read the cursor of a page. Raises `UserError`."""
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise UserError(f"{cursor!r} is no cursor", hint="use the cursor of the last page")
    return int(cursor or 0)


def disk_cache(blocks: BlockCache | None) -> DiskCacheStats:
    """Count what the block cache holds and did; zeros where there is none."""
    if blocks is None:
        return DiskCacheStats()
    return DiskCacheStats(
        used_bytes=blocks.used_bytes,
        limit_bytes=blocks.limit_bytes,
        pinned_bytes=blocks.pinned_bytes,
        hit_bytes=blocks.hit_bytes,
        miss_bytes=blocks.miss_bytes,
        corrupt_blocks=blocks.corrupt_blocks,
        evicted_blocks=blocks.evicted_blocks,
        refused_blocks=blocks.refused_blocks,
    )


def _latency(stats: CallStats) -> list[LatencyBucket]:
    return [
        LatencyBucket(upper_s=upper_s(bucket), count=count)
        for bucket, count in enumerate(stats.buckets)
        if count
    ]


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


def as_time(time_ns: int) -> datetime:
    """Return a time as the API shows it."""
    # Times of files may lie outside what datetime can say.
    seconds = min(max(time_ns // NS, -62_135_596_800), 253_402_300_799)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=time_ns % NS // 1000)
