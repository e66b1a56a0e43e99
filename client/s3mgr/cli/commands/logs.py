"""``s3mgr logs``: the log of a mount's worker."""

import sys
import time
from typing import Final

import click

from s3mgr.cli.context import attempting, common_options, make_client
from s3mgr.cli.output import printable
from s3mgr.cli.parameters import TARGET

# Soon enough for a person, cheap enough for the daemon.
POLL_S: Final = 0.5
# What the API gives at most in one answer.
MOST_LINES: Final = 10_000


@click.command(short_help="Show the log of a mount's worker.")
@click.argument("target", metavar="NAME|DIR", type=TARGET)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0, max=MOST_LINES),
    default=100,
    metavar="N",
    help="Show the last N lines. Default: 100.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@common_options()
def command(*, target: str, lines: int, follow: bool) -> None:
    """Show the log of the worker of the mount NAME or DIR.

    With the mount's option debug it has every file system operation and every S3 request.
    """
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot show the log of '{target}'"):
        client = make_client()
        name = require_mount(client, target).name
        tail = client.mount_logs(name, lines=lines)
        while True:
            for line in tail.lines:
                click.echo(printable(line))
            if not follow:
                return
            sys.stdout.flush()
            if len(tail.lines) < MOST_LINES:
                time.sleep(POLL_S)
            tail = client.mount_logs(name, lines=MOST_LINES, offset=tail.offset)
