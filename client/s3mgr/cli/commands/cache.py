"""``s3mgr cache``: what a mount knows of its bucket and holds locally, and what of it shall be there."""

from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import click

from s3mgr.cli.context import attempting, common_options, make_client, say
from s3mgr.cli.output import (
    counted,
    human_duration,
    human_size,
    printable,
    render_table,
    write_json,
)
from s3mgr.cli.parameters import DAY_S, DURATION, Words

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import (
        AbsentName,
        CacheEntry,
        CacheReport,
        EvictReport,
        HiddenKey,
        Mount,
        UnpinReport,
    )

# Entries that one request asks for: an answer of some 200 KiB.
PAGE_ENTRIES: Final = 1000


Action = Literal["show", "warm", "pin", "unpin", "evict", "pins", "files"]
ACTIONS: Final = get_args(Action)
WITH_PATHS: Final = frozenset({"warm", "pin", "unpin", "evict"})


@click.command(short_help="Show, warm, evict or pin what a mount holds locally.")
@click.argument(
    "words",
    metavar="[show|warm|evict|pin|unpin|pins|files] NAME|DIR [PATH]...",
    nargs=-1,
    required=True,
    type=Words(ACTIONS),
)
@click.option("--json", "as_json", is_flag=True, help="Write what is shown or done as JSON.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    metavar="N",
    help="show, files: most entries to list; show: 0 for the totals only. Default: 100.",
)
@click.option("--all", "every", is_flag=True, help="show: list all entries.")
@click.option(
    "--by",
    type=click.Choice(("bytes", "hits", "misses")),
    default="bytes",
    help="files: those with most bytes in the cache, most bytes read from it, or most that S3 was asked for. Default: bytes.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    help="warm, pin: wait until all is there, or only hand in the request. Default: wait.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default=DAY_S,
    help="warm, pin: stop waiting after this. Default: a day.",
)
@common_options()
def command(
    *,
    words: tuple[str, ...],
    as_json: bool,
    limit: int,
    every: bool,
    by: str,
    wait: bool,
    timeout_s: float,
) -> None:
    """Show what the mount NAME or DIR knows of its bucket, and what it holds of the data: totals, and what is in PATH.

    PATH is relative to the mount, or absolute below its mountpoint; . is all of it. Where paths are absolute, the mount need
    not be named before them. Of a directory the entries come first,
    then the keys that cannot be shown and why, then the names that are known not to be there. AGE is how long ago S3 was asked,
    FRESH for how long that is still believed, SOURCE what told: a listing, a request for the one name, or this mount itself.
    MEMORY and DISK are what is held of the data. show NAME [PATH] is the same, for mounts whose names are words below.

    warm NAME PATH...: bring the files there and below into the cache on disk. What it has no room for is refused. Ctrl-C
    stops the waiting, not the work.

    evict NAME PATH...: give up what the cache on disk has of them, unless they are pinned.

    pin NAME PATH...: bring them into the cache on disk, and keep them there, also across restarts. What comes there
    later, and each new version, is fetched within a minute after metadata_ttl_s, or at once after s3mgr invalidate.

    unpin NAME PATH...: let what was pinned there and below be evicted again.

    pins NAME: list what is pinned, and how much of it is there.

    files NAME: list the files that lead in the cache on disk, and how much was read from it and past it.
    """
    action, target, paths = _parse(words)
    if action == "show":
        _show(target, paths[0] if paths else "", as_json=as_json, limit=None if every else limit)
    elif action in ("warm", "pin"):
        _warm(action, target, paths, wait=wait, timeout_s=timeout_s, as_json=as_json)
    elif action in ("unpin", "evict"):
        _give_up(action, target, paths, as_json=as_json)
    elif action == "pins":
        _list_pins(target, as_json=as_json)
    else:
        _list_files(target, by=by, limit=max(1, min(limit, 100)), as_json=as_json)


def _parse(words: tuple[str, ...]) -> tuple[Action, str, tuple[str, ...]]:
    """Tell apart an action, a mount and paths; a mount may be called as an action is: one word alone is a mount."""
    action: Action = "show"
    if words[0] in ACTIONS and len(words) > 1:
        action, words = cast(Action, words[0]), words[1:]
    target, paths = words[0], words[1:]
    if action in WITH_PATHS and not paths and "/" not in target:
        raise click.UsageError(
            f"give the PATH of what to {action}; . is all of the mount. Of a mount called '{action}': s3mgr cache show {action} {target}"
        )
    if action == "show" and len(paths) > 1:
        raise click.UsageError("give one mount and one PATH")
    if action in ("pins", "files") and paths:
        raise click.UsageError(f"{action} takes one mount and no PATH")
    return action, target, paths


def _show(target: str, path: str, *, as_json: bool, limit: int | None) -> None:
    from s3mgr.cli.commands.invalidate import path_inside
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot show the cache of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        found = collect(client, mount.name, path_inside(mount, path), limit=limit)
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


def _locate(client: "Client", target: str, paths: tuple[str, ...]) -> "tuple[Mount, list[str]]":
    """Return the mount and the paths in it; where no mount is called *target* it is such a path itself, in a mount's tree."""
    from s3mgr.cli.commands.invalidate import path_inside
    from s3mgr.cli.targets import absolute_directory, find_mount, unknown_mount

    mounts = client.list_mounts().items
    mount = find_mount(target, mounts)
    if mount is None or not paths:
        paths = tuple(absolute_directory(path) for path in (target, *paths))
        around = [m for m in mounts if f"{paths[0]}/".startswith(f"{m.spec.mountpoint}/")]
        if "/" not in target or not around:
            raise unknown_mount(target)
        mount = max(around, key=lambda m: len(m.spec.mountpoint))
    return mount, [path_inside(mount, path) for path in paths]


def _warm(
    action: Literal["warm", "pin"],
    target: str,
    paths: tuple[str, ...],
    *,
    wait: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    from s3mgr.cli.waiting import FIRST_WAIT_S, detaching, wait_operation

    with attempting(f"cannot {action} the cache of '{target}'"):
        client = make_client()
        mount, inside = _locate(client, target, paths)
        label = f"{'pinning' if action == 'pin' else 'warming'} the cache of '{mount.name}'"
        resume = f"s3mgr cache files {mount.name}"
        with detaching(label, resume):
            operation = client.warm_cache(
                mount.name,
                inside,
                pin=action == "pin",
                wait_s=min(FIRST_WAIT_S, timeout_s) if wait else None,
            )
        if operation.state == "running" and wait:
            operation = wait_operation(
                client, operation.id, label=label, timeout_s=timeout_s, resume=resume
            )
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(operation))
    elif operation.state == "running":
        say(f"{label}: under way; follow it: {resume}")
    else:
        size = human_size(operation.progress.done if operation.progress is not None else 0)
        verb = "pinned" if action == "pin" else "warmed"
        say(f"{verb} {size} in the cache of '{mount.name}'")
        if operation.message:
            say(printable(operation.message))


def _give_up(
    action: Literal["unpin", "evict"], target: str, paths: tuple[str, ...], *, as_json: bool
) -> None:
    with attempting(f"cannot {action} in the cache of '{target}'"):
        client = make_client()
        mount, inside = _locate(client, target, paths)
        if action == "unpin":
            unpinned = client.unpin_cache(mount.name, inside)
            done: UnpinReport | EvictReport = unpinned
            text = f"unpinned {', '.join(printable(path) or '.' for path in unpinned.paths)}"
        else:
            done = evicted = client.evict_cache(mount.name, inside)
            text = f"gave up {human_size(evicted.bytes)} of {counted(evicted.files, 'file')}"
            if evicted.pinned_files:
                text += f"; {counted(evicted.pinned_files, 'pinned file')} stay: unpin them first"
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(done))
    else:
        say(f"'{mount.name}': {text}")


def _list_pins(target: str, *, as_json: bool) -> None:
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot list the pins of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        found = client.list_pins(mount.name)
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(found))
        return
    if found.items:
        rows = [
            (
                str(pin.files),
                human_size(pin.size_bytes),
                human_size(pin.cached_bytes),
                printable(pin.path) or ".",
            )
            for pin in found.items
        ]
        header = ("FILES", "SIZE", "CACHED", "PATH")
        click.echo(render_table(header, rows, right=frozenset(header[:3])), nl=False)
    else:
        say(f"nothing is pinned in '{mount.name}'")
    if found.problem:
        say(f"not all of it is in the cache: {printable(found.problem)}")


def _list_files(target: str, *, by: str, limit: int, as_json: bool) -> None:
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot list the cached files of '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        found = client.cached_files(mount.name, by=by, limit=limit)
    if as_json:
        import msgspec

        write_json(msgspec.json.encode(found))
        return
    if not found.items:
        say(f"there is nothing to list of '{mount.name}'")
        return
    rows = [
        (
            human_size(file.size_bytes),
            human_size(file.cached_bytes),
            "yes" if file.is_pinned else "-",
            human_size(file.hit_bytes),
            human_size(file.miss_bytes),
            printable(file.path),
        )
        for file in found.items
    ]
    header = ("SIZE", "CACHED", "PINNED", "HITS", "MISSES", "PATH")
    click.echo(
        render_table(header, rows, right=frozenset(("SIZE", "CACHED", "HITS", "MISSES"))), nl=False
    )


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

    disk = found.disk_cache
    asked = disk.hit_bytes + disk.miss_bytes
    rows = [
        ("names:", str(found.entries_total)),
        ("directories listed:", str(found.directories_listed)),
        ("keys that cannot be shown:", str(found.hidden_keys)),
        ("known not to exist:", str(found.absent_names)),
        ("metadata:", human_size(found.metadata_bytes)),
        ("metadata hits:", rate(found.metadata_hits, found.metadata_misses)),
        ("listing hits:", rate(found.listing_hits, found.listing_misses)),
        (
            "data in memory:",
            f"{human_size(found.data_bytes)} of {human_size(found.data_limit_bytes)}",
        ),
        ("memory hits:", rate(found.data_hits, found.data_misses)),
        (
            "data on disk:",
            f"{human_size(disk.used_bytes)} of {human_size(disk.limit_bytes)}, {human_size(disk.pinned_bytes)} pinned",
        ),
        (
            "disk hits:",
            f"{human_size(disk.hit_bytes)} of {human_size(asked)} ({100 * disk.hit_bytes / asked:.0f} %)"
            if asked
            else "not asked yet",
        ),
        ("damaged blocks:", f"{disk.corrupt_blocks}, fetched again"),
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
            "MEMORY",
            "DISK",
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
                human_size(item.disk_bytes) + (" pinned" if item.is_pinned else ""),
                human_size(item.staged_bytes) + (" !" if item.dirty else ""),
                human_duration(item.age_s) if item.age_s is not None else "-",
                _freshness(item.fresh_s),
                item.source,
                item.attributes,
                printable(item.path) or ".",
            )
            for item in items
        ],
        right=frozenset(("INODE", "SIZE", "MEMORY", "DISK", "STAGED", "AGE", "FRESH")),
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
