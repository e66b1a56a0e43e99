"""What the kernel asks, translated: names and flags in, attributes and errno out. Decides nothing.

Every handler runs inside `_answer`, which counts it, logs it, and turns every error into an errno by the one table
(`s3mgrd.fs.kernel.errnos`). Changes of names run inside `_once`, so that a request that the kernel repeats after a
worker's death is done exactly once.
"""

import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from s3mgrd.cache.nodes import ROOT, Inode, Node
from s3mgrd.errors import S3mgrError
from s3mgrd.fs.changing.attribute_changes import WAS_ABSENT, AttributeChange, without_privileges
from s3mgrd.fs.changing.tree import Creator, Record
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.kernel.errnos import errno_of, is_expected
from s3mgrd.fs.kernel.express import Express
from s3mgrd.fs.kernel.handles import Handles, read_handle
from s3mgrd.fs.kernel.repeats import Call, Opcode, RepeatRing
from s3mgrd.fs.kernel.showing import Shower, absence, blank, space
from s3mgrd.fs.names import MAX_NAME_BYTES, decode_name
from s3mgrd.fs.reading.segments import Superseded
from s3mgrd.s3.counting import Waiting

log = logging.getLogger(__name__)

READDIR_ROWS: Final = 64
"""Read at a time. A reply to a usual program holds about 200, and what was read beyond them was read in vain."""
MAX_REREADS: Final = 8

P = ParamSpec("P")
R = TypeVar("R")


def _answer(
    handler: Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]:
    """Count, log and translate the errors of a handler."""
    name = handler.__name__

    @functools.wraps(handler)
    async def wrapped(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        begun = perf_counter()
        asked = self.fs.counters.begin(begun)
        number = 0
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError as error:
            number = error.errno
            raise
        except Exception as error:
            number = errno_of(error)
            await self.fs.volume.database.wait_for_the_end_if_damaged(error)
            self.note_error(name, error)
            raise FUSEError(number) from error
        finally:
            ended = perf_counter()
            self.fs.counters.end(name, asked, begun, ended, failed=number != 0)
            if log.isEnabledFor(logging.DEBUG):
                result = errno.errorcode.get(number, str(number)) if number else "ok"
                log.debug("%s%s: %s, %.2f ms", name, _brief(args), result, (ended - begun) * 1e3)

    return wrapped


def _brief(args: tuple[object, ...]) -> str:
    """Write arguments without contents."""
    shown = [
        f"{len(a)} bytes"
        if isinstance(a, bytes | memoryview) and len(a) > MAX_NAME_BYTES
        else repr(a)
        for a in args
        if isinstance(a, int | bytes | str)
    ]
    return f"({', '.join(shown)})"


def _is_only_mtime(fields: pyfuse3.SetattrFields) -> bool:
    access = fields.update_mode or fields.update_uid or fields.update_gid
    return not (fields.update_size or fields.update_atime or access)


class Operations(pyfuse3.Operations):
    """pyfuse3's handlers on a `FileSystem`.

    Attributes:
        express: what answers without them, where libfuse lets it (`s3mgrd.worker.express`).
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: FileSystem, ring: RepeatRing) -> None:
        super().__init__()
        self.fs = fs
        self._ring = ring
        self._handles = fs.reader.comparer.ages = Handles()
        self._shower = Shower(fs.volume, fs.stages)
        self.express: Final = Express(fs, self._shower, self._handles, ring)

    def note_error(self, operation: str, error: Exception) -> None:
        """Log an error that a program sees, with its stack where nobody foresaw it or somebody debugs."""
        self.fs.health.note(error)
        if isinstance(error, OSError):
            return  # a name that is not there, a directory that is not empty …
        if isinstance(error, S3mgrError):
            text = f" (request {error.request_id})" if error.request_id else ""
            wants_stack = log.isEnabledFor(logging.DEBUG) or not is_expected(error)
            stack = error if wants_stack else None
            log.warning("%s: %s%s", operation, error, text, exc_info=stack)
        else:
            log.error("%s: unforeseen %s", operation, type(error).__name__, exc_info=error)

    # Attributes

    def _entry_of(self, node: Node) -> EntryAttributes:
        entry = self._shower.entry(node, self.fs.namespace.valid_for_s(node))
        entry.attr_timeout = self.fs.attributes_valid_for_s(node)
        return entry

    @_answer
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name."""
        parent, text = Inode(parent_inode), decode_name(name)
        self.fs.pruner.note_use(parent)
        node = await self.fs.namespace.lookup(parent, text)
        if node is not None:
            return self._entry_of(node)
        valid_s = self.fs.namespace.tell_absent(parent, text)
        if not valid_s:
            raise FUSEError(errno.ENOENT)
        return absence(valid_s)

    @_answer
    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        """Show attributes."""
        return self._entry_of(self.fs.volume.node(inode))

    @_answer
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes and size."""
        number = Inode(inode)
        is_kept = (
            fields.update_ctime
        )  # by a kernel that gathers writes, and sends the times before it flushes
        mtime_ns = attr.st_mtime_ns if is_kept and fields.update_mtime else None
        if mtime_ns is not None and _is_only_mtime(fields):
            if self.fs.stages.written_at(number, mtime_ns, attr.st_ctime_ns):
                return self._entry_of(self.fs.volume.node(number))
        elif fields.update_size:
            await self._truncate(number, attr.st_size, mtime_ns)
            # truncate(2) has no close() that could report, and O_TRUNC with O_RDONLY none that looks for changes.
            if fh is None or not read_handle(fh).writes:
                await self.fs.truncated(number)
        change = AttributeChange(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime and not fields.update_size else None,
        )
        # A request that changes nothing is how the kernel says that somebody without CAP_FSETID is about to write. Of
        # who truncates it says nothing that pyfuse3 would pass on: root is taken for who has that right.
        strips = (
            ctx.uid != 0
            if fields.update_size
            else fields.update_uid or fields.update_gid or change == AttributeChange()
        )
        mode = self.fs.volume.mode(self.fs.volume.node(number))
        if strips and without_privileges(mode) != mode:
            change = replace(change, strips_privileges=True)
        if change != AttributeChange():
            if is_kept:
                change = replace(change, ctime_ns=attr.st_ctime_ns)
            await self.fs.attributes.change(number, change)
            if change.mtime_ns is not None:
                self.fs.stages.time_set(number)
        return self._entry_of(self.fs.volume.node(number))

    async def _truncate(self, inode: Inode, size: int, mtime_ns: int | None = None) -> None:
        if self.fs.volume.settings.read_only:
            raise FUSEError(errno.EROFS)
        if size:
            await self.fs.archive.look(self.fs.volume.node(inode))
        await self.fs.truncate(inode, size, mtime_ns)

    @_answer
    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        """Read a symbolic link."""
        target = await self.fs.read_target(Inode(inode))
        return target.encode()

    @_answer
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Show how much can be written: what is written lies on the local disk until S3 has it."""
        return space(self.fs.volume.staging.free_bytes())

    # Extended attributes

    @_answer
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: bytes, value: bytes, ctx: RequestContext
    ) -> None:
        """Set an extended attribute. pyfuse3 minds XATTR_CREATE and XATTR_REPLACE: it asks `getxattr` before."""
        number = Inode(inode)
        await self._once(
            Call(Opcode.SETXATTR, inode, name, ctx.pid),
            lambda record: self.fs.attributes.set_xattr(number, name, bytes(value), record),
        )  # fmt: skip

    @_answer
    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """Show an extended attribute; to a repeated XATTR_CREATE, which is looked at first, as it was before that call."""
        call = self._ring.awaited(Call(Opcode.SETXATTR, inode, name, ctx.pid))
        if call is not None and self.fs.volume.journal.call_result(call) == WAS_ABSENT:
            raise FUSEError(errno.ENODATA)
        return await self.fs.attributes.xattr(Inode(inode), name)

    @_answer
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> list[bytes]:
        """List extended attributes."""
        return await self.fs.attributes.xattr_names(Inode(inode))

    @_answer
    async def removexattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        number = Inode(inode)
        await self._once(
            Call(Opcode.REMOVEXATTR, inode, name, ctx.pid),
            lambda record: self.fs.attributes.remove_xattr(number, name, record),
        )  # fmt: skip

    # Names

    async def _once(
        self, call: Call, change: Callable[[Record], Awaitable[object]]
    ) -> Inode | None:
        """Make a change unless this very call made it already; returns then what it made."""
        intent = self._ring.begin(call)
        journal = self.fs.volume.journal
        try:
            if intent.repeated:
                done = journal.call_result(intent.number)
                if done is not None:
                    log.info("a repeated call (opcode %d) was done already", call.op)
                    return Inode(done)
            await change(lambda i: journal.put_call(intent.number, i, oldest=self._ring.oldest))
            return None
        finally:
            self._ring.end(intent)

    async def _make(self, call: Call, change: Callable[[Record], Awaitable[Node]]) -> Node:
        made: list[Node] = []

        async def keep(record: Record) -> None:
            made.append(await change(record))

        before = await self._once(call, keep)
        return self.fs.volume.node(before) if before is not None else made[0]

    def _creator(self, mode: int, ctx: RequestContext) -> Creator:
        return Creator(uid=ctx.uid, gid=ctx.gid, mode=stat.S_IMODE(mode) & ~ctx.umask)

    @_answer
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: pyfuse3.ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        parent, text, who = Inode(parent_inode), decode_name(name), self._creator(mode, ctx)
        node = await self._make(
            Call(Opcode.MKDIR, parent, name, ctx.pid),
            lambda record: self.fs.tree.mkdir(parent, text, who, record),
        )
        return self._entry_of(node)

    @_answer
    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        parent, text, who = Inode(parent_inode), decode_name(name), self._creator(0o777, ctx)
        try:
            where = target.decode()
        except UnicodeDecodeError as error:
            raise FUSEError(errno.EILSEQ) from error
        node = await self._make(
            Call(Opcode.SYMLINK, parent, name, ctx.pid),
            lambda record: self.fs.tree.symlink(parent, text, where, who, record),
        )  # fmt: skip
        return self._entry_of(node)

    @_answer
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Make a special file."""
        parent, text, who = Inode(parent_inode), decode_name(name), self._creator(mode, ctx)
        node = await self._make(
            Call(Opcode.MKNOD, parent, name, ctx.pid),
            lambda record: self.fs.tree.mknod(parent, text, mode, rdev, who, record),
        )  # fmt: skip
        return self._entry_of(node)

    @_answer
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Refuse: an object has one key."""
        raise FUSEError(errno.EPERM)

    @_answer
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove a file."""
        parent, text = Inode(parent_inode), decode_name(name)
        await self._once(
            Call(Opcode.UNLINK, parent, name, ctx.pid),
            lambda record: self.fs.tree.unlink(parent, text, record),
        )  # fmt: skip

    @_answer
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove a directory."""
        parent, text = Inode(parent_inode), decode_name(name)
        await self._once(
            Call(Opcode.RMDIR, parent, name, ctx.pid),
            lambda record: self.fs.tree.rmdir(parent, text, record),
        )

    @_answer
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: bytes,
        parent_inode_new: pyfuse3.InodeT,
        name_new: bytes,
        flags: pyfuse3.FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename."""
        old, new = decode_name(name_old), decode_name(name_new)
        parent, new_parent = Inode(parent_inode_old), Inode(parent_inode_new)
        await self._once(
            Call(Opcode.RENAME2, parent, name_old, ctx.pid, (new_parent, name_new)),
            lambda record: self.fs.tree.rename(parent, old, new_parent, new, flags, record),
        )  # fmt: skip

    # Files

    @_answer
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a file."""
        parent, text, who = Inode(parent_inode), decode_name(name), self._creator(mode, ctx)
        is_exclusive = bool(flags & os.O_EXCL)
        node = await self._make(
            Call(Opcode.CREATE, parent, name, ctx.pid),
            lambda record: self.fs.tree.create(parent, text, who, record, exclusive=is_exclusive),
        )  # fmt: skip
        self.fs.stages.take_up(node)
        info = await self._open(node, flags)
        return info, self._entry_of(self.fs.volume.node(node.id))

    @_answer
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: RequestContext
    ) -> FileInfo:
        """Open a file."""
        return await self._open(self.fs.volume.node(inode), flags)

    async def _open(self, node: Node, flags: int) -> FileInfo:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and self.fs.volume.settings.read_only:
            raise FUSEError(errno.EROFS)
        if node.is_directory:
            raise FUSEError(errno.EISDIR)
        if flags & os.O_TRUNC and (self.fs.stages.size(node) or node.etag is not None):
            # FUSE_CREATE of a name that another writer was faster to make; O_TRUNC of a known file is a SETATTR.
            await self._truncate(node.id, 0, self.fs.volume.now_ns())
            mode = self.fs.volume.mode(node)
            if without_privileges(mode) != mode:
                await self.fs.attributes.change(node.id, AttributeChange(strips_privileges=True))
            if not writes:
                await self.fs.truncated(node.id)
        if node.storage_class is not None:
            await self.fs.archive.opening(node, flags)
        if writes:
            self.fs.stages.opened(node.id)
        else:
            self.fs.prefetcher.opened(node)
        number = self._handles.make(node.id, writes=writes)
        # An inode is one version, so the kernel's pages of it are good for as long as it knows the inode.
        return FileInfo(fh=pyfuse3.FileHandleT(number), keep_cache=True)

    @_answer
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Read."""
        for _ in range(MAX_REREADS):
            try:
                data = await self.fs.read(read_handle(fh).inode, off, size, handle=fh)
            except Superseded:
                continue
            self.fs.counters.read_bytes += len(data)
            return data  # type: ignore[return-value] # a memoryview is a buffer, all that libfuse wants
        raise FUSEError(errno.EIO)

    @_answer
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Write."""
        written = await self.fs.write(read_handle(fh).inode, off, buf)
        self.fs.counters.written_bytes += written
        return written

    @_answer
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Upload at close(2), so that the program hears of a failure; with write_mode=writeback only queue."""
        handle = read_handle(fh)
        if handle.writes:
            self.fs.volume.node(handle.inode)  # ESTALE where a lost mount.db took it
            await self.fs.flush(handle.inode)

    @_answer
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Upload, or bring to the local disk."""
        inode = read_handle(fh).inode
        # ESTALE where a lost mount.db took what was written to another inode.
        self.fs.volume.node(inode)
        await self.fs.fsync(inode)

    @_answer
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Note that a handle is gone."""
        handle = read_handle(fh)
        self.fs.reader.close(fh)
        if handle.writes:
            self.fs.closed(handle.inode)

    # Directories

    @_answer
    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        """Open a directory; pyfuse3 cannot tell the kernel to keep its entries, `express` can."""
        directory = self.fs.volume.directory(inode)
        self.fs.pruner.note_use(directory.id)
        return pyfuse3.FileHandleT(self._handles.make(directory.id))

    @_answer
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """Give the two dots, then entries in the order of their inode numbers, which are also the positions."""
        inode = read_handle(fh).inode
        namespace, fill, reply = self.fs.namespace, self._shower.fill, pyfuse3.readdir_reply
        shown = blank()
        entries = await namespace.entries(inode, start_id, READDIR_ROWS)
        self.fs.pruner.note_use(inode)
        self.express.reading(fh, start_id)
        if start_id == 0:
            self._shower.give_dots(token, self.fs.volume.node(inode))
        while entries:
            for node, valid_s in entries:
                fill(shown, node, valid_s)
                if not reply(token, node.name.encode(), shown, node.id):
                    return
            if len(entries) < READDIR_ROWS:
                return  # the rest, if a listing brings more, is asked for next
            entries = namespace.entries_now(inode, entries[-1].node.id, READDIR_ROWS)

    @_answer
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Note that a directory's handle is gone: nothing is remembered of those that came this way."""

    @_answer
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Make the journal durable on this disk: what S3 has yet to follow then outlives a power loss too."""
        with Waiting(for_disk=True):
            await self.fs.disk.sync()

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """The kernel let inodes go; nameless ones are dropped then."""
        if not self.fs.volume.nodes.has_detached():
            return  # what the kernel drops by the ten thousand, when it needs the memory
        for inode, _ in inode_list:
            node = self.fs.volume.nodes.get(inode)
            if node is not None and node.is_detached and not self.fs.kernel_holds(node.id):
                self.fs.syncer.forget(node.id)


def ask_kernel_holds(inode: Inode) -> bool:
    """Ask the kernel whether it still knows an inode number; microseconds. Only while a session is up: libfuse crashes else.

    Invalidating nothing but attributes changes nothing else, and is answered ENOENT for an unknown inode.
    """
    if inode == ROOT:
        return True
    try:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=True)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTCONN, errno.EBADF, errno.ENODEV)
    return True
