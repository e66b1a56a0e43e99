"""Multipart uploads beside their parts: those that nobody has finished, and what a store does with checksums."""

from collections.abc import Sequence
from typing import Final

from s3mgrd.s3.answers import Answer
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.checksums import MEMBER, crc64nvme, decode, encode
from s3mgrd.s3.http import Exchange
from s3mgrd.s3.listing import UploadsPage, etag_of, parse_uploads_page
from s3mgrd.s3.port import Part, PendingUpload

TRIAL: Final = b"s3mgr"
"""What is sent with a wrong checksum to find out whether the store verifies checksums."""


async def find_out_about_checksums(
    calls: Calls, trial: UploadBody, key: str, upload_id: str
) -> None:
    """Send *trial*, `TRIAL`, as what will be part 1 later, with a checksum that it has not, where that would tell news."""

    async def send_wrong() -> None:
        wrong = {"UploadId": upload_id, "PartNumber": 1, MEMBER: encode(crc64nvme(TRIAL) ^ 1)}
        await calls.call("UploadPart", wrong, key=key, body=trial, deadline_s=0)

    await calls.checksums.find_out(send_wrong)


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
