"""From a request to a complete spec: defaults, normal forms, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mgr.schema import Credentials, LiveOptions, MountOptions, MountSpec
from s3mgrd.errors import InvalidSpec
from s3mgrd.mounts.service import Principal
from s3mgrd.mounts.spec import (
    Defaults,
    changed_fields,
    check_name,
    is_below,
    live_options,
    merge_options,
    normal_endpoint,
    normal_mountpoint,
    normal_prefix,
    resolve,
)
from tests.fakes.control import KEYS, ROOT, make_spec

DEFAULTS = Defaults(
    endpoint="http://localhost:9000", region="eu-west-3", allow_other=True, allowed_mountpoints=()
)
ADMIN = Principal(uid=1000, gid=100, groups=frozenset({100}), pid=1, is_admin=True)


def complete(spec: MountSpec, credentials: Credentials | None = None) -> MountSpec:
    return resolve(spec, credentials, defaults=DEFAULTS, who=ADMIN)


def test_what_is_left_open_is_filled_in() -> None:
    spec = complete(make_spec())
    assert spec.endpoint == "http://localhost:9000"
    assert spec.region == "eu-west-3"
    assert (spec.options.uid, spec.options.gid, spec.options.allow_other) == (1000, 100, True)


def test_what_is_given_stays() -> None:
    given = make_spec(endpoint="https://s3.example", uid=5, gid=6, allow_other=False)
    spec = complete(given)
    assert spec.region == "us-east-1"  # the daemon's region goes with the daemon's endpoint
    assert spec.endpoint == "https://s3.example"
    assert (spec.options.uid, spec.options.gid, spec.options.allow_other) == (5, 6, False)


def test_completing_twice_changes_nothing() -> None:
    spec = complete(make_spec(prefix="a/b", mountpoint="//mnt/./x/"))
    assert resolve(spec, None, defaults=DEFAULTS, who=ROOT) == spec


@pytest.mark.parametrize(
    ("endpoint", "normal"),
    [
        ("aws", "aws"),
        ("http://localhost:9000", "http://localhost:9000"),
        ("https://s3.example.org/", "https://s3.example.org"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_endpoints_in_normal_form(endpoint: str, normal: str) -> None:
    assert normal_endpoint(endpoint) == normal


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "localhost:9000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://host:99999",
        "http://host/path",
        "http://host?x=1",
        "http://host#x",
        "http://user:hunter2@host",
        "http://ho st",
        "http://host\n",
        "AWS",
        "http://[::1",
    ],
)
def test_endpoints_that_are_refused(endpoint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        normal_endpoint(endpoint)
    assert caught.value.pointer == "/spec/endpoint"
    assert "hunter2" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("prefix", "normal"), [("", ""), ("a", "a/"), ("a/b/", "a/b/"), ("ä/日本", "ä/日本/")]
)
def test_prefixes_in_normal_form(prefix: str, normal: str) -> None:
    assert normal_prefix(prefix) == normal


@pytest.mark.parametrize(
    "prefix",
    [
        "/",
        "/a",
        "a//b",
        "a//",
        ".",
        "..",
        "a/../b",
        "a/./b",
        "a\0b",
        "\ud800",
        "x" * 256,
        "ab/" * 342,
    ],
)
def test_prefixes_that_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        normal_prefix(prefix)
    assert caught.value.pointer == "/spec/options/prefix"


@pytest.mark.parametrize(
    ("path", "normal"),
    [("/mnt/x", "/mnt/x"), ("//mnt///x/", "/mnt/x"), ("/mnt/./x/.", "/mnt/x"), ("/ä b", "/ä b")],
)
def test_mountpoints_in_normal_form(path: str, normal: str) -> None:
    assert normal_mountpoint(path) == normal


@pytest.mark.parametrize(
    "path",
    ["", "mnt", "/", "//", "/.", "/mnt/../x", "/a\0b", "/a\nb", "/" + "x" * 256, "/x" * 2048],
)
def test_mountpoints_that_are_refused(path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        normal_mountpoint(path)
    assert caught.value.pointer == "/spec/mountpoint"


@given(st.text(max_size=40))
def test_normal_forms_are_stable(text: str) -> None:
    for normalise in (normal_prefix, normal_mountpoint, normal_endpoint):
        try:
            normal = normalise(text)
        except InvalidSpec:
            continue
        assert normalise(normal) == normal


@pytest.mark.parametrize(
    ("bucket", "endpoint", "works"),
    [
        ("my-bucket.v2", "aws", True),
        ("My_Bucket", "aws", False),
        ("My_Bucket", "http://old:80", True),
        ("ab", "http://h", False),
        ("a" * 64, "aws", False),
        ("a..b", "http://h", False),
        ("10.0.0.1", "http://h", False),
        ("bucket/prefix", "http://h", False),
        ("-bucket", "http://h", False),
        ("bucket name", "http://h", False),
        ("arn:aws:s3:us-east-1:1:accesspoint/x", "aws", False),
    ],
)
def test_buckets(bucket: str, endpoint: str, *, works: bool) -> None:
    spec = make_spec(bucket, mountpoint="/mnt/x", endpoint=endpoint)
    if works:
        assert complete(spec).bucket == bucket
        return
    with pytest.raises(InvalidSpec) as caught:
        complete(spec)
    assert caught.value.pointer == "/spec/bucket"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "credentials", "pointer"),
    [
        ({"profile": "p", "anonymous": True}, None, "/spec/profile"),
        ({"profile": "p"}, KEYS, "/spec/profile"),
        ({"anonymous": True}, KEYS, "/credentials"),
        ({"profile": "a\nb"}, None, "/spec/profile"),
        ({"region": "not a region"}, None, "/spec/region"),
        ({"labels": {str(n): "" for n in range(65)}}, None, "/spec/labels"),
    ],
)
def test_other_refusals(
    changes: dict[str, object], credentials: Credentials | None, pointer: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        complete(make_spec(**changes), credentials)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "a" * 63])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a/b", "a" * 64, "a\n", "ä", "../x"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidSpec):
        check_name(name)


def test_live_options_are_those_that_do_not_count_as_changed() -> None:
    """Each option is either live, or a change of it is seen; none is both or neither."""
    old = make_spec()
    others: dict[type, object] = {str: "x", bool: True, int: 7, float: 7.0}
    for name in MountOptions.__struct_fields__:
        value = getattr(old.options, name)
        new = make_spec(**{name: others.get(type(value), 7)})
        pointers = changed_fields(old, new)
        live = name in LiveOptions.__struct_fields__
        assert pointers == ([] if live else [f"/spec/options/{name}"])


def test_merging_live_options_back_changes_nothing() -> None:
    options = MountOptions(metadata_ttl_s=1.0, debug=True)
    assert merge_options(MountOptions(), live_options(options)) == options
    assert merge_options(options, LiveOptions()) == options


@pytest.mark.parametrize(
    ("path", "directory", "below"),
    [("/a", "/a", True), ("/a/b", "/a", True), ("/ab", "/a", False), ("/a", "/", True)],
)
def test_below(path: str, directory: str, *, below: bool) -> None:
    assert is_below(path, directory) == below
