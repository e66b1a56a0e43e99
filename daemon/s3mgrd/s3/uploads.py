"""Multipart uploads: their parts, what these carry, and their end; and those that nobody has finished."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import trio

from s3mgrd.errors import NotFound
from s3mgrd.s3.algorithms import read_checksum
from s3mgrd.s3.answers import Answer
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.checksums import FULL_OBJECT, Begun
from s3mgrd.s3.conditions import COMPLETE, Check, ConditionalWrites, quoted
from s3mgrd.s3.http import Exchange
from s3mgrd.s3.listing import UploadsPage, etag_of, parse_uploads_page
from s3mgrd.s3.multipart import multipart_checksum, multipart_etag
from s3mgrd.s3.operations import Params
from s3mgrd.s3.outcomes import answered_ns, holds, may_be_ours
from s3mgrd.s3.port import (
    Body,
    Condition,
    ObjectHead,
    Part,
    PendingUpload,
    UploadNotes,
    Written,
)
from s3mgrd.s3.retry import CallFailed

ABORT_LIMIT_S: Final = 5.0
GONE_AFTER_S: Final = 1.0


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


class Uploads:
    """The multipart uploads of one store. Its methods raise `CallFailed`.

    Args:
        calls: how they are made.
        conditions: under which they are completed.
        threads: where parts are hashed.
        head: looks for an object.
    """

    def __init__(
        self,
        calls: Calls,
        conditions: ConditionalWrites,
        threads: trio.CapacityLimiter,
        head: Callable[[str], Awaitable[ObjectHead]],
    ) -> None:
        self._calls: Final = calls
        self._conditions: Final = conditions
        self._threads: Final = threads
        self._head: Final = head
        self._begun: Final[dict[str, Begun]] = {}

    async def begin(self, key: str, described: Params) -> str:
        """Begin one and return its id."""
        given = self._calls.checksums.beginning()
        answer = await self._calls.call("CreateMultipartUpload", {**described, **given}, key=key)
        upload_id = str(answer["UploadId"])
        self._begun[upload_id] = self._calls.checksums.began(given, answer)
        return upload_id

    def ended(self, upload_id: str) -> None:
        """Forget about one."""
        self._begun.pop(upload_id, None)

    async def send_part(self, key: str, upload_id: str, number: int, body: Body) -> Part:
        """Send one part, with the checksum that the upload was begun for."""
        upload = UploadBody(body, self._threads, self._begun.get(upload_id))
        answer = await self._calls.call(
            "UploadPart", {"UploadId": upload_id, "PartNumber": number}, key=key, body=upload
        )
        if upload.checksum is None and upload_id in self._begun:
            self._begun[upload_id] = Begun()  # it was refused what it carried at first
        return Part(number, etag_of(answer.get("ETag")), upload.length, upload.checksum)

    async def list_parts(self, key: str, upload_id: str) -> list[Part]:
        """List the parts that S3 has of one, and learn what they carry if another worker began it."""
        parts: list[Part] = []
        marker: int | None = None
        while True:
            params = {"UploadId": upload_id, "PartNumberMarker": marker}
            answer = await self._calls.call("ListParts", params, key=key)
            if upload_id not in self._begun:
                checksums = self._calls.checksums
                self._begun[upload_id] = checksums.began(checksums.beginning(), answer)
            parts += [
                Part(int(p["PartNumber"]), etag_of(p["ETag"]), int(p["Size"]), read_checksum(p))
                for p in answer.get("Parts", [])
            ]
            if not answer.get("IsTruncated"):
                return parts
            marker = int(answer["NextPartNumberMarker"])

    async def complete(
        self, key: str, upload_id: str, parts: Sequence[Part], condition: Condition
    ) -> Written:
        """Make an object of its parts, under a condition."""
        begun = self._begun.get(upload_id, Begun())
        if begun.needs_parts and any(part.checksum is None for part in parts):
            parts = await self._with_checksums(key, upload_id, parts)
        whole = None
        if begun.algorithm is not None and begun.is_full_object:
            whole = multipart_checksum(parts, begun.algorithm)
        params: dict[str, object] = {
            "UploadId": upload_id,
            "MultipartUpload": {"Parts": [_listed(part, begun) for part in parts]},
        }
        if whole is not None:
            params |= {"ChecksumType": FULL_OBJECT, whole.algorithm.member: str(whole)}

        async def send(check: Check) -> Answer:
            return await self._complete(key, {**params, **check})

        try:
            answer = await self._conditions.run(COMPLETE, key, condition, send)
        except CallFailed as failure:
            etag = multipart_etag(parts)
            if etag and may_be_ours(failure) and await holds(self._head, key, etag):
                self.ended(upload_id)
                return Written(etag)
            raise
        if whole is not None:
            self._calls.checksums.compare(answer, whole)
        self.ended(upload_id)
        # radosgw 16 answers with an empty ETag.
        etag = etag_of(answer.get("ETag")) or multipart_etag(parts) or (await self._head(key)).etag
        return Written(etag, answered_ns(answer))

    async def _with_checksums(
        self, key: str, upload_id: str, parts: Sequence[Part]
    ) -> Sequence[Part]:
        """Learn the checksums that are not known: not every store says that of a part which it copies."""
        try:
            listed = await self.list_parts(key, upload_id)
        except CallFailed:
            # Whoever completes it hears the same, and knows whether it was completed unseen.
            return parts
        found = {(part.number, part.etag): part.checksum for part in listed}
        return [
            replace(part, checksum=found.get((part.number, part.etag)))
            if part.checksum is None
            else part
            for part in parts
        ]

    async def _complete(self, key: str, params: Params) -> Answer:
        """Complete an upload, or find out early that it is gone: radosgw 16 says InternalError then, for ever."""
        patience_s = min(GONE_AFTER_S, self._calls.retry.deadline_s)
        try:
            return await self._calls.call(COMPLETE, params, key=key, deadline_s=patience_s)
        except CallFailed as failure:
            if failure.status < 500:
                raise
        try:
            given = {"UploadId": params["UploadId"], "MaxParts": 1}
            await self._calls.call("ListParts", given, key=key)
            return await self._calls.call(COMPLETE, params, key=key)
        except CallFailed as failure:
            failure.after_ambiguous = True
            raise


def _listed(part: Part, begun: Begun) -> dict[str, object]:
    """Say which part an upload is made of: also by its checksum, where S3 makes that of the whole out of them."""
    listed: dict[str, object] = {"PartNumber": part.number, "ETag": quoted(part.etag)}
    checksum = part.checksum
    if begun.needs_parts and checksum is not None and checksum.algorithm is begun.algorithm:
        listed[checksum.algorithm.member] = str(checksum)
    return listed


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
