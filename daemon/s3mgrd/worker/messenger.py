"""What is told to the kernel and may have to wait for it, told by a process of its own.

To drop a name, the kernel takes the lock of its directory, and waits without listening to signals. Who holds that lock
may be a program whose mkdir or lookup this very worker has yet to answer. While the worker lives, it answers, and the wait
ends. But if it was killed in this moment, a thread of its own in such a wait kept it from ending, no other worker could
take its place, and the program, the lock and the wait would last for ever. So the worker forks a messenger as its first
act, and it is the messenger that waits. It holds nothing that stops the next worker. When the worker has died, it keeps
the connection for a while (`worker.keeper`).

One packet is one batch: its number, then whole notifications, each with its length in front as the kernel wants it. The
messenger answers with the number and an errno for each. Batches wait beside each other, each in a thread.
"""

import array
import errno
import gc
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Final, NoReturn

import msgspec
import trio

from s3mgrd import logs
from s3mgrd.worker.keeper import KEEP_LIMIT_S, Kept, keep
from s3mgrd.worker.privileges import name_process, renounce
from s3mgrd.worker.protocol import Descriptors

log = logging.getLogger(__name__)

MAX_BATCH_BYTES: Final = 64 << 10
MAX_BATCHES: Final = 16
"""Under way at once; whoever wants to tell more waits."""
MAX_REPLY_BYTES: Final = 64 << 10
ATTACHED: Final = 3
"""Descriptors that come with a connection."""
FIRST_FD: Final = 3
"""What comes before are the null device and the log."""
_NUMBER: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<I")


class Messenger:
    """The worker's end. `start` it before the process has a thread or an open file; `run` is one task."""

    def __init__(self, sock: socket.socket) -> None:
        self._stdlib_socket: Final = sock
        self._socket: trio.socket.SocketType | None = None
        self._limiter: trio.CapacityLimiter | None = None
        self._waiting: dict[int, tuple[trio.Event, list[int]]] = {}
        self._last = 0

    @classmethod
    def start(cls, *, keep_limit_s: float = KEEP_LIMIT_S) -> "Messenger":
        """Fork the messenger.

        Args:
            keep_limit_s: how long it keeps the connection after this process's death.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Opened here: by the time the other process looks, this one may have ended.
        worker = os.pidfd_open(os.getpid())
        if os.fork() == 0:
            _be_messenger(theirs, worker, keep_limit_s)
        os.close(worker)
        theirs.close()
        return cls(ours)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take the answers until the messenger ends."""
        self._limiter = trio.CapacityLimiter(MAX_BATCHES)
        self._socket = trio.socket.from_stdlib_socket(self._stdlib_socket)
        task_status.started()
        try:
            while reply := await self._socket.recv(MAX_REPLY_BYTES):
                (number,) = _NUMBER.unpack_from(reply)
                waiting = self._waiting.pop(number, None)
                if waiting is not None:
                    waiting[1].extend(array.array("i", reply[_NUMBER.size :]))
                    waiting[0].set()
            log.error("the process that tells the kernel what changed has ended")
        except OSError as error:
            log.error("the process that tells the kernel what changed has gone: %s", error)  # noqa: TRY400 - no bug
        finally:
            self._socket.close()
            self._socket = None
            for event, _ in self._waiting.values():
                event.set()

    async def attach(
        self, described: Descriptors, fuse_fd: int, ring_fd: int, listener_fd: int
    ) -> None:
        """Tell this kernel connection from now on, and keep it when this process dies; see `worker.keeper.Kept`.

        The messenger gets descriptors of its own.
        """
        if self._socket is not None:
            rights = array.array("i", [fuse_fd, ring_fd, listener_fd]).tobytes()
            await self._socket.sendmsg(
                [_NUMBER.pack(0), msgspec.json.encode(described)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
            )

    async def detach(self) -> None:
        """Have the messenger close the connection: it has ended, and nothing is to be kept."""
        if self._socket is not None:
            await self._socket.send(_NUMBER.pack(0))

    async def tell(self, notifications: Iterable[bytes]) -> list[int]:
        """Send notifications to the kernel and wait until it has taken them.

        Returns:
            What the kernel said of each, in order: 0 or an errno. Shorter when the messenger has gone: nobody knows then.
        """
        said: list[int] = []
        for batch in _batches(notifications):
            if self._socket is None or self._limiter is None:
                break
            async with self._limiter:
                said += await self._send(self._socket, batch)
        return said

    async def _send(self, sock: trio.socket.SocketType, batch: bytes) -> list[int]:
        self._last += 1
        number, event, said = self._last, trio.Event(), list[int]()
        self._waiting[number] = event, said
        try:
            await sock.send(_NUMBER.pack(number) + batch)
            await event.wait()
        except OSError as error:
            log.debug("the messenger cannot be told: %s", error)
        finally:
            self._waiting.pop(number, None)
        return said


def _batches(notifications: Iterable[bytes]) -> Iterator[bytes]:
    batch = bytearray()
    for notification in notifications:
        if batch and len(batch) + len(notification) > MAX_BATCH_BYTES:
            yield bytes(batch)
            batch.clear()
        batch += notification
    if batch:
        yield bytes(batch)


# The messenger's side


def _be_messenger(sock: socket.socket, worker: int, keep_limit_s: float) -> NoReturn:
    """Pass on what the worker (a pidfd) says until it has ended, then keep what it served."""
    try:
        low, high = sorted((sock.fileno(), worker))
        os.closerange(FIRST_FD, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
        name_process("s3mgr:messenger")
        renounce()
        gc.freeze()  # a collection would copy every page that is shared with the worker
        gc.disable()
        kept = _pass_on(sock)
        if kept is not None and kept.can_be_resumed:
            sock.close()
            logs.setup("info", "text")  # as the worker's
            log.info("the worker has ended; its connection is kept for the next")
            reason = keep(kept, worker, limit_s=keep_limit_s)
            log.info("the connection is not kept any more: %s", reason)
    finally:
        os._exit(0)


def _pass_on(sock: socket.socket) -> Kept | None:
    """Work until the worker has closed *sock*; returns the connection that it served, if that has not ended."""
    kept: Kept | None = None
    while True:
        packet, fds, _, _ = socket.recv_fds(sock, MAX_BATCH_BYTES + 4096, ATTACHED)
        if not packet:
            return kept
        (number,) = _NUMBER.unpack_from(packet)
        if number:
            fuse_fd = kept.fuse_fd if kept is not None else -1
            thread = threading.Thread(
                target=_notify, args=(sock, fuse_fd, packet, number), daemon=True
            )
            thread.start()
            continue
        if kept is not None:
            kept.close()
        kept = None
        if len(fds) == ATTACHED:
            described = msgspec.json.decode(packet[_NUMBER.size :], type=Descriptors)
            kept = Kept(described, *fds)


def _notify(sock: socket.socket, fuse_fd: int, packet: bytes, number: int) -> None:
    said = array.array("i")
    position = _NUMBER.size
    while position < len(packet):
        (length,) = _LENGTH.unpack_from(packet, position)
        try:
            os.write(fuse_fd, packet[position : position + length])
            said.append(0)
        except OSError as error:
            said.append(error.errno or errno.EIO)
        position += length
    try:
        sock.send(_NUMBER.pack(number) + said.tobytes())
    except OSError:  # nobody is there any more who would want to know
        return
