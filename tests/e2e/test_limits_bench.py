"""The measurement beside the raw loop, with small sizes: it must work on the day that somebody needs it."""

from tests.bench.limits import MEASURES, compare, prepared
from tests.bench.meter import MIB
from tests.e2e.lab import Daemon
from tests.servers.endpoint import Endpoint


def test_the_mount_is_measured_beside_the_store_client_and_bare_sockets(
    daemon: Daemon, ministack: Endpoint
) -> None:
    """Each kind of transfer is made by all three, and the mount's share of its limit is told."""
    with prepared(daemon, ministack, 9 * MIB, 1, random_reads=8) as ground:
        rows = compare(ground, list(MEASURES), 1)
    assert len(rows) == len(MEASURES)
    for name, row in zip(MEASURES, rows, strict=True):
        others = {"tmpfs"} if name == "small-returned" else {"sockets", "store"}
        assert set(row.best) == {"mount", *others}, row.line()
        assert row.share > 0, row.line()
