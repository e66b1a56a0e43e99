"""Receives requests for all of pyfuse3's tasks, into one buffer, whose pages are there before the first one.

Each task has a buffer of its own, of more than the largest write, which libfuse allocates and the kernel fills. That has
two faults. A worker that is killed while the kernel fills pages that are not there yet makes the kernel answer the request
with EIO, instead of keeping it for the next worker: a program's write would be lost although it was acknowledged, since
with the kernel's writeback cache many large writes come at once, each into another new buffer. And a task that waits
for S3 keeps its buffer for as long.

Nothing needs the buffer once libfuse has handed the request over: pyfuse3 copies data and names before it starts the
coroutine, and what is answered without one (`s3mgrd.worker.express`) is written to the disk right from where it was received.
So `install` puts functions of ours into the slots through which pyfuse3 receives and hands over, which lend the one buffer
to each request in between. And a request may be in it before libfuse is asked to receive: `Receiver.take` reads it, and
has it answered without libfuse if that is possible. Where a slot is not as expected (`s3mgrd.worker.slots`), nothing is
touched: all requests go to pyfuse3, and directories are read anew each time.

Concurrency: pyfuse3 waits (`s3mgrd.worker.waiting`), receives and hands over without a checkpoint in between, in one thread.
"""

import ctypes
import errno
import logging
import mmap
import os
from collections.abc import Callable
from typing import Final

import pyfuse3

from s3mgrd.fuse import abi, tuning
from s3mgrd.worker.ring import Ring
from s3mgrd.worker.slots import Unexpected, find_slot, write_slot

log = logging.getLogger(__name__)

BUFFER_BYTES: Final = tuning.MAX_WRITE_BYTES + abi.HEADER_ROOM
"""No request is larger: the kernel was told how much it may write at a time."""
RECEIVE: Final = b"fuse_session_receive_buf"
HAND_OVER: Final = b"fuse_session_process_buf"

# struct fuse_buf: size_t size; enum flags; void *mem; …
SIZE_OFFSET: Final = 0
MEMORY_OFFSET: Final = 16

# PYFUNCTYPE: both directions keep the interpreter's lock, as pyfuse3's own calls do.
_Receive = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_HandOver = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)

_kept: "list[Receiver]" = []
"""What replaced pointers point to; it must never be collected."""


def install() -> "Receiver | None":
    """Have the session that pyfuse3 will start, the only one of this process, use one buffer; None: it cannot be done."""
    if not _kept:
        try:
            _kept.append(Receiver())
        except (Unexpected, OSError, AttributeError) as exc:
            log.warning(
                "libfuse cannot be told where to receive requests: metadata is slower, and the kernel keeps no directories' "
                "entries: %s",
                exc,
            )
            return None
    return _kept[0]


def warm(size: int) -> mmap.mmap:
    """Return memory whose pages are there, and stay there if the system allows it."""
    memory = mmap.mmap(-1, size)
    memory.write(bytes(size))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return memory


class Receiver:
    """The buffer, and the two functions that lend it to each request."""

    def __init__(self) -> None:
        module = ctypes.PyDLL(pyfuse3.__file__)
        slots = [find_slot(module, symbol) for symbol in (RECEIVE, HAND_OVER)]
        addresses = [_address(module, symbol) for symbol in (RECEIVE, HAND_OVER)]
        if [ctypes.c_uint64.from_address(slot).value for slot in slots] != addresses:
            raise Unexpected("the slots of receiving hold something else")
        receive, hand_over = _Receive(addresses[0]), _HandOver(addresses[1])
        buffer = warm(BUFFER_BYTES)
        self._view: Final = memoryview(buffer)
        self._views: Final = [self._view]
        self._address: Final = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._received = 0
        """So many bytes are in the buffer, and nobody has had them yet."""
        self._expecting: Ring | None = None
        pointer = ctypes.c_uint64.from_address

        def ours_receive(session: int, buf: int) -> int:
            place = pointer(buf + MEMORY_OFFSET)
            place.value = self._address
            received, self._received = self._received, 0
            if received:
                pointer(buf + SIZE_OFFSET).value = received
                return received
            result: int = receive(session, buf)
            if result <= 0:
                place.value = 0  # the task frees what is there when it ends
            return result

        def ours_hand_over(session: int, buf: int) -> None:
            hand_over(session, buf)
            pointer(buf + MEMORY_OFFSET).value = 0

        self._functions = _Receive(ours_receive), _HandOver(ours_hand_over)
        for slot, function in zip(slots, self._functions, strict=True):
            write_slot(slot, ctypes.cast(function, ctypes.c_void_p).value or 0)

    def expect(self, ring: Ring) -> None:
        """Tell *ring* from now on what `take` reads of what comes again, until there is nothing to read.

        The kernel was asked to send it just now, so it is all there, except what ends meanwhile.
        """
        self._expecting = ring

    def take(self, fd: int, answers: Callable[[memoryview], bool]) -> bool | None:
        """Read the next request, and have *answers* answer it.

        Returns whether that is done; False: libfuse has to be asked to receive it; None: there is none.
        """
        try:
            size = os.readv(fd, self._views)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                if self._expecting is not None:
                    self._expecting.all_arrived()
                    self._expecting = None
                return None
            if error.errno == errno.ENOENT:  # whoever asked was killed meanwhile
                return True
            # Whatever else is wrong, libfuse meets it, too. What it then reads is not seen here, and may come again.
            self._expecting = None
            return False
        request = self._view[:size]
        if self._expecting is not None:
            repeat = abi.parse_resent(request)
            if repeat is not None:
                self._expecting.arrived(repeat)
        if answers(request):
            return True
        self._received = size
        return False


def _address(module: ctypes.PyDLL, symbol: bytes) -> int:
    return ctypes.cast(getattr(module, symbol.decode()), ctypes.c_void_p).value or 0
