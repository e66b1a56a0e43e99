"""What a store does with the checksums of uploads: it verifies those of one algorithm, or takes no notice of any.

Algorithms are tried one after another (`SENT`): who refuses one, or stores what has a wrong one, is asked for the next. Where no
checksum is known to be verified, the payload is signed: its SHA-256 is verified by every store that verifies signatures.

A multipart upload begins with the algorithm of all its parts (`Begun`), whatever is found out meanwhile.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.s3.algorithms import SENT, Algorithm, Checksum, named
from s3mgrd.s3.port import Support
from s3mgrd.s3.retry import CallFailed

log = logging.getLogger("s3mgrd.s3")

FULL_OBJECT: Final = "FULL_OBJECT"
MISMATCH: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest"})
"""Codes by which a store says that a checksum is not that of the bytes."""
UNKNOWN_TO_STORE: Final = frozenset(
    {"InvalidRequest", "InvalidArgument", "NotImplemented", "MalformedTrailerError"}
)
"""Codes by which a store may say that it does not know the checksum."""
_ALGORITHM: Final = "ChecksumAlgorithm"
_TYPE: Final = "ChecksumType"
BEGINNING: Final = (_ALGORITHM, _TYPE)
"""Parameters with which a multipart upload begins whose parts carry checksums."""


def algorithm_in(said: Mapping[str, Any]) -> Algorithm | None:
    """Return the algorithm that a multipart upload begins with, or that S3 says; None: it is none that uploads carry."""
    return named(said.get(_ALGORITHM))


class Begun(NamedTuple):
    """A multipart upload.

    `algorithm`: what its parts carry; None: nothing. `is_told`: S3 said so. `is_full_object`: it ends with the checksum of the
    whole, not with one of the parts' checksums.
    """

    algorithm: Algorithm | None = None
    is_told: bool = False
    is_full_object: bool = False

    @property
    def needs_parts(self) -> bool:
        """Whether S3 wants to be told the checksums of the parts in the end."""
        return self.is_told and not self.is_full_object


class UploadChecksums:
    """What is known of how one store treats the checksums of uploads.

    Args:
        endpoint: for messages.
        known: the store is known to verify them all.

    Attributes:
        algorithm: of those that are sent, or were tried last.
        support: whether the store verifies them.
    """

    def __init__(self, endpoint: str, *, known: bool) -> None:
        self._endpoint: Final = endpoint
        self.algorithm: Algorithm = SENT[0]
        self.support: Support = "supported" if known else "unknown"

    @property
    def sent(self) -> Algorithm | None:
        """What uploads carry; None: nothing."""
        return None if self.support == "unsupported" else self.algorithm

    def verifies(self, algorithm: Algorithm | None) -> bool:
        """Whether the store is known to verify what carries a checksum of *algorithm*."""
        return self.support == "supported" and algorithm is self.algorithm

    def beginning(self) -> dict[str, object]:
        """Return the parameters with which a multipart upload begins."""
        if self.sent is None:
            return {}
        return {_ALGORITHM: self.sent.name, _TYPE: FULL_OBJECT}

    def began(self, given: Mapping[str, object], answer: Mapping[str, Any]) -> Begun:
        """Take note of what S3 says of a multipart upload that begins, or has begun, and return what its parts carry.

        *given*: what it was begun with; its parts carry nothing if that was refused.
        """
        told = algorithm_in(answer)
        if told is not None:
            if self.support == "unknown" and told is self.algorithm:
                self.support = "supported"
            is_full_object = answer.get(_TYPE) == FULL_OBJECT
            return Begun(told, is_told=True, is_full_object=is_full_object)
        algorithm = algorithm_in(given)
        return Begun(algorithm if algorithm is self.sent else None)

    def recall(self, before: Support, algorithm: str) -> None:
        """Believe what an earlier use of the store found out, where nothing is known yet."""
        known = named(algorithm)
        if self.support == "unknown" and known is not None:
            self.support, self.algorithm = before, known

    def compare(self, answer: Mapping[str, Any], sent: Checksum) -> None:
        """Compare what S3 says of an upload with what was sent; that it says something tells that it computes it.

        Raises:
            CallFailed: they differ; sending it again may help.
        """
        said = answer.get(sent.algorithm.member)
        if not said or "-" in said:
            return
        if said != str(sent):
            raise CallFailed(
                Unavailable(
                    f"data was damaged on its way to {self._endpoint}: what was sent with the checksum {sent} has {said} there"
                ),
                code="BadDigest",
                retryable=True,
                ambiguous=True,
            )
        if self.support == "unknown" and sent.algorithm is self.algorithm:
            self.support = "supported"

    def may_be_refused(self, failure: CallFailed, algorithm: Algorithm) -> bool:
        """Whether a request that failed may have failed because of a checksum of *algorithm*: try it without."""
        return not self.verifies(algorithm) and failure.code in UNKNOWN_TO_STORE

    async def find_out(self, send_wrong: Callable[[], Awaitable[object]]) -> None:
        """Learn from a small part of an upload, sent by *send_wrong* with a wrong checksum, what the store does."""
        algorithm = self.algorithm
        if self.support != "unknown":
            return
        try:
            await send_wrong()
        except CallFailed as failure:
            if failure.code in MISMATCH and algorithm is self.algorithm:
                self.support = "supported"
            elif failure.code in UNKNOWN_TO_STORE:
                self.note_unsupported(algorithm)
            # Everything else says nothing, and uploads go on with both checksums.
        except S3mgrError as error:
            log.debug("%s was not asked about checksums: %s", self._endpoint, error)
        else:
            self.note_unsupported(algorithm)

    def note_unsupported(self, algorithm: Algorithm) -> None:
        """Note that the store does not verify those of *algorithm*: the next is tried, if it is not being tried already."""
        if self.support != "unknown" or algorithm is not self.algorithm:
            return
        following = SENT[SENT.index(algorithm) + 1 :]
        if following:
            self.algorithm = following[0]
            log.debug("%s verifies no %s checksums", self._endpoint, algorithm.title)
            return
        self.support = "unsupported"
        log.info(
            "%s verifies neither %s checksums: uploads carry their SHA-256 in the signature instead",
            self._endpoint,
            " nor ".join(one.title for one in SENT),
        )
