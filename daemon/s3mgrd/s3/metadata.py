"""How user metadata travels: S3 carries ASCII header values, files have any text.

The rule, in one place: a value of printable ASCII without blanks at its ends or in a row goes as it is, so that
other tools read what they know (``mode``, ``mtime`` …). Every other value, the empty one included, becomes one
RFC 2047 word, ``=?UTF-8?B?…?=``. That is what S3 itself answers for values it cannot show in a header, so values
that another tool stored that way are read as they were meant, and no plain value (with a ``%``, say) is ever
misread. A plain value that looks like such a word is encoded as well, which makes the rule exact both ways.
Names are lower case and must be header tokens.
"""

import base64
import binascii
import quopri
import re
from collections.abc import Mapping

from s3mgrd.errors import UserError

_PLAIN = re.compile(r"[!-~]+(?: [!-~]+)*")
_WORD = re.compile(r"=\?([\w.-]+)\?([BbQq])\?([!->@-~]*)\?=")
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


def encode_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Make header values out of *metadata*.

    Raises:
        UserError: a name that cannot be a header's.
    """
    encoded = {}
    for name, value in metadata.items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} cannot be the name of S3 metadata")
        encoded[name] = encode_value(value)
    return encoded


def encode_value(value: str) -> str:
    """Make one header value."""
    if _PLAIN.fullmatch(value) and not _WORD.fullmatch(value):
        return value
    raw = value.encode("utf-8", "surrogateescape")
    return f"=?UTF-8?B?{base64.b64encode(raw).decode('ascii')}?="


def decode_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """Read metadata headers (names without ``x-amz-meta-``). A word that cannot be decoded stays as it is."""
    return {name.lower(): decode_value(value) for name, value in headers.items()}


def decode_value(value: str) -> str:
    """Read one header value."""
    match = _WORD.fullmatch(value)
    if match is None:
        return value
    charset, encoding, text = match.groups()
    try:
        if encoding in "Bb":
            raw = base64.b64decode(text, validate=True)
        else:
            raw = quopri.decodestring(text.encode("ascii"), header=True)
        return raw.decode(charset, "surrogateescape")
    except (binascii.Error, LookupError, UnicodeDecodeError):
        return value
