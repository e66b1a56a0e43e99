"""Turning S3's answers to GET and HEAD into the port's types, and checking that they are what was asked for."""

import logging
import re
from typing import Final

import trio

from s3mgrd.errors import Corrupt, PreconditionFailed, Unsupported
from s3mgrd.s3.algorithms import SUMMED_UP, Checksum, read_checksum
from s3mgrd.s3.answer import AnswerTooLong
from s3mgrd.s3.answers import Answer, read_time
from s3mgrd.s3.checksums import FULL_OBJECT
from s3mgrd.s3.failures import NotS3, ShortBody
from s3mgrd.s3.headers import headers_of
from s3mgrd.s3.http import Exchange
from s3mgrd.s3.listing import etag_of, time_ns
from s3mgrd.s3.metadata import decode_metadata
from s3mgrd.s3.port import ObjectHead, RangeRead, RestoreState

_RESTORE_FIELD: Final = re.compile(r'([a-z-]+)="([^"]*)"')
log = logging.getLogger("s3mgrd.s3")

INLINE_BYTES: Final = 2 << 20
"""Up to so many bytes a checksum takes less time than changing threads twice."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def head_of(key: str, answer: Answer, size: int) -> ObjectHead:
    """Make an `ObjectHead` of a HEAD's or GET's answer."""
    storage_class = answer.get("StorageClass")
    restore = answer.get("Restore")
    return ObjectHead(
        key=key,
        size=size,
        etag=etag_of(answer.get("ETag")),
        mtime_ns=time_ns(answer["LastModified"]) if "LastModified" in answer else 0,
        metadata=decode_metadata(answer.get("Metadata", {})),
        content_type=answer.get("ContentType"),
        storage_class=None if storage_class == "STANDARD" else storage_class,
        headers=headers_of(answer),
        restore=None if restore is None else restore_of(restore),
        archive_status=answer.get("ArchiveStatus"),
    )


def restore_of(text: str) -> RestoreState:
    """Read ``x-amz-restore``: ``ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"``.

    Raises:
        NotS3: its date is none.
    """
    fields = dict(_RESTORE_FIELD.findall(text))
    expiry = fields.get("expiry-date")
    return RestoreState(
        is_ongoing=fields.get("ongoing-request") != "false",
        expires_ns=None if expiry is None else time_ns(read_time(expiry)),
    )


def whole_checksum(answer: Answer) -> Checksum | None:
    """Return the checksum of all bytes of an object out of a HEAD's answer; None: there is none that is cheap to compare."""
    is_whole = answer.get("ChecksumType", FULL_OBJECT) == FULL_OBJECT
    # Without the type, that of an object of many parts may be the sum of the parts' sums.
    if not is_whole or ("-" in etag_of(answer.get("ETag")) and "ChecksumType" not in answer):
        return None
    found = read_checksum(answer)
    return found if found is not None and found.algorithm in SUMMED_UP else None


class Reading:
    """One ranged GET, in as many attempts as it takes.

    Args:
        key: what is read.
        start: the first byte.
        stop: the byte after the last; may lie beyond the end.
        if_match: the version that was asked for.
        distrusted: members of answers that the store's ranges carry although they are not their checksums; added to.
        threads: where large checksums are computed.
    """

    def __init__(
        self,
        key: str,
        start: int,
        stop: int,
        if_match: str | None,
        distrusted: set[str],
        threads: trio.CapacityLimiter,
    ) -> None:
        self._key: Final = key
        self._start: Final = start
        self._stop: Final = stop
        self._if_match: Final = if_match
        self._distrusted: Final = distrusted
        self._threads: Final = threads
        self._found: Final[set[int]] = set()
        """Checksums of the attempts before that were not what S3 says."""

    async def finish(self, answer: Answer, exchange: Exchange) -> RangeRead:
        """Read the body of an answer into one buffer.

        Raises:
            ShortBody: the answer covers another range than asked for, ends early, or is damaged; another attempt may do better.
            PreconditionFailed: the server ignores If-Match, and it is another version.
            Corrupt: two attempts got the same bytes, of which S3 says another checksum.
            Unsupported: the server ignores Range, and the object is longer.
        """
        start, stop = self._start, self._stop
        if self._if_match is not None and etag_of(answer.get("ETag")) != self._if_match:
            raise PreconditionFailed(f"{self._key!r} is not the version expected")
        size, first, length = _covered(answer, start, stop)
        head = head_of(self._key, answer, size)
        if first != start or length != min(stop, size) - start:
            raise ShortBody(
                f"asked for bytes {start} to {stop}, was answered {first} and {length} bytes"
            )
        if exchange.body_length not in (length, None):
            raise ShortBody(f"{exchange.body_length} bytes are promised instead of {length}")
        try:
            data = await exchange.read_data(length)
        except AnswerTooLong as exc:
            raise ShortBody(f"more than the {length} bytes asked for arrived") from exc
        if len(data) != length:
            raise ShortBody(f"{len(data)} bytes arrived instead of {length}")
        await self._verify(answer, data, is_whole=length == size, etag=head.etag)
        return RangeRead(data, head)

    async def _verify(
        self, answer: Answer, data: bytes | memoryview, *, is_whole: bool, etag: str
    ) -> None:
        """Compare the bytes with the checksum that S3 says, if it says one of them."""
        expected = read_checksum(answer)
        if expected is None:
            return
        algorithm = expected.algorithm
        if not is_whole and algorithm.member in self._distrusted:
            return
        if is_whole and "-" in etag and answer.get("ChecksumType") != FULL_OBJECT:
            # A range that is all of an object of many parts comes with the sum of the parts' sums, not marked as such.
            return
        if len(data) <= INLINE_BYTES:
            found = algorithm.of(data)
        else:
            found = await trio.to_thread.run_sync(algorithm.of, data, limiter=self._threads)
        if found == expected.value:
            return
        if found not in self._found:
            self._found.add(found)
            raise ShortBody(
                f"what arrived of {self._key!r} is damaged: it has not the checksum that S3 says"
            )
        if is_whole:
            raise Corrupt(f"S3 keeps other bytes of {self._key!r} than it has a checksum of")
        log.warning(
            "S3 gives %s of ranges that is not their checksum: it is not compared any more",
            algorithm.title,
        )
        self._distrusted.add(algorithm.member)


def _covered(answer: Answer, start: int, stop: int) -> tuple[int, int, int]:
    """Return the object's size, and the first byte and the number of bytes that the answer carries."""
    content_range = answer.get("ContentRange")
    if content_range is None:
        # 200: RFC 9110 allows it. It is useful only when the whole object is what was asked for.
        size = int(answer.get("ContentLength", -1))
        if start > 0 or size > stop or size < 0:
            raise Unsupported("the store ignores ranges: it answered with the whole object")
        return size, 0, size
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None:
        raise NotS3
    first, last, size = (int(group) for group in match.groups())
    return size, first, last + 1 - first
