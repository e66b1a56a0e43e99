"""How fast the local disk takes what is written, and whether the loop may wait for it.

The kernel takes 1 MiB into memory in a third of a millisecond, which is less than another thread costs. A disk that took longer
is given large writes by a thread for a while, because they must not stop the loop.
"""

from time import perf_counter
from typing import Final

import trio

from s3mgrd.journal.staging import StagedFile

THREAD_BYTES: Final = 32 << 10
"""Writes from this size on go to a thread while the disk is slow to take them."""
SLOW_S: Final = 0.02
"""A write that took so long says that the disk is slow."""
SLOW_FOR_S: Final = 10.0
"""For how long that is believed."""


class Pace:
    """What is known of one disk. No checkpoint."""

    def __init__(self) -> None:
        self._slow_until = 0.0

    def takes_at_once(self, size: int) -> bool:
        """Whether *size* bytes may be written on the loop."""
        return size < THREAD_BYTES or trio.current_time() >= self._slow_until

    def put(self, file: StagedFile, offset: int, data: bytes | memoryview) -> None:
        """Write on the loop, and take note of how long it takes."""
        begun = perf_counter()
        file.put(offset, data)
        if perf_counter() - begun > SLOW_S:
            self._slow_until = trio.current_time() + SLOW_FOR_S
