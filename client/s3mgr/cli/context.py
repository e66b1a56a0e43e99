"""What every command shares: the common options, the client, talk on stderr, and naming failures."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from s3mgr.cli.exits import CommandFailed, ExitCode, describe, exit_code
from s3mgr.cli.output import ColorChoice, printable, use_color
from s3mgr.errors import ClientError

if TYPE_CHECKING:
    from s3mgr.api import Client

F = TypeVar("F", bound=Callable[..., Any])  # Any: click calls it with whatever options it declares


@dataclass
class Settings:
    """The common options, given before or after the command's name."""

    host: str | None = None
    color: ColorChoice = "auto"
    quiet: bool = False
    verbose: bool = False
    debug: bool = False


def settings() -> Settings:
    """Return the settings of the command that runs."""
    return click.get_current_context().ensure_object(Settings)


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    # An option that was not given here must not hide what was given before the command's name.
    if value and param.name is not None:
        setattr(ctx.ensure_object(Settings), param.name, value)


_HOST = click.option(
    "--host",
    metavar="URL",
    expose_value=False,
    callback=_remember,
    is_eager=True,
    help="Address of the daemon, unix:///path. Default: S3MGR_HOST; for root the system's daemon; "
    "for others their own daemon if it runs, else the system's.",
)
_COLOR = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    expose_value=False,
    callback=_remember,
    help="Colour of the output; auto asks NO_COLOR and whether it is a terminal.",
)
_QUIET = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Say nothing but errors and data.",
)
_VERBOSE = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Say more, e.g. each request to the daemon.",
)
_DEBUG = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Show where in the program an error arose.",
)


def common_options(*, quiet: bool = True, debug: bool = True) -> Callable[[F], F]:
    """Add the common options to a command; leave out those to which it gives a meaning of its own."""

    def decorate(function: F) -> F:
        chosen = [_HOST, _COLOR, _VERBOSE]
        chosen += [_QUIET] if quiet else []
        chosen += [_DEBUG] if debug else []
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


def make_client(*, timeout_s: float = 30.0, traced: bool = True) -> "Client":
    """Make the client that the common options name; *traced*: ``--verbose`` shows its requests."""
    from s3mgr.api import Client

    chosen = settings()
    return Client.connect(
        chosen.host, timeout_s=timeout_s, trace=debug_note if chosen.verbose and traced else None
    )


def say(text: str) -> None:
    """Tell the user something that is not data; silent with ``--quiet``."""
    if not settings().quiet:
        click.echo(printable(text), err=True)


def warn(text: str) -> None:
    """Tell the user something that may be wrong; also with ``--quiet``."""
    click.echo(f"s3mgr: warning: {printable(text)}", err=True)


def debug_note(text: str) -> None:
    """Tell a curious user what happens inside."""
    click.echo(f"s3mgr: {printable(text)}", err=True)


def colored_stdout() -> bool:
    """Tell whether data on stdout is coloured."""
    return use_color(settings().color, sys.stdout)


@contextmanager
def attempting(action: str) -> Iterator[None]:
    """Name what could not be done when it fails: ``cannot mount 'logs'``."""
    try:
        yield
    except ClientError as exc:
        detail, hint = describe(exc)
        raise CommandFailed(f"{action}: {detail}", hint=hint, code=exit_code(exc)) from exc


def report(message: str, hint: str = "", *, color: ColorChoice | None = None) -> None:
    """Write an error as every error looks: one line, and a hint line."""
    painted = use_color(color or "auto", sys.stderr)
    prefix = click.style("s3mgr:", fg="red", bold=True) if painted else "s3mgr:"
    click.echo(f"{prefix} {printable(message)}", err=True, color=painted)
    if hint:
        label = click.style("hint:", fg="cyan") if painted else "hint:"
        click.echo(f"{label} {printable(hint)}", err=True, color=painted)


@dataclass
class Outcomes:
    """Results of one command on several mounts; a failure does not stop the others."""

    total: int
    codes: list[ExitCode]

    @classmethod
    def of(cls, total: int) -> "Outcomes":
        """Expect *total* results."""
        return cls(total, [])

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Report a failure of one mount and go on."""
        try:
            yield
        except CommandFailed as exc:
            report(exc.message, exc.hint, color=settings().color)
            self.codes.append(exc.code)
        else:
            self.codes.append(ExitCode.OK)
