"""Turning S3's answers to GET and HEAD into the port's types, and checking that they are what was asked for."""

import re
from typing import Final

from s3mgrd.errors import PreconditionFailed, Unsupported
from s3mgrd.s3.answer import AnswerTooLong
from s3mgrd.s3.answers import Answer, read_time
from s3mgrd.s3.failures import NotS3, ShortBody
from s3mgrd.s3.headers import headers_of
from s3mgrd.s3.http import Exchange
from s3mgrd.s3.listing import etag_of, time_ns
from s3mgrd.s3.metadata import decode_metadata
from s3mgrd.s3.port import ObjectHead, RangeRead, RestoreState

_RESTORE_FIELD: Final = re.compile(r'([a-z-]+)="([^"]*)"')
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


async def read_range(
    key: str, start: int, stop: int, if_match: str | None, answer: Answer, exchange: Exchange
) -> RangeRead:
    """Read the body of a ranged GET into one buffer.

    Raises:
        ShortBody: the answer covers another range than asked for, or ends early; another attempt may do better.
        PreconditionFailed: the server ignores If-Match, and it is another version.
        Unsupported: the server ignores Range, and the object is longer.
    """
    size, first, length = _covered(answer, start, stop)
    head = head_of(key, answer, size)
    if if_match is not None and head.etag != if_match:
        raise PreconditionFailed(f"{key!r} is not the version expected")
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
    return RangeRead(memoryview(data) if isinstance(data, bytearray) else data, head)


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
