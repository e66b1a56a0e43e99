"""What requests may have left in S3 unseen: by a worker that died before the answer came, or without any answer.

Before a request that writes a key is sent, a row of `writes` says so; the transaction that takes note of its success
drops the row. A row that is left over matters in two ways. As long as a name here wants the key, the work is still
pending and will be done again, and a condition that fails then may have failed because of ourselves (`find_unseen`).
Once no name wants it any more (the file was renamed or removed meanwhile), whatever the request wrote there
is a stray: it is not shown (`Volume.strays_below`) and, if it is ours, deleted.
"""

import logging
from collections.abc import Iterator

from s3mgrd.cache.nodes import Marker, Node
from s3mgrd.errors import NotFound
from s3mgrd.fs.relocation import PARKED
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.tables import WriteRow
from s3mgrd.s3.port import ObjectHead

log = logging.getLogger(__name__)


async def find_unseen(volume: Volume, key: str) -> ObjectHead | None:
    """Return what lies at *key* if a request of ours may have written it unseen; None: it did not."""
    rows = volume.journal.writes_of(key)
    if not rows:
        return None
    try:
        head = await volume.store.head(key)
    except NotFound:
        return None
    return head if any(_is_of(row, head) for row in rows) else None


def _is_of(row: WriteRow, head: ObjectHead) -> bool:
    if head.size != row.size:
        return False
    if PARKED in row.key:
        return True  # a name that only we can have made
    if row.mtime is not None:
        # It has nanoseconds: no other writer has the same by chance.
        return head.metadata.get("mtime") == row.mtime
    # Where nothing proves it, it counts as somebody else's: an object too many is better than one too few.
    return row.etag is not None and head.etag == row.etag


class Strays:
    """Finds and resolves the writes of one volume that nobody saw end."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def pending(self) -> Iterator[str]:
        """Yield the keys to resolve now: no request is writing them, and no other work will."""
        volume = self._volume
        keys = volume.journal.writes_below(volume.settings.prefix)
        moves = volume.moves.all() if keys else []
        for key in keys:
            if volume.locks.is_held(("key", key)):
                continue
            if any(key.startswith((move.source, move.target)) for move in moves):
                continue
            node = volume.named_at(key)
            if node is None and self._is_in_use(key):
                continue
            if node is None or not self._is_wanted(node):
                yield key

    def _is_in_use(self, key: str) -> bool:
        """Whether a name here leads to what lies at *key*, though its path spells another."""
        return any(node.name is not None for node in self._volume.nodes.with_remote_key(key))

    def _is_wanted(self, node: Node) -> bool:
        """Whether work is pending that writes the key of *node*."""
        if node.is_directory:
            return node.marker == Marker.WANTED or bool(node.attributes_dirty)
        return self._volume.has_newer_attributes(node) or node.remote_key is not None

    async def resolve(self, key: str) -> None:
        """Delete what a request of ours left at *key* if no name leads there. May be repeated at any point."""
        volume = self._volume
        async with volume.locks.holding(("key", key)):
            node = volume.named_at(key)
            if self._is_wanted(node) if node is not None else self._is_in_use(key):
                return
            if node is None and await find_unseen(volume, key) is not None:
                if volume.named_at(key) is not None or self._is_in_use(key):
                    return  # somebody made it anew while we asked; this comes back
                log.info("%s was written before a name of it went away, and is deleted", key)
                await volume.store.delete(key)
            volume.journal.end_writes(key)
            volume.changes.note_key(key)
