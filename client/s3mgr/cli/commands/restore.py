"""``s3mgr restore``: have S3 make copies of archived objects that can be read, and see how far it is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

import click

from s3mgr.cli.context import attempting, common_options, make_client, say
from s3mgr.cli.exits import AlreadyReported, ExitCode
from s3mgr.cli.output import (
    counted,
    human_size,
    printable,
    render_table,
    timestamp,
    write_json,
)
from s3mgr.cli.parameters import TARGET

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import ArchivedObject, RestoreTier

DEFAULT_DAYS: Final = 7


@click.command(short_help="Have S3 restore archived objects, or show how far it is.")
@click.argument("target", metavar="NAME|DIR", type=TARGET)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--days",
    type=click.IntRange(1, 36_500),
    default=DEFAULT_DAYS,
    metavar="N",
    help="For how long the copies can be read. Default: 7.",
)
@click.option(
    "--tier",
    type=click.Choice(("Standard", "Bulk", "Expedited"), case_sensitive=False),
    default="Standard",
    help="How fast, and at which price. Default: Standard.",
)
@click.option("--status", is_flag=True, help="Restore nothing; show what S3 does.")
@click.option("--json", "as_json", is_flag=True, help="Write the objects as JSON.")
@common_options()
def command(
    *, target: str, paths: tuple[str, ...], days: int, tier: str, status: bool, as_json: bool
) -> None:
    """Have S3 restore the archived objects (Glacier, Deep Archive) at each PATH of the mount NAME or DIR.

    Of a directory, all objects below it are meant; "." is the whole mount. PATH is relative to the mount, or absolute below
    its mountpoint.

    S3 takes minutes (Expedited), hours (Standard) or up to two days (Bulk), and asks money for it. Then files can be opened
    until the copy expires. Objects that are being restored go on; of those that were, the copies are kept for --days
    from now.

    STATE: archived, restoring, or restored (until UNTIL). The status is 8 when S3 refused some of them.
    """
    import msgspec

    from s3mgr.cli.commands.invalidate import path_inside
    from s3mgr.cli.targets import require_mount

    items: list[ArchivedObject] = []
    with attempting(f"cannot {'list' if status else 'restore'} archived objects of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        for path in [path_inside(mount, path) for path in paths]:
            if status:
                items += _listed(client, mount.name, path)
            else:
                items += _restored(client, mount.name, path, days, cast("RestoreTier", tier))
    if as_json:
        write_json(msgspec.json.encode(items))
    else:
        click.echo(render_objects(items), nl=False)
        say(f"'{mount.name}': {describe(items)}")
    if any(item.error for item in items):
        raise AlreadyReported(ExitCode.PARTIAL)


def _listed(client: "Client", name: str, path: str) -> "Iterator[ArchivedObject]":
    cursor: str | None = None
    while True:
        page = client.list_archived(name, path, cursor=cursor)
        yield from page.items
        if page.cursor in (None, cursor):  # a cursor that stands still would never end
            return
        cursor = page.cursor


def _restored(
    client: "Client", name: str, path: str, days: int, tier: "RestoreTier"
) -> "Iterator[ArchivedObject]":
    from s3mgr.schema import RestoreRequest

    cursor: str | None = None
    while True:
        request = RestoreRequest(path=path, days=days, tier=tier, cursor=cursor)
        page = client.restore_objects(name, request)
        yield from page.items
        if page.cursor in (None, cursor):
            return
        cursor = page.cursor


def describe(items: "list[ArchivedObject]") -> str:
    """Sum *items* up for people."""
    if not items:
        return "no object there is archived"
    counts = [
        f"{sum(1 for item in items if item.state == state and not item.error)} {state}"
        for state in ("restored", "restoring", "archived")
    ]
    refused = sum(1 for item in items if item.error)
    if refused:
        counts.append(f"{refused} refused")
    shown = ", ".join(count for count in counts if not count.startswith("0 "))
    return f"{counted(len(items), 'archived object')}: {shown}"


def render_objects(items: "list[ArchivedObject]") -> str:
    """List *items* for people."""
    if not items:
        return ""
    return render_table(
        ("STATE", "UNTIL", "CLASS", "SIZE", "PATH", "ERROR"),
        [
            (
                item.state,
                timestamp(item.expires_at) if item.expires_at is not None else "-",
                printable(item.storage_class),
                human_size(item.size_bytes),
                printable(item.path),
                printable(item.error or ""),
            )
            for item in items
        ],
        right=frozenset(("SIZE",)),
    )
