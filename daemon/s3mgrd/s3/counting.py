"""Counters of calls: how many, how long, how much, and for how long programs waited for S3.

All of it is taken on the way of every request, so it is a handful of additions each (`python -m tests.bench.counters`
shows what it costs). Nothing here is ever reset: whoever wants rates takes the difference of two looks.

Concurrency: used on the trio thread, without checkpoints.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import trio

BUCKETS: Final = 120
"""The last one ends at some half an hour; what takes longer is counted there."""


def bucket_of(seconds: float) -> int:
    """Return the bucket of a duration: whole microseconds up to 8, then four to each doubling."""
    us = int(seconds * 1e6)
    if us < 8:
        return us
    shift = us.bit_length() - 3
    return min((shift << 2) + (us >> shift), BUCKETS - 1)


def upper_s(bucket: int) -> float:
    """Return where a bucket ends: what is counted there took less."""
    if bucket < 8:
        return (bucket + 1) / 1e6
    shift = (bucket >> 2) - 1
    return (((bucket & 3) + 5) << shift) / 1e6


@dataclass(slots=True)
class Busy:
    """For how long at least one of something was going on: not the sum of what ran side by side."""

    running: int = 0
    total_s: float = 0.0
    since: float = 0.0

    def enter(self, now: float) -> None:
        """Note that one more begins."""
        if not self.running:
            self.since = now
        self.running += 1

    def leave(self, now: float) -> None:
        """Note that one has ended."""
        self.running -= 1
        if not self.running:
            self.total_s += now - self.since

    def seconds(self) -> float:
        """Return the time until now."""
        return self.total_s + (perf_counter() - self.since if self.running else 0.0)


@dataclass(slots=True)
class CallStats:
    """Counters of one kind of call."""

    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def add(self, seconds: float, *, failed: bool) -> None:
        """Count one call."""
        self.count += 1
        self.errors += failed
        self.seconds += seconds
        self.buckets[bucket_of(seconds)] += 1


@dataclass(slots=True)
class AskedStats(CallStats):
    """Counters of one kind of request of programs, with the time in which it waited."""

    s3_s: float = 0.0
    disk_s: float = 0.0


@dataclass(slots=True)
class RequestStats(CallStats):
    """Counters of one kind of S3 request, attempt by attempt."""

    first_s: float = 0.0
    """The part of `seconds` until the answer began."""
    retries: int = 0
    queued_s: float = 0.0
    """Beyond `seconds`: for a free place among the requests that may run at the same time."""
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class StoreStats:
    """Counters of one store since it was opened."""

    calls: dict[str, RequestStats] = field(default_factory=dict)
    retries: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    busy: Busy = field(default_factory=Busy)
    """At least one request was under way."""

    def of(self, operation: str) -> RequestStats:
        """Return the counters of one kind of request."""
        found = self.calls.get(operation)
        if found is None:
            found = self.calls[operation] = RequestStats()
        return found


class Asked:
    """What a program asked, while one task answers it: for how long that task waited, for S3 and for the local disk."""

    __slots__ = ("_depth", "_since", "disk_s", "s3_s", "task", "waiting")

    def __init__(self, waiting: Busy) -> None:
        self.waiting = waiting
        self.task = trio.lowlevel.current_task()
        self.s3_s = 0.0
        self.disk_s = 0.0
        self._depth = 0
        self._since = 0.0

    def begin(self) -> None:
        """Note that it waits from here on. May be nested: the outermost counts."""
        if not self._depth:
            self._since = perf_counter()
            self.waiting.enter(self._since)
        self._depth += 1

    def end(self, *, for_disk: bool) -> None:
        """Note that it does not wait any more, and for what it did."""
        self._depth -= 1
        if not self._depth:
            now = perf_counter()
            self.waiting.leave(now)
            if for_disk:
                self.disk_s += now - self._since
            else:
                self.s3_s += now - self._since


asked: Final[ContextVar[Asked | None]] = ContextVar("asked", default=None)
"""Set by who answers programs. Tasks started meanwhile inherit it, but do not count: see `Waiting`."""


class Waiting:
    """Count what happens inside as waiting, where it is a program that waits: ``with Waiting():``.

    What goes on for a program in other tasks is not counted there but where its own task waits for them. `for_disk`:
    for the local disk instead of S3; may be set when it is known.
    """

    __slots__ = ("_asked", "for_disk")

    def __init__(self, *, for_disk: bool = False) -> None:
        self.for_disk = for_disk

    def __enter__(self) -> "Waiting":
        """Begin to wait."""
        found = asked.get()
        if found is not None and found.task is not trio.lowlevel.current_task():
            found = None
        self._asked = found
        if found is not None:
            found.begin()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._asked is not None:
            self._asked.end(for_disk=self.for_disk)
