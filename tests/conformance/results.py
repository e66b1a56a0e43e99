"""What a run of a tool says: cases with outcomes, kept as JSON between runs.

What the page says lies in `docs/conformance.json`. A run replaces the last one of its kind there and nothing else, so
the page can be made of runs of different days; each says when it was and with what.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

TOOLS: Final = ("pjdfstest", "fsx-mmap", "fsx-direct", "fsx-synced", "stress-ng", "dbench")


class Outcome(StrEnum):
    """How one case ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Case(msgspec.Struct, frozen=True):
    """One test of a tool: its name, how it ended, and what the tool said to that."""

    name: str
    outcome: Outcome
    detail: str = ""


class Ending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Why a run ended before its end, because of the file system or the tool.

    Attributes:
        reason: where it was and what happened, in words.
        hung_s: so many seconds after the start of its step it had not ended, and was killed; 0: it died by itself.
    """

    reason: str
    hung_s: int = 0


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tool, run on one file system over one server.

    Attributes:
        version: of the file system.
        tool_version: of the tool.
        kernel: release of Linux.
        day: when it ended, ``YYYY-MM-DD`` in UTC.
        ended: why before the end; None: it went through.
        passed: names of the cases that passed.
        skipped: those that the tool left out, with its reason.
        failed: those that failed, with what the tool said.
    """

    peer: str
    server: str
    tool: str
    version: str
    tool_version: str
    kernel: str
    day: str
    seconds: int
    ended: Ending | None = None
    passed: list[str] = []
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}

    @property
    def kind(self) -> tuple[str, str, str]:
        """What only the latest run of is kept."""
        return self.peer, self.server, self.tool

    @property
    def cases(self) -> list[Case]:
        """Every case."""
        return [
            *(Case(name, Outcome.PASSED) for name in self.passed),
            *(Case(name, Outcome.FAILED, detail) for name, detail in self.failed.items()),
            *(Case(name, Outcome.SKIPPED, detail) for name, detail in self.skipped.items()),
        ]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many passed, failed and were skipped."""
        return len(self.passed), len(self.failed), len(self.skipped)

    def with_cases(self, cases: Sequence[Case]) -> "Run":
        """Return this run with *cases* as all it has."""

        def told(outcome: Outcome) -> dict[str, str]:
            return {case.name: case.detail for case in cases if case.outcome == outcome}

        return msgspec.structs.replace(
            self,
            passed=list(told(Outcome.PASSED)),
            skipped=told(Outcome.SKIPPED),
            failed=told(Outcome.FAILED),
        )


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All runs that are known: the latest of each kind, in the order of their kinds."""

    runs: list[Run] = []

    def replaced(self, run: Run) -> "Results":
        """Return these results with *run* instead of the last one of its kind."""
        others = [r for r in self.runs if r.kind != run.kind]
        return Results(sorted([*others, run], key=lambda r: r.kind))


def load(path: Path) -> Results:
    """Read results; none where there is no file."""
    if not path.exists():
        return Results()
    return msgspec.json.decode(path.read_bytes(), type=Results)


def save(path: Path, results: Results) -> None:
    """Write results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
