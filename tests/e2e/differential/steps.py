"""What is done: steps as plain data, so that a program can be printed, cut and repeated."""

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

NAMES: Final = ("a", "a-", "b", "é +%&")
"""Few, so that steps meet; some of their keys sort between ``a`` and ``a/``, one needs escapes."""
SLOTS: Final = 4
"""Files that a program may have open at a time."""
LENGTHS: Final = (0, 1, 10, 100, 4096, 5000, 40_000)
OFFSETS: Final = (0, 0, 0, 10, 1000, 4096, 50_000)
MODES: Final = (0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o444, 0)
OWNERS: Final = (0, 1000, 1001)
XATTRS: Final = ("user.a", "user.b c", "user.ü")
RECENT_NS: Final = 1_500_000_000 * 10**9
"""Times that a program sets are older; all others are of the moment."""
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
TROUBLES: Final = ("unavailable", "error", "reset", "lost", "slow")


class Step(NamedTuple):
    """One step: a method of `Side` or, for what befalls a mount, of a `Course`; and its arguments."""

    name: str
    arguments: tuple[object, ...] = ()

    @property
    def is_event(self) -> bool:
        """Whether it is something that befalls the mount, not a program's call."""
        return self.name in EVENTS


EVENTS: Final = {
    "kill": 6,
    "remount": 1,
    "expire": 8,
    "outside": 8,
    "trouble": 8,
    "checkpoint": 8,
}
"""How often in a thousand steps each is expected."""


def generate(seed: int, count: int, *, events: bool = True) -> Iterator[Step]:
    """Give *count* steps, always the same for one seed; a checkpoint is the last."""
    source = _Source(random.Random(seed))  # noqa: S311 - no secret
    for _ in range(count - 1):
        yield source.event() if events and source.happens(sum(EVENTS.values())) else source.call()
    yield Step("checkpoint")


class _Source:
    """Random steps. A method of each name makes that step's arguments."""

    def __init__(self, numbers: random.Random) -> None:
        self._random = numbers
        makers: dict[str, tuple[int, Callable[[], tuple[object, ...]]]] = {
            "write": (5, lambda: (self._path(), self._flag(0.3), *self._data(), self._offset())),
            "append": (2, lambda: (self._path(), *self._data())),
            "read": (3, lambda: (self._path(),)),
            "truncate": (2, lambda: (self._path(), self._offset())),
            "exclusive": (1, lambda: (self._path(), self._choose(MODES))),
            "open": (6, lambda: (self._slot(), self._path(), self._flags(), self._choose(MODES))),
            "pwrite": (4, lambda: (self._slot(), *self._data(), self._offset())),
            "pread": (3, lambda: (self._slot(), self._choose(LENGTHS), self._offset())),
            "ftruncate": (2, lambda: (self._slot(), self._offset())),
            "map_write": (2, lambda: (self._slot(), *self._data(), self._offset())),
            "fsync": (1, lambda: (self._slot(),)),
            "fstat": (1, lambda: (self._slot(),)),
            "fchmod": (1, lambda: (self._slot(), self._choose(MODES))),
            "fsetxattr": (1, lambda: (self._slot(), self._choose(XATTRS), *self._value())),
            "close": (2, lambda: (self._slot(),)),
            "mkdir": (6, lambda: (self._path(), self._choose((0o755, 0o700, 0o2775)))),
            "rmdir": (1, lambda: (self._path(),)),
            "unlink": (2, lambda: (self._path(),)),
            "rename": (6, lambda: (self._path(), self._path(), self._choose((0, 0, 0, 1, 2)))),
            "link": (1, lambda: (self._path(), self._path())),
            "symlink": (1, lambda: (self._path(), "/".join(self._parts()))),
            "readlink": (1, lambda: (self._path(),)),
            "mknod": (1, lambda: (self._path(), self._special(), self._choose(MODES))),
            "chmod": (2, lambda: (self._path(), self._choose(MODES))),
            "chown": (1, lambda: (*self._owned(), self._flag(0.7))),
            "utime": (2, lambda: (self._path(), *self._times(), self._flag(0.7))),
            "setxattr": (2, lambda: (self._path(), self._choose(XATTRS), *self._value())),
            "getxattr": (1, lambda: (self._path(), self._choose(XATTRS))),
            "listxattr": (1, lambda: (self._path(),)),
            "removexattr": (1, lambda: (self._path(), self._choose(XATTRS))),
            "stat": (3, lambda: (self._path(),)),
            "listdir": (2, lambda: (self._path(),)),
        }
        self._makers = {name: make for name, (_, make) in makers.items()}
        self._weights = [weight for weight, _ in makers.values()]

    def happens(self, in_a_thousand: int) -> bool:
        return self._random.randrange(1000) < in_a_thousand

    def call(self) -> Step:
        name = self._random.choices(list(self._makers), self._weights)[0]
        return Step(name, self._makers[name]())

    def event(self) -> Step:
        name = self._random.choices(list(EVENTS), list(EVENTS.values()))[0]
        if name == "kill":
            return Step(name, (self._random.choice((0, 1, 5, 20)),))
        if name == "outside":
            what = self._choose(("put", "put with attributes", "delete"))
            return Step(name, (what, self._path(), self._random.randrange(1 << 30)))
        if name == "trouble":
            return Step(name, (self._choose(TROUBLES), self._random.choice((1, 2, 3, 6))))
        return Step(name)

    def _choose(self, options: tuple[object, ...]) -> object:
        return self._random.choice(options)

    def _parts(self) -> list[str]:
        depth = self._random.choice((1, 1, 1, 2, 2, 2, 3))
        return [self._random.choice(NAMES) for _ in range(depth)]

    def _path(self) -> str:
        return "/".join(self._parts())

    def _slot(self) -> int:
        return self._random.randrange(SLOTS)

    def _flag(self, share: float) -> bool:
        return self._random.random() < share

    def _data(self) -> tuple[int, int]:
        return self._random.choice(LENGTHS), self._random.randrange(256)

    def _offset(self) -> int:
        return self._random.choice(OFFSETS)

    def _flags(self) -> int:
        flags = self._random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        for flag, share in (
            (os.O_CREAT, 0.7), (os.O_TRUNC, 0.2), (os.O_EXCL, 0.1), (os.O_APPEND, 0.2),
            (os.O_NOFOLLOW, 0.1),
        ):  # fmt: skip
            flags |= flag if self._flag(share) else 0
        # What O_EXCL means without O_CREAT, and O_TRUNC without the right to write, nobody says.
        if not flags & os.O_CREAT:
            flags &= ~os.O_EXCL
        if flags & os.O_ACCMODE == os.O_RDONLY:
            flags &= ~os.O_TRUNC
        return flags

    def _special(self) -> int:
        return self._random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG))

    def _owned(self) -> tuple[str, int, int]:
        return self._path(), self._random.choice((*OWNERS, -1)), self._random.choice(OWNERS)

    def _times(self) -> tuple[int, int]:
        return self._random.randrange(RECENT_NS), self._random.randrange(RECENT_NS)

    def _value(self) -> tuple[int, int]:
        return self._random.choice((0, 1, 40)), self._random.choice((0, 0, 1, 2))


def content(length: int, seed: int) -> bytes:
    """Return the bytes that a step writes."""
    return random.Random(seed).randbytes(length)  # noqa: S311


def describe(result: object) -> str:
    """Write a result for people: an errno by its name."""
    if isinstance(result, tuple) and result[:1] == ("errno",):
        return errno.errorcode.get(result[1], str(result[1]))
    return repr(result)
