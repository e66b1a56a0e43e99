"""Requests to a daemon's API as any program would send them, without the client library."""

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.e2e.lab import COMMAND_LIMIT_S, Daemon


@dataclass(frozen=True)
class Answer:
    """One answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 whatever the daemon says
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """The kind of a problem."""
        assert self.headers["content-type"] == "application/problem+json", self
        kind: str = self.json["type"].removeprefix("urn:s3mgr:problem:")
        return kind


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=COMMAND_LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(
    daemon: Daemon,
    method: str,
    target: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request; *body* is bytes, or anything that JSON can say."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = _Connection(str(daemon.socket))
    try:
        sent = {"Content-Type": "application/json"} if data is not None else {}
        with suppress(
            BrokenPipeError
        ):  # a body that is too large is answered before all of it is sent
            connection.request(method, target, body=data, headers=sent | dict(headers or {}))
        response = connection.getresponse()
        return Answer(
            response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        )
    finally:
        connection.close()
