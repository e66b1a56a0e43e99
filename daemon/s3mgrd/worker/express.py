"""Has `s3mgrd.fs.kernel.express` asked before libfuse and pyfuse3 see a request.

`Lane` reads a request as the kernel wrote it and writes the reply as the kernel reads it. What `Express` does not answer
is left as it is, and goes on to libfuse as if nobody had looked. So a request that mount.db can answer needs no
coroutine and no call through ctypes, and opendir's reply can say that the kernel may keep the entries, which pyfuse3 3.5 cannot.

The alternative is a compiled module of our own, which every architecture would have to build.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.kernel.express import Answer, Caller, Express
from s3mgrd.fuse import abi
from s3mgrd.fuse.abi import Opcode

log = logging.getLogger(__name__)

_BODY: Final = abi.IN_HEADER.size
"""Where a request goes on behind its header."""
_HEAD_BYTES: Final = abi.OUT_HEADER.size
_THREAD: Final = 6
"""The field of a request's header that says which thread asks."""
_SET_HERE: Final = abi.FATTR_MODE | abi.FATTR_ATIME | abi.FATTR_MTIME
_BESIDE: Final = abi.FATTR_CTIME | abi.FATTR_FH | abi.FATTR_LOCKOWNER
"""What SETATTR may say besides: the time of the change, from a kernel that gathers writes, and through which open file."""
_NS: Final = 1_000_000_000

Handler = Callable[[int, memoryview], Answer]
"""Takes the inode number and the whole request."""


class Lane:
    """Answers what can be answered at once, on one connection.

    Args:
        fd: the connection, to which replies are written.
    """

    def __init__(self, express: Express, fd: int) -> None:
        self._express = express
        self._fd = fd
        self._handlers: Final[dict[int, Handler]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: lambda inode, _: express.getattr(inode),
            Opcode.SETATTR: self._setattr,
            Opcode.MKDIR: self._mkdir,
            Opcode.CREATE: self._create,
            Opcode.UNLINK: self._unlink,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.GETXATTR: self._getxattr,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: lambda _, request: express.flush(_handle(request)),
            Opcode.RELEASE: lambda _, request: express.release(_handle(request)),
            Opcode.OPENDIR: lambda inode, _: express.opendir(inode),
            Opcode.RELEASEDIR: lambda _, request: express.releasedir(_handle(request)),
            Opcode.READDIRPLUS: self._readdir,
        }
        self._untold: Final[dict[int, Callable[[bytes], None]]] = {
            Opcode.OPENDIR: express.interrupted,
            Opcode.CREATE: express.not_created,
        }
        """Told of an answer that nobody took, because who asked was killed."""
        self._afterwards: Final[dict[int, Callable[[Answer], object]]] = {
            Opcode.OPENDIR: _if_bytes(express.prepare),
            Opcode.READDIRPLUS: lambda _: express.look_ahead(),
        }

    def __call__(self, request: memoryview) -> bool:
        """Answer a request; False: it is for libfuse. The request's memory is not used any longer than this."""
        opcode, unique, inode = abi.IN_HEADER_BEGIN.unpack_from(request)
        handler = self._handlers.get(opcode)
        if handler is None:
            return False
        answer = handler(inode, request)
        if answer is not None:
            if opcode == Opcode.RELEASE:
                self._express.when_kept(partial(self._reply, opcode, unique, answer))
            else:
                self._reply(opcode, unique, answer)
        self._express.answered()
        afterwards = self._afterwards.get(opcode)
        if afterwards is not None:
            afterwards(answer)
        return answer is not None

    def _reply(self, opcode: int, unique: int, answer: bytes | list[memoryview] | int) -> None:
        head = abi.OUT_HEADER.pack
        try:
            if isinstance(answer, bytes):
                os.write(self._fd, head(_HEAD_BYTES + len(answer), 0, unique) + answer)
            elif isinstance(answer, int):
                os.write(self._fd, head(_HEAD_BYTES, -answer, unique))
            else:
                size = _HEAD_BYTES + sum(map(len, answer))
                os.writev(self._fd, [head(size, 0, unique), *answer])
        except OSError as error:
            if error.errno != errno.ENOENT:
                name = errno.errorcode.get(error.errno or 0)
                log.debug("the kernel does not take an answer: %s", name)
            elif opcode in self._untold and isinstance(answer, bytes):
                self._untold[opcode](answer)

    def _lookup(self, inode: int, request: memoryview) -> Answer:
        return self._express.lookup(inode, _name(request, 0))

    def _setattr(self, inode: int, request: memoryview) -> Answer:
        valid, _, _, _, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode = (
            abi.SETATTR_IN.unpack_from(request, _BODY)
        )
        if valid & ~(_SET_HERE | _BESIDE) or not valid & _SET_HERE:
            return None
        change = AttributeChange(
            mode=stat.S_IMODE(mode) if valid & abi.FATTR_MODE else None,
            atime_ns=atime * _NS + atime_ns if valid & abi.FATTR_ATIME else None,
            mtime_ns=mtime * _NS + mtime_ns if valid & abi.FATTR_MTIME else None,
            ctime_ns=ctime * _NS + ctime_ns if valid & abi.FATTR_CTIME else None,
        )
        return self._express.setattr(inode, change)

    def _mkdir(self, inode: int, request: memoryview) -> Answer:
        mode, umask = abi.MKDIR_IN.unpack_from(request, _BODY)
        name = _name(request, abi.MKDIR_IN.size)
        return self._express.mkdir(inode, name, _caller(request, mode & ~umask))

    def _create(self, inode: int, request: memoryview) -> Answer:
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request, _BODY)
        name = _name(request, abi.CREATE_IN.size)
        return self._express.create(inode, name, flags, _caller(request, mode & ~umask))

    def _unlink(self, inode: int, request: memoryview) -> Answer:
        thread = abi.IN_HEADER.unpack_from(request)[_THREAD]
        return self._express.unlink(inode, _name(request, 0), thread)

    def _rename(self, inode: int, request: memoryview) -> Answer:
        (new_parent,) = abi.RENAME_IN.unpack_from(request, _BODY)
        return self._renamed(inode, new_parent, 0, request, abi.RENAME_IN.size)

    def _rename2(self, inode: int, request: memoryview) -> Answer:
        new_parent, flags, _ = abi.RENAME2_IN.unpack_from(request, _BODY)
        return self._renamed(inode, new_parent, flags, request, abi.RENAME2_IN.size)

    def _renamed(
        self, inode: int, new_parent: int, flags: int, request: memoryview, offset: int
    ) -> Answer:
        old, new, *_rest = request[_BODY + offset :].tobytes().split(b"\0", 2)
        thread = abi.IN_HEADER.unpack_from(request)[_THREAD]
        return self._express.rename(inode, old, new_parent, new, flags, thread)

    def _getxattr(self, _: int, request: memoryview) -> Answer:
        return self._express.getxattr(_name(request, abi.GETXATTR_NAME_OFFSET))

    def _open(self, inode: int, request: memoryview) -> Answer:
        flags, _ = abi.OPEN_IN.unpack_from(request, _BODY)
        return self._express.open(inode, flags)

    def _read(self, _: int, request: memoryview) -> Answer:
        handle, offset, size = abi.READ_IN.unpack_from(request, _BODY)
        return self._express.read(handle, offset, size)

    def _write(self, _: int, request: memoryview) -> Answer:
        handle, offset, size, *_rest = abi.WRITE_IN.unpack_from(request, _BODY)
        start = _BODY + abi.WRITE_IN.size
        data = request[start : start + size]
        return self._express.write(handle, offset, data) if len(data) == size else None

    def _readdir(self, _: int, request: memoryview) -> Answer:
        handle, position, size = abi.READ_IN.unpack_from(request, _BODY)
        return self._express.readdir(handle, position, size)


def _if_bytes(then: Callable[[bytes], object]) -> Callable[[Answer], object]:
    return lambda answer: then(answer) if isinstance(answer, bytes) else None


def _handle(request: memoryview) -> int:
    handle: int = abi.HANDLE_IN.unpack_from(request, _BODY)[0]
    return handle


def _name(request: memoryview, offset: int) -> bytes:
    """Return the name that begins *offset* bytes behind the header; it ends with a NUL, and extensions may follow."""
    return request[_BODY + offset :].tobytes().split(b"\0", 1)[0]


def _caller(request: memoryview, mode: int) -> Caller:
    _, _, _, _, uid, gid, thread, _, _ = abi.IN_HEADER.unpack_from(request)
    return Caller(uid, gid, thread, mode)
