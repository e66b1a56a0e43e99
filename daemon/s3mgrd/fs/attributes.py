"""POSIX attributes in object metadata.

Names and formats are those of s3fs-fuse (its source, src/metaheader.cpp), so that both can use one bucket:
``mode`` is st_mode with type bits, decimal; ``uid``, ``gid`` decimal; ``mtime``, ``atime``, ``ctime`` seconds since
the epoch with up to nine digits of fraction. rclone's ``mtime`` has the same form. A symbolic link is an object
whose mode says so and whose body is the target. ``rdev`` is ours, for device nodes. ``xattr`` keeps extended attributes
(`s3mgrd.fs.xattr_header`).

Times outside of the years 1677 to 2262 do not fit into 64 bits of nanoseconds and are clamped.
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from s3mgrd.cache.nodes import Kind, Node
from s3mgrd.fs import xattr_header

NS: Final = 1_000_000_000
OWN_NAMES: Final = frozenset({"mode", "uid", "gid", "mtime", "atime", "ctime", "rdev", "xattr"})
MAX_ID: Final = 0xFFFF_FFFE
MAX_RDEV: Final = 0xFFFF_FFFF
"""What Linux' 12 + 20 bits of a device number, and FUSE, can carry."""
MAX_BYTES: Final = 127
"""The most that mode, owner, times and device number can take in metadata, names included."""
MAX_NS: Final = (1 << 63) - 1
PASSIVE_NAMES: Final = frozenset({"atime", "ctime"})
"""What goes along with a change and is none by itself."""
DIRECTORY_TYPE: Final = "application/x-directory"

_TIME = re.compile(r"^(-?)(\d{1,20})(?:\.(\d{1,9})\d*)?$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What an object's metadata says; None: it does not. `kind` is None where mode has no type bits."""

    kind: Kind | None = None
    special: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    ctime_ns: int | None = None
    rdev: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the object carries no POSIX metadata."""
        return (
            self.mode is None
            and self.uid is None
            and self.gid is None
            and self.mtime_ns is None
            and not self.xattrs
        )


def decode(metadata: Mapping[str, str]) -> Attributes:
    """Read attributes out of metadata; what is malformed counts as absent, for it may be anybody's."""
    st_mode = _number(metadata.get("mode"), maximum=0o177777)
    kind, special, mode = None, 0, None
    if st_mode is not None:
        mode = stat.S_IMODE(st_mode)
        kind, special = _kind(st_mode)
    return Attributes(
        kind=kind,
        special=special,
        mode=mode,
        uid=_number(metadata.get("uid"), maximum=MAX_ID),
        gid=_number(metadata.get("gid"), maximum=MAX_ID),
        mtime_ns=_time(metadata.get("mtime")),
        atime_ns=_time(metadata.get("atime")),
        ctime_ns=_time(metadata.get("ctime")),
        rdev=_number(metadata.get("rdev"), maximum=MAX_RDEV) or 0,
        xattrs=xattr_header.decode(metadata.get("xattr", "")) or {},
    )


def encode(
    node: Node, *, mode: int, uid: int, gid: int, xattrs: Mapping[str, bytes]
) -> dict[str, str]:
    """Write the attributes of *node* as metadata; *mode* (permission bits), *uid* and *gid* as shown."""
    metadata = {
        "mode": str(type_bits(node) | mode),
        "uid": str(uid),
        "gid": str(gid),
        "mtime": _format_time(node.mtime_ns),
        "ctime": _format_time(node.ctime_ns if node.ctime_ns is not None else node.mtime_ns),
    }
    if node.atime_ns is not None:
        metadata["atime"] = _format_time(node.atime_ns)
    if node.rdev:
        metadata["rdev"] = str(node.rdev)
    if xattrs:
        metadata[xattr_header.NAME] = xattr_header.encode(xattrs)
    return metadata


def differ(sent: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether metadata that was sent is out of date. A read (atime) alone is no reason to send again."""
    return any(
        sent.get(name) != now.get(name) for name in (sent.keys() | now.keys()) - PASSIVE_NAMES
    )


def clamped(time_ns: int) -> int:
    """Return the time nearest to *time_ns* that can be kept."""
    return max(-MAX_NS, min(time_ns, MAX_NS))


def type_bits(node: Node) -> int:
    """Return st_mode's type bits of a node."""
    if node.kind == Kind.DIRECTORY:
        return stat.S_IFDIR
    if node.kind == Kind.SYMLINK:
        return stat.S_IFLNK
    return node.special if node.kind == Kind.SPECIAL else stat.S_IFREG


def _kind(st_mode: int) -> tuple[Kind | None, int]:
    bits = stat.S_IFMT(st_mode)
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}
    if bits in kinds:
        return kinds[bits], 0
    if bits in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        return Kind.SPECIAL, bits
    return None, 0


def _number(text: str | None, *, maximum: int) -> int | None:
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 20:
        return None
    number = int(text)
    return number if number <= maximum else None


def _time(text: str | None) -> int | None:
    match = _TIME.match(text) if text is not None else None
    if match is None:
        return None
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * NS + int((fraction or "").ljust(9, "0"))
    return clamped(-nanoseconds if sign else nanoseconds)


def _format_time(time_ns: int) -> str:
    sign = "-" if time_ns < 0 else ""
    seconds, nanoseconds = divmod(abs(time_ns), NS)
    return f"{sign}{seconds}.{nanoseconds:09d}"
