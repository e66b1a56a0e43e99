"""Counters of what programs asked of one volume, and for how long they waited for what."""

from dataclasses import dataclass, field

from s3mgrd.s3.counting import Asked, AskedStats, Busy, asked


@dataclass(slots=True)
class Counters:
    """What the kernel asked of one volume."""

    calls: dict[str, AskedStats] = field(default_factory=dict)
    read_bytes: int = 0
    written_bytes: int = 0
    busy: Busy = field(default_factory=Busy)
    """At least one request of a program was being answered."""
    waiting: Busy = field(default_factory=Busy)
    """At least one of them waited, for S3 or for the local disk."""

    def begin(self, now: float) -> Asked:
        """Note that a request comes in; `end` must follow in the same task."""
        self.busy.enter(now)
        found = Asked(self.waiting)
        asked.set(found)
        return found

    def end(self, name: str, what: Asked, begun: float, now: float, *, failed: bool) -> None:
        """Count a request that is answered."""
        asked.set(None)
        self.busy.leave(now)
        stats = self._count(name, now - begun, failed=failed)
        stats.s3_s += what.s3_s
        stats.disk_s += what.disk_s

    def answered(self, name: str, begun: float, now: float, *, failed: bool) -> None:
        """Count a request that was answered without waiting for anything, so `begin` was not called."""
        seconds = now - begun
        if not self.busy.running:
            self.busy.total_s += seconds
        self._count(name, seconds, failed=failed)

    def _count(self, name: str, seconds: float, *, failed: bool) -> AskedStats:
        stats = self.calls.get(name)
        if stats is None:
            stats = self.calls[name] = AskedStats()
        stats.add(seconds, failed=failed)
        return stats
