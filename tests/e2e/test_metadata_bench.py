"""The measurement of large numbers of names, with small ones: it must work on the day that somebody needs it."""

from tests.bench.metadata import Shape, fill, run
from tests.e2e.lab import Daemon
from tests.servers.endpoint import Endpoint


def test_names_are_measured_and_nothing_is_asked_after_a_restart(
    daemon: Daemon, ministack: Endpoint
) -> None:
    """Every entry is found each time (the measurement insists); after the restart all of it comes from mount.db."""
    shapes = [Shape(60, 1), Shape(60, 6)]
    measured = run(daemon, ministack, shapes, fill)
    for figures in measured:
        assert figures.requests_restarted == 0, figures.table()
        assert figures.lookups_per_s > 0
        assert figures.worker_mib > 0
    assert [figures.shape for figures in measured] == shapes
