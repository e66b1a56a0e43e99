"""Multipart uploads beside their parts: those that nobody has finished."""

from collections.abc import Sequence
from typing import Final

import trio

from s3mgrd.errors import NotFound
from s3mgrd.s3.answers import Answer
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.checksums import MEMBER, decode
from s3mgrd.s3.http import Exchange
from s3mgrd.s3.listing import UploadsPage, etag_of, parse_uploads_page
from s3mgrd.s3.port import Part, PendingUpload, UploadNotes
from s3mgrd.s3.retry import CallFailed

ABORT_LIMIT_S: Final = 5.0


async def abort_noted(calls: Calls, notes: UploadNotes | None, key: str, upload_id: str) -> None:
    """Abort an upload of our own, also when cancelled, and have *notes* know what became of it. Raises nothing of S3's."""
    is_gone = False
    with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_LIMIT_S):
        try:
            await calls.call("AbortMultipartUpload", {"UploadId": upload_id}, key=key)
            is_gone = True
        except CallFailed as failure:
            # Why it is aborted is what matters.
            is_gone = isinstance(failure.error, NotFound)
        finally:
            if notes is not None:
                (notes.upload_ended if is_gone else notes.upload_left)(upload_id)


async def list_parts(calls: Calls, key: str, upload_id: str) -> list[Part]:
    """List the parts that S3 has of an upload. Raises `CallFailed`."""
    parts: list[Part] = []
    marker: int | None = None
    while True:
        params = {"UploadId": upload_id, "PartNumberMarker": marker}
        answer = await calls.call("ListParts", params, key=key)
        parts += [
            Part(int(p["PartNumber"]), etag_of(p["ETag"]), int(p["Size"]), decode(p.get(MEMBER)))
            for p in answer.get("Parts", [])
        ]
        if not answer.get("IsTruncated"):
            return parts
        marker = int(answer["NextPartNumberMarker"])


async def list_uploads(calls: Calls, prefix: str) -> Sequence[PendingUpload]:
    """List those below *prefix*. Raises `CallFailed`."""
    encoding: str | None = "url"
    uploads: list[PendingUpload] = []
    marker: tuple[str, str] | tuple[None, None] | None = (None, None)
    while marker is not None:
        page = await _list_page(calls, prefix, marker, encoding)
        names = [upload.key for upload in page.uploads]
        if encoding and not page.is_encoded and any("%" in n or "+" in n for n in names):
            # radosgw 16 encodes without saying so. What is not asked for needs no guess.
            encoding, uploads, marker = None, [], (None, None)
            continue
        uploads += page.uploads
        marker = page.following
    return uploads


async def _list_page(
    calls: Calls,
    prefix: str,
    marker: tuple[str, str] | tuple[None, None],
    encoding: str | None,
) -> UploadsPage:
    async def finish(_: Answer, exchange: Exchange) -> UploadsPage:
        return parse_uploads_page(exchange.body)

    params = {
        "Prefix": prefix,
        "KeyMarker": marker[0],
        "UploadIdMarker": marker[1],
        "EncodingType": encoding,
    }
    return await calls.receive("ListMultipartUploads", finish, params)
