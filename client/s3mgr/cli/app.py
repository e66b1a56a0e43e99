"""The command ``s3mgr``: finding commands, running one, and turning every failure into text and an exit code."""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import IO, Final

import click

from s3mgr import __version__
from s3mgr.cli.context import Settings, common_options, report
from s3mgr.cli.exits import AlreadyReported, CommandFailed, ExitCode, clause, describe, exit_code
from s3mgr.errors import ClientError

PROGRAM: Final = "s3mgr"

# In the order of the help text; one module each in s3mgr.cli.commands.
COMMANDS: Final = (
    "mount",
    "unmount",
    "ls",
    "show",
    "stats",
    "cache",
    "conflicts",
    "queue",
    "restore",
    "flush",
    "invalidate",
    "restart",
    "events",
    "logs",
    "version",
    "completion",
)
ALIASES: Final = {"umount": "unmount"}


class _Interrupted(Exception):
    """Ctrl-C; stands in for KeyboardInterrupt, which click would swallow."""


class _StdoutFailed(Exception):
    """stdout cannot take more; stands in for the OSError, which click would swallow."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help text, without aliases."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name* and return its command."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"s3mgr.cli.commands.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name the nearest one when there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            nearest = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
            meant = f"; did you mean '{nearest[0]}'?" if nearest else ""
            raise click.UsageError(f"there is no command '{name}'{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, keeping from click what it would handle in its own way."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            raise _Interrupted from exc
        except BrokenPipeError as exc:
            raise _StdoutFailed from exc


@click.group(
    cls=LazyGroup,
    name=PROGRAM,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
@common_options()
def cli() -> None:
    """Mount S3 buckets as local file systems, through the daemon s3mgrd."""


def main(args: Sequence[str] | None = None) -> int:
    """Run ``s3mgr`` and return its exit code.

    Args:
        args: the arguments; None: those of the process.
    """
    _prepare_streams()
    settings = Settings()
    try:
        code = _run(list(sys.argv[1:] if args is None else args), settings)
        _flush(sys.stdout)
    except _StdoutFailed as exc:
        code = _stdout_failed(exc.__cause__)
    except OSError as exc:
        if exc.filename is None:  # writing to stdout; what commands do to files has a name
            code = _stdout_failed(exc)
        else:
            _trace(settings, exc)
            report(f"{exc.filename}: {exc.strerror}", color=settings.color)
            code = ExitCode.FAILURE
    return int(code)


def _run(args: list[str], settings: Settings) -> ExitCode:
    try:
        result = cli.main(args, prog_name=PROGRAM, standalone_mode=False, obj=settings)
        return ExitCode(result) if isinstance(result, int) else ExitCode.OK
    except (_Interrupted, click.Abort, KeyboardInterrupt):
        _newline_after_caret()
        return ExitCode.INTERRUPTED
    except AlreadyReported as exc:
        return exc.code
    except CommandFailed as exc:
        _trace(settings, exc)
        report(exc.message, exc.hint, color=settings.color)
        return exc.code
    except ClientError as exc:
        _trace(settings, exc)
        detail, hint = describe(exc)
        report(detail, hint, color=settings.color)
        return exit_code(exc)
    except click.UsageError as exc:
        # Older versions of click write the help themselves.
        if isinstance(exc, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            click.echo(exc.format_message(), err=True)
            return ExitCode.USAGE
        path = exc.ctx.command_path if exc.ctx is not None else PROGRAM
        report(clause(exc.format_message()), f"see {path} --help", color=settings.color)
        return exit_code(exc)
    except click.ClickException as exc:
        report(clause(exc.format_message()), color=settings.color)
        return exit_code(exc)


def _trace(settings: Settings, exc: BaseException) -> None:
    if settings.debug:
        traceback.print_exception(exc)


def _newline_after_caret() -> None:
    with contextlib.suppress(OSError):
        if sys.stderr is not None and sys.stderr.isatty():
            click.echo("", err=True)


def _prepare_streams() -> None:
    """Let output fail where it must (a closed stdout) and only there (a terminal without some character)."""
    if sys.stdout is None:
        # Started with >&-. A descriptor that refuses writing makes data that is lost an error, as for any other tool.
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115  lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _flush(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.flush()


def _stdout_failed(exc: BaseException | None) -> ExitCode:
    """Say that the output is incomplete, unless its reader simply left (``s3mgr ls | head -1``)."""
    with contextlib.suppress(OSError):
        # What is still buffered would fail again, with a traceback, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(exc, BrokenPipeError):
        return ExitCode.PIPE_CLOSED
    report(f"cannot write to standard output: {getattr(exc, 'strerror', None) or exc}")
    return ExitCode.FAILURE
