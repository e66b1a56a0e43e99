"""s3mgr beside other mounts: one after another, on the same S3 and the same work.

Run, as root: ``python -m tests.bench.compare [--endpoint URL] [--peers s3mgr,geesefs] [--workloads seq_read,list] [--write-page]``.

Without an endpoint a MiniStack is started, with a relay before it that has the latency and bandwidth of a region; it is itself
slower than some of the clients. A server that has a network of its own, counts, and makes an object of 20 GiB from nothing is recognised
by ``/_bench/stats``. Any other S3 is taken as it is; then nobody counts requests, and there is no such object. Peers are what is
found on PATH: mount-s3, geesefs, goofys, rclone, s3fs.

Only figures of one run on a quiet machine compare. A long comparison may be run in pieces: all peers, some of the workloads
each time, with the same ``--results FILE``; the table is made of all pieces. Memory is that of all processes of a mount (daemon,
zygote, workers, messengers) together, as proportional set size, at most. Exit status 1 when a figure of s3mgr is not what it should be.
"""

import argparse
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from tests.bench.compare.objects import Sizes, empty, fill
from tests.bench.compare.peers import PEERS, Peer
from tests.bench.compare.table import OURS, Outcome, Results, load, misses, put_into, render
from tests.bench.compare.workloads import WORKLOADS, Site, Workload, drop_caches
from tests.bench.meter import MIB, peaks
from tests.bench.network import Network, reached
from tests.e2e.lab import Lab
from tests.servers.plugin import remove_bucket

T = TypeVar("T")

PAGE: Final = Path(__file__).parents[3] / "docs" / "performance.md"
SAMPLE_INTERVAL_S: Final = 0.25
"""Often enough for a peak, and too seldom to be felt."""


def compare(
    network: Network, kind: type[Peer], workloads: Sequence[Workload], sizes: Sizes
) -> Mapping[str, Outcome]:
    """Have one peer do the workloads in a bucket of its own; returns the outcomes by workload."""
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client = network.endpoint.boto3()
    client.create_bucket(Bucket=bucket)
    lab = Lab()
    outcomes: dict[str, Outcome] = {}
    try:
        network.near(is_near=True)
        needs = {need for workload in workloads for need in workload.needs}
        impossible = fill(network, bucket, needs, sizes)
        network.near(is_near=False)
        peer = kind(lab, network.endpoint, bucket)
        peer.start()

        def restart() -> None:
            peer.stop()
            peer.start()

        try:
            site = Site(peer.root, client, bucket, lab.base, restart, sizes)
            for workload in workloads:
                if impossible.isdisjoint(workload.needs):
                    outcome = outcomes[workload.name] = measure(network, peer, site, workload)
                    print(f"{kind.name:18} {workload.name:12} {shown(outcome)}", flush=True)
        finally:
            peer.stop()
    finally:
        lab.end()
        network.near(is_near=True)
        empty(network, bucket)
        remove_bucket(client, bucket)
        client.close()
        network.near(is_near=False)
    return outcomes


def measure(network: Network, peer: Peer, site: Site, workload: Workload) -> Outcome:
    """Have one workload done."""
    drop_caches()
    network.reset()
    figures: Mapping[str, float] = {}
    error = ""
    # By another name after a restart.
    with peaks({}, tree_of=lambda: peer.pid, interval_s=SAMPLE_INTERVAL_S) as highest:
        try:
            figures = workload.do(site)
        except (OSError, AssertionError, subprocess.SubprocessError) as caught:
            error = f"{type(caught).__name__}: {caught}".splitlines()[0][:160]
    return Outcome(figures, highest["all"] / MIB, network.requests(), error)


def shown(outcome: Outcome) -> str:
    """Write an outcome as one line."""
    if outcome.error:
        return outcome.error
    figures = " ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items())
    counted = "" if outcome.requests is None else f", {outcome.requests} requests"
    return f"{figures}, {outcome.memory_mib:.0f} MiB{counted}"


def facts(network: Network, sizes: Sizes, kinds: Sequence[type[Peer]]) -> dict[str, str]:
    """Say what else a reader has to know."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    cpus = len(os.sched_getaffinity(0))
    return {
        "Machine:": f"{cpus} processors, {memory_gib:.0f} GiB, Linux {os.uname().release.split('-')[0]}",
        "large:": f"{sizes.big_bytes // MIB} MiB, {sizes.many:,} files",
        "S3:": network.name,
        # One by one, so that pieces of a comparison with other peers add theirs.
        **{kind.name: kind.version() for kind in kinds if kind.name != OURS[1]},
    }


def chosen(names: str | None, known: Mapping[str, T]) -> list[T]:
    """Return what a list with commas names; without one, all.

    Raises:
        KeyError: there is none of that name.
    """
    return list(known.values()) if names is None else [known[name] for name in names.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", help="an S3; default: one of the tests'")
    parser.add_argument("--access-key", default="bench")
    parser.add_argument("--secret-key", default="bench-secret")
    parser.add_argument("--peers", metavar="NAMES", help=", ".join(k.name for k in PEERS))
    parser.add_argument("--workloads", metavar="NAMES", help=", ".join(w.name for w in WORKLOADS))
    parser.add_argument("--big-mib", type=int, default=256)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--results", type=Path, metavar="FILE", help="add to what is in this file")
    parser.add_argument(
        "--write-page", nargs="?", type=Path, const=PAGE, metavar="PAGE", help=f"default: {PAGE}"
    )
    args = parser.parse_args(arguments)
    try:
        kinds = chosen(args.peers, {kind.name: kind for kind in PEERS})
        workloads = chosen(args.workloads, {workload.name: workload for workload in WORKLOADS})
    except KeyError as error:
        parser.error(f"there is no {error}")
    sizes = Sizes(args.big_mib * MIB, args.many, args.reads)
    results = load(args.results)
    absent = [kind.name for kind in kinds if not kind.version()]
    kinds = [kind for kind in kinds if kind.version()]
    if absent:
        print(f"not on PATH: {', '.join(absent)}")
    with reached(args.endpoint, args.access_key, args.secret_key) as network:
        for kind in kinds:
            try:
                outcomes = compare(network, kind, workloads, sizes)
            except (OSError, RuntimeError, AssertionError) as error:
                outcomes = {w.name: Outcome(error=str(error)[:160]) for w in workloads}
                print(f"{kind.name:18} {error}", flush=True)
            for workload, outcome in outcomes.items():
                results = results.with_outcome(workload, kind.name, outcome)
            if args.results is not None:
                results.save(args.results)
        results = Results({**results.facts, **facts(network, sizes, kinds)}, results.outcomes)
    if args.results is not None:
        results.save(args.results)
    text = render(results, WORKLOADS)
    print(f"\n{text}\n")
    if args.write_page is not None:
        put_into(args.write_page, text)
    missed = list(misses(results, workloads))
    print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
