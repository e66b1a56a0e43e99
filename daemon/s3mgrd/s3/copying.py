"""Copies on the server: one CopyObject, or parts in parallel above its limit.

CopyObject either copies all headers and metadata of the source or replaces all of them; a multipart copy starts
from nothing. So that a changed mode does not cost an object its caching rules, its encoding or its storage class,
we ask for the source's headers (one HEAD) whenever S3 would not copy them, and send them along. Tags are kept by
CopyObject itself; a multipart copy reads and sets them.

Where a store is not known to heed the condition on the source, a HEAD checks it before, and after the parts. The first
such copy finds out: it is sent with an ETag that nothing has. A store that refuses it heeds conditions and gets the right
one; a store that copies nevertheless has done what was wanted, since the HEAD has just said so.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

import trio

from s3mgrd.errors import NotFound, PreconditionFailed
from s3mgrd.s3.calls import Answer, Calls, Params
from s3mgrd.s3.conditions import SOURCE, Check, ConditionalWrites, quoted
from s3mgrd.s3.listing import etag_of, time_ns
from s3mgrd.s3.multipart import multipart_etag
from s3mgrd.s3.port import MAX_PARTS, Part, Written
from s3mgrd.s3.retry import CallFailed

COPY_PART_BYTES: Final = 256 << 20
"""The server does the work, so parts are large; grows where 10,000 of them would not suffice."""
NO_ETAG: Final = '"00000000000000000000000000000000"'
ABORT_LIMIT_S: Final = 5.0
KEPT_HEADERS: Final = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "StorageClass",
    "WebsiteRedirectLocation",
)


@dataclass(slots=True)
class Copier:
    """One copy. *metadata* (encoded) None keeps the source's metadata and type; *replacing* as in the port; ETags are quoted."""

    calls: Calls
    conditions: ConditionalWrites
    bucket: str
    source: str
    target: str
    size: int
    metadata: dict[str, str] | None
    replacing: frozenset[str] | None
    content_type: str | None
    if_source_match: str | None

    async def at_once(self, check: Check) -> Written:
        """Copy with one CopyObject.

        Raises:
            CallFailed: it failed.
        """
        replaced: dict[str, object] = {}
        support = self.conditions.support[SOURCE]
        checks = self.if_source_match is not None and support != "supported"
        if self.metadata is not None or checks:
            head = await self._source_head()
            if self.metadata is not None:
                replaced = {**self._headers(head), "MetadataDirective": "REPLACE"}
        if checks and support == "unknown" and not any(check.values()):
            try:
                written = await self._copy_object(NO_ETAG, replaced)
            except CallFailed as failure:
                if not isinstance(failure.error, PreconditionFailed):
                    raise
                self.conditions.support[SOURCE] = "supported"
            else:
                self.conditions.support[SOURCE] = "unsupported"
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
        """Copy with UploadPartCopy, several at the same time; what was begun is aborted when it fails or is cancelled.

        Raises:
            CallFailed: a call failed.
        """
        head = await self._source_head()
        # All parts must come from one version.
        version = self.if_source_match or quoted(etag_of(head.get("ETag")))
        created = await self.calls.call(
            "CreateMultipartUpload",
            {"Tagging": await self._tagging(head), **self._headers(head)},
            key=self.target,
        )
        upload_id = str(created["UploadId"])
        try:
            parts = await self._copy_parts(upload_id, version, part_bytes)
            if self.conditions.support[SOURCE] != "supported":
                await self._source_head(version)
            listed = [{"PartNumber": p.number, "ETag": quoted(p.etag)} for p in parts]
            answer = await self.calls.call(
                "CompleteMultipartUpload",
                {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}, **check},
                key=self.target,
            )
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_LIMIT_S):
                await self._abort(upload_id)
            raise
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

    async def _abort(self, upload_id: str) -> None:
        try:
            await self.calls.call("AbortMultipartUpload", {"UploadId": upload_id}, key=self.target)
        except CallFailed:
            # The copy's own failure is what matters; `list_multiparts` shows what is left.
            return

    async def _source_head(self, version: str | None = None) -> Answer:
        try:
            return await self.calls.call(
                "HeadObject", {"IfMatch": version or self.if_source_match}, key=self.source
            )
        except CallFailed as failure:
            if failure.status == 404:
                error = NotFound(f"there is no object {self.source!r} in bucket {self.bucket!r}")
                raise CallFailed(error, code="NoSuchKey", status=404) from failure
            raise

    def _headers(self, head: Answer) -> dict[str, object]:
        headers = {name: head[name] for name in KEPT_HEADERS if head.get(name)}
        if head.get("ExpiresString"):
            headers["Expires"] = head["ExpiresString"]
        present = {k.lower(): v for k, v in head.get("Metadata", {}).items()}
        if self.metadata is None:
            headers["Metadata"] = present
            headers["ContentType"] = head.get("ContentType")
        elif self.replacing is None:
            headers["Metadata"] = self.metadata
            headers["ContentType"] = self.content_type
        else:
            kept = {k: v for k, v in present.items() if k not in self.replacing}
            headers["Metadata"] = kept | self.metadata
            headers["ContentType"] = self.content_type or head.get("ContentType")
        return headers

    async def _tagging(self, head: Answer) -> str | None:
        if not head.get("TagCount"):
            return None
        answer = await self.calls.call("GetObjectTagging", key=self.source)
        return urlencode([(tag["Key"], tag["Value"]) for tag in answer.get("TagSet", [])])


def _ranges(size: int, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Cut *size* into at most `MAX_PARTS` numbered ranges, of *part_bytes* or larger."""
    length = max(part_bytes, math.ceil(size / MAX_PARTS))
    for number, start in enumerate(range(0, size, length), 1):
        yield number, start, min(size, start + length)
