"""``s3mgr unmount``: drain, unmount and forget."""

import os
import sys
from typing import TYPE_CHECKING, Final

import click

from s3mgr.cli.context import Outcomes, attempting, common_options, make_client, report, say
from s3mgr.cli.exits import AlreadyReported, CommandFailed, ExitCode, combined
from s3mgr.cli.output import counted, human_size, is_terminal, printable
from s3mgr.cli.parameters import DURATION, TARGET
from s3mgr.errors import InvalidRequest, ProblemError

if TYPE_CHECKING:
    from s3mgr.api import Client, UnmountMode
    from s3mgr.schema import Mount, Operation

# The daemon gives up draining at the deadline and then still has to unmount; it should be the one to say how it ended.
GRACE_S: Final = 15.0


@click.command(short_help="Upload what is left, unmount and forget.")
@click.argument("targets", metavar="[NAME|DIR]...", nargs=-1, type=TARGET)
@click.option("--all", "every", is_flag=True, help="All mounts that you may manage.")
@click.option(
    "--lazy",
    is_flag=True,
    help="Take the tree away at once, also while programs use it, and upload behind it.",
)
@click.option(
    "--discard",
    is_flag=True,
    help="Throw away what S3 does not have yet. Asks first; without a terminal it needs --yes.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--ignore-missing", is_flag=True, help="What is not mounted is a success.")
@click.option("--keep", is_flag=True, help="Keep the definition, so that it can be mounted again.")
@click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default=300.0,
    help="Give up uploading after this; what is left stays in the journal. Default: 5m.",
)
@common_options()
def command(
    *,
    targets: tuple[str, ...],
    every: bool,
    lazy: bool,
    discard: bool,
    yes: bool,
    ignore_missing: bool,
    keep: bool,
    timeout_s: float,
) -> None:
    """Unmount the mounts NAME or DIR once everything is in S3, and forget them.

    Ctrl-C stops the waiting, not the work. Data that cannot be uploaded in time stays in the mount's journal, and the
    next mount of that name uploads it (exit code 8).
    """
    if every == bool(targets):
        raise click.UsageError("give either NAME|DIR or --all")
    if lazy and discard:
        raise click.UsageError("--lazy and --discard exclude each other")
    mode: UnmountMode = "lazy" if lazy else "discard" if discard else "clean"
    with attempting("cannot unmount"):
        client = make_client()
        known = client.list_mounts().items
    chosen, missing = (known, []) if every else _choose(known, targets)
    if discard and chosen:
        _confirm_discard(chosen, yes=yes)

    outcomes = Outcomes.of(len(chosen) + len(missing))
    for target in missing:
        if ignore_missing:
            say(f"'{target}' is not mounted")
            outcomes.codes.append(ExitCode.OK)
        else:
            _report_missing(target)
            outcomes.codes.append(ExitCode.NOT_FOUND)
    for mount in chosen:
        with outcomes.collect():
            try:
                _unmount(client, mount, mode=mode, keep=keep, timeout_s=timeout_s)
            except CommandFailed as exc:
                if not (every and exc.code is ExitCode.PERMISSION and not _is_mine(mount)):
                    raise
                say(f"'{mount.name}' belongs to another user and stays")
    if every and not chosen:
        say("nothing is mounted")
    code = combined(outcomes.codes, total=outcomes.total)
    if code is not ExitCode.OK:
        raise AlreadyReported(code)


def _is_mine(mount: "Mount") -> bool:
    return mount.owner_uid == os.geteuid()


def _choose(known: "list[Mount]", targets: tuple[str, ...]) -> "tuple[list[Mount], list[str]]":
    from s3mgr.cli.targets import find_mount

    chosen: dict[str, Mount] = {}
    missing = []
    for target in targets:
        mount = find_mount(target, known)
        if mount is None:
            missing.append(target)
        else:
            chosen[mount.name] = mount
    return list(chosen.values()), missing


def _report_missing(target: str) -> None:
    from s3mgr.cli.targets import unknown_mount

    error = unknown_mount(target)
    report(f"cannot unmount '{target}': {error.message}", error.hint)


def _confirm_discard(mounts: "list[Mount]", *, yes: bool) -> None:
    """Have the loss of data confirmed.

    Raises:
        InvalidRequest: nobody can be asked, and ``--yes`` is missing.
        click.Abort: the answer is not yes.
    """
    if yes:
        return
    if not is_terminal(sys.stdin) or not is_terminal(sys.stderr):
        raise InvalidRequest(
            "--discard throws away data, and nobody can be asked", hint="add --yes if that is meant"
        )
    for mount in mounts:
        size, files = mount.status.dirty_bytes, mount.status.dirty_files
        text = (
            f"'{mount.name}': S3 does not have {human_size(size)} in {counted(files, 'file')} yet"
        )
        if conflicts := mount.status.conflicts:
            copies = "1 conflict copy" if conflicts == 1 else f"{conflicts} conflict copies"
            text += f", and there are {human_size(mount.status.conflict_bytes)} in {copies}"
        click.echo(printable(text), err=True)
    click.confirm("Throw that away, and whatever is written meanwhile?", abort=True, err=True)


def _unmount(
    client: "Client", mount: "Mount", *, mode: "UnmountMode", keep: bool, timeout_s: float
) -> None:
    from s3mgr.cli.waiting import FIRST_WAIT_S, detaching, wait_operation

    name = mount.name
    label = f"unmounting '{name}'" if mode == "discard" else f"draining '{name}'"
    resume = f"s3mgr show {name}"
    operation = None
    with attempting(f"cannot unmount '{name}'"):
        try:
            with detaching(label, resume):
                accepted = client.delete_mount(
                    name, mode=mode, timeout_s=timeout_s, keep=keep, wait_s=FIRST_WAIT_S
                )
            if accepted.operation_id is not None:
                operation = wait_operation(
                    client,
                    accepted.operation_id,
                    label=label,
                    timeout_s=timeout_s + GRACE_S,
                    resume=resume,
                )
        except ProblemError as exc:
            if exc.problem.slug != "dirty-data":
                raise
            raise _left_behind(client, mount, exc) from exc
    _tell(client, mount, operation, mode=mode, keep=keep)


def _left_behind(client: "Client", mount: "Mount", exc: ProblemError) -> CommandFailed:
    """Say what is not in S3 although the mount is gone."""
    from s3mgr.cli.commands.show import render_failed_uploads

    try:
        status = client.get_mount(mount.name).status
    except ProblemError:  # forgotten meanwhile: what the daemon said must do
        status = None
    left = exc.detail
    if status is not None and (status.dirty_files or status.pending_operations):
        parts = []
        if status.dirty_files:
            size, files = human_size(status.dirty_bytes), counted(status.dirty_files, "file")
            parts.append(f"{size} in {files}")
        if status.pending_operations:
            changes = counted(status.pending_operations, "change")
            parts.append(f"{changes} of names and attributes")
        left = f"S3 does not have {' and '.join(parts)}; it stays in the journal"
        if status.failed_uploads:
            click.echo(render_failed_uploads(status.failed_uploads), err=True, nl=False)
    return CommandFailed(
        f"'{mount.name}' is unmounted from {mount.spec.mountpoint}, but {left}",
        hint=exc.hint or f"mount it again to upload them, or s3mgr unmount --discard {mount.name}",
        code=ExitCode.PARTIAL,
    )


def _conflicts_kept(client: "Client", name: str) -> int:
    """Count the conflict copies that keep a mount's definition although it is unmounted."""
    try:
        return client.get_mount(name).status.conflicts
    except ProblemError:  # forgotten, as it should be
        return 0


def _tell(
    client: "Client",
    mount: "Mount",
    operation: "Operation | None",
    *,
    mode: "UnmountMode",
    keep: bool,
) -> None:
    text = f"unmounted '{mount.name}' from {mount.spec.mountpoint}"
    progress = operation.progress if operation is not None else None
    if mode == "discard":
        text += "; what S3 did not have is thrown away"
    elif progress is not None and progress.done:
        amount = (
            human_size(progress.done)
            if progress.unit == "bytes"
            else counted(progress.done, "file")
        )
        text += f"; {amount} uploaded, everything is in S3"
    else:
        text += "; everything is in S3"
    kept = _conflicts_kept(client, mount.name) if mode != "discard" else 0
    if kept:
        copies = "1 conflict copy stays" if kept == 1 else f"{kept} conflict copies stay"
        text += f", but {copies} here, and its definition with them (mount it again, then s3mgr conflicts {mount.name})"
    elif keep:
        text += f"; its definition is kept (s3mgr show {mount.name})"
    say(text)
