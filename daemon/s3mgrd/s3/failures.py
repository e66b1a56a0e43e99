"""Every way an S3 call can fail, as `CallFailed` with an error of ours.

This is the only place that knows S3's error codes, the exceptions of botocore and ssl, and ours about HTTP. What is
retryable is decided here, too; how often, in `s3mgrd.s3.retry`.
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from botocore.parsers import ResponseParserError

from s3mgrd.errors import (
    Archived,
    BucketNotFound,
    Conflict,
    CredentialsRejected,
    Denied,
    InvalidSpec,
    NotFound,
    PreconditionFailed,
    S3mgrError,
    TimedOut,
    TooLarge,
    Unavailable,
    Unforeseen,
    Unsupported,
    UserError,
)
from s3mgrd.s3.answer import AnswerTooLong, ClosedEarly, NotHttp
from s3mgrd.s3.connections import ProxyRefused, WaitedTooLong
from s3mgrd.s3.http import Exchange, Unsendable
from s3mgrd.s3.retry import CallFailed


class NotS3(Exception):
    """An answer that says success but is not what S3 answers."""


class Refused(Exception):
    """S3 says that a call failed; `fields` are those of its error document."""

    # Any: a tree of texts
    def __init__(self, status: int, fields: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status: Final = status
        self.fields: Final = fields


class ShortBody(Exception):
    """Fewer or other bytes arrived than the answer's headers promise."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the failed call was about, for messages."""

    operation: str
    bucket: str
    region: str
    endpoint: str
    anonymous: bool
    key: str | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    """What an S3 error code means. Texts may name ``{bucket}``, ``{endpoint}``, ``{key}`` and ``{said}`` (S3's words)."""

    error: type[S3mgrError]
    detail: str
    hint: str = ""
    retryable: bool = False
    throttled: bool = False


_BUSY = _Rule(
    Unavailable, "{endpoint} asks for fewer requests: {said}", retryable=True, throttled=True
)
_BROKEN = _Rule(Unavailable, "{endpoint} failed: {said}", retryable=True)
_DAMAGED = _Rule(Unavailable, "data was damaged on its way to {endpoint}: {said}", retryable=True)
_DENIED = _Rule(
    Denied,
    "access to {what} is denied: {said}",
    "the keys are valid but may not do this; ask for the permission",
)
_EXPIRED = _Rule(
    CredentialsRejected, "the session token has expired", "give new credentials to the mount"
)
_UNKNOWN_KEY = _Rule(
    CredentialsRejected,
    "{endpoint} does not know the access key",
    "check the access key, and that it belongs to this endpoint",
)
_BAD_TOKEN = _Rule(
    CredentialsRejected,
    "{endpoint} does not accept the session token: {said}",
    "check the session token, or leave it out for keys that do not expire",
)
_NO_KEY = _Rule(NotFound, "there is no object {key!r} in bucket {bucket!r}")
_LOST = _Rule(PreconditionFailed, "another writer was first: {key!r} is not the version expected")
_TOO_LARGE = _Rule(TooLarge, "{what} is too large for {endpoint}: {said}")
_RANGE = _Rule(UserError, "the range begins at or beyond the end of {key!r}")
_UNSUPPORTED = _Rule(Unsupported, "{endpoint} does not implement {operation} as asked: {said}")
_PART_GONE = _Rule(NotFound, "the multipart upload of {key!r} lacks a part: {said}")

_RULES: Final[dict[str, _Rule]] = {
    "NoSuchBucket": _Rule(
        BucketNotFound,
        "bucket {bucket!r} not found at {endpoint}",
        "check the bucket's name and the endpoint, or create the bucket",
    ),
    "NoSuchKey": _NO_KEY,
    "NoSuchUpload": _Rule(NotFound, "the multipart upload of {key!r} is gone"),
    "InvalidPart": _PART_GONE,
    "InvalidPartOrder": _PART_GONE,
    "404": _NO_KEY,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _Rule(
        CredentialsRejected,
        "the secret key is wrong: {endpoint} computed another signature",
        "check the secret key; it must be the one that belongs to the access key",
    ),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _BAD_TOKEN,
    "InvalidClientTokenId": _BAD_TOKEN,
    "UserSuspended": _Rule(
        CredentialsRejected, "{endpoint} has suspended the owner of the access key"
    ),
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "403": _DENIED,
    "InvalidBucketName": _Rule(
        InvalidSpec, "{bucket!r} cannot be the name of a bucket", "check the bucket's name"
    ),
    "PreconditionFailed": _LOST,
    "412": _LOST,
    "ConditionalRequestConflict": _LOST,
    "OperationAborted": _Rule(
        Conflict, "another operation on {what} is in progress", retryable=True
    ),
    "EntityTooLarge": _TOO_LARGE,
    "MaxMessageLengthExceeded": _TOO_LARGE,
    "MetadataTooLarge": _TOO_LARGE,
    "KeyTooLongError": _TOO_LARGE,
    "413": _TOO_LARGE,
    "InvalidRange": _RANGE,
    "416": _RANGE,
    "InvalidObjectState": _Rule(
        Archived,
        "{key!r} is archived{storage} and must be restored before it can be read",
        "restore the object from cold storage",
    ),
    "RestoreAlreadyInProgress": _Rule(Conflict, "{key!r} is being restored already"),
    "GlacierExpeditedRetrievalNotAvailable": _Rule(
        Unavailable,
        "{endpoint} restores nothing expedited now: {said}",
        "use the tier Standard or Bulk, or try later",
    ),
    "NotImplemented": _UNSUPPORTED,
    "MethodNotAllowed": _UNSUPPORTED,
    "405": _UNSUPPORTED,
    "501": _UNSUPPORTED,
    "SlowDown": _BUSY,
    "SlowDownRead": _BUSY,
    "SlowDownWrite": _BUSY,
    "ServiceUnavailable": _BUSY,
    "Throttling": _BUSY,
    "ThrottlingException": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "BandwidthLimitExceeded": _BUSY,
    "TooManyRequests": _BUSY,
    "429": _BUSY,
    "503": _BUSY,
    "InternalError": _BROKEN,
    "RequestTimeout": _Rule(TimedOut, "{endpoint} waited too long for the request", retryable=True),
    "BadDigest": _DAMAGED,
    "XAmzContentChecksumMismatch": _DAMAGED,
    "IncompleteBody": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "QuotaExceeded": _Rule(Unavailable, "a quota of {endpoint} is exhausted: {said}"),
    "XMinioStorageFull": _Rule(Unavailable, "{endpoint} has no space left"),
    "507": _Rule(Unavailable, "{endpoint} has no space left"),
}

_WRONG_REGION: Final = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
TLS_ALERT: Final = b"\x15\x03"
"""How a TLS server's answer to a client that does not speak TLS begins."""
RENEWABLE: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "TokenRefreshRequired",
        "InvalidToken",
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
    }
)
"""Codes after which new keys from the provider are worth a try."""


def map_failure(exc: Exception, exchange: Exchange, target: Target) -> CallFailed:
    """Say what *exc* means. The caller raises the result ``from`` *exc*.

    An exception that no rule knows becomes `Unforeseen` and is not tried again; whoever handles it logs it with its
    stack, of which *exc* is the end.
    """
    if isinstance(exc, CallFailed):
        return exc
    if isinstance(exc, Refused):
        return _from_answer(exc.status, exc.fields, exchange, target)
    if isinstance(exc, ClientError):
        # botocore's status, not the wire's: it is 500 for an error that came in the body of a 200.
        status = int(exc.response["ResponseMetadata"].get("HTTPStatusCode") or exchange.status)
        return _from_answer(status, exc.response.get("Error", {}), exchange, target)
    if isinstance(exc, S3mgrError):
        # From the provider of credentials, or from reading the body.
        return CallFailed(exc, code=type(exc).__name__, retryable=isinstance(exc, Unavailable))
    if isinstance(exc, (NotS3, ResponseParserError, AnswerTooLong)):
        return _not_s3(exchange, target)
    if isinstance(exc, (ParamValidationError, UnicodeEncodeError, Unsendable)):
        return CallFailed(
            UserError(f"{target.operation} cannot be sent: {exc}", hint="check the name"),
            code="InvalidParameter",
        )
    if isinstance(exc, (ShortBody, ClosedEarly, NotHttp, WaitedTooLong, ProxyRefused, OSError)):
        return _from_network(exc, exchange, target)
    # What botocore says is free of secrets; of any other exception nobody knows.
    said = str(exc) if isinstance(exc, BotoCoreError) else type(exc).__name__
    error = Unforeseen(f"{target.operation} failed: {said}", request_id=request_id(exchange))
    return CallFailed(error, code=type(exc).__name__, ambiguous=exchange.sent)


# Any: a tree of dicts and strings
def _from_answer(
    status: int, fields: Mapping[str, Any], exchange: Exchange, target: Target
) -> CallFailed:
    """Map an answer that says failure."""
    code = str(fields.get("Code") or status)
    said = str(fields.get("Message") or "").strip() or code
    region = fields.get("Region") or exchange.headers.get("x-amz-bucket-region")
    if code in _WRONG_REGION or (status in (301, 307) and region):
        return _wrong_region(code, said, region, fields, exchange, target)
    foreign = code == str(status) and exchange.body_start.strip()
    if (foreign and status < 500 and status != 429) or 300 <= status < 400:
        return _not_s3(exchange, target)
    if code == "RequestTimeTooSkewed":
        return CallFailed(_skewed(fields, exchange, target), code=code, status=status)
    rule = _RULES.get(code) or _RULES.get(str(status)) or _rule_of_status(status)
    hint = rule.hint
    if rule.error is Denied and target.anonymous:
        hint = "requests of this mount are anonymous; give it credentials"
    what = f"{target.key!r} in bucket" if target.key is not None else "bucket"
    text = {
        "bucket": target.bucket,
        "endpoint": target.endpoint,
        "key": target.key or "",
        "operation": target.operation,
        "said": said,
        "storage": _storage(fields),
        "what": f"{what} {target.bucket!r}",
    }
    retryable = rule.retryable
    if code == "ConditionalRequestConflict":
        # S3's advice: another conditional write of that key is going on; a PUT may be sent again, a multipart
        # upload would have to start over.
        retryable = target.operation == "PutObject"
    return CallFailed(
        rule.error(_fill(rule.detail, text), hint=hint, request_id=request_id(exchange)),
        code=code,
        status=status,
        retryable=retryable,
        throttled=rule.throttled,
        retry_after_s=_retry_after(exchange),
        ambiguous=status >= 500,
    )


def _storage(fields: Mapping[str, Any]) -> str:
    """Say where S3 keeps an archived object, as far as its answer tells."""
    named = [str(fields[name]) for name in ("StorageClass", "AccessTier") if fields.get(name)]
    return f" in storage class {', '.join(named)}" if named else ""


def _fill(template: str, text: Mapping[str, str]) -> str:
    # Only our own templates are formatted; what S3 says is an argument, so its braces are harmless.
    return template.format(**text)


def _rule_of_status(status: int) -> _Rule:
    """Judge an error code that no rule knows."""
    if status >= 500:
        return _BROKEN
    if status in (401, 403):
        return _DENIED
    return _Rule(Unforeseen, "{endpoint} refuses {operation} of {what}: {said}")


def _wrong_region(
    code: str,
    said: str,
    region: object,
    fields: Mapping[str, Any],
    exchange: Exchange,
    target: Target,
) -> CallFailed:
    detail = f"bucket {target.bucket!r} is not in region {target.region!r}"
    endpoint = fields.get("Endpoint")
    if region:
        detail += f" but in {str(region)!r}"
        hint = f"mount it with --region {region}"
    elif endpoint:
        detail = f"bucket {target.bucket!r} must be reached through {str(endpoint)!r}"
        hint = "give that endpoint, or its region"
    else:
        detail = f"{target.endpoint} does not accept the region {target.region!r}: {said}"
        hint = "check the region with --region"
    error = InvalidSpec(detail, hint=hint, pointer="/spec/region", request_id=request_id(exchange))
    return CallFailed(error, code=code, status=exchange.status)


def _skewed(fields: Mapping[str, Any], exchange: Exchange, target: Target) -> CredentialsRejected:
    server = None
    with contextlib.suppress(ValueError):
        server = datetime.fromisoformat(str(fields.get("ServerTime")))
    if server is None:
        with contextlib.suppress(ValueError):
            server = parsedate_to_datetime(exchange.headers.get("date", ""))
    detail = "this machine's clock is too far off to sign requests"
    if server is not None:
        if server.tzinfo is None:
            server = server.replace(tzinfo=UTC)
        off_s = round((_utc_now() - server).total_seconds())
        direction = "ahead of" if off_s > 0 else "behind"
        detail = f"this machine's clock is {_duration(abs(off_s))} {direction} {target.endpoint}'s"
    return CredentialsRejected(
        detail,
        hint="set the clock, and keep it right with NTP",
        request_id=request_id(exchange),
    )


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def _not_s3(exchange: Exchange, target: Target) -> CallFailed:
    """Map an answer that no S3 server gives."""
    location = exchange.headers.get("location")
    start = exchange.body_start.lower()
    if b"https" in start and exchange.status == 400:
        detail = f"{target.endpoint} speaks TLS, but its URL begins with http:"
        hint = "write the endpoint as https://…"
    elif location and 300 <= exchange.status < 400:
        detail = f"{target.endpoint} does not answer as S3 but redirects to {location!r}"
        hint = "give the endpoint it redirects to, if that is the S3 server"
    else:
        kind = exchange.headers.get("content-type", "an answer without a type")
        detail = f"{target.endpoint} does not speak S3: it answered {exchange.status} with {kind}"
        hint = "check host and port of the endpoint; a console or web page has often another port"
    error = InvalidSpec(
        detail, hint=hint, pointer="/spec/endpoint", request_id=request_id(exchange)
    )
    return CallFailed(error, code="NotS3", status=exchange.status)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Walk over *exc*, its causes, contexts and, in groups, its members."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions


def _from_network(exc: Exception, exchange: Exchange, target: Target) -> CallFailed:
    """Map failures below HTTP."""
    endpoint = target.endpoint
    causes = list(_causes(exc))
    tls = next((c for c in causes if isinstance(c, ssl.SSLError)), None)
    if tls is not None:
        return _from_tls(tls, exchange, target)
    if isinstance(exc, WaitedTooLong):
        doing = "a connection" if exc.connecting else "an answer"
        return CallFailed(
            TimedOut(
                f"{endpoint} did not give {doing} in time",
                hint="check the network, firewalls and the endpoint" if exc.connecting else "",
            ),
            code="ConnectTimeout" if exc.connecting else "Timeout",
            retryable=True,
            ambiguous=exchange.sent,
        )
    if isinstance(exc, OSError) and not exchange.sent:
        return _from_connect(causes, target)
    if isinstance(exc, ProxyRefused):
        return CallFailed(
            Unavailable(
                f"the proxy on the way to {endpoint} refuses: {exc}",
                hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the daemon",
            ),
            code="ProxyError",
            retryable=True,
        )
    if isinstance(exc, NotHttp) and exc.first_bytes:
        if exc.first_bytes.startswith(TLS_ALERT):
            error = InvalidSpec(
                f"{endpoint} speaks TLS, but its URL begins with http:",
                hint="write the endpoint as https://…",
                pointer="/spec/endpoint",
            )
        else:
            error = InvalidSpec(
                f"{endpoint} does not speak HTTP",
                hint="check host and port of the endpoint",
                pointer="/spec/endpoint",
            )
        return CallFailed(error, code="NotHttp")
    text = str(exc) or "it was closed in the middle of an answer"
    return CallFailed(
        Unavailable(f"the connection to {endpoint} broke: {text}"),
        code=type(exc).__name__,
        retryable=True,
        ambiguous=exchange.sent,
    )


def _from_connect(causes: list[BaseException], target: Target) -> CallFailed:
    endpoint = target.endpoint
    if any(isinstance(c, socket.gaierror) for c in causes):
        error = Unavailable(
            f"the host name of {endpoint} cannot be resolved",
            hint="check the endpoint's name and this machine's DNS",
        )
        return CallFailed(error, code="NameNotResolved", retryable=True)
    if any(isinstance(c, ConnectionRefusedError) for c in causes):
        error = Unavailable(
            f"{endpoint} refuses connections",
            hint="check that the S3 server runs there, and the port",
        )
        return CallFailed(error, code="ConnectionRefused", retryable=True)
    reasons = [c.strerror for c in causes if isinstance(c, OSError) and c.strerror]
    error = Unavailable(
        f"{endpoint} cannot be reached: {reasons[0] if reasons else 'no connection'}",
        hint="check the network and the endpoint",
    )
    return CallFailed(error, code="ConnectError", retryable=True)


def _from_tls(tls: ssl.SSLError, exchange: Exchange, target: Target) -> CallFailed:
    endpoint = target.endpoint
    if isinstance(tls, ssl.SSLCertVerificationError):
        reason = tls.verify_message
        hint = "add the authority to the system's certificates, or name its file in the daemon's AWS_CA_BUNDLE"
        if "mismatch" in reason.lower() or "not valid for" in reason.lower():
            hint = "use a host name that the certificate names, or -o addressing=path"
        error = Unavailable(
            f"TLS failed: the certificate of {endpoint} is not trusted: {reason}", hint=hint
        )
        return CallFailed(error, code="CertificateVerifyFailed")
    if tls.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        error = Unavailable(
            f"TLS failed: {endpoint} does not speak TLS", hint="write the endpoint as http://…"
        )
        return CallFailed(error, code="NotTls")
    error = Unavailable(
        f"TLS with {endpoint} failed: {tls.reason or tls}",
        hint="check the server's certificate and TLS versions",
    )
    return CallFailed(error, code="TlsError", retryable=True, ambiguous=exchange.sent)


def _retry_after(exchange: Exchange) -> float | None:
    value = exchange.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - _utc_now()).total_seconds())
    except (ValueError, TypeError):
        return None


def request_id(exchange: Exchange) -> str | None:
    """Return the id by which the server's operator finds the request."""
    return exchange.headers.get("x-amz-request-id")


__all__ = ["RENEWABLE", "NotS3", "Refused", "ShortBody", "Target", "map_failure", "request_id"]
