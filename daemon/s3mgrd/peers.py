"""Who is at the other end of a unix socket, as the kernel noted it (SO_PEERCRED, unix(7))."""

import socket
import struct
from typing import Final, NamedTuple, Protocol

_UCRED: Final = struct.Struct("iII")


class Peer(NamedTuple):
    """The process that connected, or that called listen(2) on a socket that listens."""

    pid: int
    uid: int
    gid: int


class _HasOptions(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_of(sock: _HasOptions) -> Peer:
    """Return who *sock*, of the standard library or of trio, is connected to. Raises OSError: the kernel does not tell."""
    return Peer._make(
        _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )
