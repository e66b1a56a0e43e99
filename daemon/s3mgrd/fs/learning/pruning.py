"""Pruning: mount.db stays below `metadata_size_bytes`; what was not used for longest is forgotten first.

A directory is pruned by calling it unlisted and dropping its entries: the next look at it asks S3, as the first did. What
says more than S3 would tell stays: names that S3 does not have yet or has elsewhere, directories with anything known below,
whatever the journal speaks of, and inodes that the kernel holds, since their numbers must go on meaning the same. The kernel
is asked to let go of what nobody uses (Linux 6.18 can be; before, it does so when it needs the memory), and a later pass
finds that it did.

Concurrency: one task. Everything happens in steps of a few milliseconds with a checkpoint after each; within a step
nothing else runs, so what the kernel does not hold then cannot come to be held before its row is gone: a name that was
looked up or listed a moment ago is left alone, because the kernel may not have read the reply yet.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from s3mgrd.cache.nodes import STALE_NS, Inode, Node
from s3mgrd.fs.volume import NS, Volume

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the size is looked at: a number in the file's header."""
REST_S: Final = 2.0
LAST_REST_S: Final = 600.0
"""After a pass that found nothing to forget: what is left is in use, and looking through it costs seconds."""
TARGET: Final = 0.9
"""Of the limit: prune down to it, so as not to prune all the time."""
QUIET_NS: Final = 2 * NS
"""What was used so recently is left alone."""
STEP_ROWS: Final = 128
"""Rows of a step, at some 10 µs each for asking the kernel and as much for dropping them."""
STEP_DIRECTORIES: Final = 64
VACUUM_PAGES: Final = 64
MAX_USED: Final = 65_536


async def _ask_nobody(_: Sequence[Inode]) -> None:
    """Stand for a kernel that there is not."""


class Pruner:
    """Keeps one mount.db below its limit.

    Args:
        is_listing: whether a directory is being listed now.
        kernel_holds: whether the kernel knows an inode number.

    Attributes:
        let_go: asks the kernel to forget inodes that nobody uses.
        dropped: how many entries were forgotten since the worker started.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        is_listing: Callable[[Inode], bool],
        kernel_holds: Callable[[Inode], bool],
    ) -> None:
        self._volume = volume
        self._is_listing = is_listing
        self._kernel_holds = kernel_holds
        self.let_go: Callable[[Sequence[Inode]], Awaitable[None]] = _ask_nobody
        self.dropped = 0
        self._used: dict[Inode, int] = {}
        """Directories by when a program last looked at them, in that order."""
        self._since_ns = volume.now_ns()
        self._asked = 0
        """Inodes that the kernel was asked to let go of."""

    def note_use(self, directory: Inode) -> None:
        """Note that a program looks at a directory's entries now."""
        self._used.pop(directory, None)
        self._used[directory] = self._volume.now_ns()
        if len(self._used) > MAX_USED:
            del self._used[next(iter(self._used))]

    async def run(self) -> None:
        """Look at the size again and again, until cancelled."""
        rest_s = REST_S
        while True:
            await trio.sleep(LOOK_S)
            before = self.dropped, self._asked
            if await self.prune():
                rest_s = REST_S
            elif (self.dropped, self._asked) == before:
                await trio.sleep(rest_s)
                rest_s = min(2 * rest_s, LAST_REST_S)

    async def prune(self) -> bool:
        """Get below the limit if the file is above it; whether it is below then."""
        if self._excess(1.0) <= 0:
            await self._shrink()
            return True
        before = self.dropped
        for recently in (False, True):  # first what no program looked at since the worker started
            await self._pass(used=recently)
            if self._excess(TARGET) <= 0:
                break
        await self._shrink()
        if self.dropped > before:
            log.info("forgot %d entries that nobody uses", self.dropped - before)
        return self._excess(1.0) <= 0

    def _excess(self, share: float) -> float:
        limit = self._volume.settings.metadata_size_bytes * share
        return self._volume.database.used_bytes() - limit

    async def _pass(self, *, used: bool) -> None:
        """Prune directories, those whose listing is oldest first, until enough is gone."""
        last = (-1, 0)
        while directories := self._volume.nodes.directories_by_listing(last, STEP_DIRECTORIES):
            last = (directories[-1].listed_ns, directories[-1].id)
            for directory in directories:
                if self._excess(TARGET) <= 0:
                    return
                if used == (directory.id in self._used):
                    await self._prune_directory(directory.id)
            await trio.lowlevel.checkpoint()

    async def _prune_directory(self, inode: Inode) -> None:
        after = 0
        held: list[Inode] = []
        while clean := self._clean(inode, after):
            after = clean[-1]
            free: list[Inode] = []
            for child in clean:
                (held if self._kernel_holds(child) else free).append(child)
            if free:
                self._drop(inode, free)
            await trio.lowlevel.checkpoint()
        for first in range(0, len(held), STEP_ROWS):
            await self.let_go(held[first : first + STEP_ROWS])
        self._asked += len(held)

    def _clean(self, inode: Inode, after: int) -> list[Inode]:
        """Return the next entries of a directory that S3 could tell again; none where it must stay as it is."""
        volume = self._volume
        node = volume.nodes.get(inode)
        quiet_since = max(self._used.get(inode, 0), self._since_ns) + QUIET_NS
        if (
            node is None
            or node.is_detached
            or volume.moving
            or self._is_listing(inode)
            or volume.now_ns() < quiet_since
            or self._is_in_journal(node)
        ):
            return []
        return volume.nodes.clean_children(inode, after=after, limit=STEP_ROWS)

    def _is_in_journal(self, node: Node) -> bool:
        """Whether a request may be changing something below, or S3 shows there what it shall not: names tell whose it is."""
        prefix = self._volume.prefix_in_s3(node)
        return bool(self._volume.leaving_below(prefix) or self._volume.journal.writes_below(prefix))

    def _drop(self, directory: Inode, inodes: Sequence[Inode]) -> None:
        nodes = self._volume.nodes
        with self._volume.database.transaction():
            nodes.drop_many(directory, inodes)
            is_empty = not nodes.count_children(directory, limit=1)
            nodes.update(directory, listed_ns=0 if is_empty else STALE_NS)
            nodes.replace_hidden(directory, ())
        self.dropped += len(inodes)

    async def _shrink(self) -> None:
        """Give what is free in the file back to its file system."""
        while self._volume.database.shrink(VACUUM_PAGES):
            await trio.lowlevel.checkpoint()
