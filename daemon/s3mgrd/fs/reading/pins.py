"""Pins: paths whose files the block cache holds whatever else is read, and of which it fetches each new version.

A pin is a path, not a version: what is at it or below at any time is meant, also what comes later. It is the user's word, so it is
kept in mount.db. A *pass* makes the cache follow: it lists what the pins mean (asking S3 where that is out of date), marks
these versions in the cache, fetches what is missing, and then lets go of what is marked by earlier passes only. So the version
before stays until the new one is there, unless there is no room for both.

Concurrency: `run` makes one pass after another; `pin` marks and fetches on its own, with a later mark.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import Conflict, S3mgrError, UserError
from s3mgrd.fs.reading.warming import Plan, Warmer, Warming
from s3mgrd.fs.volume import Volume

log = logging.getLogger(__name__)

PINS: Final = "pins"
"""In mount.db's meta: a JSON list of paths."""
MAX_PINS: Final = 1000
PASS_EVERY_S: Final = 60.0
PASS_SHARE: Final = 20
"""Passes take one part in so many of the time at most."""


class Pins:
    """The pins of one volume. `problem`: what the last pass could not do; empty: nothing."""

    def __init__(self, volume: Volume, warmer: Warmer) -> None:
        self._volume = volume
        self._warmer = warmer
        self._paths: list[str] = json.loads(volume.database.get_meta(PINS) or "[]")
        self._mark = volume.blocks.last_mark() if volume.blocks is not None else 0
        self._wanted = trio.Event()
        self.problem = ""

    @property
    def paths(self) -> Sequence[str]:
        """What is pinned, in the order of names."""
        return self._paths

    # What the user says

    async def pin(self, paths: Sequence[str], warming: Warming) -> None:
        """Pin paths and fetch what is there; from now on whatever comes there is fetched, too.

        Raises:
            NotFound: there is no such path.
            Conflict: it does not fit; nothing is pinned then.
            UserError: too many pins.
            S3mgrError: S3 did not deliver. Once it does, the rest follows.
        """
        plan = await self._warmer.plan(paths)
        self._warmer.require_room(plan)
        self._store({*self._paths, *paths})
        self._mark_all(plan)
        await self._warmer.fetch(plan, warming)

    async def unpin(self, path: str) -> list[str]:
        """Take back the pins at *path* and below; returns these.

        Raises:
            Conflict: there are none, or *path* is pinned with a directory above it.
        """
        gone = [pin for pin in self._paths if is_below(pin, path)]
        if not gone:
            above = next((pin for pin in self._paths if is_below(path, pin)), None)
            if above is None:
                raise Conflict(
                    f"{path!r} is not pinned", hint="s3mgr cache pins NAME lists what is"
                )
            raise Conflict(
                f"{path!r} is pinned with {above or 'the whole mount'!r}",
                hint="unpin that, and pin what is to stay",
            )
        self._store(set(self._paths) - set(gone))
        blocks = self._volume.blocks
        if blocks is None:
            return gone
        if not self._paths:
            blocks.unpin_older(self._mark + 1)
            return gone
        kept = {
            file.id
            for pin in self._paths
            if is_below(pin, path) or is_below(path, pin)
            async for file in self._known(pin)
        }
        for pin in gone:
            async for file in self._known(pin):
                if file.etag is not None and file.id not in kept:
                    blocks.pin(file.id, file.etag, 0)
        return gone

    def _known(self, path: str) -> AsyncIterator[Node]:
        return self._warmer.known_files(path, ignore_missing=True)

    def _store(self, paths: set[str]) -> None:
        if len(paths) > MAX_PINS:
            raise UserError(
                f"{len(paths)} pins are too many", hint=f"there may be {MAX_PINS}: pin directories"
            )
        self._paths = sorted(paths)
        self._volume.database.set_meta(PINS, json.dumps(self._paths))

    # What follows from it

    async def run(self) -> None:
        """Make the cache follow again and again, until cancelled."""
        if not self._paths and self._volume.blocks is not None:
            self._volume.blocks.unpin_older(self._mark + 1)  # of a bucket that was mounted before
        while True:
            begun = time.monotonic()
            self._wanted = trio.Event()  # who hurries during a pass wants another
            if self._paths and self._volume.blocks is not None and self._volume.blocks.limit_bytes:
                try:
                    await self.follow()
                except S3mgrError as error:
                    self._note(error.detail)
                except OSError as error:
                    self._note(str(error))
                else:
                    self.problem = ""
            with trio.move_on_after(max(PASS_EVERY_S, PASS_SHARE * (time.monotonic() - begun))):
                await self._wanted.wait()

    def hurry(self) -> None:
        """Make the next pass at once: somebody knows of new versions."""
        self._wanted.set()

    async def follow(self) -> None:
        """Make one pass. Raises what keeps it from its end."""
        plan = await self._warmer.plan(self._paths, ignore_missing=True)
        mark = self._mark_all(plan)
        blocks = self._warmer.cache()
        try:
            self._warmer.require_room(plan)
        except Conflict:
            blocks.unpin_older(mark)  # versions before and after do not fit together
        await self._warmer.fetch(plan, Warming())
        blocks.unpin_older(mark)

    def _mark_all(self, plan: Plan) -> int:
        blocks = self._warmer.cache()
        self._mark += 1
        for inode in plan.inodes:
            node = self._volume.nodes.get(Inode(inode))
            if node is not None and node.etag is not None:
                blocks.pin(node.id, node.etag, self._mark)
        return self._mark

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("what is pinned is not all in the cache: %s", problem)
        self.problem = problem


def is_below(path: str, top: str) -> bool:
    """Whether a path is *top* or below it; the empty one is the whole mount."""
    return not top or path == top or path.startswith(top + "/")
