"""``s3mgr cache``: what a mount knows of its bucket and holds locally."""

from typing import TYPE_CHECKING, Final

import click

from s3mgr.cli.context import attempting, common_options, make_client, say
from s3mgr.cli.output import human_duration, human_size, printable, render_table, write_json
from s3mgr.cli.parameters import TARGET

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import AbsentName, CacheEntry, CacheReport, HiddenKey

# Entries that one request asks for: an answer of some 200 KiB.
PAGE_ENTRIES: Final = 1000


@click.command(short_help="Show what a mount knows and holds.")
@click.argument("target", metavar="NAME|DIR", type=TARGET)
@click.argument("path", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Write totals and entries as JSON.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    metavar="N",
    help="Most entries to list; 0 for the totals only. Default: 100.",
)
@click.option("--all", "every", is_flag=True, help="List all entries.")
@common_options()
def command(*, target: str, path: str, as_json: bool, limit: int, every: bool) -> None:
    """Show what the mount NAME or DIR knows of its bucket, and what it holds of the data: totals, and what is in PATH.

    PATH is relative to the mount, or absolute below its mountpoint. Of a directory the entries come first, then the keys
    that cannot be shown and why, then the names that are known not to be there. AGE is how long ago S3 was asked,
    FRESH for how long that is still believed, SOURCE what told: a listing, a request for the one name, or this mount itself.
    """
    from s3mgr.cli.commands.invalidate import path_inside
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot show the cache of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        found = collect(
            client, mount.name, path_inside(mount, path), limit=None if every else limit
        )
        if as_json:
            import msgspec

            write_json(msgspec.json.encode(found))
            return
    click.echo(_totals(found), nl=False)
    for table in (_entries(found.items), _hidden(found.hidden), _absent(found.absent)):
        if table:
            click.echo("\n" + table, nl=False)
    if found.cursor is not None and limit:
        say(f"there are more than {limit} entries; list them with --all")


def collect(client: "Client", name: str, path: str, *, limit: int | None) -> "CacheReport":
    """Fetch totals and up to *limit* entries (None: all); `cursor` tells whether there are more."""
    import msgspec

    items: list[CacheEntry] = []
    hidden: list[HiddenKey] = []
    absent: list[AbsentName] = []
    cursor: str | None = None
    while True:
        count = len(items) + len(hidden) + len(absent)
        page_size = PAGE_ENTRIES if limit is None else min(PAGE_ENTRIES, limit - count)
        page = client.mount_cache(name, path=path, cursor=cursor, limit=page_size)
        items += page.items
        hidden += page.hidden
        absent += page.absent
        is_last = page.cursor in (None, cursor)  # a cursor that stands still would never end
        cursor = page.cursor
        count += len(page.items) + len(page.hidden) + len(page.absent)
        if is_last or (limit is not None and count >= limit):
            return msgspec.structs.replace(page, items=items, hidden=hidden, absent=absent)


def _totals(found: "CacheReport") -> str:
    def rate(hits: int, misses: int) -> str:
        asked = hits + misses
        return f"{hits} of {asked} ({100 * hits / asked:.0f} %)" if asked else "not asked yet"

    rows = [
        ("names:", str(found.entries_total)),
        ("directories listed:", str(found.directories_listed)),
        ("keys that cannot be shown:", str(found.hidden_keys)),
        ("known not to exist:", str(found.absent_names)),
        ("metadata:", human_size(found.metadata_bytes)),
        ("metadata hits:", rate(found.metadata_hits, found.metadata_misses)),
        ("listing hits:", rate(found.listing_hits, found.listing_misses)),
        ("data:", f"{human_size(found.data_bytes)} of {human_size(found.data_limit_bytes)}"),
        ("data hits:", rate(found.data_hits, found.data_misses)),
        ("not in S3 yet:", human_size(found.staged_bytes)),
    ]
    return render_table(("", ""), rows, show_header=False)


def _entries(items: "list[CacheEntry]") -> str:
    if not items:
        return ""
    return render_table(
        (
            "INODE",
            "KIND",
            "SIZE",
            "CACHED",
            "STAGED",
            "AGE",
            "FRESH",
            "SOURCE",
            "ATTRIBUTES",
            "PATH",
        ),
        [
            (
                str(item.inode),
                item.kind,
                human_size(item.size_bytes),
                human_size(item.cached_bytes),
                human_size(item.staged_bytes) + (" !" if item.dirty else ""),
                human_duration(item.age_s) if item.age_s is not None else "-",
                _freshness(item.fresh_s),
                item.source,
                item.attributes,
                printable(item.path) or ".",
            )
            for item in items
        ],
        right=frozenset(("INODE", "SIZE", "CACHED", "STAGED", "AGE", "FRESH")),
    )


def _hidden(keys: "list[HiddenKey]") -> str:
    if not keys:
        return ""
    rows = [(printable(hidden.key), printable(hidden.reason)) for hidden in keys]
    return render_table(("KEY THAT CANNOT BE SHOWN", "WHY"), rows)


def _absent(names: "list[AbsentName]") -> str:
    if not names:
        return ""
    rows = [(printable(absent.name), _freshness(absent.fresh_s)) for absent in names]
    return render_table(("KNOWN NOT TO EXIST", "FRESH"), rows, right=frozenset(("FRESH",)))


def _freshness(seconds: float) -> str:
    return human_duration(seconds) if seconds > 0 else "no"
