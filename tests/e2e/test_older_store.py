"""A store that verifies CRC-64/NVME and refuses CRC-32C: MiniStack as it comes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack
from tests.servers.plugin import make_bucket

MIB = 1 << 20


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Endpoint]:
    with run_ministack(tmp_path, "ministack.app:app") as endpoint:
        yield endpoint


def test_uploads_carry_what_the_store_verifies(lab: Lab, older: Endpoint) -> None:
    """Found out by the first uploads, of which none fails; in parts, too, and believed by the next worker."""
    client = older.boto3()
    bucket = make_bucket(client)
    daemon = lab.daemon()
    mount = daemon.mount(older, bucket, "m", "-o", "part_size_bytes=5242880")
    for number in range(3):
        (mount / f"small-{number}").write_bytes(b"%d" % number)
    (mount / "large").write_bytes(bytes(11 * MIB))
    heads = {
        key: client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        for key in ("small-1", "small-2", "large")
    }
    assert "ChecksumCRC64NVME" in heads["small-2"]
    assert not any("ChecksumCRC32C" in head for head in heads.values())
    assert heads["large"]["ContentLength"] == 11 * MIB

    def known() -> bool:
        status = daemon.show().status
        return (status.checksums, status.checksum_algorithm) == ("supported", "CRC64NVME")

    wait_for("the store is known", known)
    assert "CRC-64/NVME, verified by the store" in daemon.run("show", "m").stdout
    daemon.stop()
    daemon.start()
    wait_for("the store is still known", known)
    client.close()
