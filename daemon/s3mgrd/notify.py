"""Tell systemd how the daemon is (sd_notify(3)), where there is one; otherwise do nothing.

The variables are taken out of the environment, so that no worker can speak for the daemon.
"""

import array
import logging
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

log = logging.getLogger(__name__)

FIRST_PASSED_FD: Final = 3
STORE_LIMIT_S: Final = 2.0
# What systemd gives to the daemon alone; children must not inherit it.
_OURS_ALONE: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "FDSTORE",
    "CREDENTIALS_DIRECTORY",
)


class Notifier:
    """A line to systemd.

    Attributes:
        watchdog_s: a `ping` is due at least this often; None: systemd does not watch.
    """

    def __init__(
        self,
        address: str | None,
        watchdog_s: float | None,
        descriptors: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.watchdog_s: Final = watchdog_s
        self._address: Final = address
        self._descriptors: Final = list(descriptors)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """Take what systemd put into *environ*."""
        given = {name: environ.pop(name) for name in _OURS_ALONE if name in environ}
        watchdog_s = None
        meant = given.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if meant and given.get("WATCHDOG_USEC", "").isdigit():
            watchdog_s = int(given["WATCHDOG_USEC"]) / 1e6
        return cls(given.get("NOTIFY_SOCKET") or None, watchdog_s or None, _descriptors(given))

    @property
    def is_heard(self) -> bool:
        """Whether there is a systemd."""
        return self._address is not None

    def take_descriptors(self) -> list[tuple[str, int]]:
        """Return what came with the start, by name; the caller owns the descriptors then."""
        taken = list(self._descriptors)
        self._descriptors.clear()
        return taken

    def store_descriptor(self, name: str, fd: int) -> None:
        """Have systemd hold *fd*, which stays the caller's, for the next start; blocks until systemd has it.

        Where the service may store none (``FileDescriptorStoreMax=``), systemd closes it, and tells nobody but its log.
        """
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd=fd, limit_s=STORE_LIMIT_S)

    def remove_descriptor(self, name: str) -> None:
        """Have systemd close what it holds by that name; blocks until systemd knows."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}", limit_s=STORE_LIMIT_S)

    def ready(self) -> None:
        """Tell that the start is over."""
        self._send("READY=1\nSTATUS=")

    def stopping(self) -> None:
        """Tell that the stop has begun."""
        self._send("STOPPING=1")

    def status(self, text: str, *, extend_s: float | None = None) -> None:
        """Show *text* in ``systemctl status``, and ask for *extend_s* more seconds from now."""
        message = f"STATUS={' '.join(text.split())}"
        if extend_s is not None:
            message += f"\nEXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}"
        self._send(message)

    def ping(self) -> None:
        """Tell that the loop turns."""
        self._send("WATCHDOG=1")

    def _send(self, message: str, *, fd: int | None = None, limit_s: float = 0.0) -> None:
        if self._address is None:
            return
        # A leading @ means the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.settimeout(limit_s)  # 0: a manager that does not read must not stop the loop
                rights = array.array("i", [] if fd is None else [fd]).tobytes()
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
                line.sendmsg([message.encode()], ancillary, 0, address)
        except OSError as error:
            log.debug("systemd cannot be told: %s", error)


def _descriptors(given: Mapping[str, str]) -> list[tuple[str, int]]:
    """Take the descriptors that systemd passed, as sd_listen_fds_with_names(3) does."""
    count = given.get("LISTEN_FDS", "")
    if given.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    names = given.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for fd, name in enumerate(names[: int(count)], FIRST_PASSED_FD):
        os.set_inheritable(fd, False)
        found.append((name, fd))
    return found
