"""``s3mgr completion``: the shell code that completes commands, options and mounts."""

import click
from click.shell_completion import get_completion_class

from s3mgr.cli.context import common_options
from s3mgr.cli.exits import CommandFailed

PROGRAM = "s3mgr"
VARIABLE = "_S3MGR_COMPLETE"


@click.command(short_help="Write shell code for completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options()
def command(*, shell: str) -> None:
    """Write the code that lets SHELL complete commands, options and the names of mounts.

    bash: source <(s3mgr completion bash); zsh: the same in ~/.zshrc, after compinit; fish: s3mgr completion fish |
    source.
    """
    from s3mgr.cli.app import cli

    class_ = get_completion_class(shell)
    if class_ is None:
        raise CommandFailed(f"this click cannot complete for {shell}")
    # Not source(): for bash it runs the bash of this machine, which need not be the one the code is for.
    instance = class_(cli, {}, PROGRAM, VARIABLE)
    click.echo(instance.source_template % instance.source_vars())
