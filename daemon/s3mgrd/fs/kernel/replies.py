"""Answers to the kernel as bytes, the way it reads them: for `s3mgrd.fs.kernel.express`, which gives no objects to pyfuse3.

Structures of ``linux/fuse.h`` (protocol 7.31 and later), in native byte order.
"""

import struct
from typing import Final

_DIRECTORY: Final = 4
"""DT_DIR."""
_ATTR: Final = "QQQqqqIIIIIIIIII"
"""fuse_attr: ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
_ENTRY: Final = f"QQQQII{_ATTR}"
"""fuse_entry_out: nodeid, generation, entry_valid, attr_valid, and their nanoseconds; then the attributes."""

ENTRY_OUT: Final = struct.Struct(f"={_ENTRY}")
ABSENCE_HEAD: Final = struct.Struct("=QQQQII")
"""What of fuse_entry_out has a meaning where nodeid is 0."""
ATTR_OUT: Final = struct.Struct(f"=QII{_ATTR}")
"""fuse_attr_out: attr_valid, its nanoseconds, dummy; then the attributes."""
OPEN_OUT: Final = struct.Struct("=QIi")
"""fuse_open_out: fh, open_flags, backing_id."""
WRITE_OUT: Final = struct.Struct("=II")
"""fuse_write_out: size, padding."""
DIRENT_PLUS: Final = struct.Struct(f"={_ENTRY}QQII")
"""fuse_direntplus: the entry; then fuse_dirent: ino, off, namelen, type. The name follows, filled up to `ALIGNMENT`."""
ALIGNMENT: Final = 8
PADDING: Final = tuple(bytes(-length % ALIGNMENT) for length in range(ALIGNMENT))
"""By the length of a name modulo `ALIGNMENT`."""

_DOT: Final = f"{ENTRY_OUT.size}xQQII{ALIGNMENT}s"
"""fuse_direntplus of one of the dots: before its fuse_dirent and its name, nothing that the kernel should look at."""
_TWO_DOTS: Final = struct.Struct(f"={_DOT}{_DOT}")
DOTS_POSITION: Final = 1
"""Behind "." and "..", which are given together; no entry has this number, the root's."""
DOTS: Final = b".", b".."

KEEP_CACHE: Final = 1 << 1
CACHE_DIR: Final = 1 << 3
NO_FLUSH: Final = 1 << 5
"""In open_flags: what the kernel has of the file or directory is still good; it may keep entries; it need not ask at
close(2), which it does not heed while it gathers writes itself."""

NOTHING: Final = b""
"""The end of a directory."""


def dots(inode: int, parent: int) -> bytes:
    """Return the first two entries of a directory, which keep it from being empty for the kernel.

    An empty directory whose entries the kernel may keep (`CACHE_DIR`) would stay empty: its cache has no page, and the lack of
    a page is how the kernel finds that it was told to drop what it had.
    """
    one, two = DOTS
    return _TWO_DOTS.pack(
        inode, DOTS_POSITION, 1, _DIRECTORY, one, parent, DOTS_POSITION, 2, _DIRECTORY, two
    )
