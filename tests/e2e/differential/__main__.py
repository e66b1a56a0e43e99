"""Run many random programs on real mounts: ``python -m tests.e2e.differential --operations 100000 --seed 1``.

Each program has its own seed, which is printed with a difference, and with what the daemon logged while it ran;
``--operations LENGTH --length LENGTH --seed THAT`` repeats it. It is then reduced, and the steps that are left are printed.
``--go-on`` runs the others, too, on a fresh mount. Needs root and /dev/fuse, as the tests beside it do.
"""

import argparse
import faulthandler
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from tests.e2e.differential.drafting import program
from tests.e2e.differential.reducing import reduced
from tests.e2e.differential.running import (
    KINDS,
    LARGE_KINDS,
    Course,
    Difference,
    Kind,
    Log,
    Site,
    Sites,
    sites,
)
from tests.e2e.lab import Lab
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack

ROUND: Final = (*(KINDS * 4), *LARGE_KINDS)
"""On which kind of mount a program runs, its seed says alone."""
PROGRAM_LENGTH: Final = 300
HANG_LIMIT_S: Final = 600.0
"""A program that takes longer waits for something that does not come: its stack is printed, and it ends."""
REDUCTION_LIMIT_S: Final = 60.0
LOG_LINES: Final = 60


def main() -> int:
    """Run what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.e2e.differential")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=PROGRAM_LENGTH, help="steps of one program")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)) >> 2)
    parser.add_argument("--endpoint", help="an S3 server; default: a MiniStack of its own")
    parser.add_argument("--no-events", action="store_true", help="let nothing befall the mounts")
    parser.add_argument(
        "--kinds", help=f"of {','.join(map(str, dict.fromkeys(ROUND)))}; default: all"
    )
    parser.add_argument("--go-on", action="store_true", help="also after a difference")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no program after that"
    )
    arguments = parser.parse_args()
    os.umask(0o022)
    wanted = arguments.kinds.split(",") if arguments.kinds else list(map(str, ROUND))
    kinds = [kind for kind in ROUND if str(kind) in wanted]
    if not kinds:
        parser.error(f"no such kind of mount: {arguments.kinds}")
    with _server(arguments.endpoint) as endpoint, _lab() as lab, sites(lab, endpoint) as made:
        return _run(arguments, made, kinds)


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


class _Mounts:
    """One mount of each kind, made when it is wanted."""

    def __init__(self, made: Sites) -> None:
        self._made: Final = made
        self._sites: Final[dict[Kind, tuple[Site, ExitStack]]] = {}

    def get(self, kind: Kind) -> Site:
        if kind not in self._sites:
            stack = ExitStack()
            self._sites[kind] = stack.enter_context(self._made.site(kind)), stack
        return self._sites[kind][0]

    def discard(self, kind: Kind) -> None:
        """Have the next one be a fresh one."""
        self._sites.pop(kind)[1].close()

    def close(self) -> None:
        for kind in list(self._sites):
            self.discard(kind)


def _run(arguments: argparse.Namespace, made: Sites, kinds: Sequence[Kind]) -> int:
    total: Counter[str] = Counter()
    begun, seed, left, found = time.monotonic(), arguments.seed, arguments.operations, 0
    print(f"seed {seed}", flush=True)
    with closing(_Mounts(made)) as mounts:
        while left > 0 and time.monotonic() - begun < arguments.seconds:
            kind = kinds[seed % len(kinds)]
            length = min(left, arguments.length)
            done = _run_one(mounts, made, kind, seed, length, events=not arguments.no_events)
            if done is None:
                found += 1
                if not arguments.go_on:
                    break
            else:
                total.update(done)
            left -= length
            seed += 1
            _report(total, arguments.operations - left - found * arguments.length, begun)
    faulthandler.cancel_dump_traceback_later()
    print(f"{found} programs ended in a difference; steps: {dict(sorted(total.items()))}")
    return 1 if found else 0


def _run_one(
    mounts: _Mounts, made: Sites, kind: Kind, seed: int, length: int, *, events: bool
) -> Counter[str] | None:
    """Run one program; returns what it did, None: it ended in a difference, which is printed."""
    faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True)
    site = mounts.get(kind)
    log = Log(site)
    course = Course(site, f"p{seed}")
    try:
        course.run(program(seed, length, events=events, large=kind.is_large))
    except Difference as difference:
        print(f"seed {seed} on {site.name}, {length} steps: {difference}", flush=True)
        print("logged meanwhile:", *log.lines()[-LOG_LINES:], sep="\n    ", flush=True)
        mounts.discard(kind)
        faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True)
        left = reduced(lambda: made.site(kind), course.steps, course.refused, REDUCTION_LIMIT_S)
        print("reduced:", *left, sep="\n    ", flush=True)
        return None
    return course.done


def _report(total: Counter[str], operations: int, begun: float) -> None:
    seconds = time.monotonic() - begun
    print(f"{operations} operations clean, {total['ok']} ok, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
