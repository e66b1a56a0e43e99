"""How a handle reads, and what it will probably want next.

Three orders are recognised: forwards, backwards, and in equal strides. The kernel sends the parts of what a program
reads in parallel and so in any order; what comes within `NEARBY` of where a handle is counts as forwards. Anything
else is random, and nothing is read ahead of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from s3mgrd.fs.volume import Settings

MIB: Final = 1 << 20
FIRST_WINDOW: Final = 1 * MIB
FIRST_FACTOR: Final = 16
"""How many times what a program asks for first is read ahead of it: who reads in large pieces wants them all."""
GROWTH: Final = 4
"""How many times as much is read ahead for each further read in order: until enough is in flight, the network idles."""
MAX_WINDOW: Final = 64 * MIB
MIN_STEP: Final = 1 * MIB
"""What a request asks for as long as a window grows: what is waited for comes first, and all connections are soon at work."""
MAX_STEP: Final = 4 * MIB
LEAST: Final = 4
"""Requests that a full window is cut into."""
NEARBY: Final = 8 * MIB
SURE: Final = 2
"""So many equal strides in a row, and the next ones are believed."""
MAX_STRIDES: Final = 32


def step_bytes(settings: Settings) -> int:
    """Return how much a request is to ask for when all windows are full.

    Windows take two thirds of the memory (`s3mgrd.fs.reading.reader`). For each of the transfers that may be under way there are
    one and a third such requests, so that each connection has its next one when it is done; larger ones waste less of its time
    on waiting for the answer to begin.
    """
    wanted = settings.memory_limit_bytes // (2 * settings.concurrency)
    return max(MIN_STEP, min(wanted // MIB * MIB, MAX_STEP))


@dataclass(eq=False, slots=True)
class Stream:
    """How one handle reads one version."""

    position: int = 0
    window: int = 0
    is_full: bool = False
    """Whether the window has grown as far as it may."""
    is_new: bool = True
    reached: int = 0
    """Forwards, what lies between `position` and here was asked for, and not by another handle; kept by who asks."""
    start: int = 0
    length: int = 0
    stride: int = 0
    strides: int = 0
    """How many times in a row the handle has moved by `stride`."""

    @property
    def is_forward(self) -> bool:
        """Whether what is wanted next follows what was read."""
        return self.strides < SURE

    def follow(self, offset: int, stop: int, *, limit: int) -> bool:
        """Note a read of [offset, stop) and adapt the window, to *limit* bytes at most; whether the read is in some order."""
        step = offset - self.start
        self._note_stride(step, offset, stop)
        is_forward = abs(offset - self.position) <= NEARBY and (not self.is_new or offset == 0)
        self.is_new = False
        if not is_forward:
            self.position = stop
            self.window, self.is_full, self.reached = 0, False, 0
        elif stop > self.position:
            self.position = stop
            self._grow(stop - offset, limit)
        if self.strides >= SURE:
            most = min(MAX_WINDOW, limit)
            self.window = min((stop - offset) << min(self.strides, 20), most)
            self.is_full = self.window == most
            return True
        return is_forward

    def _note_stride(self, step: int, offset: int, stop: int) -> None:
        is_equal = step == self.stride and not self.is_new
        self.strides = self.strides + 1 if is_equal and (step < 0 or step > NEARBY) else 0
        self.start, self.length, self.stride = offset, stop - offset, step

    def _grow(self, length: int, limit: int) -> None:
        most = min(MAX_WINDOW, max(limit, FIRST_WINDOW))
        wanted = GROWTH * self.window or FIRST_FACTOR * length
        self.window = min(max(wanted, FIRST_WINDOW), most)
        self.is_full = self.window == most

    def ahead(self, stop: int, size: int, *, step: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges to read ahead of a read that ended at *stop*, nearest first, within [0, size), but for what was `reached`.

        *step*: bytes of each, once the window is full.
        """
        step = max(MIN_STEP, min(step, self.window // LEAST)) if self.is_full else MIN_STEP
        if self.is_forward:
            yield from self._forwards(stop, size, step)
        elif self.stride < 0 and -self.stride <= self.length:
            yield from self._backwards(step)
        else:
            yield from self._strides(size)

    def _forwards(self, stop: int, size: int, step: int) -> Iterator[tuple[int, int]]:
        end = min(stop + self.window, size)
        stop = max(stop, self.reached)
        while stop < end:
            # Up to the next multiple: handles that read the same version want the same ranges.
            following = min((stop // step + 1) * step, size)
            yield stop, following
            stop = following

    def _backwards(self, step: int) -> Iterator[tuple[int, int]]:
        stop, end = self.start, max(0, self.start - self.window)
        while stop > end:
            start = max(end, stop - step)
            yield start, stop
            stop = start

    def _strides(self, size: int) -> Iterator[tuple[int, int]]:
        count = min(max(1, self.window // max(1, self.length)), MAX_STRIDES)
        for number in range(1, count + 1):
            start = self.start + number * self.stride
            if not 0 <= start < size:
                return
            yield start, min(start + self.length, size)
