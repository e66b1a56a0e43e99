"""The daemon with workers whose clock a test moves; run as ``python -m tests.e2e.clocked_daemon``.

What the workers believe of S3 is older by as much as the test has said (`Clock`). The kernel has a clock of its own, so
workers tell it to believe nothing: each look at a name comes to the worker, which answers by what it knows itself. All
else is as in the daemon.
"""

import mmap
import os
import struct
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyfuse3 import EntryAttributes

import s3mgrd.daemon
from s3mgrd import __main__ as program
from s3mgrd.cache.nodes import Listed, Node
from s3mgrd.fs.kernel import express, operations
from s3mgrd.fs.kernel.showing import Piece, Shower, absence, absence_reply
from s3mgrd.fs.volume import Volume
from s3mgrd.worker import main as worker
from s3mgrd.worker.spawn import DEFAULT_WARM, WorkerProcesses

if TYPE_CHECKING:
    from tests.e2e.lab import Daemon, Lab

NUMBER: Final = struct.Struct("q")
FILE: Final = "clock"
"""In the daemon's HOME, which workers have, too: how many ns later it is than it is."""


class Clock:
    """The clock of a daemon's workers.

    Args:
        home: the HOME of the daemon, before it is started.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        self._path.write_bytes(NUMBER.pack(0))

    def later(self, seconds: float) -> None:
        """Let time pass for all workers at once."""
        with self._path.open("r+b") as file, mmap.mmap(file.fileno(), NUMBER.size) as shared:
            (before,) = NUMBER.unpack(shared)
            shared[:] = NUMBER.pack(before + int(seconds * 1e9))


def start_clocked(lab: "Lab") -> "tuple[Daemon, Clock]":
    """Start such a daemon; its clock comes with it."""
    daemon = lab.daemon(start=False)
    clock = Clock(daemon.base / "home")
    daemon.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    daemon.program = (sys.executable, "-m", "tests.e2e.clocked_daemon")
    return daemon.start(), clock


class Asking(Shower):
    """Shows what there is, and has the kernel ask again each time."""

    def fill(self, entry: EntryAttributes, node: Node | Listed, valid_s: float) -> None:
        super().fill(entry, node, 0.0)

    def entry_reply(
        self, node: Node, valid_s: float, attributes_valid_s: float | None = None
    ) -> bytes:
        return super().entry_reply(node, 0.0)

    def attributes_reply(self, node: Node, valid_s: float) -> bytes:
        return super().attributes_reply(node, 0.0)

    def piece(
        self, entries: Iterable[tuple[Listed, float]], room: int, position: int, head: bytes = b""
    ) -> Piece:
        return super().piece(((node, 0.0) for node, _ in entries), room, position, head)


def set_clock() -> None:
    """Set the clock of the workers that are forked from this process."""
    with (Path(os.environ["HOME"]) / FILE).open("rb") as file:
        shared = mmap.mmap(file.fileno(), NUMBER.size, prot=mmap.PROT_READ)

    def now_ns() -> int:
        later_ns: int = NUMBER.unpack(shared)[0]
        return time.time_ns() + later_ns

    vars(worker)["Volume"] = partial(Volume, now_ns=now_ns)
    vars(operations)["Shower"] = Asking
    vars(operations)["absence"] = lambda _: absence(0.0)
    vars(express)["absence_reply"] = lambda _: absence_reply(0.0)


if __name__ == "__main__":
    vars(s3mgrd.daemon)["WorkerProcesses"] = partial(
        WorkerProcesses, warm=(*DEFAULT_WARM, "tests.e2e.clocked_daemon:set_clock")
    )
    sys.exit(program.run(sys.argv[1:]))
