"""Single objects that S3 has to follow with: file renames, directory markers, attributes, symbolic links.

Every function looks at the row as it is, does what is missing in S3 under the locks of the keys concerned, and
takes note in one transaction that looks at the row again. All of them may be cancelled and repeated at any point.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from s3mgrd.cache.nodes import Inode, Kind, Marker, Node
from s3mgrd.errors import NotFound, PreconditionFailed
from s3mgrd.fs import attributes, descriptions, relocation
from s3mgrd.fs.following.resting import Leftovers
from s3mgrd.fs.following.strays import find_unseen
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.volume import Volume
from s3mgrd.s3.port import ObjectHead, Written

log = logging.getLogger(__name__)


class Objects:
    """Brings single objects of one volume up to date.

    Attributes:
        leftovers: what its moves of files have left to be deleted.
    """

    def __init__(
        self,
        volume: Volume,
        metadata: Metadata,
        kernel_holds: Callable[[Inode], bool],
    ) -> None:
        self._volume = volume
        self._metadata = metadata
        self._kernel_holds = kernel_holds
        self.leftovers: Final = Leftovers()

    # Renames

    async def place(self, inode: Inode, waiting: frozenset[Inode] = frozenset()) -> None:
        """Move a file's object to the key that its path spells.

        *waiting* are the inodes whose keys must be free first; one of them again closes a ring.
        """
        volume = self._volume
        while True:
            node = volume.nodes.get(inode)
            if node is None or node.is_detached or node.remote_key is None:
                return
            if volume.journal.is_dirty(inode):
                return  # its upload goes to the right key
            source, target = node.remote_key, volume.wanted_key(node)
            if source == target:
                volume.nodes.update(inode, remote_key=None)
                return
            if self._must_wait(node, target):
                return  # the syncer comes back when that is done
            await self.clear_key(target, inode, waiting)
            async with volume.locks.holding(("key", source), ("key", target)):
                node = volume.nodes.get(inode)
                if (
                    node is None
                    or node.is_detached
                    or node.remote_key != source
                    or volume.wanted_key(node) != target
                ):
                    continue
                if self._must_wait(node, target):
                    return  # it came back to this name through others, while the locks were waited for
                if self._claimants(target, inode):
                    continue
                await self._move(node, source, target)
                return

    def _must_wait(self, node: Node, key: str) -> bool:
        """Whether a move of directories has to end before a file's object may be written to *key*."""
        return (
            self._volume.move_around(node.parent) is not None
            or relocation.occupant(self._volume, key, is_file=True) is not None
        )

    async def clear_key(
        self, key: str, inode: Inode, waiting: frozenset[Inode] = frozenset()
    ) -> None:
        """Make the objects go that lie at *key* and belong elsewhere, so that *inode*'s may be written there."""
        while claimants := self._claimants(key, inode):
            other = claimants[0]
            if other.id in waiting:
                await self._park(other, key)
            else:
                await self.place(other.id, waiting | {inode})
                if self._claimants(key, inode) == claimants:
                    await self._park(other, key)

    def _claimants(self, key: str, inode: Inode) -> list[Node]:
        return [
            n
            for n in self._volume.nodes.with_remote_key(key)
            if n.name is not None and n.id != inode
        ]

    async def preserve(self, key: str) -> None:
        """Copy away what lies at *key* if a nameless file that is still open reads from there; before it is overwritten.

        The caller holds the lock of *key*. So a file that was replaced or removed stays readable for who has it open.
        """
        volume = self._volume
        for node in volume.nodes.with_remote_key(key):
            if node.name is not None or node.etag is None or not self._kernel_holds(node.id):
                continue
            kept = relocation.parked_name(key)
            async with volume.locks.holding(("key", kept)):
                volume.journal.begin_write(kept, size=node.size, etag=node.etag)
                try:
                    written = await volume.store.copy(
                        key,
                        kept,
                        source_size=node.size,
                        if_source_match=node.etag,
                        source_head=self._metadata.remembered(node, key),
                    )
                except (NotFound, PreconditionFailed):
                    continue  # that version is gone already
                with volume.database.transaction():
                    volume.journal.end_writes(kept)
                    current = volume.nodes.get(node.id)
                    if current is not None and current.remote_key == key:
                        volume.nodes.update(node.id, remote_key=kept, etag=written.etag)
                        volume.journal.rebase_staged(node.id, node.etag, written.etag)
                    holder = None if current is None else node.id  # None: it was let go meanwhile
                    volume.journal.add_delete(
                        kept, etag=written.etag, holder=holder, now_ns=volume.now_ns()
                    )

    async def _park(self, node: Node, key: str) -> None:
        """Copy an object out of the way: a ring of renames has no free key to begin with."""
        volume = self._volume
        parked = relocation.parked_name(volume.wanted_key(node))
        async with volume.locks.holding(("key", key), ("key", parked)):
            current = volume.nodes.get(node.id)
            if current is None or current.is_detached or current.remote_key != key:
                return
            volume.journal.begin_write(parked, size=current.size, etag=current.etag)
            written = await volume.store.copy(
                key,
                parked,
                source_size=current.size,
                if_source_match=current.etag,
                source_head=self._metadata.remembered(current, key),
            )
            with volume.database.transaction():
                volume.journal.end_writes(parked)
                current = volume.nodes.get(node.id)
                if current is None or current.is_detached or current.remote_key != key:
                    # Removed, or uploaded to where it belongs, while it was copied.
                    volume.journal.add_delete(
                        parked, etag=written.etag, holder=None, now_ns=volume.now_ns()
                    )
                    return
                # What is left there is in the way of a file that must be new, and nobody's if that is never written.
                relocation.remove_object(volume, key, etag=current.etag, holder=None)
                volume.nodes.update(node.id, remote_key=parked, etag=written.etag)
                volume.journal.rebase_staged(node.id, current.etag, written.etag)

    async def _move(self, node: Node, source: str, target: str) -> None:
        volume = self._volume
        await self.preserve(target)
        # New attributes go with the same copy: rsync and others write, set attributes, and rename.
        describes = bool(node.attributes_dirty)
        own = self._metadata.own(node)
        try:
            head = await self._metadata.head_of(node, source)
            metadata = descriptions.merged(head.metadata, own) if describes else None
            volume.journal.begin_write(
                target, size=node.size, mtime=(metadata or {}).get("mtime"), etag=node.etag
            )
            relocation.forget_copy(volume, target, by=node)
            written = await volume.store.copy(
                source,
                target,
                source_size=node.size,
                if_source_match=node.etag,
                source_head=head,
                metadata=metadata,
                content_type=head.content_type if describes else None,
            )
        except (NotFound, PreconditionFailed):
            await self._source_changed(node, source)
            return
        now_ns = volume.now_ns()
        with volume.database.transaction():
            volume.journal.drop_deletes([target])
            volume.journal.end_writes(target)
            volume.changes.note_key(target)
            current = volume.nodes.get(node.id)
            if current is None or current.is_detached or current.remote_key != source:
                # Removed or renamed back while it was copied: who has it open reads from the source.
                volume.journal.add_delete(target, etag=written.etag, holder=None, now_ns=now_ns)
                return
            volume.nodes.update(
                node.id,
                remote_key=relocation.remote_key(volume, current, target),
                etag=written.etag,
                remote_mtime_ns=written.mtime_ns,
                attributes_dirty=int(
                    bool(current.attributes_dirty)
                    and (not describes or attributes.differ(own, self._metadata.own(current)))
                ),
            )
            volume.journal.rebase_staged(node.id, current.etag, written.etag)
            relocation.remove_object(volume, source, etag=node.etag, holder=None)
            volume.changes.note(current.parent, current.name or "")
        self.leftovers.add(source)

    async def _source_changed(self, node: Node, source: str) -> None:
        """Somebody else replaced or removed the object before it was moved: the name follows what is there now."""
        volume = self._volume
        try:
            head = await volume.store.head(source)
        except NotFound:
            log.warning("%s was removed by somebody else before it could be moved", source)
            volume.detach(node)
            return
        with volume.database.transaction():
            current = volume.nodes.get(node.id)
            if current is None or current.is_detached or current.name is None:
                return
            volume.detach(current)
            volume.nodes.insert(
                current.parent, current.name, Kind.FILE, head.mtime_ns,
                size=head.size, etag=head.etag, remote_key=source, remote_mtime_ns=head.mtime_ns, seen_ns=volume.now_ns(),
            )  # fmt: skip

    # Markers

    async def mark(self, inode: Inode) -> None:
        """Write a directory's marker, with its attributes."""
        volume = self._volume
        node = volume.nodes.get(inode)
        if node is None or node.is_detached or volume.move_around(inode) is not None:
            return
        key = volume.wanted_key(node)
        if relocation.occupant(volume, key, is_file=True) is not None:
            return
        async with volume.locks.holding(("key", key)):
            node = volume.nodes.get(inode)
            if (
                node is None
                or node.is_detached
                or volume.wanted_key(node) != key
                or volume.move_around(inode) is not None
                or relocation.occupant(volume, key, is_file=True) is not None
            ):
                return
            own = self._metadata.own(node)
            like = await self._marker_before(node, key)
            metadata = descriptions.merged(like.metadata, own)
            volume.journal.begin_write(key, size=like.size, mtime=metadata.get("mtime"))
            if like.size:
                written = await volume.store.copy(
                    key,
                    key,
                    source_size=like.size,
                    source_head=like,
                    metadata=metadata,
                    content_type=like.content_type,
                )
            else:
                written = await volume.store.put(
                    key, b"", metadata=metadata, content_type=like.content_type, like=like
                )
            with volume.database.transaction():
                volume.journal.drop_deletes([key])
                volume.journal.end_writes(key)
                volume.changes.note_key(key)
                current = volume.nodes.get(inode)
                # Where S3 has yet to follow a rename that was made meanwhile, the marker goes with the rest.
                if current is None or current.is_detached or volume.prefix_in_s3(current) != key:
                    volume.journal.add_delete(
                        key, etag=written.etag, holder=None, now_ns=volume.now_ns()
                    )
                    return
                is_changed = attributes.differ(own, self._metadata.own(current))
                volume.nodes.update(
                    inode,
                    marker=int(Marker.EXISTS),
                    attributes_dirty=int(is_changed),
                    remote_mtime_ns=written.mtime_ns,
                )
                self._metadata.note_written(inode, like)
                volume.changes.note(current.parent, current.name or "")

    async def _marker_before(self, node: Node, key: str) -> ObjectHead:
        """Return what the marker that is about to be written replaces: others may have made it, even with content."""
        if node.marker == Marker.EXISTS or not node.attributes_known:
            with suppress(NotFound):
                return await self._metadata.head_of(node, key)
        return ObjectHead(key, 0, "", 0, {}, attributes.DIRECTORY_TYPE)

    # Attributes, and objects without staged data

    async def describe(self, inode: Inode) -> None:
        """Write a node's attributes to S3; a symbolic link or special file that S3 has not is made."""
        volume = self._volume
        node = volume.nodes.get(inode)
        if node is None or node.is_detached or not node.attributes_dirty:
            return
        if node.is_directory:
            await self.mark(inode)
            return
        if volume.journal.is_dirty(inode) or self._must_wait(node, volume.wanted_key(node)):
            return
        await self.place(inode)
        node = volume.nodes.get(inode)  # None at each look: removed, and forgotten by the kernel
        if node is None or node.is_detached:
            return
        while True:
            await self.clear_key(volume.wanted_key(node), inode)
            node = volume.nodes.get(inode)
            if node is None or node.is_detached or node.remote_key is not None:
                return
            key = volume.wanted_key(node)
            async with volume.locks.holding(("key", key)):
                if await self._describe_at(inode, key):
                    return

    async def _describe_at(self, inode: Inode, key: str) -> bool:
        """Write a node's attributes to *key*, whose lock is held; False: what belongs elsewhere was put there meanwhile."""
        volume = self._volume
        node = volume.nodes.get(inode)
        if (
            node is None
            or node.is_detached
            or volume.wanted_key(node) != key
            or not node.attributes_dirty
            or self._must_wait(node, key)
        ):
            return True
        if self._claimants(key, inode):
            return False
        own = self._metadata.own(node)
        if node.etag is None:
            await self.preserve(key)
            body = (node.target or "").encode()
            head = ObjectHead(key, len(body), "", 0, {})
            volume.journal.begin_write(key, size=len(body), mtime=own.get("mtime"))
            written = await volume.store.put(key, body, metadata=own)
        else:
            try:
                head = await self._metadata.head_of(node, key)
                metadata = descriptions.merged(head.metadata, own)
                volume.journal.begin_write(key, size=node.size, mtime=metadata.get("mtime"))
                written = await volume.store.copy(
                    key,
                    key,
                    source_size=node.size,
                    if_source_match=node.etag,
                    source_head=head,
                    metadata=metadata,
                    content_type=head.content_type,
                )
            except (NotFound, PreconditionFailed):
                # A copy of ours that nobody saw succeed may have another ETag than what it copied.
                found = await find_unseen(volume, key)
                if found is None or found.metadata.get("mtime") != own.get("mtime"):
                    self._lost(node)
                    return True
                head = found
                written = Written(found.etag, found.mtime_ns)
        with volume.database.transaction():
            volume.journal.drop_deletes([key])
            volume.journal.end_writes(key)
            volume.changes.note_key(key)
            current = volume.nodes.get(inode)
            if (
                current is not None
                and current.etag is not None
                and (current.etag != node.etag or volume.key_in_s3(current) != key)
            ):
                # Uploaded under another name meanwhile: what was written here is nobody's.
                volume.journal.add_delete(
                    key, etag=written.etag, holder=None, now_ns=volume.now_ns()
                )
                return True
            volume.journal.rebase_staged(inode, node.etag, written.etag)
            columns: dict[str, object] = {
                "etag": written.etag,
                "remote_mtime_ns": written.mtime_ns,
            }
            if current is None or current.is_detached:
                volume.journal.add_delete(
                    key,
                    etag=written.etag,
                    holder=None if current is None else inode,
                    now_ns=volume.now_ns(),
                )
                columns["remote_key"] = key
            elif volume.wanted_key(current) != key:
                columns["remote_key"] = key
            else:
                is_changed = attributes.differ(own, self._metadata.own(current))
                columns["attributes_dirty"] = int(is_changed)
            volume.nodes.update(inode, **columns)
            if current is not None:
                self._metadata.note_written(inode, head)
        return True

    def _lost(self, node: Node) -> None:
        """Somebody replaced the object: its new version has its own attributes."""
        log.info(
            "attributes of %s are not written: the object was replaced",
            self._volume.wanted_key(node),
        )
        self._volume.nodes.update(node.id, attributes_dirty=0)
        self._volume.distrust(node.parent)
