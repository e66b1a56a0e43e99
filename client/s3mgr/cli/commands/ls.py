"""``s3mgr ls``: list mounts, as a table or in a form for programs."""

import string
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from s3mgr.cli.context import attempting, colored_stdout, common_options, make_client, report
from s3mgr.cli.exits import AlreadyReported, ExitCode
from s3mgr.cli.output import (
    age,
    human_size,
    is_terminal,
    paint_state,
    printable,
    render_table,
    terminal_width,
    timestamp,
    write_json,
)
from s3mgr.cli.parameters import TARGET

if TYPE_CHECKING:
    from s3mgr.schema import Mount

COLUMNS: Final = ("NAME", "STATE", "BUCKET", "MOUNTPOINT", "DIRTY", "SINCE", "MESSAGE")
# What --format can name; the columns of csv and the keys of jsonl, in this order. Stable: only grows at its end.
FIELDS: Final = (
    "name",
    "state",
    "bucket",
    "prefix",
    "mountpoint",
    "dirty_bytes",
    "dirty_files",
    "since",
    "reason",
    "message",
    "endpoint",
    "region",
    "owner_uid",
    "generation",
    "restarts",
    "worker_pid",
)
FORMATS: Final = ("table", "json", "jsonl", "csv")


@click.command(short_help="List mounts.")
@click.argument("targets", metavar="[NAME|DIR]...", nargs=-1, type=TARGET)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--format",
    "form",
    metavar="FORMAT",
    default="table",
    help="table, json (one document, as the API has it), jsonl, csv, or a template such as "
    "'{name} {mountpoint}'. Default: table. Fields: " + ", ".join(FIELDS) + ".",
)
@click.option("--no-header", is_flag=True, help="Leave out the header of table and csv.")
@click.option("-q", "--quiet", "names_only", is_flag=True, help="Write names only.")
@common_options(quiet=False)
def command(
    *, targets: tuple[str, ...], as_json: bool, form: str, no_header: bool, names_only: bool
) -> None:
    """List the mounts NAME or DIR, or all that you may see.

    On a terminal sizes and times are for people; in a pipe they are bytes and RFC 3339, and nothing is cut.
    """
    if as_json and form not in ("table", "json"):
        raise click.UsageError("--json and --format exclude each other")
    form = "json" if as_json else "{name}" if names_only else form
    template = None if form in FORMATS else check_template(form)
    with attempting("cannot list the mounts"):
        from s3mgr.schema import MountList

        client = make_client()
        body = client.list_mounts_json()
        chosen, missing = _choose(client.decode(body, MountList).items, targets)
        if form == "json":
            write_json(_reduce(body, {mount.name for mount in chosen}) if targets else body)
        elif template is not None:
            for mount in chosen:
                click.echo(template.format(**fields_of(mount, printable_only=True)))
        else:
            _WRITERS[form](chosen, not no_header)
    for target in missing:
        report(f"cannot list '{target}': there is no such mount", "see what there is: s3mgr ls")
    if missing:
        raise AlreadyReported(ExitCode.NOT_FOUND)


def _choose(mounts: "list[Mount]", targets: Sequence[str]) -> "tuple[list[Mount], list[str]]":
    from s3mgr.cli.targets import find_mount

    if not targets:
        return mounts, []
    found = {target: find_mount(target, mounts) for target in targets}
    names = {mount.name for mount in found.values() if mount is not None}
    return (
        [mount for mount in mounts if mount.name in names],
        [target for target, mount in found.items() if mount is None],
    )


def check_template(text: str) -> "_Template":
    """Read a template of ``--format``.

    Raises:
        click.UsageError: it is no template, or names a field that does not exist.
    """
    template = _Template(text)
    template.check()
    return template


class _Template:
    """A format string over `FIELDS`, without reaching into the values (``{name.attribute}``)."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\\t", "\t").replace("\\n", "\n")

    def check(self) -> None:
        """Refuse what could fail later, when mounts are there."""
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self._text)]
        except ValueError as exc:
            raise click.UsageError(f"--format '{self._text}' is not a template: {exc}") from exc
        if not any(names):
            raise click.UsageError(
                f"--format '{self._text}' is none of {', '.join(FORMATS)} and names no field such as {{name}}"
            )
        for name in names:
            if name is not None and name not in FIELDS:
                raise click.UsageError(
                    f"--format knows no field '{name}'; there are {', '.join(FIELDS)}"
                )
        try:
            self.format(**dict.fromkeys(FIELDS, ""))
        except (ValueError, KeyError) as exc:
            raise click.UsageError(f"--format '{self._text}' is not a template: {exc}") from exc

    def format(self, **values: str) -> str:
        """Fill in *values*."""
        return self._text.format(**values)


def fields_of(mount: "Mount", *, printable_only: bool = False) -> dict[str, Any]:
    """Return the values of `FIELDS` for *mount*; as text where *printable_only*."""
    spec, status = mount.spec, mount.status
    values: dict[str, Any] = {  # Any: text, numbers and null, as JSON has them
        "name": mount.name,
        "state": status.state,
        "bucket": spec.bucket,
        "prefix": spec.options.prefix,
        "mountpoint": spec.mountpoint,
        "dirty_bytes": status.dirty_bytes,
        "dirty_files": status.dirty_files,
        "since": timestamp(status.since),
        "reason": status.reason,
        "message": status.message,
        "endpoint": spec.endpoint,
        "region": spec.region,
        "owner_uid": mount.owner_uid,
        "generation": mount.generation,
        "restarts": status.restarts,
        "worker_pid": status.worker_pid,
    }
    if printable_only:
        return {k: "" if v is None else printable(str(v)) for k, v in values.items()}
    return values


def _write_table(mounts: "list[Mount]", header: bool) -> None:
    for_people, color = is_terminal(sys.stdout), colored_stdout()
    rows = []
    for mount in mounts:
        spec, status = mount.spec, mount.status
        rows.append(
            (
                mount.name,
                paint_state(status.state, color=color),
                printable(f"{spec.bucket}/{spec.options.prefix}".rstrip("/")),
                printable(spec.mountpoint),
                human_size(status.dirty_bytes) if for_people else str(status.dirty_bytes),
                age(status.since) if for_people else timestamp(status.since),
                printable(status.message or status.reason),
            )
        )
    table = render_table(
        COLUMNS,
        rows,
        show_header=header,
        right=frozenset(("DIRTY",)),
        limit=terminal_width(),
    )
    click.echo(table, nl=False, color=color)


def _write_jsonl(mounts: "list[Mount]", _header: bool) -> None:
    import json

    for mount in mounts:
        click.echo(json.dumps(fields_of(mount), ensure_ascii=False))


def _write_csv(mounts: "list[Mount]", header: bool) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(FIELDS)
    writer.writerows(fields_of(mount).values() for mount in mounts)
    click.echo(text.getvalue(), nl=False)


_WRITERS: Final = {"table": _write_table, "jsonl": _write_jsonl, "csv": _write_csv}


def _reduce(body: bytes, names: set[str]) -> bytes:
    """Keep only the mounts called *names* in the API's list, and all of what it says about them."""
    import json

    document = json.loads(body)
    document["items"] = [item for item in document["items"] if item["name"] in names]
    return json.dumps(document).encode()
