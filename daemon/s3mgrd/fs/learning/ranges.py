"""Where to split a range of names of which only the beginning was seen."""

from collections.abc import Collection
from typing import Final

MAX_DEPTH: Final = 64


def middle(low: str, high: str | None, alphabet: Collection[str]) -> str | None:
    """Return a place between two others that is likely to have names on both sides; None: there is none to be found.

    Args:
        low: a name that exists; more follow.
        high: the end of the range; None: there is none.
        alphabet: characters that names have. Others may occur, too: the halves are only less equal then.
    """
    for depth in range(min(len(low), MAX_DEPTH)):
        if high is not None and high[: depth + 1] == low[: depth + 1]:
            continue
        first = low[depth]
        last = high[depth] if high is not None and high[:depth] == low[:depth] else None
        between = sorted(
            c for c in alphabet if c > first and (last is None or c < last) and _is_plain(c)
        )
        if between:
            return low[:depth] + between[len(between) // 2]
        # One step at most lies between them here: what is left of the range shares this character with its beginning.
        high = None
    return None


def _is_plain(character: str) -> bool:
    return character != "/" and not "\ud800" <= character <= "\udfff"
