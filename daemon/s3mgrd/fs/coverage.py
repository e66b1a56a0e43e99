"""Which ranges of a directory's names S3 was asked about, of directories that no fresh listing covers as a whole.

In memory only, and little of it: what is not remembered is asked again.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs import names

MAX_DIRECTORIES: Final = 256
MAX_RANGES: Final = 64
"""In one directory."""


class Range(NamedTuple):
    """The names behind *low* up to *high* (None: all), in S3's order; mount.db had them right at *as_of_ns*."""

    low: bytes
    high: bytes | None
    as_of_ns: int


class Coverage:
    """The ranges of one volume."""

    def __init__(self) -> None:
        self._ranges: OrderedDict[Inode, list[Range]] = OrderedDict()

    def add(self, directory: Inode, low: str, high: str | None, as_of_ns: int) -> None:
        """Note that mount.db has all names of a range. Places as `names.sort_key` tells them."""
        ranges = self._ranges.setdefault(directory, [])
        self._ranges.move_to_end(directory)
        new = Range(names.order(low), None if high is None else names.order(high), as_of_ns)
        last = ranges[-1] if ranges else None
        if last is not None and last.high == new.low:  # the next page: one range with it
            ranges[-1] = Range(last.low, new.high, min(last.as_of_ns, as_of_ns))
        else:
            ranges.append(new)
        del ranges[:-MAX_RANGES]
        if len(self._ranges) > MAX_DIRECTORIES:
            self._ranges.popitem(last=False)

    def as_of_ns(self, directory: Inode, name: str) -> int:
        """Return when mount.db was right about what *name* in *directory* leads to; 0: that is not known."""
        ranges = self._ranges.get(directory)
        if not ranges:
            return 0
        file, below = names.order(name), names.order(name + "/")
        return max(
            (r.as_of_ns for r in ranges if r.low < file and (r.high is None or below <= r.high)),
            default=0,
        )

    def has(self, directory: Inode) -> bool:
        """Whether anything is remembered of a directory."""
        return directory in self._ranges

    def drop(self, directory: Inode) -> None:
        """Forget about a directory: a listing has it, or nothing of it is to be trusted."""
        self._ranges.pop(directory, None)

    def clear(self) -> None:
        """Forget everything."""
        self._ranges.clear()
