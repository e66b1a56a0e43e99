"""The part of the kernel's FUSE interface that s3mgr speaks itself.

Source: ``linux/fuse.h`` (protocol 7.x); names are the header's without their ``FUSE_`` prefix. Everything is in
native byte order, as the kernel sends it. libfuse speaks the rest of the protocol, in the worker.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

PROTOCOL_MAJOR: Final = 7
MIN_READ_BUFFER: Final = 8192
"""The kernel refuses reads with a smaller buffer (FUSE_MIN_READ_BUFFER)."""
HEADER_ROOM: Final = 4096
"""What a buffer needs beyond `max_write`: headers, rounded up to a page, as libfuse does it."""

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
IN_HEADER_BEGIN: Final = struct.Struct("=4xIQQ")
"""What each request is told by: opcode, unique, nodeid."""
OUT_HEADER: Final = struct.Struct("=IiQ")
"""fuse_out_header: len, error, unique. A notification has unique 0 and its code in error."""
INIT_IN: Final = struct.Struct("=IIIII11I")
"""fuse_init_in: major, minor, max_readahead, flags, flags2, unused."""
INIT_IN_SHORT: Final = struct.Struct("=IIII")
"""fuse_init_in before 7.36, without flags2."""
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH11H")
"""fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
max_pages, map_alignment, flags2, max_stack_depth, request_timeout, unused."""
OPEN_IN: Final = struct.Struct("=II")
"""fuse_open_in, also of a directory: flags, open_flags."""
CREATE_IN: Final = struct.Struct("=IIII")
"""fuse_create_in: flags, mode, umask, open_flags; the name follows."""
MKDIR_IN: Final = struct.Struct("=II")
"""fuse_mkdir_in: mode, umask; the name follows."""
HANDLE_IN: Final = struct.Struct("=Q")
"""fuse_release_in and fuse_flush_in, as far as they are read: fh."""
READ_IN: Final = struct.Struct("=QQI")
"""fuse_read_in, also of a directory, as far as it is read: fh, offset, size."""
WRITE_IN: Final = struct.Struct("=QQIIQII")
"""fuse_write_in: fh, offset, size, write_flags, lock_owner, flags, padding; the bytes follow."""
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIII")
"""fuse_setattr_in up to the mode: valid, padding, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode."""
GETXATTR_NAME_OFFSET: Final = 8
"""Behind fuse_getxattr_in: size, padding."""
FATTR_MODE: Final = 1 << 0
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
"""What `valid` of fuse_setattr_in may say is there."""
FORGET_IN: Final = struct.Struct("=Q")
"""fuse_forget_in: nlookup."""
BATCH_FORGET_IN: Final = struct.Struct("=II")
"""fuse_batch_forget_in: count, dummy."""
FORGET_ONE: Final = struct.Struct("=QQ")
"""fuse_forget_one: nodeid, nlookup."""
RENAME_IN: Final = struct.Struct("=Q")
"""fuse_rename_in: newdir."""
RENAME2_IN: Final = struct.Struct("=QII")
"""fuse_rename2_in: newdir, flags, padding."""
NOTIFY_ENTRY: Final = struct.Struct("=QII")
"""fuse_notify_inval_entry_out: parent, namelen, flags."""
NOTIFY_INODE: Final = struct.Struct("=Qqq")
"""fuse_notify_inval_inode_out: ino, off (negative: attributes only), len (0: to the end)."""

NOTIFY_PRUNE_OUT: Final = struct.Struct("=IIQ")
"""fuse_notify_prune_out: count, padding, spare; so many node ids follow."""
NODEID: Final = struct.Struct("=Q")

NOTIFY_INVAL_INODE: Final = 2
"""Notification that attributes and content of an inode can no longer be believed."""
NOTIFY_INVAL_ENTRY: Final = 3
"""Notification that a name can no longer be believed."""
EXPIRE_ONLY: Final = 1
"""Its flag: ask again, and drop nothing before the answer differs (Linux 6.2)."""
NOTIFY_RESEND: Final = 7
"""Notification that makes the kernel queue again what was read and never answered (Linux 6.9)."""
NOTIFY_PRUNE: Final = 9
"""Notification that inodes may be dropped where nobody uses them (Linux 6.18)."""
UNIQUE_RESEND: Final = 1 << 63
"""Set in `unique` of a request that was queued again."""


class Opcode(IntEnum):
    """Requests whose meaning s3mgr needs to know (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


NAME_OFFSET: Final = {
    Opcode.SYMLINK: 0,
    Opcode.MKNOD: 16,
    Opcode.MKDIR: 8,
    Opcode.UNLINK: 0,
    Opcode.RMDIR: 0,
    Opcode.RENAME: RENAME_IN.size,
    Opcode.LINK: 8,
    Opcode.SETXATTR: 8,
    Opcode.REMOVEXATTR: 0,
    Opcode.CREATE: 16,
    Opcode.RENAME2: RENAME2_IN.size,
}
"""Where the name starts behind the header, for requests that change a directory or an extended attribute."""


class Cap(IntFlag):
    """Capabilities of FUSE_INIT; bits above 31 travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel offers in FUSE_INIT."""

    unique: int
    minor: int
    max_readahead: int
    caps: Cap


@dataclass(frozen=True, slots=True)
class Resent:
    """A request that a worker had read and not answered: enough to know it again.

    `name` is empty for requests that name nothing; `target` is the new parent and the new name of a rename.
    """

    op: int
    parent: int
    name: bytes
    thread: int
    target: tuple[int, bytes] | None = None


def parse_init(message: bytes) -> InitRequest:
    """Read the kernel's FUSE_INIT. Raises `ValueError` when it is something else."""
    if len(message) < IN_HEADER.size + INIT_IN_SHORT.size:
        raise ValueError(f"short request of {len(message)} bytes")
    _, opcode, unique, *_ = IN_HEADER.unpack_from(message)
    if opcode != Opcode.INIT:
        raise ValueError(f"expected FUSE_INIT, got request {opcode}")
    major, minor, readahead, flags = INIT_IN_SHORT.unpack_from(message, IN_HEADER.size)
    if major != PROTOCOL_MAJOR:
        raise ValueError(f"the kernel speaks FUSE {major}.{minor}")
    flags2 = 0
    if flags & Cap.INIT_EXT and len(message) >= IN_HEADER.size + INIT_IN.size:
        flags2 = INIT_IN.unpack_from(message, IN_HEADER.size)[4]
    return InitRequest(unique, minor, readahead, Cap(flags | flags2 << 32))


def init_request(
    *, minor: int, max_readahead: int, flags: int, flags2: int, unique: int = 1
) -> bytes:
    """Make a FUSE_INIT as the kernel would send it: what libfuse is started with."""
    body = INIT_IN.pack(PROTOCOL_MAJOR, minor, max_readahead, flags, flags2, *[0] * 11)
    header = IN_HEADER.pack(IN_HEADER.size + len(body), Opcode.INIT, unique, 0, 0, 0, 0, 0, 0)
    return header + body


def init_reply(
    unique: int,
    *,
    minor: int,
    caps: Cap,
    max_readahead: int,
    max_background: int,
    congestion_threshold: int,
    max_write: int,
    max_pages: int,
    time_gran_ns: int,
) -> bytes:
    """Make the answer to FUSE_INIT."""
    body = INIT_OUT.pack(
        PROTOCOL_MAJOR,
        minor,
        max_readahead,
        caps & 0xFFFF_FFFF,
        max_background,
        congestion_threshold,
        max_write,
        time_gran_ns,
        max_pages,
        0,
        caps >> 32,
        0,
        0,
        *[0] * 11,
    )
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def notify_resend() -> bytes:
    """Make the notification that asks for every unanswered request again."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def notify_expire_entry(parent: int, name: bytes) -> bytes:
    """Make the notification that a name must be looked up again.

    Linux 6.2 and later keep what the name leads to if it is still that; earlier ones do not know the flag and drop
    the directory that somebody works in, too.
    """
    body = NOTIFY_ENTRY.pack(parent, len(name), EXPIRE_ONLY) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_ENTRY, 0) + body


def notify_prune(inodes: Sequence[int]) -> bytes:
    """Make the notification that inodes may be dropped where no program uses them."""
    body = NOTIFY_PRUNE_OUT.pack(len(inodes), 0, 0) + b"".join(map(NODEID.pack, inodes))
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_PRUNE, 0) + body


def notify_inval_inode(inode: int, *, pages: bool) -> bytes:
    """Make the notification that the attributes of an inode must be asked for again, and with *pages* its content.

    A directory's pages are its entries.
    """
    body = NOTIFY_INODE.pack(inode, 0 if pages else -1, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_INODE, 0) + body


def parse_forgets(message: bytes | memoryview) -> list[tuple[int, int]]:
    """Read a FORGET or BATCH_FORGET as (inode, lookups) pairs; anything else is an empty list."""
    _, opcode, _, nodeid, *_ = IN_HEADER.unpack_from(message)
    if opcode == Opcode.FORGET:
        return [(nodeid, FORGET_IN.unpack_from(message, IN_HEADER.size)[0])]
    if opcode != Opcode.BATCH_FORGET:
        return []
    count, _ = BATCH_FORGET_IN.unpack_from(message, IN_HEADER.size)
    start = IN_HEADER.size + BATCH_FORGET_IN.size
    return [FORGET_ONE.unpack_from(message, start + i * FORGET_ONE.size) for i in range(count)]


def parse_resent(message: bytes | memoryview) -> Resent | None:
    """Read a request that the kernel sends once more; None: it is sent for the first time."""
    _, opcode, unique, nodeid, _, _, thread, *_ = IN_HEADER.unpack_from(message)
    if not unique & UNIQUE_RESEND:
        return None
    if opcode not in NAME_OFFSET:
        return Resent(opcode, nodeid, b"", thread)
    names = bytes(message[IN_HEADER.size + NAME_OFFSET[Opcode(opcode)] :]).split(b"\0")
    if opcode not in (Opcode.RENAME, Opcode.RENAME2):
        return Resent(opcode, nodeid, names[0], thread)
    new_parent = RENAME_IN.unpack_from(message, IN_HEADER.size)[0]
    return Resent(Opcode.RENAME2, nodeid, names[0], thread, (new_parent, names[1]))
