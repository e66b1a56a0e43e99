"""Has libfuse ask `s3mgrd.fs.kernel.express` before it asks pyfuse3.

pyfuse3 gives libfuse a table of its handlers (``struct fuse_lowlevel_ops``) when it starts a session. `install` stands between
the two: it puts a function of ours into the slot through which pyfuse3 calls ``fuse_session_new``, and there replaces some of the
table's entries. Such an entry asks `Express`, and hands what that gives to libfuse as the reply; what it does not answer goes
on to pyfuse3's handler, as if nothing had been between. So a request that mount.db can answer needs no coroutine, and opendir's
reply can say that the kernel may keep the entries, which pyfuse3 3.5 cannot.

The alternative is a compiled module of our own, which every architecture would have to build. Where anything is not
as expected (`s3mgrd.worker.slots`), nothing is touched: all requests go to pyfuse3, and directories are read anew each time.
"""

import ctypes
import errno
import logging
import struct
from collections.abc import Callable
from typing import Final

import pyfuse3

from s3mgrd.fs.kernel.express import Answer, Caller, Express
from s3mgrd.worker import receiving
from s3mgrd.worker.slots import Unexpected, find_slot, write_slot

log = logging.getLogger(__name__)

SYMBOLS: Final = (b"fuse_session_new", b"fuse_session_new_versioned")
"""Its names up to libfuse 3.16, and since: the table comes second in both, and of those behind it none is ours."""

# struct fuse_lowlevel_ops: pointers to functions, in an order that does not change within libfuse 3.
_LOOKUP: Final = 2
_GETATTR: Final = 4
_SETATTR: Final = 5
_MKDIR: Final = 8
_OPEN: Final = 14
_READ: Final = 15
_FLUSH: Final = 17
_RELEASE: Final = 18
_OPENDIR: Final = 20
_RELEASEDIR: Final = 22
_GETXATTR: Final = 26
_CREATE: Final = 30
_WRITE_BUF: Final = 36
_READDIRPLUS: Final = 41
_POINTER_BYTES: Final = 8
# struct fuse_file_info: int flags (of open); 32 bits; 64 bits of padding less 32; uint64_t fh.
_FH_OFFSET: Final = 16
# struct fuse_bufvec: size_t count, idx, off; then of the first struct fuse_buf: size_t size; enum flags; void *mem.
_BUFFERS = struct.Struct("=QQQQi4xQ")
_IS_FD: Final = 1 << 1

# struct fuse_ctx: uid_t uid; gid_t gid; pid_t pid; mode_t umask.
_CALLER = struct.Struct("=4I")

# PYFUNCTYPE: both directions keep the interpreter's lock, as pyfuse3's own calls do.
_Session = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
)
_Lookup = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p)
_OfInode = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
_Read = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
)
_Write = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p
)
_Readdir = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
)
_Make = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint32)
_Create = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p
)
_Getxattr = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t
)
_Context = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_ReplyBytes = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
_ReplyPieces = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_ReplyError = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

_Setattr = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_KEPT_TIMES: Final = 1 << 5 | 1 << 10
"""FUSE_SET_ATTR_MTIME and FUSE_SET_ATTR_CTIME: what a kernel that gathers writes says of a file before it flushes."""
_MTIME, _CTIME = 88, 104
"""Where struct stat has these, on the machines that `s3mgrd.worker.slots` knows."""

_kept: list[object] = []
"""What replaced pointers point to; it must never be collected."""


def install(express: Express) -> bool:
    """Have *express* asked first in the session that pyfuse3 will start, the only one of this process; whether it will be."""
    try:
        _kept.append(_Lane(express))
    except (Unexpected, OSError, AttributeError) as exc:
        log.warning(
            "libfuse cannot be told to ask for answers directly: metadata is slower, and the kernel keeps no directories' "
            "entries: %s",
            exc,
        )
        return False
    return True


class _Lane:
    """The replaced slot and, once there is a session, the replaced handlers."""

    def __init__(self, express: Express) -> None:
        self._express = express
        module = ctypes.PyDLL(pyfuse3.__file__)
        self._reply_bytes = _ReplyBytes(_address(module, b"fuse_reply_buf"))
        self._reply_pieces = _ReplyPieces(_address(module, b"fuse_reply_iov"))
        self._reply_error = _ReplyError(_address(module, b"fuse_reply_err"))
        self._context = _Context(_address(module, b"fuse_req_ctx"))
        self._handlers: list[object] = []
        slot, address = _find(module)
        self._new_session = _Session(address)
        self._replacement = _Session(self._start)
        write_slot(slot, _pointer(self._replacement))

    def _start(self, arguments: int, table: int, size: int, fourth: int, fifth: int) -> int | None:
        if size >= (_READDIRPLUS + 1) * _POINTER_BYTES:
            self._replace(table)
        session: int | None = self._new_session(arguments, table, size, fourth, fifth)
        return session

    def _replace(self, table: int) -> None:
        """Put handlers of ours into a table of libfuse's, each before the one that it finds there."""
        express = self._express

        def entry(place: int) -> ctypes.c_uint64:
            return ctypes.c_uint64.from_address(table + place * _POINTER_BYTES)

        theirs_lookup = _Lookup(entry(_LOOKUP).value)
        theirs_getattr = _OfInode(entry(_GETATTR).value)
        theirs_setattr = _Setattr(entry(_SETATTR).value)
        theirs_mkdir = _Make(entry(_MKDIR).value)
        theirs_create = _Create(entry(_CREATE).value)
        theirs_getxattr = _Getxattr(entry(_GETXATTR).value)
        theirs_open = _OfInode(entry(_OPEN).value)
        theirs_read = _Read(entry(_READ).value)
        theirs_write = _Write(entry(_WRITE_BUF).value)
        theirs_flush = _OfInode(entry(_FLUSH).value)
        theirs_release = _OfInode(entry(_RELEASE).value)
        theirs_opendir = _OfInode(entry(_OPENDIR).value)
        theirs_releasedir = _OfInode(entry(_RELEASEDIR).value)
        theirs_readdir = _Readdir(entry(_READDIRPLUS).value)
        reply, caller = self._reply, self._caller

        def lookup(request: int, parent: int, name: bytes) -> None:
            if not reply(request, express.lookup(parent, name)):
                theirs_lookup(request, parent, name)

        def getattr_(request: int, inode: int, info: int | None) -> None:
            if not reply(request, express.getattr(inode)):
                theirs_getattr(request, inode, info)

        def setattr_(request: int, inode: int, status: int, fields: int, info: int | None) -> None:
            answer = None
            if fields == _KEPT_TIMES:
                answer = express.setattr(inode, _time(status + _MTIME), _time(status + _CTIME))
            if not reply(request, answer):
                theirs_setattr(request, inode, status, fields, info)

        def mkdir(request: int, parent: int, name: bytes, mode: int) -> None:
            answer = express.mkdir(parent, name, caller(request, mode))
            if not reply(request, answer):
                theirs_mkdir(request, parent, name, mode)
            express.answered()

        def create(request: int, parent: int, name: bytes, mode: int, info: int) -> None:
            flags = ctypes.c_int32.from_address(info).value
            answer = express.create(parent, name, flags, caller(request, mode))
            if not reply(request, answer, express.not_created):
                theirs_create(request, parent, name, mode, info)
            express.answered()

        def getxattr(request: int, inode: int, name: bytes, size: int) -> None:
            if not reply(request, express.getxattr(name)):
                theirs_getxattr(request, inode, name, size)

        def open_(request: int, inode: int, info: int) -> None:
            flags = ctypes.c_int32.from_address(info).value
            if not reply(request, express.open(inode, flags)):
                theirs_open(request, inode, info)

        def read(request: int, inode: int, size: int, offset: int, info: int) -> None:
            if not reply(request, express.read(_handle(info), offset, size)):
                theirs_read(request, inode, size, offset, info)

        def write(request: int, inode: int, buffers: int, offset: int, info: int) -> None:
            data = _received(buffers)
            answer = None if data is None else express.write(_handle(info), offset, data)
            if not reply(request, answer):
                theirs_write(request, inode, buffers, offset, info)

        def flush(request: int, inode: int, info: int) -> None:
            if not reply(request, express.flush(_handle(info))):
                theirs_flush(request, inode, info)

        def release(request: int, inode: int, info: int) -> None:
            if not reply(request, express.release(_handle(info))):
                theirs_release(request, inode, info)

        def opendir(request: int, inode: int, info: int) -> None:
            answer = express.opendir(inode)
            if not reply(request, answer, express.interrupted):
                theirs_opendir(request, inode, info)
            elif isinstance(answer, bytes):
                express.prepare(answer)

        def releasedir(request: int, inode: int, info: int) -> None:
            if not reply(request, express.releasedir(_handle(info))):
                theirs_releasedir(request, inode, info)

        def readdir(request: int, inode: int, size: int, position: int, info: int) -> None:
            if not reply(request, express.readdir(_handle(info), position, size)):
                theirs_readdir(request, inode, size, position, info)

        for place, ours in (
            (_LOOKUP, _Lookup(lookup)),
            (_GETATTR, _OfInode(getattr_)),
            (_SETATTR, _Setattr(setattr_)),
            (_MKDIR, _Make(mkdir)),
            (_CREATE, _Create(create)),
            (_GETXATTR, _Getxattr(getxattr)),
            (_OPEN, _OfInode(open_)),
            (_READ, _Read(read)),
            (_WRITE_BUF, _Write(write)),
            (_FLUSH, _OfInode(flush)),
            (_RELEASE, _OfInode(release)),
            (_OPENDIR, _OfInode(opendir)),
            (_RELEASEDIR, _OfInode(releasedir)),
            (_READDIRPLUS, _Readdir(readdir)),
        ):
            self._handlers.append(ours)
            entry(place).value = _pointer(ours)
        self._handlers += theirs_lookup, theirs_getattr, theirs_opendir, theirs_releasedir
        self._handlers += theirs_setattr, theirs_open, theirs_read, theirs_flush, theirs_release
        self._handlers += theirs_write, theirs_readdir, theirs_mkdir, theirs_create, theirs_getxattr

    def _caller(self, request: int, mode: int) -> Caller:
        """Return who makes a request, and the mode with the umask applied."""
        context = ctypes.string_at(self._context(request), _CALLER.size)
        uid, gid, thread, umask = _CALLER.unpack(context)
        return Caller(uid, gid, thread, mode & ~umask)

    def _reply(
        self, request: int, answer: Answer, interrupted: Callable[[bytes], None] | None = None
    ) -> bool:
        """Give libfuse an answer if there is one; returns whether there was."""
        if answer is None:
            return False
        if isinstance(answer, int):
            result = self._reply_error(request, answer)
        elif isinstance(answer, list):
            writable = [memoryview(bytearray(p)) if p.readonly else p for p in answer]
            result = self._reply_pieces(request, _vector(writable), len(writable))
        else:
            result = self._reply_bytes(request, answer, len(answer))
            if result == -errno.ENOENT and interrupted is not None:
                interrupted(answer)
        if result not in (0, -errno.ENOENT):  # ENOENT: who asked was killed meanwhile
            log.debug("the kernel does not take an answer: %s", errno.errorcode.get(-result))
        return True


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _vector(pieces: list[memoryview]) -> ctypes.Array[_Piece]:
    """Return what libfuse takes for a list of pieces, which must live as long as that. ctypes finds only writable memory."""
    vector = (_Piece * len(pieces))()
    for place, piece in zip(vector, pieces, strict=True):
        place.base = ctypes.addressof(ctypes.c_char.from_buffer(piece))
        place.length = len(piece)
    return vector


def _time(timespec: int) -> int:
    seconds, ns = ctypes.c_int64.from_address(timespec), ctypes.c_int64.from_address(timespec + 8)
    return seconds.value * 1_000_000_000 + ns.value


def _received(buffers: int) -> memoryview | None:
    """Return what a program writes, where it was received; None: libfuse has it elsewhere."""
    count, index, done, size, flags, memory = _BUFFERS.unpack(
        ctypes.string_at(buffers, _BUFFERS.size)
    )
    if (count, index, done) != (1, 0, 0) or flags & _IS_FD:
        return None
    return receiving.lent(memory, size)


def _handle(info: int) -> int:
    return ctypes.c_uint64.from_address(info + _FH_OFFSET).value


def _find(module: ctypes.PyDLL) -> tuple[int, int]:
    """Return the slot through which pyfuse3 starts sessions, and the function's address, which it holds."""
    for symbol in SYMBOLS:
        if hasattr(module, symbol.decode()):
            slot, address = find_slot(module, symbol), _address(module, symbol)
            if ctypes.c_uint64.from_address(slot).value != address:
                raise Unexpected(f"the slot of {symbol.decode()} holds something else")
            return slot, address
    raise Unexpected("libfuse starts sessions by another name")


def _address(module: ctypes.PyDLL, symbol: bytes) -> int:
    address = ctypes.cast(getattr(module, symbol.decode()), ctypes.c_void_p).value
    if address is None:
        raise Unexpected(f"{symbol.decode()} is nowhere")
    return address


def _pointer(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type] # any function
