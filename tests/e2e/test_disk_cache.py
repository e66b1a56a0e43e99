"""The cache on disk on real mounts: what is asked for is there, stays, is right, and never more than it may be."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s3mgr.schema import MountStats
from tests.e2e.lab import Daemon, Lab, run, wait_for
from tests.e2e.wire import ask
from tests.servers.endpoint import Endpoint
from tests.servers.gate import Gate, gate_before
from tests.servers.plugin import make_bucket, remove_bucket

MIB = 1 << 20


@dataclass(frozen=True)
class Site:
    """A daemon, a bucket behind a gate, and its client."""

    daemon: Daemon
    client: Any
    bucket: str
    gate: Gate

    def put(self, key: str, body: bytes) -> bytes:
        """Write as somebody else does."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        return body

    def mount(self, name: str, *options: str) -> Path:
        """Mount what is below the prefix NAME/."""
        return self.daemon.mount(self.gate.endpoint, f"{self.bucket}/{name}", name, *options)

    def stats(self, name: str) -> MountStats:
        return self.daemon.api.mount_stats(name)

    def gets(self, name: str) -> int:
        """How many objects, or parts of objects, the worker asked S3 for."""
        return sum(found.count for found in self.stats(name).s3 if found.name == "GetObject")


@pytest.fixture(scope="module")
def site(module_lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon()
    try:
        with gate_before(ministack) as gate:
            yield Site(daemon, client, bucket, gate)
            daemon.run("unmount", "--all", check=False)
    finally:
        remove_bucket(client, bucket)
        client.close()


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


def read(path: Path) -> bytes:
    """Read a file past what the kernel keeps of it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        parts: list[bytes] = []
        while part := os.pread(fd, MIB, sum(map(len, parts))):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def test_what_was_warmed_is_read_without_asking_s3_also_by_the_next_worker(site: Site) -> None:
    bodies = {f"d/{n}/f{n}": site.put(f"warm/d/{n}/f{n}", os.urandom(n * 70_000)) for n in range(6)}
    mount = site.mount("warm")
    done = site.daemon.run("cache", "warm", "warm", "d", str(mount / "d/5"))
    assert "warmed 1.0 MiB in the cache" in done.stderr
    used = site.stats("warm").disk_cache.used_bytes
    assert sum(map(len, bodies.values())) <= used
    site.daemon.run("restart", "warm")
    for path, body in bodies.items():
        assert read(mount / path) == body
    assert site.gets("warm") == 0
    assert site.stats("warm").disk_cache.hit_bytes == sum(map(len, bodies.values()))
    files = json.loads(site.daemon.run("cache", "files", "warm", "--by", "hits", "--json").stdout)
    assert [file["path"] for file in files["items"]] == [f"d/{n}/f{n}" for n in range(5, 0, -1)]
    assert all(file["hit_bytes"] == file["cached_bytes"] for file in files["items"])

    assert "gave up 68.4 KiB of 1 file" in site.daemon.run("cache", "evict", "warm", "d/1").stderr
    assert site.stats("warm").disk_cache.used_bytes < used
    missing = site.daemon.run("cache", "warm", "warm", "absent", check=False)
    assert (missing.returncode, "there is no 'absent'" in missing.stderr) == (4, True)


def test_what_cannot_fit_is_refused_before_anything_is_fetched(site: Site) -> None:
    for number in range(5):
        site.put(f"small/{number}", os.urandom(MIB))
    site.mount("small", "-o", "cache_size_bytes=4M")
    refused = site.daemon.run("cache", "warm", "small", ".", check=False)
    assert refused.returncode == 6
    assert "5 files with 5242880 bytes do not fit" in refused.stderr
    assert site.gets("small") == 0
    site.daemon.run("cache", "pin", "small", "1", "2", "3")
    refused = site.daemon.run("cache", "warm", "small", "0", "4", check=False)
    assert "3145728 are pinned by others" in refused.stderr
    site.daemon.run("cache", "warm", "small", "3", "4")


def test_a_pin_keeps_its_files_and_follows_their_versions_across_workers(site: Site) -> None:
    """The new version is fetched without anybody reading it, and the old one makes room."""
    old = site.put("pin/p/file", os.urandom(MIB))
    site.put("pin/scan", os.urandom(24 * MIB))
    mount = site.mount("pin", "-o", "cache_size_bytes=8M")
    site.daemon.run("cache", "pin", "pin", "p")
    site.daemon.run("restart", "pin")
    read(mount / "scan")
    before = site.gets("pin")
    assert read(mount / "p/file") == old
    assert site.gets("pin") == before

    new = site.put("pin/p/file", os.urandom(2 * MIB))
    later = site.put("pin/p/later", os.urandom(MIB))
    site.daemon.run("invalidate", "pin")

    def followed() -> bool:
        (pin,) = site.daemon.api.list_pins("pin").items
        here = (pin.files, pin.size_bytes, pin.cached_bytes) == (2, 3 * MIB, 3 * MIB)
        return here and site.stats("pin").disk_cache.pinned_bytes == 3 * MIB

    wait_for("the new versions are pinned, and no other is", followed)
    before = site.gets("pin")
    assert (read(mount / "p/file"), read(mount / "p/later")) == (new, later)
    assert site.gets("pin") == before

    evicted = site.daemon.run("cache", "evict", "pin", ".")
    assert "2 pinned files stay" in evicted.stderr
    site.daemon.run("cache", "unpin", "pin", "p")
    assert site.stats("pin").disk_cache.pinned_bytes == 0
    assert site.daemon.run("cache", "pins", "pin").stdout == ""


def test_a_flipped_byte_is_fetched_again_counted_and_logged(site: Site) -> None:
    body = site.put("flip/file", os.urandom(MIB))
    mount = site.mount("flip")
    site.daemon.run("cache", "warm", "flip", "file")
    site.daemon.run("restart", "flip")  # nothing of it is in the worker's memory
    data = next((site.daemon.base / "cache").rglob("flip/blocks.data"))
    with data.open("r+b") as file:
        file.seek(300_000)
        byte = file.read(1)[0]
        file.seek(300_000)
        file.write(bytes([byte ^ 0x40]))
    assert read(mount / "file") == body
    assert site.stats("flip").disk_cache.corrupt_blocks == 1
    assert site.gets("flip") > 0
    assert "was damaged" in site.daemon.run("logs", "flip").stdout
    site.daemon.run("restart", "flip")
    assert read(mount / "file") == body
    assert (site.gets("flip"), site.stats("flip").disk_cache.corrupt_blocks) == (0, 0)


def test_a_large_scan_does_not_empty_the_cache(site: Site) -> None:
    hot = site.put("scan/hot", os.urandom(2 * MIB))
    site.put("scan/large", os.urandom(48 * MIB))
    mount = site.mount("scan", "-o", "cache_size_bytes=16M")
    for _ in range(2):
        assert read(mount / "hot") == hot
        site.daemon.run("restart", "scan")
    read(mount / "large")
    assert site.stats("scan").disk_cache.evicted_blocks > 100
    assert site.stats("scan").disk_cache.used_bytes <= 16 * MIB
    site.daemon.run("restart", "scan")
    assert read(mount / "hot") == hot
    assert site.gets("scan") == 0


def test_warming_goes_on_after_the_death_of_its_worker(site: Site) -> None:
    bodies = {f"f{n}": site.put(f"death/f{n}", os.urandom(MIB)) for n in range(3)}
    mount = site.mount("death")
    assert sorted(os.listdir(mount)) == sorted(bodies)
    site.gate.shut()
    try:
        site.daemon.run("cache", "warm", "death", ".", "--no-wait")
        pid = site.daemon.kill_worker("death")
        site.daemon.wait_replaced(pid, "death")
    finally:
        site.gate.open()

    def is_done() -> bool:
        found = ask(site.daemon, "GET", "/v1/operations?mount=death").json["items"]
        (operation,) = [operation for operation in found if operation["kind"] == "warm"]
        return bool(operation["state"] == "succeeded")

    wait_for("the cache is warm", is_done)
    before = site.gets("death")
    assert {name: read(mount / name) for name in bodies} == bodies
    assert site.gets("death") == before


def test_a_full_disk_only_means_that_reads_go_on_without_the_cache(
    lab: Lab, s3_endpoint: Endpoint, bucket: str
) -> None:
    """And when others need the disk, the cache gives way, though its own limit is far."""
    directory = lab.directory("small-disk")
    run("mount", "-t", "tmpfs", "-o", "size=24m,mode=0755", "none", directory)
    try:
        daemon = lab.daemon(cache_dir=str(directory))
        client = s3_endpoint.boto3()
        bodies = {f"f{n}": os.urandom(4 * MIB) for n in range(4)}
        for key, body in bodies.items():
            client.put_object(Bucket=bucket, Key=key, Body=body)
        client.close()
        mount = daemon.mount(s3_endpoint, bucket, "m")
        daemon.run("cache", "warm", "m", "f0", "f1")
        used = daemon.api.mount_stats("m").disk_cache.used_bytes
        assert used == 8 * MIB

        ask(daemon, "PATCH", "/v1/mounts/m", {"options": {"cache_free_share": 0.75}})
        wait_for(
            "the cache gives way",
            lambda: 0 < daemon.api.mount_stats("m").disk_cache.used_bytes <= 6 * MIB,
        )
        (directory / "filler").write_bytes(b"\0" * (15 * MIB))
        assert {name: read(mount / name) for name in bodies} == bodies
        refused = daemon.run("cache", "warm", "m", ".", check=False)
        assert refused.returncode == 6
        assert "the disk leaves it" in refused.stderr
        daemon.run("unmount", "m")
        daemon.end()
    finally:
        run("umount", "-l", directory)
