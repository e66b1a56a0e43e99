"""Reading one HTTP/1.1 answer from a connection.

An answer is believed only when it is HTTP/1 to the letter. Its body ends where Content-Length or chunks say so; where
neither is there, with the connection.
"""

from typing import Final

from s3mgrd.buffers import lend
from s3mgrd.s3.connections import Connection

MAX_HEAD_BYTES: Final = 256 << 10
_BEGINNING: Final = b"HTTP/1."


class AnswerTooLong(Exception):
    """An answer has more bytes than whoever reads it wants."""


class NotHttp(Exception):
    """What came is no HTTP/1 answer; `first_bytes`: how it began."""

    def __init__(self, first_bytes: bytes = b"") -> None:
        super().__init__()
        self.first_bytes: Final = first_bytes[:8]


class ClosedEarly(Exception):
    """The other side closed the connection before its answer was complete."""


class AnswerReader:
    """Reads one answer: `receive_head`, then `read` at most once.

    Attributes:
        status: 0 until the head was received.
        headers: names in lower case; those that come twice are joined by a comma.
        length: of the body, None where that shows only at its end.
        received: bytes of the body that have arrived.
        is_complete: the body was read to its end, and the connection may be used again.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection
        self._buffer = b""
        self._is_chunked = False
        self._is_kept = False
        self._is_read = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        self.received = 0

    @property
    def is_complete(self) -> bool:
        """See the class."""
        return self._is_kept and self._is_read and not self._buffer

    async def receive_head(self, method: str) -> None:
        """Read status and headers of the answer to a request by *method*.

        Raises:
            WaitedTooLong, OSError, NotHttp, ClosedEarly: as they say.
        """
        while self.status < 200:  # 1xx: the answer is still to come
            head = await self._receive_lines()
            self.status, self.headers, self._is_kept = _parse_head(head)
        coding = self.headers.get("transfer-encoding")
        if method == "HEAD" or self.status in (204, 304):
            self.length = 0
        elif coding is not None:
            if coding.lower() != "chunked":
                raise NotHttp
            self._is_chunked = True
        elif "content-length" in self.headers:
            self.length = _number(self.headers["content-length"], 10)
        else:
            self._is_kept = False
        self._is_read = self.length == 0

    async def read(self, limit: int) -> bytes | memoryview:
        """Read the body, of at most *limit* bytes, into one buffer that nobody else refers to.

        Raises:
            AnswerTooLong: there are more.
            WaitedTooLong, OSError, NotHttp, ClosedEarly: as they say.
        """
        if self._is_chunked:
            data: bytes | memoryview = await self._read_chunks(limit)
        elif self.length is None:
            data = await self._read_until_closed(limit)
        elif self.length > limit:
            raise AnswerTooLong
        elif len(self._buffer) >= self.length:
            data, self._buffer = self._buffer[: self.length], self._buffer[self.length :]
            self.received = self.length
        else:
            data = await self._read_into(lend(self.length))
        self._is_read = True
        return data

    async def _read_into(self, view: memoryview) -> memoryview:
        """Fill *view*; the kernel writes into it, and there is no copy in between."""
        self.received = len(self._buffer)
        view[: self.received] = self._buffer
        self._buffer = b""
        await self._connection.receive_into(view[self.received :], self._arrived)
        if self.received < len(view):
            raise ClosedEarly
        return view

    def _arrived(self, size: int) -> None:
        self.received += size

    async def _read_until_closed(self, limit: int) -> bytes:
        pieces = [self._buffer]
        self.received = len(self._buffer)
        self._buffer = b""
        while data := await self._connection.receive():
            pieces.append(data)
            self.received += len(data)
            if self.received > limit:
                raise AnswerTooLong
        return b"".join(pieces)

    async def _read_chunks(self, limit: int) -> bytes:
        pieces = []
        while size := _number(
            (await self._receive_line()).partition(b";")[0].decode("latin-1"), 16
        ):
            if self.received + size > limit:
                raise AnswerTooLong
            pieces.append(await self._take(size))
            self.received += size
            if await self._take(2) != b"\r\n":
                raise NotHttp
        while await self._receive_line():
            pass  # trailers
        return b"".join(pieces)

    async def _receive_lines(self) -> bytes:
        """Take what ends with an empty line."""
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", searched)) < 0:
            searched = max(0, len(self._buffer) - 3)
            await self._receive_more()
            if not _BEGINNING.startswith(self._buffer[: len(_BEGINNING)]):
                raise NotHttp(self._buffer)
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        return head

    async def _receive_line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._receive_more()
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    async def _receive_more(self) -> None:
        """Wait for more of what must be seen as a whole."""
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise NotHttp
        data = await self._connection.receive()
        if not data:
            raise ClosedEarly
        self._buffer += data

    async def _take(self, size: int) -> bytes:
        pieces = [self._buffer]
        have = len(self._buffer)
        while have < size:
            data = await self._connection.receive()
            if not data:
                raise ClosedEarly
            pieces.append(data)
            have += len(data)
        whole = b"".join(pieces)
        self._buffer = whole[size:]
        return whole[:size]


def _parse_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Return status, headers, and whether the connection stays open."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    first, *lines = text.split("\r\n")
    version, _, status = first.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise NotHttp
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator or not name or name != name.strip():
            raise NotHttp
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    is_kept = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower()
    return _number(status[:3], 10), headers, is_kept


def _number(text: str, base: int) -> int:
    """Read a length; Python's `int` would also take signs and underscores."""
    digits = text.strip()
    if not (digits.isascii() and digits.isalnum()):
        raise NotHttp
    try:
        return int(digits, base)
    except ValueError as exc:
        raise NotHttp from exc
