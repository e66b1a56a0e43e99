"""What is remembered of a version besides the attributes shown: the metadata of others, type, caching rules, storage class.

S3 forgets such things when an object is copied with new metadata, so they are sent again each time. They are learned with
the attributes, by the one HEAD that a version ever gets, or known because this mount wrote the version.

S3 takes 2 KiB of user metadata for an object: names and values together. `check_room` refuses what would not fit before
anything is changed.
"""

import errno
import json
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

from s3mgrd.cache.nodes import Node
from s3mgrd.fs import attributes, xattr_header
from s3mgrd.s3.metadata import encode_value
from s3mgrd.s3.port import ObjectHead

log = logging.getLogger(__name__)

_encode: Final = json.JSONEncoder(sort_keys=True).encode
"""`json.dumps` makes an encoder anew for each text that is not written as by default."""
MAX_METADATA_BYTES: Final = 2048
DROPPED_FIRST: Final = ("atime", "ctime", "rdev", "gid", "uid", "mtime", "mode")
"""Of our own metadata, where somebody else's leaves no room for all of it."""


def others_metadata(head: ObjectHead) -> dict[str, str]:
    """Return the metadata of a version that is not ours to interpret."""
    return {
        name: value
        for name, value in head.metadata.items()
        if name not in attributes.OWN_NAMES
        or (name == xattr_header.NAME and xattr_header.decode(value) is None)
    }


def write(head: ObjectHead) -> str:
    """Make the text to remember of a version."""
    parts: dict[str, object] = {
        "metadata": others_metadata(head),
        "type": head.content_type,
        "class": head.storage_class,
        "headers": dict(head.headers),
        # Of a directory's marker: one that has content is not to be replaced by an empty one.
        "size": head.size if head.key.endswith("/") else 0,
    }
    return _encode({name: part for name, part in parts.items() if part})


def read(text: str, node: Node, key: str) -> ObjectHead:
    """Make a head of what was remembered; its metadata are only those of others."""
    parts: dict[str, Any] = json.loads(text)  # Any: as `write` made it
    return ObjectHead(
        key=key,
        size=parts.get("size", 0) if node.is_directory else node.size,
        etag=node.etag or "",
        mtime_ns=node.remote_mtime_ns or 0,
        metadata=parts.get("metadata", {}),
        content_type=parts.get("type"),
        storage_class=parts.get("class"),
        headers=parts.get("headers", {}),
    )


def metadata_bytes(metadata: Mapping[str, str]) -> int:
    """Count what S3 counts of user metadata."""
    return sum(len(name.encode()) + len(encode_value(value)) for name, value in metadata.items())


def check_room(others: Mapping[str, str], xattrs: Mapping[str, bytes]) -> None:
    """Refuse attributes for which S3 has no room. Raises OSError(ENOSPC).

    Mode, owner and times count with the most they can take: what fits now still fits after the next chown.
    """
    used = metadata_bytes(others) + attributes.MAX_BYTES
    if xattrs:
        used += metadata_bytes({xattr_header.NAME: xattr_header.encode(xattrs)})
    if used > MAX_METADATA_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def merged(others: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return all metadata to send. What others gave an object is never dropped for what we would add."""
    result = {**others, **own}
    left_out = []
    for name in DROPPED_FIRST:
        if metadata_bytes(result) <= MAX_METADATA_BYTES:
            break
        if name in own:
            del result[name]
            left_out.append(name)
    if left_out:
        log.info("no room in an object's metadata for %s", ", ".join(left_out))
    return result
