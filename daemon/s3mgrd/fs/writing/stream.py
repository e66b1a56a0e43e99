"""The upload of one file that begins while it is still being written: what of it is where."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from s3mgrd.fs.writing.parts import Grid
from s3mgrd.journal.staging import StagedFile
from s3mgrd.s3.port import Part


@dataclass(eq=False, slots=True)
class Flight:
    """A part under way. `size`: what is being parked."""

    size: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    is_stale: bool = False
    """Its bytes changed meanwhile."""


@dataclass(eq=False, slots=True)
class Stream:
    """The upload of one file that is being written.

    `key`, `upload_id` and `own` (the attributes it was begun with) are set when it has begun. `parts` are those S3 has.
    """

    file: StagedFile
    fd: int
    """Of the staging file, and the stream's own: what is under way may outlive the file's."""
    grid: Grid
    mtime_ns: int
    key: str = ""
    upload_id: str | None = None
    own: dict[str, str] = field(default_factory=dict)
    is_verified: bool = True
    """Whether S3 confirmed `parts`, where another worker noted them."""
    parts: dict[int, Part] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    flying: dict[int, Flight] = field(default_factory=dict)
    beginning: trio.Lock = field(default_factory=trio.Lock)
    position: int = 0
    """Where the last write ended."""
    wasted: int = 0
    held_until: float = 0.0
    rests_until: float = 0.0
    is_in_order: bool = True
    """Whether the writer changes little of what was sent; else nothing more is sent ahead."""
    is_taken: bool = False
    """Somebody commits the file: nothing is sent but by them."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is sent ahead."""
        return self.is_taken or not self.is_in_order

    def is_being_written(self, first: int, last: int) -> bool:
        """Whether the writer is inside of a part."""
        return first <= self.position < last

    def close(self) -> None:
        """Close the descriptor, once nothing reads from it."""
        if self.fd >= 0 and not self.flying:
            os.close(self.fd)
            self.fd = -1


def is_here(file: StagedFile, start: int, stop: int) -> bool:
    """Whether bytes are all in the staging file."""
    return stop <= file.size and next(file.extents.missing(start, stop), None) is None


def size_of(grid: Grid, number: int) -> int:
    """Return how many bytes a part has."""
    start, stop = grid.bounds(number)
    return stop - start


def whole_parts(stream: Stream) -> Iterator[int]:
    """Yield the parts that are all in the staging file and that the writer has left, what S3 lacks first."""
    numbers = []
    for start, stop in stream.file.extents:
        number = stream.grid.number_at(start)
        if stream.grid.bounds(number)[0] < start:
            number += 1
        while (bounds := stream.grid.bounds(number))[1] <= stop:
            if not stream.is_being_written(*bounds):
                numbers.append(number)
            number += 1
    yield from sorted(numbers, key=lambda number: number in stream.parts)
