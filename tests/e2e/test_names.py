"""Keys of all kinds seen from a mount, names of all kinds seen from S3, and the errno of what cannot be."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

KEYS = [
    "plain.txt",
    "a/b/c.txt",
    "explicit/",
    "marker-with-content/",
    "both",
    "both/inner",
    "blank and  blanks ",
    "plus+and%percent%2F",
    "quotes'\"`",
    "back\\slash",
    "glob*?[x]",
    "ampersand&<tag>;",
    "hash#and?query=1",
    "colon:and=equals@",
    "-leading-dash",
    "~tilde$dollar",
    "ünïcödé/文字/🙂",
    "combining-e\u0301",
    "precomposed-\u00e9",
    "CASE",
    "case",
    ".hidden",
    "..two-dots",
    "trailing.",
    "new\nline",
    "tab\tand\x01control",
    "x" * 255,
    "\u00e9" * 127 + "e",
    "\U0001f642" * 63 + "abc",
    "/".join(["d" * 200] * 5)[:1024],
    "/".join(["\u00e9" * 100] * 5) + "/" + "\u00e9" * 9 + "e",
    # What some systems take for one name: composed and not, of one case and another.
    "caf\u00e9",
    "cafe\u0301",
    "\ufb01sh",
    "fish",
    "\u212bngstr\u00f6m",
    "\u00c5ngstr\u00f6m",
    "stra\u00dfe",
    "STRASSE",
    "strasse",
]
"""Keys that have a name in a mount; as text, in UTF-8 at S3."""

BYTES = [f"{number:02x}-{chr(number)}-" for number in range(1, 0x80) if chr(number) != "/"]
"""A name with each byte that UTF-8 has by itself; NUL ends a path, and a slash is between names."""
BEYOND = [
    f"{ord(character):06x}-{character}-"
    for character in (
        # The first and the last of each length in UTF-8, and beside the surrogates.
        *("\u0080", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"),
        # What is no character, no ink, or changes how the rest is shown.
        *(
            "\u0085",
            "\u00a0",
            "\u00ad",
            "\u200b",
            "\u2028",
            "\u2029",
            "\u202e",
            "\ufeff",
            "\ufffd",
            "\ufffe",
        ),
        # Each byte that continues a character.
        *(chr(0x100 + number) for number in range(0x40)),
    )
]

HIDDEN = [
    "hidden/a//b",
    "hidden//b",
    "/leading",
    "hidden/./b",
    "hidden/../b",
    "hidden/" + "y" * 256,
    "hidden/" + "y" * 256 + "/below",
]
"""Keys without one: counted, and keeping their directory from being empty."""


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    endpoint: Endpoint
    client: Any
    bucket: str
    mount: Path

    def stored(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@pytest.fixture(scope="module", params=["ministack", "radosgw"])
def site(request: pytest.FixtureRequest, module_lab: Lab) -> Iterator[Site]:
    endpoint: Endpoint = request.getfixturevalue(request.param)
    client = endpoint.boto3()
    bucket = make_bucket(client)
    for key in (*KEYS, *HIDDEN):
        body = b"" if key == "explicit/" else key.encode()
        client.put_object(Bucket=bucket, Key=key, Body=body)
    daemon = module_lab.daemon(endpoint.kind)
    try:
        yield Site(daemon, endpoint, client, bucket, daemon.mount(endpoint, bucket))
    finally:
        daemon.run("unmount", "m")
        remove_bucket(client, bucket)
        client.close()


def test_every_key_that_has_a_name_is_found_under_it(site: Site) -> None:
    """By a listing and by a look at it alone; with its own bytes."""
    expected: dict[str, set[str]] = {}
    for key in KEYS:
        *directories, name = key.split("/")
        parent = ""
        for directory in directories:
            expected.setdefault(parent, set()).add(directory)
            parent = f"{parent}{directory}/"
        if name:
            expected.setdefault(parent, set()).add(name)
    expected[""].add("hidden")
    for _ in range(2):
        for parent, names in expected.items():
            assert set(os.listdir(site.mount / parent)) == names, parent
        site.daemon.run("invalidate", "m")
        for key in KEYS:
            if key.endswith("/") or key == "both":
                assert (site.mount / key).is_dir(), key
            else:
                assert (site.mount / key).read_bytes() == key.encode(), key


@pytest.mark.parametrize("names", [BYTES, BEYOND], ids=["bytes", "beyond"])
def test_every_byte_may_be_in_a_name(site: Site, names: list[str]) -> None:
    """Written by others and found here; written here and found by others; renamed; removed."""
    theirs, ours = site.mount / "theirs", site.mount / "ours"
    ours.mkdir()

    def put(name: str) -> None:
        site.client.put_object(Bucket=site.bucket, Key=f"theirs/{name}", Body=name.encode())

    def copy(name: str) -> None:
        assert (theirs / name).read_bytes() == name.encode(), ascii(name)
        (ours / name[:6]).write_bytes(name.encode())
        (ours / name[:6]).rename(ours / name)

    def check(name: str) -> None:
        body = site.client.get_object(Bucket=site.bucket, Key=f"ours/{name}")["Body"].read()
        assert body == name.encode(), ascii(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, names))
        site.daemon.run("invalidate", "m")
        assert sorted(os.listdir(theirs)) == sorted(names)
        list(pool.map(copy, names))
        site.daemon.flush()
        assert sorted(site.stored("ours/")) == sorted(["ours/", *(f"ours/{n}" for n in names)])
        list(pool.map(check, names))
    site.daemon.run("invalidate", "m")
    assert sorted(os.listdir(ours)) == sorted(names)
    shutil.rmtree(theirs)
    shutil.rmtree(ours)
    site.daemon.flush()
    assert site.stored("ours/") == site.stored("theirs/") == []


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("Name", "name"), ("name", "NAME"), ("caf\u00e9!", "cafe\u0301!"), ("\u017f", "s")],
)
def test_a_rename_may_change_nothing_but_the_case_or_the_spelling(
    site: Site, old: str, new: str, kind: str
) -> None:
    place = site.mount / "renames"
    place.mkdir()
    thing = place / old
    if kind == "directory":
        thing.mkdir()
        thing = thing / "inside"
    thing.write_bytes(b"content")
    (place / old).rename(place / new)
    assert os.listdir(place) == [new]
    assert not (place / old).exists()
    site.daemon.flush()
    key = f"renames/{new}" + ("/inside" if kind == "directory" else "")
    assert site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read() == b"content"
    assert not site.stored(f"renames/{old}")
    (place / old).write_bytes(b"another")
    assert sorted(os.listdir(place)) == sorted([old, new])
    shutil.rmtree(place)


def test_keys_without_a_name_are_counted_and_hold_their_directory(site: Site) -> None:
    os.listdir(site.mount)
    assert os.listdir(site.mount / "hidden") == ["a"]
    assert os.listdir(site.mount / "hidden" / "a") == []
    os.listdir(site.mount / "both")
    os.listdir(site.mount / "marker-with-content")
    for directory in ("hidden", "hidden/a"):
        with pytest.raises(OSError, match="not empty") as failure:
            (site.mount / directory).rmdir()
        assert failure.value.errno == errno.ENOTEMPTY
    report = site.daemon.api.mount_cache("m", limit=1)
    # The root's "/" and the file "both"; "a"'s "/"; of "hidden" "/", "./", "../" and two long ones; a marker's content.
    assert report.hidden_keys == 9
    assert _hidden(site, "") == {
        "/": "empty component",
        "both": "shadowed by a directory of the same name",
    }
    assert _hidden(site, "marker-with-content") == {
        "marker-with-content/": "directory marker with content",
    }
    assert _hidden(site, "hidden/a") == {"hidden/a//": "empty component"}
    shown = site.daemon.run("cache", "m").stdout
    assert "shadowed by a directory of the same name" in shown
    # What is hidden stays: the object itself, and the directory above it.
    body = site.client.get_object(Bucket=site.bucket, Key="both")["Body"].read()
    assert body == b"both"
    assert set(HIDDEN) <= set(site.stored())


def _hidden(site: Site, path: str) -> dict[str, str]:
    report = site.daemon.api.mount_cache("m", path=path)
    return {hidden.key: hidden.reason for hidden in report.hidden}


def test_what_is_written_under_any_name_is_that_key(site: Site) -> None:
    names = [key for key in KEYS if "/" not in key and key != "both"]
    directory = site.mount / "written"
    directory.mkdir()
    for name in names:
        (directory / name).write_bytes(name.encode())
        (directory / name).rename(directory / f"{name[:50]}.moved")
        (directory / f"{name[:50]}.moved").rename(directory / name)
    site.daemon.flush()
    assert set(site.stored("written/")) == {"written/", *(f"written/{name}" for name in names)}
    for name in names:
        body = site.client.get_object(Bucket=site.bucket, Key=f"written/{name}")["Body"].read()
        assert body == name.encode(), name
        (directory / name).unlink()
    directory.rmdir()
    site.daemon.flush()
    assert site.stored("written/") == []


LONG = "z" * 200
DEEP = "/".join([LONG] * 5)
"""1,004 bytes."""


@pytest.mark.parametrize(
    ("what", "number"),
    [
        (lambda m: (m / ("n" * 256)).touch(), errno.ENAMETOOLONG),
        (lambda m: (m / ("\u00e9" * 128)).mkdir(), errno.ENAMETOOLONG),
        (lambda m: (m / ("\U0001f642" * 64)).touch(), errno.ENAMETOOLONG),
        (lambda m: os.mkdir(bytes(m) + b"/not-utf8-\xff"), errno.EILSEQ),
        (lambda m: os.stat(bytes(m) + b"/not-utf8-\xff"), errno.EILSEQ),
        (lambda m: os.symlink(b"target-\xff", bytes(m) + b"/link"), errno.EILSEQ),
        (lambda m: (m / "plain.txt").rename(bytes(m).decode() + "/bad-\udcff"), errno.EILSEQ),
        (lambda m: (m / DEEP / ("k" * 20)).touch(), errno.ENAMETOOLONG),
        (lambda m: (m / DEEP / ("k" * 19)).mkdir(), errno.ENAMETOOLONG),
        (lambda m: (m / "plain.txt").rename(m / DEEP / ("k" * 20)), errno.ENAMETOOLONG),
        (lambda m: (m / "a").rename(m / DEEP / ("k" * 19)), errno.ENAMETOOLONG),
        (lambda m: os.link(m / "plain.txt", m / "hard"), errno.EPERM),
        (lambda m: (m / "plain.txt" / "below").touch(), errno.ENOTDIR),
        (lambda m: (m / "a").write_bytes(b""), errno.EISDIR),
        (lambda m: (m / "a").unlink(), errno.EISDIR),
        (lambda m: (m / "plain.txt").rmdir(), errno.ENOTDIR),
        (lambda m: (m / "a").rmdir(), errno.ENOTEMPTY),
        (lambda m: (m / "explicit").rename(m / "a"), errno.ENOTEMPTY),
        (lambda m: (m / "a").mkdir(), errno.EEXIST),
        (lambda m: os.open(m / "plain.txt", os.O_CREAT | os.O_EXCL | os.O_WRONLY), errno.EEXIST),
        (lambda m: (m / "a").rename(m / "a" / "b" / "inside"), errno.EINVAL),
        (lambda m: (m / "absent").read_bytes(), errno.ENOENT),
        (lambda m: (m / "absent" / "below").touch(), errno.ENOENT),
        (lambda m: (m / "plain.txt").rename(m / "a"), errno.EISDIR),
        (lambda m: (m / "a").rename(m / "plain.txt"), errno.ENOTDIR),
        (lambda m: os.readlink(m / "plain.txt"), errno.EINVAL),
    ],
)
def test_what_cannot_be_has_its_errno(
    site: Site, what: Callable[[Path], object], number: int
) -> None:
    (site.mount / DEEP).mkdir(parents=True, exist_ok=True)
    before = site.stored()
    with pytest.raises(OSError, match=r"\[Errno") as failure:
        what(site.mount)
    assert failure.value.errno == number, failure.value
    assert [k for k in site.stored() if not k.startswith("z")] == [
        k for k in before if not k.startswith("z")
    ]


def test_the_longest_key_that_s3_takes_is_taken(site: Site) -> None:
    directory = site.mount / "/".join(["q" * 200] * 5)
    directory.mkdir(parents=True)
    longest = directory / ("k" * 19)
    longest.write_bytes(b"to the last byte")
    site.daemon.flush()
    key = str(longest.relative_to(site.mount))
    assert len(key) == 1024
    assert site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read() == b"to the last byte"


@pytest.mark.parametrize(
    "what",
    [
        lambda m: (m / "new").touch(),
        lambda m: (m / "plain.txt").write_bytes(b""),
        lambda m: os.open(m / "plain.txt", os.O_RDWR),
        lambda m: os.truncate(m / "plain.txt", 0),
        lambda m: (m / "new").mkdir(),
        lambda m: (m / "plain.txt").unlink(),
        lambda m: (m / "explicit").rmdir(),
        lambda m: (m / "plain.txt").rename(m / "other"),
        lambda m: (m / "link").symlink_to("plain.txt"),
        lambda m: (m / "plain.txt").chmod(0o600),
        lambda m: os.chown(m / "plain.txt", 1, 1),
        lambda m: os.utime(m / "plain.txt", (1, 1)),
        lambda m: os.mkfifo(m / "fifo"),
    ],
)
def test_a_read_only_mount_refuses_every_change(
    site: Site, what: Callable[[Path], object], request: pytest.FixtureRequest
) -> None:
    if not any(m.name == "ro" for m in site.daemon.api.list_mounts().items):
        site.daemon.mount(site.endpoint, site.bucket, "ro", "--read-only")
    directory = site.daemon.mountpoint("ro")
    before = site.stored()
    assert (directory / "plain.txt").read_bytes() == b"plain.txt"
    with pytest.raises(OSError, match="Read-only file system") as failure:
        what(directory)
    assert failure.value.errno == errno.EROFS
    assert site.stored() == before


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_prefix_is_a_bucket_of_its_own(site: Site, slash: str) -> None:
    """Nothing beside it is seen or touched, also where another key begins with the same letters."""
    before = ["in"] if not slash else ["in", "out"]
    for key in ("pre/fix/in", "pre/fix-beside", "pre/fixed/x"):
        site.client.put_object(Bucket=site.bucket, Key=key, Body=key.encode())
    directory = site.daemon.mountpoint("prefix")
    directory.mkdir(exist_ok=True)
    site.daemon.run(
        *("mount", f"{site.bucket}/pre/fix{slash}", str(directory), "--name", "prefix"),
        endpoint=site.endpoint,
    )
    try:
        assert sorted(os.listdir(directory)) == before
        # The prefix counts among the 1,024 bytes of a key.
        deep = directory / DEEP
        deep.mkdir(parents=True)
        (deep / ("k" * 11)).touch()
        with pytest.raises(OSError, match="too long") as failure:
            (deep / ("k" * 12)).touch()
        assert failure.value.errno == errno.ENAMETOOLONG
        shutil.rmtree(directory / LONG)
        (directory / "out").write_bytes(b"x")
        (directory / "in").unlink()
        site.daemon.flush("prefix")
        assert site.stored("pre/") == ["pre/fix-beside", "pre/fix/out", "pre/fixed/x"]
    finally:
        site.daemon.run("unmount", "prefix")
