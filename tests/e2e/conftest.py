"""Fixtures of the tests with real daemons: `lab` makes them, `daemon` is one that runs."""

import re
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab

LOG_TAIL_LINES = 60
_RECORD = re.compile(r"\d{4}-\d\d-\d\dT\S+ ([A-Z]+) ")
_LAB = pytest.StashKey[Lab]()


@pytest.fixture(scope="module")
def module_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a laboratory for all tests of a module."""
    yield from _lab(request)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a laboratory whose daemons, workers, programs and mounts are gone afterwards."""
    yield from _lab(request)


def _lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    laboratory = Lab()
    request.node.stash[_LAB] = laboratory
    try:
        yield laboratory
    finally:
        laboratory.end()
    bugs = [b for daemon in laboratory.daemons for _, text in daemon.logs() for b in _bugs(text)]
    assert not bugs, "a daemon or a worker met an error that nobody foresaw; their logs show it"


def _bugs(log: str) -> list[str]:
    """Return the lines that tell of errors that nobody foresaw. While somebody debugs, warnings have a stack, too."""
    found = []
    is_warning = False
    for line in log.splitlines():
        if record := _RECORD.match(line):
            is_warning = record[1] == "WARNING"
        if "unforeseen" in line or (line.startswith("Traceback") and not is_warning):
            found.append(line)
    return found


@pytest.fixture
def daemon(lab: Lab) -> Daemon:
    """Give a daemon that runs."""
    return lab.daemon()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of a failing test's daemons and workers."""
    report = yield
    laboratories = [n.stash[_LAB] for n in item.listchain() if _LAB in n.stash]
    if report.failed:
        for daemon in (daemon for laboratory in laboratories for daemon in laboratory.daemons):
            for title, text in daemon.logs():
                lines = text.splitlines()[-LOG_TAIL_LINES:]
                report.sections.append((title, "\n".join(lines)))
    return report
