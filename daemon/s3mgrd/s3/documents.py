"""XML of S3's small requests and answers: documents of a few fields and flat lists.

Listings, which are large, have a reader of their own (`s3mgrd.s3.listing`). All of it sits on expat, which (since 2.4.1)
bounds entity expansion itself.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any, Final

_SPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_ESCAPES: Final = {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    # Written as they are, readers make a blank or another line end of them.
    ord("\r"): "&#xD;",
    ord("\n"): "&#xA;",
}
_NOT_XML: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]"
    rb"|\xef\xbf[\xbe\xbf]"
    rb"|&#(?:0*(?:[0-8]|1[124-9]|2[0-9]|3[01])|[xX]0*(?:[0-8bBcCeEfF]|1[0-9a-fA-F]|[fF]{3}[eEfF]));"
)

ParseError = ET.ParseError
Fields = dict[str, Any]
"""A document: text, or fields again, by name; what came more than once is a list. Any: a tree."""


def strip_invalid(body: bytes) -> bytes:
    """Replace what XML cannot contain.

    A key may contain control characters, and servers repeat keys in answers where no encoding can be asked
    for. Nothing that we use of such an answer is a key.
    """
    return _NOT_XML.sub(b"?", body)


def parse(body: bytes) -> ET.Element:
    """Parse a document, also one with what XML cannot contain.

    Raises:
        ParseError: it is none.
    """
    try:
        return ET.fromstring(body)  # noqa: S314 see the module's docstring
    except ET.ParseError:
        # Rarely: a token or prefix that repeats a key. Names themselves are url-encoded.
        return ET.fromstring(strip_invalid(body))  # noqa: S314 as above


def local_name(element: ET.Element) -> str:
    """Return an element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def read_fields(element: ET.Element) -> Fields:
    """Read what is in *element*."""
    fields: Fields = {}
    for child in element:
        name = local_name(child)
        value = read_fields(child) if len(child) else child.text or ""
        if name not in fields:
            fields[name] = value
        elif isinstance(fields[name], list):
            fields[name].append(value)
        else:
            fields[name] = [fields[name], value]
    return fields


def write_list(root: str, plural: str, singular: str, content: object) -> bytes:
    """Write *content*, fields of which one, *plural*, is a list of elements that are called *singular*."""
    if not isinstance(content, Mapping):
        raise TypeError(f"{root} is made of fields")
    pieces = [f'<{root} xmlns="{_SPACE}">']
    for name, value in content.items():
        if name == plural:
            pieces += [f"<{singular}>{_write_fields(item)}</{singular}>" for item in value]
        else:
            pieces.append(_write_fields({name: value}))
    pieces.append(f"</{root}>")
    return "".join(pieces).encode("utf-8")


def _write_fields(fields: Mapping[str, object]) -> str:
    return "".join(
        [
            f"<{name}>{(str(value).lower() if isinstance(value, bool) else str(value)).translate(_ESCAPES)}</{name}>"
            for name, value in fields.items()
        ]
    )
