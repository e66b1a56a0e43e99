"""Finding the mount that a NAME or a DIR on the command line means."""

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from s3mgr.cli.exits import CommandFailed, ExitCode
from s3mgr.errors import InvalidRequest

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import Mount

NAME_MAX: Final = 63
# As in the kernel.
LINKS_MAX: Final = 40
SEE_LIST: Final = "see what there is: s3mgr ls"


def absolute_directory(text: str) -> str:
    """Make a mountpoint absolute without looking at what is mounted on it.

    Symbolic links are followed, but the last component is never asked for its attributes: behind a mount
    whose worker hangs, that would hang too.

    Raises:
        InvalidRequest: not valid UTF-8 (it could not travel as JSON), or empty.
    """
    if not text:
        raise InvalidRequest("the directory is empty", hint="give the path of a directory")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidRequest("the directory's name is not valid UTF-8") from exc
    # Lexically first: "." and "a/.." need no file system, and realpath of them would ask the mount.
    try:
        parent, name = os.path.split(os.path.abspath(text))
    except FileNotFoundError as exc:
        raise InvalidRequest(
            "the working directory no longer exists", hint="give an absolute path"
        ) from exc
    path = os.path.join(os.path.realpath(parent), name)
    for _ in range(LINKS_MAX):
        try:
            target = os.readlink(path)
        except OSError:  # not a link, or not there: the daemon decides whether that is an error
            return path
        parent, name = os.path.split(os.path.normpath(os.path.join(os.path.dirname(path), target)))
        path = os.path.join(os.path.realpath(parent), name)
    raise InvalidRequest(f"too many levels of symbolic links: {text}")


def suggest_name(bucket: str, prefix: str) -> str:
    """Make a name from *bucket* and *prefix* that fits the pattern of names."""
    text = f"{bucket}/{prefix}".rstrip("/").lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", text).lstrip("._-")[:NAME_MAX].rstrip("._-")
    return name or "mount"


def numbered(name: str, number: int) -> str:
    """Append a number to *name* within the length of names."""
    suffix = f"-{number}"
    return name[: NAME_MAX - len(suffix)].rstrip("._-") + suffix


def free_name(name: str, taken: Iterable[str]) -> str:
    """Return *name*, or with the first number that makes it unique among *taken*."""
    used = set(taken)
    candidate, number = name, 2
    while candidate in used:
        candidate, number = numbered(name, number), number + 1
    return candidate


def find_mount(text: str, mounts: Iterable["Mount"]) -> "Mount | None":
    """Return the mount called *text*, or the one on the directory *text*."""
    known = list(mounts)
    if "/" not in text:
        for mount in known:
            if mount.name == text:
                return mount
    try:
        path = absolute_directory(text)
    except InvalidRequest:
        return None
    return next((mount for mount in known if mount.spec.mountpoint == path), None)


def unknown_mount(text: str) -> CommandFailed:
    """Say that there is no mount *text*."""
    what = f"nothing of ours is mounted on {text}" if "/" in text else f"there is no mount '{text}'"
    return CommandFailed(what, hint=SEE_LIST, code=ExitCode.NOT_FOUND)


def require_mount(client: "Client", text: str) -> "Mount":
    """Return the mount that *text* means.

    Raises:
        CommandFailed: there is none.
    """
    mount = find_mount(text, client.list_mounts().items)
    if mount is None:
        raise unknown_mount(text)
    return mount


def require_mounts(client: "Client", texts: Iterable[str]) -> "list[Mount]":
    """Return the mounts that *texts* mean, each once.

    Raises:
        CommandFailed: one of them means none; nothing was done yet.
    """
    known = client.list_mounts().items
    found: dict[str, Mount] = {}
    for text in texts:
        mount = find_mount(text, known)
        if mount is None:
            raise unknown_mount(text)
        found[mount.name] = mount
    return list(found.values())
