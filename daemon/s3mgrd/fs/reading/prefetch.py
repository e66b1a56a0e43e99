"""Small files fetched ahead: when a directory's files are opened one after another, the next ones are on their way.

``cp -r``, ``tar``, ``grep -r`` open files in the order of readdir, which is that of inode numbers; data loaders mostly
in the order of names. Whichever the last opens followed is continued. Guesses are bounded in files and bytes; where
too many of them are not wanted, a directory is left alone.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from s3mgrd.cache.nodes import Inode, Kind, Node
from s3mgrd.fs.reading.reader import Reader
from s3mgrd.fs.volume import Volume

SMALL_BYTES: Final = 1 << 20
"""Larger files are worth more than their round trip: reading ahead within them is enough."""
SURE: Final = 2
"""So many opens in a row that followed the order, and the next ones are believed."""
SKIPPED: Final = 4
"""Entries that may be passed over (subdirectories, files of another kind) without breaking the order."""
FIRST_WINDOW: Final = 8
MAX_WINDOW: Final = 64
BEHIND: Final = 16
"""A guess that lies so many files behind the last hit will not be wanted any more: several readers share a directory."""
MAX_DIRECTORIES: Final = 64
MEMORY_SHARE: Final = 4
"""One part in so many of memory_limit_bytes may hold guesses of one directory."""


@dataclass(eq=False, slots=True)
class _Directory:
    """What is known of how one directory is being read."""

    last: Node
    by_name: bool = False
    followed: int = 0
    window: int = 0
    cursor: Node | None = None
    """The furthest entry that was guessed."""
    guesses: OrderedDict[Inode, int] = field(default_factory=OrderedDict)
    """Files that were fetched and not opened yet, in order, and their sizes."""
    right: int = 0
    wrong: int = 0


class Prefetcher:
    """Guesses the next files of one volume. `is_local` says of an inode that its bytes are staged here."""

    def __init__(self, volume: Volume, reader: Reader, is_local: Callable[[Inode], bool]) -> None:
        self._volume = volume
        self._reader = reader
        self._is_local = is_local
        self._directories: OrderedDict[Inode, _Directory] = OrderedDict()

    def opened(self, node: Node) -> None:
        """Note that a file is opened for reading."""
        if not self._is_small(node):
            return
        directory = self._directories.get(node.parent)
        if directory is None:
            self._directories[node.parent] = _Directory(node)
            if len(self._directories) > MAX_DIRECTORIES:
                self._directories.popitem(last=False)
            return
        self._directories.move_to_end(node.parent)
        self._judge(directory, node)
        directory.last = node
        if directory.followed >= SURE and directory.wrong <= BEHIND + directory.right:
            self._fetch_ahead(directory, node)

    def _judge(self, directory: _Directory, node: Node) -> None:
        """Compare an open with what was guessed."""
        if node.id in directory.guesses:
            directory.right += 1
            self._drop_behind(directory, node.id)
            directory.window = min(2 * directory.window, MAX_WINDOW)
        elif node.id == directory.last.id:
            return
        elif self._follows(directory, node):
            directory.followed += 1
            directory.window = max(directory.window, FIRST_WINDOW)
        elif not directory.guesses:
            directory.followed = directory.window = 0
            directory.cursor = None

    def _drop_behind(self, directory: _Directory, hit: Inode) -> None:
        passed = []
        for inode in directory.guesses:
            if inode == hit:
                break
            passed.append(inode)
        del directory.guesses[hit]
        for inode in passed[:-BEHIND]:
            del directory.guesses[inode]
            directory.wrong += 1

    def _follows(self, directory: _Directory, node: Node) -> bool:
        """Whether a file comes soon after the last one, in one of the two orders."""
        for by_name in (directory.by_name, not directory.by_name):
            if any(n.id == node.id for n in self._next(directory.last, SKIPPED, by_name=by_name)):
                if directory.by_name != by_name:
                    directory.by_name, directory.cursor = by_name, None
                return True
        return False

    def _next(self, node: Node, limit: int, *, by_name: bool) -> list[Node]:
        if by_name:
            return self._volume.nodes.following(node.parent, node.name or "", limit=limit)
        return self._volume.nodes.children(node.parent, after=node.id, limit=limit)

    def _fetch_ahead(self, directory: _Directory, node: Node) -> None:
        cursor = directory.cursor
        if cursor is None or self._is_before(cursor, node, by_name=directory.by_name):
            cursor = node
        room = self._volume.settings.memory_limit_bytes // MEMORY_SHARE
        room -= sum(directory.guesses.values())
        wanted = directory.window - len(directory.guesses)
        if wanted <= directory.window // 4:
            return  # a few at a time: one query serves several opens
        for candidate in self._next(cursor, wanted, by_name=directory.by_name):
            directory.cursor = candidate
            if not self._is_small(candidate):
                continue
            if candidate.size > room or not self._reader.prefetch(candidate):
                return
            room -= candidate.size
            directory.guesses[candidate.id] = candidate.size

    def _is_before(self, a: Node, b: Node, *, by_name: bool) -> bool:
        return (a.name or "") < (b.name or "") if by_name else a.id < b.id

    def _is_small(self, node: Node) -> bool:
        return (
            node.kind == Kind.FILE
            and node.etag is not None
            and node.storage_class is None
            and not node.is_detached
            and 0 < node.size <= SMALL_BYTES
            and not self._is_local(node.id)
        )
