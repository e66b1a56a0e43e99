"""The metadata value that keeps extended attributes: s3fs-fuse's format.

``xattr`` is a percent-encoded JSON object: name, with its ``user.``, to value in base64, in the order of names. s3fs does not
escape the names, so an object of its making may not be JSON; what can be read of it is read.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes

NAME: Final = "xattr"
"""Of the metadata."""
_PAIR: Final = re.compile(r'"(.*?)":"([A-Za-z0-9+/=]*)"(?:,|\}$)', re.DOTALL)


def encode(xattrs: Mapping[str, bytes]) -> str:
    """Make the value; of no attributes, an empty one."""
    if not xattrs:
        return ""
    values = {name: base64.b64encode(xattrs[name]).decode("ascii") for name in sorted(xattrs)}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return quote(text, safe="/")


def decode(value: str) -> dict[str, bytes] | None:
    """Read a value; None: it is none that s3fs or we would write, so it may be anybody's."""
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        return None
    if not (text.startswith("{") and text.endswith("}")):
        return {} if not text else None
    try:
        pairs = json.loads(text)
    except ValueError:
        pairs = dict(_PAIR.findall(text))
        if not pairs:
            return None
    try:
        return {
            name: base64.b64decode(encoded, validate=True)
            for name, encoded in pairs.items()
            if name
        }
    except (binascii.Error, TypeError, ValueError):
        return None
