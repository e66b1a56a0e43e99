"""Write docs/cli.md and docs/options.md from what the program says of itself.

Started by `packaging/docs`. The sources are `s3mgr.cli.reference` and `s3mgr.schema.option_docs`; a test compares the
checked-in files with them, so that a change of an option is a change of its documentation.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from s3mgr.cli import reference
from s3mgr.cli.reference import CommandReference, OptionReference
from s3mgr.schema import option_docs

CHECKOUT: Final = Path(__file__).resolve().parent.parent
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
    """Describe the mount options."""
    text = (
        f"{NOTE}# Mount options\n\n"
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
    return text + table(("Option", "Type", "Default", "Live", "Meaning"), rows).rstrip("\n") + "\n"


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
