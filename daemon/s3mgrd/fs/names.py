"""Names and keys: what of a bucket can be shown, and what a new name becomes.

A name is one component of a path, as text. Keys are compared byte by byte; no normalisation, case matters.
"""

import errno
import os
from typing import Final

MAX_NAME_BYTES: Final = 255
MAX_KEY_BYTES: Final = 1024


def decode_name(raw: bytes) -> str:
    """Turn the kernel's bytes into a name. Raises OSError: EILSEQ (not UTF-8), ENAMETOOLONG."""
    if len(raw) > MAX_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "the name is not UTF-8 and cannot become a key") from error


def is_like_a_file(name: str) -> bool:
    """Whether a name is rather a file's than a directory's, for who has to guess: with an extension or a number."""
    return "." in name[1:] or name[-1].isdecimal()


def check_key(key: str) -> None:
    """Refuse a key that S3 would refuse. Raises OSError(ENAMETOOLONG)."""
    if len(key.encode()) > MAX_KEY_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"the key would exceed {MAX_KEY_BYTES} bytes")


def why_unusable(key: str) -> str:
    """Say why a key that a store has cannot be asked for by the rules of S3; empty where it can."""
    # A character has at most 4 bytes.
    if len(key) > MAX_KEY_BYTES // 4 and len(order(key)) > MAX_KEY_BYTES:
        return f"key over {MAX_KEY_BYTES} bytes"
    return ""


def why_hidden(name: str) -> str:
    """Say why a component of a key cannot be a name; empty where it can."""
    if not name:
        return "empty component"
    if name in (".", ".."):
        return f"component {name!r}"
    if "\0" in name:
        return "NUL in a component"
    try:
        raw = name.encode()
    except UnicodeEncodeError:  # the store's way to hand over bytes that are no UTF-8
        return "component that is not UTF-8"
    if len(raw) > MAX_NAME_BYTES:
        return f"component over {MAX_NAME_BYTES} bytes"
    return ""


def sort_key(name: str, *, is_directory: bool) -> str:
    """Return where S3 sorts an entry: directories are common prefixes and end in a slash."""
    return name + "/" if is_directory else name


def order(place: str) -> bytes:
    """Return what to compare places by: S3 sorts by bytes, and text with undecodable bytes does not sort like them."""
    return place.encode("utf-8", "surrogateescape")


def bounds(low: str, high: str | None) -> tuple[str, str | None]:
    """Widen a range of names so that its ends are text that SQLite can hold: keys need not be UTF-8."""
    low = _before_surrogate(low)
    if high is not None and (text := _before_surrogate(high)) != high:
        high = text + "\U0010ffff"
    return low, high


def is_text(name: str) -> bool:
    """Whether all of it was UTF-8."""
    return _before_surrogate(name) == name


def printable(key: str) -> str:
    """Write a key that need not be UTF-8 so that SQLite and JSON can hold it."""
    return key.encode("utf-8", "backslashreplace").decode()


def _before_surrogate(text: str) -> str:
    """Return *text* up to the first byte that is not UTF-8, all of it if there is none."""
    return next((text[:i] for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), text)


def directories_sorting_after(name: str) -> list[str]:
    """Return the proper prefixes of *name* whose directory sorts after it although the bare prefix sorts before.

    ``a`` < ``a-b`` as names, but the common prefix ``a/`` comes after the key ``a-b``, because "-" < "/".
    """
    return [name[:i] for i in range(1, len(name)) if name[i] < "/"]
