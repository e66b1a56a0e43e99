"""Trees walked by real programs: requests in the order of pages, and none at all after a restart."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, shell
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

DIRECTORIES = 60
WALKS = "find . -ls; ls -lR; du -a --apparent-size"


def plant(endpoint: Endpoint, bucket: str) -> int:
    """Put files into directories two levels deep; returns how many names a walk finds."""
    client = endpoint.boto3()
    paths = [f"t/d{i % DIRECTORIES:02d}/e{i % 3}/f{i:03d}" for i in range(3 * DIRECTORIES)]
    for path in paths:
        client.put_object(Bucket=bucket, Key=path, Body=b"abc")
    return len({*paths, *(p.rsplit("/", n)[0] for p in paths for n in (1, 2))})


def requests(daemon: Daemon) -> Counter[str]:
    return Counter({call.name: call.count for call in daemon.api.mount_stats("m").s3})


def count(mount: Path) -> int:
    return sum(len(directories) + len(files) for _, directories, files in os.walk(mount / "t"))


@pytest.fixture
def bucket(ministack: Endpoint) -> Iterator[str]:
    client = ministack.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


def restart_worker(daemon: Daemon) -> None:
    daemon.wait_replaced(daemon.kill_worker())


def restart_everything(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start()
    daemon.wait_state("mounted")


@pytest.mark.parametrize("restart", [restart_worker, restart_everything])
def test_a_tree_that_was_walked_is_walked_without_a_request_after_a_restart(
    daemon: Daemon, ministack: Endpoint, bucket: str, restart: Callable[[Daemon], None]
) -> None:
    """By find, ls -lR and du; also names that are not there are answered from what is known."""
    names = plant(ministack, bucket)
    mount = daemon.mount(ministack, bucket, "m", "-o", "metadata_ttl_s=600")
    before = requests(daemon)
    assert count(mount) == names
    assert (requests(daemon) - before)["ListObjectsV2"] <= 6
    restart(daemon)
    before = requests(daemon)
    assert count(mount) == names
    shell(WALKS, cwd=mount / "t")
    assert (mount / "t/d00/e0/f000").stat().st_size == 3
    assert not (mount / "t/d00/e0/absent").exists()
    assert requests(daemon) - before == Counter()
