"""File handles that mean the same in the next worker: a handle's number says all there is to know of it.

Layout of the 64 bits, ours: bits 0-43 the inode number, bit 44 whether it may write, bits 48-63 a serial number that tells
apart the handles of one inode. Nothing about a handle is stored, so nothing is lost with a worker; what is
remembered of one (how it reads, that it writes) is only there to be faster.
"""

from typing import Final, NamedTuple

from s3mgrd.cache.nodes import Inode
from s3mgrd.fs.reading.comparing import SERIALS

_INODE_BITS: Final = 44
_INODE_MASK: Final = (1 << _INODE_BITS) - 1
_WRITES: Final = 1 << _INODE_BITS
_SERIAL_SHIFT: Final = 48


class Handle(NamedTuple):
    """What a handle's number says."""

    inode: Inode
    writes: bool


class Handles:
    """Makes and reads handle numbers."""

    def __init__(self) -> None:
        self._serial = 0

    def make(self, inode: Inode, *, writes: bool = False) -> int:
        """Return a number for a new handle."""
        self._serial = (self._serial + 1) % SERIALS
        return self._serial << _SERIAL_SHIFT | (_WRITES if writes else 0) | inode

    def newest(self) -> int:
        """Return the serial number of the last handle."""
        return self._serial

    def of(self, handle: int) -> int:
        """Return the serial number of a handle."""
        return handle >> _SERIAL_SHIFT


def read_handle(number: int) -> Handle:
    """Say what a handle's number means, whichever worker made it."""
    return Handle(Inode(number & _INODE_MASK), bool(number & _WRITES))
