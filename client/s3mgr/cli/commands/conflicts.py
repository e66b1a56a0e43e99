"""``s3mgr conflicts``: data that lost against another writer: list it, restore it, discard it."""

import sys
from typing import TYPE_CHECKING, Final, Literal, cast

import click

from s3mgr.cli.context import Outcomes, attempting, common_options, make_client, say
from s3mgr.cli.exits import AlreadyReported, ExitCode, combined
from s3mgr.cli.output import (
    counted,
    human_size,
    is_terminal,
    printable,
    render_table,
    timestamp,
    write_json,
)
from s3mgr.cli.parameters import Words
from s3mgr.errors import InvalidRequest

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import ConflictCopy, ConflictList, Mount

Action = Literal["list", "restore", "discard"]
ACTIONS: Final = ("restore", "discard")

_REASONS: Final = {
    "replaced": "the file was replaced",
    "removed": "the file was removed",
    "exists": "the name was taken",
    "recovered": "the metadata was damaged",
}


@click.command(short_help="List, restore or discard data that lost against another writer.")
@click.argument(
    "words",
    metavar="[restore|discard] NAME|DIR [ID]...",
    nargs=-1,
    required=True,
    type=Words(ACTIONS),
)
@click.option("--json", "as_json", is_flag=True, help="Write the copies as JSON.")
@click.option(
    "--as",
    "path",
    metavar="PATH",
    help="restore: the new file's path in the mount. Default: beside the original, named after the time it lost.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="restore: also when bytes are missing that only the replaced version had; they become zeros.",
)
@click.option("--all", "every", is_flag=True, help="discard: all copies of the mount.")
@click.option("--yes", is_flag=True, help="discard: do not ask.")
@common_options()
def command(
    *,
    words: tuple[str, ...],
    as_json: bool,
    path: str | None,
    partial: bool,
    every: bool,
    yes: bool,
) -> None:
    """List the conflict copies of the mount NAME or DIR, make files of them, or throw them away.

    A conflict copy is what a program wrote to a file that somebody else changed in S3 first. The program was told so when
    it closed the file (ESTALE); the name leads to what the other wrote. The copy stays until one of these is said:

    restore NAME ID: make it a file of its own beside the original, or at the PATH given with --as, which must not exist.

    discard NAME ID...: throw it away. Asks first; without a terminal it needs --yes.
    """
    action, target, ids = _parse(words)
    _check_options(action, ids, path=path, partial=partial, every=every, yes=yes, as_json=as_json)
    if action == "list":
        _list(target, as_json=as_json)
    elif action == "restore":
        _restore(target, ids[0], path, partial=partial, as_json=as_json)
    else:
        _discard(target, ids, every=every, yes=yes)


def _parse(words: tuple[str, ...]) -> tuple[Action, str, list[int]]:
    """Tell apart an action, a mount and ids; a mount may be called as an action is."""
    action: Action = "list"
    if words[0] in ACTIONS and len(words) > 1:
        action, words = cast(Action, words[0]), words[1:]
    ids = []
    for word in words[1:]:
        if not (word.isascii() and word.isdecimal()):
            raise click.UsageError(f"'{word}' is not the id of a conflict copy")
        ids.append(int(word))
    return action, words[0], ids


def _check_options(
    action: Action,
    ids: list[int],
    *,
    path: str | None,
    partial: bool,
    every: bool,
    yes: bool,
    as_json: bool,
) -> None:
    if action != "restore" and (path is not None or partial):
        raise click.UsageError("--as and --partial belong to restore")
    if action != "discard" and (every or yes):
        raise click.UsageError("--all and --yes belong to discard")
    if action == "discard" and as_json:
        raise click.UsageError("discard has nothing to write as JSON")
    if action == "list" and ids:
        raise click.UsageError("say what to do with it: restore or discard, before the mount")
    if action == "restore" and len(ids) != 1:
        raise click.UsageError("give the ID of one copy")
    if action == "discard" and every == bool(ids):
        raise click.UsageError("give either IDs or --all")


def collect(client: "Client", name: str) -> "ConflictList":
    """Fetch all pages."""
    import msgspec

    items: list[ConflictCopy] = []
    cursor: str | None = None
    while True:
        page = client.list_conflicts(name, cursor=cursor)
        items += page.items
        if page.cursor in (None, cursor):  # a cursor that stands still would never end
            return msgspec.structs.replace(page, items=items, cursor=None)
        cursor = page.cursor


def _list(target: str, *, as_json: bool) -> None:
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot list the conflict copies of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        found = collect(client, mount.name)
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(found))
        return
    if not found.items:
        say(f"'{mount.name}' has no conflict copies")
        return
    click.echo(render_copies(found.items), nl=False)


def render_copies(copies: "list[ConflictCopy]") -> str:
    """List *copies* for people."""
    return render_table(
        ("ID", "SIZE", "LOST", "WHY", "PATH"),
        [
            (
                str(copy.id),
                human_size(copy.size_bytes),
                timestamp(copy.lost_at),
                _why(copy),
                printable(copy.path),
            )
            for copy in copies
        ],
        right=frozenset(("ID", "SIZE")),
    )


def _why(copy: "ConflictCopy") -> str:
    parts = [_REASONS.get(copy.reason, copy.reason)]
    if copy.missing_bytes:
        parts.append(f"{human_size(copy.missing_bytes)} missing")
    if copy.is_open:
        parts.append("still open")
    return ", ".join(parts)


def _restore(
    target: str, conflict_id: int, path: str | None, *, partial: bool, as_json: bool
) -> None:
    from s3mgr.cli.commands.invalidate import path_inside
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot restore conflict copy {conflict_id} of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        inside = path_inside(mount, path) if path is not None else None
        if inside == "":
            raise InvalidRequest(f"'{path}' is the mount itself", hint="give the path of a file")
        done = client.restore_conflict(mount.name, conflict_id, path=inside, partial=partial)
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(done))
        return
    say(
        f"restored {human_size(done.size_bytes)} as {mount.spec.mountpoint}/{done.path}; it is being uploaded"
    )


def _discard(target: str, ids: list[int], *, every: bool, yes: bool) -> None:
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot discard conflict copies of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        if every or not yes:
            known = collect(client, mount.name).items
            chosen = [copy for copy in known if every or copy.id in ids]
            _confirm(mount, chosen, yes=yes)
            ids = [copy.id for copy in chosen] if every else ids
    outcomes = Outcomes.of(len(ids))
    for conflict_id in ids:
        with (
            outcomes.collect(),
            attempting(f"cannot discard conflict copy {conflict_id} of '{mount.name}'"),
        ):
            client.discard_conflict(mount.name, conflict_id)
    done = outcomes.codes.count(ExitCode.OK)
    if done or not ids:
        copies = "conflict copy" if done == 1 else "conflict copies"
        say(f"discarded {done} {copies} of '{mount.name}'")
    code = combined(outcomes.codes, total=outcomes.total)
    if code is not ExitCode.OK:
        raise AlreadyReported(code)


def _confirm(mount: "Mount", copies: "list[ConflictCopy]", *, yes: bool) -> None:
    """Have the loss of data confirmed.

    Raises:
        InvalidRequest: nobody can be asked, and ``--yes`` is missing.
        click.Abort: the answer is not yes.
    """
    if yes or not copies:
        return
    if not is_terminal(sys.stdin) or not is_terminal(sys.stderr):
        raise InvalidRequest(
            "discard throws away data, and nobody can be asked", hint="add --yes if that is meant"
        )
    size = human_size(sum(copy.size_bytes for copy in copies))
    click.echo(render_copies(copies), err=True, nl=False)
    files = counted(len(copies), "file")
    click.confirm(f"Throw {size} in {files} of '{mount.name}' away?", abort=True, err=True)
