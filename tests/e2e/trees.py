"""Trees of files described, so that two of them, or a tree and a bucket, can be compared as values."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from tests.servers.endpoint import Endpoint


class Entry(NamedTuple):
    """What is under a name. `mtime_ns` is None where it says nothing (directories and links)."""

    kind: str
    mode: int
    mtime_ns: int | None
    content: str


def describe(directory: Path, *, times: bool = True) -> dict[str, Entry]:
    """Describe everything below *directory*, by relative path."""
    found = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(parent, name)
            found[os.path.relpath(path, directory)] = _describe(path, times=times)
    return found


def _describe(path: str, *, times: bool) -> Entry:
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Entry("directory", mode, None, "")
    if stat.S_ISLNK(status.st_mode):
        return Entry("link", 0o777, None, os.readlink(path))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert os.stat(path).st_size == status.st_size
    return Entry("file", mode, status.st_mtime_ns if times else None, f"{status.st_size} {digest}")


def objects_of(tree: dict[str, Entry], prefix: str) -> dict[str, str]:
    """Say which objects a tree is below *prefix*: key → size and digest; directories are markers of their own."""
    objects = {}
    for path, entry in tree.items():
        body = entry.content.encode() if entry.kind == "link" else b""
        text = f"{len(body)} {hashlib.sha256(body).hexdigest()}"
        key = f"{prefix}{path}/" if entry.kind == "directory" else prefix + path
        objects[key] = entry.content if entry.kind == "file" else text
    return objects


def read_bucket(endpoint: Endpoint, bucket: str, prefix: str = "") -> dict[str, str]:
    """Read every object below *prefix* with another client: key → size and digest."""
    client: Any = endpoint.boto3()
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for info in page.get("Contents", []):
            digest, size = hashlib.sha256(), 0
            body = client.get_object(Bucket=bucket, Key=info["Key"])["Body"]
            for chunk in body.iter_chunks(1 << 20):
                digest.update(chunk)
                size += len(chunk)
            found[info["Key"]] = f"{size} {digest.hexdigest()}"
    client.close()
    found.pop(prefix, None)
    return found


def make_source(directory: Path, *, files: int = 40, seed: int = 1) -> None:
    """Fill *directory* with a small tree of everything: deep, empty, odd sizes, modes, times, links."""
    state = hashlib.sha256(str(seed).encode())
    sizes = (0, 1, 100, 4095, 4096, 4097, 70_000, 131_072, 300_001)
    for number in range(files):
        state.update(b"next")
        block = state.digest()
        size = sizes[number % len(sizes)]
        parent = directory.joinpath(*[f"d{block[i] % 3}" for i in range(number % 4)])
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"file {number}.bin"
        path.write_bytes((block * (size // len(block) + 1))[:size])
        path.chmod((0o644, 0o600, 0o755, 0o444)[number % 4])
        os.utime(path, ns=(10**18 + number, 10**18 + number * 1_000_000_007))
    (directory / "empty").mkdir()
    (directory / "link").symlink_to("file 0.bin")
    (directory / "dangling").symlink_to("../nowhere/ü")
    (directory / "to directory").symlink_to("empty")


__all__ = ["Entry", "describe", "make_source", "objects_of", "read_bucket"]
