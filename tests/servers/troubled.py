"""A relay before an S3 server that understands requests, and answers some of them badly when a test says so.

What befalls the next requests: *unavailable* (503 SlowDown), *error* (500), *reset* (the connection is cut before the
server hears of it), *lost* (the server does it, and nobody hears the answer), *slow*, *truncate* (half of an answer, then the
connection is cut), *corrupt* (a bit of an object's bytes is another, on their way there or back) and *hang* (no answer).
"""

import http.client
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Final, Literal
from urllib.parse import urlsplit

from tests.servers.endpoint import Endpoint

Trouble = Literal["unavailable", "error", "reset", "lost", "slow", "truncate", "corrupt", "hang"]
SLOW_S: Final = 0.05
STATUS: Final = {"unavailable": (503, "SlowDown"), "error": (500, "InternalError")}
OF_CONNECTIONS: Final = frozenset({"connection", "transfer-encoding", "content-length"})


class Relay:
    """A relay to one endpoint. `endpoint` is the way through it; `met` counts the requests that met trouble."""

    def __init__(self, behind: Endpoint) -> None:
        address = urlsplit(behind.url)
        self.target: Final = (address.hostname or "", address.port or 0)
        self._lock = threading.Lock()
        self._trouble: Trouble = "slow"
        self._left = 0
        self._kinds: Sequence[Trouble] = ()
        self._share = 0.0
        self._random = Random(0)  # noqa: S311 the same troubles each time
        self.met = 0
        self.over: Final = threading.Event()
        relay = self

        class Handler(_Handler):
            owner = relay

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint: Final = replace(
            behind, url=f"http://127.0.0.1:{self._server.server_address[1]}"
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def trouble(self, what: Trouble, requests: int) -> None:
        """Let the next *requests* meet trouble."""
        with self._lock:
            self._trouble, self._left = what, requests

    def trouble_some(self, kinds: Sequence[Trouble], share: float) -> None:
        """Let a share of all requests meet trouble of one of *kinds*, until told otherwise."""
        with self._lock:
            self._kinds, self._share = kinds, share

    def next(self) -> Trouble | None:
        """Return what befalls the request that came now."""
        with self._lock:
            if self._share and self._random.random() < self._share:
                self.met += 1
                return self._random.choice(self._kinds)
            if not self._left:
                return None
            self._left -= 1
            self.met += 1
            return self._trouble

    def close(self) -> None:
        """End it."""
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # idle connections of others would keep it
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed goes without a word."""


class _Handler(BaseHTTPRequestHandler):
    """One connection from a client, and one to the server for it."""

    owner: Relay
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self._server_side = http.client.HTTPConnection(*self.owner.target)

    def finish(self) -> None:
        self._server_side.close()
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self._relay()
        self.wfile.flush()

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        trouble = self.owner.next()
        if trouble in STATUS:
            self._refuse(*STATUS[trouble])
            return
        if trouble == "reset":
            self.close_connection = True
            return
        if trouble == "slow":
            time.sleep(SLOW_S)
        if trouble == "hang":
            self._hang()
            return
        if trouble == "corrupt" and self.command == "PUT" and body:
            body = _flipped(body)
        method, target, _ = self.requestline.split(" ", 2)
        names = {name.lower() for name in self.headers} - OF_CONNECTIONS
        self._server_side.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name in names:
            for value in self.headers.get_all(name, []):
                self._server_side.putheader(name, value)
        if body or "Content-Length" in self.headers:
            self._server_side.putheader("Content-Length", str(len(body)))
        self._server_side.endheaders(body or None)
        answer = self._server_side.getresponse()
        content = answer.read()
        if trouble == "lost":
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        length = answer.getheader("Content-Length") if method == "HEAD" else str(len(content))
        for name, value in answer.getheaders():
            if name.lower() not in OF_CONNECTIONS:
                self.send_header(name, value)
        if length is not None and answer.status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", length)
        self.end_headers()
        if trouble == "truncate":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        if trouble == "corrupt" and self._is_object(target) and content:
            content = _flipped(content)
        self.wfile.write(content)

    def _is_object(self, target: str) -> bool:
        """Whether the answer is an object's bytes: what S3 has checksums of."""
        path, _, query = target.partition("?")
        return self.command == "GET" and path.strip("/").count("/") > 0 and not query

    def _hang(self) -> None:
        """Say nothing until the client has had enough."""
        self.close_connection = True
        while not self.owner.over.is_set():
            if wait([self.connection], 0.05):
                return

    def _refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>Trouble.</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _flipped(data: bytes) -> bytes:
    """Change one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


@contextmanager
def relay_before(endpoint: Endpoint) -> Iterator[Relay]:
    """Run a relay in front of *endpoint*."""
    relay = Relay(endpoint)
    try:
        yield relay
    finally:
        relay.close()


class FarRelay:
    """A relay in a process of its own: it answers whatever this process waits for, a page of a mount's file, say."""

    def __init__(self, behind: Endpoint) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, orders = context.Pipe()
        self._process = context.Process(target=_serve, args=(behind, orders))
        self._process.start()
        orders.close()
        self.endpoint: Final[Endpoint] = self._orders.recv()

    def trouble(self, what: Trouble, requests: int) -> None:
        """Let the next *requests* meet trouble."""
        self._orders.send((what, requests))
        self._orders.recv()

    def close(self) -> None:
        """End it."""
        self._orders.close()
        self._process.join()


def _serve(behind: Endpoint, orders: Connection) -> None:
    """Run a relay until nobody is left who gives orders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when who started it does
    with relay_before(behind) as relay:
        orders.send(relay.endpoint)
        with suppress(EOFError):
            while True:
                what, requests = orders.recv()
                relay.trouble(what, requests)
                orders.send(None)


@contextmanager
def far_relay_before(endpoint: Endpoint) -> Iterator[FarRelay]:
    """Run a relay in front of *endpoint*, in another process."""
    relay = FarRelay(endpoint)
    try:
        yield relay
    finally:
        relay.close()
