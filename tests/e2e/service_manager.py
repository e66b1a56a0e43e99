"""A stand-in for systemd as far as its file descriptor store goes: it holds what it is sent, and gives it to the next start."""

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from tests.e2e.lab import Daemon

# systemd passes descriptors from the third on, and names the process that they are meant for.
LAUNCHER: Final = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [os.dup(fd) for fd in fds]
while any(fd < 3 + len(fds) for fd in high):
    high = [os.dup(fd) for fd in high]
for number, fd in enumerate(high, 3):
    os.dup2(fd, number, inheritable=True)
os.closerange(3 + len(fds), 1024)
if fds:
    os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(fds))
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceManager:
    """Holds descriptors for one daemon, which it starts."""

    def __init__(self, daemon: Daemon) -> None:
        self.stored: Final[list[tuple[str, int]]] = []
        self._daemon: Final = daemon
        self._program: Final = daemon.program
        self._changed: Final = threading.Condition()
        path = daemon.base / "notify"
        self._socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        daemon.environ["NOTIFY_SOCKET"] = str(path)
        self._thread: Final = threading.Thread(target=self._listen)
        self._thread.start()

    def start(self) -> Daemon:
        """Start the daemon with everything that is stored."""
        with self._changed:
            held = list(self.stored)
        self._daemon.pass_fds = [fd for _, fd in held]
        numbers = ",".join(str(fd) for _, fd in held)
        self._daemon.program = (
            *(Path(sys.executable), "-S", "-c", LAUNCHER, numbers),
            *self._program,
        )
        self._daemon.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in held)
        return self._daemon.start()

    def names(self) -> list[str]:
        """The names of what is stored."""
        with self._changed:
            return sorted(name for name, _ in self.stored)

    def put(self, name: str) -> None:
        """Store something else."""
        with self._changed:
            self.stored.append((name, os.open(os.devnull, os.O_RDONLY)))

    def end(self) -> None:
        """Close everything, as when the service is stopped for good."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(b"END", self._daemon.environ["NOTIFY_SOCKET"])
        self._thread.join()
        self._socket.close()
        for _, fd in self.stored:
            os.close(fd)
        self.stored.clear()

    def _listen(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 4, socket.MSG_CMSG_CLOEXEC)
            if data == b"END":
                return
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            with self._changed:
                if "FDSTORE" in message:
                    self.stored.extend((message["FDNAME"], fd) for fd in fds)
                elif "FDSTOREREMOVE" in message:
                    for name, fd in list(self.stored):
                        if name == message["FDNAME"]:
                            self.stored.remove((name, fd))
                            os.close(fd)
