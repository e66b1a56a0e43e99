"""Fixtures of the tests with real daemons: `lab` makes them, `daemon` is one that runs."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab

LOG_TAIL = 20_000
_LAB = pytest.StashKey[Lab]()


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a laboratory whose daemons, workers, programs and mounts are gone afterwards."""
    laboratory = Lab()
    request.node.stash[_LAB] = laboratory
    try:
        yield laboratory
    finally:
        laboratory.end()


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
    laboratory = item.stash.get(_LAB, None)
    if report.failed and laboratory is not None:
        for daemon in laboratory.daemons:
            for title, text in daemon.logs():
                report.sections.append((title, text[-LOG_TAIL:]))
    return report
