"""What requests may have left in S3 unseen: by a worker that died before the answer came, or without any answer.

Before a request that writes a key is sent, a row of `writes` says so; the transaction that takes note of its success
drops the row. A row that is left over matters in two ways. As long as a name here wants the key, the work is still
pending and will be done again, and a condition that fails then may have failed because of ourselves (`find_unseen`).
Once no name wants it any more (the file was renamed or removed meanwhile), whatever the request wrote there
is a stray: it is not shown (`Volume.strays_below`) and, if it is ours, deleted.

What does not lie there may still come. A request that was sent whole is carried out although its sender died or gave up, by
bytes that are on their way, or by a server that is slow. So a key at which nothing is found is looked at again `GRACE_S` later.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from s3mgrd.cache.nodes import Marker, Node
from s3mgrd.errors import NotFound
from s3mgrd.fs.relocation import PARKED
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.moves import MoveRow
from s3mgrd.journal.tables import WriteRow
from s3mgrd.s3.port import ObjectHead

log = logging.getLogger(__name__)

GRACE_S: Final = 2.0
"""So long after its end was given up a request may still be carried out."""


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
        self._again_at: dict[str, float] = {}
        """When to look again, trio time, by the keys at which nothing was found."""

    def again_at(self, key: str) -> float:
        """Return before which time, on trio's clock, there is no use in resolving *key*."""
        return self._again_at.get(key, 0.0)

    def pending(self) -> list[str]:
        """Return the keys that are left to resolve: no request is writing them, and no other work will."""
        volume = self._volume
        keys = volume.journal.writes_below(volume.settings.prefix)
        moves = volume.moves.all() if keys else []
        pending = [key for key in keys if self._is_pending(key, moves)]
        self._again_at = {key: self._again_at[key] for key in pending if key in self._again_at}
        return pending

    def _is_pending(self, key: str, moves: Sequence[MoveRow]) -> bool:
        volume = self._volume
        if volume.locks.is_held(("key", key)):
            return False
        if any(key.startswith((move.source, move.target)) for move in moves):
            return False
        node = volume.named_at(key)
        if node is None:
            return not self._is_in_use(key)
        return not self._is_wanted(node)

    def _is_in_use(self, key: str) -> bool:
        """Whether a name here leads to what lies at *key*, though its path spells another."""
        return any(node.name is not None for node in self._volume.nodes.with_remote_key(key))

    def _is_wanted(self, node: Node) -> bool:
        """Whether work is pending that writes the key of *node*."""
        if node.is_directory:
            return node.marker == Marker.WANTED or bool(node.attributes_dirty)
        return self._volume.has_newer_attributes(node) or node.remote_key is not None

    async def resolve(self, key: str) -> None:
        """Delete what a request of ours left at *key* if no name leads there. May be repeated at any point.

        Where nothing is left, the key stays pending for `GRACE_S`.
        """
        volume = self._volume
        async with volume.locks.holding(("key", key)):
            node = volume.named_at(key)
            if self._is_wanted(node) if node is not None else self._is_in_use(key):
                return
            if node is None:
                found = await find_unseen(volume, key)
                if volume.named_at(key) is not None or self._is_in_use(key):
                    return  # somebody made it anew while we asked; this comes back
                if found is not None:
                    log.info("%s was written before a name of it went away, and is deleted", key)
                    await volume.store.delete(key)
                elif trio.current_time() < self._again_at.setdefault(
                    key, trio.current_time() + GRACE_S
                ):
                    return
            self._again_at.pop(key, None)
            volume.journal.end_writes(key)
            volume.changes.note_key(key)
