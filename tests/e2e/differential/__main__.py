"""Run many random programs on real mounts: ``python -m tests.e2e.differential --operations 100000 --seed 1``.

Each program has its own seed, which is printed with a difference; ``--operations LENGTH --seed THAT`` repeats it. It is then
reduced, and the steps that are left are printed. Needs root and /dev/fuse, as the tests beside it do.
"""

import argparse
import faulthandler
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.e2e.differential.drafting import program
from tests.e2e.differential.reducing import reduced
from tests.e2e.differential.running import KINDS, Course, Difference, Site, Sites, sites
from tests.e2e.lab import Lab
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack

PROGRAM_LENGTH: Final = 500
HANG_LIMIT_S: Final = 600.0
"""A program that takes longer waits for something that does not come: its stack is printed, and it ends."""
REDUCTION_LIMIT_S: Final = 60.0


def main() -> int:
    """Run what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.e2e.differential")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=PROGRAM_LENGTH, help="steps of one program")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)) >> 2)
    parser.add_argument("--endpoint", help="an S3 server; default: a MiniStack of its own")
    parser.add_argument("--no-events", action="store_true", help="let nothing befall the mounts")
    parser.add_argument("--kinds", help="mounts, as close-30,writeback-0; default: all")
    arguments = parser.parse_args()
    os.umask(0o022)
    kinds = [k for k in KINDS if not arguments.kinds or f"{k[0]}-{k[1]}" in arguments.kinds]
    with (
        _server(arguments.endpoint) as endpoint,
        _lab() as lab,
        sites(lab, endpoint) as made,
        ExitStack() as stack,
    ):
        mounts = [(kind, stack.enter_context(made.site(*kind))) for kind in kinds]
        return _run(arguments, made, mounts)


@contextmanager
def _lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.end()


@contextmanager
def _server(url: str | None) -> Iterator[Endpoint]:
    if url:
        yield Endpoint("ministack", url, "key", "secret")
        return
    with tempfile.TemporaryDirectory() as directory, run_ministack(Path(directory)) as endpoint:
        yield endpoint


def _run(
    arguments: argparse.Namespace, made: Sites, mounts: list[tuple[tuple[str, int], Site]]
) -> int:
    total: Counter[str] = Counter()
    begun, seed, left = time.monotonic(), arguments.seed, arguments.operations
    print(f"seed {seed}", flush=True)
    while left > 0:
        # The seed alone says on which mount.
        kind, site = mounts[seed % len(mounts)]
        drafts = program(seed, min(left, arguments.length), events=not arguments.no_events)
        faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True)
        course = Course(site, f"p{seed}")
        try:
            course.run(drafts)
        except Difference as difference:
            print(f"seed {seed} on {site.name}, {len(drafts)} steps: {difference}", flush=True)
            faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True)
            fresh = partial(made.site, *kind)
            for step in reduced(fresh, course.steps, course.refused, REDUCTION_LIMIT_S):
                print(f"    {step}")
            return 1
        total.update(course.done)
        left -= len(drafts)
        seed += 1
        _report(total, arguments.operations - left, begun)
    faulthandler.cancel_dump_traceback_later()
    _report(total, arguments.operations, begun)
    print(dict(sorted(total.items())))
    return 0


def _report(total: Counter[str], operations: int, begun: float) -> None:
    seconds = time.monotonic() - begun
    print(f"{operations} operations clean, {total['ok']} ok, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
