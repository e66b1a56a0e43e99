"""Which directories' entries the kernel has in a cache of its own, and whether that is still what mount.db says.

The kernel keeps the entries of a directory when the reply to opendir allows it, fills that cache while programs read, and
drops it at the next opendir whose reply does not say that it is still good. It does not ask in between. So each opendir
is told one of three things:

- *keep*: what the kernel has is what a reply would say now. Only while the listing that it was filled from is fresh and no
  name in the directory has changed since. After another listing the entries are read again even if they are the same,
  because that is how the kernel learns for how much longer it may believe them.
- *cache*: drop what there is, and keep what is read now.
- neither: drop what there is, and keep nothing. While a program that began to read before a change has the directory
  open, its reading would mix old entries into a new cache.

What the kernel keeps (about 40 bytes and the name an entry) is page cache, which it drops when it needs the memory.

Nothing here outlives the worker, and what is not known is not kept.
"""

from collections.abc import Callable
from typing import Final

from s3mgrd.cache.nodes import Inode, Node, NodeTable
from s3mgrd.fs.kernel.handles import read_handle
from s3mgrd.fs.kernel.replies import CACHE_DIR, KEEP_CACHE

MAX_DIRECTORIES: Final = 65_536
"""So many are remembered, at about 100 bytes each."""
_MIXED: Final = -1
_UNDER_WAY: Final = -2


class EntryCaches:
    """What the kernel may have of each directory. `is_fresh` says whether a directory's listing may still be believed."""

    def __init__(self, nodes: NodeTable, is_fresh: Callable[[Node], bool]) -> None:
        self._is_fresh = is_fresh
        self._filled_from: dict[Inode, int] = {}
        """The listing (its listed_ns) that the kernel's cache is filled from; absent: it has nothing.

        `_UNDER_WAY`: the first listing of the directory, which only adds names, after all that were read. `_MIXED`: names
        changed since somebody began to read."""
        self._readers: dict[Inode, set[int]] = {}
        """Handles that may add to the kernel's cache."""
        nodes.names_changed = self._changed

    def opened(self, directory: Node, handle: int) -> int:
        """Note that a directory was opened; returns the flags to tell the kernel (`s3mgrd.fs.kernel.replies`)."""
        inode = directory.id
        readers = self._readers.get(inode)
        filled_from = self._filled_from.get(inode, 0)
        if filled_from > 0 and filled_from == directory.listed_ns and self._is_fresh(directory):
            self._readers.setdefault(inode, set()).add(handle)
            return CACHE_DIR | KEEP_CACHE
        # The kernel drops what it has.
        if not readers:
            self._filled_from.pop(inode, None)
        elif filled_from == _MIXED:
            return 0
        self._readers.setdefault(inode, set()).add(handle)
        return CACHE_DIR

    def reading(self, directory: Node, handle: int, position: int) -> None:
        """Note that entries from *position* on, as they are now, are given to a handle. No checkpoint until they are."""
        inode = directory.id
        if handle not in self._readers.get(inode, ()):
            return
        before = self._filled_from.get(inode)
        if before == _MIXED or (before is None and position != 0):
            self._fill(inode, _MIXED)
        elif self._is_fresh(directory):
            if position == 0 or before == _UNDER_WAY:
                self._fill(inode, directory.listed_ns)
        elif before is None:
            self._fill(inode, _MIXED if directory.listed_ns else _UNDER_WAY)

    def _fill(self, inode: Inode, source: int) -> None:
        if len(self._filled_from) >= MAX_DIRECTORIES and inode not in self._filled_from:
            oldest = next((i for i in self._filled_from if i not in self._readers), None)
            if oldest is not None:
                del self._filled_from[oldest]
        self._filled_from[inode] = source

    def released(self, handle: int) -> None:
        """Note that a handle is gone; nothing for one of the last worker's."""
        inode = read_handle(handle).inode
        readers = self._readers.get(inode)
        if readers is None:
            return
        readers.discard(handle)
        if not readers:
            del self._readers[inode]
            if self._filled_from.get(inode, 0) < 0:
                del self._filled_from[inode]

    def _changed(self, directory: int, only_new: bool) -> None:
        inode = Inode(directory)
        before = self._filled_from.get(inode)
        if before is not None and not (before == _UNDER_WAY and only_new):
            if inode in self._readers:
                self._filled_from[inode] = _MIXED
            else:
                del self._filled_from[inode]
