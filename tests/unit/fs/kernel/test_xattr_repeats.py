"""Extended attributes whose request the kernel repeats because the worker died before it answered."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyfuse3
import pytest

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.kernel.operations import Operations
from s3mgrd.fs.kernel.repeats import Opcode
from s3mgrd.fuse.abi import IN_HEADER, UNIQUE_RESEND, Resent, parse_resent
from s3mgrd.fuse.connection import make_ring
from s3mgrd.worker.protocol import RING_BYTES
from s3mgrd.worker.ring import Ring
from tests.unit.fs.conftest import Lab

THREAD = 77
NAME = b"user.a"


@dataclass(frozen=True)
class Caller:
    """What the handlers look at of a `RequestContext`."""

    pid: int = THREAD


CTX: Any = Caller()  # Any: pyfuse3 makes no contexts outside of requests


@pytest.fixture
def memory() -> Iterator[int]:
    fd = make_ring()
    yield fd
    os.close(fd)


async def set_as_pyfuse3(
    operations: Operations, inode: Inode, value: bytes, *, creates: bool, replaces: bool = False
) -> int:
    """Call the handlers as pyfuse3 does for setxattr with its flags; returns the errno."""
    number = cast("pyfuse3.InodeT", inode)
    try:
        if creates:
            try:
                await operations.getxattr(number, NAME, CTX)
            except pyfuse3.FUSEError as error:
                if error.errno != errno.ENODATA:
                    raise
            else:
                return errno.EEXIST
        elif replaces:
            await operations.getxattr(number, NAME, CTX)
        await operations.setxattr(number, NAME, value, CTX)
    except pyfuse3.FUSEError as error:
        return error.errno
    return 0


def die(memory: int) -> bytes:
    """Return what the ring holds now: no checkpoint since the handler returned, so nothing is answered yet."""
    return os.pread(memory, RING_BYTES, 0)


def takeover(memory: int, lab: Lab, *calls: Resent) -> Operations:
    """Begin as a worker to which the kernel sends *calls* again."""
    ring = Ring(memory)
    ring.resume(calls)
    return Operations(lab.fs, ring)


@pytest.mark.parametrize("was_there", [False, True])
async def test_a_repeated_set_succeeds_once(lab: Lab, memory: int, *, was_there: bool) -> None:
    """XATTR_CREATE that was done is no EEXIST, and XATTR_REPLACE finds what it replaced; a new call does get EEXIST."""
    flags = {"creates": not was_there, "replaces": was_there}
    async with lab.mounted():
        inode = (await lab.write("a", b"hello")).id
        operations = takeover(memory, lab)
        if was_there:
            assert await set_as_pyfuse3(operations, inode, b"0", creates=True) == 0
        assert await set_as_pyfuse3(operations, inode, b"1", **flags) == 0
        left = die(memory)
    call = Resent(Opcode.SETXATTR, inode, NAME, THREAD)
    async with lab.mounted():
        os.pwrite(memory, left, 0)
        operations = takeover(memory, lab, call)
        assert await set_as_pyfuse3(operations, inode, b"1", **flags) == 0
        assert await set_as_pyfuse3(operations, inode, b"2", creates=True) == errno.EEXIST
        assert lab.fs.volume.extras.xattrs(inode) == {"user.a": b"1"}


async def test_a_repeated_removal_succeeds_once(lab: Lab, memory: int) -> None:
    async with lab.mounted():
        inode = (await lab.write("a", b"hello")).id
        number = cast("pyfuse3.InodeT", inode)
        operations = takeover(memory, lab)
        await operations.setxattr(number, NAME, b"1", CTX)
        await operations.removexattr(number, NAME, CTX)
        left = die(memory)
    async with lab.mounted():
        os.pwrite(memory, left, 0)
        operations = takeover(memory, lab, Resent(Opcode.REMOVEXATTR, inode, NAME, THREAD))
        await operations.removexattr(number, NAME, CTX)
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await operations.removexattr(number, NAME, CTX)
        assert caught.value.errno == errno.ENODATA


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.SETXATTR, bytes(8) + NAME + b"\0value\0with zeros"),
        (Opcode.REMOVEXATTR, NAME + b"\0"),
    ],
)
def test_the_name_is_found_in_what_the_kernel_repeats(opcode: int, body: bytes) -> None:
    header = IN_HEADER.pack(
        IN_HEADER.size + len(body), opcode, 5 | UNIQUE_RESEND, 9, 0, 0, THREAD, 0, 0
    )
    assert parse_resent(header + body) == Resent(opcode, 9, NAME, THREAD)
