"""Writes docs/conformance.md out of results: counts side by side, every case that does not pass with the reason, and when it was seen."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tests.conformance.expected import Expectations
from tests.conformance.results import TOOLS, Results, Run

OWN: Final = "s3mgr"
COUNTED: Final = ("pjdfstest", "stress-ng")
"""Tools with many cases; the others have one, whose name says how much was done."""
HEAD: Final = """\
# Conformance

Written by `./packaging/conformance` from [conformance.json](conformance.json), which has every case; do not edit. Test
suites of others, run as root on real mounts with `attributes=full`, on two S3 servers, and the same way on other S3 file
systems:

- **pjdfstest**: what POSIX says of each call that changes names, attributes and sizes.
- **fsx**: random operations on one file, every byte compared: with mappings (*mmap*); with O_DIRECT (*direct*); and with
  msync, fsync and reopening all the time (*synced*).
- **stress-ng**: its stressors of files and directories, one after another, each with `--verify`.
- **dbench**: the load of a file server.

What s3mgr is expected not to pass stands in `tests/conformance/expected.toml` with its reason. Anything else that
fails, and anything there that passes, makes the command fail. A step that does not end in time is killed and has *hung*;
where the mount does not answer after it, or died, what would have come next was not run.

A subset that needs nothing to be built, and less than two minutes, is in `./packaging/test`: tables of calls, attributes and
errno (`tests/e2e/test_posix_*.py`), random operations on one file (`test_random_file.py`), stress-ng and dbench (`test_stress.py`).
"""


def render(results: Results, expectations: Expectations) -> str:
    """Return the page."""
    runs = results.runs
    parts = [HEAD, "## Side by side\n", _table(runs), *_endings(runs)]
    parts += ["## s3mgr\n", *_own(runs, expectations)]
    rivals = [run for run in runs if run.peer != OWN]
    if rivals:
        parts += ["## What the others do not pass\n", *_others(rivals)]
    parts += ["## When, and with what\n", _days(runs)]
    return "\n".join(parts).rstrip() + "\n"


def _table(runs: Sequence[Run]) -> str:
    columns = sorted({run.peer for run in runs}, key=lambda peer: (peer != OWN, peer))
    heads = [f"{peer} {_span(r.version for r in runs if r.peer == peer)}" for peer in columns]
    rows = [
        (
            f"{tool}, {server}",
            *(_cell(runs, (peer, server, tool)) for peer in columns),
        )
        for tool in TOOLS
        for server in sorted({run.server for run in runs if run.tool == tool})
    ]
    days = [_span(r.day for r in runs if r.peer == peer) for peer in columns]
    return _markdown(("passed / failed / skipped", *heads), [*rows, ("seen", *days)])


def _span(values: Iterator[str]) -> str:
    found = sorted(set(values))
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _cell(runs: Sequence[Run], kind: tuple[str, str, str]) -> str:
    run = next((run for run in runs if run.kind == kind), None)
    if run is None:
        return "not run"
    if run.tool in COUNTED:
        text = " / ".join(str(count) for count in run.counts)
    else:
        text = ", ".join(f"{case.name} {case.outcome}" for case in run.cases)
    return f"{text}, **{_word(run)}**".removeprefix(", ") if run.ended else text


def _word(run: Run) -> str:
    assert run.ended
    return f"hung after {run.ended.hung_s:,} s" if run.ended.hung_s else "died"


def _endings(runs: Sequence[Run]) -> Iterator[str]:
    ended = [
        f"- {run.peer}, {run.tool}, {run.server}: {_word(run)}, {run.ended.reason}"
        for run in runs
        if run.ended
    ]
    if ended:
        yield "Ended on the way:\n"
        yield "\n".join(ended) + "\n"


def _own(runs: Sequence[Run], expectations: Expectations) -> Iterator[str]:
    own = [run for run in runs if run.peer == OWN]
    for rule in expectations.rule:
        names = sorted(
            {c.name for r in own if r.tool == rule.tool for c in r.cases if rule.covers(c.name)}
        )
        if names:
            yield f"{len(names)} of {rule.tool}, {rule.outcome}. {rule.reason}\n"
            yield _details(dict.fromkeys(names, ""))
    surprises = [f"- {run.server}: {text}" for run in own for text in expectations.surprises(run)]
    if surprises:
        yield "**Not expected:**\n"
        yield "\n".join(surprises) + "\n"


def _others(runs: Sequence[Run]) -> Iterator[str]:
    for peer in sorted({run.peer for run in runs}):
        yield f"### {peer}\n"
        for tool in TOOLS:
            failed: dict[str, str] = {}
            for run in runs:
                if (run.peer, run.tool) == (peer, tool):
                    failed = {**run.failed, **failed}
            if failed:
                yield f"{len(failed)} of {tool}\n"
                yield _details(failed)


def _details(cases: Mapping[str, str]) -> str:
    listed = "\n".join(
        f"- `{name}`" + (f": {_plain(cases[name])}" if cases[name] else "")
        for name in sorted(cases)
    )
    return f"<details><summary>which</summary>\n\n{listed}\n\n</details>\n"


def _plain(text: str) -> str:
    """Keep Markdown from reading a tool's words."""
    return "".join(f"\\{c}" if c in "\\`*_<>[]|~" else c for c in text)


def _days(runs: Sequence[Run]) -> str:
    return _markdown(
        ("file system", "tool", "server", "Linux", "day", "took"),
        [
            (
                f"{run.peer} {run.version}",
                f"{run.tool} {run.tool_version}",
                run.server,
                run.kernel,
                run.day,
                f"{run.seconds:,} s",
            )
            for run in sorted(
                runs, key=lambda r: (r.peer != OWN, r.peer, TOOLS.index(r.tool), r.server)
            )
        ],
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
