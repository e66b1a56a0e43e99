"""What is remembered of mount.db outside of it: enough to notice that it is not the file that was used last.

A small file beside mount.db, ``mount.witness``. SQLite notices damage inside its files, but not that one of them is gone:
without its log (mount.db-wal) a database is whole, only older, and would give inode numbers again that the
kernel holds for other files. So each opening is counted, in mount.db and here, and the end in good order is noted.

After a restart of the machine an older mount.db is what a loss of power leaves, and no damage: the kernel that held
inodes is gone, too.
"""

import os
import struct
from pathlib import Path
from typing import Final, Literal

import msgspec

SIZE_BYTES: Final = 1024
"""The file's constant size: one write replaces it all."""
MAX_REASON: Final = 500
FIRST_INODE: Final = 2
"""1 is the root."""
INODES_BETWEEN: Final = 1 << 34
"""A database that replaces another gives inode numbers from so far above where that one's last opening began: no worker
lives long enough to give as many."""
MAX_FIRST_INODE: Final = 1 << 43
"""File handles hold 44 bits of an inode number (fs/kernel/handles.py); beyond this the numbers begin anew. Hundreds of
databases were replaced by then while this directory stayed."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_WAL_HEADER: Final = struct.Struct(">8I")
_WAL_MAGIC: Final = 0x377F0682
"""The lowest bit says in which byte order the checksums are."""


class Testimony(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says."""

    openings: int = 0
    """How often mount.db was opened by a worker; it says the same, or one more after a crash at the wrong moment."""
    state: Literal["open", "closed", "damaged"] = "closed"
    reason: str = ""
    """What was wrong with it while it was in use."""
    first_inode: int = FIRST_INODE
    """Inode numbers below were given before the last opening."""
    boot: str = ""
    file: tuple[int, int, int, int] | None = None
    """Of a database that was closed in good order: its file's number, size, and times of change (mtime and ctime, ns)."""


class Witness:
    """The open file. Its methods do not wait for a disk: nothing is synced, see the module docstring."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. One that cannot be read testifies nothing."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.before: Final = _read(self._fd)
        """What the last worker left; None: nothing was ever written, or it is garbage."""
        self._now = self.before or Testimony()

    def opened(self, *, openings: int, first_inode: int) -> None:
        """Note that a worker begins to use mount.db."""
        self._write(
            Testimony(openings=openings, state="open", first_inode=first_inode, boot=boot_id())
        )

    def closed(self, file: os.stat_result | None = None) -> None:
        """Note that mount.db is about to be closed in good order; with *file*, that it is, and how its file was left."""
        if self._now.state != "damaged":
            seen = None if file is None else _seen(file)
            self._write(msgspec.structs.replace(self._now, state="closed", file=seen))

    def damaged(self, reason: str) -> None:
        """Note what is wrong with mount.db, so that no later worker trusts it."""
        self._write(msgspec.structs.replace(self._now, state="damaged", reason=reason[:MAX_REASON]))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def why_distrusted(self, database: Path) -> str:
        """Say why *database* must not be trusted, before it was opened; empty: nothing speaks against it."""
        before = self.before
        if before is None:
            return ""
        if before.state == "damaged":
            return f"{before.reason} (found while it was in use)"
        if not database.exists():
            return "it is gone"
        if before.boot != boot_id() or before.state == "closed":
            return ""
        return "" if _has_log(database) else "its log, mount.db-wal, is gone or damaged"

    def is_as_it_was_closed(self, database: Path) -> bool:
        """Whether *database* was closed in good order and nothing wrote to its file since, nor put another in its place.

        Whoever changes a file, or copies one over it, changes its ctime; only a disk that fails does not.
        """
        before = self.before
        if before is None or before.state != "closed" or before.file is None:
            return False
        return before.file == _seen(database.stat()) and not _log_of(database).exists()

    def why_outdated(self, openings: int) -> str:
        """Say why a database that was opened so often must not be trusted; empty: nothing speaks against it."""
        before = self.before
        if before is None or before.boot != boot_id() or openings >= before.openings:
            return ""
        return "it is older than the one that was used last"

    def next_first_inode(self) -> int:
        """Return where the inode numbers of a new database begin: above all that were ever given in this directory."""
        if self.before is None:
            return FIRST_INODE
        first = self.before.first_inode + INODES_BETWEEN
        return first if first <= MAX_FIRST_INODE else FIRST_INODE

    def _write(self, testimony: Testimony) -> None:
        self._now = testimony
        os.pwrite(self._fd, msgspec.json.encode(testimony).ljust(SIZE_BYTES, b"\n"), 0)


def boot_id() -> str:
    """Return what distinguishes this start of the machine from others."""
    return _BOOT_ID.read_text().strip()


def _seen(file: os.stat_result) -> tuple[int, int, int, int]:
    return file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns


def _log_of(database: Path) -> Path:
    return database.with_name(database.name + "-wal")


def _read(fd: int) -> Testimony | None:
    try:
        return msgspec.json.decode(os.pread(fd, SIZE_BYTES, 0), type=Testimony)
    except msgspec.MsgspecError:
        return None


def _has_log(database: Path) -> bool:
    """Whether the write-ahead log is there and SQLite will read it: a worker that was not stopped in order leaves one."""
    try:
        with _log_of(database).open("rb") as file:
            header = file.read(_WAL_HEADER.size)
    except FileNotFoundError:
        return False
    if len(header) < _WAL_HEADER.size:
        return False
    magic, *_, first_sum, second_sum = _WAL_HEADER.unpack(header)
    if magic & ~1 != _WAL_MAGIC:
        return False
    words = struct.unpack(f"{'>' if magic & 1 else '<'}6I", header[:24])
    first = second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFF_FFFF
        second = (second + odd + first) & 0xFFFF_FFFF
    return (first, second) == (first_sum, second_sum)
