"""How well S3 serves the mount, and counters of what the kernel asked."""

from dataclasses import dataclass, field
from typing import Final

from s3mgrd.errors import BucketNotFound, Denied, S3mgrError, Unavailable
from s3mgrd.s3.port import CallStats, ObjectStore

_TROUBLE: Final = (Unavailable, Denied, BucketNotFound)


class Health:
    """Remembers the last trouble with S3 until a request succeeds."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._trouble: S3mgrError | None = None
        self._succeeded_before = 0

    def note(self, error: BaseException) -> None:
        """Take note of an error that came out of the store."""
        if isinstance(error, _TROUBLE):
            self._trouble = error
            self._succeeded_before = self._succeeded()

    @property
    def trouble(self) -> S3mgrError | None:
        """The last trouble; None once S3 has answered a request since."""
        if self._trouble is not None and self._succeeded() > self._succeeded_before:
            self._trouble = None
        return self._trouble

    def _succeeded(self) -> int:
        return sum(c.count - c.errors for c in self._store.stats.calls.values())


@dataclass
class Counters:
    """What the kernel asked of one volume."""

    calls: dict[str, CallStats] = field(default_factory=dict)
    read_bytes: int = 0
    written_bytes: int = 0

    def count(self, name: str, seconds: float, *, failed: bool) -> None:
        """Count one call."""
        stats = self.calls.get(name)
        if stats is None:
            stats = self.calls[name] = CallStats()
        stats.count += 1
        stats.seconds += seconds
        stats.errors += failed
