"""Conflict copies: data whose upload found that another writer had been first.

The name then leads to what the other wrote, as it would to anybody who opens it now. The data that lost stays where
it is, in the staging files of an inode without a name, until the user restores it under another name or discards it.
Who still has the file open goes on with that inode: reads and writes work, and every close() or fsync() says ESTALE,
because S3 will not get them.

A copy survives everything that staged data survives, unmounting included. Its id is the number of its inode: that is
never used again, and giving the inode a name again is all that restoring takes.

Concurrency: `lose` is called with the inode's lock held, `announce` without any; the others take the lock themselves.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import trio

from s3mgrd.cache.nodes import ROOT, Inode, Kind
from s3mgrd.errors import Conflict, NotFound, S3mgrError, UserError
from s3mgrd.fs import names
from s3mgrd.fs.changing.tree import Tree
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.learning.namespace import Namespace
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.fs.writing.completing import Completer
from s3mgrd.fs.writing.stages import Stages
from s3mgrd.journal.tables import ConflictReason, ConflictRow, StagedRow
from s3mgrd.s3.port import ObjectHead

log = logging.getLogger(__name__)

Action = Literal["kept", "restored", "discarded"]


@dataclass(frozen=True, slots=True)
class Notice:
    """What became of a conflict copy. `path`: where it was to be, or under which name it was restored."""

    action: Action
    id: Inode
    path: str
    size: int
    reason: ConflictReason


Tell = Callable[[Notice], None]


class Conflicts:
    """The conflict copies of one volume.

    Attributes:
        tell: called with everything that becomes of a copy; no checkpoint.
        lost_total: how many uploads lost since the worker started.
    """

    def __init__(
        self,
        volume: Volume,
        stages: Stages,
        metadata: Metadata,
        namespace: Namespace,
        tree: Tree,
        completer: Completer,
        nursery: trio.Nursery,
        kernel_holds: Callable[[Inode], bool],
        wake: Callable[[], None],
    ) -> None:
        self._volume: Final = volume
        self._stages: Final = stages
        self._metadata: Final = metadata
        self._namespace: Final = namespace
        self._tree: Final = tree
        self._completer: Final = completer
        self._nursery: Final = nursery
        self._kernel_holds: Final = kernel_holds
        self._wake: Final = wake
        self.tell: Tell = lambda _: None
        self.lost_total = 0

    # Losing

    async def lose(self, inode: Inode, row: StagedRow) -> Notice | None:
        """Make a conflict copy of staged data after an upload under *row*'s condition was refused.

        Returns:
            What is to be announced; None: the file was removed, renamed or cut to nothing meanwhile, so that the condition
            is not the one any more; look again.
        """
        volume = self._volume
        before = volume.node(inode)
        if before.is_detached:
            return None
        key = before.remote_key or volume.wanted_key(before)
        head, is_known = await self._look(key)
        # No checkpoint from here on.
        node, now = volume.node(inode), volume.journal.staged(inode)
        if (
            node.is_detached
            or now is None
            or now.condition != row.condition
            or (node.remote_key or volume.wanted_key(node)) != key
        ):
            return None
        name, path = node.name or "", volume.path(node)
        missing = self._missing(inode)
        reason: ConflictReason = "replaced"
        if row.condition == "absent":
            reason = "exists"
        elif is_known and head is None:
            reason = "removed"
        with volume.database.transaction():
            self._stages.lose(inode)
            volume.nodes.update(inode, name=None, etag=None, remote_key=None, attributes_dirty=0)
            volume.journal.add_conflict(
                ConflictRow(
                    inode, path, reason, head.etag if head else None, missing, volume.now_ns()
                )
            )
            if is_known:  # what lies there is the other's, so nothing of ours is to be tidied up
                volume.journal.end_writes(key)
                volume.journal.drop_deletes([key])
            if head is not None:
                self._show(node.parent, name, node.remote_key, head)
            elif not is_known:
                volume.distrust(node.parent)
            volume.changes.note(node.parent, name)
        self.lost_total += 1
        return Notice("kept", inode, path, volume.node(inode).size, reason)

    def keep_orphan(self, inode: Inode) -> Notice | None:
        """Make a conflict copy of what is about to be written to an inode whose name another writer's version took.

        So the writes that the kernel had gathered by then are not lost, and close() says so. The caller holds the
        inode's lock. No checkpoint.

        Returns:
            What is to be announced; None: it is no such inode, or one already.
        """
        volume = self._volume
        node = volume.nodes.get(inode)
        if node is None or not node.is_detached or node.etag is None or node.remote_key is None:
            return None
        if self._stages.get(inode) is not None or volume.journal.holds_delete(inode):
            return None  # nobody took it: it was removed, or replaced by a rename, here
        path = node.remote_key.removeprefix(volume.settings.prefix)
        now = volume.named_at(node.remote_key)
        reason: ConflictReason = "removed" if now is None else "replaced"
        with volume.database.transaction():
            volume.nodes.update(inode, etag=None, remote_key=None)
            row = ConflictRow(
                inode,
                path,
                reason,
                now.etag if now is not None else None,
                node.size,
                volume.now_ns(),
            )
            self._stages.orphan(node, row)
        self.lost_total += 1
        return Notice("kept", inode, path, 0, reason)

    async def announce(self, notice: Notice) -> None:
        """Tell everybody of a copy that was just made, the kernel first: the name leads elsewhere now."""
        node = self._volume.nodes.get(notice.id)
        if node is not None:
            await self._volume.expire_names([(node.parent, notice.path.rpartition("/")[2])])
        log.warning(
            "another writer was first (%s): what was to be %s is kept as conflict copy %d",
            notice.reason,
            notice.path,
            notice.id,
        )
        self.tell(notice)
        self._nursery.start_soon(self._completer.complete, notice.id)

    async def _look(self, key: str) -> tuple[ObjectHead | None, bool]:
        """Return what lies at *key*, and whether that is known."""
        try:
            return await self._volume.store.head(key), True
        except NotFound:
            return None, True
        except S3mgrError as error:
            log.info("who was first at %s is not known yet: %s", key, error)
            return None, False

    def _missing(self, inode: Inode) -> int:
        stage = self._stages.get(inode)
        return 0 if stage is None else stage.file.missing_bytes()

    def _show(self, parent: Inode, name: str, remote_key: str | None, head: ObjectHead) -> None:
        nodes = self._volume.nodes
        inode = nodes.insert(
            parent, name, Kind.FILE, head.mtime_ns,
            size=head.size, etag=head.etag, remote_key=remote_key, remote_mtime_ns=head.mtime_ns,
            seen_ns=self._volume.now_ns(),
        )  # fmt: skip
        self._metadata.learn(self._volume.node(inode), head)

    # What the user decides

    def get(self, copy: int) -> ConflictRow:
        """Return one copy. Raises `NotFound`."""
        row = self._volume.journal.conflict(copy)
        if row is None:
            raise NotFound(
                f"there is no conflict copy {copy}", hint="it may have been restored or discarded"
            )
        return row

    async def restore(self, copy: int, path: str | None, *, partial: bool) -> Notice:
        """Give a copy a name again; it is uploaded like every new file.

        Args:
            copy: its id.
            path: where to, relative to the mount; None: beside where it was to be.
            partial: also when bytes are missing, which become zeros.

        Raises:
            NotFound: no such copy, or no such directory.
            Conflict: the name exists, the mount is read-only, or bytes are missing.
            UserError: *path* cannot be that of a file.
        """
        volume = self._volume
        row = self.get(copy)
        if volume.settings.read_only:
            raise Conflict("the mount is read-only", hint="mount it writable to restore")
        if row.missing:
            await self._completer.complete(Inode(copy), is_wanted=True)
            row = self.get(copy)
        if row.missing and not partial:
            raise Conflict(
                f"the copy lacks {row.missing} bytes of the version that it was a change of",
                hint="restore it in part to get zeros in their place",
            )
        wanted = path if path is not None else _default_path(row)
        above, name = _split(wanted)
        if path is None:
            name = await self._free_name(above, name)
        parent = await self._directory(above)
        inode = Inode(copy)
        async with volume.locks.holding(("inode", inode)):
            await self._tree.settled(parent)
            if await self._namespace.lookup(parent, name) is not None:
                raise _exists(above, name)
            # No checkpoint from here on.
            self.get(copy)
            directory = volume.directory(parent)
            try:
                names.check_key(volume.wanted_key(directory) + name)
            except OSError as error:
                raise UserError(
                    f"{wanted!r} is too long", hint="restore under another name"
                ) from error
            if volume.nodes.find(parent, name) is not None:
                raise _exists(above, name)
            self._attach(inode, parent, name)
        restored = f"{above}/{name}" if above else name
        await volume.expire_names([(parent, name)])
        self._wake()
        log.info("conflict copy %d is restored as %s", copy, restored)
        size = self._stages.size(volume.node(inode))
        notice = Notice("restored", inode, restored, size, row.reason)
        self.tell(notice)
        return notice

    def _attach(self, inode: Inode, parent: Inode, name: str) -> None:
        volume = self._volume
        try:
            stage = self._stages.find_again(inode)
        except OSError as error:
            raise Conflict(f"the copy's data cannot be read: {error.strerror}") from error
        now_ns = volume.now_ns()
        with volume.database.transaction():
            volume.nodes.update(
                inode,
                parent=parent,
                name=name,
                ctime_ns=now_ns,
                seen_ns=now_ns,
                attributes_known=1,
            )
            self._stages.win_back(inode, stage)
            volume.journal.drop_conflict(inode)
            self._stages.make_due(inode, now_ns)
            volume.changes.note(parent, name)
            volume.touch(parent)

    async def discard(self, copy: int) -> None:
        """Throw a copy away. Only on the user's word. Who has it open can read it until then, but not write.

        Raises:
            NotFound: no such copy.
        """
        volume = self._volume
        inode = Inode(copy)
        async with volume.locks.holding(("inode", inode)):
            row = self.get(copy)
            size = volume.node(inode).size
            with volume.database.transaction():
                volume.journal.drop_conflict(inode)
                volume.staging.describe(inode, None)
                if not self._kernel_holds(inode):
                    self._stages.remove(inode)
                    volume.nodes.drop(inode)
        log.warning("conflict copy %d of %s is discarded, as asked", copy, row.path)
        self.tell(Notice("discarded", inode, row.path, size, row.reason))

    # Names

    async def _directory(self, path: str) -> Inode:
        inode = ROOT
        for part in filter(None, path.split("/")):
            node = await self._namespace.lookup(inode, part)
            if node is None or not node.is_directory:
                raise NotFound(
                    f"there is no directory {path!r}",
                    hint="make it, or restore under another path",
                )
            inode = node.id
        return inode

    async def _free_name(self, above: str, name: str) -> str:
        parent = await self._directory(above)
        number, candidate = 1, name
        while await self._namespace.lookup(parent, candidate) is not None:
            number += 1
            candidate = f"{name}-{number}"
        return candidate


def _default_path(row: ConflictRow) -> str:
    """Name a copy by where it was to be and when it lost."""
    above, _, name = row.path.rpartition("/")
    time = datetime.fromtimestamp(row.lost_ns // NS, UTC).strftime("%Y%m%dT%H%M%SZ")
    suffix = f".conflict-{time}"
    room = names.MAX_NAME_BYTES - len(suffix) - len("-9999")
    stem = name.encode()[:room].decode(errors="ignore")
    return f"{above}/{stem}{suffix}" if above else stem + suffix


def _split(path: str) -> tuple[str, str]:
    """Split a path into its directory and its name. Raises `UserError`: it cannot be that of a file."""
    parts = path.removeprefix("/").split("/")
    for part in parts:
        if why := names.why_hidden(part):
            raise UserError(f"{path!r} cannot be the path of a file: {why}")
    return "/".join(parts[:-1]), parts[-1]


def _exists(above: str, name: str) -> Conflict:
    path = f"{above}/{name}" if above else name
    return Conflict(f"{path!r} exists already", hint="restore under another name")
