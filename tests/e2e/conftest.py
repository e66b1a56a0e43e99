"""Fixtures of the tests with real daemons: `lab` makes them, `daemon` is one that runs."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab

LOG_TAIL_LINES = 60
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
    texts = [text for daemon in laboratory.daemons for _, text in daemon.logs()]
    lines = [line for text in texts for line in text.splitlines()]
    bugs = [line for line in lines if line.startswith("Traceback") or "unforeseen" in line]
    assert not bugs, "a daemon or a worker met an error that nobody foresaw; their logs show it"


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
