"""Endpoints and how the bucket is named in requests."""

import pytest

from s3mgrd.errors import InvalidSpec
from s3mgrd.s3.settings import (
    StoreSettings,
    is_aws,
    is_loopback,
    resolve_addressing,
    split_endpoint,
)
from tests.unit.s3.support import settings


@pytest.mark.parametrize(
    ("endpoint", "bucket", "asked", "used"),
    [
        (None, "logs", "auto", "virtual"),
        (None, "my.logs", "auto", "path"),
        (None, "logs", "path", "path"),
        ("https://s3.eu-west-1.amazonaws.com", "logs", "auto", "virtual"),
        ("https://s3.eu-west-1.amazonaws.com", "my.logs", "auto", "path"),
        ("https://minio.example", "logs", "auto", "path"),
        ("https://minio.example", "logs", "virtual", "virtual"),
        ("https://minio.example", "my.logs", "virtual", "virtual"),
        ("http://minio.example", "my.logs", "virtual", "virtual"),
        ("http://localhost:9000", "logs", "auto", "path"),
        ("http://127.0.0.1:9000", "logs", "virtual", "path"),
        ("http://[::1]:9000", "logs", "virtual", "path"),
    ],
)
def test_the_bucket_goes_where_it_works(
    endpoint: str | None, bucket: str, asked: str, used: str
) -> None:
    assert resolve_addressing(settings(endpoint, bucket=bucket, addressing=asked)) == used


@pytest.mark.parametrize(
    "url",
    [
        "localhost:9000",
        "ftp://example.org",
        "http://",
        "http:///bucket",
        "http://host:99999",
        "http://host:port",
        "http://user:secret@host",
        "http://host?x=1",
        "http://host#x",
        "http://[::1",
        "http://ho st",
        "http://höst",
        "",
    ],
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        split_endpoint(url)
    assert caught.value.hint
    assert caught.value.pointer == "/spec/endpoint"
    assert "secret" not in caught.value.detail


def test_aws_is_known_by_its_domain() -> None:
    assert is_aws(None)
    assert is_aws("https://s3.cn-north-1.amazonaws.com.cn")
    assert not is_aws("https://amazonaws.com.example.org")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("s3.localhost", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_known_by_name_and_address(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_keys_are_needed_unless_anonymous() -> None:
    with pytest.raises(ValueError, match="credentials"):
        StoreSettings(bucket="b", region="r")
    StoreSettings(bucket="b", region="r", anonymous=True)
