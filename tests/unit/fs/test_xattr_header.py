"""s3fs-fuse's format of extended attributes in metadata."""

import pytest

from s3mgrd.fs import xattr_header

BY_S3FS = [
    ("%7B%22user.d%22%3A%22ZGQ%3D%22%7D", {"user.d": b"dd"}),
    (
        "%7B%22user.a%20b%2Cc%22%3A%22MQ%3D%3D%22%2C%22user.foo%22%3A%22YsOkciAieCI%3D%22%7D",
        {"user.a b,c": b"1", "user.foo": 'bär "x"'.encode()},
    ),
]
"""Written by s3fs 1.90."""


@pytest.mark.parametrize(("value", "xattrs"), BY_S3FS)
def test_what_s3fs_writes_is_read_and_written_alike(value: str, xattrs: dict[str, bytes]) -> None:
    assert xattr_header.decode(value) == xattrs
    assert xattr_header.encode(xattrs) == value


@pytest.mark.parametrize(
    "xattrs",
    [
        {},
        {"user.empty": b""},
        {"user.zeros": b"\0" * 3, "user.all": bytes(range(256))},
        {'user."quoted\\"': b"1", "user.ä:,{}": b"2", "user.\n": b"3"},
    ],
)
def test_every_name_and_value_survives(xattrs: dict[str, bytes]) -> None:
    value = xattr_header.encode(xattrs)
    assert value.isascii()
    assert xattr_header.decode(value) == xattrs


def test_names_that_s3fs_does_not_escape_are_read() -> None:
    """It writes a quote as it is, which is no JSON."""
    value = "%7B%22user.%22q%22%3A%22MQ%3D%3D%22%2C%22user.b%22%3A%22Mg%3D%3D%22%7D"
    assert xattr_header.decode(value) == {'user."q': b"1", "user.b": b"2"}


@pytest.mark.parametrize(
    "value", ["x", "%FF", "%7B%22user.a%22%3A%22*%22%7D", "%7B%7B%7D", "%5B%5D", '{"user.a":1}']
)
def test_anything_else_is_somebody_elses(value: str) -> None:
    assert xattr_header.decode(value) is None
