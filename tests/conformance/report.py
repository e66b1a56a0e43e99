"""Writes docs/conformance.md out of results: counts side by side, and for s3mgr every case that does not pass, with its reason."""

from collections.abc import Iterator, Sequence
from typing import Final

from tests.conformance.expected import Expectations
from tests.conformance.results import TOOLS, Outcome, Results, Run

OWN: Final = "s3mgr"
HEAD: Final = """\
# Conformance

Written by `./packaging/conformance`; do not edit. Test suites of others, run as root on real mounts with
`attributes=full`, on two S3 servers, and the same way on other S3 file systems where they are installed:

- **pjdfstest**: what POSIX says of each call that changes names, attributes and sizes.
- **fsx**: random operations on one file, every byte compared: with mappings; with O_DIRECT; and with msync, fsync and
  reopening all the time.
- **stress-ng**: its stressors of files and directories, one after another, each with `--verify`.
- **dbench**: the load of a file server.

What s3mgr is expected not to pass stands in `tests/conformance/expected.toml` with its reason. Anything else that
fails, and anything there that passes, makes the command fail.
"""


def render(results: Results, expectations: Expectations) -> str:
    """Return the page."""
    versions = ", ".join(f"{name} {version}" for name, version in results.platform.items())
    parts = [HEAD, f"Run with {versions}.\n", "## Side by side\n", _table(results.runs)]
    parts += _deaths(results.runs)
    parts += ["## s3mgr\n", *_own(results.runs, expectations)]
    rivals = [run for run in results.runs if run.peer != OWN]
    if rivals:
        parts += ["## What the others do not pass\n", *_others(rivals)]
    return "\n".join(parts).rstrip() + "\n"


def _table(runs: Sequence[Run]) -> str:
    peers = {run.peer: run.version for run in runs}
    columns = sorted(peers, key=lambda peer: (peer != OWN, peer))
    lines = [
        "| passed / failed / skipped | " + " | ".join(f"{p} {peers[p]}" for p in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for tool in TOOLS:
        for server in sorted({run.server for run in runs if run.tool == tool}):
            found = {r.peer: r for r in runs if (r.tool, r.server) == (tool, server)}
            cells = " | ".join(_cell(found.get(peer)) for peer in columns)
            lines.append(f"| {tool}, {server} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(run: Run | None) -> str:
    if run is None:
        return "not run"
    counts = " / ".join(
        str(run.count(outcome)) for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)
    )
    return f"{counts}, **died**" if run.died else counts


def _deaths(runs: Sequence[Run]) -> Iterator[str]:
    dead = [run for run in runs if run.died]
    if dead:
        yield "Died on the way:\n"
        for run in sorted(dead, key=lambda r: (r.peer, r.tool, r.server)):
            yield f"- {run.peer}, {run.tool}, {run.server}: {run.died}"
        yield ""


def _own(runs: Sequence[Run], expectations: Expectations) -> Iterator[str]:
    own = [run for run in runs if run.peer == OWN]
    for rule in expectations.rule:
        names = sorted(
            {c.name for r in own if r.tool == rule.tool for c in r.cases if rule.covers(c.name)}
        )
        if names:
            yield f"{len(names)} of {rule.tool}, {rule.outcome}. {rule.reason}\n"
            yield _details(names)
    loads = [
        f"{run.tool} over {run.server}: {'; '.join(case.name for case in run.cases)}"
        for run in sorted(own, key=lambda run: (run.tool, run.server))
        if run.tool in ("fsx", "dbench")
    ]
    if loads:
        yield "How much was run:\n"
        yield from (f"- {load}" for load in loads)
        yield ""
    surprises = [(run, text) for run in own for text in expectations.surprises(run)]
    if surprises:
        yield "**Not expected:**\n"
        for run, text in surprises:
            yield f"- {run.server}: {text}"
        yield ""


def _others(runs: Sequence[Run]) -> Iterator[str]:
    for peer in sorted({run.peer for run in runs}):
        yield f"### {peer}\n"
        for tool in TOOLS:
            names = sorted(
                {
                    case.name
                    for run in runs
                    if (run.peer, run.tool) == (peer, tool)
                    for case in run.cases
                    if case.outcome == Outcome.FAILED
                }
            )
            if names:
                yield f"{len(names)} of {tool}\n"
                yield _details(names)


def _details(names: Sequence[str]) -> str:
    listed = "\n".join(f"- `{name}`" for name in names)
    return f"<details><summary>which</summary>\n\n{listed}\n\n</details>\n"
