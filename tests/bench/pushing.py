"""What pushing whole small files into the page cache (NOTIFY_STORE) would be worth: asked for or pushed, side by side.

Run: ``python -m tests.bench.pushing [--files 2000] [--size-kib 16] [--rounds 3]``; as root, without S3. A file system of a few lines
has all bytes in memory and believes its names for ever, as a mount does with files that were fetched ahead. A program
lists the directory and then reads each file. *asked*: the kernel asks for the bytes. *pushed*: they were stored in the page
cache before the program began, and what that took is told beside it. What the program gains is the most that pushing can
give, because nothing else is going on; it pays where that is more than what pushing takes.
"""

import argparse
import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

VALID_S: Final = 1e6
FIRST: Final = pyfuse3.ROOT_INODE + 1
PROGRAM: Final = """
import os, sys, time
names = [entry.path for entry in os.scandir(sys.argv[1]) if entry.stat().st_size]
begun = time.perf_counter()
for name in names:
    fd = os.open(name, os.O_RDONLY)
    assert len(os.read(fd, 1 << 20)) == int(sys.argv[2])
    os.close(fd)
print(time.perf_counter() - begun)
"""


class Memory(pyfuse3.Operations):
    """One directory of files with the same bytes."""

    def __init__(self, count: int, content: bytes) -> None:
        super().__init__()
        self.count: Final = count
        self.content: Final = content

    def _entry(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        is_root = inode == pyfuse3.ROOT_INODE
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o644)
        entry.st_size = 0 if is_root else len(self.content)
        entry.entry_timeout = entry.attr_timeout = VALID_S
        return entry

    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        """Show attributes."""
        return self._entry(inode)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name, which is a number."""
        if not name.isdigit():
            raise FUSEError(errno.ENOENT)
        return self._entry(FIRST + int(name))

    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        """Open the directory."""
        return pyfuse3.FileHandleT(inode)

    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """Give all entries."""
        for number in range(start_id, self.count):
            entry = self._entry(FIRST + number)
            if not pyfuse3.readdir_reply(token, b"%d" % number, entry, number + 1):
                return

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: RequestContext
    ) -> FileInfo:
        """Open a file, and keep what the kernel has of it."""
        return FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Read."""
        return self.content[off : off + size]


def read_all(directory: str, size: int) -> float:
    """Run the program; returns its seconds."""
    command: Sequence[str] = (sys.executable, "-S", "-c", PROGRAM, directory, str(size))
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


async def measure(count: int, size: int, *, push: bool) -> tuple[float, float]:
    """Mount, push if wanted, and read everything once; returns the seconds of pushing and of the program."""
    operations = Memory(count, os.urandom(size))
    took_s = 0.0
    with tempfile.TemporaryDirectory() as directory:
        options = (set(pyfuse3.default_options) | {"fsname=pushing"}) - {"default_permissions"}
        pyfuse3.init(operations, directory, options)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                # The kernel takes bytes of inodes that it knows, and knows them by a listing.
                await trio.to_thread.run_sync(
                    lambda: [entry.stat() for entry in Path(directory).iterdir()]
                )
                if push:
                    begun = time.perf_counter()
                    for number in range(count):
                        pyfuse3.notify_store(pyfuse3.InodeT(FIRST + number), 0, operations.content)
                    took_s = time.perf_counter() - begun
                program_s = await trio.to_thread.run_sync(read_all, directory, size)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)
    return took_s, program_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--size-kib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    count, size = chosen.files, chosen.size_kib << 10
    pushing_us, pushed_us, asked_us = [], [], []
    for _ in range(chosen.rounds):
        took_s, program_s = trio.run(lambda: measure(count, size, push=True))
        pushing_us.append(took_s / count * 1e6)
        pushed_us.append(program_s / count * 1e6)
        asked_us.append(trio.run(lambda: measure(count, size, push=False))[1] / count * 1e6)
    asked, pushed, pushing = min(asked_us), min(pushed_us), min(pushing_us)
    print(f"{count} files of {chosen.size_kib} KiB, microseconds a file")
    print(f"open, read, close: asked {asked:.0f}, pushed {pushed:.0f}: {asked - pushed:.0f} less")
    print(f"pushing: {pushing:.0f}, in the process that serves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
