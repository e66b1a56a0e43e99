"""Make a program that ends in a difference as short as may be."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

from tests.e2e.differential.running import Course, Difference, Site
from tests.e2e.differential.steps import Step


def reduced(
    fresh: Callable[[], AbstractContextManager[Site]],
    program: Sequence[Step],
    refused: Collection[int],
    limit_s: float,
) -> list[Step]:
    """Leave steps out of a program that ends in a difference as long as it does; the last step stays.

    First the calls that were *refused* are left out. A difference that needs the moment of a kill may not come again; then
    nothing can be.
    """
    end = time.monotonic() + limit_s

    def tried(steps: list[Step]) -> list[Step] | None:
        try:
            with fresh() as site:
                Course(site, "reduced").run(steps)
        except Difference as difference:
            if steps[difference.number] == program[-1]:
                return steps[: difference.number + 1]
        return None  # clean, or another difference

    left = list(program)
    left = tried([step for number, step in enumerate(left) if number not in refused]) or left
    size = max(1, len(left) // 2)
    while time.monotonic() < end:
        start, before = 0, len(left)
        while start < len(left) - 1 and time.monotonic() < end:
            shorter = tried(left[:start] + left[min(start + size, len(left) - 1) :])
            if shorter is None:
                start += size
            else:
                left = shorter
        if size == 1 and len(left) == before:
            break
        size = max(1, size // 2)
    return left
