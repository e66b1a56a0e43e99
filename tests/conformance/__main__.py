"""The command behind `packaging/conformance`: runs the tools, compares with what is expected, writes the page.

Its exit status is 1 when s3mgr surprised anybody: failed what it should pass, or passed what it should not.
"""

import argparse
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.conformance import expected, report, results
from tests.conformance.peers import RIVALS, Peer, S3mgr
from tests.conformance.results import TOOLS, Case, Ending, Outcome, Run
from tests.conformance.tools import RUNNERS, Toolbox, version
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack
from tests.servers.radosgw import run_radosgw

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = CHECKOUT / ".cache" / "conformance"
PAGE: Final = CHECKOUT / "docs" / "conformance.md"
RESULTS: Final = CHECKOUT / "docs" / "conformance.json"
SERVERS: Final = ("ministack", "radosgw")
PEERS: Final[dict[str, Peer]] = {peer.name: peer for peer in (S3mgr(), *RIVALS)}
AFTER: Final = "everything reached S3, and nothing unforeseen in the logs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    args = _parser().parse_args(arguments)
    peers = _peers(args.peer, rivals=args.rivals)
    if missing := [peer.name for peer in peers if not peer.version()]:
        print(f"not on PATH: {', '.join(missing)}", file=sys.stderr)
        return 2
    box = Toolbox(
        programs=CACHE / "bin",
        scratch=CACHE / "scratch",
        fsx_operations=args.fsx_operations,
        stress_s=args.stress_seconds,
        dbench_s=args.dbench_seconds,
        limit_s=args.limit_minutes * 60,
    )
    expectations = expected.load()
    surprises: list[str] = []
    if not args.render:
        box.scratch.mkdir(parents=True, exist_ok=True)
        lock = os.open(box.scratch, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run uses {box.scratch}", file=sys.stderr)
            return 2
        for run in _runs(peers, args.server or SERVERS, args.tool or TOOLS, box):
            # Read again each time: a run of another tool may have ended meanwhile.
            results.save(args.json, results.load(args.json).replaced(run))
            if run.peer == report.OWN:
                surprises += [f"{run.server}: {s}" for s in expectations.surprises(run)]
    if args.json == RESULTS:
        PAGE.write_text(report.render(results.load(RESULTS), expectations))
    for surprise in surprises:
        print(f"unexpected: {surprise}")
    return 1 if surprises else 0


def _peers(names: Sequence[str] | None, *, rivals: bool) -> list[Peer]:
    if names:
        return [PEERS[name] for name in names]
    return [PEERS[report.OWN], *(rival for rival in RIVALS if rivals and rival.version())]


def _runs(
    peers: Sequence[Peer], servers: Sequence[str], tools: Sequence[str], box: Toolbox
) -> Iterator[Run]:
    for server in servers:
        with (
            tempfile.TemporaryDirectory(prefix="s3mgr-s3-") as directory,
            _serve(server, Path(directory)) as endpoint,
        ):
            for peer in peers:
                for tool in tools:
                    yield _run(peer, endpoint, tool, box)


def _run(peer: Peer, endpoint: Endpoint, tool: str, box: Toolbox) -> Run:
    print(f"== {tool} on {peer.name} over {endpoint.kind}", flush=True)
    began = time.monotonic()
    cases: list[Case] = []
    ended: Ending | None
    try:
        with peer.mounted(endpoint) as site:
            cases, ended = RUNNERS[tool](box, site)
            if wrong := site.after():
                cases = [*cases, Case(AFTER, Outcome.FAILED, "; ".join(wrong[:5]))]
    except (RuntimeError, AssertionError, OSError) as error:
        if peer.name == report.OWN:
            raise
        ended = Ending(f"{error}")
    run = Run(
        *(peer.name, endpoint.kind, tool, peer.version(), version(box, tool)),
        kernel=os.uname().release.partition("-")[0],
        day=datetime.now(UTC).date().isoformat(),
        seconds=round(time.monotonic() - began),
        ended=ended,
    ).with_cases(cases)
    print(
        "   {} passed, {} failed, {} skipped in {} s".format(*run.counts, run.seconds)
        + (f"; ended {ended.reason}" if ended else ""),
        flush=True,
    )
    return run


def _serve(server: str, directory: Path) -> AbstractContextManager[Endpoint]:
    return run_ministack(directory) if server == "ministack" else run_radosgw(directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packaging/conformance",
        description="Run the test suites of others on real mounts and write docs/conformance.md.",
    )
    parser.add_argument(
        "--rivals",
        action="store_true",
        help="and those of s3fs, geesefs and rclone that are on PATH",
    )
    parser.add_argument(
        "--peer", action="append", choices=list(PEERS), help="only this file system (repeatable)"
    )
    parser.add_argument(
        "--server", action="append", choices=SERVERS, help="only over this one (repeatable)"
    )
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only this one (repeatable)")
    parser.add_argument("--fsx-operations", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--stress-seconds", type=int, default=5, metavar="S", help="each stressor")
    parser.add_argument("--dbench-seconds", type=int, default=30, metavar="S")
    parser.add_argument(
        "--limit-minutes",
        type=float,
        default=30,
        metavar="M",
        help="for pjdfstest, and for each 100,000 operations of fsx",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="keep the results there, and leave docs/conformance.json and the page as they are",
    )
    parser.add_argument(
        "--render", action="store_true", help="run nothing; write the page from what is kept"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
