"""Which of the things that a tree has a step is about: drafts become steps when their turn comes."""

import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from tests.e2e.differential.side import Side
from tests.e2e.differential.steps import NAMES, SLOTS, XATTRS, Pick, Step, Wanted

MAX_DEPTH: Final = 3


def resolved(draft: Step, side: Side) -> Step:
    """Choose what a draft leaves open, by what there is on the local side."""
    if not any(isinstance(argument, Pick) for argument in draft.arguments):
        return draft
    tree = _Tree(side)
    arguments: list[object] = []
    for argument in draft.arguments:
        if not isinstance(argument, Pick):
            arguments.append(argument)
        elif argument.wanted is Wanted.TAGGED:
            arguments += tree.tagged(argument.number)
        else:
            arguments.append(tree.choose(argument))
    return Step(draft.name, tuple(arguments))


class _Tree:
    """What there is, in an order that only the program decides."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._files: list[str] = []
        self._directories: list[str] = []
        self._empty: list[str] = []
        self._links: list[str] = []
        self._specials: list[str] = []
        self._free: list[str] = []
        self._look("", 1)
        self._of: dict[Wanted, Callable[[], Sequence[str]]] = {
            Wanted.FILE: lambda: self._files,
            Wanted.DIRECTORY: lambda: self._directories,
            Wanted.EMPTY: lambda: self._empty or self._directories,
            Wanted.LINK: lambda: self._links,
            Wanted.NAME: lambda: self._files + self._links + self._specials,
            Wanted.ANY: lambda: self._directories + self._files + self._links + self._specials,
            Wanted.FREE: lambda: self._free,
            Wanted.WILD: lambda: (),
        }

    def _look(self, below: str, depth: int) -> bool:
        """Look at a directory and below; returns whether anything is in it."""
        with os.scandir(self._side.root / below) as found:
            entries = {entry.name: entry for entry in found}
        for name in NAMES:
            path = below + name
            entry = entries.get(name)
            if entry is None:
                self._free.append(path)
            elif entry.is_symlink():
                self._links.append(path)
            elif entry.is_dir():
                self._directories.append(path)
                if not (depth < MAX_DEPTH and self._look(f"{path}/", depth + 1)):
                    self._empty.append(path)
            elif entry.is_file():
                self._files.append(path)
            else:
                self._specials.append(path)
        return bool(entries)

    def choose(self, pick: Pick) -> object:
        """Return a path or a slot; where there is nothing of what is wanted, any."""
        if pick.wanted in self._of:
            found = self._of[pick.wanted]()
            return found[pick.number % len(found)] if found else _any_path(pick.number)
        slots = self._side.slots(
            reads=pick.wanted in (Wanted.READER, Wanted.MAPPABLE),
            writes=pick.wanted in (Wanted.WRITER, Wanted.MAPPABLE),
        )
        return slots[pick.number % len(slots)] if slots else pick.number % SLOTS

    def tagged(self, number: int) -> list[object]:
        """Return a path and the name of an extended attribute that it has, if any has one."""
        found = [
            (path, name)
            for path in self._directories + self._files
            for name in sorted(os.listxattr(self._side.root / path))
            if name in XATTRS
        ]
        if not found:
            return [_any_path(number), XATTRS[number % len(XATTRS)]]
        return list(found[number % len(found)])


def _any_path(number: int) -> str:
    depth = (1, 2, 2, 3)[number % 4]
    number //= 4
    parts = []
    for _ in range(depth):
        parts.append(NAMES[number % len(NAMES)])
        number //= len(NAMES)
    return "/".join(parts)


def leads_elsewhere(root: os.PathLike[str], path: str) -> bool:
    """Whether *path* is a directory, or something on the way to it is none: its key would mean nothing in the mount."""
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        try:
            mode = os.lstat(os.path.join(root, *parts[:length])).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode) == (length == len(parts)):
            return True
    return False
