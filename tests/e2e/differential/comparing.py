"""What a local tree, the mount of it and the bucket must agree on."""

import os
import stat
from pathlib import Path
from typing import Any, Final

from s3mgrd.fs import attributes
from tests.e2e.differential.side import digest, shown, shown_time

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
"""Of what others wrote without attributes."""

Picture = dict[str, tuple[object, ...]]


def picture(root: Path) -> Picture:
    """Describe all below *root*: attributes, extended ones, and contents."""
    found: Picture = {}
    for parent, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            found[os.path.relpath(path, root)] = (
                shown(status, times=not stat.S_ISLNK(status.st_mode)),
                _xattrs(path),
                _content(path, status),
            )
    return found


def _xattrs(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {n: os.getxattr(path, n) for n in names if n.startswith("user.")}


def _content(path: str, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return ""
    with open(path, "rb") as file:
        return digest(file.read())


def differences(expected: Picture, found: Picture) -> list[str]:
    """Tell in what two pictures differ, one line a name."""
    return [
        f"{path}: local {expected.get(path)}, mount {found.get(path)}"
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]


def bucket_differences(root: Path, client: Any, bucket: str, prefix: str) -> list[str]:  # noqa: ANN401 boto3 is untyped
    """Tell in what the objects below *prefix* are not the local tree *root*, as others see them."""
    keys = keys_below(client, bucket, prefix)
    wrong = []
    for parent, directories, files in os.walk(root):
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        for name in (*files, *links):
            path = os.path.join(parent, name)
            key = prefix + os.path.relpath(path, root)
            if key not in keys:
                wrong.append(f"no object {key}")
            else:
                wrong += _object_differences(path, client, bucket, key)
            keys.discard(key)
        for name in set(directories) - set(links):
            path = os.path.join(parent, name)
            key = f"{prefix}{os.path.relpath(path, root)}/"
            if key in keys:
                wrong += _object_differences(path, client, bucket, key)
            elif not os.listdir(path):
                wrong.append(f"nothing keeps the directory {key}")
            keys.discard(key)
    return wrong + [f"an object too many: {key}" for key in sorted(keys - {prefix})]


def keys_below(client: Any, bucket: str, prefix: str) -> set[str]:  # noqa: ANN401
    """Return the keys below *prefix*."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {info["Key"] for page in pages for info in page.get("Contents", [])}


def _object_differences(path: str, client: Any, bucket: str, key: str) -> list[str]:  # noqa: ANN401
    status = os.lstat(path)
    answer = client.get_object(Bucket=bucket, Key=key)
    body, metadata = answer["Body"].read(), answer["Metadata"]
    said = attributes.decode(metadata)
    is_directory = stat.S_ISDIR(status.st_mode)
    default = stat.S_IFDIR | DIRECTORY_MODE if is_directory else stat.S_IFREG | FILE_MODE
    expected: list[object] = [status.st_mode, status.st_uid, status.st_gid, _xattrs(path)]
    found: list[object] = [
        int(metadata.get("mode", default)),
        said.uid or 0,
        said.gid or 0,
        dict(said.xattrs),
    ]
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            expected += [digest(file.read()), shown_time(status.st_mtime_ns)]
        found += [digest(body), shown_time(said.mtime_ns or 1 << 62)]
    elif stat.S_ISLNK(status.st_mode):
        expected += [os.readlink(path)]
        found += [body.decode(errors="replace")]
    return [f"{key}: local {expected}, object {found}"] if expected != found else []
