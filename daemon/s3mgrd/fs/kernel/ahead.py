"""Pieces of listings that are made before somebody asks for them.

While the kernel and a program are busy with the entries that they just got, the worker would wait. It makes what they are about to
ask for: the next piece of the same directory, or the first one of the directory that a walk opens next
(`s3mgrd.fs.kernel.order`). What is given so is what would be given now: no row of mount.db changed since, and no time to speak of
went by. What is written to a staged file changes no row, so pieces that would show any are not made; staging a file does change one.

A guess that does not come true costs as much as the listing. So as long as the last one did not, the next one is only
noted, to see whether it would have.
"""

from typing import Final, NamedTuple

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.kernel import replies
from s3mgrd.fs.kernel.order import Order
from s3mgrd.fs.kernel.showing import Piece, Shower

ENTRY_BYTES: Final = replies.DIRENT_PLUS.size + replies.ALIGNMENT
"""The least that an entry takes in a reply."""
ROOM_BYTES: Final = 32 << 10
"""What the C library reads of a directory at a time, and so the kernel asks for."""
MAX_ROOM_BYTES: Final = 64 << 10
"""About 400 entries: one or two milliseconds, for which everything else waits."""
MAX_MADE: Final = 4
"""So many programs may walk at a time."""
GOOD_NS: Final = 5_000_000
"""A piece says for how long the kernel may believe it: it is given as long as this after it was made, at most."""


class _Made(NamedTuple):
    """What somebody may ask for next of a directory."""

    position: int
    changes: int
    as_of_ns: int
    piece: Piece | None
    """None: nothing was made."""


class Ahead:
    """Makes pieces for one file system."""

    def __init__(self, fs: FileSystem, shower: Shower) -> None:
        self._fs: Final = fs
        self._volume: Final = fs.volume
        self._shower: Final = shower
        self._order: Final = Order(fs.volume.nodes)
        self._made: dict[Inode, _Made] = {}
        """The oldest first."""
        self._given: tuple[Inode, int, Piece] | None = None
        """The last piece that was given, and from which position on."""
        self._room = ROOM_BYTES
        """So much was asked for."""
        self._comes_true = True
        """Whether the last guess did."""
        self._is_read = True
        """Whether the directory that was opened last was also read: not everybody opens one for that."""

    def opened(self, inode: Inode) -> None:
        """Make the first piece of a directory that was opened just now, unless it is there."""
        self._order.opened(self._volume.directory(inode))
        self._comes_true = self._is_current(self._made.get(inode), 0)
        if self._is_read:
            self._make(inode, 0)
        self._is_read = False

    def take(self, inode: Inode, position: int, room: int) -> Piece | None:
        """Return what was made for a request, once; None: nothing that is right."""
        if position:
            self._comes_true = self._is_current(self._made.get(inode), position)
        else:
            self._is_read, self._room = True, min(room, MAX_ROOM_BYTES)
        made = self._made.pop(inode, None)
        if made is None or made.piece is None or len(made.piece.body) > room:
            return None
        return made.piece if self._is_current(made, position) else None

    def given(self, inode: Inode, position: int, piece: Piece) -> None:
        """Note what was given."""
        self._given = inode, position, piece

    def look(self) -> None:
        """Make what is asked for after what was given last, or note what that would be."""
        given, self._given = self._given, None
        if given is None:
            return
        inode, position, piece = given
        if not piece.is_all:
            self._guess(inode, piece.position)
            return
        # Of the pieces before nobody remembers what was in them.
        has_directories = piece.has_directories or position > 0
        following = self._order.after(inode, has_directories=has_directories)
        if following is not None:
            self._guess(following, 0)

    def _guess(self, inode: Inode, position: int) -> None:
        if self._comes_true:
            self._make(inode, position)
        else:
            self._keep(inode, position, None)

    def _make(self, inode: Inode, position: int) -> None:
        volume, room = self._volume, self._room
        made = self._made.get(inode)
        if made is not None and made.piece is not None and self._is_current(made, position):
            return
        directory = volume.directory(inode)
        if not self._fs.lister.is_fresh(directory):
            return
        # More than there is room for.
        entries = self._fs.namespace.entries_now(inode, position, room // ENTRY_BYTES + 1)
        if not self._fs.stages.has_any(node.id for node, _ in entries):
            self._keep(inode, position, self._shower.part(directory, entries, position, room))

    def _keep(self, inode: Inode, position: int, piece: Piece | None) -> None:
        made = self._made
        made.pop(inode, None)
        if len(made) >= MAX_MADE:
            del made[next(iter(made))]
        made[inode] = _Made(position, self._volume.database.changes, self._volume.now_ns(), piece)

    def _is_current(self, made: _Made | None, position: int) -> bool:
        volume = self._volume
        return (
            made is not None
            and made.position == position
            and made.changes == volume.database.changes
            and 0 <= volume.now_ns() - made.as_of_ns < GOOD_NS
        )
