"""Pytest plugin: a skipped test is a failure.

Given as ``-p tests.plugins.no_skips`` where everything that the tests need has been set up. There a skip means that
something is not being tested although everybody believes so.
"""

from collections.abc import Generator

import pytest


def _as_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn *report* of a skip into one of a failure. An expected failure (xfail) stays what it is."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, and no skip is allowed here: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Refuse skips of a test: marks, fixtures and calls of `pytest.skip`."""
    report = yield
    _as_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse skips of a whole module (`pytest.importorskip`, ``allow_module_level``)."""
    report = yield
    _as_failure(report)
    return report
