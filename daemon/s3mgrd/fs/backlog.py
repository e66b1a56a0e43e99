"""What waits to be uploaded in the background (write_mode=writeback): how much it is, in which order it goes, who has to wait.

A file is queued when its last writing handle is closed. Its place in the order is a time: when it was queued, less a
bonus that small files get. So small files overtake large ones, but never those that wait for longer than the bonus.
"""

import resource
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode

MIB: Final = 1 << 20
NS: Final = 1_000_000_000
PAUSED: Final = "uploads_paused"
"""In mount.db's meta: "1" while uploads in the background are held back."""
MAX_BONUS_S: Final = 60
"""A file of a few bytes overtakes what was queued up to so many seconds before it; each MiB costs one of them."""
FILES_SHARE: Final = 4
"""A queued file keeps two descriptors open: writers wait when one in so many of those allowed would be used up."""


def due_ns(queued_ns: int, size: int) -> int:
    """Return the place in the order of a file of *size* bytes, as a time that has passed."""
    return queued_ns - max(0, MAX_BONUS_S - size // MIB) * NS


class Backlog:
    """The files of one volume that are queued; no checkpoint but in `room`."""

    def __init__(self) -> None:
        self._sizes: dict[Inode, int] = {}
        self._shrunk = trio.Event()
        self._max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FILES_SHARE
        self.bytes = 0
        self.is_paused = False
        """Whether uploads in the background are held back; what is queued stays queued."""
        self.waiting = 0
        """How many writers wait for room."""

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._sizes

    @property
    def files(self) -> int:
        """How many files are queued."""
        return len(self._sizes)

    def add(self, inode: Inode, size: int) -> None:
        """Note that a file is queued."""
        self.drop(inode)
        self._sizes[inode] = size
        self.bytes += size

    def drop(self, inode: Inode) -> None:
        """Note that a file is not queued any more."""
        size = self._sizes.pop(inode, None)
        if size is not None:
            self.bytes -= size
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
