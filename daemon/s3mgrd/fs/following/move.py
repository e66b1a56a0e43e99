"""Directory renames: visible at once, followed by S3 in the background.

After ``rename(d, e)`` the directory's row has its new name and `remote_prefix`, where S3 still has everything.
Reads go there. A move copies every key below the old prefix to the new one, looks again until nothing new has come
(others may add objects meanwhile), then switches in one transaction: the row loses its remote_prefix, and the old keys
become pending deletes. A crash before the switch repeats only what was not copied; after it, only deletes are left.

Changes inside go on meanwhile (`s3mgrd.fs.relocation` has the rules). What could not be taken along, because something
else is at its new place or because it was being written, says from the switch on where it lies, as a renamed file does.

A move waits for one around its directory, and for one that still copies from where it would copy to. Where moves wait
for each other in a ring (two directories that were exchanged, or one that came out of another and now is around it), one
goes to a place that is nobody's name first. So does one that takes the place of a directory it was in, and has something of the
name it had there: of `a/b/` that becomes `a/`, `a/b/b/c` would be copied over `a/b/c`.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

import trio

from s3mgrd.cache.nodes import ROOT, Marker, Node
from s3mgrd.errors import NotFound, PreconditionFailed, S3mgrError, Unavailable
from s3mgrd.fs import relocation
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.moves import CopiedRow, MoveRow
from s3mgrd.s3.headers import is_ordinary
from s3mgrd.s3.port import ObjectHead, ObjectInfo

log = logging.getLogger(__name__)

MAX_PASSES: Final = 100
"""Looks at the old prefix before the switch is made nevertheless: somebody adds objects faster than they can be copied."""
COPIES: Final = 64
"""Copies at the same time, at least: the server does the work, and small ones are all waiting."""
FIRST_SAMPLES: Final = 8
SAMPLE_EVERY: Final = 64
"""A listing does not tell how objects are encrypted. The first objects of a move are asked, and one of so many after them."""
MAX_REFUSED: Final = 16
"""Objects that S3 refuses to copy before the rest is not tried: a prefix that is forbidden need not be asked 10,000 times."""


@dataclass(slots=True)
class Progress:
    """How far a move has come; what is known of it so far grows with the listing."""

    row: MoveRow
    objects: int = 0
    bytes: int = 0
    objects_done: int = 0
    bytes_done: int = 0

    def found(self, info: ObjectInfo, *, done: bool) -> None:
        """Count an object that belongs to the move."""
        self.objects += 1
        self.bytes += info.size
        if done:
            self.copied(info)

    def copied(self, info: ObjectInfo) -> None:
        """Count an object that is copied."""
        self.objects_done += 1
        self.bytes_done += info.size


class _Pass:
    """One look at everything below a move's source."""

    def __init__(self, row: MoveRow, limit: int) -> None:
        self.row = row
        self.limiter = trio.CapacityLimiter(limit)
        self.news = 0
        """Objects copied, or found to be another version: there may be more."""
        self.left: list[str] = []
        """Keys that are not taken along."""
        self.refused: list[S3mgrError] = []
        self.is_in_its_own_way = False
        """Something would be copied to where the move copies from."""
        self.begun = 0
        self.is_ordinary = True
        """Nobody who was asked has anything that a copy would lose if it were not told."""


class Mover:
    """Makes S3 follow directory renames of one volume. `preserve` keeps what is open under no name before it is overwritten."""

    def __init__(
        self, volume: Volume, metadata: Metadata, preserve: Callable[[str], Awaitable[None]]
    ) -> None:
        self._volume = volume
        self._metadata = metadata
        self._preserve = preserve
        self._progress: dict[int, Progress] = {}

    def progress(self, row: MoveRow) -> Progress:
        """Return how far a move has come."""
        found = self._progress.get(row.inode)
        if found is None or found.row != row:
            found = self._progress[row.inode] = Progress(row)
        return found

    async def follow(self, inode: int) -> None:
        """Bring S3 to where the tree is, or as far as can be now. May be cancelled and repeated at any point.

        Raises:
            S3mgrError: S3 did not do it; what was copied is remembered.
        """
        volume = self._volume
        row, node = volume.moves.get(inode), volume.nodes.get(inode)
        if row is None:
            relocation.settle(volume, inode)
            return
        if node is None or node.is_detached or node.remote_prefix != row.source:
            with volume.database.transaction():
                relocation.abandon(volume, row)
            return
        if self._waits_for(row) is None:
            self._step_aside(row)
        elif not self.is_waiting(row):
            await self._copy_all(row)

    def _step_aside(self, row: MoveRow) -> None:
        """Have a move go to a place of its own in the mount's root first, where it is inside of nothing that moves."""
        volume = self._volume
        place = f"{volume.settings.prefix}{row.source.rstrip('/').rpartition('/')[2]}/"
        with volume.database.transaction():
            relocation.retarget(volume, row, relocation.parked_name(place))

    def is_waiting(self, row: MoveRow) -> bool:
        """Whether other moves have to be made before this one."""
        node = self._volume.nodes.get(row.inode)
        return node is not None and not node.is_detached and bool(self._waits_for(row))

    def _waits_for(self, row: MoveRow) -> list[MoveRow] | None:
        """Return the moves that must be made before *row*, one waiting for the next; None: a ring that *row* must break.

        It does so by leaving its place, so it is one that another waits for because of that, and not because it is around that.
        """
        chain: list[MoveRow] = []
        in_the_way: list[int] = []
        rows = self._volume.moves.all()
        current = row
        while True:
            outer = self._around(current, rows)
            following = outer or self._in_the_way(current, rows)
            if following is None or following in chain:
                return chain
            if outer is None:
                in_the_way.append(following.inode)
            current = following
            chain.append(current)
            if current == row:
                return None if row.inode == min(in_the_way) else chain

    def _around(self, row: MoveRow, rows: list[MoveRow]) -> MoveRow | None:
        """Return a move of a directory around that of *row*, if it goes to a name inside of that."""
        volume = self._volume
        node = volume.nodes.get(row.inode)
        if node is None or node.is_detached or row.target != volume.wanted_key(node):
            return None
        around = {row.inode: row for row in rows}
        while node.id != ROOT:
            node = volume.node(node.parent)
            if node.id in around:
                return around[node.id]
        return None

    def _in_the_way(self, row: MoveRow, rows: list[MoveRow]) -> MoveRow | None:
        """Return a move that still copies from where *row* would copy to."""
        for other in rows:
            if other.inode != row.inode and (
                other.source.startswith(row.target) or row.target.startswith(other.source)
            ):
                return other
        return None

    async def _copy_all(self, row: MoveRow) -> None:
        volume = self._volume
        for number in range(MAX_PASSES):
            planned = volume.moves.all()
            look = _Pass(row, max(volume.settings.concurrency, COPIES))
            begun = volume.changes.begin()
            try:
                await self._look(look, is_first=number == 0)
                is_written = volume.changes.is_newer_below(row.source, begun)
            finally:
                volume.changes.end()
            if volume.moves.get(row.inode) != row:
                return  # renamed again or back: the syncer comes back
            if look.is_in_its_own_way:
                self._step_aside(row)
                return
            if look.refused:
                raise look.refused[0]
            if not look.news and not is_written and volume.moves.all() == planned:
                break
        # No checkpoint between the last look and the switch.
        if self._around(row, volume.moves.all()) is None:
            self._switch(row, look.left)

    async def _look(self, look: _Pass, *, is_first: bool) -> None:
        """Copy what lies below the source and is not copied yet."""
        volume, row = self._volume, look.row
        progress = self.progress(row)
        if is_first:
            progress = self._progress[row.inode] = Progress(row)
        token: str | None = None
        async with side_by_side() as nursery:
            while True:
                page = await volume.store.list_page(row.source, delimited=False, token=token)
                done: dict[str, str] = {}
                if page.objects:
                    done = volume.moves.copied_between(
                        row.inode, page.objects[0].key, page.objects[-1].key
                    )
                # What nobody here wants is not taken along: it would come back under the new name.
                strays = volume.strays_below(row.source) | volume.journal.deletes_below(row.source)
                moves = volume.moves.all()
                for info in page.objects:
                    # What changes while others are copied, `_copy` finds.
                    if info.key in strays or relocation.is_others(moves, row, info.key):
                        look.left.append(info.key)
                        continue
                    is_done = done.get(info.key) == info.etag
                    if is_first or not is_done:
                        progress.found(info, done=is_done)
                    if is_done:
                        continue
                    if row.target_of(info.key).startswith(row.source):
                        look.is_in_its_own_way = True
                        return
                    await look.limiter.acquire_on_behalf_of(info.key)
                    if len(look.refused) >= MAX_REFUSED:
                        return
                    nursery.start_soon(self._copy, look, info)
                token = page.next_token
                if token is None or volume.moves.get(row.inode) != row:
                    return

    async def _copy(self, look: _Pass, info: ObjectInfo) -> None:
        volume, row = self._volume, look.row
        target = row.target_of(info.key)
        things: tuple[Hashable, ...] = (("key", info.key), ("key", target))
        try:
            async with volume.locks.holding(*things):
                if not self._is_wanted(row, info.key) or self._is_taken(target):
                    look.left.append(info.key)
                    return
                await self._preserve(target)
                node = self._find(row, info.key)
                head = await self._head(look, info, node)
                volume.journal.begin_write(target, size=info.size, etag=info.etag)
                written = await volume.store.copy(
                    info.key,
                    target,
                    source_size=info.size,
                    if_source_match=info.etag,
                    source_head=head,
                )
                look.news += 1
                with volume.database.transaction():
                    self._take_note(row, info, target, written.etag, node)
        except (NotFound, PreconditionFailed):
            # Removed or replaced by somebody else since the listing: the next pass sees what is there.
            look.news += 1
            log.debug("%s changed while it was being moved", info.key)
        except Unavailable:
            raise
        except S3mgrError as error:
            look.refused.append(error)
        finally:
            look.limiter.release_on_behalf_of(info.key)

    async def _head(self, look: _Pass, info: ObjectInfo, node: Node | None) -> ObjectHead:
        """Return what a copy has to be told of its source: as remembered, as S3 says, or as of its neighbours."""
        if node is not None and (node.is_directory or node.etag == info.etag):
            known = self._metadata.remembered(node, info.key)
            if known is not None:
                return known
        look.begun += 1
        if look.is_ordinary and look.begun > FIRST_SAMPLES and look.begun % SAMPLE_EVERY:
            return ObjectHead(
                info.key, info.size, info.etag, info.mtime_ns, {},
                storage_class=None if info.storage_class == "STANDARD" else info.storage_class,
            )  # fmt: skip
        head = await self._volume.store.head(info.key)
        if head.etag != info.etag:
            raise PreconditionFailed(f"{info.key} was replaced")
        look.is_ordinary = look.is_ordinary and is_ordinary(head)
        return head

    def _is_wanted(self, row: MoveRow, key: str) -> bool:
        volume = self._volume
        moves = volume.moves.all()
        return (
            row in moves
            and not relocation.is_others(moves, row, key)
            and volume.journal.pending_delete(key) is None
        )

    def _is_taken(self, target: str) -> bool:
        """Whether something that a name here leads to lies where a copy would go."""
        return any(n.name is not None for n in self._volume.nodes.with_remote_key(target))

    def _take_note(
        self, row: MoveRow, info: ObjectInfo, target: str, etag: str, node: Node | None
    ) -> None:
        """Note a copy that was made; *node* is what lay there before it began."""
        volume = self._volume
        volume.journal.drop_deletes([target])
        volume.journal.end_writes(target)
        volume.changes.note_key(target)
        if not self._is_wanted(row, info.key):
            # Removed or renamed while it was copied.
            volume.journal.add_delete(target, etag=etag, holder=None, now_ns=volume.now_ns())
            return
        volume.moves.add_copied(row.inode, CopiedRow(info.key, info.etag, etag))
        self.progress(row).copied(info)
        if node is not None:
            # The copy has another date, and is not another version for that.
            volume.nodes.forget_date(node.id, info.etag)

    def _find(self, row: MoveRow, key: str) -> Node | None:
        """Return what lies at *key* below the source, by the names in the directory now."""
        *above, name = key[len(row.source) :].split("/")
        node = self._volume.nodes.find_below(row.inode, [*above, name] if name else above)
        if node is None or node.is_directory != (not name) or self._volume.place(node) != key:
            return None
        is_elsewhere = node.remote_key is not None or node.remote_prefix is not None
        return None if is_elsewhere and node.id != row.inode else node

    def _switch(self, row: MoveRow, left: list[str]) -> None:
        """Take the target for where the contents are; what is *left* says itself where it is."""
        volume = self._volume
        with volume.database.transaction():
            node = volume.node(row.inode)
            for key in left:
                self._pin(row, key)
            marker = Marker.NONE
            if volume.moves.copied_key(row.inode, row.source) is not None:
                marker = Marker.EXISTS
            is_empty = not volume.nodes.count_children(row.inode, limit=1)
            if node.marker == Marker.WANTED or (
                is_empty and not volume.moves.count_copied(row.inode)
            ):
                # It was made here and not sent before the rename, or S3 had nothing any more.
                marker = Marker.WANTED
            volume.moves.carry_misplaced(row)
            for copied in volume.moves.changed_versions(row.inode):
                # A copy has another ETag than its source (multipart, encryption) and is still the same version.
                found = self._find(row, copied.key)
                if found is not None and found.etag == copied.etag:
                    volume.nodes.update(found.id, etag=copied.new_etag)
                    volume.journal.rebase_staged(found.id, copied.etag, copied.new_etag)
            volume.moves.delete_sources(row.inode, now_ns=volume.now_ns())
            volume.moves.drop(row.inode)
            wanted = volume.wanted_key(node)
            if row.target == wanted:
                volume.nodes.update(node.id, remote_prefix=None, marker=int(marker))
                relocation.settle(volume, row.inode)
            else:
                volume.nodes.update(node.id, remote_prefix=row.target, marker=int(marker))
                relocation.put_move(volume, row._replace(source=row.target, target=wanted))
            volume.changes.note(row.source_parent, row.source_name)
            if node.name is not None:
                volume.changes.note(node.parent, node.name)
        self._progress.pop(row.inode, None)

    def _pin(self, row: MoveRow, key: str) -> None:
        node = self._find(row, key)
        if node is None or self._volume.journal.pending_delete(key) is not None:
            return
        if not node.is_directory:
            if node.etag is not None:
                self._volume.nodes.update(node.id, remote_key=key)
        elif node.id != row.inode and node.marker == Marker.EXISTS:
            self._volume.nodes.update(node.id, marker=int(Marker.WANTED))
