"""What waits to be uploaded in the background (write_mode=writeback): how much it is, in which order it goes, who has to wait.

A file is queued when its last writing handle is closed. Its place in the order is a time: when it was queued, less a
bonus that small files get. So small files overtake large ones, but never those that wait for longer than the bonus.

The places are in mount.db too (`staged.retry_ns`), so that they outlive the worker; here they are in the order in which
they are taken, because asking the database for the next one costs more than all the rest of taking it.
"""

import heapq
import resource
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.journal.tables import HURRIED_NS

MIB: Final = 1 << 20
NS: Final = 1_000_000_000
PAUSED: Final = "uploads_paused"
"""In mount.db's meta: "1" while uploads in the background are held back."""
MAX_BONUS_S: Final = 60
"""A file of a few bytes overtakes what was queued up to so many seconds before it; each MiB costs one of them."""
GATHER_S: Final = 0.05
"""What is queued waits so long: what is rewritten, renamed or removed meanwhile need not be sent as it was. A change of a large
object, which is all there is to send, does not: see `Stages.queue`."""
QUIET_S: Final = 0.02
HOLD_S: Final = 1.0
"""While small files keep coming, the next within `QUIET_S`, they wait up to `HOLD_S`: who makes them waits for each, and
uploading takes the processor from answering. Whoever waits for S3 does not ask the queue."""
SMALL_BYTES: Final = 32 << 10
"""Uploads up to this size wait for S3, not for the network: many more of them may be under way."""
REST_S: Final = 0.2
"""An upload that ended without having been done waits so long: what it waits for is somebody else's."""
FILES_SHARE: Final = 4
"""A queued file keeps two descriptors open: writers wait when one in so many of those allowed would be used up."""


def due_ns(queued_ns: int, size: int) -> int:
    """Return the place in the order of a file of *size* bytes, as a time that has passed."""
    return queued_ns - max(0, MAX_BONUS_S - size // MIB) * NS


class _Line:
    """Files in the order of their places. A place that is no longer a file's is left in the heap until it comes up."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Inode, float]] = []

    def put(self, place_ns: int, inode: Inode, ready_at: float) -> None:
        heapq.heappush(self._heap, (place_ns, inode, ready_at))

    def first(self, places: dict[Inode, int]) -> tuple[int, Inode, float] | None:
        while self._heap and places.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None


class Backlog:
    """The files of one volume that are queued; no checkpoint but in `room`."""

    def __init__(self) -> None:
        self._sizes: dict[Inode, int] = {}
        self._places: dict[Inode, int] = {}
        """Of those that wait; what is being uploaded has none, and stays queued until S3 has it."""
        self._taken: dict[Inode, int] = {}
        self._small, self._large = _Line(), _Line()
        self._came_at = 0.0
        """When the last one was queued that may be changed again."""
        self._shrunk = trio.Event()
        self._max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FILES_SHARE
        self.bytes = 0
        self.is_paused = False
        """Whether uploads in the background are held back; what is queued stays queued."""
        self.waiting = 0
        """How many writers wait for room."""
        self.ready_at = 0.0
        """After `take` found none: trio's time from which on there is one, unless something changes before; infinite: never."""

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._sizes

    @property
    def files(self) -> int:
        """How many files are queued."""
        return len(self._sizes)

    @property
    def has_waiting(self) -> bool:
        """Whether a file is queued that is not being uploaded."""
        return bool(self._places)

    def add(self, inode: Inode, size: int, place_ns: int, *, gathers: bool = False) -> None:
        """Queue a file, or give it another place; *gathers*: it may be changed again in a moment."""
        before = self._sizes.get(inode, 0)
        self._sizes[inode] = size
        self.bytes += size - before
        self._taken.pop(inode, None)
        ready_at = 0.0
        if gathers:
            self._came_at = trio.current_time()
            ready_at = self._came_at + GATHER_S
        self._put(inode, place_ns, ready_at)

    def _put(self, inode: Inode, place_ns: int, ready_at: float) -> None:
        self._places[inode] = place_ns
        line = self._small if self._sizes[inode] <= SMALL_BYTES else self._large
        line.put(place_ns, inode, ready_at)

    def take(
        self, now_ns: int, *, small: bool, large: bool, holds: bool = True
    ) -> tuple[Inode, bool] | None:
        """Return the next file that is due, and whether it is a small one; of the given kinds only. `give_back` it afterwards.

        *holds*: small ones wait while more keep coming.
        """
        now, self.ready_at = trio.current_time(), float("inf")
        firsts = [
            (first, line is self._small)
            for line, may in ((self._small, small), (self._large, large))
            if may and (first := line.first(self._places)) is not None
        ]
        for (place_ns, inode, ready_at), is_small in sorted(firsts):
            if self.is_paused and place_ns > HURRIED_NS:
                continue
            if is_small and holds:
                held_until = min(self._came_at + QUIET_S, ready_at - GATHER_S + HOLD_S)
                ready_at = max(ready_at, held_until) if ready_at else ready_at
            ready_at = max(ready_at, now + (place_ns - now_ns) / NS)
            if ready_at > now:
                self.ready_at = min(self.ready_at, ready_at)
                continue
            self._taken[inode] = self._places.pop(inode)
            return inode, is_small
        return None

    def give_back(self, inode: Inode) -> None:
        """Let a file that was taken, and that S3 still lacks, wait at its place again."""
        place_ns = self._taken.pop(inode, None)
        if place_ns is not None and inode in self._sizes:
            self._put(inode, place_ns, trio.current_time() + REST_S)

    def drop(self, inode: Inode) -> None:
        """Note that a file is not queued any more."""
        size = self._sizes.pop(inode, None)
        self._places.pop(inode, None)
        self._taken.pop(inode, None)
        if size is not None:
            self.bytes -= size
            if self.waiting:
                self._shrunk.set()
                self._shrunk = trio.Event()

    def is_full(self, limit_bytes: int) -> bool:
        """Whether writers have to wait."""
        return self.bytes > limit_bytes or self.files > self._max_files

    async def room(self, limit_bytes: int) -> None:
        """Wait until less than *limit_bytes* are queued."""
        if not self.is_full(limit_bytes):
            return
        self.waiting += 1
        try:
            while self.is_full(limit_bytes):
                await self._shrunk.wait()
        finally:
            self.waiting -= 1
