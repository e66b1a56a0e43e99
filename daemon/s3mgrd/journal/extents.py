"""A set of byte ranges, kept sorted, disjoint and merged."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Extents:
    """Half-open ranges [start, stop). Adding n adjacent ranges keeps one entry."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Add a range, merging with what it touches."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def clip(self, size: int) -> None:
        """Remove everything at and beyond *size*."""
        keep = bisect_left(self._starts, size)
        del self._starts[keep:], self._stops[keep:]
        if keep and self._stops[-1] > size:
            self._stops[-1] = size

    def remove(self, start: int, stop: int) -> None:
        """Take a range out."""
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if start >= stop or first >= last:
            return
        rest = [(self._starts[first], start), (stop, self._stops[last - 1])]
        rest = [(low, high) for low, high in rest if low < high]
        self._starts[first:last] = [low for low, _ in rest]
        self._stops[first:last] = [high for _, high in rest]

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of [start, stop) that are not in the set, in order."""
        index = bisect_right(self._stops, start)
        while start < stop:
            if index == len(self._starts) or self._starts[index] >= stop:
                yield start, stop
                return
            if start < self._starts[index]:
                yield start, self._starts[index]
            start = self._stops[index]
            index += 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    def total(self) -> int:
        """Count the bytes in the set."""
        return sum(self._stops) - sum(self._starts)
