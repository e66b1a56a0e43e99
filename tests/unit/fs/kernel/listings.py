"""Listings as the kernel asks `Express` for them, and reads them."""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from s3mgrd.fs.kernel.express import Express
from s3mgrd.fs.kernel.handles import Handles
from s3mgrd.fs.kernel.showing import Shower
from s3mgrd.fs.volume import NS
from tests.unit.fs.conftest import Lab

ENTRY = struct.Struct("=4Q2I")
ATTRIBUTES = struct.Struct("=3Q3q10I")
DIRENT = struct.Struct("=2Q2I")
PAGE = 4096


def express_of(lab: Lab) -> Express:
    return Express(lab.fs, Shower(lab.fs.volume, lab.fs.stages), Handles())


def opened(express: Express, inode: int) -> int:
    """Return the handle of a directory that a program opens."""
    answer = express.opendir(inode)
    assert isinstance(answer, bytes)
    handle, _, padding = struct.unpack("=QIi", answer)
    assert padding == 0
    return int(handle)


@dataclass
class Shown:
    """One entry as the kernel reads it."""

    name: str
    position: int
    inode: int
    valid_s: float
    mode: int
    size: int


def entries(answer: object) -> Iterator[Shown]:
    """Read a reply to READDIRPLUS as fs/fuse/readdir.c does, without the two dots."""
    assert isinstance(answer, bytes)
    at = 0
    while at < len(answer):
        node, generation, valid, attr_valid, nsec, attr_nsec = ENTRY.unpack_from(answer, at)
        attributes = ATTRIBUTES.unpack_from(answer, at + ENTRY.size)
        ino, position, length, kind = DIRENT.unpack_from(answer, at + ENTRY.size + ATTRIBUTES.size)
        start = at + ENTRY.size + ATTRIBUTES.size + DIRENT.size
        if not node:  # which the kernel passes on without a look at the rest
            assert answer[start : start + length] == (b".", b"..")[length - 1]
            assert (position, kind) == (1, stat.S_IFDIR >> 12)
            at = start + 8
            continue
        assert (node, generation) == (ino, 0)
        assert (valid, nsec) == (attr_valid, attr_nsec)
        assert attributes[0] == node
        assert kind == stat.S_IFMT(attributes[9]) >> 12
        name = answer[start : start + length].decode()
        yield Shown(name, position, node, valid + nsec / NS, attributes[9], attributes[1])
        at = start + length + -length % 8
    assert at == len(answer)
