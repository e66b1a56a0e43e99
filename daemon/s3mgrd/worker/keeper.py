"""What holds a mount's kernel connection when its worker and its daemon have died together.

The kernel ends a connection when its last descriptor is closed: every program in the tree meets ENOTCONN, and what the
kernel had gathered of their writes is gone. So the worker's messenger (`worker.messenger`), which has the connection
anyway and outlives the worker, becomes its keeper then: it holds the descriptors that the next worker needs, and gives
duplicates to the daemon that asks at its socket. It never reads a request: the programs wait, and the kernel hands what
the dead worker had not answered to the next one.

A keeper is used only by a daemon that finds no worker. It ends when a daemon says `Stop` (another worker serves now, or
nobody shall), when the connection has ended, and in any case after a limit: programs must not wait for ever for a daemon
that does not come back.

The conversation is that of `worker.protocol`, of which a keeper knows `GetDescriptors` and `Stop`. The supervisor's side
is `worker.keepers`.
"""

import array
import os
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from s3mgrd.fuse.abi import Cap
from s3mgrd.peers import peer_of
from s3mgrd.worker.protocol import (
    MAX_MESSAGE_BYTES,
    Descriptors,
    ErrorReply,
    GetDescriptors,
    Ok,
    Packet,
    Stop,
)

KEEP_LIMIT_S: Final = 300.0
"""From the worker's death on. A service manager has given up on a daemon by then, or an administrator has been called."""
MAX_PEERS: Final = 8


@dataclass(frozen=True, slots=True)
class Kept:
    """What the next worker needs; owns the three descriptors.

    Attributes:
        described: as a worker that lives would describe them.
        fuse_fd: /dev/fuse.
        ring_fd: the ring's memfd.
        listener_fd: a listening socket, made by the supervisor.
    """

    described: Descriptors
    fuse_fd: int
    ring_fd: int
    listener_fd: int

    @property
    def can_be_resumed(self) -> bool:
        """Whether another worker could go on; if not, programs had better hear of the end at once."""
        caps = Cap(self.described.flags | self.described.flags2 << 32)
        return Cap.HAS_RESEND in caps

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.listener_fd, self.fuse_fd, self.ring_fd):
            os.close(fd)


def keep(kept: Kept, worker: int, *, limit_s: float) -> str:
    """Hold *kept* after the death of the process *worker* (a pidfd), and close it in the end; blocks until then.

    Whoever connects while the worker's last thread is still on its way out waits for that.

    Returns:
        Why it ended, for the log.
    """
    deadline = time.monotonic() + limit_s
    with socket.socket(fileno=os.dup(kept.listener_fd)) as listener:
        # The kernel noted who called listen(2): the supervisor.
        allowed = {0, peer_of(listener).uid}
        listener.setblocking(False)
        peers: dict[int, socket.socket] = {}
        poll = select.poll()
        poll.register(worker, select.POLLIN)
        poll.register(kept.fuse_fd, 0)  # tells the end of the connection only
        try:
            while True:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return f"no daemon came within {limit_s:g} s"
                for fd, _ in poll.poll(remaining_s * 1000):
                    if fd == kept.fuse_fd:
                        return "the kernel connection has ended"
                    if fd == worker:
                        poll.unregister(worker)
                        poll.register(listener, select.POLLIN)
                    elif fd == listener.fileno():
                        _accept(listener, allowed, peers, poll)
                    elif fd in peers and (done := _answer(peers[fd], kept)) is not None:
                        if done:
                            return "a daemon said so"
                        poll.unregister(fd)
                        peers.pop(fd).close()
        finally:
            kept.close()
            # Last: who waits for the end of its connection finds the descriptors closed.
            for peer in peers.values():
                peer.close()


def _accept(
    listener: socket.socket, allowed: set[int], peers: dict[int, socket.socket], poll: select.poll
) -> None:
    try:
        peer, _ = listener.accept()
    except OSError:  # it went away again
        return
    if len(peers) >= MAX_PEERS or peer_of(peer).uid not in allowed:
        peer.close()
        return
    peer.setblocking(False)
    peers[peer.fileno()] = peer
    poll.register(peer, select.POLLIN)


def _answer(peer: socket.socket, kept: Kept) -> bool | None:
    """Answer one request. Returns None: go on; False: the conversation is over; True: so is the keeping."""
    try:
        data = peer.recv(MAX_MESSAGE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return False
    try:
        packet = msgspec.json.decode(data, type=Packet)
    except msgspec.MsgspecError:  # the end of the conversation among them
        return False
    fds: tuple[int, ...] = ()
    body: Descriptors | Ok | ErrorReply
    match packet.body:
        case GetDescriptors():
            body, fds = kept.described, (kept.fuse_fd, kept.ring_fd)
        case Stop():
            body = Ok()
        case other:
            body = ErrorReply(
                kind="Unsupported", detail=f"a keeper does not answer {type(other).__name__}"
            )
    rights = array.array("i", fds).tobytes()
    reply = msgspec.json.encode(Packet(id=packet.id, reply=True, body=body))
    with suppress(OSError):  # who asked is gone
        peer.sendmsg([reply], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])
    return True if isinstance(packet.body, Stop) else None
