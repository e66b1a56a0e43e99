"""Buckets with versioning: what every `ObjectStore` finds and reads of versions that are not current any more."""

from collections.abc import AsyncIterator

import pytest

from s3mgrd.s3.client import open_store
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import ObjectStore
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket


@pytest.fixture(params=["memory", "ministack", "radosgw"])
async def versioned(request: pytest.FixtureRequest) -> AsyncIterator[ObjectStore]:
    if request.param == "memory":
        memory = MemoryStore()
        memory.keeps_versions = True
        yield memory
        return
    endpoint = request.getfixturevalue(request.param)
    assert isinstance(endpoint, Endpoint)
    client = endpoint.boto3()
    bucket = make_bucket(client)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    async with open_store(endpoint.settings(bucket)) as store:
        yield store
    remove_bucket(client, bucket)
    client.close()


async def test_a_version_that_was_replaced_is_found_and_read(versioned: ObjectStore) -> None:
    first = await versioned.put("a b", b"first", metadata={})
    for text in (b"second", b"third"):
        await versioned.put("a b", text, metadata={})
    await versioned.put("a b2", b"first", metadata={})
    assert await versioned.find_version("a b", "0" * 32) is None
    found = await versioned.find_version("a b", first.etag)
    assert found is not None
    read = await versioned.get_range("a b", 1, 3, if_match=first.etag, version_id=found)
    assert (bytes(read.data), read.head.etag) == (b"ir", first.etag)


async def test_a_version_that_was_removed_is_found(versioned: ObjectStore) -> None:
    first = await versioned.put("gone", b"first", metadata={})
    await versioned.delete("gone")
    found = await versioned.find_version("gone", first.etag)
    assert found is not None
    read = await versioned.get_range("gone", 0, 5, version_id=found)
    assert bytes(read.data) == b"first"
