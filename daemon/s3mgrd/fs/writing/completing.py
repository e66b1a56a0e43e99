"""Completing conflict copies: what they lack of the version that they were a change of is fetched, if S3 has it anywhere.

A change in the middle of a file has no bytes of the rest until it is uploaded. When the upload loses, the version that it was
a change of is no longer what lies at the key; a bucket with versioning keeps it nevertheless. What mount.db was lost for
(`s3mgrd.fs.writing.recovery`) may well be a change of what still lies there.

Concurrency: an inode's lock is held while its copy is completed, so who has it open and writes to it waits.
"""

import logging
from typing import Final

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import NotFound, PreconditionFailed, S3mgrError
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing.filling import fill
from s3mgrd.fs.writing.stages import Stages
from s3mgrd.journal.staging import StagedFile
from s3mgrd.s3.port import ObjectStore

log = logging.getLogger(__name__)

UNASKED_BYTES: Final = 1 << 30
"""More is fetched only when somebody wants to restore the copy."""
DISK_SHARE: Final = 2
"""Of the disk's free bytes one in so many may be used for it."""


class Completer:
    """Completes the conflict copies of one volume."""

    def __init__(self, volume: Volume, stages: Stages) -> None:
        self._volume: Final = volume
        self._stages: Final = stages

    async def run(self) -> None:
        """Try once to complete every copy that lacks something."""
        after = 0
        while rows := self._volume.journal.conflicts(after=after, limit=100):
            for row in rows:
                if row.missing:
                    await self.complete(Inode(row.inode))
            after = rows[-1].inode

    async def complete(self, inode: Inode, *, is_wanted: bool = False) -> None:
        """Fetch what a copy lacks, as far as S3 has it and the disk has room; nothing where it lacks nothing.

        Args:
            inode: of the copy.
            is_wanted: somebody waits for it, so however much it is.
        """
        volume = self._volume
        async with volume.locks.holding(("inode", inode)):
            row, copy = volume.journal.staged(inode), volume.journal.conflict(inode)
            if row is None or copy is None or not copy.missing:
                return  # complete, restored or discarded meanwhile
            room = volume.staging.free_bytes() // DISK_SHARE
            if copy.missing > (room if is_wanted else min(room, UNASKED_BYTES)):
                return
            stage = self._stages.get(inode)
            try:
                file = stage.file if stage else volume.staging.open(inode, row.base_size)
            except OSError as error:
                log.warning("conflict copy %d of %s cannot be read: %s", inode, copy.path, error)
                return
            try:
                await _complete(volume.store, file, at_once=volume.settings.concurrency)
            except (NotFound, PreconditionFailed):
                log.warning(
                    "the version that conflict copy %d of %s lacks is gone", inode, copy.path
                )
            except (S3mgrError, OSError) as error:
                log.warning("conflict copy %d of %s stays incomplete: %s", inode, copy.path, error)
            else:
                log.info("conflict copy %d of %s is complete", inode, copy.path)
            finally:
                volume.journal.set_missing(inode, file.missing_bytes())
                if stage is None:
                    file.close()


async def _complete(store: ObjectStore, file: StagedFile, *, at_once: int) -> None:
    """Fetch what *file* lacks. Raises what `fill` and the store do; `PreconditionFailed`: S3 has it nowhere."""
    said = file.description
    if said is None or said.base_key is None or said.base_etag is None:
        raise PreconditionFailed("nothing says what it was a change of")
    key, etag = said.base_key, said.base_etag
    version_id = await _version_of(store, key, etag)

    async def read(start: int, stop: int) -> bytes | memoryview:
        found = await store.get_range(key, start, stop, if_match=etag, version_id=version_id)
        return found.data

    await fill(file, file.missing(), read, at_once=at_once)


async def _version_of(store: ObjectStore, key: str, etag: str) -> str | None:
    """Return the id of a version that is not current; None: it is. Raises `PreconditionFailed`: it is gone."""
    try:
        head = await store.head(key)
    except NotFound:
        pass
    else:
        if head.etag == etag:
            return None
    version_id = await store.find_version(key, etag)
    if version_id is None:
        raise PreconditionFailed(f"version {etag} of {key!r} is gone")
    return version_id
