"""``s3mgr show``: everything about one mount."""

from typing import TYPE_CHECKING

import click

from s3mgr.cli.context import attempting, colored_stdout, common_options, make_client
from s3mgr.cli.output import (
    age,
    counted,
    human_size,
    paint_state,
    printable,
    render_table,
    timestamp,
    write_json,
)
from s3mgr.cli.parameters import TARGET

if TYPE_CHECKING:
    from s3mgr.schema import FailedUpload, Mount, PendingRename


@click.command(short_help="Show everything about a mount.")
@click.argument("target", metavar="NAME|DIR", type=TARGET)
@click.option("--json", "as_json", is_flag=True, help="Write spec and status as the API has them.")
@common_options()
def command(*, target: str, as_json: bool) -> None:
    """Show what was asked of a mount and how it is: state, worker, data that S3 does not have yet."""
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot show '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        if as_json:
            write_json(client.get_mount_json(mount.name))
            return
        # The list may leave out what costs time; the mount itself does not.
        mount = client.get_mount(mount.name)
    color = colored_stdout()
    click.echo(render_mount(mount, color=color), nl=False, color=color)


def render_mount(mount: "Mount", *, color: bool) -> str:
    """Describe *mount* for people."""
    spec, status = mount.spec, mount.status
    rows = [
        ("name", mount.name),
        ("state", paint_state(status.state, color=color) + f" for {age(status.since)}"),
        ("reason", status.reason),
        ("message", status.message),
        ("hint", status.hint),
        ("mountpoint", spec.mountpoint),
        ("bucket", spec.bucket),
        ("prefix", spec.options.prefix),
        ("endpoint", spec.endpoint or "(the daemon's default)"),
        ("region", spec.region),
        ("credentials", _credentials(mount)),
        ("owner", f"uid {mount.owner_uid}"),
        ("created", timestamp(mount.created_at)),
        ("desired", mount.desired + (", also after a restart" if spec.persist else "")),
        ("generation", f"{mount.generation} (observed: {status.observed_generation})"),
        ("labels", ", ".join(f"{key}={value}" for key, value in spec.labels.items())),
        ("worker", _worker(mount)),
        ("retry", timestamp(status.retry_at) if status.retry_at is not None else ""),
        ("not in S3 yet", _dirty(mount)),
        ("upload queue", _queue(mount)),
        ("conflict copies", _conflicts(mount)),
        ("conditional writes", _conditions(mount)),
        ("upload checksums", _checksums(mount)),
    ]
    text = render_table(
        ("", ""),
        [
            (f"{label}:", value if label == "state" else printable(value))
            for label, value in rows
            if value
        ],
        show_header=False,
    )
    if changed := _changed_options(mount):
        text += "\noptions that are not the default:\n" + _indent(changed)
    if status.renames:
        text += "\nrenamed directories that S3 has yet to follow:\n" + _renames(status.renames)
    if status.failed_uploads:
        text += "\nuploads that failed (the data is kept and tried again):\n"
        text += render_failed_uploads(status.failed_uploads)
    if status.log_tail:
        text += "\nlast lines of the log:\n" + _indent([printable(x) for x in status.log_tail])
    return text


def render_failed_uploads(uploads: "list[FailedUpload]") -> str:
    """List *uploads* for people, indented."""
    table = render_table(
        ("PATH", "SIZE", "TRIES", "SINCE", "RETRY", "ERROR"),
        [
            (
                printable(upload.path),
                human_size(upload.size_bytes),
                str(upload.tries),
                timestamp(upload.since),
                timestamp(upload.retry_at) if upload.retry_at is not None else "-",
                printable(upload.error),
            )
            for upload in uploads
        ],
        right=frozenset(("SIZE", "TRIES")),
    )
    return _indent(table.splitlines())


def _renames(renames: "list[PendingRename]") -> str:
    table = render_table(
        ("FROM", "TO", "OBJECTS", "SIZE", "SINCE", "ERROR"),
        [
            (
                printable(rename.source),
                printable(rename.target),
                f"{rename.objects_done}/{rename.objects_total or '?'}",
                f"{human_size(rename.bytes_done)}/{human_size(rename.bytes_total)}",
                timestamp(rename.since),
                printable(rename.error) or "-",
            )
            for rename in renames
        ],
        right=frozenset(("OBJECTS", "SIZE")),
    )
    return _indent(table.splitlines())


def _indent(lines: list[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)


def _credentials(mount: "Mount") -> str:
    if mount.spec.anonymous:
        return "none (anonymous)"
    if mount.has_credentials:
        return "given with the mount (not shown)"
    if mount.spec.profile:
        return f"profile {mount.spec.profile} of the daemon's user"
    return "found by the daemon"


def _worker(mount: "Mount") -> str:
    status = mount.status
    if status.worker_pid is None:
        return ""
    parts = [f"pid {status.worker_pid}"]
    if status.worker_memory_bytes is not None:
        parts.append(human_size(status.worker_memory_bytes))
    if status.restarts:
        parts.append(f"restarted {counted(status.restarts, 'time')}")
    return ", ".join(parts)


def _dirty(mount: "Mount") -> str:
    status = mount.status
    parts = []
    if status.dirty_bytes or status.dirty_files:
        parts.append(f"{human_size(status.dirty_bytes)} in {counted(status.dirty_files, 'file')}")
    if status.pending_operations:
        parts.append(counted(status.pending_operations, "operation"))
    return ", ".join(parts) or "nothing"


def _conditions(mount: "Mount") -> str:
    """Say what holds for all kinds of conditions, or for each."""
    from msgspec.structs import asdict

    status = mount.status
    each = asdict(status.conditions)
    if len({status.conditional_writes, *each.values()}) == 1:
        return status.conditional_writes
    lacking = [name.replace("_", "-") for name, what in each.items() if what == "unsupported"]
    if not lacking:
        return status.conditional_writes
    return f"{status.conditional_writes} (not supported: {', '.join(lacking)})"


def _checksums(mount: "Mount") -> str:
    """Say by what S3 verifies what is uploaded."""
    support, name = mount.status.checksums, mount.status.checksum_algorithm
    title = {"CRC32C": "CRC-32C", "CRC64NVME": "CRC-64/NVME"}.get(name, name)
    if support == "supported":
        return f"{title}, verified by the store"
    if support == "unsupported":
        return "SHA-256, in the signature"
    return f"SHA-256, in the signature; whether the store verifies {title} is not known yet"


def _queue(mount: "Mount") -> str:
    return f"paused (s3mgr queue resume {mount.name})" if mount.status.uploads_paused else ""


def _conflicts(mount: "Mount") -> str:
    status = mount.status
    if not status.conflicts:
        return ""
    size, files = human_size(status.conflict_bytes), counted(status.conflicts, "file")
    return f"{size} in {files} (s3mgr conflicts {mount.name})"


def _changed_options(mount: "Mount") -> list[str]:
    from s3mgr.schema import MountOptions

    default = MountOptions()
    return [
        printable(f"{name} = {_option_text(value)}")
        for name in MountOptions.__struct_fields__
        if (value := getattr(mount.spec.options, name)) != getattr(default, name)
        and name != "prefix"
    ]


def _option_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
