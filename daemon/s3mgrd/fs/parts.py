"""How a staged file is cut into the parts of a multipart upload: what is sent, and what S3 copies from the old version.

Parts lie on a grid of equal size, so that the same content is cut the same way whenever an interrupted upload is taken
up. A part of which nothing was changed is copied on the server, many of them with one request; a part that was changed is
sent whole, and what it lacks is fetched before. That way 4 KiB changed in a large object move two parts at most, and the
disk holds no more than that.

When an upload loses against another writer, what was not fetched of the old version is gone. So objects of which less
than `COPY_FROM` would be copied are sent whole: their conflict copies are complete.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from s3mgrd.journal.staging import StagedFile
from s3mgrd.s3.port import MAX_COPY_BYTES, MAX_OBJECT_BYTES, MAX_PARTS

MIB: Final = 1 << 20
COPY_FROM: Final = 64 * MIB
SINGLE_PUT_PARTS: Final = 2
"""Files up to so many parts' size go with one PUT: three requests fewer, and the ETag is the content's MD5."""
COPY_STEP: Final = 64 * MIB
"""The server copies several ranges at the same time: so many bytes each, more where that would be too many parts."""

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
    runs = list(_untouched(file, part_size)) if may_copy else []
    if sum(stop - start for start, stop in runs) < COPY_FROM:
        runs = []
    step = max(COPY_STEP, 4 * -(-size // MAX_PARTS))
    step = min(-(-step // part_size) * part_size, MAX_COPY_BYTES // part_size * part_size)
    pieces: list[Piece] = []

    def cut(start: int, stop: int, length: int, *, is_copied: bool) -> None:
        while start < stop:
            end = min(start + length, stop)
            pieces.append(Piece(len(pieces) + 1, start, end, is_copied))
            start = end

    position = 0
    for start, stop in runs:
        cut(position, start, part_size, is_copied=False)
        cut(start, stop, step, is_copied=True)
        position = stop
    cut(position, size, part_size, is_copied=False)
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


def _untouched(file: StagedFile, part_size: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of whole parts that are as in the base version."""
    for start, stop in file.missing():
        first = -(-start // part_size) * part_size
        last = stop if stop == file.size else stop // part_size * part_size
        if first < last:
            yield first, last
