"""What a comparison found: kept in a file from one run to the next, and written as Markdown."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.bench.compare.workloads import Figure, Workload

OURS: Final = ("s3mgr", "s3mgr-writeback")
BEGIN: Final = "<!-- written by python -m tests.bench.compare: begin -->"
END: Final = "<!-- end -->"
NOTHING: Final = "-"
MOST_MIB: Final = 250
"""What all processes of one mount of ours may take together."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one peer did in one workload.

    Attributes:
        figures: by name.
        memory_mib: the most that all its processes took together.
        requests: what it asked of S3; None: nobody counted.
        error: why there are no figures.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    memory_mib: float = 0.0
    requests: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """All outcomes, by workload and peer. `facts`: what else a reader has to know, by what it is called."""

    facts: Mapping[str, str] = field(default_factory=dict)
    outcomes: Mapping[str, Mapping[str, Outcome]] = field(default_factory=dict)

    def with_outcome(self, workload: str, peer: str, outcome: Outcome) -> "Results":
        """Return these and one more, which takes the place of an earlier one."""
        row = {**self.outcomes.get(workload, {}), peer: outcome}
        return Results(self.facts, {**self.outcomes, workload: row})

    def save(self, path: Path) -> None:
        """Write them to a file."""
        path.write_text(json.dumps(asdict(self), indent=1))


def load(path: Path | None) -> Results:
    """Read what earlier runs have left; nothing, if there is no such file."""
    if path is None or not path.exists():
        return Results()
    read: dict[str, Any] = json.loads(path.read_text())
    outcomes = {
        workload: {peer: Outcome(**outcome) for peer, outcome in row.items()}
        for workload, row in read["outcomes"].items()
    }
    return Results(read["facts"], outcomes)


def best_rival(row: Mapping[str, Outcome], figure: Figure) -> tuple[str, float] | None:
    """Return which rival has the best of a figure, and it; None: there is none."""
    found = {
        peer: outcome.figures[figure.name]
        for peer, outcome in row.items()
        if peer not in OURS and figure.name in outcome.figures
    }
    if not found:
        return None
    peer = max(found, key=lambda peer: figure.ratio(found[peer], 1.0))
    return peer, found[peer]


def misses(results: Results, workloads: Iterable[Workload]) -> Iterator[str]:
    """Say which figures are not what they should be beside the best rival's."""
    for workload in workloads:
        row = results.outcomes.get(workload.name, {})
        for figure in workload.figures:
            best = best_rival(row, figure)
            goals = (figure.goal, figure.writeback_goal)
            for peer, goal in zip(OURS, goals, strict=True):
                value = row[peer].figures.get(figure.name) if peer in row else None
                if goal is None or best is None or value is None:
                    continue
                ratio = figure.ratio(value, best[1])
                if ratio < goal:
                    yield (
                        f"{workload.name}, {figure.title}: {peer} {ratio:.2f} of {best[0]}'s, "
                        f"wanted {goal:g}"
                    )
        for peer in OURS:
            if peer in row and row[peer].memory_mib >= MOST_MIB:
                yield f"{workload.name}: {peer} took {row[peer].memory_mib:.0f} MiB"
            if peer in row and row[peer].error:
                yield f"{workload.name}: {peer} failed: {row[peer].error}"


def render(results: Results, workloads: Sequence[Workload]) -> str:
    """Write the tables as Markdown."""
    rows = [(w, results.outcomes[w.name]) for w in workloads if w.name in results.outcomes]
    peers = list(dict.fromkeys(peer for _, row in rows for peer in row))
    peers.sort(key=lambda peer: OURS.index(peer) if peer in OURS else len(OURS))
    parts = [
        "; ".join(f"{name} {fact}" for name, fact in results.facts.items()) + ".",
        _table(
            ["figure", "unit", *peers, "ratio"],
            (line for workload, row in rows for line in _figures(workload, row, peers)),
        ),
        "*ratio*: how many times better than the best of the others s3mgr is, and with `write_mode=writeback` after the stroke. "
        "Bold is the best of all.",
        _table(
            ["memory of all processes together at most, MiB", *peers],
            ([w.name, *(_memory(row.get(peer)) for peer in peers)] for w, row in rows),
        ),
        _table(
            ["requests to S3", *peers],
            ([w.name, *(_requests(row.get(peer)) for peer in peers)] for w, row in rows),
        ),
    ]
    failed = [
        f"- {w.name}, {peer}: {outcome.error}"
        for w, row in rows
        for peer, outcome in row.items()
        if outcome.error
    ]
    if failed:
        parts += ["What has no figure failed:", "\n".join(failed)]
    return "\n\n".join(parts)


def put_into(page: Path, text: str) -> None:
    """Replace what lies between the marks of a page.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no marks to write between")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _figures(
    workload: Workload, row: Mapping[str, Outcome], peers: Sequence[str]
) -> Iterator[list[str]]:
    for figure in workload.figures:
        values = {
            peer: row[peer].figures[figure.name]
            for peer in peers
            if peer in row and figure.name in row[peer].figures
        }
        most = max((figure.ratio(value, 1.0) for value in values.values()), default=0.0)
        cells = [
            _bold(number(values[peer]), when=figure.ratio(values[peer], 1.0) >= most)
            if peer in values
            else NOTHING
            for peer in peers
        ]
        best = best_rival(row, figure)
        ratios = [
            f"{figure.ratio(values[peer], best[1]):.2f}"
            for peer in OURS
            if best is not None and peer in values and figure.unit != "files"
        ]
        yield [
            f"{workload.name}: {figure.title}",
            figure.unit,
            *cells,
            " / ".join(ratios) or NOTHING,
        ]


def number(value: float) -> str:
    """Write a number with what can be believed of it."""
    if value == 0 or value >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f}"


def _bold(text: str, *, when: bool) -> str:
    return f"**{text}**" if when else text


def _memory(outcome: Outcome | None) -> str:
    return f"{outcome.memory_mib:,.0f}" if outcome is not None and outcome.memory_mib else NOTHING


def _requests(outcome: Outcome | None) -> str:
    if outcome is None or outcome.requests is None or outcome.error:
        return NOTHING
    return f"{outcome.requests:,}"
