"""What is done: steps as plain data, so that a program can be printed, cut and repeated."""

import errno
import os
import random
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

NAMES: Final = ("a", "a-", "b", "é +%&")
"""Few, so that steps meet; some of their keys sort between ``a`` and ``a/``, one needs escapes."""
XATTRS: Final = ("user.a", "user.b c", "user.ü")
SLOTS: Final = 4
"""Files that a program may have open at a time."""
RECENT_NS: Final = 1_500_000_000 * 10**9
"""Times that a program sets are older; all others are of the moment."""
CONTENT_PERIOD: Final = 65_521
"""A prime: what is a part, a block or a page too far is something else."""
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

EVENTS: Final = {
    "kill": 6,
    "remount": 1,
    "expire": 8,
    "outside": 8,
    "trouble": 8,
    "checkpoint": 8,
}
"""What befalls a mount, and how often in a thousand steps each is expected."""


class Step(NamedTuple):
    """One step: a method of `Side` or, for what befalls a mount, of a `Course`; and its arguments."""

    name: str
    arguments: tuple[object, ...] = ()

    @property
    def is_event(self) -> bool:
        """Whether it is something that befalls the mount, not a program's call."""
        return self.name in EVENTS

    def __str__(self) -> str:
        return f"{self.name}{self.arguments}"


class Wanted(Enum):
    """What an argument shall be: something of this kind that the tree has when the step's turn comes."""

    FILE = "file"
    DIRECTORY = "directory"
    EMPTY = "empty directory"
    LINK = "symbolic link"
    NAME = "anything but a directory"
    ANY = "anything"
    FREE = "a free name in a directory"
    WILD = "any path at all"
    TAGGED = "a path and the name of an extended attribute that it has"
    WRITER = "a slot of a file open for writing"
    READER = "a slot of a file open for reading"
    MAPPABLE = "a slot of a file open for both"
    SLOT = "a slot that is open"


class Pick(NamedTuple):
    """An argument that is yet to be chosen: the *number*th, so to speak, of what there is."""

    wanted: Wanted
    number: int


def content(length: int, seed: int) -> bytes:
    """Return the bytes that a step writes: few, or few again and again."""
    few = _few(min(length, CONTENT_PERIOD), seed)
    return few if length <= CONTENT_PERIOD else (few * (length // CONTENT_PERIOD + 1))[:length]


@lru_cache(256)
def _few(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)  # noqa: S311


def describe(result: object) -> str:
    """Write a result for people: an errno by its name."""
    if isinstance(result, tuple) and result[:1] == ("errno",):
        return errno.errorcode.get(result[1], str(result[1]))
    return repr(result)


def shown_flags(flags: int) -> str:
    """Write flags of open(2) for people."""
    names = [n for n in ("O_CREAT", "O_TRUNC", "O_EXCL", "O_APPEND", "O_DIRECT", "O_NOFOLLOW")]
    access = ("O_RDONLY", "O_WRONLY", "O_RDWR")[flags & os.O_ACCMODE]
    return "|".join([access, *(n for n in names if flags & getattr(os, n))])
