"""How pyfuse3's tasks wait for the next request: at first by looking again and again, for some microseconds.

A program that walks a tree or stats files asks for the next thing a few microseconds after it got the last. To park a
task, sleep in epoll, be woken by the kernel and be scheduled again costs more than all the work on such a request. So as long as
requests came that fast, a task that is done looks for the next one for `PATIENCE_S` before it waits in earnest. The first that
takes longer ends that; a request that turns out to have come fast begins it.

pyfuse3 asks its own function ``_wait_fuse_readable`` and trusts the answer: what says True is followed by a read that blocks.
`watch` puts another in its place, which says so only when a look has just shown it, and `s3mgrd.worker.receiving` could not
have it answered right here. To look is to read: one system call less for each request.

Concurrency: a look is no checkpoint, so `STRETCH_S` bounds for how long everything else in the loop waits.
"""

import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pyfuse3
import trio

PATIENCE_S: Final = 250e-6
WAKING_S: Final = 150e-6
"""What it may take to be woken: who waited in earnest sees a quick request later than it came."""
STRETCH_S: Final = 1e-3
"""Of requests that follow each other without a checkpoint."""


Take = Callable[[], bool | None]
"""Looks for a request; returns whether it is done with, and nobody needs to receive it. None: there is none."""


def _settle_nothing() -> None:
    """Do nothing before others get their turn."""


def watch(
    fd: int, take: Take | None = None, settle: Callable[[], object] = _settle_nothing
) -> bool:
    """Have pyfuse3's tasks wait for *fd*, its connection, as the module says; returns whether they will."""
    module: Any = pyfuse3  # Any: the function is not part of its interface
    original = getattr(module, "_wait_fuse_readable", None)
    if original is None:
        return False
    if isinstance(original, Watch):  # of a session before
        original = original.wait
    module._wait_fuse_readable = Watch(fd, original, take, settle)
    return True


class Watch:
    """Waits for one connection.

    Args:
        fd: the connection.
        wait: pyfuse3's own way; False means that the session is over.
        take: gets each request before it is announced; by default none is.
        settle: called before anybody else gets a turn, or the request.
    """

    def __init__(
        self,
        fd: int,
        wait: Callable[[], Awaitable[bool]],
        take: Take | None = None,
        settle: Callable[[], object] = _settle_nothing,
    ) -> None:
        self.wait: Final = wait
        self._settle: Final = settle
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._take: Final = take or (lambda: False if poll.poll(0) else None)
        self._is_patient = False
        self._stretch_ends = 0.0

    async def __call__(self) -> bool:
        """Return True when there is a request, which nobody else has read; False when the session is over."""
        take, clock = self._take, time.perf_counter
        while True:
            begun = now = clock()
            if now > self._stretch_ends:
                self._settle()
                await trio.lowlevel.checkpoint()
                begun = now = clock()
                self._stretch_ends = now + STRETCH_S
            while (is_done := take()) is None:
                now = clock()
                if self._is_patient and now - begun < PATIENCE_S:
                    os.sched_yield()
                    continue
                self._is_patient = False
                self._settle()
                if not await self.wait():
                    return False
                now = clock()
                self._is_patient = now - begun < PATIENCE_S + WAKING_S
                self._stretch_ends = now + STRETCH_S
            if not is_done:
                self._settle()
                return True
