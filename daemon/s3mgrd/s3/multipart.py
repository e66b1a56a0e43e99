"""Arithmetic of multipart uploads."""

import hashlib
from collections.abc import Sequence

from s3mgrd.s3.algorithms import Algorithm, Checksum
from s3mgrd.s3.port import Part


def multipart_etag(parts: Sequence[Part]) -> str:
    """Compute the ETag that S3 gives to an object made of *parts*; empty where the parts' ETags are not MD5s."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def multipart_checksum(parts: Sequence[Part], algorithm: Algorithm) -> Checksum | None:
    """Compute the checksum of an object made of *parts*; None where that of a part is not known."""
    whole = 0
    for part in parts:
        if part.checksum is None or part.checksum.algorithm is not algorithm:
            return None
        whole = algorithm.combine(whole, part.checksum.value, part.size)
    return Checksum(algorithm, whole)
