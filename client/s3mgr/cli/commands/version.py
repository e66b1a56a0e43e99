"""``s3mgr version``: of the client, and with ``--verbose`` of the daemon and the kernel."""

from typing import TYPE_CHECKING, Any, Final

import click

from s3mgr import __version__
from s3mgr.cli.context import common_options, make_client, settings
from s3mgr.errors import ClientError

if TYPE_CHECKING:
    from s3mgr.schema import Info

# A person waits for this; a daemon that is busy beyond it counts as one that does not answer.
ANSWER_WITHIN_S: Final = 5.0


@click.command(short_help="Show versions.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@common_options()
def command(*, as_json: bool) -> None:
    """Show the version of the client; with --verbose also of the daemon, the kernel and the libraries.

    A daemon that does not run is not an error.
    """
    info, trouble = _ask() if settings().verbose else (None, "")
    if as_json:
        import json

        document: dict[str, Any] = {"client": {"version": __version__}}  # Any: JSON
        if settings().verbose:
            document["daemon"] = _builtins(info) if info is not None else None
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"s3mgr {__version__}")
    if settings().verbose:
        click.echo(_describe(info) if info is not None else f"daemon: {trouble}")


def _ask() -> "tuple[Info | None, str]":
    try:
        return make_client(timeout_s=ANSWER_WITHIN_S, traced=False).info(), ""
    except ClientError as exc:
        return None, exc.detail.removeprefix("the daemon is ")


def _builtins(info: "Info") -> object:
    import msgspec

    builtins: object = msgspec.to_builtins(info)
    return builtins


def _describe(info: "Info") -> str:
    kernel = info.kernel
    resend = {
        True: "yes",
        False: "no (a dead worker means a clean remount, and open files are lost)",
        None: "not known before the first mount",
    }[kernel.resend]
    lines = [
        f"daemon: s3mgrd {info.version}, API {info.api_version}, pid {info.pid}, "
        f"{'of this user' if info.user_mode else 'of the system'}",
        f"state: {info.state_dir}",
        f"cache: {info.cache_dir}",
        f"worker user: {info.worker_user}",
        f"kernel: {kernel.release}",
        "FUSE protocol: "
        + (f"7.{kernel.fuse_minor}" if kernel.fuse_minor else "not known before the first mount"),
        f"FUSE_NOTIFY_RESEND: {resend}",
    ]
    lines += [f"{name}: {version}" for name, version in sorted(info.libraries.items())]
    lines += [f"warning: {warning}" for warning in info.warnings]
    if info.version != __version__:
        lines.append("warning: client and daemon are of different versions")
    return "\n".join(lines)
