"""How a row looks to the kernel: `stat` out of mount.db, the stages and the mount's defaults.

This runs for every entry of every listing, a hundred thousand times a second: it asks mount.db nothing.
"""

import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

import pyfuse3
from pyfuse3 import EntryAttributes, InodeT, StatvfsData

from s3mgrd.cache.nodes import Kind, Listed, Node
from s3mgrd.fs.kernel import replies
from s3mgrd.fs.names import MAX_NAME_BYTES
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.fs.writing.stages import Stages

BLOCK: Final = 4096
CAPACITY_BLOCKS: Final = (1 << 50) // BLOCK
"""S3 has no size."""
MAX_FILES: Final = 1 << 40
_FILE: Final = int(Kind.FILE)
_SPECIAL: Final = int(Kind.SPECIAL)
_TYPES: Final = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""By kind; that of a special file is in its row."""
_TYPE_SHIFT: Final = 12
"""From st_mode to d_type."""
_DIRECTORY: Final = stat.S_IFDIR >> _TYPE_SHIFT
_pack_entry: Final = replies.DIRENT_PLUS.pack
_ENTRY_BYTES: Final = replies.DIRENT_PLUS.size


class Piece(NamedTuple):
    """Some entries of a directory as READDIRPLUS answers them."""

    body: bytes
    position: int
    """Of the last of them."""
    is_all: bool
    """Nothing that was there to be shown is left out."""
    has_directories: bool


class Shower:
    """Shows the rows of one volume."""

    def __init__(self, volume: Volume, stages: Stages) -> None:
        self._volume = volume
        self._settings = volume.settings
        self._stages = stages

    def entry(self, node: Node | Listed, valid_s: float) -> EntryAttributes:
        """Return what stat says of a row, and for how long the kernel may believe its name and attributes."""
        entry = blank()
        self.fill(entry, node, valid_s)
        return entry

    def fill(self, entry: EntryAttributes, node: Node | Listed, valid_s: float) -> None:
        """Put into *entry*, which `blank` made and may have been filled before, what stat says of a row."""
        mode, nlink, uid, gid, size, mtime_ns, atime_ns, ctime_ns = self._shown(node)
        entry.st_ino = InodeT(node.id)
        entry.st_mode = pyfuse3.ModeT(mode)
        entry.st_nlink = nlink
        entry.st_uid = uid
        entry.st_gid = gid
        entry.st_rdev = node.rdev
        entry.st_size = size
        entry.st_blocks = -(-size // 512)
        entry.st_mtime_ns = mtime_ns
        entry.st_atime_ns = atime_ns
        entry.st_ctime_ns = ctime_ns
        entry.entry_timeout = entry.attr_timeout = valid_s

    def entry_reply(
        self, node: Node, valid_s: float, attributes_valid_s: float | None = None
    ) -> bytes:
        """Return what answers LOOKUP with a row; its attributes may be believed for another time than its name."""
        seconds, nanoseconds = _split(valid_s)
        of_attributes = (
            (seconds, nanoseconds) if attributes_valid_s is None else _split(attributes_valid_s)
        )
        return replies.ENTRY_OUT.pack(
            node.id, 0, seconds, of_attributes[0], nanoseconds, of_attributes[1], *self._attributes(node)
        )  # fmt: skip

    def attributes_reply(self, node: Node, valid_s: float) -> bytes:
        """Return what answers GETATTR with a row."""
        return replies.ATTR_OUT.pack(*_split(valid_s), 0, *self._attributes(node))

    def part(
        self, directory: Node, entries: Iterable[tuple[Listed, float]], position: int, room: int
    ) -> Piece:
        """Return what answers READDIRPLUS for a position with *entries*, the first time with the two dots before them."""
        if position:
            return self.piece(entries, room, position)
        head = replies.dots(directory.id, directory.parent or directory.id)
        return self.piece(entries, room, replies.DOTS_POSITION, head)

    def piece(
        self, entries: Iterable[tuple[Listed, float]], room: int, position: int, head: bytes = b""
    ) -> Piece:
        """Return what answers READDIRPLUS with entries, behind *head*: as many as *room* (bytes) is for.

        The position of an entry is its inode number. *entries* are rows, each with for how long (s) it may be believed.
        """
        pack, padding, attributes_of = _pack_entry, replies.PADDING, self._attributes
        alignment = replies.ALIGNMENT
        parts = [head]
        room -= len(head)
        has_directories, is_all = False, True
        split_s, seconds, nanoseconds = 0.0, 0, 0
        for node, valid_s in entries:
            if valid_s != split_s:
                split_s = valid_s
                seconds, nanoseconds = _split(valid_s)
            inode, name, attributes = node[0], node[1].encode(), attributes_of(node)
            length = len(name)
            pad = padding[length % alignment]
            room -= _ENTRY_BYTES + length + len(pad)
            if room < 0:
                is_all = False
                break
            kind = attributes[9] >> _TYPE_SHIFT
            parts += (
                pack(
                    inode, 0, seconds, seconds, nanoseconds, nanoseconds, *attributes,
                    inode, inode, length, kind,
                ),
                name,
                pad,
            )  # fmt: skip
            position = inode
            has_directories = has_directories or kind == _DIRECTORY
        return Piece(b"".join(parts), position, is_all, has_directories)

    def give_dots(self, token: pyfuse3.ReaddirToken, directory: Node) -> None:
        """Give pyfuse3 the first two entries of a directory; see `replies.dots`."""
        shown = self.entry(directory, 0)
        for name, inode in zip(
            replies.DOTS, (directory.id, directory.parent or directory.id), strict=True
        ):
            shown.st_ino = InodeT(inode)
            pyfuse3.readdir_reply(token, name, shown, replies.DOTS_POSITION)

    def _attributes(self, node: Node | Listed) -> tuple[int, ...]:
        """Return the fields of the kernel's fuse_attr."""
        mode, nlink, uid, gid, size, mtime_ns, atime_ns, ctime_ns = self._shown(node)
        mtime, mtime_nsec = divmod(mtime_ns, NS)
        atime, atime_nsec = (mtime, mtime_nsec) if atime_ns == mtime_ns else divmod(atime_ns, NS)
        ctime, ctime_nsec = (mtime, mtime_nsec) if ctime_ns == mtime_ns else divmod(ctime_ns, NS)
        return (
            node.id, size, -(-size // 512), atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec,
            mode, nlink, uid, gid, node.rdev, BLOCK, 0,
        )  # fmt: skip

    def _shown(self, node: Node | Listed) -> tuple[int, int, int, int, int, int, int, int]:
        """Return mode, nlink, uid, gid, size, mtime, atime and ctime (ns)."""
        kind, size, mtime_ns, mode = node.kind, node.size, node.mtime_ns, node.mode
        atime_ns, ctime_ns, uid, gid = node.atime_ns, node.ctime_ns, node.uid, node.gid
        stage = self._stages.get(node.id)
        if stage is not None:
            if kind == _FILE:
                size = stage.file.size
            if stage.mtime_ns is not None:
                mtime_ns = stage.mtime_ns
        settings = self._settings
        return (
            (_TYPES[kind] if kind != _SPECIAL else node.special)
            | (mode if mode is not None else self._volume.mode(node)),
            # 1 for directories says that nobody counts their subdirectories, as btrfs does.
            1 if node.name is not None else 0,
            uid if uid is not None else settings.uid,
            gid if gid is not None else settings.gid,
            size,
            mtime_ns,
            atime_ns if atime_ns is not None else mtime_ns,
            mtime_ns if ctime_ns is None or ctime_ns < mtime_ns else ctime_ns,
        )


def _split(valid_s: float) -> tuple[int, int]:
    """Return seconds and nanoseconds."""
    seconds = int(valid_s)
    return seconds, int((valid_s - seconds) * NS)


def blank() -> EntryAttributes:
    """Return attributes to be filled: one for a whole listing, since each reply copies them."""
    entry = EntryAttributes()
    entry.st_blksize = BLOCK
    return entry


def absence_reply(valid_s: float) -> bytes:
    """Return what `absence` says as the answer to LOOKUP."""
    seconds, nanoseconds = _split(valid_s)
    return replies.ABSENCE_HEAD.pack(0, 0, seconds, 0, nanoseconds, 0).ljust(
        replies.ENTRY_OUT.size, b"\0"
    )


def absence(valid_s: float) -> EntryAttributes:
    """Return what tells the kernel that there is no such name: inode 0, which it may believe for so long."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(0)
    entry.entry_timeout = valid_s
    return entry


def space(free_bytes: int) -> StatvfsData:
    """Return what statfs says where *free_bytes* can be written before S3 has any of it.

    The rest of an endless disk is free but not available, as what a disk reserves for root: df shows that nothing is
    used, and how much can be written now.
    """
    data = StatvfsData()
    data.f_bsize = data.f_frsize = BLOCK
    data.f_blocks = data.f_bfree = CAPACITY_BLOCKS
    data.f_bavail = min(free_bytes // BLOCK, CAPACITY_BLOCKS)
    data.f_files = data.f_ffree = data.f_favail = MAX_FILES
    data.f_namemax = MAX_NAME_BYTES
    return data
