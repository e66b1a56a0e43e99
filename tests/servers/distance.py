"""A relay that puts a network between a client and an S3 server: time until each answer begins, a connection's bandwidth; it counts.

It understands as much of HTTP as it takes to tell one request from the next. Bytes are passed on as they come, nothing is kept.
"""

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tests.servers.endpoint import Endpoint
from tests.servers.gate import CHUNK_BYTES, Gate

LEAST_SLEEP_S: Final = 0.002
"""Shorter sleeps take longer than they should: what is due is paid with the next piece."""
MOST_HEAD_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Network:
    """Seconds until an answer begins, by kind of request, and what one connection carries.

    Attributes:
        delays_s: by what `kind_of` says.
        bytes_per_s: of one connection, each way; 0: as fast as it goes.
    """

    delays_s: Mapping[str, float] = field(default_factory=dict)
    bytes_per_s: float = 0.0


NEAR: Final = Network()
"""No network at all."""
REGION: Final = Network(
    {
        "HEAD": 0.010,
        "GET": 0.015,
        "DELETE": 0.015,
        "PUT": 0.025,
        "POST": 0.025,
        "LIST": 0.030,
        "COPY": 0.030,
    },
    90e6,
)
"""What a machine sees of an S3 in its own region."""


def kind_of(method: str, target: str, headers: Mapping[str, str]) -> str:
    """Name what a request does: its method, or LIST or COPY."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and ("/" not in parts.path.strip("/") or "uploadId" in query):
        return "LIST"
    if method == "PUT" and "x-amz-copy-source" in headers:
        return "COPY"
    return "DELETE" if method == "POST" and "delete" in query else method


class Distance(Gate):
    """A relay to one endpoint. `endpoint` is the way through it; `network` may be changed at any time."""

    def __init__(self, behind: Endpoint, network: Network = REGION) -> None:
        self.network = network
        self._counting = threading.Lock()
        self._counts: Counter[str] = Counter()
        super().__init__(behind)

    def counts(self) -> Counter[str]:
        """Return the requests since `reset`, by kind."""
        with self._counting:
            return self._counts.copy()

    def reset(self) -> None:
        """Count from nothing."""
        with self._counting:
            self._counts.clear()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asking, answering = _Side(client), _Side(server)
        # A server that ends an idle connection ends the client's, too, as it would without us.
        while asking.is_ready() or client in wait([client, server]):
            if not self._exchange(asking, answering):
                return

    def _exchange(self, asking: "_Side", answering: "_Side") -> bool:
        """Carry one request and its answer; whether there may be more."""
        raw, first, headers = asking.head()
        if not first:
            return False
        method, target, _ = first.split(" ", 2)
        kind = kind_of(method, target, headers)
        with self._counting:
            self._counts[kind] += 1
        network = self.network
        time.sleep(network.delays_s.get(kind, 0.0))
        if "expect" in headers:
            asking.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            raw = re.sub(rb"(?im)^expect:.*\r\n", b"", raw)
        answering.socket.sendall(raw)
        pace = _Pace(network.bytes_per_s)
        asking.body_to(answering, headers, pace, has_length=False)
        raw, first, said = answering.head()
        if not first:
            return False
        asking.socket.sendall(raw)
        has_body = method != "HEAD" and first.split(" ", 2)[1] not in ("204", "304")
        if has_body:
            answering.body_to(asking, said, _Pace(network.bytes_per_s), has_length=True)
        is_open = "content-length" in said or "transfer-encoding" in said or not has_body
        return is_open and "close" not in (headers.get("connection"), said.get("connection"))


class _Pace:
    """Has those who pass bytes on wait until the bandwidth allows what they passed."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate: Final = bytes_per_s
        self._begun: Final = time.monotonic()
        self._passed = 0

    def passed(self, count: int) -> None:
        self._passed += count
        if self._rate:
            due_s = self._passed / self._rate - (time.monotonic() - self._begun)
            if due_s > LEAST_SLEEP_S:
                time.sleep(due_s)


class _Side:
    """One side's socket, and what was received of it beyond what was wanted."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket: Final = connection
        self._kept = bytearray()
        self._buffer: Final = memoryview(bytearray(CHUNK_BYTES))

    def is_ready(self) -> bool:
        """Whether the beginning of something is here already."""
        return bool(self._kept)

    def head(self) -> tuple[bytes, str, dict[str, str]]:
        """Receive what comes before a body: as it came, its first line, and headers by name in lower case.

        An empty line: the other side is through.
        """
        raw = self._until(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return raw, first, {name.strip().lower(): value.strip() for name, value in pairs}

    def body_to(
        self, other: "_Side", headers: Mapping[str, str], pace: _Pace, *, has_length: bool
    ) -> None:
        """Pass on the body that *headers* announce. *has_length*: without a word of its length it ends with the connection."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                line = self._until(b"\r\n")
                other.socket.sendall(line)
                size = int(line.split(b";")[0], 16)
                if not size:
                    break
                self._pass(other, size + len(b"\r\n"), pace)
            while (trailer := self._until(b"\r\n")) != b"\r\n":
                other.socket.sendall(trailer)
            other.socket.sendall(b"\r\n")
        elif "content-length" in headers:
            self._pass(other, int(headers["content-length"]), pace)
        elif has_length:
            self._pass(other, None, pace)

    def _pass(self, other: "_Side", left: int | None, pace: _Pace) -> None:
        """Pass on so many bytes; None: all there are."""
        while left is None or left > 0:
            most = len(self._buffer) if left is None else min(left, len(self._buffer))
            if self._kept:
                count = min(most, len(self._kept))
                other.socket.sendall(self._kept[:count])
                del self._kept[:count]
            else:
                count = self.socket.recv_into(self._buffer[:most])
                if not count:
                    if left is None:
                        return
                    raise ConnectionResetError
                other.socket.sendall(self._buffer[:count])
            pace.passed(count)
            if left is not None:
                left -= count

    def _until(self, mark: bytes) -> bytes:
        """Receive up to *mark* and with it; nothing if the connection ended before a byte came."""
        while (end := self._kept.find(mark)) < 0:
            data = self.socket.recv(CHUNK_BYTES)
            if not data:
                if self._kept:
                    raise ConnectionResetError
                return b""
            self._kept += data
            if len(self._kept) > MOST_HEAD_BYTES + CHUNK_BYTES:
                raise ConnectionResetError
        taken = bytes(self._kept[: end + len(mark)])
        del self._kept[: end + len(mark)]
        return taken


@contextmanager
def distance_before(endpoint: Endpoint, network: Network = REGION) -> Iterator[Distance]:
    """Run a relay with a network in front of *endpoint*."""
    distance = Distance(endpoint, network)
    try:
        yield distance
    finally:
        distance.close()
