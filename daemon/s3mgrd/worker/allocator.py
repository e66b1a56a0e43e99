"""How this process's C library keeps memory: a worker that had much in hand gives it back.

glibc keeps what was freed for the next who asks. It also learns: after the first large buffer was freed, buffers of up to
32 MiB come from heaps that only shrink at their ends, and each thread may have a heap of its own. A worker's buffers
live and die in no order, so that kept three times of what it held (327 MiB where 128 were allowed). Here every buffer of an
object's bytes is a mapping of its own, gone when it is freed, and heaps are few (`python -m tests.bench.memory`). What is
wanted again and again is lent instead: `s3mgrd.buffers`.

And Python looks for garbage that refers to itself whenever there are 700 objects more than before. Of a thousand small files that wait
for their upload it looked at each object again and again, which was a twentieth of what they cost; nearly all of it goes without, once
they are uploaded.
"""

import ctypes
import gc
import logging
from typing import Final

log = logging.getLogger(__name__)

MAPPED_BYTES: Final = 128 << 10
"""From this size on a buffer is a mapping of its own: one block of the cache, the least that is fetched of a large object."""
SPARE_BYTES: Final = 1 << 20
"""What the main heap may keep unused at its end."""
ARENAS: Final = 2
"""One for the main thread, one for all others."""
LOOKED_AT: Final = 50_000
"""So many objects more, and Python looks for garbage among them; some MiB, and some milliseconds."""
_PARAMETERS: Final = {-3: MAPPED_BYTES, -1: SPARE_BYTES, -8: ARENAS}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX (malloc.h)."""

_libc: Final = ctypes.CDLL(None)


def keep_little() -> None:
    """Have the C library give back what is freed, in this process from now on; nothing where it is not glibc."""
    if not hasattr(_libc, "mallopt"):
        return
    for parameter, value in _PARAMETERS.items():
        if not _libc.mallopt(parameter, value):
            log.info("the C library does not know the parameter %d", parameter)


def look_rarely() -> None:
    """Have Python look for garbage that refers to itself less often, in this process from now on."""
    gc.set_threshold(LOOKED_AT, *gc.get_threshold()[1:])


def give_back() -> None:
    """Have the C library give back now what is free anywhere in its heaps; nothing where it is not glibc."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
