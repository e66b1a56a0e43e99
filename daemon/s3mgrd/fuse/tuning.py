"""What s3mgr asks of the kernel in FUSE_INIT: the one table, with the reason for each line.

The supervisor grants what is both here and offered; the worker's libfuse is told the same (`worker.session`).
"""

import os
from typing import Final

from s3mgrd.fuse.abi import Cap

KIB: Final = 1 << 10
MIB: Final = 1 << 20
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")

MAX_WRITE_BYTES: Final = 1 * MIB
"""Largest write and read in one request. libfuse up to 3.16 cannot receive more."""
MAX_PAGES: Final = MAX_WRITE_BYTES // PAGE_BYTES
"""The same in pages; without it the kernel stops at 32 pages."""
READAHEAD_BYTES: Final = 4 * MIB
"""Upper bound the kernel may read ahead of a program; `read_ahead_kb` is raised to it where we may. Four requests
of the largest size in flight for one sequential reader: 0.9 → 3.7 GB/s from memory."""
READAHEAD_KB: Final = READAHEAD_BYTES // KIB
MAX_BACKGROUND: Final = 64
"""Readahead and asynchronous direct requests in flight per mount: 16 readers with a full window each. The
kernel's default of 12 starves them behind S3's latency."""
CONGESTION_THRESHOLD: Final = 48
"""Three quarters of it, as libfuse: from here on the kernel skips optional readahead."""
TIME_GRAN_NS: Final = 1
"""Times are kept in nanoseconds."""

CAPABILITIES: Final[dict[Cap, str]] = {
    Cap.ASYNC_READ: "several reads of one file at a time, in any order: readahead needs it",
    Cap.BIG_WRITES: "writes of more than a page per request",
    Cap.DO_READDIRPLUS: "a listing carries attributes, so `ls -l` asks nothing more. Not the AUTO variant: it makes "
    "the kernel mix in plain READDIR, which pyfuse3 does not handle",
    Cap.ASYNC_DIO: "parallel O_DIRECT requests of one program",
    Cap.PARALLEL_DIROPS: "lookups and listings in one directory do not wait for each other behind S3",
    Cap.MAX_PAGES: "requests of 1 MiB instead of 128 KiB",
    Cap.CACHE_SYMLINKS: "readlink is answered by the page cache: a symlink's target never changes within an inode",
    Cap.EXPLICIT_INVAL_DATA: "the page cache is dropped only when we say so: an inode is one version of one object, "
    "so a refreshed mtime must not throw good pages away",
    Cap.HANDLE_KILLPRIV_V2: "without it the kernel asks for security.capability before every write (4 KiB writes: 103 → "
    "52 µs, with writeback 66 → 4 µs). In return the file system clears setuid and setgid: where the kernel says so before "
    "a write it sends a SETATTR that changes no field; chown, and truncation by SETATTR or O_TRUNC, always mean it. libfuse "
    "3.14 does not know the flag and passes everything on",
    Cap.INIT_EXT: "the second word of flags",
    Cap.HAS_RESEND: "unanswered requests of a dead worker can be asked for again (Linux 6.9)",
}
"""What is granted to every connection. Deliberately not in it:

=====================  ==========================================================================================
POSIX_ACL              modes decide, checked by the kernel (`default_permissions`); S3 keeps no ACLs that map
READDIRPLUS_AUTO       see DO_READDIRPLUS
ATOMIC_O_TRUNC         the kernel would have the file emptied before it finds that it is being executed (ETXTBSY), and
                       the program that runs would die of SIGBUS. A SETATTR after OPEN is one request more, and 0 bytes
                       are known as a whole overwrite as well
AUTO_INVAL_DATA        see EXPLICIT_INVAL_DATA
NO_OPEN_SUPPORT        opens must arrive: close-to-open consistency and write handles hang on them
POSIX_LOCKS, FLOCK     the kernel keeps locks itself, within one mount
SPLICE_*               libfuse's own affair; an unprivileged worker's pipes are too small for it
SETXATTR_EXT           changes the layout of SETXATTR, which libfuse 3.14 does not know
REQUEST_TIMEOUT        would abort the connection while a new worker is on its way
ABORT_ERROR            an aborted connection should end like an unmounted one
=====================  ==========================================================================================
"""

WRITEBACK: Final = Cap.WRITEBACK_CACHE
"""Granted on the mount's wish (`writeback_cache`): by default to each that may be written to, where a worker can be replaced.

With it the kernel gathers small writes into large ones (4 KiB writes: 55 → 813 MB/s). Dirty pages live in the kernel, so
they survive the death of worker and daemon (`worker.keeper`), and the kernel sends them before FLUSH (close) and FSYNC.
The price, and who pays it:

======================================  =======================================================================
size and times of a cached inode are    one inode is one version; metadata that others replaced make another
the kernel's; it ignores ours           (`fs.volume.Volume.renew`). It sends the times by SETATTR before it flushes:
                                        these are no utimens (`fs.stages.Stages.written_at`)
its clock ticks every few milliseconds  times of ours are by that clock, too (`fs.volume.kernel_now_ns`)
GETATTR before each write(2)            attributes of what is open for writing are good for a second
write-only handles are read from        any handle reads
many large writes at once               requests are received into one buffer (`worker.receiving`)
a name may get another version while    the late writes become a conflict copy (`fs.conflicts.Conflicts.keep_orphan`)
writes to its inode are on their way
writes are there, and nobody knows      flush, drain and a lazy unmount ask the kernel for them first
a full disk is found out later          close() and fsync() say ENOSPC, write() may not
the connection is aborted               what was not sent is lost, as with any file system that goes away: when
                                        worker after worker died, and when all processes were killed together, the
                                        keeper included, with no systemd to hold the connection
======================================  =======================================================================
"""


def wanted(*, writeback_cache: bool) -> Cap:
    """Return everything that a connection should be granted if the kernel offers it."""
    caps = Cap(0)
    for cap in CAPABILITIES:
        caps |= cap
    return caps | WRITEBACK if writeback_cache else caps
