"""Tell systemd how the daemon is (sd_notify(3)), where there is one; otherwise do nothing.

The variables are taken out of the environment, so that no worker can speak for the daemon.
"""

import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Final

log = logging.getLogger(__name__)

# What systemd gives to the daemon alone; children must not inherit it.
_OURS_ALONE: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
)


class Notifier:
    """A line to systemd.

    Attributes:
        watchdog_s: a `ping` is due at least this often; None: systemd does not watch.
    """

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        self.watchdog_s: Final = watchdog_s
        self._address: Final = address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """Take what systemd put into *environ*."""
        given = {name: environ.pop(name) for name in _OURS_ALONE if name in environ}
        watchdog_s = None
        meant = given.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if meant and given.get("WATCHDOG_USEC", "").isdigit():
            watchdog_s = int(given["WATCHDOG_USEC"]) / 1e6
        return cls(given.get("NOTIFY_SOCKET") or None, watchdog_s or None)

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

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # A leading @ means the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.setblocking(False)  # a manager that does not read must not stop the loop
                line.sendto(message.encode(), address)
        except OSError as error:
            log.debug("systemd cannot be told: %s", error)
