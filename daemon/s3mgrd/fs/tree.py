"""Changes of the tree: made in mount.db at once, in one transaction each; S3 follows (`s3mgrd.fs.sync`).

A change is acknowledged when its transaction is committed: it then survives the worker. Every function takes
`record`, which is called inside that transaction with the resulting inode (or 0), so that a request that the kernel
repeats after a crash is recognised (`s3mgrd.worker.ring`).

Between the last look at the names and the transaction there is no checkpoint.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from s3mgrd.cache.nodes import STALE_NS, Inode, Kind, Marker, Node
from s3mgrd.errors import TimedOut
from s3mgrd.fs import names
from s3mgrd.fs.namespace import Namespace
from s3mgrd.fs.recovery import note_purpose
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.tables import MoveRow

Record = Callable[[Inode], None]

RENAME_NOREPLACE: Final = 1
NOBODY: Final = Inode(0)


@dataclass(frozen=True, slots=True)
class Creator:
    """Who makes something, and with which mode (type bits taken off, umask applied)."""

    uid: int
    gid: int
    mode: int


class Tree:
    """Changes names and attributes of one volume. `wake` tells whoever brings S3 up to date that there is work."""

    def __init__(self, volume: Volume, namespace: Namespace, wake: Callable[[], None]) -> None:
        self._volume = volume
        self._namespace = namespace
        self._wake = wake

    # Making

    async def create(
        self, parent: Inode, name: str, who: Creator, record: Record, *, exclusive: bool
    ) -> Node:
        """Make an empty file that S3 gets at close; an existing one is returned unless *exclusive*.

        Raises:
            OSError: EEXIST, EISDIR, EROFS, ENAMETOOLONG.
        """
        await self._ready(parent, name)
        node = await self._namespace.lookup(parent, name)
        if node is not None:
            if exclusive:
                raise _os_error(errno.EEXIST)
            if node.is_directory:
                raise _os_error(errno.EISDIR)
            return node
        with self._volume.database.transaction():
            inode = self._insert(parent, name, Kind.FILE, who)
            self._volume.journal.put_staged(
                inode,
                dirty=True,
                base_etag=None,
                base_size=0,
                condition="absent" if exclusive else "always",
                now_ns=self._volume.now_ns(),
            )
            self._volume.staging.create(inode, 0).close()
            note_purpose(self._volume, inode)
            record(inode)
        return self._volume.node(inode)

    async def mkdir(self, parent: Inode, name: str, who: Creator, record: Record) -> Node:
        """Make a directory. Raises OSError: EEXIST, EROFS, ENAMETOOLONG."""
        await self._must_be_free(parent, name)
        mode = who.mode | (self._volume.mode(self._volume.node(parent)) & stat.S_ISGID)
        with self._volume.database.transaction():
            who = Creator(who.uid, who.gid, mode)
            inode = self._insert(parent, name, Kind.DIRECTORY, who, marker=int(Marker.WANTED))
            self._volume.nodes.update(inode, listed_ns=self._volume.now_ns())
            record(inode)
        self._wake()
        return self._volume.node(inode)

    async def symlink(
        self, parent: Inode, name: str, target: str, who: Creator, record: Record
    ) -> Node:
        """Make a symbolic link. Raises OSError: EEXIST, EROFS, ENAMETOOLONG."""
        await self._must_be_free(parent, name)
        with self._volume.database.transaction():
            inode = self._insert(
                parent, name, Kind.SYMLINK, who,
                target=target, size=len(target.encode()), attributes_dirty=1,
            )  # fmt: skip
            record(inode)
        self._wake()
        return self._volume.node(inode)

    async def mknod(
        self, parent: Inode, name: str, st_mode: int, rdev: int, who: Creator, record: Record
    ) -> Node:
        """Make an empty file, FIFO, socket or device node. Raises OSError: EEXIST, EROFS, ENAMETOOLONG."""
        await self._must_be_free(parent, name)
        bits = stat.S_IFMT(st_mode)
        with self._volume.database.transaction():
            if bits in (0, stat.S_IFREG):
                inode = self._insert(parent, name, Kind.FILE, who, attributes_dirty=1)
            else:
                inode = self._insert(
                    parent, name, Kind.SPECIAL, who, special=bits, rdev=rdev, attributes_dirty=1
                )
            record(inode)
        self._wake()
        return self._volume.node(inode)

    # Removing

    async def unlink(self, parent: Inode, name: str, record: Record) -> None:
        """Remove a name that is not a directory's. Who has the file open keeps it. Raises OSError: ENOENT, EISDIR, EROFS."""
        await self._ready(parent, name)
        node = await self._namespace.existing(parent, name)
        if node.is_directory:
            raise _os_error(errno.EISDIR)
        with self._volume.database.transaction():
            self._remove_file(node)
            self._left(parent, name)
            record(NOBODY)
        self._wake()

    async def rmdir(self, parent: Inode, name: str, record: Record) -> None:
        """Remove an empty directory. Raises OSError: ENOENT, ENOTDIR, ENOTEMPTY, EROFS."""
        await self._ready(parent, name)
        node = await self._namespace.existing(parent, name)
        if not node.is_directory:
            raise _os_error(errno.ENOTDIR)
        await self.settled(node.id)
        if not await self._namespace.is_empty(node):
            raise _os_error(errno.ENOTEMPTY)
        node = self._still(parent, name, node)
        if self._volume.nodes.count_children(node.id, limit=1):
            raise _os_error(errno.ENOTEMPTY)
        with self._volume.database.transaction():
            self._remove_directory(node)
            self._left(parent, name)
            record(NOBODY)
        self._wake()

    # Renaming

    async def rename(
        self, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int, record: Record
    ) -> None:
        """Rename a file or directory.

        Raises:
            OSError: ENOENT, EEXIST (NOREPLACE), EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself, or flags), EROFS,
                ENAMETOOLONG (also where a name below would exceed the limit of keys).
        """
        if flags & ~RENAME_NOREPLACE:
            raise _os_error(errno.EINVAL)
        await self._ready(parent, name)
        await self._ready(new_parent, new_name)
        node = await self._namespace.existing(parent, name)
        target = await self._namespace.lookup(new_parent, new_name)
        if target is not None and flags & RENAME_NOREPLACE:
            raise _os_error(errno.EEXIST)
        if target is not None and target.id == node.id:
            return
        if node.is_directory:
            await self.settled(node.id)
            await self._settled_within(node.id)
            if self._volume.is_below(self._volume.node(new_parent), node.id):
                raise _os_error(errno.EINVAL)
        if target is not None:
            await self._check_replaceable(node, target)
        # No checkpoint from here on: both names are looked at once more, then changed.
        node = self._still(parent, name, node)
        target = self._volume.nodes.find(new_parent, new_name)
        prefix = self._volume.wanted_key(self._volume.directory(new_parent)) + new_name
        self._check_lengths(node, prefix)
        with self._volume.database.transaction():
            if target is not None:
                self._replace(node, target)
            if node.is_directory:
                self._move_directory(node, new_parent, new_name)
            else:
                self._move_file(node, new_parent, new_name)
            self._left(parent, name)
            self._came(new_parent, new_name)
            record(NOBODY)
        self._wake()

    async def _check_replaceable(self, node: Node, target: Node) -> None:
        if node.is_directory and not target.is_directory:
            raise _os_error(errno.ENOTDIR)
        if not node.is_directory and target.is_directory:
            raise _os_error(errno.EISDIR)
        if target.is_directory and not await self._namespace.is_empty(target):
            raise _os_error(errno.ENOTEMPTY)

    def _replace(self, node: Node, target: Node) -> None:
        if target.is_directory != node.is_directory:
            raise _os_error(errno.EBUSY)  # somebody exchanged it while we asked S3
        if target.is_directory:
            if self._volume.nodes.count_children(target.id, limit=1):
                raise _os_error(errno.ENOTEMPTY)
            self._remove_directory(target)
        else:
            self._remove_file(target)

    def _move_file(self, node: Node, new_parent: Inode, new_name: str) -> None:
        volume = self._volume
        lies_at = volume.key_in_s3(node) if node.etag is not None else None
        belongs_at = volume.wanted_key(volume.directory(new_parent)) + new_name
        volume.nodes.update(
            node.id,
            parent=new_parent,
            name=new_name,
            ctime_ns=volume.now_ns(),
            remote_key=None if lies_at == belongs_at else lies_at,
        )
        staged = volume.journal.staged(node.id)
        if staged is not None and staged.dirty:
            # The condition was about the old name; under the new one rename() already decided who wins.
            volume.journal.set_condition(node.id, "always")
            note_purpose(volume, node.id)

    def _move_directory(self, node: Node, new_parent: Inode, new_name: str) -> None:
        volume = self._volume
        source = volume.prefix_in_s3(node)
        volume.nodes.update(node.id, parent=new_parent, name=new_name, ctime_ns=volume.now_ns())
        if not self._is_in_s3(node):
            return
        volume.nodes.update(node.id, remote_prefix=source)
        target = volume.wanted_key(volume.node(node.id))
        volume.journal.add_move(
            MoveRow(node.id, source, target, node.parent, node.name or "", volume.now_ns())
        )
        volume.moving[node.id] = trio.Event()

    def _is_in_s3(self, directory: Node) -> bool:
        """Whether S3 may have anything below a directory."""
        volume = self._volume
        if directory.marker == Marker.EXISTS or directory.listed_ns <= STALE_NS:
            return True
        if volume.nodes.has_hidden(directory.id) or volume.locks.is_held(
            ("key", volume.prefix_in_s3(directory))
        ):
            return True
        after = 0
        while children := volume.nodes.children(directory.id, after=after):
            for child in children:
                if child.is_directory and self._is_in_s3(child):
                    return True
                if not child.is_directory and (
                    child.etag is not None or volume.locks.is_held(("key", volume.key_in_s3(child)))
                ):
                    return True
            after = children[-1].id
        return False

    def _check_lengths(self, node: Node, key: str) -> None:
        """Refuse a rename that would make a known key too long."""
        names.check_key(key + "/" if node.is_directory else key)
        if not node.is_directory:
            return
        after = 0
        while children := self._volume.nodes.children(node.id, after=after):
            for child in children:
                self._check_lengths(child, f"{key}/{child.name}")
            after = children[-1].id

    # Shared steps

    def check_writable(self) -> None:
        """Refuse on read-only mounts. Raises OSError(EROFS)."""
        if self._volume.settings.read_only:
            raise _os_error(errno.EROFS)

    async def _ready(self, parent: Inode, name: str) -> None:
        """Refuse on read-only mounts, and wait for a directory rename that S3 has yet to follow around *parent* or from *name*."""
        self.check_writable()
        await self.settled(parent)
        while self._volume.moving:
            leaving = [
                move.inode
                for move in self._volume.journal.moves()
                if (move.source_parent, move.source_name) == (parent, name)
            ]
            if not leaving or leaving[0] not in self._volume.moving:
                return
            await self._wait(self._volume.moving[leaving[0]])

    async def settled(self, directory: Inode) -> None:
        """Wait until no rename of *directory* or around it is pending in S3. Raises `TimedOut`."""
        while (event := self._volume.move_around(directory)) is not None:
            await self._wait(event)

    async def _settled_within(self, directory: Inode) -> None:
        while (event := self._volume.move_within(directory)) is not None:
            await self._wait(event)

    async def _wait(self, event: trio.Event) -> None:
        with trio.move_on_after(self._volume.settings.retry_deadline_s):
            await event.wait()
            return
        raise TimedOut(
            "a directory's rename is not finished in S3 yet, and changes inside it have to wait"
        )

    async def _must_be_free(self, parent: Inode, name: str) -> None:
        await self._ready(parent, name)
        if await self._namespace.lookup(parent, name) is not None:
            raise _os_error(errno.EEXIST)

    def _insert(
        self, parent: Inode, name: str, kind: Kind, who: Creator, **columns: object
    ) -> Inode:
        volume = self._volume
        directory = volume.directory(parent)
        key = volume.wanted_key(directory) + name
        names.check_key(key + "/" if kind == Kind.DIRECTORY else key)
        if volume.nodes.find(parent, name) is not None:
            raise _os_error(errno.EEXIST)
        now_ns = volume.now_ns()
        gid = volume.owner(directory)[1] if volume.mode(directory) & stat.S_ISGID else who.gid
        inode = volume.nodes.insert(
            parent, name, kind, now_ns,
            mode=who.mode, uid=who.uid, gid=gid, ctime_ns=now_ns, seen_ns=now_ns, attributes_known=1, **columns,
        )  # fmt: skip
        self._came(parent, name)
        return inode

    def _came(self, parent: Inode, name: str) -> None:
        self._volume.changes.note(parent, name)
        self._volume.touch(parent)

    def _left(self, parent: Inode, name: str) -> None:
        """Note that an entry left a directory, which shall not vanish with it."""
        self._volume.changes.note(parent, name)
        self._volume.touch(parent)
        if self._namespace.marker_wanted(parent):
            self._volume.nodes.update(parent, marker=int(Marker.WANTED))

    def _remove_file(self, node: Node) -> None:
        volume = self._volume
        if node.etag is not None:
            volume.journal.add_delete(
                volume.key_in_s3(node), etag=node.etag, holder=node.id, now_ns=volume.now_ns()
            )
        volume.journal.clean_staged(node.id)
        volume.staging.describe(node.id, None)
        volume.detach(node)

    def _remove_directory(self, node: Node) -> None:
        volume = self._volume
        if node.marker == Marker.EXISTS:
            volume.journal.add_delete(
                volume.prefix_in_s3(node), etag=None, holder=None, now_ns=volume.now_ns()
            )
        volume.detach(node)

    def _still(self, parent: Inode, name: str, node: Node) -> Node:
        """Return the row again if the name still leads to it. Raises OSError(ENOENT): somebody else was faster."""
        current = self._volume.nodes.find(parent, name)
        if current is None or current.id != node.id:
            raise _os_error(errno.ENOENT)
        return current


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
