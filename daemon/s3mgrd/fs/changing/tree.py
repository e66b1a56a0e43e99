"""Changes of the tree: made in mount.db at once, in one transaction each; S3 follows (`s3mgrd.fs.following.sync`).

A change is acknowledged when its transaction is committed: it then survives the worker. Every function takes
`record`, which is called inside that transaction with the resulting inode (or 0), so that a request that the kernel
repeats after a crash is recognised (`s3mgrd.worker.ring`).

Between the last look at the names and the transaction there is no checkpoint.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from s3mgrd.cache.nodes import STALE_NS, Inode, Kind, Marker, Node
from s3mgrd.errors import TimedOut
from s3mgrd.fs import names, relocation
from s3mgrd.fs.changing.archive import ArchiveGate
from s3mgrd.fs.learning.namespace import ABSENT, Namespace
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing.recovery import note_purpose
from s3mgrd.journal.staging import Description
from s3mgrd.journal.tables import ConditionKind

Record = Callable[[Inode], None]

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
NOBODY: Final = Inode(0)


class Creator(NamedTuple):
    """Who makes something, and with which mode (type bits taken off, umask applied)."""

    uid: int
    gid: int
    mode: int


class Tree:
    """Changes names and attributes of one volume. `wake` tells whoever brings S3 up to date that there is work."""

    def __init__(
        self,
        volume: Volume,
        namespace: Namespace,
        archive: ArchiveGate,
        not_lacking: Callable[[Inode], None],
        wake: Callable[[], None],
    ) -> None:
        self._volume = volume
        self._namespace = namespace
        self._archive = archive
        self._not_lacking = not_lacking
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
        return self._make_file(parent, name, who, record, exclusive=exclusive)

    def create_now(
        self, parent: Inode, name: str, who: Creator, record: Record, *, exclusive: bool
    ) -> Node | None:
        """As `create`, of a name that is known to be free; None: nothing was done, something has to be waited for."""
        if not self._is_free(parent, name):
            return None
        return self._make_file(parent, name, who, record, exclusive=exclusive)

    def _make_file(
        self, parent: Inode, name: str, who: Creator, record: Record, *, exclusive: bool
    ) -> Node:
        volume = self._volume
        condition: ConditionKind = "absent" if exclusive else "always"
        with volume.database.transaction():
            inode = self._insert(parent, name, Kind.FILE, who)
            volume.journal.put_staged(
                inode,
                dirty=True,
                base_etag=None,
                base_size=0,
                condition=condition,
                now_ns=volume.now_ns(),
            )
            node = volume.node(inode)
            volume.staging.create_small(inode).describe(
                Description(
                    path=volume.path(node),
                    base_key=None,
                    base_etag=None,
                    base_size=0,
                    condition=condition,
                )
            )
            record(inode)
        return node

    async def mkdir(self, parent: Inode, name: str, who: Creator, record: Record) -> Node:
        """Make a directory. Raises OSError: EEXIST, EROFS, ENAMETOOLONG."""
        await self._must_be_free(parent, name)
        return self._make_directory(parent, name, who, record)

    def mkdir_now(self, parent: Inode, name: str, who: Creator, record: Record) -> Node | None:
        """As `mkdir`, of a name that is known to be free; None: nothing was done, something has to be waited for."""
        if not self._is_free(parent, name):
            return None
        return self._make_directory(parent, name, who, record)

    def _make_directory(self, parent: Inode, name: str, who: Creator, record: Record) -> Node:
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
        self.check_writable()
        node = await self._namespace.existing(parent, name)
        if node.is_directory:
            raise _os_error(errno.EISDIR)
        self._unlink(node, parent, name, record)

    def unlink_now(self, parent: Inode, name: str, record: Record) -> Node | None:
        """As `unlink`, of a name that is known to be a file's, which is returned; None: nothing was done."""
        if self._volume.settings.read_only:
            return None
        node = self._namespace.known(parent, name)
        if node is None or node is ABSENT or node.is_directory:
            return None
        self._namespace.note_hit(parent, name)
        self._unlink(node, parent, name, record)
        return node

    def _unlink(self, node: Node, parent: Inode, name: str, record: Record) -> None:
        with self._volume.database.transaction():
            self._remove_file(node)
            self._left(parent, name)
            record(NOBODY)
        self._wake()

    async def rmdir(self, parent: Inode, name: str, record: Record) -> None:
        """Remove an empty directory. Raises OSError: ENOENT, ENOTDIR, ENOTEMPTY, EROFS."""
        self.check_writable()
        node = await self._namespace.existing(parent, name)
        if not node.is_directory:
            raise _os_error(errno.ENOTDIR)
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
        """Rename a file or directory; with RENAME_EXCHANGE both names change places.

        Raises:
            OSError: ENOENT, EEXIST (NOREPLACE), EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself, or flags), EROFS,
                ENAMETOOLONG (also where a name below would exceed the limit of keys).
            Archived: S3 cannot copy the object to another key.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise _os_error(errno.EINVAL)
        self.check_writable()
        node = await self._namespace.existing(parent, name)
        await self._archive.look(node)
        if flags == RENAME_EXCHANGE:
            await self._exchange(node, parent, name, new_parent, new_name, record)
            return
        if not self._is_back(node, new_parent, new_name):
            await self._ready(new_parent, new_name)
        target = await self._namespace.lookup(new_parent, new_name)
        if target is not None and flags == RENAME_NOREPLACE:
            raise _os_error(errno.EEXIST)
        if target is not None and target.id == node.id:
            return
        if target is not None:
            await self._check_replaceable(node, target)
        # No checkpoint from here on: both names are looked at once more, then changed.
        self._rename(self._still(parent, name, node), parent, name, new_parent, new_name, record)

    def rename_now(
        self,
        parent: Inode,
        name: str,
        new_parent: Inode,
        new_name: str,
        flags: int,
        record: Record,
    ) -> Node | None:
        """As `rename`, of a name that is known to be a file's and gets one that is known to be another file's or nobody's.

        Returns the file; None: nothing was done.
        """
        known = self._namespace.known
        if flags not in (0, RENAME_NOREPLACE) or self._volume.settings.read_only:
            return None
        node, target = known(parent, name), known(new_parent, new_name)
        if node is None or node is ABSENT or node.is_directory or node.storage_class is not None:
            return None
        if target is not ABSENT and (
            target is None or target.is_directory or target.id == node.id or flags
        ):
            return None
        if self._occupant(new_parent, new_name) is not None:
            return None
        for directory, text in ((parent, name), (new_parent, new_name)):
            self._namespace.note_hit(directory, text)
        self._rename(node, parent, name, new_parent, new_name, record)
        return node

    def _rename(
        self,
        node: Node,
        parent: Inode,
        name: str,
        new_parent: Inode,
        new_name: str,
        record: Record,
    ) -> None:
        target = self._volume.nodes.find(new_parent, new_name)
        self._check_movable(node, new_parent, new_name)
        with self._volume.database.transaction():
            if target is not None:
                self._replace(node, target)
            self._move(node, new_parent, new_name, where=self._where(node))
            self._left(parent, name)
            self._came(new_parent, new_name)
            record(NOBODY)
        self._wake()

    async def _exchange(
        self,
        node: Node,
        parent: Inode,
        name: str,
        other_parent: Inode,
        other_name: str,
        record: Record,
    ) -> None:
        other = await self._namespace.existing(other_parent, other_name)
        if other.id == node.id:
            return
        await self._archive.look(other)
        # No checkpoint from here on.
        node, other = self._still(parent, name, node), self._still(other_parent, other_name, other)
        self._check_movable(node, other_parent, other_name)
        self._check_movable(other, parent, name)
        volume = self._volume
        where, other_where = self._where(node), self._where(other)
        with volume.database.transaction():
            volume.nodes.update(node.id, name=None)  # a name is one row's at any time
            self._move(other, parent, name, where=other_where, exchanged=True)
            self._move(node, other_parent, other_name, where=where, exchanged=True)
            self._came(parent, name)
            self._came(other_parent, other_name)
            record(NOBODY)
        self._wake()

    def _is_back(self, node: Node, new_parent: Inode, new_name: str) -> bool:
        """Whether a directory gets the name back under which S3 still has its contents."""
        key = self._volume.wanted_key(self._volume.directory(new_parent)) + new_name
        return node.is_directory and self._where(node) == f"{key}/"

    def _check_movable(self, node: Node, new_parent: Inode, new_name: str) -> None:
        self._archive.check(node)
        directory = self._volume.directory(new_parent)
        _check_there(directory)
        if node.is_directory and self._volume.is_below(directory, node.id):
            raise _os_error(errno.EINVAL)
        self._check_lengths(node, self._volume.wanted_key(directory) + new_name)

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

    def _where(self, node: Node) -> str | None:
        """Return where S3 has a file's version or a directory's contents; None for a file that it has not."""
        if node.is_directory:
            return self._volume.prefix_in_s3(node)
        return self._volume.key_in_s3(node) if node.etag is not None else None

    def _move(
        self,
        node: Node,
        new_parent: Inode,
        new_name: str,
        *,
        where: str | None,
        exchanged: bool = False,
    ) -> None:
        """Give a node its new name; S3 has what it is at *where*."""
        volume = self._volume
        is_in_s3 = node.is_directory and (
            # What is exchanged gets a name below which S3 still has the other's contents.
            exchanged or node.remote_prefix is not None or self._is_in_s3(node)
        )
        volume.nodes.update(node.id, parent=new_parent, name=new_name, ctime_ns=volume.now_ns())
        if node.is_directory:
            if is_in_s3 and where is not None:
                relocation.relocate(volume, node.id, where)
            relocation.retarget_below(volume, node.id)
            return
        moved = volume.node(node.id)
        remote_key = None if where is None else relocation.remote_key(volume, moved, where)
        volume.nodes.update(node.id, remote_key=remote_key)
        if volume.journal.is_dirty(node.id):
            # The condition was about the old name; under the new one rename() already decided who wins.
            volume.journal.set_condition(node.id, "always")
            note_purpose(volume, node.id)

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
        """Refuse on read-only mounts, and wait where S3 still has to follow a directory's rename away from that name."""
        self.check_writable()
        while (event := self._occupant(parent, name)) is not None:
            await self._wait(event)

    def _occupant(self, parent: Inode, name: str) -> trio.Event | None:
        """Return what tells that S3 has followed a directory's rename away from a name; None: it need not."""
        key = self._volume.wanted_key(self._volume.directory(parent)) + name
        return relocation.occupant(self._volume, key)

    def _is_free(self, parent: Inode, name: str) -> bool:
        """Whether something may be made at once under a name: it is known to lead to nothing, and nothing has to be waited for."""
        if self._volume.settings.read_only or self._namespace.known(parent, name) is not ABSENT:
            return False
        return self._occupant(parent, name) is None

    async def settled(self, directory: Inode) -> None:
        """Wait until nothing copies from where *directory* is now, so that S3 can take new contents. Raises `TimedOut`."""
        while True:
            key = self._volume.wanted_key(self._volume.directory(directory))
            event = relocation.occupant(self._volume, key, is_file=True)
            if event is None:
                return
            await self._wait(event)

    async def _wait(self, event: trio.Event) -> None:
        with trio.move_on_after(self._volume.settings.retry_deadline_s):
            await event.wait()
            return
        raise TimedOut(
            "a directory's rename is not finished in S3 yet, and its old name cannot be used before"
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
        _check_there(directory)
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
            relocation.remove_object(volume, volume.key_in_s3(node), etag=node.etag, holder=node.id)
        volume.journal.clean_staged(node.id)
        self._not_lacking(node.id)
        volume.staging.describe(node.id, None)
        volume.detach(node)

    def _remove_directory(self, node: Node) -> None:
        volume = self._volume
        if node.marker == Marker.EXISTS:
            relocation.remove_object(volume, volume.prefix_in_s3(node), etag=None, holder=None)
        if (move := volume.moves.get(node.id)) is not None:
            relocation.abandon(volume, move)
        volume.detach(node)

    def _still(self, parent: Inode, name: str, node: Node) -> Node:
        """Return the row again if the name still leads to it. Raises OSError(ENOENT): somebody else was faster."""
        current = self._volume.nodes.find(parent, name)
        if current is None or current.id != node.id:
            raise _os_error(errno.ENOENT)
        return current


def _check_there(directory: Node) -> None:
    """Refuse a new name in a directory that somebody else removed while a program works in it. Raises OSError(ENOENT)."""
    if directory.is_detached:
        raise _os_error(errno.ENOENT)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
