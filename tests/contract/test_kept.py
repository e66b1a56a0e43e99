"""What a copy and a following version keep of an object that another tool wrote, on real servers."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from s3mgrd.s3.client import S3Store, open_store
from s3mgrd.s3.port import MIN_PART_BYTES, FileSlice, Part
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

Boto3 = Any  # untyped

GIVEN: Final[dict[str, Any]] = {
    "ContentType": "text/css",
    "CacheControl": "max-age=60, public",
    "ContentDisposition": 'attachment; filename="a b.css"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de",
    "Expires": "Wed, 21 Oct 2037 07:28:00 GMT",
    "Metadata": {"theirs": "1", "mode": "33152"},
}
BY_MINISTACK_TOO: Final[dict[str, Any]] = {
    "StorageClass": "STANDARD_IA",
    "WebsiteRedirectLocation": "/elsewhere",
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": "arn:aws:kms:us-east-1:111122223333:key/of-its-own",
}
"""radosgw has one storage class, no redirects per object, and no key server here."""


@pytest.fixture
def client(s3_endpoint: Endpoint) -> Iterator[Boto3]:
    client = s3_endpoint.boto3()
    yield client
    client.close()


@pytest.fixture
def bucket(client: Boto3) -> Iterator[str]:
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)


@pytest.fixture
async def store(s3_endpoint: Endpoint, bucket: str) -> AsyncIterator[S3Store]:
    async with open_store(s3_endpoint.settings(bucket)) as opened:
        yield opened


@pytest.fixture
def given(s3_endpoint: Endpoint) -> dict[str, Any]:
    return GIVEN | (BY_MINISTACK_TOO if s3_endpoint.kind == "ministack" else {})


def described(client: Boto3, bucket: str, key: str) -> dict[str, Any]:
    """Return what S3 keeps of an object besides its bytes."""
    head = client.head_object(Bucket=bucket, Key=key)
    names = {**GIVEN, **BY_MINISTACK_TOO}.keys() - {"Expires"}
    found = {name: head[name] for name in names if name in head}
    tags = client.get_object_tagging(Bucket=bucket, Key=key).get("TagSet", [])
    return found | {
        "Expires": head.get("ExpiresString"),
        "tags": sorted((tag["Key"], tag["Value"]) for tag in tags),
    }


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("by_parts", [False, True])
async def test_a_copy_keeps_everything_another_tool_gave_an_object(
    store: S3Store,
    s3_endpoint: Endpoint,
    client: Boto3,
    bucket: str,
    given: dict[str, Any],
    *,
    is_known: bool,
    by_parts: bool,
) -> None:
    """Whether a name changes or an attribute, and whether the caller knows the version or S3 has to be asked."""
    data = os.urandom(MIN_PART_BYTES + 1000) if by_parts else b"data"
    # MiniStack does not say in a HEAD that there are tags.
    is_tagged = not (by_parts and s3_endpoint.kind == "ministack")
    tagging = "t%20ag=v%26l&u=" if is_tagged else ""
    client.put_object(Bucket=bucket, Key="a", Body=data, Tagging=tagging, **given)
    before = described(client, bucket, "a")
    assert before["tags"] == ([("t ag", "v&l"), ("u", "")] if is_tagged else [])
    if by_parts:
        store.max_copy_bytes, store.copy_part_bytes = 1000, MIN_PART_BYTES
    head = await store.head("a")
    known = head if is_known else None
    await store.copy("a", "b", source_size=len(data), source_head=known)
    assert described(client, bucket, "b") == before
    for target in ("c", "a"):
        await store.copy(
            "a",
            target,
            source_size=len(data),
            if_source_match=head.etag if target == "c" else None,
            source_head=known,
            metadata={"mode": "33188"},
            replacing=["mode", "uid"],
        )
        assert described(client, bucket, target) == before | {
            "Metadata": {"theirs": "1", "mode": "33188"}
        }
        read = client.get_object(Bucket=bucket, Key=target)["Body"].read()
        assert read == data


async def test_a_copy_of_a_known_version_asks_nothing(
    store: S3Store, s3_endpoint: Endpoint
) -> None:
    """One request for a changed attribute, once it is known whether the store heeds the condition."""
    written = await store.put("a", b"data", metadata={})
    head = await store.head("a")
    await store.copy("a", "b", source_size=4, if_source_match=written.etag, source_head=head)
    before = {name: stats.count for name, stats in store.stats.calls.items()}
    await store.copy(
        "a", "a", source_size=4, if_source_match=written.etag, source_head=head, metadata={"n": "1"}
    )
    asked = {
        name: stats.count - before.get(name, 0)
        for name, stats in store.stats.calls.items()
        if stats.count != before.get(name, 0)
    }
    # radosgw ignores the condition on the source.
    checked = {"HeadObject": 1} if s3_endpoint.kind == "radosgw" else {}
    assert asked == {"CopyObject": 1, **checked}


async def test_a_following_version_is_like_the_one_before(
    store: S3Store,
    s3_endpoint: Endpoint,
    client: Boto3,
    bucket: str,
    given: dict[str, Any],
    tmp_path: Path,
) -> None:
    """An edited file keeps what others said of it, by one PUT and by parts."""
    is_tagged = (
        s3_endpoint.kind == "radosgw"
    )  # MiniStack does not say in a HEAD that there are tags
    tagging = "t=v" if is_tagged else ""
    client.put_object(Bucket=bucket, Key="a", Body=b"data", Tagging=tagging, **given)
    before = described(client, bucket, "a")
    like = await store.head("a")
    await store.put(
        "a", b"other", metadata=like.metadata, content_type=like.content_type, like=like
    )
    assert described(client, bucket, "a") == before
    path = tmp_path / "part"
    path.write_bytes(b"part")
    fd = os.open(path, os.O_RDONLY)
    try:
        upload_id = await store.create_multipart(
            "a", metadata=like.metadata, content_type=like.content_type, like=like
        )
        part: Part = await store.upload_part("a", upload_id, 1, FileSlice(fd, 0, 4))
        await store.complete_multipart("a", upload_id, [part])
    finally:
        os.close(fd)
    after = described(client, bucket, "a")
    assert after | {"tags": []} == before | {
        "tags": []
    }  # radosgw takes none with an upload by parts
