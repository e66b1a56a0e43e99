"""``s3mgr invalidate``: forget what is known of a directory, so that the next look asks S3."""

import os
from typing import TYPE_CHECKING

import click

from s3mgr.cli.context import attempting, common_options, make_client, say
from s3mgr.cli.output import counted
from s3mgr.cli.parameters import TARGET
from s3mgr.errors import InvalidRequest

if TYPE_CHECKING:
    from s3mgr.schema import Mount


@click.command(short_help="Forget cached names, so that S3 is asked again.")
@click.argument("target", metavar="NAME|DIR", type=TARGET)
@click.argument("path", required=False, default="")
@common_options()
def command(*, target: str, path: str) -> None:
    """Forget what the mount NAME or DIR knows below PATH; the next access asks S3.

    PATH is relative to the mount, or absolute below its mountpoint; without it the whole mount is meant. Data that S3
    does not have yet is not touched.
    """
    from s3mgr.cli.targets import require_mount

    with attempting(f"cannot invalidate '{target}'"):
        client = make_client()
        mount = require_mount(client, target)
        done = client.invalidate_mount(mount.name, path_inside(mount, path))
    listings, names = counted(done.listings, "listing"), counted(done.entries, "name")
    say(f"forgot {listings} and {names} of '{mount.name}'")


def path_inside(mount: "Mount", path: str) -> str:
    """Make *path* relative to the mount, without asking the file system.

    Raises:
        InvalidRequest: it lies outside, has components that lead elsewhere, or is no text.
    """
    try:
        path.encode()
    except UnicodeEncodeError as exc:
        name = os.fsencode(path).decode(errors="backslashreplace")
        raise InvalidRequest(
            f"'{name}' is not UTF-8", hint="no key has such a name, so there is nothing to ask S3"
        ) from exc
    mountpoint = mount.spec.mountpoint
    if path.startswith("/"):
        if path.rstrip("/") != mountpoint and not path.startswith(mountpoint + "/"):
            raise InvalidRequest(
                f"{path} is not below {mountpoint}", hint="give a path relative to the mount"
            )
        path = path[len(mountpoint) :]
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidRequest(f"'{path}' contains '..'", hint="give the path without it")
    return "/".join(parts)
