"""Random programs, drawn by hypothesis: lists of steps of which most know what there is to work on.

A draft names no path but says what kind of thing it is about (`steps.Pick`), because what there is depends on the steps before. A
share of the picks is wild on purpose: calls that fail have to fail alike.
"""

import os
import random
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.e2e.differential.steps import (
    EVENTS,
    RECENT_NS,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    SLOTS,
    XATTRS,
    Pick,
    Step,
    Wanted,
)

WILD_SHARE: Final = 0.12
LENGTHS: Final = (0, 1, 10, 100, 4096, 5000, 40_000)
OFFSETS: Final = (0, 0, 0, 10, 1000, 4096, 50_000)
MIB: Final = 1 << 20
LARGE_LENGTHS: Final = (
    *LENGTHS, 2 * MIB, 5 * MIB + 1, 6 * MIB, 11 * MIB, 26 * MIB, 60 * MIB, 60 * MIB, 60 * MIB,
)  # fmt: skip
"""Up to what is sent while it is written, and to more than the local disk may take of it."""
LARGE_OFFSETS: Final = (
    0, 0, 0, 1000, 5 * MIB - 1, 5 * MIB, 12 * MIB + 7, 40 * MIB, 69 * MIB, 70 * MIB - 3, 75 * MIB + 11, 90 * MIB,
)  # fmt: skip
"""Around the borders of parts, in files so large that S3 is asked to copy what did not change."""
MODES: Final = (0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o444, 0)
OWNERS: Final = (0, 1000, 1001)
TROUBLES: Final = ("unavailable", "error", "reset", "lost", "slow")

Arguments = tuple[object, ...]


class _Source:
    """Random drafts. `_calls` has a weight and a maker of arguments for each call."""

    def __init__(self, numbers: random.Random) -> None:
        self._random = numbers
        self._calls: dict[str, tuple[int, Callable[[], Arguments]]] = {
            "write": (6, lambda: (self._some_file(), self._flag(0.3), *self._data(), self._at())),
            "append": (3, lambda: (self._some_file(), *self._data())),
            "read": (3, lambda: (self._pick(Wanted.FILE),)),
            "truncate": (3, lambda: (self._pick(Wanted.FILE), self._at())),
            "exclusive": (2, lambda: (self._pick(Wanted.FREE), self._choose(MODES))),
            "open": (6, self._open),
            "pwrite": (4, lambda: (self._slot(Wanted.WRITER), *self._data(), self._at())),
            "pread": (
                3,
                lambda: (self._slot(Wanted.READER), self._choose(self._lengths), self._at()),
            ),
            "ftruncate": (2, lambda: (self._slot(Wanted.WRITER), self._at())),
            "map_write": (2, lambda: (self._slot(Wanted.MAPPABLE), *self._data(), self._at())),
            "map_read": (1, lambda: (self._slot(Wanted.READER),)),
            "copy_range": (1, self._copy_range),
            "fsync": (1, lambda: (self._slot(Wanted.SLOT), self._flag(0.5))),
            "fstat": (1, lambda: (self._slot(Wanted.SLOT),)),
            "fchmod": (1, lambda: (self._slot(Wanted.SLOT), self._choose(MODES))),
            "futime": (1, lambda: (self._slot(Wanted.SLOT), *self._times())),
            "fsetxattr": (1, lambda: (self._slot(Wanted.SLOT), *self._xattr())),
            "close": (2, lambda: (self._slot(Wanted.SLOT),)),
            "mkdir": (5, lambda: (self._pick(Wanted.FREE), self._choose((0o755, 0o700, 0o2775)))),
            "rmdir": (1, lambda: (self._pick(Wanted.EMPTY),)),
            "unlink": (3, lambda: (self._pick(Wanted.NAME),)),
            "rename": (7, self._rename),
            "link": (1, lambda: (self._pick(Wanted.NAME), self._pick(Wanted.FREE))),
            "symlink": (1, lambda: (self._pick(Wanted.FREE), self._pick(Wanted.ANY))),
            "readlink": (1, lambda: (self._pick(Wanted.LINK),)),
            "mknod": (1, lambda: (self._pick(Wanted.FREE), self._special(), self._choose(MODES))),
            "chmod": (2, lambda: (self._pick(Wanted.ANY), self._choose(MODES))),
            "chown": (2, lambda: (self._pick(Wanted.ANY), *self._owner(), self._flag(0.7))),
            "utime": (2, lambda: (self._pick(Wanted.ANY), *self._times(), self._flag(0.7))),
            "setxattr": (3, lambda: (self._pick(Wanted.ANY), *self._xattr())),
            "getxattr": (1, self._tagged),
            "listxattr": (1, lambda: (self._pick(Wanted.ANY),)),
            "removexattr": (1, self._tagged),
            "stat": (3, lambda: (self._pick(Wanted.ANY),)),
            "listdir": (2, lambda: (self._pick(Wanted.DIRECTORY),)),
        }
        self._names = list(self._calls)
        self._weights = [weight for weight, _ in self._calls.values()]
        self._lengths: tuple[int, ...] = LENGTHS
        self._offsets: tuple[int, ...] = OFFSETS
        self._known_share = 0.6

    def enlarge(self) -> None:
        """From here on work in large files, few of them, and in little else."""
        self._lengths, self._offsets, self._known_share = LARGE_LENGTHS, LARGE_OFFSETS, 0.85
        about_data = (
            "write", "append", "read", "truncate", "open", "pwrite", "pread", "ftruncate", "map_write", "map_read",
            "copy_range", "fsync", "close", "unlink", "rename", "chmod", "utime", "stat",
        )  # fmt: skip
        self._names = list(about_data)
        self._weights = [self._calls[name][0] for name in about_data]

    def happens(self, in_a_thousand: int) -> bool:
        return self._random.randrange(1000) < in_a_thousand

    def call(self) -> Step:
        name = self._random.choices(self._names, self._weights)[0]
        return Step(name, self._calls[name][1]())

    def event(self) -> Step:
        name = self._random.choices(list(EVENTS), list(EVENTS.values()))[0]
        if name == "kill":
            return Step(name, (self._choose((0, 1, 5, 20)),))
        if name == "outside":
            what = self._choose(("put", "put with attributes", "delete"))
            wanted = Wanted.NAME if what == "delete" or self._flag(0.5) else Wanted.FREE
            return Step(name, (what, self._pick(wanted), self._random.randrange(1 << 30)))
        if name == "trouble":
            return Step(name, (self._choose(TROUBLES), self._choose((1, 2, 3, 6))))
        return Step(name)

    def _pick(self, wanted: Wanted) -> Pick:
        number = self._random.randrange(1 << 16)
        return Pick(Wanted.WILD if self._flag(WILD_SHARE) else wanted, number)

    def _slot(self, wanted: Wanted) -> Pick | int:
        number = self._random.randrange(1 << 16)
        return number % SLOTS if self._flag(WILD_SHARE) else Pick(wanted, number)

    def _tagged(self) -> Arguments:
        pick = self._pick(Wanted.TAGGED)
        return (pick,) if pick.wanted is Wanted.TAGGED else (pick, self._choose(XATTRS))

    def _choose(self, options: tuple[object, ...]) -> object:
        return self._random.choice(options)

    def _flag(self, share: float) -> bool:
        return self._random.random() < share

    def _some_file(self) -> Pick:
        return self._pick(Wanted.FILE if self._flag(self._known_share) else Wanted.FREE)

    def _data(self) -> tuple[int, int]:
        return self._random.choice(self._lengths), self._random.randrange(256)

    def _at(self) -> int:
        return self._random.choice(self._offsets)

    def _open(self) -> Arguments:
        flags = self._random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR))
        for flag, share in (
            (os.O_CREAT, 0.5), (os.O_TRUNC, 0.2), (os.O_EXCL, 0.1), (os.O_APPEND, 0.2),
            (os.O_NOFOLLOW, 0.1), (os.O_DIRECT, 0.2),
        ):  # fmt: skip
            flags |= flag if self._flag(share) else 0
        # What O_EXCL means without O_CREAT, and O_TRUNC without the right to write, nobody says.
        if not flags & os.O_CREAT:
            flags &= ~os.O_EXCL
        if flags & os.O_ACCMODE == os.O_RDONLY:
            flags &= ~os.O_TRUNC
        is_new = flags & os.O_CREAT and (flags & os.O_EXCL or not self._flag(self._known_share))
        path = self._pick(Wanted.FREE if is_new else Wanted.FILE)
        return self._random.randrange(SLOTS), path, flags, self._choose(MODES)

    def _copy_range(self) -> Arguments:
        source, target = self._slot(Wanted.READER), self._slot(Wanted.WRITER)
        return source, target, self._choose(self._lengths), self._at(), self._at()

    def _rename(self) -> Arguments:
        flags = self._random.choice((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        if flags == RENAME_EXCHANGE:
            return self._pick(Wanted.ANY), self._pick(Wanted.ANY), flags
        if flags == 0 and self._flag(0.4):
            return self._pick(Wanted.NAME), self._pick(Wanted.NAME), flags
        return self._pick(Wanted.ANY), self._pick(Wanted.FREE), flags

    def _special(self) -> int:
        return self._random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG))

    def _owner(self) -> tuple[int, int]:
        return self._random.choice((*OWNERS, -1)), self._random.choice(OWNERS)

    def _times(self) -> tuple[int, int]:
        return self._random.randrange(RECENT_NS), self._random.randrange(RECENT_NS)

    def _xattr(self) -> Arguments:
        length, flags = self._choose((0, 1, 40)), self._choose((0, 0, 0, 0, 1, 2))
        return self._choose(XATTRS), length, flags


def _draft(number: int, *, events: bool, large: bool) -> Step:
    """Make the draft that one number stands for."""
    source = _Source(random.Random(number))  # noqa: S311 - no secret
    if large:
        source.enlarge()
    return source.event() if events and source.happens(sum(EVENTS.values())) else source.call()


def programs(
    length: int, *, events: bool = True, large: bool = False
) -> st.SearchStrategy[list[Step]]:
    """Draw programs of *length* steps, the last of which is a checkpoint.

    A step is one draw, so that programs may be long, and leaving steps out of one changes no other.
    """
    drafts = st.integers(0, (1 << 48) - 1).map(partial(_draft, events=events, large=large))
    drawn = st.lists(drafts, min_size=length - 1, max_size=length - 1)
    return drawn.map(lambda steps: [*steps, Step("checkpoint")])


def program(number: int, length: int, *, events: bool = True, large: bool = False) -> list[Step]:
    """Return the program that hypothesis draws with the seed *number*: always the same."""
    drawn: list[list[Step]] = []

    # The first example is the simplest one, whatever the seed.
    @seed(number)
    @settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(length, events=events, large=large))
    def draw(steps: list[Step]) -> None:
        drawn.append(steps)

    draw()
    return drawn[-1]
