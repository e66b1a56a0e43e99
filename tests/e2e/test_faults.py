"""A network that fails: no wrong byte, no lost byte, errors as in the table, on every path of the file system."""

import errno
import random
from collections.abc import Iterator

import pytest

from tests.e2e import faults
from tests.e2e.lab import Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket
from tests.servers.troubled import Relay, Trouble, relay_before

MIB = 1 << 20
SHARE = 0.05
"""More than any network does, so that every path meets it in a short test."""
OPTIONS = "part_size_bytes=5242880,read_timeout_s=1"


@pytest.fixture
def relay(ministack: Endpoint) -> Iterator[Relay]:
    with relay_before(ministack) as relay:
        yield relay


@pytest.fixture
def ours(ministack: Endpoint) -> Iterator[str]:
    """Make a bucket in MiniStack."""
    client = ministack.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


@pytest.mark.parametrize("mode", ["close", "writeback"])
@pytest.mark.parametrize(
    ("kinds", "large_bytes"),
    [
        # Of ranges of larger objects MiniStack says no checksum, like S3 of most ranges.
        (("corrupt",), MIB // 2),
        (("unavailable", "reset", "truncate", "hang"), 11 * MIB),
    ],
    ids=["corrupt", "all others"],
)
def test_nothing_is_lost_or_changed_where_a_share_of_the_requests_fails(
    lab: Lab,
    relay: Relay,
    ours: str,
    ministack: Endpoint,
    kinds: tuple[Trouble, ...],
    large_bytes: int,
    mode: str,
) -> None:
    """Written, edited, copied, renamed and removed through it; then read through it by a mount that has nothing cached."""
    contents = faults.Contents(seed=4)
    daemon = lab.daemon()
    mount = daemon.mount(relay.endpoint, ours, "m", "-o", f"{OPTIONS},write_mode={mode}")
    relay.trouble_some(kinds, SHARE)
    faults.work(mount, contents, large_bytes=large_bytes)
    faults.look(mount, contents)
    daemon.flush()
    daemon.run("unmount", "m")
    faults.check_bucket(ministack.boto3(), ours, contents)
    mount = daemon.mount(relay.endpoint, ours, "n", "-o", OPTIONS + ",cache_size_bytes=0")
    faults.look(mount, contents)
    assert relay.met > 0


def test_an_outage_longer_than_the_deadline_is_an_error_and_loses_nothing(
    lab: Lab, relay: Relay, ours: str, ministack: Endpoint
) -> None:
    daemon = lab.daemon()
    mount = daemon.mount(relay.endpoint, ours, "m", "-o", f"{OPTIONS},retry_deadline_s=0.5")
    (mount / "before").write_bytes(b"before")
    file = (mount / "during").open("wb", buffering=0)
    relay.trouble_some(["unavailable"], 1.0)
    file.write(b"written in the outage")
    with pytest.raises(OSError, match="Input/output") as failure:
        file.close()
    assert failure.value.errno == errno.EIO
    assert (mount / "during").read_bytes() == b"written in the outage"
    relay.trouble_some(["unavailable"], 0.0)
    daemon.flush()
    client = ministack.boto3()

    def stored() -> bool:
        listed = client.list_objects_v2(Bucket=ours).get("Contents", [])
        return {entry["Key"] for entry in listed} == {"before", "during"}

    wait_for("S3 has both", stored)
    assert client.get_object(Bucket=ours, Key="during")["Body"].read() == b"written in the outage"


def test_an_object_that_is_not_what_s3_has_a_checksum_of_is_an_error(
    lab: Lab, relay: Relay, ours: str
) -> None:
    """Every answer is damaged alike: a program gets EIO, and never the bytes."""
    daemon = lab.daemon()
    daemon.mount(relay.endpoint, ours, "m", "-o", OPTIONS).joinpath("f").write_bytes(b"x" * 1000)
    daemon.run("unmount", "m")
    mount = daemon.mount(relay.endpoint, ours, "n", "-o", OPTIONS + ",cache_size_bytes=0")
    relay.trouble_some(["corrupt"], 1.0)
    with pytest.raises(OSError, match="Input/output"):
        (mount / "f").read_bytes()
    relay.trouble_some(["corrupt"], 0.0)
    assert (mount / "f").read_bytes() == b"x" * 1000


def test_who_reads_a_large_object_to_its_end_gets_the_right_bytes_or_an_error(
    lab: Lab, relay: Relay, ours: str, ministack: Endpoint
) -> None:
    """S3 says no checksum of ranges, but one of the whole. Neither the kernel nor a cache keeps what is damaged."""
    body = random.Random(8).randbytes(11 * MIB)  # noqa: S311 any bytes
    ministack.boto3().put_object(Bucket=ours, Key="f", Body=body, ChecksumAlgorithm="CRC64NVME")
    daemon = lab.daemon()
    file = daemon.mount(relay.endpoint, ours, "m", "-o", OPTIONS) / "f"
    relay.trouble_some(["corrupt"], 1.0)
    with pytest.raises(OSError, match="Input/output"):
        file.read_bytes()
    relay.trouble_some(["corrupt"], 0.0)

    def is_right() -> bool:
        try:
            data = file.read_bytes()
        except OSError:
            return False
        assert data == body, "other bytes"
        return True

    wait_for("all have forgotten it", is_right)
    assert daemon.api.mount_stats("m").damaged_objects == 1
    assert "is damaged" in "".join(text for _, text in daemon.logs())
