"""The kernel's mount table, read as text. Nothing here touches a mounted tree, and nothing large is imported."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FILESYSTEM_TYPE: Final = "fuse.s3mgr"
MOUNTINFO: Final = "/proc/self/mountinfo"

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo. `device` is ``major:minor``; `super_options` belong to the file system, not the mount."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    options: str
    fs_type: str
    source: str
    super_options: str

    @property
    def is_ours(self) -> bool:
        """Whether it is a mount of s3mgr, dead or alive, of this daemon or another."""
        return self.fs_type == FILESYSTEM_TYPE

    @property
    def connection(self) -> int:
        """The number of its FUSE connection below /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])

    @property
    def user_id(self) -> int | None:
        """Who mounted it, as the kernel's FUSE knows; None for other file systems."""
        return self._number("user_id")

    @property
    def group_id(self) -> int | None:
        """The group of who mounted it, as the kernel's FUSE knows; None for other file systems."""
        return self._number("group_id")

    @property
    def is_private(self) -> bool:
        """Whether the kernel lets nobody but `user_id` with `group_id` in, root included."""
        return self.user_id is not None and "allow_other" not in self.super_options.split(",")

    def _number(self, name: str) -> int | None:
        for option in self.super_options.split(","):
            if option.startswith(f"{name}="):
                return int(option.removeprefix(f"{name}="))
        return None


def _unescape(field: bytes) -> str:
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return raw.decode("utf-8", "surrogateescape")


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """Parse the whole of mountinfo (proc_pid_mountinfo(5)); lines that are not whole are left out."""
    entries = []
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        try:
            # Optional fields, of any number, end at a field that is a single hyphen.
            dash = fields.index(b"-", 6)
            mount_id, parent_id, device, root, mountpoint, options = fields[:6]
            fs_type, source, super_options = fields[dash + 1 : dash + 4]
            entry = MountEntry(
                int(mount_id),
                int(parent_id),
                device.decode("ascii"),
                _unescape(root),
                _unescape(mountpoint),
                _unescape(options),
                _unescape(fs_type),
                _unescape(source),
                _unescape(super_options),
            )
        except ValueError:
            continue
        entries.append(entry)
    return entries


def read_mountinfo() -> list[MountEntry]:
    """Read the mount table of this process; a fraction of a millisecond, no disk."""
    with open(MOUNTINFO, "rb") as file:
        return parse_mountinfo(file.read())


def mount_id_of(fd: int) -> int | None:
    """Return the mount that *fd* lies in, by the kernel's word (fdinfo), without touching it."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return None


def topmost(entries: Sequence[MountEntry], mountpoint: str) -> MountEntry | None:
    """Return the mount that is seen at *mountpoint*: the one on top where several are stacked."""
    there = [entry for entry in entries if entry.mountpoint == mountpoint]
    covered = {entry.parent_id for entry in there}
    return next((entry for entry in reversed(there) if entry.mount_id not in covered), None)
