"""What a store needs to know before it is opened, and how the bucket is named in its requests."""

import ipaddress
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from s3mgrd.errors import InvalidSpec
from s3mgrd.worker.protocol import CredentialGrant

Addressing = Literal["auto", "path", "virtual"]
CredentialProvider = Callable[[], Awaitable[CredentialGrant]]

_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{3,255}")
_HOST_LABELS: Final = re.compile(
    r"(?=.{3,63}$)[a-z0-9]+(?:-+[a-z0-9]+)*(?:\.[a-z0-9]+(?:-+[a-z0-9]+)*)*"
)
AWS_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """One bucket behind one endpoint.

    Attributes:
        endpoint_url: ``http`` or ``https`` URL; None is AWS itself, in `region`.
        credentials: called for keys when the store needs them: at the first request, before they expire, and
            after S3 has refused them. None only with `anonymous`.
        connect_timeout_s: limit of one attempt to connect, name resolution and TLS included.
        read_timeout_s: limit of one wait for bytes from the endpoint, or of one wait to hand it bytes.
        retry_deadline_s: how long a failing call is tried again, from its first failure on; live.
        concurrency: most requests at the same time; live.
        sign_payload: sign the SHA-256 of every upload, also where the store verifies a checksum.
    """

    bucket: str
    region: str
    endpoint_url: str | None = None
    addressing: Addressing = "auto"
    anonymous: bool = False
    credentials: CredentialProvider | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    retry_deadline_s: float = 60.0
    concurrency: int = 24
    sign_payload: bool = False

    def __post_init__(self) -> None:
        if self.credentials is None and not self.anonymous:
            raise ValueError("a store that is not anonymous needs a provider of credentials")


def split_endpoint(url: str) -> SplitResult:
    """Check an endpoint URL and split it.

    Raises:
        InvalidSpec: it is not an ``http`` or ``https`` URL of a host, or has a query, fragment or user.
    """
    hint = "write it as http://HOST[:PORT] or https://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise InvalidSpec(
            f"the endpoint {url!r} is not a URL: {exc}", hint=hint, pointer="/spec/endpoint"
        ) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidSpec(
            f"the endpoint {url!r} is not an http or https URL", hint=hint, pointer="/spec/endpoint"
        )
    if not url.isascii() or any(c.isspace() for c in url):
        raise InvalidSpec(
            f"the endpoint {url!r} has characters that no URL has",
            hint="write an international host name in its ASCII form (xn--…)",
            pointer="/spec/endpoint",
        )
    if parts.query or parts.fragment or parts.username is not None:
        raise InvalidSpec(
            "the endpoint has a user, a query or a fragment, which an S3 endpoint cannot have",
            hint=hint,
            pointer="/spec/endpoint",
        )
    return parts


def is_aws(endpoint_url: str | None) -> bool:
    """Tell whether requests go to AWS itself."""
    if endpoint_url is None:
        return True
    host = split_endpoint(endpoint_url).hostname or ""
    return host.endswith(AWS_DOMAINS)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether *host* is this machine by name or address; such endpoints are never reached through a proxy."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def is_plain_bucket(name: str, *, is_host: bool, is_tls: bool) -> bool:
    """Tell whether *name* goes into a request as it is: not an ARN, not a directory bucket, and a host name if it must be.

    A host with a further dot is not covered by a wildcard certificate; botocore puts such a bucket into the path.
    """
    if name.endswith(("--x-s3", "--xa-s3", "--table-s3")):
        return False
    if is_host:
        return _HOST_LABELS.fullmatch(name) is not None and not (is_tls and "." in name)
    return _BUCKET.fullmatch(name) is not None


def resolve_addressing(settings: StoreSettings) -> Literal["path", "virtual"]:
    """Decide where the bucket's name goes: into the path or into the host name.

    ``auto`` is virtual on AWS, which asks for it, and path elsewhere, where wildcard DNS is rare. A bucket with
    dots goes into the path under TLS, because a wildcard certificate covers one label only. ``virtual`` as asked for
    by the user is kept, but not for an endpoint that is an IP address, which has no names below it.
    """
    if settings.addressing == "path":
        return "path"
    endpoint = settings.endpoint_url
    if endpoint is not None:
        parts = split_endpoint(endpoint)
        if _is_address(parts.hostname or ""):
            return "path"
        uses_tls = parts.scheme == "https"
    else:
        uses_tls = True
    if settings.addressing == "virtual":
        return "virtual"
    if not is_aws(endpoint) or ("." in settings.bucket and uses_tls):
        return "path"
    return "virtual"
