"""Load everything that a store needs, in the process that workers are forked from.

A worker drops its rights right after the fork, and Python's installation may lie where it cannot read. So whatever is
imported late, loaded from data files or looked up by name must have been used once before: `warm` opens stores on
connections that exist in memory only, makes every call of the port, and sees every kind of failure. It leaves no thread,
no descriptor and no event loop behind. A test records every file that a warmed process opens afterwards.
"""

import codecs
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from s3mgrd.errors import S3mgrError
from s3mgrd.s3 import credentials
from s3mgrd.s3.botocore_client import quiet_libraries
from s3mgrd.s3.client import S3Store, open_store
from s3mgrd.s3.connections import Address, Connection, Proxy
from s3mgrd.s3.port import Condition, Part
from s3mgrd.s3.settings import StoreSettings
from s3mgrd.s3.tls import shared_context
from s3mgrd.worker.protocol import CredentialGrant

CODECS: Final = ("ascii", "idna", "latin-1", "punycode", "unicode_escape", "utf-8", "utf-8-sig")
_SPACE: Final = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_HEAD: Final = (
    'ETag: "0"\r\nLast-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\nContent-Type: text/plain\r\n'
    "x-amz-meta-mode: =?UTF-8?B?eA==?=\r\nx-amz-tagging-count: 1\r\n"
)
_TIME: Final = "2023-11-14T22:13:20.000Z"


def _answer(body: str = "", *, status: str = "200 OK", headers: str = "") -> bytes:
    length = "" if "Content-Length" in headers else f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\n{length}{headers}x-amz-request-id: 0\r\n\r\n{body}".encode()


def _error(status: str, code: str, headers: str = "") -> bytes:
    return _answer(f"<Error><Code>{code}</Code></Error>", status=status, headers=headers)


_LIST: Final = _answer(
    f"<ListBucketResult {_SPACE}><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
    f"<Contents><Key>a%20b</Key><LastModified>{_TIME}</LastModified><ETag>0</ETag><Size>1</Size>"
    "</Contents><CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes></ListBucketResult>"
)
_UPLOADS: Final = _answer(
    f"<ListMultipartUploadsResult {_SPACE}><EncodingType>url</EncodingType><Upload><Key>a</Key>"
    f"<UploadId>0</UploadId><Initiated>{_TIME}</Initiated></Upload></ListMultipartUploadsResult>"
)
_PARTS: Final = _answer(
    f"<ListPartsResult {_SPACE}><Part><PartNumber>1</PartNumber><ETag>0</ETag><Size>1</Size></Part></ListPartsResult>"
)
_INITIATED: Final = _answer(
    f"<InitiateMultipartUploadResult {_SPACE}><UploadId>0</UploadId></InitiateMultipartUploadResult>"
)
_COMPLETED: Final = _answer(
    f"<CompleteMultipartUploadResult {_SPACE}><ETag>0</ETag></CompleteMultipartUploadResult>"
)
_COPIED: Final = _answer(
    f"<CopyObjectResult {_SPACE}><LastModified>{_TIME}</LastModified><ETag>0</ETag></CopyObjectResult>"
)
_PART_COPIED: Final = _answer(
    f"<CopyPartResult {_SPACE}><LastModified>{_TIME}</LastModified><ETag>0</ETag></CopyPartResult>"
)
_TAGS: Final = _answer(
    f"<Tagging {_SPACE}><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
)
_DELETED: Final = _answer(
    f"<DeleteResult {_SPACE}><Error><Key>a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
)
_OBJECT: Final = _answer(headers=_HEAD)
_RANGE: Final = _answer(
    "x", status="206 Partial Content", headers=f"{_HEAD}Content-Range: bytes 0-0/1\r\n"
)
_DONE: Final = _answer(headers='ETag: "0"\r\n')

Call = Callable[[S3Store], Awaitable[object]]
_PART: Final = Part(1, "00", 1)
_NEW: Final = Condition(absent=True)
REHEARSAL: Final[tuple[tuple[Call, tuple[bytes, ...]], ...]] = (
    (lambda s: s.probe("a/"), (_LIST,)),
    (lambda s: s.list_page("", delimited=True), (_LIST,)),
    (lambda s: s.head("ä"), (_OBJECT,)),
    (lambda s: s.get_range("a", 0, 1, if_match="0"), (_RANGE,)),
    (lambda s: s.put("a", b"x", metadata={"m": "ä"}, content_type="a/b"), (_DONE,)),
    (
        lambda s: s.put("a", b"x", metadata={}, condition=_NEW),
        (_error("404 Not Found", "NoSuchKey"), _DONE, _error("412 Failed", "PreconditionFailed")),
    ),
    (lambda s: s.delete("a"), (_answer(status="204 No Content"),)),
    (lambda s: s.delete_many(["a", "\x01"]), (_DELETED, _DONE)),
    (lambda s: s.copy("a", "b", source_size=1), (_COPIED,)),
    (lambda s: s.copy("a", "b", source_size=1, metadata={}), (_OBJECT, _COPIED)),
    (
        lambda s: s.copy("a", "b", source_size=6 << 30),
        (_OBJECT, _TAGS, _INITIATED, *((_PART_COPIED,) * 24), _OBJECT, _COMPLETED),
    ),
    (lambda s: s.create_multipart("a", metadata={}), (_INITIATED,)),
    (lambda s: s.upload_part("a", "0", 1, b"x"), (_DONE,)),
    (lambda s: s.copy_part("a", "0", 1, "b", 0, 1, if_source_match="0"), (_PART_COPIED,)),
    (lambda s: s.list_parts("a", "0"), (_PARTS,)),
    (lambda s: s.complete_multipart("a", "0", [_PART]), (_COMPLETED,)),
    (lambda s: s.abort_multipart("a", "0"), (_error("404 Not Found", "NoSuchUpload"),)),
    (lambda s: s.list_multiparts(""), (_UPLOADS,)),
    # Failures: one that is retried, those that are told apart, and an answer that is none.
    (lambda s: s.delete("a"), (_error("503 Slow Down", "SlowDown", "Retry-After: 0\r\n"), _DONE)),
    (lambda s: s.head("a"), (_answer(status="403 Forbidden"), _error("403 Forbidden", "AccessDenied"))),
    (lambda s: s.delete("a"), (_error("403 Forbidden", "RequestTimeTooSkewed", "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"),)),
    (lambda s: s.delete("a"), (_error("301 Moved", "PermanentRedirect"),)),
    (lambda s: s.probe(""), (_answer("<html>", headers="Content-Type: text/html\r\n"),)),
    (lambda s: s.delete("a"), (b"no HTTP at all\r\n\r\n",)),
    (lambda s: s.delete("a"), ()),
)  # fmt: skip


def warm() -> None:
    """Do it. Takes about half a second beside the imports; call it without a running event loop, before any fork."""
    quiet_libraries()
    for name in CODECS:
        codecs.lookup(name)
    "ä.example".encode("idna")
    _shake_hands()
    trio.run(_rehearse)


def _shake_hands() -> None:
    """Begin a TLS handshake and see one fail."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = shared_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    for data in (b"", b"no TLS at all"):
        incoming.write(data)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            return


class _Stage:
    """Connects to nobody: each connection answers with the next of `answers` and ends."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    async def connect(self, address: Address, proxy: Proxy | None) -> Connection:
        """Be the store's way to connect."""
        return _StagedConnection(self.answers.pop(0) if self.answers else b"")


class _StagedConnection:
    sends_files: Final = False

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def receive(self, max_bytes: int = 0) -> bytes:
        answer, self._answer = self._answer, b""
        return answer

    async def receive_into(self, view: memoryview, arrived: Callable[[int], None]) -> None:
        return

    async def send(self, data: bytes | memoryview) -> None:
        return

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        return 0

    def is_usable(self) -> bool:
        return False

    def close(self) -> None:
        return


async def _rehearse() -> None:
    async def grant() -> CredentialGrant:
        return CredentialGrant(access_key="a", secret_key="b", session_token="c")  # noqa: S106 no secrets

    for endpoint, anonymous in (
        ("http://localhost", False),
        ("https://localhost", True),
        (None, False),
    ):
        settings = StoreSettings(
            bucket="rehearsal",
            region="us-east-1",
            endpoint_url=endpoint,
            credentials=grant,
            anonymous=anonymous,
            retry_deadline_s=0.01,
            concurrency=1,
        )
        stage = _Stage()
        async with open_store(settings, connect=stage.connect) as store:
            for call, answers in REHEARSAL:
                stage.answers[:] = answers
                try:
                    await call(store)
                except S3mgrError:
                    continue


__all__ = ["credentials", "warm"]
