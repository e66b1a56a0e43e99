"""The command line as data, for whoever writes documentation: man pages, Markdown, completion of other shells."""

from dataclasses import dataclass
from typing import Final

import click

from s3mgr.cli.app import ALIASES, PROGRAM, cli
from s3mgr.cli.exits import MEANINGS

VARIABLES: Final = (
    ("S3MGR_HOST", "Address of the daemon; --host overrides it."),
    ("AWS_ACCESS_KEY_ID", "Access key that mount sends with its request."),
    ("AWS_SECRET_ACCESS_KEY", "Its secret."),
    ("AWS_SESSION_TOKEN", "Its session token, for temporary keys."),
    ("AWS_REGION", "Region, where --region is not given; AWS_DEFAULT_REGION is the second choice."),
    (
        "AWS_ENDPOINT_URL_S3",
        "Endpoint, where --endpoint is not given; AWS_ENDPOINT_URL is the second choice.",
    ),
    ("NO_COLOR", "If set and not empty: no colour, unless --color asks for it."),
    ("XDG_RUNTIME_DIR", "Where the socket of a user's own daemon is: s3mgr/s3mgr.sock below it."),
)


@dataclass(frozen=True, slots=True)
class OptionReference:
    """One option: how it is written (``-o, --option VALUE``) and what it does."""

    declaration: str
    help: str


@dataclass(frozen=True, slots=True)
class CommandReference:
    """One command. `description` is paragraphs of plain text."""

    name: str
    aliases: tuple[str, ...]
    usage: str
    summary: str
    description: tuple[str, ...]
    options: tuple[OptionReference, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Everything: commands, the options they share, exit codes and variables with their meanings."""

    program: str
    description: str
    common_options: tuple[OptionReference, ...]
    commands: tuple[CommandReference, ...]
    exit_codes: tuple[tuple[int, str], ...]
    variables: tuple[tuple[str, str], ...]


def build_reference() -> Reference:
    """Describe the program as it is."""
    context = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    common = _options(cli, context)
    commands = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is None:
            raise LookupError(f"the command {name} is listed but missing")
        inner = click.Context(command, info_name=name, parent=context)
        commands.append(
            CommandReference(
                name=name,
                aliases=tuple(alias for alias, meant in ALIASES.items() if meant == name),
                usage=" ".join([PROGRAM, name, *command.collect_usage_pieces(inner)]),
                summary=command.get_short_help_str(200),
                description=_paragraphs(command.help or ""),
                options=tuple(o for o in _options(command, inner) if o not in common),
            )
        )
    return Reference(
        program=PROGRAM,
        description=" ".join((cli.help or "").split()),
        common_options=common,
        commands=tuple(commands),
        exit_codes=tuple((int(code), meaning) for code, meaning in MEANINGS.items()),
        variables=VARIABLES,
    )


def _options(command: click.Command, context: click.Context) -> tuple[OptionReference, ...]:
    records = (
        parameter.get_help_record(context)
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
    )
    return tuple(
        OptionReference(declaration, " ".join(text.split()))
        for declaration, text in (record for record in records if record is not None)
    )


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
