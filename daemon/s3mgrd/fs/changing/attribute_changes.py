"""chmod, chown, utimens and extended attributes: made in mount.db at once; S3 follows (`s3mgrd.fs.following.sync`).

S3 gets them with the upload of the file if one is due, otherwise with one copy of the object onto itself for all that changed
until then. Extended attributes are those of the namespace ``user``; they are shown by the same rule as modes are
(`s3mgrd.fs.learning.metadata`), and what changes them asks first what is there.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from s3mgrd.cache.nodes import ROOT, Inode, Node
from s3mgrd.fs import attributes, descriptions
from s3mgrd.fs.changing.archive import ArchiveGate
from s3mgrd.fs.changing.tree import Record, Tree
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.learning.namespace import Namespace
from s3mgrd.fs.volume import Volume

USER: Final = b"user."
WAS_ABSENT: Final = Inode(1)
"""Recorded of a call that set an extended attribute which was not there before; of another, 0."""
WAS_THERE: Final = Inode(0)


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What chmod, chown and utimens ask for; None: as it is.

    `ctime_ns` is the kernel's, where it keeps times; otherwise it is now. `strips_privileges`: setuid and setgid go, because the owner or the content changed (HANDLE_KILLPRIV_V2 makes
    that the file system's duty).
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    strips_privileges: bool = False


def without_privileges(mode: int) -> int:
    """Return permission bits without setuid, and without setgid where it is one (it means locking without x)."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


class AttributeChanges:
    """Changes and shows attributes of one volume. `wake` tells whoever brings S3 up to date that there is work."""

    def __init__(
        self,
        volume: Volume,
        namespace: Namespace,
        metadata: Metadata,
        tree: Tree,
        archive: ArchiveGate,
        wake: Callable[[], None],
    ) -> None:
        self._volume = volume
        self._namespace = namespace
        self._metadata = metadata
        self._tree = tree
        self._archive = archive
        self._wake = wake

    async def change(self, inode: Inode, change: AttributeChange) -> Node:
        """Do chmod, chown, utimens. Raises OSError: EROFS, ENOSPC (S3 has no room for them)."""
        return self._change(await self._ready(inode), change)

    def change_now(self, inode: Inode, change: AttributeChange) -> Node | None:
        """Do the same; None where S3 has to be asked before, and nothing was done. No checkpoint."""
        self._tree.check_writable()
        node = self._volume.node(inode)
        if not self._namespace.knows_attributes(node) or node.storage_class is not None:
            return None
        return self._change(node, change)

    def _change(self, node: Node, change: AttributeChange) -> Node:
        columns: dict[str, object] = {}
        for name in ("mode", "uid", "gid"):
            value = getattr(change, name)
            if value is not None:
                columns[name] = value
        if change.mtime_ns is not None:
            columns["mtime_ns"] = attributes.clamped(change.mtime_ns)
        mode = change.mode if change.mode is not None else self._volume.mode(node)
        if change.strips_privileges and not node.is_directory and without_privileges(mode) != mode:
            columns["mode"] = without_privileges(mode)
        is_news = any(getattr(node, name) != value for name, value in columns.items())
        if change.atime_ns is not None:
            # No reason for a request: it is remembered here and goes with the next change that S3 gets.
            columns["atime_ns"] = attributes.clamped(change.atime_ns)
        if change.ctime_ns is not None:
            columns["ctime_ns"] = change.ctime_ns
        self._apply(node, columns, self._volume.extras.xattrs(node.id), is_news=is_news)
        return self._volume.node(node.id)

    # Extended attributes

    async def xattr(self, inode: Inode, name: bytes) -> bytes:
        """Return an extended attribute. Raises OSError: ENODATA, EOPNOTSUPP."""
        text = self._supported(name)
        await self._metadata.show(self._volume.node(inode))
        value = self._volume.extras.xattr(inode, text)
        if value is None:
            raise _os_error(errno.ENODATA)
        return value

    async def xattr_names(self, inode: Inode) -> list[bytes]:
        """Return the names of an inode's extended attributes."""
        if self._volume.settings.attributes == "off":
            return []
        await self._metadata.show(self._volume.node(inode))
        return [name.encode() for name in self._volume.extras.xattrs(inode)]

    async def set_xattr(self, inode: Inode, name: bytes, value: bytes, record: Record) -> None:
        """Set an extended attribute. Raises OSError: EROFS, EOPNOTSUPP, EILSEQ, ENOSPC (S3 has no room for it)."""
        text = self._supported(name)
        node = await self._ready(inode)
        extras = self._volume.extras
        before = extras.xattrs(inode)
        with self._volume.database.transaction():
            extras.set_xattr(inode, text, value)
            after = {**before, text: value}
            self._apply(node, {}, after, is_news=before.get(text) != value)
            record(WAS_THERE if text in before else WAS_ABSENT)

    async def remove_xattr(self, inode: Inode, name: bytes, record: Record) -> None:
        """Remove an extended attribute. Raises OSError: EROFS, ENODATA, EOPNOTSUPP."""
        text = self._supported(name)
        node = await self._ready(inode)
        xattrs = self._volume.extras.xattrs(inode)
        if text not in xattrs:
            raise _os_error(errno.ENODATA)
        with self._volume.database.transaction():
            self._volume.extras.remove_xattr(inode, text)
            self._note(node, {}, pushes=self._pushes(node))
            record(WAS_THERE)

    def _supported(self, name: bytes) -> str:
        if not name.startswith(USER) or self._volume.settings.attributes == "off":
            raise _os_error(errno.EOPNOTSUPP)
        try:
            return name.decode()
        except UnicodeDecodeError as error:
            raise _os_error(errno.EILSEQ) from error

    # Shared steps

    async def _ready(self, inode: Inode) -> Node:
        """Return the row once it may be changed and is complete, so that changing one attribute keeps the others."""
        self._tree.check_writable()
        node = await self._namespace.with_attributes(inode)
        await self._archive.look(node)
        return node

    def _apply(
        self,
        node: Node,
        columns: dict[str, object],
        xattrs: Mapping[str, bytes],
        *,
        is_news: bool,
    ) -> None:
        if is_news and self._volume.settings.attributes != "off" and node.id != ROOT:
            head = self._metadata.remembered(node, "")
            descriptions.check_room(head.metadata if head is not None else {}, xattrs)
        self._note(node, columns, pushes=is_news and self._pushes(node))

    def _note(self, node: Node, columns: dict[str, object], *, pushes: bool) -> None:
        if pushes:
            self._archive.check(node)
            columns["attributes_dirty"] = 1
        columns.setdefault("ctime_ns", self._volume.now_ns())
        self._volume.nodes.update(node.id, **columns)
        if pushes:
            self._wake()

    def _pushes(self, node: Node) -> bool:
        """Whether what changed needs a request of its own: no upload is due that takes it along."""
        if self._volume.settings.attributes == "off" or node.is_detached or node.id == ROOT:
            return False
        return not self._volume.journal.is_dirty(node.id)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
