"""What had better wait a little for more of its kind, while more keeps coming.

Programs like rsync write each file under another name and rename it, and give a directory its times when its last file is there. Each
rename leaves an object that is in nobody's way; a directory in which files are is there for everybody, with its marker or
without. So both wait until nothing has come for `QUIET_S`, but never longer than `LONGEST_S`: then one request serves for many.
Nobody's removal waits for that: who removes a file looks whether it is gone.
"""

from collections.abc import Collection
from typing import Final

import trio

from s3mgrd.cache.nodes import Node
from s3mgrd.fs.volume import NS

QUIET_S: Final = 0.5
LONGEST_S: Final = 4.0
MANY: Final = 250
"""So many objects left behind wait for no more; what waits is looked at again with every change."""


class Leftovers:
    """The objects that renames of files left behind. Known in memory only: the next worker deletes what it finds at once."""

    def __init__(self) -> None:
        self._left_at: dict[str, float] = {}

    def add(self, key: str) -> None:
        """Note that the object at *key* was just copied to where its file is now."""
        now = trio.current_time()
        if len(self._left_at) > 2 * MANY:  # written anew before they were deleted
            self._left_at = {k: at for k, at in self._left_at.items() if at + LONGEST_S > now}
        self._left_at[key] = now

    def drop(self, keys: Collection[str]) -> None:
        """Note that *keys* are deleted."""
        for key in keys:
            self._left_at.pop(key, None)

    def due_at(self, keys: Collection[str]) -> float:
        """Return when *keys*, all there is to delete, are to be deleted, by trio's clock; at once where not all were left behind."""
        left = [self._left_at[key] for key in keys if key in self._left_at]
        if not left or len(left) < len(keys) or len(left) >= MANY:
            return float("-inf")
        return min(max(left) + QUIET_S, min(left) + LONGEST_S)


def marker_due_at(node: Node, *, seen_at: float, seen_ns: int, now_ns: int) -> float:
    """Return when a directory's marker is to be written, by trio's clock; at once where nothing came or went in it lately.

    *seen_at* and *seen_ns* say when there was first something to write; *now_ns* is the time of the volume.
    """
    if not seen_ns < node.mtime_ns <= now_ns:
        return float("-inf")
    lull_at = trio.current_time() + QUIET_S - (now_ns - node.mtime_ns) / NS
    return min(lull_at, seen_at + LONGEST_S)
