"""The measurement of what checksums cost, with small files: it must work on the day that somebody needs it."""

from tests.bench.checksums import MEASURES, compare
from tests.bench.meter import MIB
from tests.bench.network import Network
from tests.bench.unchecked_daemon import start_unchecked
from tests.e2e.lab import Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket


def test_writes_and_reads_are_measured_with_checksums_and_without(ministack: Endpoint) -> None:
    lines = compare(Network(ministack), 20 * MIB, 1)
    assert [line.split()[0] for line in lines] == list(MEASURES)


def test_the_other_worker_sends_no_checksums(ministack: Endpoint) -> None:
    lab, client = Lab(), ministack.boto3()
    bucket = make_bucket(client)
    try:
        for daemon in (lab.daemon("checked"), start_unchecked(lab)):
            (daemon.mount(ministack, f"{bucket}/{daemon.name}", "m") / "file").write_bytes(b"x")
        heads = [
            client.head_object(Bucket=bucket, Key=f"{daemon.name}/file", ChecksumMode="ENABLED")
            for daemon in lab.daemons
        ]
        assert ["ChecksumCRC32C" in head for head in heads] == [True, False]
    finally:
        lab.end()
        remove_bucket(client, bucket)
        client.close()
