"""Names that change places, large renames and removals on a real mount, while workers die."""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.lab import Daemon, Lab, run
from tests.servers.endpoint import Endpoint

FILES: Final = 300
KILLS: Final = 6
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
AT_FDCWD: Final = -100

SWAP: Final = """
import ctypes, os, sys
rename = ctypes.CDLL(None, use_errno=True).renameat2
one, other = (os.fsencode(path) for path in sys.argv[1:3])
for _ in range(int(sys.argv[3])):
    if rename(-100, one, -100, other, 2):
        sys.exit(os.strerror(ctypes.get_errno()))
"""


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


def rename(one: Path, other: Path, flags: int) -> int:
    """Call renameat2; returns the errno."""
    call = ctypes.CDLL(None, use_errno=True).renameat2
    failed = call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), flags)
    return ctypes.get_errno() if failed else 0


def keys(endpoint: Endpoint, bucket: str) -> dict[str, bytes]:
    """Read the whole bucket."""
    client = endpoint.boto3()
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        names = [o["Key"] for page in pages for o in page.get("Contents", [])]
        return {k: client.get_object(Bucket=bucket, Key=k)["Body"].read() for k in names}
    finally:
        client.close()


@contextmanager
def killing(daemon: Daemon, times: int) -> Iterator[threading.Event]:
    """Kill the worker again and again beside what the caller does; sets the event when it was often enough."""
    done = threading.Event()

    def kill() -> None:
        for _ in range(times):
            daemon.wait_replaced(daemon.kill_worker())
        done.set()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield done
    finally:
        thread.join()


def test_names_change_places_as_often_as_programs_say(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """An even number of swaps, each of them done once, whenever the worker died: everything is where it was."""
    mount = daemon.mount(s3_endpoint, bucket)
    (mount / "d").mkdir()
    for name in ("one", "d/x"):
        (mount / name).write_text(name)
    assert rename(mount / "one", mount / "d/x", RENAME_WHITEOUT) == 22
    with killing(daemon, KILLS) as is_over:
        rounds = 0
        while not is_over.is_set() or not rounds:
            rounds += 1
            for one, other in (("one", "d/x"), ("one", "d")):
                run(sys.executable, "-c", SWAP, mount / one, mount / other, "100")
    assert sorted(os.listdir(mount)) == ["d", "one"]
    assert ((mount / "one").read_text(), (mount / "d/x").read_text()) == ("one", "d/x")
    assert rename(mount / "one", mount / "d", RENAME_EXCHANGE) == 0
    daemon.flush()
    assert keys(s3_endpoint, bucket) == {"d": b"one", "one/": b"", "one/x": b"d/x"}
    assert sorted(os.listdir(mount)) == ["d", "one"]


def test_a_large_directory_is_renamed_changed_and_removed_while_workers_die(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    client = s3_endpoint.boto3()
    for i in range(FILES):
        client.put_object(Bucket=bucket, Key=f"d/s{i % 3}/{i:03d}", Body=b"%d" % i)
    client.close()
    mount = daemon.mount(s3_endpoint, bucket)
    with killing(daemon, KILLS) as is_over:
        (mount / "d").rename(mount / "e")
        (mount / "e/s0/000").write_text("changed")
        (mount / "e/s1/new").write_text("new")
        (mount / "e/s2/002").unlink()
        (mount / "e/s1/001").rename(mount / "out")
        names = ["e", "f"]
        while not is_over.is_set():
            (mount / names[0]).rename(mount / names[1])
            names.reverse()
        if names[0] == "f":
            (mount / "f").rename(mount / "e")
    assert sorted(os.listdir(mount / "e")) == ["s0", "s1", "s2"]
    daemon.flush()
    expected = {f"e/s{i % 3}/{i:03d}": b"%d" % i for i in range(FILES)}
    expected |= {"e/s0/000": b"changed", "e/s1/new": b"new", "out": expected.pop("e/s1/001")}
    del expected["e/s2/002"]
    assert {k: v for k, v in keys(s3_endpoint, bucket).items() if not k.endswith("/")} == expected
    with killing(daemon, 2):
        run("rm", "-r", mount / "e")
    daemon.flush()
    assert list(keys(s3_endpoint, bucket)) == ["out"]
