"""What MiniStack lacks of S3's archives, before its application: objects that cannot be read until they are restored.

An object of the class GLACIER or DEEP_ARCHIVE is answered to GET, and as the source of a copy, with InvalidObjectState.
RestoreObject begins to restore it; nothing ends by itself: `finish_restores` ends what was begun, at the moment the test
wants. What is restored can be read, and HEAD says until when.
"""

import http.client
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.endpoint import Endpoint

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
FINISH = "/-/finish-restores"


@dataclass
class _Cold:
    storage_class: str
    days: int = 0
    """For how long a restored copy shall last; 0: none was asked for."""
    until: datetime | None = None

    @property
    def is_readable(self) -> bool:
        return self.until is not None and self.until > datetime.now(UTC)

    @property
    def header(self) -> str | None:
        """The value of x-amz-restore."""
        if self.until is not None:
            date = self.until.strftime("%a, %d %b %Y %H:%M:%S GMT")
            return f'ongoing-request="false", expiry-date="{date}"'
        return 'ongoing-request="true"' if self.days else None


class Archives:
    """The application, behind the archives of all its buckets."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._objects: dict[str, _Cold] = {}
        """By path: bucket and key."""
        self._uploads: dict[str, str] = {}
        """Storage classes of multipart uploads, by path."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, whose body is complete."""
        path, method = str(scope["path"]), str(scope["method"])
        query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        cold = self._objects.get(path)
        if method == "POST" and path == FINISH:
            self._finish()
            await _answer(send, 204)
        elif method == "POST" and "restore" in query:
            await self._restore(cold, (await receive())["body"], send)
        elif method == "GET" and cold is not None and not query and not cold.is_readable:
            await _refuse(send, 403, "InvalidObjectState", StorageClass=cold.storage_class)
        elif method == "PUT" and self._is_refused_source(headers):
            await _refuse(send, 403, "InvalidObjectState")
        else:
            await self._app(scope, receive, self._noting(send, method, path, query, headers))

    def _is_refused_source(self, headers: Mapping[str, str]) -> bool:
        source = unquote(headers.get("x-amz-copy-source", "").partition("?")[0])
        cold = self._objects.get("/" + source.lstrip("/")) if source else None
        return cold is not None and not cold.is_readable

    def _finish(self) -> None:
        for cold in self._objects.values():
            if cold.days and cold.until is None:
                cold.until = datetime.now(UTC) + timedelta(days=cold.days)

    async def _restore(self, cold: _Cold | None, body: bytes, send: Send) -> None:
        if cold is None:
            await _refuse(send, 403, "InvalidObjectState")
            return
        if cold.days and cold.until is None:
            await _refuse(send, 409, "RestoreAlreadyInProgress")
            return
        days = re.search(rb"<Days>([0-9]+)</Days>", body)
        if days is None:
            await _refuse(send, 400, "MalformedXML")
            return
        cold.days = int(days[1])
        if cold.until is not None:
            cold.until = datetime.now(UTC) + timedelta(days=cold.days)
        await _answer(send, 202 if cold.until is None else 200)

    def _noting(
        self,
        send: Send,
        method: str,
        path: str,
        query: Mapping[str, list[str]],
        headers: Mapping[str, str],
    ) -> Send:
        """Return a *send* that notes what a success does to the archives, and says what HEAD says of them."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                self._note(method, path, query, headers)
                cold = self._objects.get(path)
                if method in ("GET", "HEAD") and cold is not None and cold.header is not None:
                    extra = (b"x-amz-restore", cold.header.encode())
                    message = {**message, "headers": [*message["headers"], extra]}
            await send(message)

        return noting

    def _note(
        self,
        method: str,
        path: str,
        query: Mapping[str, list[str]],
        headers: Mapping[str, str],
    ) -> None:
        storage_class = headers.get("x-amz-storage-class", "STANDARD")
        if method == "POST" and "uploads" in query:
            self._uploads[path] = storage_class
        elif method == "POST" and "uploadId" in query:
            self._set(path, self._uploads.pop(path, "STANDARD"))
        elif method == "PUT" and not query:
            self._set(path, storage_class)
        elif method == "DELETE" and not query:
            self._objects.pop(path, None)

    def _set(self, path: str, storage_class: str) -> None:
        if storage_class in CLASSES:
            self._objects[path] = _Cold(storage_class)
        else:
            self._objects.pop(path, None)


async def _answer(send: Send, status: int, body: bytes = b"") -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/xml")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, status: int, code: str, **fields: str) -> None:
    inner = "".join(f"<{name}>{text}</{name}>" for name, text in fields.items())
    await _answer(send, status, f"<Error><Code>{code}</Code>{inner}</Error>".encode())


def finish_restores(endpoint: Endpoint) -> None:
    """Let everything that is being restored be restored."""
    connection = http.client.HTTPConnection(urlsplit(endpoint.url).netloc, timeout=60)
    try:
        connection.request("POST", FINISH)
        assert connection.getresponse().status == 204
    finally:
        connection.close()
