"""Requests that mount.db and memory answer at once: no task, no objects of pyfuse3, the reply as bytes.

What most programs ask most of the time (a name that is known, attributes, a directory whose listing is fresh) takes a few
statements. As a coroutine of `Operations` it costs as much again to get there and back. So `s3mgrd.worker.express` asks here
first; None as an answer means that S3 has to be asked, or that something is wrong, and the same request then takes its usual way
through `Operations`, which waits, logs and translates. Whatever is decided is decided by the same parts of the file system.

Nothing here waits: each answer is made between two checkpoints.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable
from time import perf_counter
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec

from s3mgrd.cache.nodes import Inode, Kind, Node
from s3mgrd.fs.changing.attribute_changes import USER, AttributeChange
from s3mgrd.fs.changing.tree import Creator, Record
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.kernel import replies
from s3mgrd.fs.kernel.ahead import ENTRY_BYTES, Ahead
from s3mgrd.fs.kernel.entry_caches import EntryCaches
from s3mgrd.fs.kernel.handles import Handles, read_handle
from s3mgrd.fs.kernel.repeats import Call, Opcode, RepeatRing
from s3mgrd.fs.kernel.showing import Shower, absence_reply
from s3mgrd.fs.learning.namespace import ABSENT
from s3mgrd.fs.names import decode_name

log = logging.getLogger("s3mgrd.fs.kernel.operations")
"""Who reads the log need not know which way a request took."""

MAX_ENDS: Final = 4096

P = ParamSpec("P")
Change = Callable[[Inode, str, Record], Node | None]
"""Changes a name if nothing has to be waited for, and returns what that was or is; None: nothing was done."""
Answer = bytes | list[memoryview] | int | None
"""The reply, or its pieces, good until the next answer; the errno; or that this is not for here."""
_WRITING: Final = os.O_ACCMODE | os.O_TRUNC


def _at_once(
    handler: Callable[Concatenate["Express", P], Answer],
) -> Callable[Concatenate["Express", P], Answer]:
    """Note what a handler answers, to be counted, and leave what fails to `Operations`, which fails with the same and says so."""
    name = handler.__name__

    def answer(self: "Express", /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        begun = perf_counter()
        try:
            found = handler(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 - the wrapper of a FUSE operation, or rather its first half
            return None
        if found is not None:
            self._given = _Given(name, args, begun, perf_counter(), found)
        return found

    return answer


class _Given(NamedTuple):
    """A request, when it began and ended to be answered, and the answer."""

    name: str
    args: tuple[object, ...]
    begun: float
    ended: float
    answer: bytes | list[memoryview] | int


class Caller(NamedTuple):
    """Who makes something, and with which mode, its umask applied."""

    uid: int
    gid: int
    thread: int
    mode: int


def _creator(caller: Caller) -> Creator:
    return Creator(uid=caller.uid, gid=caller.gid, mode=stat.S_IMODE(caller.mode))


class Express:
    """Answers for one file system.

    Args:
        handles: of the mount, so that no two handles have the same number.
        ring: recognises repeated calls; None: nothing is changed here.
    """

    def __init__(
        self, fs: FileSystem, shower: Shower, handles: Handles, ring: RepeatRing | None = None
    ) -> None:
        self.fs = fs
        self._ring = ring
        self._intent: Any = None
        """Of the change that is being answered. Any: an Intent of the ring's own class."""
        self._given: _Given | None = None
        """The answer that is being written."""
        self._volume = fs.volume
        self._shower = shower
        self._handles = handles
        self._caches = EntryCaches(fs.volume.nodes, fs.lister.is_fresh)
        self._ends: dict[int, tuple[int, int]] = {}
        """By handle of a directory: the position behind which there was nothing, and `MountDatabase.changes` then."""
        self._ahead = Ahead(fs, shower)

    @_at_once
    def lookup(self, parent: int, name: bytes) -> Answer:
        """Find a name."""
        directory, text = Inode(parent), decode_name(name)
        namespace = self.fs.namespace
        found = namespace.known(directory, text)
        if found is None:
            return None
        namespace.note_hit(directory, text)
        self.fs.pruner.note_use(directory)
        if found is not ABSENT:
            return self._shower.entry_reply(found, namespace.valid_for_s(found))
        valid_s = namespace.tell_absent(directory, text)
        return absence_reply(valid_s) if valid_s else errno.ENOENT

    @_at_once
    def getattr(self, inode: int) -> Answer:
        """Show attributes."""
        return self._attributes(inode)

    def _attributes(self, inode: int) -> bytes:
        node = self._volume.node(inode)
        return self._shower.attributes_reply(node, self.fs.attributes_valid_for_s(node))

    @_at_once
    def getxattr(self, name: bytes) -> Answer:
        """Say of what nobody can have set, and the kernel asks for before it writes, that it is not supported."""
        return None if name.startswith(USER) else errno.EOPNOTSUPP

    # Changes of names

    def _change(self, call: Call, change: Change) -> Node | None:
        """Make a change unless that has to be waited for, or may be the repetition of a call; `answered` is called next."""
        ring = self._ring
        if ring is None or ring.awaited(call) is not None:
            return None
        directory, text = Inode(call.parent), decode_name(call.name)
        intent = ring.begin(call)
        try:
            node = change(
                directory,
                text,
                lambda inode: self._volume.journal.put_call(
                    intent.number, inode, oldest=ring.oldest
                ),
            )
        except Exception:
            ring.answered(intent)
            raise
        if node is None:
            ring.answered(intent)
        else:
            self._intent = intent
        return node

    def when_kept(self, reply: Callable[[], object]) -> None:
        """Have an answer written once what it acknowledges would outlive the worker; without it, the next worker is asked again."""
        self._volume.database.when_settled(reply)

    def settle(self) -> None:
        """Keep everything, before others than this get their turn."""
        self._volume.database.settle()

    def answered(self) -> None:
        """Take note that the answer is written: who asked goes on meanwhile."""
        if self._ring is not None and self._intent is not None:
            self._ring.answered(self._intent)
            self._intent = None
        if self._given is not None:
            name, args, begun, ended, answer = self._given
            self._given = None
            number = answer if isinstance(answer, int) else 0
            self.fs.counters.answered(name, begun, ended, failed=number != 0)
            if log.isEnabledFor(logging.DEBUG):
                result = errno.errorcode[number] if number else "ok"
                log.debug("%s%r: %s, %.2f ms", name, args, result, (ended - begun) * 1e3)

    @_at_once
    def mkdir(self, parent: int, name: bytes, caller: Caller) -> Answer:
        """Make a directory."""
        tree, who = self.fs.tree, _creator(caller)
        node = self._change(
            Call(Opcode.MKDIR, parent, name, caller.thread),
            lambda directory, text, record: tree.mkdir_now(directory, text, who, record),
        )  # fmt: skip
        if node is None:
            return None
        return self._shower.entry_reply(node, self.fs.namespace.valid_for_s(node))

    @_at_once
    def create(self, parent: int, name: bytes, flags: int, caller: Caller) -> Answer:
        """Make and open a file that is going to be written."""
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return None
        tree, who, exclusive = self.fs.tree, _creator(caller), bool(flags & os.O_EXCL)
        node = self._change(
            Call(Opcode.CREATE, parent, name, caller.thread),
            lambda directory, text, record: tree.create_now(
                directory, text, who, record, exclusive=exclusive
            ),
        )  # fmt: skip
        if node is None:
            return None
        try:
            self.fs.stages.take_up(node)
        except (
            OSError
        ) as error:  # it is made all the same: asked once more, `Operations` would say EEXIST
            return error.errno or errno.EIO
        self.fs.stages.opened(node.id)
        handle = self._handles.make(node.id, writes=True)
        valid_s = self.fs.namespace.valid_for_s(node)
        entry = self._shower.entry_reply(node, valid_s, self.fs.attributes_valid_for_s(node))
        return entry + replies.OPEN_OUT.pack(handle, replies.KEEP_CACHE, 0)

    def not_created(self, answer: bytes) -> None:
        """Take back what *answer* to `create` says of a handle: who asked for it is gone."""
        self.release(replies.OPEN_OUT.unpack(answer[replies.ENTRY_OUT.size :])[0])

    @_at_once
    def unlink(self, parent: int, name: bytes, thread: int) -> Answer:
        """Remove a file."""
        call = Call(Opcode.UNLINK, parent, name, thread)
        node = self._change(call, self.fs.tree.unlink_now)
        return None if node is None else 0

    @_at_once
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, thread: int
    ) -> Answer:
        """Give a file another name."""
        target, text = Inode(new_parent), decode_name(new_name)
        node = self._change(
            Call(Opcode.RENAME2, parent, name, thread, (new_parent, new_name)),
            lambda directory, old, record: self.fs.tree.rename_now(
                directory, old, target, text, flags, record
            ),
        )  # fmt: skip
        return None if node is None else 0

    # Files that are read

    @_at_once
    def open(self, inode: int, flags: int) -> Answer:
        """Open a file that is only read."""
        if flags & _WRITING != os.O_RDONLY:
            return None
        node = self._volume.node(inode)
        if node.kind != Kind.FILE or node.storage_class is not None:
            return None
        self.fs.prefetcher.opened(node)
        handle = self._handles.make(node.id)
        # What was opened so writes nothing, so nothing is to be done at close(2).
        return replies.OPEN_OUT.pack(handle, replies.KEEP_CACHE | replies.NO_FLUSH, 0)

    @_at_once
    def read(self, handle: int, offset: int, size: int) -> Answer:
        """Read what is in memory of a file that has no staged data."""
        inode = read_handle(handle).inode
        node = self._volume.node(inode)
        if node.etag is None or self.fs.stages.get(inode) is not None:
            return None
        found = self.fs.reader.read_now(node, node.etag, node.size, offset, size, handle=handle)
        if found is not None:
            self.fs.counters.read_bytes += sum(map(len, found))
        return found

    # Files that are written

    @_at_once
    def write(self, handle: int, offset: int, data: memoryview) -> Answer:
        """Write what has to wait for nothing."""
        written = self.fs.write_now(read_handle(handle).inode, offset, data)
        if written is None:
            return None
        self.fs.counters.written_bytes += written
        return replies.WRITE_OUT.pack(written, 0)

    @_at_once
    def flush(self, handle: int) -> Answer:
        """Do nothing at close(2) of what was only read, or is uploaded later and need not wait for room."""
        inode, writes = read_handle(handle)
        if writes:
            self._volume.node(inode)  # fails where a lost mount.db took it
            return 0 if self.fs.may_close_now() else None
        return 0

    @_at_once
    def release(self, handle: int) -> Answer:
        """Note that a handle is gone. Nobody waits for the answer, so it is for `when_kept`."""
        inode, writes = read_handle(handle)
        self.fs.reader.close(handle)
        if writes:
            try:
                self.fs.closed(inode, soon=True)
            except Exception:
                self.fs.stages.opened(inode)  # `Operations` closes it once more
                raise
        return 0

    @_at_once
    def setattr(self, inode: int, change: AttributeChange) -> Answer:
        """Do chmod and utimens, or take the times that a kernel which gathers writes kept of a file."""
        number, mtime_ns, ctime_ns = Inode(inode), change.mtime_ns, change.ctime_ns
        if (
            mtime_ns is not None
            and ctime_ns is not None
            and change == AttributeChange(mtime_ns=mtime_ns, ctime_ns=ctime_ns)
            and self.fs.stages.written_at(number, mtime_ns, ctime_ns)
        ):
            return self._attributes(inode)
        if self.fs.attributes.change_now(number, change) is None:
            return None
        if mtime_ns is not None:
            self.fs.stages.time_set(number)
        return self._attributes(inode)

    # Directories

    @_at_once
    def opendir(self, inode: int) -> Answer:
        """Open a directory, and say what the kernel may keep of its entries."""
        directory = self._volume.directory(inode)
        self.fs.pruner.note_use(directory.id)
        handle = self._handles.make(directory.id)
        flags = self._caches.opened(directory, handle)
        if flags & replies.KEEP_CACHE:
            self.fs.lister.note_read(directory.id)  # nobody will ask for the entries
        return replies.OPEN_OUT.pack(handle, flags, 0)

    def interrupted(self, answer: bytes) -> None:
        """Take back what *answer* to `opendir` says: who asked for it is gone."""
        self.releasedir(replies.OPEN_OUT.unpack(answer)[0])

    @_at_once
    def prepare(self, answer: bytes) -> Answer:
        """Make the beginning of the listing that whoever got *answer* to `opendir` is about to ask for."""
        handle, flags, _ = replies.OPEN_OUT.unpack(answer)
        if not flags & replies.KEEP_CACHE:
            self._ahead.opened(read_handle(handle).inode)
        return None

    @_at_once
    def look_ahead(self) -> Answer:
        """Make what whoever got an answer to `readdir` is about to ask for."""
        self._ahead.look()
        return None

    @_at_once
    def readdir(self, handle: int, position: int, size: int) -> Answer:
        """Give the two dots, then entries in the order of their inode numbers, which are also the positions."""
        inode = read_handle(handle).inode
        volume, namespace = self._volume, self.fs.namespace
        changes = volume.database.changes
        if position and self._ends.get(handle) == (position, changes):
            self.fs.lister.note_read(inode)  # what a walk does next, it does after the end
            return replies.NOTHING
        directory = volume.directory(inode)
        if not namespace.knows_entries(directory, position):
            return None
        self.fs.pruner.note_use(inode)
        self._caches.reading(directory, handle, position)
        piece = self._ahead.take(inode, position, size)
        if piece is None:
            limit = size // ENTRY_BYTES + 1  # more than there is room for
            entries = namespace.known_entries(directory, position, limit)
            piece = self._shower.part(directory, entries, position, size)
        self._ahead.given(inode, position, piece)
        if piece.is_all:
            if len(self._ends) >= MAX_ENDS:
                self._ends.clear()
            self._ends[handle] = piece.position, changes
        return piece.body

    def reading(self, handle: int, position: int) -> None:
        """Note that entries from *position* on, as they are now, are given to a handle. No checkpoint until they are."""
        self._caches.reading(self._volume.directory(read_handle(handle).inode), handle, position)

    @_at_once
    def releasedir(self, handle: int) -> Answer:
        """Note that a directory's handle is gone."""
        self._ends.pop(handle, None)
        self._caches.released(handle)
        return 0
