"""The `ObjectStore` on S3.

`open_store` is the entry; `S3Store` translates the port's methods into calls (`s3mgrd.s3.calls`) and back.

Conditional writes: see `s3mgrd.s3.conditions`. `S3Store.conditions` tells what is known.

Repeated writes. A PUT whose answer got lost may have been done; tried again with its condition it is refused because of
itself. Such a refusal is believed only when the object is not what we sent (size, ETag and metadata). The same goes
for completing a multipart upload that is "gone".
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import trio
from botocore.exceptions import BotoCoreError

from s3mgrd.errors import (
    BucketNotFound,
    CredentialsRejected,
    InvalidSpec,
    NotFound,
    S3mgrError,
    TimedOut,
    TooLarge,
)
from s3mgrd.s3.algorithms import Checksum, read_checksum
from s3mgrd.s3.answers import Answer
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.botocore_client import make_client
from s3mgrd.s3.calls import NO_PARAMS, Calls
from s3mgrd.s3.conditions import COMPLETE, COPY, PUT, Check, ConditionalWrites, quoted
from s3mgrd.s3.connections import Connect, Connector
from s3mgrd.s3.copying import COPY_PART_BYTES, Copier
from s3mgrd.s3.counting import StoreStats
from s3mgrd.s3.deleting import delete_batch
from s3mgrd.s3.grants import LiveCredentials
from s3mgrd.s3.headers import describing_params, placing_params
from s3mgrd.s3.http import Exchange, Pool
from s3mgrd.s3.listing import etag_of, parse_list_page
from s3mgrd.s3.metadata import encode_metadata
from s3mgrd.s3.operations import Params
from s3mgrd.s3.outage import Outage
from s3mgrd.s3.outcomes import answered_ns, holds, lost_if_gone, may_be_ours
from s3mgrd.s3.port import (
    ALWAYS,
    MAX_COPY_BYTES,
    MAX_LIST_KEYS,
    MAX_PUT_BYTES,
    NO_VERSIONS,
    Body,
    Checksums,
    Condition,
    Conditions,
    DeleteFailure,
    ListPage,
    ObjectHead,
    Part,
    PendingUpload,
    RangeRead,
    RestoreAnswer,
    Tier,
    UploadNotes,
    Written,
)
from s3mgrd.s3.reading import Reading, head_of
from s3mgrd.s3.restoring import restore_object
from s3mgrd.s3.retry import CallFailed
from s3mgrd.s3.settings import CredentialProvider, StoreSettings, is_aws
from s3mgrd.s3.tags import Tags
from s3mgrd.s3.tls import shared_context
from s3mgrd.s3.trials import Trial
from s3mgrd.s3.uploads import Uploads, list_uploads
from s3mgrd.s3.versions import checksum_of, find_version

log = logging.getLogger("s3mgrd.s3")

T = TypeVar("T")

PROBE_LIMIT_S: Final = 10.0
"""Somebody waits for the answer of a mount command."""
PROBE_RETRY_S: Final = 1.0
EXPLAIN_RETRY_S: Final = 2.0
BUCKET_SEEN_S: Final = 60.0
"""How long an answer about the bucket lets us believe that a 404 is about the key."""
VERIFY_BYTES: Final = 64 << 10
"""Largest body that is sent a second time to find out whether the store evaluates conditions."""
FILE_THREADS: Final = 4
HEAD_WITHOUT_REASON: Final = (400, 401, 403)


@asynccontextmanager
async def open_store(
    settings: StoreSettings, *, connect: Connect | None = None
) -> AsyncIterator["S3Store"]:
    """Open the store; nothing is sent before the first call, and leaving the context closes its connections.

    Args:
        settings: what to open.
        connect: opens connections; given by `s3mgrd.s3.warm` and by tests.

    Raises:
        InvalidSpec: endpoint or region cannot be used.
    """
    connect = connect or Connector(shared_context(), settings.read_timeout_s)
    pool = Pool(connect, settings.connect_timeout_s)
    credentials = None
    if settings.credentials is not None and not settings.anonymous:
        credentials = LiveCredentials(settings.credentials)
    making = make_client(settings, pool, credentials)
    try:
        client = await making.__aenter__()
    except (BotoCoreError, ValueError) as exc:
        raise InvalidSpec(
            f"no S3 client can be made for region {settings.region!r} and endpoint "
            f"{settings.endpoint_url or 'AWS'}: {exc}",
            hint="check region and endpoint",
        ) from exc
    try:
        calls = Calls(client, settings, credentials, pool)
        yield S3Store(calls, settings, credentials, pool)
    finally:
        pool.close()
        await making.__aexit__(None, None, None)


class S3Store:
    """One bucket on S3; implements `s3mgrd.s3.port.ObjectStore`. Made by `open_store`."""

    def __init__(
        self,
        calls: Calls,
        settings: StoreSettings,
        credentials: LiveCredentials | None,
        pool: Pool,
        *,
        max_copy_bytes: int = MAX_COPY_BYTES,
        copy_part_bytes: int = COPY_PART_BYTES,
    ) -> None:
        self._calls: Final = calls
        self._bucket: Final = settings.bucket
        self._credentials: Final = credentials
        self._pool: Final = pool
        self._threads: Final = trio.CapacityLimiter(FILE_THREADS)
        self._bucket_seen = float("-inf")
        self._distrusted: Final[set[str]] = set()
        """Checksums that this store gives of ranges although they are not theirs, by botocore's names."""
        self._conditions: Final = ConditionalWrites(
            calls.endpoint, known=is_aws(settings.endpoint_url), head=self.head
        )
        self._tags: Final = Tags(calls, travel=is_aws(settings.endpoint_url))
        self._tried = ""
        """The checksum with which an upload of no use was made last."""
        self._uploads: Final = Uploads(calls, self._conditions, self._threads, self.head)
        self.copy_notes: UploadNotes | None = None
        self.max_copy_bytes = max_copy_bytes
        self.copy_part_bytes = copy_part_bytes

    @property
    def stats(self) -> StoreStats:
        """Counters since the store was opened; a call that was tried three times counts three."""
        return self._calls.stats

    @property
    def outage(self) -> Outage:
        """Whether S3 can be reached."""
        return self._calls.outage

    @property
    def conditions(self) -> Conditions:
        """What the store is known to do with conditions."""
        return self._conditions.known

    @property
    def checksums(self) -> Checksums:
        """See the port."""
        known = self._calls.checksums
        return Checksums(known.support, known.algorithm.name)

    def recall(self, conditions: Conditions, checksums: Checksums) -> None:
        """Believe what an earlier use of this store found out."""
        self._conditions.recall(conditions)
        self._calls.checksums.recall(checksums.support, checksums.algorithm)

    @property
    def open_connections(self) -> int:
        """How many connections are open, idle ones included."""
        return self._pool.open_connections

    @property
    def requests_running(self) -> int:
        """How many requests are being made."""
        return self._calls.running

    def set_retry_deadline(self, seconds: float) -> None:
        """Try failing calls again for *seconds*, also those that are being retried now."""
        self._calls.retry.deadline_s = seconds

    def set_concurrency(self, requests: int) -> None:
        """Let at most *requests* transfers run at the same time; those that run already go on."""
        self._calls.set_concurrency(requests)

    def set_credentials(self, provider: CredentialProvider) -> None:
        """Sign the next request with keys from *provider*. An anonymous store stays anonymous."""
        if self._credentials is not None:
            self._credentials.replace(provider)

    async def probe(self, prefix: str) -> None:
        """See the port."""
        with trio.move_on_after(PROBE_LIMIT_S) as scope:
            await self._list(prefix, deadline_s=PROBE_RETRY_S, max_keys=1, is_probe=True)
        if scope.cancelled_caught:
            raise TimedOut(
                f"{self._calls.endpoint} did not answer within {PROBE_LIMIT_S:.0f} s",
                hint="check the network and the endpoint",
            )

    async def list_page(
        self,
        prefix: str,
        *,
        delimited: bool,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = MAX_LIST_KEYS,
    ) -> ListPage:
        """See the port."""
        return await self._list(
            prefix,
            delimiter="/" if delimited else None,
            token=token,
            start_after=start_after or None,
            max_keys=max_keys,
        )

    async def head(self, key: str) -> ObjectHead:
        """See the port."""
        answer = await self._head(key)
        return head_of(key, answer, int(answer.get("ContentLength", 0)))

    async def checksum(self, key: str, etag: str) -> Checksum | None:
        """See the port."""
        return await checksum_of(self._calls, key, etag)

    async def find_version(self, key: str, etag: str) -> str | None:
        """See the port."""
        return await find_version(self._calls, key, etag)

    async def get_range(
        self,
        key: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        version_id: str | None = None,
        is_whole: bool = False,
    ) -> RangeRead:
        """See the port."""
        reading = Reading(key, start, stop, if_match, self._distrusted, self._threads)
        # Without a range S3 says the checksum of the object; whether it is the version shows before a byte is read.
        span = None if is_whole and if_match is not None else f"bytes={start}-{stop - 1}"
        try:
            result = await self._calls.receive(
                "GetObject",
                reading.finish,
                {
                    "Range": span,
                    "IfMatch": quoted(if_match),
                    "VersionId": version_id,
                    "ChecksumMode": "ENABLED",
                },
                key=key,
                range_bytes=stop - start,
            )
        except CallFailed as failure:
            raise failure.error from failure
        self._saw_bucket()
        return result

    async def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str],
        content_type: str | None = None,
        like: ObjectHead | None = None,
        condition: Condition = ALWAYS,
    ) -> Written:
        """See the port."""
        upload = UploadBody(body, self._threads)
        if upload.length > MAX_PUT_BYTES:
            raise TooLarge(f"{upload.length} bytes are too many for one PUT")
        described = await self._described(metadata, content_type, like)

        async def send(check: Check) -> Answer:
            return await self._calls.call(
                PUT,
                {**described, **check},
                key=key,
                body=upload,
            )

        try:
            answer = await self._conditions.run(PUT, key, condition, send)
        except CallFailed as failure:
            if may_be_ours(failure):
                etag = await upload.md5()
                if await holds(self.head, key, etag, metadata):
                    return Written(etag)
            raise lost_if_gone(failure, condition) from failure
        self._saw_bucket()
        small = upload.length <= VERIFY_BYTES
        if condition != ALWAYS and small and self.conditions.writes == "unknown":
            await self._conditions.find_out(send)
        return Written(etag_of(answer.get("ETag")), answered_ns(answer))

    async def delete(self, key: str) -> None:
        """See the port."""
        await self._call("DeleteObject", NO_PARAMS, key=key)

    async def delete_many(
        self, keys: Sequence[str], *, if_match: Mapping[str, str] = NO_VERSIONS
    ) -> Sequence[DeleteFailure]:
        """See the port. Keys that XML cannot carry are deleted one by one."""
        return await delete_batch(self._calls, self._conditions, keys, if_match)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        source_size: int,
        if_source_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
        replacing: Collection[str] | None = None,
        content_type: str | None = None,
        source_head: ObjectHead | None = None,
        condition: Condition = ALWAYS,
    ) -> Written:
        """See the port."""
        copier = Copier(
            self._calls,
            self._conditions,
            self._tags,
            self._bucket,
            source,
            target,
            size=source_size,
            metadata=metadata,
            replacing=None if replacing is None else frozenset(replacing),
            content_type=content_type,
            source_head=source_head,
            if_source_match=quoted(if_source_match),
            notes=self.copy_notes,
        )
        by_parts = source_size > self.max_copy_bytes

        async def send(check: Check) -> Written:
            if by_parts:
                return await copier.by_parts(self.copy_part_bytes, check)
            return await copier.at_once(check)

        try:
            return await self._conditions.run(
                COMPLETE if by_parts else COPY, target, condition, send
            )
        except CallFailed as failure:
            if isinstance(failure.error, NotFound):
                raise await self._explain_head(failure, source) from failure
            raise failure.error from failure

    async def restore(self, key: str, *, days: int | None, tier: Tier) -> RestoreAnswer:
        """See the port."""
        return await restore_object(self._calls, key, days=days, tier=tier)

    async def create_multipart(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        content_type: str | None = None,
        like: ObjectHead | None = None,
    ) -> str:
        """See the port. When an answer gets lost, an upload may stay behind unused; `list_multiparts` shows it."""
        described = await self._described(metadata, content_type, like)
        upload_id = await self._mapped(self._uploads.begin(key, described))
        self._saw_bucket()
        return upload_id

    @property
    def wants_trial(self) -> bool:
        """See the port."""
        checksums = self.checksums
        is_news = "unknown" in (checksums.support, self.conditions.complete)
        return is_news and self._tried != checksums.algorithm

    async def try_upload(self, key: str) -> None:
        """See the port."""
        self._tried = self.checksums.algorithm
        await Trial(self._calls, self._conditions, self._threads, key, self.copy_notes).make()

    async def _described(
        self, metadata: Mapping[str, str], content_type: str | None, like: ObjectHead | None
    ) -> dict[str, object]:
        """Make the parameters that say what a new version is besides its bytes."""
        params: dict[str, object] = {
            "Metadata": encode_metadata(metadata),
            "ContentType": content_type,
        }
        if like is None:
            return params
        tagging = await self._mapped(self._tags.of(like))
        return {**params, **describing_params(like), **placing_params(like), "Tagging": tagging}

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body) -> Part:
        """See the port."""
        part = await self._mapped(self._uploads.send_part(key, upload_id, number, body))
        self._saw_bucket()
        return part

    async def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: str,
        start: int,
        stop: int,
        *,
        if_source_match: str,
    ) -> Part:
        """See the port."""
        answer = await self._call(
            "UploadPartCopy",
            {
                "UploadId": upload_id,
                "PartNumber": number,
                "CopySource": {"Bucket": self._bucket, "Key": source},
                "CopySourceRange": f"bytes={start}-{stop - 1}",
                "CopySourceIfMatch": quoted(if_source_match),
            },
            key=key,
        )
        result = answer["CopyPartResult"]
        return Part(number, etag_of(result["ETag"]), stop - start, read_checksum(result))

    async def list_parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """See the port."""
        parts = await self._mapped(self._uploads.list_parts(key, upload_id))
        self._saw_bucket()
        return parts

    async def complete_multipart(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ALWAYS
    ) -> Written:
        """See the port."""
        return await self._mapped(self._uploads.complete(key, upload_id, parts, condition))

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """See the port."""
        with suppress(NotFound):
            await self._call("AbortMultipartUpload", {"UploadId": upload_id}, key=key)
        self._uploads.ended(upload_id)

    async def list_multiparts(self, prefix: str) -> Sequence[PendingUpload]:
        """See the port."""
        return await self._mapped(list_uploads(self._calls, prefix))

    # Below: what the methods above share.

    def _saw_bucket(self) -> None:
        self._bucket_seen = trio.current_time()

    async def _mapped(self, making: Awaitable[T]) -> T:
        """Wait for what makes calls, and raise what the port says in place of `CallFailed`."""
        try:
            return await making
        except CallFailed as failure:
            raise failure.error from failure

    async def _call(self, operation: str, params: Params, *, key: str | None = None) -> Answer:
        answer = await self._mapped(self._calls.call(operation, params, key=key))
        self._saw_bucket()
        return answer

    async def _list(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int,
        deadline_s: float | None = None,
        is_probe: bool = False,
    ) -> ListPage:
        async def finish(_: Answer, exchange: Exchange) -> ListPage:
            return parse_list_page(exchange.body)

        try:
            page = await self._calls.receive(
                "ListObjectsV2",
                finish,
                {
                    "Prefix": prefix,
                    "Delimiter": delimiter,
                    "ContinuationToken": token,
                    "StartAfter": None if token else start_after,
                    "MaxKeys": max_keys,
                    "EncodingType": "url",
                },
                deadline_s=deadline_s,
                is_probe=is_probe,
            )
        except CallFailed as failure:
            raise failure.error from failure
        self._saw_bucket()
        return page

    async def _head(self, key: str, *, deadline_s: float | None = None) -> Answer:
        try:
            answer = await self._calls.call("HeadObject", key=key, deadline_s=deadline_s)
        except CallFailed as failure:
            raise await self._explain_head(failure, key) from failure
        self._saw_bucket()
        return answer

    async def _explain_head(self, failure: CallFailed, key: str) -> S3mgrError:
        """Find out what a HEAD's answer, which has no body, does not say: a listing is refused for the same reason."""
        bucket_in_doubt = trio.current_time() - self._bucket_seen > BUCKET_SEEN_S
        if failure.status in HEAD_WITHOUT_REASON or (failure.status == 404 and bucket_in_doubt):
            try:
                await self._list(key, max_keys=1, deadline_s=EXPLAIN_RETRY_S)
            except (BucketNotFound, CredentialsRejected, InvalidSpec) as exc:
                return exc
            except S3mgrError as exc:
                log.debug("nothing further is known about the failed HEAD of %r: %s", key, exc)
        return failure.error
