"""What a run of a tool says: cases with outcomes, kept as JSON between runs."""

from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

Tool = str
TOOLS: Final = ("pjdfstest", "fsx", "stress-ng", "dbench")


class Outcome(StrEnum):
    """How one case ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One test of a tool: its name, how it ended, and what the tool said to that."""

    name: str
    outcome: Outcome
    detail: str = ""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tool, run on one file system over one server.

    Attributes:
        died: where the run ended before its end because the file system or the tool did; empty: it did not.
        version: of the file system.
    """

    peer: str
    server: str
    tool: Tool
    version: str
    seconds: float
    cases: list[Case]
    died: str = ""

    def count(self, outcome: Outcome) -> int:
        """Count the cases that ended like that."""
        return sum(case.outcome == outcome for case in self.cases)


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All runs that are known, the latest of each kind, and what they ran on and with."""

    platform: dict[str, str] = {}
    runs: list[Run] = []

    def replaced(self, run: Run) -> "Results":
        """Return these results with *run* instead of the last one of its kind."""
        kind = (run.peer, run.server, run.tool)
        others = [r for r in self.runs if (r.peer, r.server, r.tool) != kind]
        return Results(self.platform, [*others, run])


def load(path: Path) -> Results:
    """Read results; none where there is no file."""
    if not path.exists():
        return Results()
    return msgspec.json.decode(path.read_bytes(), type=Results)


def save(path: Path, results: Results) -> None:
    """Write results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
