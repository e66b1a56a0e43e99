"""Arithmetic of multipart uploads."""

import hashlib
from collections.abc import Sequence

from s3mgrd.s3.port import Part


def multipart_etag(parts: Sequence[Part]) -> str:
    """Compute the ETag that S3 gives to an object made of *parts*; empty where the parts' ETags are not MD5s."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
