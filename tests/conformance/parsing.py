"""Reads what the tools print. Pure functions: a report of somebody else's program is parsed here and nowhere else."""

import re
from typing import Final

from tests.conformance.results import Case, Outcome

MAX_DETAIL: Final = 300
"""Characters of a tool's words that are kept for one case."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PJD_CASE = re.compile(r"^([a-z0-9_]+(?:::[a-z0-9_]+)+) +(ok|FAILED|skipped)$")
_PJD_SUMMARY = re.compile(r"^Summary: (\d+) failed, (\d+) skipped, (\d+) passed, .*?(\d+) total$")
_PJD_OUTCOMES: Final = {
    "ok": Outcome.PASSED,
    "FAILED": Outcome.FAILED,
    "skipped": Outcome.SKIPPED,
}
_DIFFERS: Final = (
    (re.compile(r"/tmp/\S*?/mnt/\S*?(?=[/'\" ,:)]|$)"), "MOUNT"),
    (re.compile(r"tmp-stress-ng-[\w-]+"), "DIRECTORY"),
    (re.compile(r"process \[\d+\]"), "process"),
)
_STRESS_NOISE = re.compile(r"^stress-ng: \w+: +\[\d+\] ")


def parse_pjdfstest(output: str) -> tuple[list[Case], str]:
    """Return pjdfstest's cases, and what is wrong with the report as a whole; empty where nothing is.

    A report is whole when its summary is there and counts what was read. What stands below a case is its reason,
    up to the backtrace, which says nothing.
    """
    cases: list[Case] = []
    summary: tuple[int, ...] | None = None
    details: list[str] = []
    is_reason = False
    for line in _COLOUR.sub("", output).splitlines():
        if match := _PJD_CASE.match(line.rstrip()):
            _finish(cases, details)
            cases.append(Case(match[1], _PJD_OUTCOMES[match[2]]))
            is_reason = True
        elif match := _PJD_SUMMARY.match(line.strip()):
            summary = tuple(int(n) for n in match.groups())
            is_reason = False
        elif line.startswith("Backtrace"):
            is_reason = False
        elif is_reason and line.strip():
            details.append(line.strip())
    _finish(cases, details)
    if summary is None:
        return cases, "the summary is missing"
    counted = [sum(c.outcome == o for c in cases) for o in ("failed", "skipped", "passed")]
    if (*counted, len(cases)) != summary:
        return cases, f"the summary counts {summary} where {(*counted, len(cases))} were read"
    return cases, ""


def _finish(cases: list[Case], details: list[str]) -> None:
    if cases and details:
        last = cases[-1]
        cases[-1] = Case(last.name, last.outcome, shorten(" ".join(details)))
    details.clear()


def stress_outcome(status: int, output: str) -> tuple[Outcome, str]:
    """Say how one stressor ended, by stress-ng's exit status (its manual) and its own words."""
    lines = [_STRESS_NOISE.sub("", line) for line in output.splitlines()]
    complaints = [
        line
        for line, raw in zip(lines, output.splitlines(), strict=True)
        if re.match(r"stress-ng: (fail|error):", raw)
    ]
    skips = [line for line in lines if "skipp" in line.lower()]
    if status == 0 and not complaints:
        # A stressor that finds what it needs missing is left out, and that is a success to stress-ng.
        if any(
            re.match(r"stress-ng: info: .*skipping stressor", raw) for raw in output.splitlines()
        ):
            return Outcome.SKIPPED, shorten(" ".join(skips))
        return Outcome.PASSED, ""
    if status in (3, 4) and not complaints:  # EXIT_NO_RESOURCE, EXIT_NOT_IMPLEMENTED
        return Outcome.SKIPPED, shorten(" ".join(skips) or f"status {status}")
    # Each once; and that the process ended is no news where it says why.
    said = list(dict.fromkeys(complaints))
    reasons = [line for line in said if not line.startswith("process [")] or said
    return Outcome.FAILED, shorten("; ".join(reasons) or f"status {status}: {lines[-1:]}")


def shorten(text: str) -> str:
    """Cut a tool's words to what fits a table, without names and numbers that differ from run to run."""
    for pattern, word in _DIFFERS:
        text = pattern.sub(word, text)
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"
