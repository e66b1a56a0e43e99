"""A small multipart upload of no use, to find out what a store does with checksums of parts and with conditions of the whole.

It has a key of its own, so no object of anybody is at stake whatever the store does. Its second part, which is never listed,
goes with a checksum that it has not: a store that takes it verifies none. It is completed under a condition that cannot
hold, since there is no object: a store that makes one nevertheless evaluates none. Everything else says nothing.
"""

import trio

from s3mgrd.s3.algorithms import Checksum
from s3mgrd.s3.answers import Answer
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.calls import NO_PARAMS, Calls
from s3mgrd.s3.checksums import Begun
from s3mgrd.s3.conditions import COMPLETE, Check, ConditionalWrites, quoted
from s3mgrd.s3.listing import etag_of
from s3mgrd.s3.operations import Params
from s3mgrd.s3.port import TRIAL, UploadNotes
from s3mgrd.s3.retry import CallFailed
from s3mgrd.s3.uploads import abort_noted


class Trial:
    """One such upload, at *key*. Nobody waits for it, so what fails is not tried again."""

    def __init__(
        self,
        calls: Calls,
        conditions: ConditionalWrites,
        threads: trio.CapacityLimiter,
        key: str,
        notes: UploadNotes | None,
    ) -> None:
        self._calls = calls
        self._conditions = conditions
        self._threads = threads
        self._key = key
        self._notes = notes

    async def make(self) -> None:
        """Make it, and leave nothing at its key.

        Raises:
            S3mgrError: a request failed; perhaps something lies at the key.
        """
        try:
            await self._make()
        except CallFailed as failure:
            raise failure.error from failure

    async def _make(self) -> None:
        given = self._calls.checksums.beginning()
        created = await self._ask("CreateMultipartUpload", given)
        begun = self._calls.checksums.began(given, created)
        upload_id = str(created["UploadId"])
        is_made = False
        try:
            if self._notes is not None:
                self._notes.upload_begun(self._key, upload_id)
            is_made = await self._send(upload_id, begun)
        finally:
            if not is_made:
                await abort_noted(self._calls, self._notes, self._key, upload_id)
        if is_made:
            if self._notes is not None:
                self._notes.upload_ended(upload_id)
            await self._calls.call("DeleteObject", key=self._key)

    async def _send(self, upload_id: str, begun: Begun) -> bool:
        """Send and complete it; returns whether that made an object."""
        etag: str | None = None
        failures: list[CallFailed] = []

        async def send_right() -> None:
            nonlocal etag
            try:
                etag = etag_of((await self._send_part(upload_id, begun, 1)).get("ETag"))
            except CallFailed as failure:
                failures.append(failure)

        async def send_wrong() -> None:
            assert begun.algorithm is not None  # noqa: S101 - asked below
            wrong = Checksum(begun.algorithm, begun.algorithm.of(TRIAL) ^ 1)
            await self._send_part(upload_id, begun, 2, {begun.algorithm.member: str(wrong)})

        async def complete(check: Check) -> None:
            parts = [{"PartNumber": 1, "ETag": quoted(etag)}]
            given = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}, **check}
            await self._ask(COMPLETE, given)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_right)
            if begun.algorithm is not None and begun.algorithm is self._calls.checksums.sent:
                nursery.start_soon(self._calls.checksums.find_out, send_wrong)
        if failures:
            raise failures[0]
        return await self._conditions.find_out_completing(complete)

    async def _send_part(
        self, upload_id: str, begun: Begun, number: int, params: Params = NO_PARAMS
    ) -> Answer:
        given = {"UploadId": upload_id, "PartNumber": number, **params}
        return await self._ask("UploadPart", given, UploadBody(TRIAL, self._threads, begun))

    async def _ask(self, operation: str, params: Params, body: UploadBody | None = None) -> Answer:
        return await self._calls.call(operation, params, key=self._key, body=body, deadline_s=0)
