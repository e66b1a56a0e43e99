"""``s3mgr restart``: replace the worker of a mount without anyone noticing."""

import click

from s3mgr.cli.context import Outcomes, attempting, common_options, make_client, say
from s3mgr.cli.exits import AlreadyReported, ExitCode, combined
from s3mgr.cli.parameters import DURATION, TARGET


@click.command(short_help="Replace the worker of a mount; open files stay open.")
@click.argument("targets", metavar="NAME|DIR...", nargs=-1, required=True, type=TARGET)
@click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default=30.0,
    help="Stop waiting after this. Default: 30s.",
)
@common_options()
def command(*, targets: tuple[str, ...], timeout_s: float) -> None:
    """Replace the worker process of the mounts NAME or DIR; programs that use them only wait a moment."""
    from s3mgr.cli.targets import require_mounts
    from s3mgr.cli.waiting import FIRST_WAIT_S, detaching, wait_operation

    with attempting("cannot restart"):
        client = make_client()
        mounts = require_mounts(client, targets)
    outcomes = Outcomes.of(len(mounts))
    for mount in mounts:
        name, resume = mount.name, f"s3mgr show {mount.name}"
        with outcomes.collect(), attempting(f"cannot restart '{name}'"):
            with detaching(f"restarting '{name}'", resume):
                accepted = client.restart_mount(name, wait_s=FIRST_WAIT_S)
            if accepted.operation_id is not None:
                wait_operation(
                    client,
                    accepted.operation_id,
                    label=f"restarting '{name}'",
                    timeout_s=timeout_s,
                    resume=resume,
                )
            say(f"restarted the worker of '{name}'")
    code = combined(outcomes.codes, total=outcomes.total)
    if code is not ExitCode.OK:
        raise AlreadyReported(code)
