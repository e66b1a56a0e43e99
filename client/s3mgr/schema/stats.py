"""Counters of a mount's worker: what programs asked, what S3 was asked, and where the time went.

All counters begin with the worker and only grow; whoever wants rates takes the difference of two looks (`since`).
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, field

T = TypeVar("T", bound=Struct)


class LatencyBucket(Struct, frozen=True, kw_only=True):
    """So many calls took less than `upper_s`, and not less than the end of the bucket before. Empty ones are left out."""

    upper_s: float
    count: int


class CallCount(Struct, frozen=True, kw_only=True):
    """Calls of one kind: how many, how many failed, how long they took in all."""

    name: str
    count: int
    errors: int
    seconds: float
    latency: list[LatencyBucket] = field(default_factory=list)


class OperationCount(CallCount, frozen=True, kw_only=True):
    """Calls of one kind that programs made.

    `s3_s` and `disk_s` are the parts of `seconds` in which they waited for S3 and for the local disk; the rest is the worker's
    own work and its queue. Calls run side by side, so sums may grow faster than the clock.
    """

    s3_s: float = 0.0
    disk_s: float = 0.0


class RequestCount(CallCount, frozen=True, kw_only=True):
    """Requests of one kind that S3 was sent, each attempt for itself.

    `first_s` is the part of `seconds` until the answer began, `queued_s` the time before, for a place among the requests that
    may run at the same time (`concurrency`).
    """

    retries: int = 0
    first_s: float = 0.0
    queued_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0


class DiskCacheStats(Struct, frozen=True, kw_only=True):
    """The block cache on disk. Hits and misses are bytes that reads took from it, and that S3 had to be asked for.

    `corrupt_blocks` did not match their checksum and were fetched again; `refused_blocks` were not kept, because the disk was
    full or slower than S3. `pinned_bytes` is a part of `used_bytes`.
    """

    used_bytes: int = 0
    limit_bytes: int = 0
    pinned_bytes: int = 0
    hit_bytes: int = 0
    miss_bytes: int = 0
    corrupt_blocks: int = 0
    evicted_blocks: int = 0
    refused_blocks: int = 0


class MountStats(Struct, frozen=True, kw_only=True):
    """Counters of one worker since it started.

    `busy_s`: for so long at least one call of a program was being answered; `waiting_s`: so long at least one of these
    waited for S3 or the local disk; `s3_busy_s`: so long at least one request to S3 was under way. `cpu_s` is the worker's
    processor time, all threads; `loop_cpu_s` that of the one thread that decides everything, of which there is never
    more than one second a second. `ahead_bytes` was asked for before somebody read it; of that, `ahead_used_bytes` was
    read since and `ahead_wasted_bytes` given up unread. `damaged_objects` did not have S3's checksum when all of their ranges
    had come; who had them open got an error, and they were fetched again. `conflicts` copies are kept now; `conflicts_lost`
    uploads came second.
    """

    worker_pid: int
    uptime_s: float
    memory_bytes: int
    busy_s: float = 0.0
    waiting_s: float = 0.0
    s3_busy_s: float = 0.0
    cpu_s: float = 0.0
    loop_cpu_s: float = 0.0
    fuse: list[OperationCount] = field(default_factory=list)
    s3: list[RequestCount] = field(default_factory=list)
    s3_retries: int = 0
    s3_received_bytes: int = 0
    s3_sent_bytes: int = 0
    s3_running: int = 0
    concurrency: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    ahead_bytes: int = 0
    ahead_used_bytes: int = 0
    ahead_wasted_bytes: int = 0
    damaged_objects: int = 0
    metadata_hits: int = 0
    metadata_misses: int = 0
    disk_cache: DiskCacheStats = DiskCacheStats()
    dirty_bytes: int = 0
    queued_files: int = 0
    queued_bytes: int = 0
    writers_waiting: int = 0
    buffered_bytes: int = 0
    conflicts: int = 0
    conflict_bytes: int = 0
    conflicts_lost: int = 0


Named = CallCount | LatencyBucket

GAUGES: Final = frozenset(
    {
        "worker_pid", "memory_bytes", "s3_running", "concurrency", "dirty_bytes", "queued_files",
        "queued_bytes", "writers_waiting", "buffered_bytes", "conflicts", "conflict_bytes",
        "used_bytes", "limit_bytes", "pinned_bytes", "name", "upper_s",
    }
)  # fmt: skip
"""Fields that say how it is now; all others are counters."""


def since(now: MountStats, before: MountStats) -> MountStats:
    """Return what happened between two looks: counters become differences. Of another worker all is new."""
    if now.worker_pid != before.worker_pid or now.uptime_s < before.uptime_s:
        return now
    return _less(now, before)


def _less(now: T, before: T) -> T:
    changes: dict[str, object] = {}
    for name in now.__struct_fields__:
        if name in GAUGES:
            continue
        new, old = getattr(now, name), getattr(before, name)
        if isinstance(new, Struct):
            changes[name] = _less(new, old)
        elif isinstance(new, list):
            changes[name] = _list_less(new, old)
        else:
            changes[name] = new - old
    return msgspec.structs.replace(now, **changes)


def _list_less(now: list[Named], before: list[Named]) -> list[Named]:
    """Take the difference member by member, and leave out what did not happen."""
    known = {_key(item): item for item in before}
    items = [_less(item, known[_key(item)]) if _key(item) in known else item for item in now]
    return [item for item in items if item.count]


def _key(item: Named) -> str | float:
    return item.upper_s if isinstance(item, LatencyBucket) else item.name


def percentile_s(latency: Sequence[LatencyBucket], share: float) -> float:
    """Return what *share* (0 to 1) of the calls took less than; 0: there were none."""
    wanted = share * sum(bucket.count for bucket in latency)
    for bucket in latency:
        wanted -= bucket.count
        if bucket.count and wanted <= 0:
            return bucket.upper_s
    return 0.0
