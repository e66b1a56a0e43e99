"""The comparison with other mounts, with small sizes: it must work on the day that somebody needs it."""

from tests.bench.compare.__main__ import compare, facts
from tests.bench.compare.objects import Sizes
from tests.bench.compare.peers import S3fs, S3mgrWriteback
from tests.bench.compare.table import Results, render
from tests.bench.compare.workloads import WORKLOADS
from tests.bench.meter import MIB
from tests.bench.network import Relayed
from tests.servers.distance import NEAR, distance_before
from tests.servers.endpoint import Endpoint

OURS = frozenset({"seq_read", "rand_huge", "seq_write", "edit", "list", "stat"})
"""The others are hundreds of files each, and go through the same code."""


def test_every_workload_has_its_figures_its_memory_and_its_requests(ministack: Endpoint) -> None:
    """The right bytes are read and arrive, or there are no figures; who cannot have an object from nothing has one less."""
    chosen = [workload for workload in WORKLOADS if workload.name in OURS]
    sizes = Sizes(2 * MIB, 20, 3)
    with distance_before(ministack, NEAR) as relay:
        network = Relayed(relay)
        ours = compare(network, S3mgrWriteback, chosen, sizes)
        rivals = compare(network, S3fs, chosen[:1], sizes)
        said = facts(network, sizes, [S3mgrWriteback, S3fs])
    assert set(ours) == OURS - {"rand_huge"}
    results = Results(said)
    for workload in chosen:
        for kind, outcomes in ((S3mgrWriteback, ours), (S3fs, rivals)):
            outcome = outcomes.get(workload.name)
            if outcome is not None:
                assert not outcome.error, outcome
                assert set(outcome.figures) == {figure.name for figure in workload.figures}
                assert outcome.memory_mib > 0, outcome
                results = results.with_outcome(workload.name, kind.name, outcome)
    assert ours["seq_read"].requests
    assert rivals["seq_read"].requests
    text = render(results, WORKLOADS)
    assert "| figure | unit | s3mgr-writeback | s3fs | ratio |" in text
