"""The cache on disk on real mounts: what is asked for is there, stays, is right, and never more than it may be."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.e2e.gated import GatedSite, gated_site, read_uncached
from tests.e2e.lab import Lab, run, wait_for
from tests.e2e.wire import ask
from tests.servers.endpoint import Endpoint

MIB = 1 << 20


@pytest.fixture(scope="module")
def site(module_lab: Lab, ministack: Endpoint) -> Iterator[GatedSite]:
    with gated_site(module_lab, ministack) as made:
        yield made


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


def test_what_was_warmed_is_read_without_asking_s3_also_by_the_next_worker(site: GatedSite) -> None:
    bodies = {f"d/{n}/f{n}": site.put(f"warm/d/{n}/f{n}", os.urandom(n * 70_000)) for n in range(6)}
    mount = site.mount("warm")
    done = site.daemon.run("cache", "warm", "warm", "d", str(mount / "d/5"))
    assert "warmed 1.0 MiB in the cache" in done.stderr
    used = site.stats("warm").disk_cache.used_bytes
    assert sum(map(len, bodies.values())) <= used
    site.daemon.run("restart", "warm")
    for path, body in bodies.items():
        assert read_uncached(mount / path) == body
    assert site.gets("warm") == 0
    assert site.stats("warm").disk_cache.hit_bytes == sum(map(len, bodies.values()))
    files = json.loads(site.daemon.run("cache", "files", "warm", "--by", "hits", "--json").stdout)
    assert [file["path"] for file in files["items"]] == [f"d/{n}/f{n}" for n in range(5, 0, -1)]
    assert all(file["hit_bytes"] == file["cached_bytes"] for file in files["items"])

    assert "gave up 68.4 KiB of 1 file" in site.daemon.run("cache", "evict", "warm", "d/1").stderr
    assert site.stats("warm").disk_cache.used_bytes < used
    missing = site.daemon.run("cache", "warm", "warm", "absent", check=False)
    assert (missing.returncode, "there is no 'absent'" in missing.stderr) == (4, True)


def test_what_cannot_fit_is_refused_before_anything_is_fetched(site: GatedSite) -> None:
    for number in range(5):
        site.put(f"small/{number}", os.urandom(MIB))
    site.mount("small", "cache_size_bytes=4M")
    refused = site.daemon.run("cache", "warm", "small", ".", check=False)
    assert refused.returncode == 6
    assert "5 files with 5242880 bytes do not fit" in refused.stderr
    assert site.gets("small") == 0
    site.daemon.run("cache", "pin", "small", "1", "2", "3")
    refused = site.daemon.run("cache", "warm", "small", "0", "4", check=False)
    assert "3145728 are pinned by others" in refused.stderr
    site.daemon.run("cache", "warm", "small", "3", "4")


def test_a_pin_keeps_its_files_and_follows_their_versions_across_workers(site: GatedSite) -> None:
    """The new version is fetched without anybody reading it, and the old one makes room."""
    old = site.put("pin/p/file", os.urandom(MIB))
    site.put("pin/scan", os.urandom(24 * MIB))
    mount = site.mount("pin", "cache_size_bytes=8M")
    site.daemon.run("cache", "pin", "pin", "p")
    site.daemon.run("restart", "pin")
    read_uncached(mount / "scan")
    before = site.gets("pin")
    assert read_uncached(mount / "p/file") == old
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
    assert (read_uncached(mount / "p/file"), read_uncached(mount / "p/later")) == (new, later)
    assert site.gets("pin") == before

    evicted = site.daemon.run("cache", "evict", "pin", ".")
    assert "2 pinned files stay" in evicted.stderr
    site.daemon.run("cache", "unpin", "pin", "p")
    assert site.stats("pin").disk_cache.pinned_bytes == 0
    assert site.daemon.run("cache", "pins", "pin").stdout == ""


def test_a_flipped_byte_is_fetched_again_counted_and_logged(site: GatedSite) -> None:
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
    assert read_uncached(mount / "file") == body
    assert site.stats("flip").disk_cache.corrupt_blocks == 1
    assert site.gets("flip") > 0
    assert "was damaged" in site.daemon.run("logs", "flip").stdout
    site.daemon.run("restart", "flip")
    assert read_uncached(mount / "file") == body
    assert (site.gets("flip"), site.stats("flip").disk_cache.corrupt_blocks) == (
        0,
        0,
    )


def test_a_large_scan_does_not_empty_the_cache(site: GatedSite) -> None:
    hot = site.put("scan/hot", os.urandom(2 * MIB))
    site.put("scan/large", os.urandom(48 * MIB))
    mount = site.mount("scan", "cache_size_bytes=16M")
    for _ in range(2):
        assert read_uncached(mount / "hot") == hot
        site.daemon.run("restart", "scan")
    read_uncached(mount / "large")
    # What was read is written after its reader has it.
    wait_for("the scan goes by", lambda: site.stats("scan").disk_cache.evicted_blocks > 100)
    assert site.stats("scan").disk_cache.used_bytes <= 16 * MIB
    site.daemon.run("restart", "scan")
    assert read_uncached(mount / "hot") == hot
    assert site.gets("scan") == 0


def test_warming_goes_on_after_the_death_of_its_worker(site: GatedSite) -> None:
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
    assert {name: read_uncached(mount / name) for name in bodies} == bodies
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
        assert {name: read_uncached(mount / name) for name in bodies} == bodies
        refused = daemon.run("cache", "warm", "m", ".", check=False)
        assert refused.returncode == 6
        assert "the disk leaves it" in refused.stderr
        daemon.run("unmount", "m")
        daemon.end()
    finally:
        run("umount", "-l", directory)
