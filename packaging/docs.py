"""Write docs/cli.md, docs/options.md and docs/api.md from what the program says of itself.

Started by `packaging/docs`. The sources are `s3mgr.cli.reference`, `s3mgr.schema.option_docs`, `s3mgrd.config.config_docs`
and the routes and problems of `s3mgrd.api`; a test compares the checked-in files with them, so that a change of an
option is a change of its documentation.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from s3mgr.cli import reference
from s3mgr.cli.reference import CommandReference, OptionReference
from s3mgr.schema import ProblemType, option_docs
from s3mgr.schema.problems import URN
from s3mgrd.api.openapi import statuses_of
from s3mgrd.api.problems import ERRORS, STATUSES
from s3mgrd.api.resources import ROUTES
from s3mgrd.config import config_docs

CHECKOUT: Final = Path(__file__).resolve().parent.parent
KINDS: Final = (*ERRORS.values(), *STATUSES.values())
NOTE: Final = "<!-- Made by packaging/docs from the program itself; change it there. -->\n\n"


def cli_document() -> str:
    """Describe the command line."""
    program = reference()
    text = f"{NOTE}# The command line\n\n{program.description}\n\n"
    text += (
        "stdout carries data, stderr everything else. What `--json` writes is the API's schema and stable: fields "
        "are added, never renamed or removed. Errors are one line that says what could not be done and why, and a "
        "`hint:` line.\n\n"
    )
    text += table(
        ("Command", "Does"),
        [(f"[`{c.name}`](#{program.program}-{c.name})", c.summary) for c in program.commands],
    )
    for command in program.commands:
        text += command_section(program.program, command)
    text += "## Options of every command\n\n"
    text += "They may stand before or after the command's name.\n\n"
    text += options_table(program.common_options)
    text += "## Exit codes\n\n"
    text += table(("Code", "Means"), [(str(code), what) for code, what in program.exit_codes])
    text += "## Environment\n\n"
    text += table(("Variable", "Means"), [(f"`{name}`", what) for name, what in program.variables])
    return text.rstrip("\n") + "\n"


def command_section(program: str, command: CommandReference) -> str:
    """Describe one command."""
    text = f"## {program} {command.name}\n\n```\n{command.usage}\n```\n\n"
    if command.aliases:
        text += f"Also: {', '.join(f'`{program} {alias}`' for alias in command.aliases)}.\n\n"
    text += "".join(f"{plain(paragraph)}\n\n" for paragraph in command.description)
    return text + (options_table(command.options) if command.options else "")


def options_document() -> str:
    """Describe the mount options and the daemon's configuration."""
    text = (
        f"{NOTE}# Options\n\n## Of a mount\n\n"
        "Each is given as `-o name=value` to `s3mgr mount` or as a field of `spec.options` in the API. On the command "
        "line a boolean may stand alone (`-o read_only`; also `ro` and `rw`), sizes take `K`, `M`, `G` and `T`, `uid` "
        "and `gid` take names, several options are separated by commas, and a comma in a value is written `\\,`.\n\n"
        "*Live* options can be changed while the mount is up.\n\n"
    )
    rows = [
        (
            f"`{doc.name}`",
            doc.type.replace("|", ", "),
            f"`{doc.default}`" if doc.default else "",
            "yes" if doc.live else "",
            doc.description,
        )
        for doc in option_docs()
    ]
    text += table(("Option", "Type", "Default", "Live", "Meaning"), rows)
    text += (
        "## Of the daemon\n\n"
        "Keys of the TOML file; each is also an environment variable, and the paths and the log's also flags of `s3mgrd`. "
        "Flags win over the environment, the environment over the file. An unknown key is an error.\n\n"
    )
    keys = [
        (f"`{doc.name}`", doc.type, doc.default, f"`{doc.environment}`", doc.description)
        for doc in config_docs()
    ]
    text += table(("Key", "Type", "Default", "Variable", "Meaning"), keys)
    return text.rstrip("\n") + "\n"


def api_document() -> str:
    """Describe the HTTP API: what there is; the shapes are in the OpenAPI document that the daemon serves."""
    text = (
        f"{NOTE}# The HTTP API\n\n"
        "HTTP/1.1 and JSON on the daemon's unix socket. `GET /openapi.json` describes every request and answer:\n\n"
        "    curl --unix-socket /run/s3mgr/s3mgr.sock http://s3mgr/openapi.json\n\n"
        "Who asks is told by the kernel. root, the daemon's own user and members of its `admin_group` may do everything; "
        "others see what `list_visibility` allows and manage what they mounted themselves. Requests with unknown fields are "
        "refused; clients must ignore unknown fields of answers. Times are RFC 3339 UTC, durations end in `_s` (seconds), "
        "sizes in `_bytes`. Credentials are never given back.\n\n"
        "PUT, DELETE and restart wait up to `?wait_s=` (30) for the end of the work and answer 202 with the `Location` of an "
        "operation when it has not come by then, or at once with `Prefer: respond-async`. A client that goes away stops "
        "the waiting, not the work. `ETag` of a mount is the generation of its spec, for `If-Match` and `If-None-Match: *`.\n\n"
        "`GET /v1/mounts` gives the `cursor` from which `GET /v1/events?since=` goes on without a gap.\n\n"
        "## Routes\n\n"
    )
    text += table(
        ("Method and path", "Does"), [(f"`{r.method} {r.path}`", r.summary) for r in ROUTES]
    )
    text += (
        "## Problems\n\n"
        "Every answer that is not a success is `application/problem+json` (RFC 9457). `type` is "
        f"`{URN}<slug>`, `detail` says what happened, `hint` what to do, `errors` which fields are wrong, `instance` "
        "is the request's id in the daemon's log. Slugs are stable.\n\n"
    )
    rows = [
        (
            f"`{problem}`",
            ", ".join(str(status) for status in sorted(statuses_of(problem))),
            ", ".join(dict.fromkeys(kind.title for kind in KINDS if kind.type == problem)),
        )
        for problem in ProblemType
    ]
    text += table(("Slug", "Status", "Means"), rows)
    return text.rstrip("\n") + "\n"


def options_table(options: tuple[OptionReference, ...]) -> str:
    """Describe options of the command line."""
    return table(("Option", "Does"), [(f"`{o.declaration}`", o.help) for o in options])


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Write a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(escape(cell) for cell in line)} |\n" for line in lines) + "\n"


def escape(text: str) -> str:
    """Keep Markdown from reading a table's border or HTML into a cell; what is in backquotes is safe from the latter."""
    text = text.replace("|", "\\|")
    return text if text.startswith("`") else plain(text)


def plain(text: str) -> str:
    """Keep Markdown from reading HTML into *text*."""
    return text.replace("<", "&lt;")


DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "docs/cli.md": cli_document,
    "docs/options.md": options_document,
    "docs/api.md": api_document,
}


def main() -> int:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    stale = 0
    for name, make in DOCUMENTS.items():
        path, text = CHECKOUT / name, make()
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if check:
            print(f"{name} is not what the program says: run packaging/docs", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
