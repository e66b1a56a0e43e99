"""A directory of a hundred thousand objects: shown while it is being listed, listed once, and in little memory."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from s3mgr.schema import MountStats
from tests.bench.memory import (
    ALL_LIMIT_MIB,
    SUPERVISOR_LIMIT_MIB,
    WORKER_LIMIT_MIB,
    Measurement,
    copy_in_and_out,
    list_many,
    table,
)
from tests.e2e.lab import Daemon, wait_for
from tests.servers.endless import PAGE, EndlessBucket
from tests.servers.endpoint import Endpoint
from tests.servers.threaded import run_scripted

OBJECTS = 100_000
COPIED_MIB = 192
"""More than the worker may keep in memory, so that what bounds it is met."""
LIST = """
import os, sys
with os.scandir(sys.argv[1]) as entries:
    for number, _ in enumerate(entries, 1):
        if number == 1:
            print("first", flush=True)
print(number, flush=True)
"""


@pytest.fixture
def many() -> Iterator[tuple[EndlessBucket, Endpoint]]:
    bucket = EndlessBucket(OBJECTS)
    with run_scripted(bucket) as server:
        try:
            yield bucket, Endpoint("ministack", server.url, "key", "secret")
        finally:
            bucket.gate.set()


def lister(directory: os.PathLike[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", LIST, str(directory)], stdout=subprocess.PIPE, text=True
    )


def listings(stats: MountStats) -> int:
    return next(call.count for call in stats.s3 if call.name == "ListObjectsV2")


def test_entries_are_shown_while_the_rest_is_listed_and_one_listing_serves_all(
    daemon: Daemon, many: tuple[EndlessBucket, Endpoint]
) -> None:
    """Every page but the first is held back: all programs have entries by then, and none waits for a listing of its own."""
    bucket, endpoint = many
    directory = daemon.mount(endpoint, "any") / "flat"
    assert directory.is_dir()
    before = listings(daemon.api.mount_stats("m"))
    bucket.gate.clear()
    programs = [lister(directory) for _ in range(4)]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "first\n"
        # The first may have been asked for twice: for the name of the directory, and for its entries.
        wait_for("the second page is asked for", lambda: bucket.pages >= 2)
        assert all(program.poll() is None for program in programs)
        bucket.gate.set()
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == f"{OBJECTS}\n"
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    pages = OBJECTS // PAGE
    # Ranges that are listed side by side end with a page that is not full, or ask for one that is empty.
    assert pages <= bucket.pages <= pages * 5 // 4
    assert pages <= listings(daemon.api.mount_stats("m")) - before <= pages * 5 // 4


def test_a_store_that_dies_while_it_is_listed_does_not_make_the_directory_short(
    daemon: Daemon, many: tuple[EndlessBucket, Endpoint]
) -> None:
    """The program hears of it; when the store is back, so is the whole directory."""
    bucket, endpoint = many
    options = "-o", "retry_deadline_s=0,read_timeout_s=0.5"
    directory = daemon.mount(endpoint, "any", "m", *options) / "flat"
    bucket.gate.clear()
    with lister(directory) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "first\n"
        assert program.stdout.read() == ""
    assert program.returncode != 0
    assert daemon.wait_state("degraded").status.reason == "s3-unavailable"
    bucket.gate.set()
    with lister(directory) as program:
        assert program.stdout is not None
        assert program.stdout.read() == f"first\n{OBJECTS}\n"
    daemon.wait_state("mounted")


def test_memory_is_bounded(daemon: Daemon, ministack: Endpoint) -> None:
    """While more is copied in and out than fits, and while many names are listed, looked at and invalidated."""
    measurement = Measurement(daemon)
    copy_in_and_out(measurement, ministack, COPIED_MIB)
    list_many(measurement, OBJECTS)
    figures = table(measurement.figures)
    assert measurement.worker_mib < WORKER_LIMIT_MIB, figures
    assert measurement.all_mib < ALL_LIMIT_MIB, figures
    assert measurement.supervisor_mib < SUPERVISOR_LIMIT_MIB, figures
