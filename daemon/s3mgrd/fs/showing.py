"""How a row looks to the kernel: `stat` out of mount.db, the stages and the mount's defaults.

This runs for every entry of every listing, a hundred thousand times a second: it asks mount.db nothing.
"""

import stat
from typing import Final

from pyfuse3 import EntryAttributes, InodeT, StatvfsData

from s3mgrd.cache.nodes import Kind, Listed, Node
from s3mgrd.fs.names import MAX_NAME_BYTES
from s3mgrd.fs.stages import Stages
from s3mgrd.fs.volume import Volume

BLOCK: Final = 4096
CAPACITY_BLOCKS: Final = (1 << 50) // BLOCK
"""S3 has no size."""
MAX_FILES: Final = 1 << 40
_FILE: Final = int(Kind.FILE)
_SPECIAL: Final = int(Kind.SPECIAL)
_TYPES: Final = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""By kind; that of a special file is in its row."""


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
        kind, size, mtime_ns = node.kind, node.size, node.mtime_ns
        atime_ns, ctime_ns, mode, uid, gid = (
            node.atime_ns,
            node.ctime_ns,
            node.mode,
            node.uid,
            node.gid,
        )
        stage = self._stages.get(node.id)
        if stage is not None:
            if kind == _FILE:
                size = stage.file.size
            if stage.mtime_ns is not None:
                mtime_ns = stage.mtime_ns
        settings = self._settings
        entry.st_ino = node.id
        entry.st_mode = (_TYPES[kind] if kind != _SPECIAL else node.special) | (
            mode if mode is not None else self._volume.mode(node)
        )
        # 1 for directories says that nobody counts their subdirectories, as btrfs does.
        entry.st_nlink = 1 if node.name is not None else 0
        entry.st_uid = uid if uid is not None else settings.uid
        entry.st_gid = gid if gid is not None else settings.gid
        entry.st_rdev = node.rdev
        entry.st_size = size
        entry.st_blocks = -(-size // 512)
        entry.st_mtime_ns = mtime_ns
        entry.st_atime_ns = atime_ns if atime_ns is not None else mtime_ns
        entry.st_ctime_ns = mtime_ns if ctime_ns is None or ctime_ns < mtime_ns else ctime_ns
        entry.entry_timeout = entry.attr_timeout = valid_s


def blank() -> EntryAttributes:
    """Return attributes to be filled: one for a whole listing, since each reply copies them."""
    entry = EntryAttributes()
    entry.st_blksize = BLOCK
    return entry


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
