"""S3's answers to the calls of `s3mgrd.s3.operations`, as botocore would parse them: dicts by botocore's names."""

import http.client
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from s3mgrd.s3.documents import ParseError, local_name, parse, read_fields
from s3mgrd.s3.failures import NotS3, Refused
from s3mgrd.s3.http import Exchange
from s3mgrd.s3.operations import Operation

Answer = dict[str, Any]
"""Any: the values are of the operation's shape."""

MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
WRAPPED: Final = {"CopyObject": "CopyObjectResult", "UploadPartCopy": "CopyPartResult"}
"""Operations whose document is one field of the answer."""
FALLIBLE: Final = frozenset({*WRAPPED, "CompleteMultipartUpload"})
"""Operations that may fail after S3 has said 200: then the document says so, or is missing."""
DOCUMENTS: Final = FALLIBLE | {"CreateMultipartUpload", "DeleteObjects"}
LISTS: Final = {"Error": "Errors", "Deleted": "Deleted"}
"""Repeated elements of an answer's document, by the names of the lists."""


async def receive_answer(operation: Operation, exchange: Exchange) -> Answer:
    """Read what *exchange* was answered; the data of GetObject and listings are left to others.

    Raises:
        Refused: S3 says that it failed.
        NotS3: this is no answer of S3.
        AnswerTooLong, NotHttp, ClosedEarly, WaitedTooLong, OSError: from reading it.
    """
    if exchange.status >= 300:
        await exchange.read_body()
        raise Refused(exchange.status, _error_fields(exchange))
    if operation.name != "GetObject":
        await exchange.read_body()
    answer = _from_headers(operation, exchange.headers)
    if operation.name in DOCUMENTS:
        answer |= _from_document(operation.name, exchange.body.strip())
    return answer


def _from_headers(operation: Operation, headers: Mapping[str, str]) -> Answer:
    answer: Answer = {}
    metadata: dict[str, str] = {}
    known = operation.answers
    for name, value in headers.items():
        if name in known:
            member, kind = known[name]
            if member == "Expires":
                answer["ExpiresString"] = value  # any text: only a cache must understand it
            elif kind == "string":
                answer[member] = value
            elif kind == "timestamp":
                answer[member] = read_time(value)
            elif kind == "boolean":
                answer[member] = value == "true"
            elif value.isdecimal():
                answer[member] = int(value)
            else:
                raise NotS3
        elif name.startswith("x-amz-meta-"):
            metadata[name[11:]] = value
    answer["Metadata"] = metadata
    if "date" in headers:
        answer["Date"] = read_time(headers["date"])
    return answer


def _from_document(operation: str, body: bytes) -> Answer:
    if not body:
        if operation in FALLIBLE:
            raise Refused(500, {"Code": "InternalError", "Message": "the answer is empty"})
        return {}
    try:
        root = parse(body)
    except ParseError as exc:
        raise NotS3 from exc
    fields = read_fields(root)
    if local_name(root) == "Error":
        raise Refused(500, fields)
    if "LastModified" in fields:
        fields["LastModified"] = read_time(fields["LastModified"])
    if operation in WRAPPED:
        return {WRAPPED[operation]: fields}
    for element, plural in LISTS.items():
        found = fields.pop(element, [])
        if found:
            fields[plural] = found if isinstance(found, list) else [found]
    return fields


def _error_fields(exchange: Exchange) -> Mapping[str, Any]:
    """Read the fields of an error; without a document that says it, the status is all there is."""
    body = exchange.body.strip()
    if body.startswith(b"<"):
        try:
            root = parse(body)
        except ParseError:
            pass
        else:
            if local_name(root) == "Error":
                return read_fields(root)
    return {"Message": http.client.responses.get(exchange.status, "")}


def read_time(text: str) -> datetime:
    """Read a time as HTTP or XML write it.

    Raises:
        NotS3: it is none.
    """
    try:
        if text.endswith(" GMT") and len(text) == 29:  # Tue, 14 Nov 2023 22:13:20 GMT
            return datetime(
                int(text[12:16]),
                MONTHS[text[8:11]],
                int(text[5:7]),
                int(text[17:19]),
                int(text[20:22]),
                int(text[23:25]),
                tzinfo=UTC,
            )
        if text[:1].isdigit():
            return datetime.fromisoformat(text)
        return parsedate_to_datetime(text)
    except (ValueError, KeyError) as exc:
        raise NotS3 from exc
