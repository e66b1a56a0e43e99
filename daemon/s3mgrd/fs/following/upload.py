"""Uploads: a staged file becomes an object, under the condition it began with. How its bytes go is `s3mgrd.fs.writing.sending`'s.

An upload that was interrupted is taken up where S3 has it: the parts of a multipart upload are asked for, and a
condition that fails because an earlier attempt of ours succeeded unnoticed is recognised by what it left.
"""

import hashlib
import logging
import mimetypes
import os
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Final, NamedTuple

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import NotFound, PreconditionFailed, S3mgrError, TooLarge, Unavailable
from s3mgrd.fs import attributes, descriptions, relocation
from s3mgrd.fs.changing.conflicts import Conflicts, Notice
from s3mgrd.fs.following.strays import find_unseen
from s3mgrd.fs.following.turns import Turns
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.reading.reader import Reader
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.fs.writing.sending import CopyUnsupported, Sender
from s3mgrd.fs.writing.stages import Stage, Stages
from s3mgrd.fs.writing.stream import Stream
from s3mgrd.fs.writing.streaming import Streams
from s3mgrd.journal.tables import DeleteRow, StagedRow
from s3mgrd.s3.port import (
    ALWAYS,
    REPLACED,
    Condition,
    ObjectHead,
    Written,
)

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
FIRST_RETRY_S: Final = 5.0
LAST_RETRY_S: Final = 300.0
TOLERANCE_S: Final = 60
"""A file that was uploaded while it was written has the time when that began, if its last write was no later than this."""


class _Plain(NamedTuple):
    """How a small new file is sent: with which metadata, its own among them, and whether nothing may be there."""

    like: ObjectHead
    own: Mapping[str, str]
    metadata: Mapping[str, str]
    is_absent: bool


class _Fate(Enum):
    """What becomes of staged data that S3 has."""

    FORGOTTEN = auto()
    STAGED = auto()
    """It stays as it is, until nobody writes the file any more."""
    BASE = auto()
    """Nothing stays: S3's version has everything."""


class Uploader:
    """Uploads staged files of one volume.

    Args:
        clear_key: awaited before a key is written: makes the objects that lie there, but belong elsewhere, go first.
        preserve: awaited with the key locked: keeps what lies there for who still has it open under no name.
        settled: awaited with a directory's inode: waits until no rename copies from where it is now.
        conflicts: gets what loses against another writer.
    """

    def __init__(
        self,
        volume: Volume,
        stages: Stages,
        streams: Streams,
        reader: Reader,
        metadata: Metadata,
        *,
        clear_key: Callable[[str, Inode], Awaitable[None]],
        preserve: Callable[[str], Awaitable[None]],
        settled: Callable[[Inode], Awaitable[None]],
        conflicts: Conflicts,
    ) -> None:
        self._volume = volume
        self._stages = stages
        self._streams = streams
        self._sender = Sender(volume, reader, streams)
        self._metadata = metadata
        self._clear_key = clear_key
        self._preserve = preserve
        self._settled = settled
        self._conflicts = conflicts
        self._turns = Turns(volume.database)
        self.running: Final[set[Inode]] = set()
        """Files whose upload is going on now, whoever asked for it."""

    async def commit(self, inode: Inode, *, only_due: bool = False) -> bool:
        """Upload a file if S3 lacks it, and (*only_due*) if nobody began to write it again; returns whether it had to be done.

        Safe to cancel: the data stays staged and dirty.

        Raises:
            PreconditionFailed: another writer was first; the data is a conflict copy now.
            S3mgrError, OSError: the upload failed; the data is kept, listed, and tried again.
        """
        notice: Notice | None = None
        async with self._volume.locks.holding(("inode", inode)):
            while True:
                stage = self._stages.get(inode)
                row = self._volume.journal.staged(inode)
                if stage is not None and stage.is_lost:
                    self._stages.note_copy(inode)
                    raise PreconditionFailed("another writer was first; this is a conflict copy")
                if stage is None or row is None or not stage.dirty:
                    return False
                if only_due and row.retry_ns is None:
                    return False
                if row.conflict:
                    raise TooLarge(row.error or "S3 takes no such file")
                base = self._base(inode)
                try:
                    self.running.add(inode)
                    stage.was_sent = True
                    try:
                        await self._commit(inode, stage)
                    except PreconditionFailed as error:
                        if self._base(inode) != base:
                            continue  # S3 copied the version that this is a change of elsewhere meanwhile
                        notice, lost = await self._conflicts.lose(inode, row), error
                        if notice is None:
                            continue  # removed or renamed meanwhile: there is another condition now, or none
                except (S3mgrError, OSError) as error:
                    if self._volume.node(inode).is_detached:
                        continue  # removed meanwhile: nothing has to be uploaded
                    self._note_failure(inode, row, error)
                    raise
                finally:
                    self.running.discard(inode)
                break
        if notice is not None:
            await self._conflicts.announce(notice)
            raise lost
        self._stages.tidy(inode)
        return True

    def _base(self, inode: Inode) -> tuple[str | None, str | None]:
        """Return which version an inode is, and where it lies."""
        node = self._volume.node(inode)
        return node.etag, node.remote_key

    async def _commit(self, inode: Inode, stage: Stage) -> None:
        volume = self._volume
        while True:
            node = volume.node(inode)
            if node.is_detached:
                return
            key = volume.wanted_key(node)
            if stage.file.is_small and not volume.locks.is_held(("key", key)):
                async with volume.locks.holding(("key", key)):
                    if await self._store_plain(inode, key, stage):
                        return
                node = volume.node(inode)
            row = volume.journal.staged(inode)
            if node.is_detached or row is None:
                return
            await self._settled(node.parent)
            if await self._take_up_unseen(node, row):
                continue
            await self._sender.complete(node, stage, row)
            key = volume.wanted_key(volume.node(inode))
            await self._clear_key(key, inode)
            async with volume.locks.holding(("key", key)):
                node, row = volume.node(inode), volume.journal.staged(inode)
                if node.is_detached or row is None or volume.wanted_key(node) != key:
                    continue  # renamed or removed while we waited
                if any(
                    other.id != inode and other.name is not None
                    for other in volume.nodes.with_remote_key(key)
                ):
                    continue
                if relocation.occupant(volume, key, is_file=True) is not None:
                    continue  # it changed places with a name in a directory that takes the place of another
                try:
                    await self._store(node, key, stage, row)
                except CopyUnsupported:
                    continue
                return

    async def take_up_unseen(self, inode: Inode) -> bool:
        """Find out whether the version that a file is a change of is gone because a worker that died put the next there; take it up.

        Returns whether there is another version now.

        Raises:
            S3mgrError: S3 did not answer.
        """
        async with self._volume.locks.holding(("inode", inode)):
            node, row = self._volume.nodes.get(inode), self._volume.journal.staged(inode)
            return node is not None and row is not None and await self._take_up_unseen(node, row)

    async def _take_up_unseen(self, node: Node, row: StagedRow) -> bool:
        volume = self._volume
        if not row.dirty or row.base_etag is None or row.base_etag != node.etag:
            return False
        found = await find_unseen(volume, volume.key_in_s3(node))
        # What is not staged of the file is the same in both: the worker made that one of them and of what it had staged.
        if found is None or found.etag == node.etag or found.size < row.base_size:
            return False
        with volume.database.transaction():
            if volume.node(node.id).etag != node.etag:
                return True
            volume.nodes.update(node.id, etag=found.etag, remote_mtime_ns=found.mtime_ns)
            volume.journal.rebase_staged(node.id, node.etag, found.etag)
        log.info("inode %d: took up version %s, which was uploaded unseen", node.id, found.etag)
        return True

    def _is_plain(self, node: Node, key: str, stage: Stage, row: StagedRow) -> bool:
        """Whether a file is a small new one, and nothing has to be waited for or thought of before it is sent to *key*."""
        volume = self._volume
        return (
            not node.is_detached
            and volume.wanted_key(node) == key
            and stage.file.is_small
            and node.etag is None
            and row.condition != "match"
            and not volume.moving
            and volume.journal.is_untouched(key)
        )

    async def _store_plain(self, inode: Inode, key: str, stage: Stage) -> bool:
        """As `_store`, of a file for which `_is_plain` holds, in two transactions that others share; whether it did."""
        plain = await self._turns.make(
            partial(self._begin_plain, inode, key, stage),
            partial(self._begun_plain, inode, stage),
        )
        if plain is None:
            return False
        like = plain.like
        try:
            written = await self._volume.store.put(
                key,
                stage.file.read(0, stage.file.size),
                metadata=plain.metadata,
                content_type=like.content_type,
                like=like,
                condition=Condition(absent=plain.is_absent),
            )
        except PreconditionFailed:
            found = await self._find_ours(key, stage, plain.metadata, was_sent=False)
            if found is None:
                raise
            written = found
        await self._turns.make(
            partial(self._note, inode, key, stage, written, plain.own, like),
            partial(self._noted, inode, stage),
        )
        return True

    def _begin_plain(self, inode: Inode, key: str, stage: Stage) -> _Plain | None:
        """Note that a file is about to be sent as it is now; None: it is not for `_store_plain` (any more)."""
        volume = self._volume
        node, row = volume.node(inode), volume.journal.staged(inode)
        if row is None or not self._is_plain(node, key, stage, row):
            return None
        if stage.mtime_ns is not None:
            volume.nodes.update(inode, mtime_ns=stage.mtime_ns)
            node = volume.node(inode)
        like = _described(node, key)
        own = self._metadata.own(node)
        metadata = descriptions.merged(like.metadata, own)
        volume.journal.begin_write(key, size=stage.file.size, mtime=metadata.get("mtime"))
        return _Plain(like, own, metadata, row.condition == "absent")

    async def _store(self, node: Node, key: str, stage: Stage, row: StagedRow) -> None:
        """Write the object and take note; the caller holds the locks of the inode and of *key*."""
        volume = self._volume
        await self._preserve(key)
        pending = volume.journal.pending_delete(key)
        condition = Condition(
            # A version that has yet to be moved here is not what lies here now: the rename decided who wins.
            if_match=row.base_etag
            if row.condition == "match" and volume.key_in_s3(node) == key
            else None,
            absent=row.condition == "absent",
        )
        if pending is not None and row.condition == "absent":
            await self._make_way(key, pending)
        unseen = await find_unseen(volume, key)
        if unseen is not None and condition != ALWAYS:
            # An earlier attempt of ours wrote that, and the content has changed since.
            condition = Condition(if_match=unseen.etag)
        stream = await self._streams.take(node.id, stage.file, key)
        if stage.mtime_ns is not None:
            volume.nodes.update(node.id, mtime_ns=self._mtime_ns(node, stage, stream))
            self._stages.time_set(node.id)
            node = volume.node(node.id)
        like = await self._like(node, key, row)
        own = self._metadata.own(node) if stream is None else stream.own
        metadata = descriptions.merged(like.metadata, own)
        if unseen is not None and self._is_this(unseen, node, key, stage, metadata):
            self._take_note(node, key, stage, Written(unseen.etag, unseen.mtime_ns), own, like)
            return
        was_sent = any(
            (write.size, write.mtime) == (stage.file.size, None)
            for write in volume.journal.writes_of(key)
        )
        with volume.database.transaction():
            volume.journal.begin_write(key, size=stage.file.size, mtime=metadata.get("mtime"))
            relocation.forget_copy(volume, key, by=node)
        try:
            written = await self._sender.send(
                node, key, stage, row, metadata, like, condition, stream
            )
        except PreconditionFailed:
            found = await self._find_ours(key, stage, metadata, was_sent=was_sent)
            if found is None:
                raise
            written = found
        self._take_note(node, key, stage, written, own, like)

    def _mtime_ns(self, node: Node, stage: Stage, stream: Stream | None) -> int:
        """Return the time of the last change to give a file.

        That of an upload which began while the file was written is what S3 was told then: it cannot be told another
        without copying the object. Where the writing went on for long, or somebody set a time, that is done.
        """
        mtime_ns = self._stages.mtime_ns(node)
        if stream is None or stage.mtime_ns is None or "mtime" not in stream.own:
            return mtime_ns
        is_near = 0 <= mtime_ns - stream.mtime_ns <= TOLERANCE_S * NS
        return stream.mtime_ns if is_near else mtime_ns

    async def _make_way(self, key: str, pending: DeleteRow) -> None:
        """Delete now what was removed here, and nothing else, so that the key is free."""
        versions = {} if pending.etag is None else {key: pending.etag}
        for failure in await self._volume.store.delete_many([key], if_match=versions):
            if failure.code == REPLACED:
                try:
                    await self._volume.store.head(key)
                except NotFound:
                    return
                raise PreconditionFailed(f"{key!r} exists already: somebody replaced it")
            raise Unavailable(f"{key!r} cannot be replaced: {failure.code} {failure.message}")

    def _begun_plain(self, inode: Inode, stage: Stage, plain: _Plain | None) -> None:
        if plain is not None and stage.mtime_ns is not None:
            self._stages.time_set(inode)

    def _take_note(
        self,
        sent: Node,
        key: str,
        stage: Stage,
        written: Written,
        own: Mapping[str, str],
        like: ObjectHead,
    ) -> None:
        """Make the version that S3 acknowledged, with the metadata *own* and *like*'s, that of the inode."""
        with self._volume.database.transaction():
            fate = self._note(sent.id, key, stage, written, own, like)
        self._noted(sent.id, stage, fate)

    def _note(
        self,
        inode: Inode,
        key: str,
        stage: Stage,
        written: Written,
        own: Mapping[str, str],
        like: ObjectHead,
    ) -> _Fate:
        """Do what `_take_note` does to rows, in a transaction of the caller's; `_noted` does the rest when it is committed."""
        volume = self._volume
        now_ns = volume.now_ns()
        node = volume.node(inode)
        size = stage.file.size
        is_changed = attributes.differ(own, self._metadata.own(node))
        volume.journal.drop_deletes([key])
        volume.journal.end_writes(key)
        columns: dict[str, object] = {
            "etag": written.etag,
            "size": size,
            "remote_mtime_ns": written.mtime_ns,
            "attributes_known": 1,
            "attributes_dirty": int(is_changed),
            "seen_ns": now_ns,
            "remote_key": None,
        }
        if node.is_detached:
            volume.journal.add_delete(key, etag=written.etag, holder=inode, now_ns=now_ns)
            columns |= {"remote_key": key, "attributes_dirty": 0}
        else:
            before = volume.key_in_s3(node) if node.etag is not None else key
            if before != key:
                relocation.remove_object(volume, before, etag=node.etag, holder=None)
            columns["remote_key"] = relocation.remote_key(volume, node, key)
            volume.changes.note(node.parent, node.name or "")
        volume.nodes.update(inode, **columns)
        self._metadata.note_written(inode, like)
        volume.staging.describe(inode, None)
        if not node.is_detached and self._stages.may_forget(inode):
            volume.journal.forget_staged(inode)
            return _Fate.FORGOTTEN
        volume.journal.put_staged(
            inode,
            dirty=False,
            base_etag=written.etag,
            base_size=size,
            condition="match",
            now_ns=now_ns,
        )
        volume.journal.drop_upload(inode)
        if stage.file.parked and node.is_detached:
            return _Fate.STAGED
        volume.journal.unpark(volume.journal.parked(inode))
        return _Fate.BASE if stage.file.parked else _Fate.STAGED

    def _noted(self, inode: Inode, stage: Stage, fate: _Fate) -> None:
        """Do with staged data that S3 has what `_note` said in its rows."""
        if fate is _Fate.FORGOTTEN:
            self._stages.forget(inode)
            return
        stage.dirty = False
        self._stages.sent(inode)
        stage.file.rebase(stage.file.size)
        if fate is _Fate.BASE:  # what was parked is about to be deleted
            stage.file.become_base()
            stage.file.describe(None)

    def _note_failure(self, inode: Inode, row: StagedRow, error: Exception) -> None:
        delay_s = min(FIRST_RETRY_S * 2**row.tries, LAST_RETRY_S)
        is_final = isinstance(error, TooLarge)
        retry_ns = None if is_final else self._volume.now_ns() + int(delay_s * NS)
        detail = error.detail if isinstance(error, S3mgrError) else str(error)
        self._volume.journal.fail_staged(inode, detail, conflict=is_final, retry_ns=retry_ns)
        self._stages.failed(inode, retry_ns)
        node = self._volume.nodes.get(inode)
        path = self._volume.path(node) if node is not None else f"inode {inode}"
        log.warning("upload of %s failed and is kept: %s", path, detail)

    # Sending

    async def _like(self, node: Node, key: str, row: StagedRow) -> ObjectHead:
        """Return what to send besides bytes and attributes: of a version that is modified all that others put there."""
        if row.condition == "match" and node.etag is not None:
            try:
                return await self._metadata.head_of(node, self._volume.key_in_s3(node))
            except (NotFound, PreconditionFailed):
                pass  # the condition of the write itself judges that
        return _described(node, key)

    def _is_this(
        self,
        unseen: ObjectHead,
        node: Node,
        key: str,
        stage: Stage,
        metadata: Mapping[str, str],
    ) -> bool:
        """Whether a multipart upload that nobody saw succeed wrote exactly what is to be sent now."""
        row = self._volume.journal.upload(node.id)  # gone when the content has changed since
        return (
            row is not None
            and (row.key, row.size) == (key, stage.file.size)
            and unseen.size == row.size
            and _has_own(unseen, metadata)
        )

    async def _find_ours(
        self, key: str, stage: Stage, metadata: Mapping[str, str], *, was_sent: bool
    ) -> Written | None:
        """Recognise an object that an attempt of ours wrote although nobody saw the answer.

        That it has the same bytes proves nothing: two programs that make the same lock file write the same nothing into
        it. *was_sent*: a request of ours, without attributes to know it by, may have written that many bytes.
        """
        try:
            head = await self._volume.store.head(key)
        except NotFound:
            return None
        if head.size != stage.file.size:
            return None
        # The times have nanoseconds: no other writer has all of these by chance.
        is_ours = _has_own(head, metadata)
        if not is_ours and was_sent and "-" not in head.etag and len(head.etag) == 32:
            digest = await trio.to_thread.run_sync(_md5, stage.file.data_fd, head.size)
            is_ours = digest == head.etag
        return Written(head.etag, head.mtime_ns) if is_ours else None


def _described(node: Node, key: str) -> ObjectHead:
    """Return what to send with a new file: what its name says of its type."""
    name = node.name or ""
    content_type = mimetypes.guess_type(name)[0] if "." in name else None
    return ObjectHead(key, 0, "", 0, {}, content_type)


def _has_own(head: ObjectHead, metadata: Mapping[str, str]) -> bool:
    """Whether an object has all attributes that we would give it, and there are any."""
    own = {n: v for n, v in metadata.items() if n in attributes.OWN_NAMES}
    return bool(own) and all(head.metadata.get(n) == v for n, v in own.items())


def _md5(fd: int, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    position = 0
    while position < size:
        chunk = os.pread(fd, MIB, position)
        if not chunk:
            break
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()
