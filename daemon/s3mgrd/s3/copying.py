"""Copies on the server: one CopyObject, or parts in parallel above its limit.

CopyObject either copies all headers and metadata of the source or replaces all of them, and forgets storage class,
encryption and redirect either way; a multipart copy starts from nothing. So that a changed mode or name does not cost an
object its caching rules or its key, what the source has (`s3mgrd.s3.headers`) is sent along: the caller knows it, or one
HEAD tells. Tags are kept by CopyObject itself; a multipart copy reads and sets them (`s3mgrd.s3.tags`).

Where a store is not known to heed the condition on the source, a HEAD checks it before, and after the parts. The first
such copy finds out, and others wait for it: it is sent with an ETag that nothing has. A store that refuses it heeds conditions and gets the right
one; a store that copies nevertheless has done what was wanted, since the HEAD has just said so.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import trio

from s3mgrd.errors import NotFound, PreconditionFailed
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.conditions import NO_ETAG, SOURCE, Check, ConditionalWrites, quoted
from s3mgrd.s3.headers import describing_params, metadata_params, placing_params
from s3mgrd.s3.listing import etag_of, time_ns
from s3mgrd.s3.multipart import multipart_etag
from s3mgrd.s3.operations import Params
from s3mgrd.s3.port import MAX_PARTS, ObjectHead, Part, UploadNotes, Written
from s3mgrd.s3.reading import head_of
from s3mgrd.s3.retry import CallFailed
from s3mgrd.s3.tags import Tags
from s3mgrd.s3.uploads import abort_noted

COPY_PART_BYTES: Final = 256 << 20
"""The server does the work, so parts are large; grows where 10,000 of them would not suffice."""


@dataclass(slots=True)
class Copier:
    """One copy; the arguments are those of the port, but for ETags, which are quoted."""

    calls: Calls
    conditions: ConditionalWrites
    tags: Tags
    bucket: str
    source: str
    target: str
    size: int
    metadata: Mapping[str, str] | None
    replacing: frozenset[str] | None
    content_type: str | None
    source_head: ObjectHead | None
    if_source_match: str | None
    notes: UploadNotes | None

    async def at_once(self, check: Check) -> Written:
        """Copy with one CopyObject.

        Raises:
            CallFailed: it failed.
        """
        if self.if_source_match is None or any(check.values()) or not self._is_unknown():
            return await self._at_once(check)
        async with self.conditions.first_copy:
            if self._is_unknown():
                return await self._at_once(check)
        return await self._at_once(check)

    def _is_unknown(self) -> bool:
        return self.conditions.support[SOURCE] == "unknown"

    async def _at_once(self, check: Check) -> Written:
        checks = self.if_source_match is not None and self.conditions.support[SOURCE] != "supported"
        head = self.source_head
        if head is None or checks:
            head = await self._ask_source()
        replaced = placing_params(head)
        if self.metadata is not None:
            replaced |= {**self._described(head), "MetadataDirective": "REPLACE"}
        tagging = await self.tags.lost_by_copy(head) if self.metadata is not None else None
        written = await self._copy_checked(replaced, check, checks=checks)
        if tagging is not None:
            await self.tags.put(self.target, tagging)
        return written

    async def _copy_checked(self, replaced: Params, check: Check, *, checks: bool) -> Written:
        """Send the CopyObject; *checks*: a HEAD has just said that the source is the version wanted."""
        support = self.conditions.support[SOURCE]
        if checks and support == "unknown" and not any(check.values()):
            try:
                written = await self._copy_object(quoted(NO_ETAG), replaced)
            except CallFailed as failure:
                if not isinstance(failure.error, PreconditionFailed):
                    raise
                self.conditions.support[SOURCE] = "supported"
            else:
                self.conditions.note_unsupported(SOURCE)
                return written
        return await self._copy_object(self.if_source_match, {**replaced, **check})

    async def _copy_object(self, source_match: str | None, params: Params) -> Written:
        answer = await self.calls.call(
            "CopyObject",
            {
                "CopySource": {"Bucket": self.bucket, "Key": self.source},
                "CopySourceIfMatch": source_match,
                **params,
            },
            key=self.target,
        )
        result = answer.get("CopyObjectResult", {})
        modified = result.get("LastModified")
        return Written(
            etag_of(result.get("ETag")),
            time_ns(modified) if isinstance(modified, datetime) else None,
        )

    async def by_parts(self, part_bytes: int, check: Check) -> Written:
        """Copy with UploadPartCopy, several at the same time; what was begun is aborted when it fails or is cancelled, and noted until then.

        Raises:
            CallFailed: a call failed.
        """
        # Asked here also when the caller knows the head: one request more is nothing beside the parts, and tags change
        # without another version.
        head = await self._ask_source()
        # All parts must come from one version.
        version = self.if_source_match or quoted(head.etag)
        tagging = await self.tags.of(head)
        created = await self.calls.call(
            "CreateMultipartUpload",
            {"Tagging": tagging, **placing_params(head), **self._described(head)},
            key=self.target,
        )
        upload_id = str(created["UploadId"])
        try:
            if self.notes is not None:
                self.notes.upload_begun(self.target, upload_id)
            parts = await self._copy_parts(upload_id, version, part_bytes)
            if self.conditions.support[SOURCE] != "supported":
                await self._ask_source(version)
            listed = [{"PartNumber": p.number, "ETag": quoted(p.etag)} for p in parts]
            answer = await self.calls.call(
                "CompleteMultipartUpload",
                {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}, **check},
                key=self.target,
            )
        except BaseException:
            await abort_noted(self.calls, self.notes, self.target, upload_id)
            raise
        if self.notes is not None:
            self.notes.upload_ended(upload_id)
        if tagging is not None and not self.tags.travel:
            await self.tags.put(self.target, tagging)
        return Written(etag_of(answer.get("ETag")) or multipart_etag(parts))

    async def _copy_parts(self, upload_id: str, version: str | None, part_bytes: int) -> list[Part]:
        parts: dict[int, Part] = {}
        failures: list[CallFailed] = []
        ranges = _ranges(self.size, part_bytes)
        workers = min(int(self.calls.limiter.total_tokens), math.ceil(self.size / part_bytes))

        async def copy_some(scope: trio.CancelScope) -> None:
            for number, start, stop in ranges:
                try:
                    answer = await self.calls.call(
                        "UploadPartCopy",
                        {
                            "UploadId": upload_id,
                            "PartNumber": number,
                            "CopySource": {"Bucket": self.bucket, "Key": self.source},
                            "CopySourceRange": f"bytes={start}-{stop - 1}",
                            "CopySourceIfMatch": version,
                        },
                        key=self.target,
                    )
                except CallFailed as failure:
                    failures.append(failure)
                    scope.cancel()
                    return
                etag = etag_of(answer["CopyPartResult"]["ETag"])
                parts[number] = Part(number, etag, stop - start)

        async with trio.open_nursery() as nursery:
            for _ in range(max(1, workers)):
                nursery.start_soon(copy_some, nursery.cancel_scope)
        if failures:
            raise failures[0]
        return [parts[number] for number in sorted(parts)]

    async def _ask_source(self, version: str | None = None) -> ObjectHead:
        try:
            answer = await self.calls.call(
                "HeadObject", {"IfMatch": version or self.if_source_match}, key=self.source
            )
        except CallFailed as failure:
            if failure.status == 404:
                error = NotFound(f"there is no object {self.source!r} in bucket {self.bucket!r}")
                raise CallFailed(error, code="NoSuchKey", status=404) from failure
            raise
        return head_of(self.source, answer, int(answer.get("ContentLength", 0)))

    def _described(self, head: ObjectHead) -> dict[str, object]:
        return describing_params(head) | metadata_params(
            head, self.metadata, self.replacing, self.content_type
        )


def _ranges(size: int, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Cut *size* into at most `MAX_PARTS` numbered ranges, of *part_bytes* or larger."""
    length = max(part_bytes, math.ceil(size / MAX_PARTS))
    for number, start in enumerate(range(0, size, length), 1):
        yield number, start, min(size, start + length)
