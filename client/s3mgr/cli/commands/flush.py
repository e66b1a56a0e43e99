"""``s3mgr flush``: have everything uploaded now."""

import click

from s3mgr.cli.context import Outcomes, attempting, common_options, make_client, say
from s3mgr.cli.exits import AlreadyReported, CommandFailed, ExitCode, combined
from s3mgr.cli.output import counted, human_size
from s3mgr.cli.parameters import DURATION, TARGET


@click.command(short_help="Upload what S3 does not have yet.")
@click.argument("targets", metavar="NAME|DIR...", nargs=-1, required=True, type=TARGET)
@click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default=300.0,
    help="Stop waiting after this; the upload goes on. Default: 5m.",
)
@common_options()
def command(*, targets: tuple[str, ...], timeout_s: float) -> None:
    """Upload what S3 does not have yet of the mounts NAME or DIR, and wait until it is there.

    Exits with 8 when some data is still not in S3.
    """
    from s3mgr.cli.commands.show import render_failed_uploads
    from s3mgr.cli.targets import require_mounts
    from s3mgr.cli.waiting import detaching

    with attempting("cannot flush"):
        client = make_client()
        mounts = require_mounts(client, targets)
    outcomes = Outcomes.of(len(mounts))
    for mount in mounts:
        name = mount.name
        with outcomes.collect(), attempting(f"cannot flush '{name}'"):
            with detaching(f"flushing '{name}'", f"s3mgr show {name}"):
                done = client.flush_mount(name, timeout_s=timeout_s)
            if not done.remaining_files and not done.remaining_bytes and not done.failed_uploads:
                say(
                    f"flushed '{name}': {counted(done.uploaded_files, 'file')} uploaded, everything is in S3"
                )
                continue
            if done.failed_uploads:
                click.echo(render_failed_uploads(done.failed_uploads), err=True, nl=False)
            raise CommandFailed(
                f"flushed '{name}' in part: S3 does not have {human_size(done.remaining_bytes)} in "
                f"{counted(done.remaining_files, 'file')} yet",
                hint=f"they are tried again by themselves; see s3mgr show {name}",
                code=ExitCode.PARTIAL,
            )
    code = combined(outcomes.codes, total=outcomes.total)
    if code is not ExitCode.OK:
        raise AlreadyReported(code)
