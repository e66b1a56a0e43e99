"""The CRCs that S3 knows: of bytes, and of neighbouring ranges out of theirs.

awscrt computes them outside the GIL; only that module of it is imported. CRC-32C and CRC-64/NVME take instructions of the
processor (23 GB/s and more on one core, where SHA-256 makes 2 and MD5 0.85: ``python -m tests.bench.transfer``), CRC-32 does not.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from awscrt import checksums as native  # type: ignore[import-untyped]

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, eq=False)
class Algorithm:
    """One of them; `name` is S3's, `title` for people, `size` that of a checksum in bytes."""

    name: str
    title: str
    size: int
    _compute: Callable[[Buffer, int], int]
    _combine: Callable[[int, int, int], int]

    @property
    def member(self) -> str:
        """Botocore's name of the header and of the element with the checksum."""
        return f"Checksum{self.name}"

    def of(self, data: Buffer, before: int = 0) -> int:
        """Compute the checksum of *data*, or that of what has the sum *before* followed by *data*. Releases the GIL."""
        return int(self._compute(data, before))

    def combine(self, first: int, second: int, second_length: int) -> int:
        """Compute the checksum of two ranges, one after the other, from theirs; *second_length* in bytes."""
        return int(self._combine(first, second, second_length))


CRC64NVME: Final = Algorithm(
    "CRC64NVME", "CRC-64/NVME", 8, native.crc64nvme, native.combine_crc64nvme
)
CRC32C: Final = Algorithm("CRC32C", "CRC-32C", 4, native.crc32c, native.combine_crc32c)
CRC32: Final = Algorithm("CRC32", "CRC-32", 4, native.crc32, native.combine_crc32)

ENTERED: Final = CRC32C
"""What is computed of bytes as they come from the kernel; uploads carry it where the store verifies it."""
SENT: Final = (CRC32C, CRC64NVME)
"""What uploads can carry, in the order in which a store is tried. Every store that verifies any of them has known CRC-32C for
longest (S3 since 2022, CRC-64/NVME since the end of 2024), and verifies it with an instruction of its processor."""
ANSWERED: Final = (CRC64NVME, CRC32C, CRC32)
"""What is compared where S3 says it; the first of them that it says."""
SUMMED_UP: Final = (CRC64NVME, CRC32C)
"""Of these, what costs next to nothing: compared also where all bytes of an object have to be summed up for it."""


class Checksum(NamedTuple):
    """A checksum of some bytes."""

    algorithm: Algorithm
    value: int

    @classmethod
    def of(cls, algorithm: Algorithm, data: Buffer) -> Self:
        """Compute that of *data*."""
        return cls(algorithm, algorithm.of(data))

    def is_of(self, data: Buffer) -> bool:
        """Whether it is that of *data*."""
        return self.algorithm.of(data) == self.value

    def __str__(self) -> str:
        """Return it as S3 writes it."""
        return b64encode(self.value.to_bytes(self.algorithm.size, "big")).decode("ascii")


def named(name: str | None) -> Algorithm | None:
    """Return what S3 calls *name*; None: it is none that uploads carry."""
    return next((algorithm for algorithm in SENT if algorithm.name == name), None)


def read_checksum(answer: Mapping[str, Any]) -> Checksum | None:
    """Read the checksum in an answer, or in what an answer says of a part; None: there is none of bytes that can be compared.

    With a hyphen it is that of the parts' checksums, which nobody can compute from the bytes alone.
    """
    for algorithm in ANSWERED:
        text = answer.get(algorithm.member)
        if not text or "-" in text:
            continue
        try:
            raw = b64decode(text, validate=True)
        except (Base64Error, ValueError):
            continue
        if len(raw) == algorithm.size:
            return Checksum(algorithm, int.from_bytes(raw, "big"))
    return None
