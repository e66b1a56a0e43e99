"""How the reports of other people's tools are read, and how a run is judged: a report that is cut short is never a success."""

from pathlib import Path

import pytest

from tests.conformance import expected, report, results
from tests.conformance.__main__ import PAGE, RESULTS
from tests.conformance.expected import Expectations, Rule
from tests.conformance.parsing import parse_pjdfstest, shorten, stress_outcome
from tests.conformance.results import TOOLS, Case, Ending, Outcome, Results, Run

REPORT = """\
\x1b[34mchmod::change_perm::fifo\x1b[0m                         \x1b[32mok\x1b[0m
link::link_count_max                                                     skipped
\tCannot get value for LINK_MAX
a stray line of some test
open::etxtbsy                                                            FAILED
\tcalled `Result::unwrap_err()` on an `Ok` value: 6
Backtrace:
   0: pjdfstest::main
open::eloop_comp ok

Summary: 1 failed, 1 skipped, 2 passed, 0 expected failures, 4 total
Error: Some tests have failed
"""


def test_a_report_of_pjdfstest_is_read_with_its_reasons() -> None:
    cases, wrong = parse_pjdfstest(REPORT)
    assert wrong == ""
    assert cases == [
        Case("chmod::change_perm::fifo", Outcome.PASSED),
        Case(
            "link::link_count_max",
            Outcome.SKIPPED,
            "Cannot get value for LINK_MAX a stray line of some test",
        ),
        Case("open::etxtbsy", Outcome.FAILED, "called `Result::unwrap_err()` on an `Ok` value: 6"),
        Case("open::eloop_comp", Outcome.PASSED),
    ]


@pytest.mark.parametrize("lines", range(11))
def test_a_report_that_is_cut_short_is_not_whole(lines: int) -> None:
    text = "".join(REPORT.splitlines(keepends=True)[:lines])
    _, wrong = parse_pjdfstest(text)
    assert wrong == "" if "Summary" in text else wrong == "the summary is missing"


def test_a_case_that_could_not_be_read_is_missed() -> None:
    _, wrong = parse_pjdfstest(REPORT.replace("open::eloop_comp ok", "open::eloop_comp  ???"))
    assert "the summary counts" in wrong


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        (0, "stress-ng: info:  [1] successful run completed in 1.00s", Outcome.PASSED),
        (0, "stress-ng: fail:  [1] hdd: wrong data", Outcome.FAILED),
        (2, "stress-ng: fail:  [1] hdd: wrong data", Outcome.FAILED),
        (1, "", Outcome.FAILED),
        (3, "stress-ng: info:  [1] link: not allowed, skipping stressor", Outcome.SKIPPED),
        (4, "stress-ng: warn:  [1] not implemented", Outcome.SKIPPED),
        (0, "stress-ng: info:  [1] aio: skipping stressor, no support", Outcome.SKIPPED),
    ],
)
def test_stress_ng_tells_by_status_and_words(status: int, output: str, outcome: Outcome) -> None:
    assert stress_outcome(status, output)[0] == outcome


def test_each_complaint_of_stress_ng_is_kept_once() -> None:
    output = "".join(
        f"stress-ng: fail:  [1] {words}\n"
        for words in (
            "seek: wrong data",
            "seek: wrong data",
            "seek: short",
            "process [7] (seek) ended",
        )
    )
    assert stress_outcome(2, output) == (Outcome.FAILED, "seek: wrong data; seek: short")
    only = "stress-ng: error: [1] process [7] (seek) terminated\n"
    assert stress_outcome(2, only) == (Outcome.FAILED, "process (seek) terminated")


def test_what_differs_from_run_to_run_is_left_out() -> None:
    text = "open /tmp/s3mgr-e2e-abc/d/mnt/m/x/tmp-stress-ng-mknod-728-0/y failed"
    assert shorten(text) == "open MOUNT/x/DIRECTORY/y failed"


RULES = Expectations(
    [Rule("pjdfstest", Outcome.FAILED, "no links", ["link::*"])],
)


def _run(
    *cases: Case,
    peer: str = "s3mgr",
    server: str = "ministack",
    tool: str = "pjdfstest",
    version: str = "1",
    day: str = "2026-01-31",
    ended: Ending | None = None,
) -> Run:
    return Run(peer, server, tool, version, "7", "6.1", day, 60, ended).with_cases(cases)


FAILED_LINK = Case("link::one", Outcome.FAILED, "EPERM")


@pytest.mark.parametrize(
    ("run", "surprise"),
    [
        (_run(FAILED_LINK), None),
        (_run(FAILED_LINK, Case("open::a", Outcome.PASSED)), None),
        (_run(Case("dbench", Outcome.PASSED), tool="dbench"), None),
        (_run(FAILED_LINK, Case("open::a", Outcome.FAILED, "EIO")), "open::a failed"),
        (_run(FAILED_LINK, Case("open::a", Outcome.SKIPPED)), "open::a skipped"),
        (_run(FAILED_LINK, Case("link::two", Outcome.PASSED)), "link::two passed, not failed"),
        (_run(FAILED_LINK, ended=Ending("after link::one")), "ended after link::one"),
        (_run(Case("open::a", Outcome.PASSED)), "no case link::*"),
    ],
)
def test_whatever_no_rule_speaks_of_is_a_surprise(run: Run, surprise: str | None) -> None:
    found = RULES.surprises(run)
    if surprise is None:
        assert found == []
    else:
        assert len(found) == 1
        assert surprise in found[0]


def test_every_rule_of_this_checkout_has_a_reason_and_cases() -> None:
    for rule in expected.load().rule:
        assert rule.outcome != Outcome.PASSED
        assert len(rule.reason) > 20
        assert rule.cases


def test_the_page_shows_all_side_by_side_and_says_who_hung_and_who_died() -> None:
    open_a = Case("open::a", Outcome.FAILED, "no <such> thing")
    page = report.render(
        Results(
            [
                _run(FAILED_LINK),
                _run(open_a, peer="s3fs", version="1.9", ended=Ending("after x: gone")),
                _run(tool="dbench", peer="s3fs", version="1.9", ended=Ending("in seek", 65)),
                _run(
                    Case("9 operations", Outcome.FAILED),
                    tool="fsx-mmap",
                    peer="s3fs",
                    version="1.9",
                    ended=Ending("on the way: gone"),
                ),
                _run(peer="s3fs", version="2.0", server="radosgw", day="2026-02-01"),
            ]
        ),
        RULES,
    )
    assert "| passed / failed / skipped | s3mgr 1 | s3fs 1.9 to 2.0 |" in page
    assert "| pjdfstest, ministack | 0 / 1 / 0 | 0 / 1 / 0, **died** |" in page
    assert "| dbench, ministack | not run | **hung after 65 s** |" in page
    assert "| fsx-mmap, ministack | not run | 9 operations failed, **died** |" in page
    assert "| seen | 2026-01-31 | 2026-01-31 to 2026-02-01 |" in page
    assert "- s3fs, pjdfstest, ministack: died, after x: gone" in page
    assert "- `open::a`: no \\<such\\> thing" in page
    assert "1 of pjdfstest, failed. no links" in page
    assert "| s3fs 2.0 | pjdfstest 7 | radosgw | 6.1 | 2026-02-01 | 60 s |" in page
    assert "Not expected" not in page


def test_the_page_says_what_was_not_expected() -> None:
    page = report.render(Results([_run(FAILED_LINK, Case("open::a", Outcome.FAILED))]), RULES)
    assert "**Not expected:**\n\n- ministack: pjdfstest open::a failed, not passed" in page


def test_the_checked_in_page_is_what_its_results_say_and_nothing_in_them_was_unexpected() -> None:
    kept = results.load(RESULTS)
    expectations = expected.load()
    assert report.render(kept, expectations) == PAGE.read_text()
    own = [run for run in kept.runs if run.peer == report.OWN]
    assert {run.tool for run in own} == set(TOOLS)
    assert [s for run in own for s in expectations.surprises(run)] == []


def test_a_run_takes_the_place_of_the_last_one_of_its_kind_and_of_no_other(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    fsx = _run(tool="fsx-mmap", ended=Ending("on the way", 9))
    for run in (_run(FAILED_LINK), fsx, _run(Case("open::a", Outcome.SKIPPED, "why"))):
        results.save(path, results.load(path).replaced(run))
    assert results.load(path).runs == [fsx, _run(Case("open::a", Outcome.SKIPPED, "why"))]
