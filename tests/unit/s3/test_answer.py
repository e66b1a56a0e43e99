"""Reading HTTP answers: however the bytes arrive, the same answer; what is not HTTP to the letter is none."""

from collections.abc import Callable

import pytest

from s3mgrd.s3.answer import AnswerReader, AnswerTooLong, ClosedEarly, NotHttp
from s3mgrd.s3.connections import Connection


class Pieces:
    """A connection that gives *data* in pieces of *size* bytes and ends."""

    sends_files = False

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size

    async def receive(self, max_bytes: int = 0) -> bytes:
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece

    async def receive_into(self, view: memoryview, arrived: Callable[[int], None]) -> None:
        while view and (piece := await self.receive()):
            taken = piece[: len(view)]
            self._data = piece[len(taken) :] + self._data
            view[: len(taken)] = taken
            view = view[len(taken) :]
            arrived(len(taken))

    async def send(self, data: bytes | memoryview) -> None:
        raise NotImplementedError

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        raise NotImplementedError

    def is_usable(self) -> bool:
        return True

    def close(self) -> None:
        return


async def read(
    raw: bytes, size: int = 1 << 20, *, method: str = "GET", limit: int = 1000
) -> tuple[AnswerReader, bytes]:
    connection: Connection = Pieces(raw, size)
    reader = AnswerReader(connection)
    await reader.receive_head(method)
    return reader, bytes(await reader.read(limit))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", b"", True),
    (b"HTTP/1.1 204\r\n\r\n", b"", True),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x", True),
    (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", b"x", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x", False),
    (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", False),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx and more", b"x", False),
    (CHUNKED + b"5\r\nhello\r\nB;a=b\r\n, you there\r\n0\r\n\r\n", b"hello, you there", True),
    (CHUNKED + b"1\r\nx\r\n0\r\nTrailer: y\r\n\r\n", b"x", True),
    (CHUNKED + b"0\r\n\r\n", b"", True),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(("raw", "body", "is_complete"), ANSWERS)
async def test_a_body_ends_where_the_answer_says(
    raw: bytes, body: bytes, is_complete: bool, size: int
) -> None:
    reader, got = await read(raw, size)
    assert got == body
    # what follows an answer that nobody asked for is seen only if it came together with the answer
    assert reader.is_complete == is_complete or size < 1 << 20
    assert reader.received == len(body)


async def test_a_head_has_no_body_but_a_length() -> None:
    reader, body = await read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", method="HEAD")
    assert (body, reader.headers["content-length"], reader.is_complete) == (b"", "5", True)


async def test_headers_are_text_by_lower_case_names() -> None:
    raw = "HTTP/1.1 200 OK\r\nX-A:  ä b \r\nx-b: 1\r\nX-B: 2\r\nContent-Length: 0\r\n\r\n"
    for encoding in ("utf-8", "latin-1"):
        reader, _ = await read(raw.encode(encoding))
        assert reader.headers == {"x-a": "ä b", "x-b": "1, 2", "content-length": "0"}


@pytest.mark.parametrize(
    "raw",
    [
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        CHUNKED + b"+1\r\nx\r\n",
        CHUNKED + b"\r\nx\r\n",
        CHUNKED + b"1\r\nxyz",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * (300 << 10),
    ],
)
async def test_what_is_not_http_is_refused(raw: bytes) -> None:
    with pytest.raises(NotHttp):
        await read(raw)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("raw", [raw for raw, _, _ in ANSWERS if b"\r\n\r\nuntil" not in raw])
async def test_an_answer_that_breaks_off_is_never_whole(raw: bytes, size: int) -> None:
    whole = raw.removesuffix(b" and more")
    for end in range(len(whole)):
        with pytest.raises(ClosedEarly):
            await read(whole[:end], size)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001,
        CHUNKED + b"3E9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
        CHUNKED + b"ffffffffffff\r\n",
    ],
)
async def test_no_more_is_read_than_allowed(raw: bytes) -> None:
    with pytest.raises(AnswerTooLong):
        await read(raw, 100)
