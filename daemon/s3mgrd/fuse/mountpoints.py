"""May something be mounted there? Asked of the path's parents only, never of a mounted tree of ours.

The walk opens one component after the other with O_PATH, which sends no request to a file system that is mounted on
the component itself, and looks the descriptor's mount up in the mount table before it goes further. So it never
looks anything up inside a mount of s3mgr, where it might wait for the very worker that is not there yet.
"""

import os
import stat
from collections.abc import Sequence
from typing import Final

from s3mgrd.errors import MountpointBusy, MountpointInvalid
from s3mgrd.fuse.mountinfo import MountEntry, mount_of, read_mountinfo

AUTOFS: Final = "autofs"


def open_mountpoint(path: str, *, owner_uid: int, nonempty: bool = False) -> int:
    """Check *path* and return an O_PATH descriptor of it, which the caller closes; blocks, so call it in a thread.

    Mounting on the descriptor instead of the path leaves nobody a chance to swap a directory for a symbolic link
    after the check.

    Args:
        path: absolute.
        owner_uid: who wants to mount; anybody but root must own the directory and be allowed to write it.
        nonempty: allow a directory with contents.

    Raises:
        MountpointInvalid: with a hint; see `s3mgrd.mounts.ports.Kernel.check_mountpoint`.
        MountpointBusy: something is mounted there.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts:
        raise MountpointInvalid(
            f"mountpoint {path!r} is not an absolute path without '..'",
            hint="give the full path, for example /mnt/data",
        )
    if not parts:
        raise MountpointInvalid("cannot mount on /", hint="give a directory below it")
    entries = read_mountinfo()
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for position, part in enumerate(parts):
            here = "/" + "/".join(parts[: position + 1])
            is_last = position == len(parts) - 1
            fd = _step(fd, part, here, is_last=is_last)
            _refuse_our_mounts(fd, path, here, entries, is_last=is_last)
            _refuse_other_kinds(fd, path, here, is_last=is_last)
        _refuse_foreign_mount(fd, path, entries)
        _refuse_strangers(fd, path, owner_uid)
        if not nonempty:
            _refuse_contents(fd, path, entries)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _step(parent: int, name: str, here: str, *, is_last: bool) -> int:
    """Open *name* in *parent*, close *parent*, return the new descriptor.

    Without O_DIRECTORY, so that an automount point is not triggered: the mount helper that it would wait for may be
    waiting for us.
    """
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError as exc:
        missing = "mountpoint" if is_last else "directory"
        raise MountpointInvalid(
            f"{missing} {here!r} does not exist", hint=f"create it: mkdir -p {here}"
        ) from exc
    except NotADirectoryError as exc:
        raise MountpointInvalid(
            f"{os.path.dirname(here)!r} is not a directory", hint="choose another mountpoint"
        ) from exc
    except PermissionError as exc:
        raise MountpointInvalid(
            f"no permission to enter {os.path.dirname(here)!r}",
            hint="choose a mountpoint that you may enter",
        ) from exc
    except OSError as exc:
        raise MountpointInvalid(
            f"cannot look at {here!r}: {exc.strerror}",
            hint="if it is a mount that has died, unmount it: umount -l PATH",
        ) from exc
    os.close(parent)
    return fd


def _refuse_our_mounts(
    fd: int, path: str, here: str, entries: Sequence[MountEntry], *, is_last: bool
) -> None:
    entry = mount_of(fd, entries)
    if entry is None or not entry.is_ours:
        return
    if is_last:
        raise MountpointBusy(
            f"{path!r} is already mounted ({entry.source})",
            hint=f"unmount it first: s3mgr unmount {path}",
        )
    raise MountpointInvalid(
        f"{path!r} is inside another mount of s3mgr, {here!r} ({entry.source})",
        hint="choose a mountpoint outside of it",
    )


def _refuse_other_kinds(fd: int, path: str, here: str, *, is_last: bool) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISLNK(mode):
        target = os.path.normpath(
            os.path.join(os.path.dirname(here), os.readlink("", dir_fd=fd), *_rest(path, here))
        )
        what = "is" if is_last else f"leads through {here!r}, which is"
        raise MountpointInvalid(
            f"{path!r} {what} a symbolic link", hint=f"give the path it leads to: {target}"
        )
    if not stat.S_ISDIR(mode):
        raise MountpointInvalid(f"{here!r} is not a directory", hint="choose another mountpoint")


def _rest(path: str, here: str) -> list[str]:
    """Return the components of *path* below *here*."""
    return [part for part in path.split("/") if part not in ("", ".")][here.count("/") :]


def _refuse_foreign_mount(fd: int, path: str, entries: Sequence[MountEntry]) -> None:
    entry = mount_of(fd, entries)
    if entry is None or entry.mountpoint.rstrip("/") != os.path.normpath(path):
        return
    if entry.fs_type == AUTOFS:
        return  # the trigger of x-systemd.automount: it waits for exactly this mount
    raise MountpointBusy(
        f"something else is mounted on {path!r}: {entry.source} ({entry.fs_type})",
        hint=f"unmount it first (umount {path}) or choose another mountpoint",
    )


def _refuse_strangers(fd: int, path: str, owner_uid: int) -> None:
    """Hold ordinary users to what fusermount3 asks of them: their own directory, writable."""
    if owner_uid == 0:
        return
    status = os.fstat(fd)
    if status.st_uid != owner_uid:
        raise MountpointInvalid(
            f"mountpoint {path!r} belongs to uid {status.st_uid}, not to uid {owner_uid}",
            hint="mount on a directory of your own",
        )
    if not status.st_mode & stat.S_IWUSR:
        raise MountpointInvalid(
            f"mountpoint {path!r} is not writable by its owner", hint=f"chmod u+w {path}"
        )


def _refuse_contents(fd: int, path: str, entries: Sequence[MountEntry]) -> None:
    entry = mount_of(fd, entries)
    if entry is not None and entry.fs_type == AUTOFS:
        return  # listing it would trigger the automount
    try:
        with os.scandir(f"/proc/self/fd/{fd}") as listing:
            first = next(listing, None)
    except PermissionError as exc:
        raise MountpointInvalid(
            f"mountpoint {path!r} cannot be read", hint=f"chmod u+r {path}"
        ) from exc
    if first is not None:
        raise MountpointInvalid(
            f"mountpoint {path!r} is not empty",
            hint="mount on an empty directory: a mount would hide what is in this one",
        )
