"""What counting costs: processor time a call of a program, and a wait inside it. Run: python -m tests.bench.counters."""

import time
from collections.abc import Callable
from time import perf_counter
from typing import Final

import trio

from s3mgrd.fs.counters import Counters
from s3mgrd.s3.counting import Waiting

CALLS: Final = 100_000
ROUNDS: Final = 5


def best_us(step: Callable[[], None]) -> float:
    """Return the microseconds of processor time of one step, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(CALLS):
            step()
        best = min(best, (time.process_time() - begun) / CALLS)
    return best * 1e6


async def main() -> None:
    """Measure and print."""
    counters = Counters()

    def call() -> None:
        begun = perf_counter()
        asked = counters.begin(begun)
        counters.end("lookup", asked, begun, perf_counter(), failed=False)

    def wait() -> None:
        with Waiting():
            pass

    print(f"a call of a program: {best_us(call):.2f} us")
    asked = counters.begin(perf_counter())
    print(f"a wait inside it: {best_us(wait):.2f} us, {asked.s3_s:.3f} s counted")
    await trio.lowlevel.checkpoint()


if __name__ == "__main__":
    trio.run(main)
