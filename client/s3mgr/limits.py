"""What limits a mount, judged by its counters: see docs/performance.md, which explains each answer."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from s3mgr.schema import MountStats, RequestCount

MIB: Final = 1 << 20

Limit = Literal[
    "nothing",
    "programs",
    "worker",
    "disk",
    "concurrency",
    "s3-errors",
    "s3-latency",
    "network",
    "mixed",
]

QUIET_SHARE: Final = 0.02
"""Of the time, in which programs wait for the mount: below that nothing can be said."""
PROGRAMS_SHARE: Final = 0.5
"""Of an interval, in which programs wait for the mount: below that they have most of the time to themselves."""
WORKER_SHARE: Final = 0.8
"""Of the time in which there is something to do, in which the worker's one deciding thread computes: then it is the limit."""
WAITING_SHARE: Final = 0.5
"""The same for waiting: then what is waited for is the limit."""
RETRY_SHARE: Final = 0.1
LARGE_BYTES: Final = MIB
"""A request whose body is as long as that is a transfer: sending it is most of its time."""
UPLOADS: Final = frozenset({"PutObject", "UploadPart"})


class Verdict(NamedTuple):
    """What limits, and a sentence with the figures that say so."""

    limit: Limit
    text: str


def what_limits(stats: MountStats) -> Verdict:
    """Say what would have to be faster for programs to wait less, since the worker began: it may have been idle for long."""
    busy_s = min(stats.busy_s, stats.uptime_s)
    if not stats.uptime_s or busy_s < QUIET_SHARE * stats.uptime_s:
        return Verdict(
            "nothing",
            f"nothing here: programs waited for this mount {_share(busy_s, stats.uptime_s)} of the time",
        )
    active_s = max(busy_s, min(stats.s3_busy_s, stats.uptime_s))
    loop = _share(stats.loop_cpu_s, active_s)
    waiting = _share(stats.waiting_s, busy_s)
    if stats.loop_cpu_s >= WORKER_SHARE * active_s:
        return Verdict(
            "worker",
            f"the worker's processor: its main thread computed {loop} of the time in which there was something to do",
        )
    s3_s = sum(call.s3_s for call in stats.fuse)
    disk_s = sum(call.disk_s for call in stats.fuse)
    if stats.waiting_s < WAITING_SHARE * busy_s or not s3_s + disk_s:
        return Verdict(
            "mixed",
            f"nothing alone: while programs waited, {waiting} of the time went by waiting for S3 or the disk, and the worker's main "
            f"thread computed {loop}; the rest is the kernel, and other work on this machine",
        )
    if disk_s > s3_s:
        return Verdict(
            "disk",
            f"the local disk: programs waited for it {_share(disk_s, s3_s + disk_s)} of the {_seconds(s3_s + disk_s)} that they "
            "waited for S3 or the disk",
        )
    return _s3_limits(
        stats, f"while programs waited, {waiting} of the time S3 or the disk had the word"
    )


def what_limits_now(stats: MountStats) -> Verdict:
    """Say the same of an interval in which programs were at work: their own time counts too."""
    verdict = what_limits(stats)
    if verdict.limit == "nothing" or stats.busy_s >= PROGRAMS_SHARE * stats.uptime_s:
        return verdict
    return Verdict(
        "programs",
        f"the programs themselves, the kernel, or other work on this machine: they waited for this mount "
        f"{_share(stats.busy_s, stats.uptime_s)} of the time; of that, {verdict.text}",
    )


def _s3_limits(stats: MountStats, because: str) -> Verdict:
    """Say what of S3 it is."""
    requests = sum(request.count for request in stats.s3)
    seconds = sum(request.seconds for request in stats.s3)
    if stats.s3_retries > RETRY_SHARE * requests:
        return Verdict(
            "s3-errors",
            f"S3's errors: {stats.s3_retries} of {requests} requests were repeated ({because})",
        )
    queued_s = sum(request.queued_s for request in stats.s3)
    if queued_s > seconds:
        return Verdict(
            "concurrency",
            f"the option concurrency={stats.concurrency}: requests waited {_seconds(queued_s)} for their turn and took "
            f"{_seconds(seconds)} ({because})",
        )
    transfer_s, latency_s = _transfer_and_latency(stats.s3)
    side_by_side = seconds / stats.s3_busy_s if stats.s3_busy_s else 0.0
    if transfer_s > latency_s:
        moved = stats.s3_received_bytes + stats.s3_sent_bytes
        rate = moved / stats.s3_busy_s / 1e6 if stats.s3_busy_s else 0.0
        return Verdict(
            "network",
            f"the network, or S3's bandwidth: {rate:.0f} MB/s by {side_by_side:.1f} requests at a time ({because})",
        )
    mean_ms = 1e3 * latency_s / requests if requests else 0.0
    return Verdict(
        "s3-latency",
        f"S3's latency: {mean_ms:.1f} ms until an answer begins, {side_by_side:.1f} requests at a time ({because})",
    )


def _transfer_and_latency(requests: Iterable[RequestCount]) -> tuple[float, float]:
    """Split the time of requests: moving objects' data, and waiting for S3 to begin."""
    transfer_s = latency_s = 0.0
    for request in requests:
        if request.name in UPLOADS and request.sent_bytes >= LARGE_BYTES * request.count:
            transfer_s += request.seconds
        else:
            latency_s += request.first_s
            transfer_s += request.seconds - request.first_s
    return transfer_s, latency_s


def _share(part: float, whole: float) -> str:
    return f"{100 * min(part / whole, 1.0):.0f} %" if whole else "0 %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"
