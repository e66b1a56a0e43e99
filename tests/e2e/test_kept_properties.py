"""What others gave an object, after each thing that a mount does to it by a copy: on a real mount, property by property."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

GIVEN: Final[dict[str, Any]] = {
    "ContentType": "text/css",
    "CacheControl": "max-age=60, public",
    "ContentDisposition": 'attachment; filename="a b.css"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de",
    "StorageClass": "STANDARD_IA",
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": "arn:aws:kms:us-east-1:111122223333:key/of-its-own",
}
THEIRS: Final = {"theirs": "1", "x-team": "blue"}
PROPERTIES: Final = [*GIVEN, "Metadata", "Tagging"]


def _rename(path: Path) -> Path:
    return path.rename(path.with_name("renamed"))


def _move_directory(path: Path) -> Path:
    return path.parent.rename(path.parent.with_name(f"{path.parent.name}-moved")) / path.name


def _chmod(path: Path) -> Path:
    path.chmod(0o640)
    return path


def _touch(path: Path) -> Path:
    os.utime(path, ns=(1, 1_000_000_001))
    return path


def _set_attribute(path: Path) -> Path:
    os.setxattr(path, "user.colour", b"red")
    return path


def _append(path: Path) -> Path:
    with path.open("ab") as file:
        file.write(b"more")
    return path


def _edit(path: Path) -> Path:
    with path.open("r+b") as file:
        file.write(b"D")
    return path


CHANGES: Final[dict[str, Callable[[Path], Path]]] = {
    "rename": _rename,
    "rename of its directory": _move_directory,
    "chmod": _chmod,
    "utimens": _touch,
    "setxattr": _set_attribute,
    "append": _append,
    "edit in place": _edit,
}


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    client: Any  # boto3 is untyped
    bucket: str
    mount: Path
    described_after: Callable[[str], dict[str, object]]


@pytest.fixture(scope="module")
def site(module_lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon()

    for change in CHANGES:
        client.put_object(
            Bucket=bucket,
            Key=f"{change}/file.css",
            Body=b"data",
            Metadata=THEIRS,
            Tagging="team=blue&x=%26",
            **GIVEN,
        )

    @cache
    def described_after(change: str) -> dict[str, object]:
        path = CHANGES[change](mount / change / "file.css")
        daemon.flush()
        now = str(path.relative_to(mount))
        head = client.head_object(Bucket=bucket, Key=now)
        tags = client.get_object_tagging(Bucket=bucket, Key=now)["TagSet"]
        return {
            **{name: head.get(name) for name in GIVEN},
            "Metadata": {n: v for n, v in head["Metadata"].items() if n in THEIRS},
            "Tagging": {tag["Key"]: tag["Value"] for tag in tags},
        }

    try:
        mount = daemon.mount(ministack, bucket)
        yield Site(daemon, client, bucket, mount, described_after)
    finally:
        daemon.run("unmount", "m", check=False)
        remove_bucket(client, bucket)
        client.close()


@pytest.mark.parametrize("property_", PROPERTIES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_keeps_each_property_that_others_gave(
    site: Site, change: str, property_: str
) -> None:
    """CopyObject and a new version forget most of them unless they are sent again."""
    expected = GIVEN | {"Metadata": THEIRS, "Tagging": {"team": "blue", "x": "&"}}
    assert site.described_after(change)[property_] == expected[property_]
