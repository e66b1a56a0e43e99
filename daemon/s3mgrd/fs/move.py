"""Directory renames: visible at once, followed by S3 in the background.

After ``rename(d, e)`` the directory's row has its new name and `remote_prefix`, where S3 still has everything.
Reads go there. A move copies every key below the old prefix to the new one, looks again until nothing new has come
(others may add objects meanwhile), then switches in one transaction: the row loses its remote_prefix, and the old keys
become pending deletes. A crash before the switch repeats only what was not copied; after it, only deletes are left.

Changes inside the directory wait until the switch (`Volume.move_around`): so nothing is written to a place that
the move is about to write too.
"""

import logging
from typing import Final

import trio

from s3mgrd.cache.nodes import Marker, Node
from s3mgrd.errors import NotFound, PreconditionFailed
from s3mgrd.fs.metadata import Metadata
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.tables import MoveRow
from s3mgrd.s3.port import ObjectHead, ObjectInfo

log = logging.getLogger(__name__)

MAX_PASSES: Final = 100
"""Looks at the old prefix before giving up for now: somebody adds objects faster than they can be copied."""


class Mover:
    """Makes S3 follow directory renames of one volume."""

    def __init__(self, volume: Volume, metadata: Metadata) -> None:
        self._volume = volume
        self._metadata = metadata

    async def follow(self, row: MoveRow) -> None:
        """Bring S3 to where the tree is. May be cancelled and repeated at any point.

        Raises:
            S3mgrError: S3 did not do it; what was copied is remembered.
        """
        node = self._volume.nodes.get(row.inode)
        if node is not None and node.remote_prefix == row.source:
            for _ in range(MAX_PASSES):
                if not await self._pass(row):
                    break
            self._switch(row)
        else:
            self._volume.journal.drop_move(row.inode)
        event = self._volume.moving.pop(row.inode, None)
        if event is not None:
            event.set()

    async def _pass(self, row: MoveRow) -> int:
        """Copy what lies below the source and is not copied yet; returns how many objects that were."""
        volume = self._volume
        limiter = trio.CapacityLimiter(volume.settings.concurrency)
        copied = 0
        token: str | None = None
        async with side_by_side() as nursery:
            while True:
                page = await volume.store.list_page(row.source, delimited=False, token=token)
                done = volume.journal.moved(row.inode)
                # What nobody here wants is not taken along: it would come back under the new name.
                deleted = volume.journal.deletes_below(row.source) | volume.strays_below(row.source)
                for info in page.objects:
                    if info.key in deleted or done.get(info.key, ("",))[0] == info.etag:
                        continue
                    copied += 1
                    await limiter.acquire_on_behalf_of(info.key)
                    nursery.start_soon(self._copy, row, info, limiter)
                token = page.next_token
                if token is None:
                    return copied

    async def _copy(self, row: MoveRow, info: ObjectInfo, limiter: trio.CapacityLimiter) -> None:
        volume = self._volume
        target = row.target + info.key[len(row.source) :]
        try:
            async with volume.locks.holding(("key", info.key), ("key", target)):
                head = await self._head(info, target)
                volume.journal.begin_write(target, size=info.size, etag=info.etag)
                written = await volume.store.copy(
                    info.key,
                    target,
                    source_size=info.size,
                    if_source_match=info.etag,
                    source_head=head,
                )
                with volume.database.transaction():
                    volume.journal.drop_deletes([target])
                    volume.journal.end_writes(target)
                    volume.journal.add_moved(row.inode, info.key, info.etag, written.etag)
                    volume.changes.note_key(target)
        except (NotFound, PreconditionFailed):
            # Removed or replaced by somebody else since the listing: the next pass sees what is there.
            log.debug("%s changed while it was being moved", info.key)
        finally:
            limiter.release_on_behalf_of(info.key)

    async def _head(self, info: ObjectInfo, target: str) -> ObjectHead | None:
        """Return what is known of an object or, where a name leads to it, remember it; None: the copy asks for itself."""
        node = self._volume.named_at(target)
        if node is None or (not node.is_directory and node.etag != info.etag):
            return None
        return await self._metadata.head_of(node, info.key)

    def _switch(self, row: MoveRow) -> None:
        volume = self._volume
        moved = volume.journal.moved(row.inode)
        now_ns = volume.now_ns()
        with volume.database.transaction():
            node = volume.node(row.inode)
            marker = Marker.EXISTS if row.source in moved else Marker.NONE
            if node.marker == Marker.WANTED or not moved:
                # It was made here and not sent before the rename, or S3 had nothing any more.
                marker = Marker.WANTED
            volume.nodes.update(node.id, remote_prefix=None, marker=int(marker))
            node = volume.node(row.inode)
            for key, (etag, new_etag) in moved.items():
                for other in volume.nodes.with_remote_key(key):
                    self._update_misplaced(other, row, key, new_etag)
                if etag != new_etag:
                    self._update_etag(node, key[len(row.source) :], etag, new_etag)
                volume.journal.add_delete(key, etag=etag, holder=None, now_ns=now_ns)
            volume.journal.drop_move(row.inode)
            volume.changes.note(row.source_parent, row.source_name)
            if node.name is not None:
                volume.changes.note(node.parent, node.name)

    def _update_misplaced(self, node: Node, row: MoveRow, key: str, new_etag: str) -> None:
        """A row that said where its object lay: it lies at the target now."""
        target = row.target + key[len(row.source) :]
        is_home = node.name is not None and self._volume.wanted_key(node) == target
        self._volume.nodes.update(node.id, remote_key=None if is_home else target, etag=new_etag)

    def _update_etag(self, directory: Node, path: str, etag: str, new_etag: str) -> None:
        """A copy has another ETag than its source (multipart, encryption) and is still the same version."""
        node: Node | None = directory
        for name in path.split("/"):
            node = self._volume.nodes.find(node.id, name) if node is not None else None
        if node is not None and node.etag == etag and node.remote_key is None:
            self._volume.nodes.update(node.id, etag=new_etag, remote_mtime_ns=None)
