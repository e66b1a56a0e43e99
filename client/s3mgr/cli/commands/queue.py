"""``s3mgr queue``: what waits to be uploaded in the background: list it, pause it, resume it, hurry one file."""

from typing import TYPE_CHECKING, Final, Literal, cast

import click

from s3mgr.cli.context import attempting, common_options, make_client, say
from s3mgr.cli.output import (
    age,
    counted,
    human_size,
    printable,
    render_table,
    timestamp,
    write_json,
)
from s3mgr.cli.parameters import Words
from s3mgr.errors import InvalidRequest

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import QueuedFile, UploadQueue

Action = Literal["list", "pause", "resume", "hurry"]
ACTIONS: Final = ("pause", "resume", "hurry")
PAGE_FILES: Final = 100


@click.command(short_help="List, pause or resume uploads in the background; hurry one.")
@click.argument(
    "words",
    metavar="[pause|resume|hurry] NAME|DIR [PATH]",
    nargs=-1,
    required=True,
    type=Words(ACTIONS),
)
@click.option("--json", "as_json", is_flag=True, help="Write totals and files as JSON.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=PAGE_FILES,
    metavar="N",
    help="Most files to list; 0 for the totals only. Default: 100.",
)
@click.option("--all", "every", is_flag=True, help="List all files.")
@common_options()
def command(*, words: tuple[str, ...], as_json: bool, limit: int, every: bool) -> None:
    """List what the mount NAME or DIR has yet to upload in the background, in the order in which it goes.

    That is what write_mode=writeback queued, and whatever failed and waits for its next try. AGE is for how long S3 has
    lacked something of the file.

    pause NAME: hold these uploads back, also after restarts, until resume is said. What is being uploaded goes on. So does
    what somebody waits for: close() with write_mode=close, fsync() with fsync=remote, s3mgr flush, and unmounting, which
    upload as ever. Once dirty_limit_bytes are queued, programs that write wait.

    resume NAME: let them go on.

    hurry NAME PATH: upload this file next, without waiting for its next try, and also while the queue is paused. PATH is
    relative to the mount, or absolute below its mountpoint.
    """
    action, target, path = _parse(words)
    if action == "list":
        _list(target, limit=None if every else limit, as_json=as_json)
    else:
        _change(action, target, path, as_json=as_json)


def _parse(words: tuple[str, ...]) -> tuple[Action, str, str]:
    """Tell apart an action, a mount and a path; a mount may be called as an action is."""
    action: Action = "list"
    if words[0] in ACTIONS and len(words) > 1:
        action, words = cast(Action, words[0]), words[1:]
    if action == "hurry" and len(words) != 2:
        raise click.UsageError("give the PATH of one file")
    if action != "hurry" and len(words) != 1:
        raise click.UsageError("give one mount, and a PATH only to hurry it")
    return action, words[0], words[-1]


def _list(target: str, *, limit: int | None, as_json: bool) -> None:
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot list the upload queue of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        found = collect(client, mount.name, limit=limit)
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(found))
        return
    if found.items:
        click.echo(render_files(found.items), nl=False)
    say(f"'{mount.name}': {describe(found)}")
    if found.cursor is not None and limit:
        say(f"there are more than {limit} files; list them with --all")


def collect(client: "Client", name: str, *, limit: int | None) -> "UploadQueue":
    """Fetch totals and up to *limit* files (None: all); `cursor` tells whether there are more."""
    import msgspec

    items: list[QueuedFile] = []
    cursor: str | None = None
    while True:
        size = PAGE_FILES if limit is None else min(PAGE_FILES, limit - len(items))
        page = client.mount_queue(name, cursor=cursor, limit=size)
        items += page.items
        is_last = page.cursor in (None, cursor)  # a cursor that stands still would never end
        cursor = page.cursor
        if is_last or (limit is not None and len(items) >= limit):
            return msgspec.structs.replace(page, items=items)


def describe(queue: "UploadQueue") -> str:
    """Sum *queue* up for people."""
    if queue.total_files:
        size = human_size(queue.total_bytes)
        text = f"{counted(queue.total_files, 'file')} with {size} queued"
    else:
        text = "nothing is queued"
    if queue.is_paused:
        text += ", paused"
    if queue.writers_waiting:
        limit = human_size(queue.dirty_limit_bytes)
        text += f"; {counted(queue.writers_waiting, 'program')} cannot close files: more than {limit} queued"
    return text


def render_files(files: "list[QueuedFile]") -> str:
    """List *files* for people."""
    return render_table(
        ("STATE", "SIZE", "AGE", "TRIES", "RETRY", "PATH", "ERROR"),
        [
            (
                file.state,
                human_size(file.size_bytes),
                age(file.since),
                str(file.tries),
                timestamp(file.retry_at) if file.retry_at is not None else "-",
                printable(file.path),
                printable(file.error or ""),
            )
            for file in files
        ],
        right=frozenset(("SIZE", "AGE", "TRIES")),
    )


def _change(action: Action, target: str, path: str, *, as_json: bool) -> None:
    from s3mgr.cli.commands.invalidate import path_inside
    from s3mgr.cli.targets import require_mount

    what = f"the upload of '{printable(path)}'" if action == "hurry" else "the upload queue"
    with attempting(f"cannot {action} {what} of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        if action == "pause":
            queue = client.pause_queue(mount.name)
        elif action == "resume":
            queue = client.resume_queue(mount.name)
        else:
            inside = path_inside(mount, path)
            if not inside:
                raise InvalidRequest(
                    f"'{path}' is the mount itself", hint="give the path of a file"
                )
            queue = client.hurry_upload(mount.name, inside)
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(queue))
    elif action == "hurry":
        say(f"'{printable(inside)}' goes next; {describe(queue)}")
    else:
        say(f"{action}d the upload queue of '{mount.name}': {describe(queue)}")
