"""AWS Signature Version 4 for S3, as ``AWS4-HMAC-SHA256`` in the Authorization header.

The key of a day is derived once, not for each request; nothing else is left out. A unit test compares with botocore's
signatures, radosgw verifies them in the contract suite.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from s3mgrd.worker.protocol import CredentialGrant

UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
NOT_SIGNED: Final = frozenset({"user-agent", "accept-encoding", "content-length"})
"""Headers that a proxy may change, or that say nothing about what is asked."""


def utc_now() -> datetime:
    """Tell the time that signatures carry; tests replace it."""
    return datetime.now(UTC)


class Signer:
    """Signs requests for one region. Keeps the key that it derived last, and no other secret."""

    def __init__(self, region: str) -> None:
        self._region: Final = region
        self._derived_for: tuple[str, str] | None = None
        self._key = b""

    def sign(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        payload_sha256: str,
        grant: CredentialGrant,
    ) -> dict[str, str]:
        """Return the headers that make *headers* a signed request.

        Args:
            method: of HTTP.
            path: as it is sent, percent-encoded.
            query: its pairs percent-encoded and sorted, each with ``=``.
            headers: Host and everything else that is sent; names in lower case.
            payload_sha256: of the body in hex, or `UNSIGNED_PAYLOAD`.
            grant: the keys.
        """
        time = utc_now().strftime("%Y%m%dT%H%M%SZ")
        day = time[:8]
        added = {"x-amz-content-sha256": payload_sha256, "x-amz-date": time}
        if grant.session_token:
            added["x-amz-security-token"] = grant.session_token
        signed = sorted((n, v) for n, v in {**headers, **added}.items() if n not in NOT_SIGNED)
        names = ";".join([name for name, _ in signed])
        lines = "\n".join([f"{name}:{' '.join(value.split())}" for name, value in signed])
        canonical = f"{method}\n{path}\n{query}\n{lines}\n\n{names}\n{payload_sha256}"
        scope = f"{day}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode("utf-8")).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"
        signature = hmac.digest(self._key_of(grant.secret_key, day), text.encode(), "sha256").hex()
        added["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={grant.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return added

    def _key_of(self, secret: str, day: str) -> bytes:
        if self._derived_for != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived_for, self._key = (secret, day), key
        return self._key
