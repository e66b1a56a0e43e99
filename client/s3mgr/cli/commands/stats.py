"""``s3mgr stats``: where the time of a mount goes."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from s3mgr.cli.context import attempting, common_options, make_client
from s3mgr.cli.output import counted, human_duration, human_size, printable, render_table
from s3mgr.cli.parameters import DURATION, TARGET

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import LatencyBucket, MountStats, OperationCount, RequestCount


@click.command(short_help="Show where the time of a mount goes, and what limits it.")
@click.argument("target", metavar="NAME|DIR", type=TARGET)
@click.option(
    "-w", "--watch", is_flag=True, help="Go on until Ctrl-C with what happened in each interval."
)
@click.option(
    "-i",
    "--interval",
    "interval_s",
    type=DURATION,
    default=2.0,
    help="Length of the intervals of --watch. Default: 2s.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --watch: stop after this many intervals.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON, with --watch one line an interval."
)
@common_options()
def command(
    *, target: str, watch: bool, interval_s: float, count: int | None, as_json: bool
) -> None:
    """Show what programs asked of the mount NAME or DIR, what it asked of S3, how long all that took, and what limits it.

    The figures are since the mount's worker began; with --watch those of each interval. MEAN, P50 and P99 are times of
    calls: the average, and what half and 99 % of them took less than. S3, DISK and OWN say for which share of its time a
    call waited for S3, for the local disk, and was the worker's own work or its queue. FIRST is how long S3 took to begin
    its answers on average, QUEUED how long requests waited for their turn before that (option concurrency).
    docs/performance.md explains what to do about what limits.
    """
    from s3mgr.cli.targets import require_mount

    if interval_s <= 0:
        raise click.UsageError("an interval is longer than nothing")
    with attempting(f"cannot show the counters of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        looks = (
            _intervals(client, mount.name, interval_s)
            if watch
            else iter((client.mount_stats(mount.name),))
        )
        for number, stats in enumerate(looks, start=1):
            click.echo(
                _json(stats, pretty=not watch) if as_json else render(stats, is_interval=watch)
            )
            sys.stdout.flush()
            if number == count:
                return


def _intervals(client: "Client", name: str, interval_s: float) -> "Iterator[MountStats]":
    """Yield what happened in each interval, for ever. A worker that was replaced begins at its start."""
    from s3mgr.schema.stats import since

    before, due = client.mount_stats(name), time.monotonic()
    while True:
        due += interval_s
        time.sleep(max(0.0, due - time.monotonic()))
        now = client.mount_stats(name)
        yield since(now, before)
        before = now


def _json(stats: "MountStats", *, pretty: bool) -> str:
    import msgspec

    body = msgspec.json.encode(stats)
    return (msgspec.json.format(body, indent=2) if pretty else body).decode()


def render(stats: "MountStats", *, is_interval: bool) -> str:
    """Show *stats*, since the start or of an interval, for people; their last line says what limits."""
    from s3mgr.limits import what_limits, what_limits_now

    verdict = what_limits_now(stats) if is_interval else what_limits(stats)
    tables = [_calls(stats), _requests(stats), _facts(stats)]
    limits = f"limits:     {verdict.text}"
    return "\n".join(table for table in tables if table) + limits


def _calls(stats: "MountStats") -> str:
    calls = sorted(stats.fuse, key=lambda call: -call.seconds)
    if not any(call.count for call in calls):
        return ""
    header = ("CALL", "COUNT", "ERRORS", "PER S", "MEAN", "P50", "P99", "S3", "DISK", "OWN")
    return render_table(
        header,
        [
            (
                printable(call.name),
                str(call.count),
                str(call.errors),
                _rate(call, stats.uptime_s),
                *_latencies(call),
                _percent(call.s3_s, call.seconds),
                _percent(call.disk_s, call.seconds),
                _percent(call.seconds - call.s3_s - call.disk_s, call.seconds),
            )
            for call in calls
            if call.count
        ],
        right=frozenset(header[1:]),
    )


def _requests(stats: "MountStats") -> str:
    requests = sorted(stats.s3, key=lambda request: -request.seconds)
    if not any(request.count for request in requests):
        return ""
    header = (
        *("REQUEST", "COUNT", "ERRORS", "RETRIES", "PER S", "MEAN", "P50", "P99", "FIRST"),
        *("QUEUED", "IN", "OUT"),
    )
    return render_table(
        header,
        [
            (
                printable(request.name),
                str(request.count),
                str(request.errors),
                str(request.retries),
                _rate(request, stats.uptime_s),
                *_latencies(request),
                _time(request.first_s / request.count),
                _time(request.queued_s / request.count),
                human_size(request.received_bytes),
                human_size(request.sent_bytes),
            )
            for request in requests
            if request.count
        ],
        right=frozenset(header[1:]),
    )


def _facts(stats: "MountStats") -> str:
    cache, whole_s = stats.disk_cache, stats.uptime_s
    waiting = stats.writers_waiting
    rows = [
        (
            "time:",
            f"{human_duration(whole_s) if whole_s >= 1 else _time(whole_s)}; programs waited "
            f"{_percent(stats.busy_s, whole_s)} of it, for S3 or the disk {_percent(stats.waiting_s, whole_s)}; "
            f"requests to S3 under way {_percent(stats.s3_busy_s, whole_s)}",
        ),
        (
            "worker:",
            f"{_percent(stats.cpu_s, whole_s)} of a processor, its main thread "
            f"{_percent(stats.loop_cpu_s, whole_s)}; {human_size(stats.memory_bytes)} of memory",
        ),
        (
            "S3:",
            f"{_speed(stats.s3_received_bytes, whole_s)} in, {_speed(stats.s3_sent_bytes, whole_s)} out; "
            f"{counted(stats.s3_running, 'request')} under way",
        ),
        (
            "programs:",
            f"read {human_size(stats.read_bytes)}, {_speed(stats.read_bytes, whole_s)}; "
            f"wrote {human_size(stats.written_bytes)}, {_speed(stats.written_bytes, whole_s)}",
        ),
        ("names:", _hits(stats.metadata_hits, stats.metadata_misses, str)),
        (
            "disk cache:",
            f"{_hits(cache.hit_bytes, cache.miss_bytes, human_size)}; {human_size(cache.used_bytes)} of "
            f"{human_size(cache.limit_bytes)} used, {human_size(cache.pinned_bytes)} pinned",
        ),
        (
            "read ahead:",
            f"{human_size(stats.ahead_bytes)}, of which {human_size(stats.ahead_used_bytes)} read and "
            f"{human_size(stats.ahead_wasted_bytes)} wasted; {human_size(stats.buffered_bytes)} in memory",
        ),
        (
            "queue:",
            f"{counted(stats.queued_files, 'file')} with {human_size(stats.queued_bytes)}"
            + (f"; {counted(waiting, 'writer')} waiting for room" if waiting else ""),
        ),
    ]
    if cache.corrupt_blocks or cache.refused_blocks:
        rows.append(
            (
                "",
                f"damaged and fetched again: {counted(cache.corrupt_blocks, 'block')}; not kept, disk full or slow: "
                f"{counted(cache.refused_blocks, 'block')}",
            )
        )
    if stats.damaged_objects:
        rows.append(
            (
                "",
                f"arrived damaged, and told to who read them: {counted(stats.damaged_objects, 'object')}",
            )
        )
    return render_table(("", ""), rows, show_header=False)


def _rate(calls: "OperationCount | RequestCount", seconds: float) -> str:
    return f"{calls.count / seconds:.1f}" if seconds else "-"


def _latencies(calls: "OperationCount | RequestCount") -> tuple[str, str, str]:
    return (
        _time(calls.seconds / calls.count),
        _at(calls.latency, 0.5),
        _at(calls.latency, 0.99),
    )


def _at(latency: "list[LatencyBucket]", share: float) -> str:
    from s3mgr.schema.stats import percentile_s

    return _time(percentile_s(latency, share))


def _time(seconds: float) -> str:
    """Write a short time with three digits: ``85 us``, ``1.25 ms``, ``2.10 s``."""
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            value = seconds / length
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _percent(part: float, whole: float) -> str:
    return f"{100 * max(part, 0.0) / whole:.0f} %" if whole else "-"


def _speed(size_bytes: int, seconds: float) -> str:
    return f"{human_size(size_bytes / seconds if seconds else 0)}/s"


def _hits(hits: int, misses: int, shown: Callable[[int], str]) -> str:
    asked = hits + misses
    return f"{shown(hits)} of {shown(asked)} found ({_percent(hits, asked)})" if asked else "-"
