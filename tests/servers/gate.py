"""A TCP relay in front of a server that can be shut and opened: the network's failure, at a moment of the test's choice."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

from tests.servers.endpoint import Endpoint

CHUNK_BYTES = 1 << 18


class Gate:
    """A relay to one endpoint. `endpoint` is the way through it."""

    def __init__(self, behind: Endpoint) -> None:
        address = urlsplit(behind.url)
        self._target = (address.hostname or "", address.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_shut = False
        port = self._listener.getsockname()[1]
        self.endpoint = replace(behind, url=f"http://127.0.0.1:{port}")
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def shut(self) -> None:
        """Cut every connection and refuse new ones until `open`."""
        with self._lock:
            self._is_shut = True
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """Let everybody through again."""
        with self._lock:
            self._is_shut = False

    def close(self) -> None:
        """End it for good."""
        self.shut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        self._acceptor.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket() as server:
            with self._lock:
                if self._is_shut:
                    return
                self._open |= {client, server}
            try:
                server.connect(self._target)
                self._carry(client, server)
            except OSError:
                return
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what one connection brings, both ways, until either side is through."""
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def gate_before(endpoint: Endpoint) -> Iterator[Gate]:
    """Run a gate in front of *endpoint*."""
    gate = Gate(endpoint)
    try:
        yield gate
    finally:
        gate.close()
