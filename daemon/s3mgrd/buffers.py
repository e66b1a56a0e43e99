"""Memory for objects' bytes that is lent again and again.

New memory costs more than what is done with it: for each GB the kernel makes 260,000 pages, fills them with zeros and takes
them back, and Python fills a new bytearray with zeros once more (a mapping of its own is not). Of the processor time of a worker that
read in order this was a third. What is lent here comes back by itself when nobody refers to it any more, whoever had it last.

Concurrency: any thread may borrow, and any may be the last that lets go.
"""

import ctypes
import mmap
import threading
from typing import Any, Final

SMALLEST: Final = 64 << 10
"""Below, ordinary memory costs little."""
LARGEST: Final = 8 << 20
"""Above, nothing is kept: a request for more is rare."""
KEPT_BYTES: Final = 72 << 20
"""What is lent and what is spare together, at most: beyond it, what comes back is not kept. One reader in order has more in hand at
times, the block cache's share included, and buffers beyond this go as fast as new ones are made. But to keep 96 MiB brought all processes of
a mount to 252 MiB, 80 to 239, 64 to 217."""


class Lender:
    """Lends buffers in sizes of powers of two, and keeps what comes back while all are `kept_bytes` at most.

    Attributes:
        lent_bytes: what is in somebody's hands.
    """

    def __init__(self, kept_bytes: int) -> None:
        self.kept_bytes: Final = kept_bytes
        self.lent_bytes = 0
        # Re-entrant: a collection of garbage may return a buffer in the middle of anything.
        self._lock: Final = threading.RLock()
        self._spare: Final[dict[int, list[mmap.mmap]]] = {}
        self._kinds: Final[dict[int, type[ctypes.Array[ctypes.c_ubyte]]]] = {}
        size = SMALLEST
        while size <= LARGEST:
            self._spare[size] = []
            self._kinds[size] = self._kind(size)
            size *= 2

    @property
    def spare_bytes(self) -> int:
        """What is here and lent to nobody."""
        return sum(size * len(buffers) for size, buffers in self._spare.items())

    def lend(self, size: int) -> memoryview:
        """Return writable memory of *size* bytes, with anything in it."""
        if not SMALLEST <= size <= LARGEST:
            return memoryview(bytearray(size))
        full = 1 << (size - 1).bit_length()
        with self._lock:
            self.lent_bytes += full
            spare = self._spare[full]
            memory = spare.pop() if spare else None
        if memory is None:
            memory = _map(full)
        lease: Any = self._kinds[full].from_buffer(memory)  # Any: the attribute is the subclass's
        lease.memory = memory
        return memoryview(lease).cast("B")[:size]

    def trim(self) -> None:
        """Give all that is spare back to the system."""
        with self._lock:
            for buffers in self._spare.values():
                buffers.clear()

    def _kind(self, size: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
        """Make the class of what a memoryview refers to: when such an object ends, its memory comes back."""

        def come_back(lease: Any) -> None:  # noqa: ANN401 - as above
            with self._lock:
                self.lent_bytes -= size
                room = self.kept_bytes - self.lent_bytes - size
                for other, buffers in self._spare.items():  # what is wanted now is of this size
                    while other != size and buffers and self.spare_bytes > room:
                        buffers.pop()
                if self.spare_bytes <= room:
                    self._spare[size].append(lease.memory)

        return type(f"Lease{size}", (ctypes.c_ubyte * size,), {"__del__": come_back})


def _map(size: int) -> mmap.mmap:
    """Return new memory. Large pages (MADV_HUGEPAGE) were tried: on a virtual machine, new ones took longer to get than small ones."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


_lender: Final = Lender(KEPT_BYTES)
lend: Final = _lender.lend
trim: Final = _lender.trim
