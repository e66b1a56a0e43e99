"""Checksums of objects: CRC-64/NVME of what is sent, and what S3 says of what is read.

CRC-64/NVME is what S3 itself keeps of every object since the end of 2024, whole objects of many parts included; the sums of
neighbouring ranges combine into that of both. awscrt computes it outside the GIL at memory speed (23 GB/s on one core,
where SHA-256 makes 2 and MD5 0.85: ``python -m tests.bench.transfer``); only that module of awscrt is imported.

What a store does with the checksum of an upload is found out (`UploadChecksums`): it verifies it, or takes no notice. Where it
is not known to verify it, the payload is signed: its SHA-256 is verified by every store that verifies signatures.
"""

import logging
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from awscrt import checksums as native  # type: ignore[import-untyped]

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.s3.port import Support
from s3mgrd.s3.retry import CallFailed

log = logging.getLogger("s3mgrd.s3")

Buffer = bytes | bytearray | memoryview

MEMBER: Final = "ChecksumCRC64NVME"
"""botocore's name of the header."""
FULL_OBJECT: Final = "FULL_OBJECT"
MULTIPART: Final[Mapping[str, str]] = {
    "ChecksumAlgorithm": "CRC64NVME",
    "ChecksumType": FULL_OBJECT,
}
"""Parameters with which a multipart upload begins whose parts carry checksums."""
MISMATCH: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest"})
"""Codes by which a store says that a checksum is not that of the bytes."""
UNKNOWN_TO_STORE: Final = frozenset(
    {"InvalidRequest", "InvalidArgument", "NotImplemented", "MalformedTrailerError"}
)
"""Codes by which a store may say that it does not know the checksum."""


def crc64nvme(data: Buffer, before: int = 0) -> int:
    """Compute the CRC-64/NVME of *data*, or that of what has the sum *before* followed by *data*. Releases the GIL."""
    return int(native.crc64nvme(data, before))


def combine(first: int, second: int, second_length: int) -> int:
    """Compute the CRC-64/NVME of two ranges, one after the other, from theirs; *second_length* in bytes."""
    return int(native.combine_crc64nvme(first, second, second_length))


def encode(checksum: int) -> str:
    """Write a CRC-64/NVME as S3 does."""
    return b64encode(checksum.to_bytes(8, "big")).decode("ascii")


def decode(text: str | None) -> int | None:
    """Read a CRC-64/NVME that S3 has written; None: it is none of bytes."""
    expected = expected_of({MEMBER: text})
    return None if expected is None else expected.value


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A CRC that S3 may answer with: computes it, and combines those of neighbouring ranges."""

    compute: Callable[[Buffer, int], int]
    combine: Callable[[int, int, int], int]
    size: int


ANSWERED: Final[Mapping[str, Algorithm]] = {
    MEMBER: Algorithm(native.crc64nvme, native.combine_crc64nvme, 8),
    "ChecksumCRC32C": Algorithm(native.crc32c, native.combine_crc32c, 4),
    "ChecksumCRC32": Algorithm(native.crc32, native.combine_crc32, 4),
}
"""By botocore's names of the headers; the cheapest first."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A checksum that S3 keeps, of a whole object or of the part that was read; `member`: botocore's name of it."""

    member: str
    algorithm: Algorithm
    value: int

    def of(self, data: Buffer) -> int:
        """Compute the checksum of *data*."""
        return int(self.algorithm.compute(data, 0))


def expected_of(answer: Mapping[str, Any]) -> Expected | None:
    """Read the checksum in the answer to a GET or HEAD; None: there is none of bytes that can be compared.

    With a hyphen it is that of the parts' checksums, which nobody can compute from the bytes alone.
    """
    for member, algorithm in ANSWERED.items():
        text = answer.get(member)
        if not text or "-" in text:
            continue
        try:
            raw = b64decode(text, validate=True)
        except (Base64Error, ValueError):
            continue
        if len(raw) == algorithm.size:
            return Expected(member, algorithm, int.from_bytes(raw, "big"))
    return None


class UploadChecksums:
    """What is known of how one store treats the checksums of uploads.

    Args:
        endpoint: for messages.
        known: the store is known to verify them.
    """

    def __init__(self, endpoint: str, *, known: bool) -> None:
        self._endpoint: Final = endpoint
        self.support: Support = "supported" if known else "unknown"
        self.is_full_object = False
        """Multipart uploads end with the checksum of the whole, as S3 said when it began the last one."""

    @property
    def are_sent(self) -> bool:
        """Whether uploads carry them."""
        return self.support != "unsupported"

    def began(self, answer: Mapping[str, Any]) -> None:
        """Take note of what S3 says of a multipart upload that begins."""
        self.is_full_object = answer.get("ChecksumType") == FULL_OBJECT
        if self.support == "unknown" and answer.get("ChecksumAlgorithm") == "CRC64NVME":
            self.support = "supported"

    def recall(self, before: Support) -> None:
        """Believe what an earlier use of the store found out, where nothing is known yet."""
        if self.support == "unknown":
            self.support = before

    def compare(self, answer: Mapping[str, Any], sent: int) -> None:
        """Compare what S3 says of an upload with what was sent; that it says something tells that it computes it.

        Raises:
            CallFailed: they differ; sending it again may help.
        """
        said = answer.get(MEMBER)
        if not said or "-" in said:
            return
        if said != encode(sent):
            raise CallFailed(
                Unavailable(
                    f"data was damaged on its way to {self._endpoint}: what was sent with the checksum {encode(sent)} has "
                    f"{said} there"
                ),
                code="BadDigest",
                retryable=True,
                ambiguous=True,
            )
        if self.support == "unknown":
            self.support = "supported"

    def may_be_refused(self, failure: CallFailed) -> bool:
        """Whether a request that failed may have failed because it carried a checksum: try it without."""
        return self.support == "unknown" and failure.code in UNKNOWN_TO_STORE

    async def find_out(self, send_wrong: Callable[[], Awaitable[object]]) -> None:
        """Learn from a small part of an upload, sent by *send_wrong* with a wrong checksum, what the store does."""
        if self.support != "unknown":
            return
        try:
            await send_wrong()
        except CallFailed as failure:
            if failure.code in MISMATCH:
                self.support = "supported"
            elif failure.code in UNKNOWN_TO_STORE:
                self.note_unsupported()
            # Everything else says nothing, and uploads go on with both checksums.
        except S3mgrError as error:
            log.debug("%s was not asked about checksums: %s", self._endpoint, error)
        else:
            self.note_unsupported()

    def note_unsupported(self) -> None:
        """Note that the store does not verify them."""
        self.support = "unsupported"
        log.info(
            "%s verifies no CRC-64/NVME checksums: uploads carry their SHA-256 in the signature instead",
            self._endpoint,
        )
