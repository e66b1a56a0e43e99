"""Who is at the other end of a connection: unix peer credentials.

Authentication only; what a principal may do is decided by the domain. Decisions rest on uid and groups, never on the
pid: a process may end and its number be given to another while its connection is open. All credentials are those at
the time of connect(2), as the kernel recorded them.
"""

import errno
import grp
import logging
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

from s3mgrd.mounts.service import Principal
from s3mgrd.peers import peer_of

log = logging.getLogger(__name__)

# linux/socket.h; Python names only SO_PEERCRED.
SO_PEERGROUPS: Final = 59
_GID: Final = struct.Struct("I")
# The most that Python's getsockopt takes; room for 256 groups.
_GROUPS_MAX_BYTES: Final = 1024

EXTENSION: Final = "s3mgr.peer"
"""Key in an ASGI scope's extensions; its value is ``{"principal": Principal}``."""


@dataclass(frozen=True, slots=True)
class AdminPolicy:
    """Who administers: root, the daemon's own user, and members of a group.

    Attributes:
        admin_uid: the uid that the daemon runs as.
        admin_gid: members of this group administer; None: there is no such group.
        worker_uid: never administers, whatever its groups: a worker that was taken over must not rule the daemon.
    """

    admin_uid: int
    admin_gid: int | None
    worker_uid: int | None = None

    def is_admin(self, uid: int, groups: frozenset[int]) -> bool:
        """Tell whether a peer with these credentials may administer."""
        if uid in (0, self.admin_uid):
            return True
        return uid != self.worker_uid and self.admin_gid is not None and self.admin_gid in groups


def admin_policy(
    admin_uid: int, admin_group: str | None, worker_user: str | None = None
) -> AdminPolicy:
    """Resolve the names, once: name services may block, and must not do so per connection."""
    if admin_group is None:
        return AdminPolicy(admin_uid, None)
    worker_uid = None if worker_user is None else pwd.getpwnam(worker_user).pw_uid
    try:
        return AdminPolicy(admin_uid, grp.getgrnam(admin_group).gr_gid, worker_uid)
    except KeyError:
        log.info(
            "group '%s' does not exist: only root and uid %d administer", admin_group, admin_uid
        )
        return AdminPolicy(admin_uid, None)


def peer_principal(peer: trio.socket.SocketType, policy: AdminPolicy) -> Principal:
    """Read the credentials of the process that connected *peer*, a connected unix stream socket.

    Raises:
        OSError: the kernel does not tell; the connection must be refused.
    """
    pid, uid, gid = peer_of(peer)
    groups = _supplementary_groups(peer) | {gid}
    return Principal(
        uid=uid, gid=gid, groups=groups, pid=pid, is_admin=policy.is_admin(uid, groups)
    )


def _supplementary_groups(peer: trio.socket.SocketType) -> frozenset[int]:
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_MAX_BYTES)
    except OSError as exc:
        # ERANGE: more groups than fit. ENOPROTOOPT: Linux before 4.13. Fewer groups can only mean fewer rights.
        if exc.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
            raise
        log.warning("the peer's groups are not known (%s): only its primary group counts", exc)
        return frozenset()
    return frozenset(gid for (gid,) in _GID.iter_unpack(raw))
