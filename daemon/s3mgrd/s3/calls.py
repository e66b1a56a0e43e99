"""One S3 call: limited, signed, sent, tried again, counted, logged, and its failures mapped.

The calls that are made often go their own, short way (`s3mgrd.s3.operations`, `s3mgrd.s3.answers`); all others, and
those with parameters that are rare, go through aiobotocore. Both use the same parameters, answers, connections and
credentials, and fail alike, so nobody above can tell. Everything untyped of aiobotocore ends here: `Calls.call` returns
the parsed answer as a dict by botocore's names, and the store (`s3mgrd.s3.client`) picks typed values out of it.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final, TypeVar

import trio

from s3mgrd.errors import S3mgrError
from s3mgrd.s3.algorithms import Algorithm
from s3mgrd.s3.answers import Answer, receive_answer
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.checksums import BEGINNING, MISMATCH, UploadChecksums, algorithm_in
from s3mgrd.s3.connections import WaitedTooLong
from s3mgrd.s3.counting import RequestStats, StoreStats, Waiting
from s3mgrd.s3.failures import RENEWABLE, Target, map_failure, request_id
from s3mgrd.s3.grants import LiveCredentials
from s3mgrd.s3.http import Exchange, Pool
from s3mgrd.s3.library import current_exchange
from s3mgrd.s3.operations import Params, Requests, operation
from s3mgrd.s3.outage import ANSWER_S, READS, Outage, is_silence
from s3mgrd.s3.port import LIGHT_FACTOR, LIGHT_RANGE_BYTES
from s3mgrd.s3.retry import CallFailed, RetryPolicy
from s3mgrd.s3.settings import StoreSettings, is_aws
from s3mgrd.worker.protocol import CredentialGrant

log = logging.getLogger("s3mgrd.s3")

T = TypeVar("T")
NO_PARAMS: Final[Params] = {}

LISTINGS: Final = frozenset({"ListObjectsV2", "ListMultipartUploads"})
"""Operations whose answers `s3mgrd.s3.listing` reads, from `Exchange.body`."""
LIGHT: Final = frozenset(
    {"CopyObject", "HeadObject", "ListObjectsV2", "DeleteObject", "DeleteObjects"}
)
"""Operations that carry no object's data: the network hardly notices them, and whoever makes many waits for each."""
LIGHT_BYTES: Final = 32 << 10
"""An upload of so many bytes is light, too."""
EXPECTED: Final = frozenset({304, 404, 412, 416})
"""Statuses that are answers rather than errors for the statistics."""


class Calls:
    """Makes the calls of one store. Any number of tasks may use it.

    `limiter` bounds transfers at the same time, `light` the requests that are none; held for an attempt, transfer of the body
    included, and not while waiting for the next attempt.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 aiobotocore is untyped; this class is the only one that calls it
        settings: StoreSettings,
        credentials: LiveCredentials | None,
        pool: Pool,
    ) -> None:
        methods: dict[str, str] = client.meta.method_to_api_mapping
        self._methods: Final[dict[str, Callable[..., Awaitable[Answer]]]] = {
            operation: getattr(client, method) for method, operation in methods.items()
        }
        self._requests: Final = Requests(settings, str(client.meta.endpoint_url))
        self._pool: Final = pool
        self._bucket: Final = settings.bucket
        self._region: Final = settings.region
        self._anonymous: Final = settings.anonymous
        self._credentials: Final = credentials
        self.endpoint: Final = settings.endpoint_url or "AWS"
        self._always_signs_payload: Final = settings.sign_payload
        self.checksums: Final = UploadChecksums(self.endpoint, known=is_aws(settings.endpoint_url))
        self.retry: Final = RetryPolicy(settings.retry_deadline_s)
        self.limiter: Final = trio.CapacityLimiter(settings.concurrency)
        self.light: Final = trio.CapacityLimiter(LIGHT_FACTOR * settings.concurrency)
        self.stats: Final = StoreStats()
        self.outage: Final = Outage()

    @property
    def running(self) -> int:
        """How many requests are being made."""
        return int(self.limiter.borrowed_tokens + self.light.borrowed_tokens)

    def set_concurrency(self, requests: int) -> None:
        """Let at most *requests* transfers run at the same time; those that run already go on."""
        self.limiter.total_tokens = requests
        self.light.total_tokens = LIGHT_FACTOR * requests

    async def call(
        self,
        operation: str,
        params: Params = NO_PARAMS,
        *,
        key: str | None = None,
        body: UploadBody | None = None,
        deadline_s: float | None = None,
    ) -> Answer:
        """Make one call and return its parsed answer. See `receive` for the arguments and errors."""

        async def whole(answer: Answer, _: Exchange) -> Answer:
            return answer

        return await self.receive(
            operation, whole, params, key=key, body=body, deadline_s=deadline_s
        )

    async def receive(
        self,
        operation: str,
        finish: Callable[[Answer, Exchange], Awaitable[T]],
        params: Params = NO_PARAMS,
        *,
        key: str | None = None,
        body: UploadBody | None = None,
        range_bytes: int | None = None,
        deadline_s: float | None = None,
        is_probe: bool = False,
    ) -> T:
        """Make one call and let *finish* turn its answer into the result, as a part of the attempt.

        Args:
            operation: S3's name, such as ``GetObject``.
            finish: reads what is streamed; what it raises is mapped like every failure of the attempt.
            params: the operation's parameters by botocore's names; those that are None are left out.
            key: the object, where the call is about one.
            body: what to upload.
            range_bytes: how much is to be downloaded.
            deadline_s: for the retries, instead of the policy's.
            is_probe: ask also while S3 cannot be reached (`s3mgrd.s3.outage`).

        Raises:
            CallFailed: the call failed for good.
        """
        can_do_without = operation in READS and not is_probe
        if can_do_without and self.outage.is_on:
            raise CallFailed(self.outage.refusal(), code="Outage")
        given = {name: value for name, value in params.items() if value is not None}
        given["Bucket"] = self._bucket
        if key is not None:
            given["Key"] = key
        if body is not None:
            given["Body"] = body
            given["ContentLength"] = body.length
        target = Target(
            operation=operation,
            bucket=self._bucket,
            region=self._region,
            endpoint=self.endpoint,
            anonymous=self._anonymous,
            key=key,
        )

        is_light = (
            operation in LIGHT
            or (body is not None and body.length <= LIGHT_BYTES)
            or (range_bytes is not None and range_bytes <= LIGHT_RANGE_BYTES)
        )
        limiter = self.light if is_light else self.limiter

        counters = self.stats.of(operation)

        async def attempt() -> T:
            await self._take_turn(limiter, counters)
            try:
                algorithm = self._algorithm_of(given, body)
                try:
                    return await self._attempt(target, given, body, finish, algorithm)
                except CallFailed as failure:
                    if algorithm is None or not self.checksums.may_be_refused(failure, algorithm):
                        raise
                plain = {name: value for name, value in given.items() if name not in BEGINNING}
                result = await self._attempt(target, plain, body, finish, None)
                self.checksums.note_unsupported(algorithm)
                return result
            finally:
                limiter.release()

        def note(failure: CallFailed, delay_s: float) -> None:
            self.stats.retries += 1
            counters.retries += 1
            log.info(
                "%s %s failed (%s: %s), trying again in %.2f s",
                operation,
                _about(key, given),
                failure.code,
                failure.error.detail,
                delay_s,
            )

        outage = self.outage if can_do_without and self.outage.is_watched else None
        with Waiting():
            try:
                return await self.retry.run(
                    attempt,
                    deadline_s=deadline_s,
                    on_retry=note,
                    limit=None if outage is None else outage.limit_s,
                )
            except CallFailed as failure:
                if outage is not None:
                    outage.note_given_up(failure, self.retry.deadline_s)
                raise

    @staticmethod
    async def _take_turn(limiter: trio.CapacityLimiter, counters: RequestStats) -> None:
        """Wait for a free place, which the caller releases."""
        if limiter.available_tokens > 0:
            # Nobody waits for it, and to go through the scheduler takes milliseconds while other transfers have data.
            limiter.acquire_nowait()
            return
        asked = trio.current_time()
        await limiter.acquire()
        counters.queued_s += trio.current_time() - asked

    async def _attempt(
        self,
        target: Target,
        params: dict[str, object],
        body: UploadBody | None,
        finish: Callable[[Answer, Exchange], Awaitable[T]],
        algorithm: Algorithm | None,
    ) -> T:
        exchange = Exchange()
        grant = None
        started = answered = perf_counter()
        self.stats.busy.enter(started)
        outcome = "cancelled"
        try:
            if body is not None:
                params = await self._prepare(params, body, algorithm)
            if self._credentials is not None:
                grant = await self._credentials.grant()
            answer = await self._ask_in_time(target.operation, params, body, grant, exchange)
            answered = perf_counter()
            if body is not None and body.checksum is not None:
                self.checksums.compare(answer, body.checksum)
            result = await finish(answer, exchange)
            self.outage.note_answer()
            outcome = "ok"
        except Exception as exc:
            failure = map_failure(exc, exchange, target)
            outcome = failure.code
            if exchange.status and not is_silence(failure):
                self.outage.note_answer()
            if body is not None and outcome in MISMATCH:
                failure = await self._judge_mismatch(failure, body, exchange, target)
            if (
                failure.code in RENEWABLE
                and not failure.retryable
                and self._credentials is not None
            ):
                # Once per kind of keys: the provider must have others for the attempt to be repeated.
                failure.retryable = await self._credentials.renew_rejected(grant)
            raise failure from exc
        finally:
            exchange.close()
            ended = perf_counter()
            self.stats.busy.leave(ended)
            first_s = (answered if answered > started else ended) - started
            self._record(target, params, exchange, ended - started, first_s, outcome, body)
        return result

    async def _ask_in_time(
        self,
        name: str,
        params: Params,
        body: UploadBody | None,
        grant: CredentialGrant | None,
        exchange: Exchange,
    ) -> Answer:
        """Send one request as `_ask`, and wait no longer for its answer than who can do without wants to."""
        if not self.outage.is_watched or name not in READS:
            return await self._ask(name, params, body, grant, exchange)
        with trio.move_on_after(ANSWER_S):
            return await self._ask(name, params, body, grant, exchange)
        raise WaitedTooLong

    def _algorithm_of(
        self, given: Mapping[str, object], body: UploadBody | None
    ) -> Algorithm | None:
        """Return the algorithm of the checksum that a request carries, or begins an upload with, and may be refused for."""
        if body is None:
            return algorithm_in(given)
        if body.upload is not None:
            return body.upload.algorithm
        return self.checksums.sent

    async def _prepare(
        self, params: dict[str, object], body: UploadBody, algorithm: Algorithm | None
    ) -> dict[str, object]:
        """Compute the checksums that an upload goes with, and return its parameters with them."""
        sign = self._credentials is not None and (
            self._always_signs_payload or not self.checksums.verifies(algorithm)
        )
        await body.prepare(sign=sign, algorithm=algorithm)
        if algorithm is None or body.checksum is None or algorithm.member in params:
            return params
        return {**params, algorithm.member: str(body.checksum)}

    async def _judge_mismatch(
        self, failure: CallFailed, body: UploadBody, exchange: Exchange, target: Target
    ) -> CallFailed:
        """Find out whether bytes were damaged here rather than on their way: then another attempt cannot help."""
        try:
            await body.verify()
        except (S3mgrError, OSError) as exc:
            return map_failure(exc, exchange, target)
        return failure

    async def _ask(
        self,
        name: str,
        params: Params,
        body: UploadBody | None,
        grant: CredentialGrant | None,
        exchange: Exchange,
    ) -> Answer:
        """Send one request and read its answer, but for what *finish* reads."""
        known = operation(name)
        if known is not None and self._requests.can_name_bucket and known.takes(params):
            request = self._requests.make(known, params, body, grant)
            await exchange.run(self._pool, request)
            return await receive_answer(known, exchange)
        exchange.keeps_body = name in LISTINGS
        current_exchange.set(exchange)
        return await self._methods[name](**params)

    def _record(
        self,
        target: Target,
        params: Params,
        exchange: Exchange,
        seconds: float,
        first_s: float,
        outcome: str,
        body: UploadBody | None,
    ) -> None:
        """Count and log one attempt. Keys may be logged, secrets never are: neither headers nor bodies are."""
        failed = outcome != "ok" and exchange.status not in EXPECTED
        sent = body.length if body is not None and exchange.sent else 0
        received = exchange.received
        counters = self.stats.of(target.operation)
        counters.add(seconds, failed=failed)
        counters.first_s += first_s
        counters.sent_bytes += sent
        counters.received_bytes += received
        self.stats.sent_bytes += sent
        self.stats.received_bytes += received
        if not log.isEnabledFor(logging.DEBUG):
            return
        log.debug(
            "%s %s %s status=%d request_id=%s seconds=%.4f sent=%d received=%d",
            target.operation,
            _about(target.key, params),
            outcome,
            exchange.status,
            request_id(exchange),
            seconds,
            sent,
            received,
        )


def _about(key: str | None, params: Mapping[str, object]) -> str:
    """Say for the log what a call is about."""
    return f"prefix={params['Prefix']!r}" if "Prefix" in params else f"key={key!r}"
