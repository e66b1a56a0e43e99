"""Room on the disk for what is being written: bytes of a large file that have to wait wait in S3, as objects of their own.

S3 cannot give back the parts of an upload before it is completed, and completing it would show half a file. So a part that
is to leave the disk is put as an object of its own, ``.s3mgr-`` and 16 hexadecimal digits in the mount's root, and
S3 copies it from there into the upload. From then on its bytes are read from there, may be written over, and belong to whatever
becomes of the file: a new name, another upload, a conflict copy. When nothing refers to the object any more, it is deleted.

`Settings.staging_size_bytes` bounds what large files that are being written take on the disk. Parts are parked from
three quarters of that on; at the bound, and where the disk is full, writers wait for it.

Order, for whatever may die in between: a row of `parked` before the object is made; the object, and its copy in the upload;
a record in the staging file's log, from which on the bytes are S3's; the log on the disk; the hole in the staging file.
"""

import errno
import secrets

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import Corrupt, NotFound, PreconditionFailed
from s3mgrd.fs.relocation import PARKED
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing.filling import fill
from s3mgrd.journal.staging import Parked, StagedFile
from s3mgrd.s3.port import FileSlice


def parked_key(volume: Volume) -> str:
    """Return a key for bytes of any file: in the root, of which nothing is ever renamed."""
    return f"{volume.settings.prefix}{PARKED}{secrets.token_hex(8)}"


async def make_object(volume: Volume, inode: Inode, fd: int, start: int, stop: int) -> Parked:
    """Put bytes of a staging file as an object of their own. What fails leaves nothing that is not deleted."""
    key = parked_key(volume)
    volume.journal.park(key, inode, now_ns=volume.now_ns())
    try:
        written = await volume.store.put(key, FileSlice(fd, start, stop - start), metadata={})
    except BaseException:
        volume.journal.unpark([key])
        raise
    return Parked(start=start, stop=stop, key=key, etag=written.etag)


async def read(volume: Volume, parked: Parked) -> bytes | memoryview:
    """Read parked bytes.

    Raises:
        Corrupt: somebody removed or replaced them.
    """
    start, length = parked.offset, parked.stop - parked.start
    try:
        found = await volume.store.get_range(
            parked.key, start, start + length, if_match=parked.etag
        )
    except (NotFound, PreconditionFailed) as error:
        raise Corrupt(
            f"{parked.key}, which held bytes that were not uploaded yet, was removed by somebody else"
        ) from error
    return found.data


def leave(volume: Volume, file: StagedFile, parked: Parked) -> None:
    """Have bytes read from where they are parked; what lay there before, and is of no use now, is deleted. No checkpoint."""
    before = {p.key for p in file.parked}
    file.park(parked)
    gone = before - {p.key for p in file.parked}
    if gone:
        volume.journal.unpark(sorted(gone))


def parked_ranges(file: StagedFile, start: int, stop: int) -> list[tuple[int, int]]:
    """Return which bytes are parked, each range in one object."""
    return [(p.start, p.stop) for p in file.pieces(start, stop) if p.parked is not None]


async def fetch(volume: Volume, file: StagedFile, start: int, stop: int) -> None:
    """Bring parked bytes back; the inode's lock is held."""

    async def get(first: int, last: int) -> bytes | memoryview:
        (parked,) = file.parked_in(first, last)
        return await read(volume, parked)

    ranges = parked_ranges(file, start, stop)
    await fill(file, ranges, get, at_once=volume.settings.concurrency)


def reconcile(volume: Volume, inode: Inode, file: StagedFile) -> None:
    """Have objects deleted of which the last worker did not note that they hold anything. No checkpoint."""
    known = {p.key for p in file.parked}
    strays = [key for key in volume.journal.parked(inode) if key not in known]
    if strays:
        volume.journal.unpark(strays)


def is_full(error: OSError) -> bool:
    """Whether a disk has no room, or gives none to us."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
