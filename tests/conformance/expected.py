"""What is expected to fail or to be skipped, and why: `expected.toml`, and how a run is judged by it."""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import msgspec

from tests.conformance.results import Case, Outcome, Run

FILE: Final = Path(__file__).with_name("expected.toml")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cases of a tool that fail or are skipped for one reason. `cases` are names, or patterns with ``*``."""

    tool: str
    outcome: Outcome
    reason: str
    cases: list[str]

    def covers(self, name: str) -> bool:
        """Whether the rule speaks of the case *name*."""
        return any(fnmatchcase(name, pattern) for pattern in self.cases)


class Expectations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rules; a case that none covers is expected to pass."""

    rule: list[Rule]

    def find(self, tool: str, case: Case) -> Rule | None:
        """Return the rule that speaks of a case."""
        return next((r for r in self.rule if r.tool == tool and r.covers(case.name)), None)

    def surprises(self, run: Run) -> list[str]:
        """Say everything about *run* that was not expected; empty: it went as the rules say."""
        found = [f"{run.tool} ended {run.ended.reason}"] if run.ended else []
        for case in run.cases:
            rule = self.find(run.tool, case)
            wanted = rule.outcome if rule else Outcome.PASSED
            if case.outcome != wanted:
                detail = f": {case.detail}" if case.detail else ""
                found.append(f"{run.tool} {case.name} {case.outcome}, not {wanted}{detail}")
        if not run.ended:
            found += [
                f"{run.tool} has no case {pattern}, of which {FILE.name} speaks"
                for rule in self.rule
                if rule.tool == run.tool
                for pattern in rule.cases
                if not any(fnmatchcase(case.name, pattern) for case in run.cases)
            ]
        return found


def load() -> Expectations:
    """Read `expected.toml`."""
    with FILE.open("rb") as file:
        return msgspec.convert(tomllib.load(file), Expectations)
