"""The tables of a comparison: ratios in the right direction, and a page that keeps the rest of its text."""

from pathlib import Path

import pytest

from tests.bench.compare.table import (
    BEGIN,
    END,
    Outcome,
    Results,
    load,
    misses,
    number,
    put_into,
    render,
)
from tests.bench.compare.workloads import Figure, Workload

READ = Workload(
    "read",
    [],
    [Figure("rate", "in order", "MB/s", 1.2, 0.5), Figure("time", "listed", "s", 2.0)],
    lambda site: {},
)
RESULTS = (
    Results({"Machine:": "2 processors"})
    .with_outcome("read", "s3mgr", Outcome({"rate": 120.0, "time": 0.5}, 100.0, 7))
    .with_outcome("read", "s3mgr-writeback", Outcome({"rate": 60.0, "time": 0.5}, 300.0, 7))
    .with_outcome("read", "slow", Outcome({"rate": 50.0, "time": 4.0}, 10.0, 9))
    .with_outcome("read", "quick", Outcome({"rate": 80.0}, 10.0, None))
)


def test_s3mgr_is_set_against_the_best_of_the_others_in_each_figure() -> None:
    """More is better of rates, less of seconds; who has no figure is no rival in it."""
    lines = render(RESULTS, [READ]).splitlines()
    assert "| read: in order | MB/s | **120** | 60.0 | 50.0 | 80.0 | 1.50 / 0.75 |" in lines
    assert "| read: listed | s | **0.500** | **0.500** | 4.00 | - | 8.00 / 8.00 |" in lines
    assert "| read | 100 | 300 | 10 | 10 |" in lines
    assert "| read | 7 | 7 | 9 | - |" in lines


def test_what_falls_short_of_its_goal_is_named() -> None:
    """By ratio, by memory, and by failure."""
    assert list(misses(RESULTS, [READ])) == ["read: s3mgr-writeback took 300 MiB"]
    slow = RESULTS.with_outcome("read", "s3mgr", Outcome({"rate": 80.0, "time": 3.0}, 1.0, 7))
    assert list(misses(slow, [READ])) == [
        "read, in order: s3mgr 1.00 of quick's, wanted 1.2",
        "read, listed: s3mgr 1.33 of slow's, wanted 2",
        "read: s3mgr-writeback took 300 MiB",
    ]
    failed = RESULTS.with_outcome("read", "s3mgr", Outcome(error="other bytes"))
    assert "read: s3mgr failed: other bytes" in misses(failed, [READ])
    assert "- read, s3mgr: other bytes" in render(failed, [READ])


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    """Pieces of a comparison are put together; nothing is there before the first."""
    assert load(tmp_path / "none") == load(None) == Results()
    RESULTS.save(tmp_path / "results")
    assert load(tmp_path / "results") == RESULTS


def test_a_page_keeps_what_lies_outside_of_the_marks(tmp_path: Path) -> None:
    """A page without them is left alone."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_into(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        put_into(page, "new")
    assert page.read_text() == "no marks"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00316, "0.00316"),
        (9.994, "9.99"),
        (52.3, "52.3"),
        (480, "480"),
        (5444, "5,444"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """No more than can be believed."""
    assert number(value) == text
