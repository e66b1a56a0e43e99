"""Reading ``-o``: types, ranges, escapes, and errors that help."""

import grp
import pwd

import msgspec
import pytest

from s3mgr.cli.mount_options import parse_options, split_escaped
from s3mgr.errors import InvalidRequest
from s3mgr.schema import MountOptions, option_docs


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["ro"], {"read_only": True}),
        (["rw"], {"read_only": False}),
        (["read_only"], {"read_only": True}),
        (["read_only=no,debug"], {"read_only": False, "debug": True}),
        (["allow_other=ON"], {"allow_other": True}),
        (["uid=1000", "gid=0"], {"uid": 1000, "gid": 0}),
        (["uid=root,gid=root"], {"uid": 0, "gid": 0}),
        (["file_mode=0640,umask=022"], {"file_mode": "0640", "umask": "022"}),
        (["metadata_ttl_s=0"], {"metadata_ttl_s": 0.0}),
        (["metadata_ttl_s=1.5"], {"metadata_ttl_s": 1.5}),
        (["part_size_bytes=16M"], {"part_size_bytes": 16 << 20}),
        (["part_size_bytes=16MiB"], {"part_size_bytes": 16 << 20}),
        (["memory_limit_bytes=1g"], {"memory_limit_bytes": 1 << 30}),
        (["part_size_bytes=5242880"], {"part_size_bytes": 5 << 20}),
        (["attributes=full,addressing=path"], {"attributes": "full", "addressing": "path"}),
        (["write_mode=close"], {"write_mode": "close"}),
        ([r"prefix=a\,b/"], {"prefix": "a,b/"}),
        (["prefix=a=b"], {"prefix": "a=b"}),
        (["prefix="], {"prefix": ""}),
        (["ro,,"], {"read_only": True}),
        (["ro", "read_only=true"], {"read_only": True}),
    ],
)
def test_good_options(given: list[str], expected: dict[str, object]) -> None:
    values = parse_options(given)
    assert values == expected
    msgspec.convert(values, MountOptions)


@pytest.mark.parametrize(
    ("given", "detail", "hint"),
    [
        ("metdata_ttl_s=3", "unknown option 'metdata_ttl_s'", "did you mean 'metadata_ttl_s'?"),
        ("zzz", "unknown option 'zzz'", "s3mgr mount --help-options"),
        ("readonly", "unknown option 'readonly'", "did you mean 'read_only'?"),
        ("uid", "option 'uid' needs a value", "write uid=VALUE"),
        ("ro=1", "unknown option 'ro'", ""),
        ("debug=maybe", "option 'debug' must be true or false, not 'maybe'", ""),
        ("concurrency=0", "option 'concurrency' must be between 1 and 256, not 0", ""),
        ("concurrency=257", "option 'concurrency' must be between 1 and 256, not 257", ""),
        ("concurrency=1.5", "option 'concurrency' must be a whole number, not '1.5'", ""),
        ("concurrency=٣", "option 'concurrency' must be a whole number", ""),
        ("uid=-1", "option 'uid' must be between 0 and 4294967294, not -1", ""),
        ("uid=no-such-user", "option 'uid' must be a user of this machine or a number", ""),
        ("gid=no-such-group", "option 'gid' must be a group of this machine or a number", ""),
        ("metadata_ttl_s=-1", "option 'metadata_ttl_s' must be between 0 and 86400, not -1", ""),
        ("metadata_ttl_s=nan", "option 'metadata_ttl_s' must be a number, not 'nan'", ""),
        ("metadata_ttl_s=inf", "option 'metadata_ttl_s' must be a number, not 'inf'", ""),
        ("metadata_ttl_s=30s", "option 'metadata_ttl_s' must be a number, not '30s'", ""),
        (
            "connect_timeout_s=0",
            "option 'connect_timeout_s' must be more than 0 and at most 300",
            "",
        ),
        ("part_size_bytes=4M", "option 'part_size_bytes' must be between 5M and 5G, not 4M", ""),
        ("part_size_bytes=big", "option 'part_size_bytes' must be a size such as 16M", ""),
        ("file_mode=999", "option 'file_mode' must be an octal mode such as 0644, not 999", ""),
        ("attributes=none", "option 'attributes' must be lazy, full or off, not 'none'", ""),
        ("write_mode=later", "option 'write_mode' must be close or writeback, not 'later'", ""),
        ("prefix=" + "x" * 1024, "option 'prefix' must be at most 1023 characters long", ""),
        ("ro,rw", "option 'read_only' is given twice, with different values", ""),
        ("=3", "unknown option ''", ""),
    ],
)
def test_bad_options(given: str, detail: str, hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_options([given])
    assert caught.value.detail.startswith(detail)
    assert hint in caught.value.hint


def test_each_documented_option_is_understood() -> None:
    """A new option must be readable in the form in which its default is documented."""
    for doc in option_docs():
        if doc.default:
            value = parse_options([f"{doc.name}={doc.default}"])[doc.name]
            assert value == getattr(MountOptions(), doc.name)


def test_names_of_users_and_groups_are_looked_up_here() -> None:
    user, group = pwd.getpwall()[-1], grp.getgrall()[-1]
    found = parse_options([f"uid={user.pw_name},gid={group.gr_name}"])
    assert found == {"uid": user.pw_uid, "gid": group.gr_gid}


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]),
        (r"a\,b,c", ["a,b", "c"]),
        (r"a\\,b", ["a\\", "b"]),
        (r"a\x,b", [r"a\x", "b"]),
        ("a\\", ["a\\"]),
        ("", []),
        (" , ", []),
    ],
)
def test_commas_and_escapes(text: str, items: list[str]) -> None:
    assert split_escaped(text) == items
