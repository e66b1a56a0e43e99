"""How a staged file is cut into the parts of a multipart upload: what is sent, and what S3 copies from the old version.

What was not changed is copied on the server, many bytes with one request; between copies lie the parts that are sent, as small as
S3 allows (`MIN_PART_BYTES`), and what they lack is fetched before. So 4 KiB changed in a large object move some 10 MiB, and
the disk holds no more than half of that. The same content is cut the same way whenever an interrupted upload is taken up,
whatever was fetched by then.

When an upload loses against another writer, what was not fetched of the old version is gone. So objects of which less
than `COPY_FROM` would be copied are sent whole: their conflict copies are complete.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from s3mgrd.journal.staging import StagedFile
from s3mgrd.s3.port import (
    MAX_COPY_BYTES,
    MAX_OBJECT_BYTES,
    MAX_PARTS,
    MAX_PUT_BYTES,
    MIN_PART_BYTES,
)

MIB: Final = 1 << 20
COPY_FROM: Final = 64 * MIB
SINGLE_PUT_PARTS: Final = 2
"""Files up to so many parts' size go with one PUT: three requests fewer, and the ETag is the content's MD5."""
COPY_LEAST: Final = 16 * MIB
"""What is sent anyway begins and ends there: fewer bytes between two changes are not worth a request of their own."""
COPY_STEP: Final = 64 * MIB
COPIES: Final = 32
"""The server copies several ranges at the same time: `COPY_STEP` bytes each, or so many ranges."""

EVEN_PARTS: Final = 1000
"""So many parts of a file of unknown size are equal. Some stores want all of them to be: R2 does."""
TIER_PARTS: Final = 50
TIER_STEP: Final = 7 * MIB
"""After them, each `TIER_PARTS` are larger by so much: 5 TiB in `MAX_PARTS` parts, none over 1.3 GiB."""


class Piece(NamedTuple):
    """One part: bytes [start, stop) of the file; copied from the base version, or sent."""

    number: int
    start: int
    stop: int
    is_copied: bool


class Plan(NamedTuple):
    """All parts of a file of `size` bytes."""

    size: int
    part_size: int
    pieces: tuple[Piece, ...]

    @property
    def copies(self) -> bool:
        """Whether anything is copied from the base version."""
        return any(piece.is_copied for piece in self.pieces)


def part_size_for(size: int, wanted: int) -> int:
    """Return the part size for a file: what is wanted, or what `MAX_PARTS` ask for; a multiple of 1 MiB."""
    return -(-max(wanted, -(-size // MAX_PARTS)) // MIB) * MIB


def single_put_bytes(part_size: int) -> int:
    """Return up to which size a file goes with one PUT."""
    return min(SINGLE_PUT_PARTS * part_size, MAX_PUT_BYTES)


class Grid:
    """How a file whose size nobody knows yet is cut: a part's bounds depend on its number alone."""

    def __init__(self, part_size: int) -> None:
        self.part_size: Final = part_size
        self._sizes: Final = [part_size]
        self._starts: Final = [0]
        self._indexes: Final = [0]
        index, start = EVEN_PARTS, EVEN_PARTS * part_size
        while index < MAX_PARTS and start < MAX_OBJECT_BYTES:
            size = min(self._sizes[-1] + TIER_STEP, MAX_COPY_BYTES)
            self._sizes.append(size)
            self._starts.append(start)
            self._indexes.append(index)
            index, start = index + TIER_PARTS, start + TIER_PARTS * size

    def number_at(self, offset: int) -> int:
        """Return the number of the part that has the byte at *offset*."""
        tier = bisect_right(self._starts, offset) - 1
        return self._indexes[tier] + (offset - self._starts[tier]) // self._sizes[tier] + 1

    def bounds(self, number: int) -> tuple[int, int]:
        """Return where a part begins and ends in a file that goes on behind it."""
        tier = bisect_right(self._indexes, number - 1) - 1
        start = self._starts[tier] + (number - 1 - self._indexes[tier]) * self._sizes[tier]
        return start, start + self._sizes[tier]

    def plan(self, size: int) -> Plan:
        """Return all parts of a file of *size* bytes, all of them to be sent."""
        pieces = []
        for number in range(1, self.number_at(size - 1) + 1):
            start, stop = self.bounds(number)
            pieces.append(Piece(number, start, min(stop, size), is_copied=False))
        return Plan(size, self.part_size, tuple(pieces))


def make_plan(file: StagedFile, part_size: int, *, may_copy: bool) -> Plan:
    """Cut a staged file into parts."""
    size = file.size
    runs = list(_untouched(file)) if may_copy else []
    copied = sum(stop - start for start, stop in runs)
    if copied < COPY_FROM:
        runs = []
    step = max(COPY_STEP, -(-copied // COPIES // MIB) * MIB)
    step = min(step, MAX_COPY_BYTES - MIN_PART_BYTES)
    pieces: list[Piece] = []

    def cut(start: int, stop: int, length: int, *, is_copied: bool) -> None:
        while start < stop:
            end = min(start + length, stop)
            if 0 < stop - end < MIN_PART_BYTES and stop != size:
                end = stop
            pieces.append(Piece(len(pieces) + 1, start, end, is_copied))
            start = end

    position = 0
    for start, stop in runs:
        cut(position, start, part_size, is_copied=False)
        cut(start, stop, step, is_copied=True)
        position = stop
    cut(position, size, part_size, is_copied=False)
    if len(pieces) > MAX_PARTS and runs:
        return make_plan(file, part_size, may_copy=False)
    return Plan(size, part_size, tuple(pieces))


def to_fetch(file: StagedFile, plan: Plan) -> list[tuple[int, int]]:
    """Return the ranges that must be fetched from the base version before *plan* can be sent."""
    ranges = []
    copied = [(piece.start, piece.stop) for piece in plan.pieces if piece.is_copied]
    for start, stop in file.missing():
        position = start
        for first, last in copied:
            if last <= position or first >= stop:
                continue
            if position < first:
                ranges.append((position, first))
            position = min(last, stop)
        if position < stop:
            ranges.append((position, stop))
    return ranges


def _untouched(file: StagedFile) -> Iterator[tuple[int, int]]:
    """Yield the runs that are worth being copied from the base version: what lies between them is not too small to be sent."""
    position = 0
    for start, stop in file.missing():
        first = -(-start // MIB) * MIB
        if position < first:
            first = max(first, position + MIN_PART_BYTES)
        last = stop if stop == file.size else stop // MIB * MIB
        if last - first >= COPY_LEAST or (last == file.size and first < last):
            yield first, last
            position = last
