"""Fixtures: `ministack` and `radosgw` (one a session, started when first asked for), `s3_endpoint` (each of them) and `bucket`."""

import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack
from tests.servers.radosgw import run_radosgw


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with run_ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with run_radosgw(tmp_path_factory.mktemp("radosgw")) as endpoint:
        yield endpoint


@pytest.fixture(params=["ministack", "radosgw"])
def s3_endpoint(request: pytest.FixtureRequest) -> Endpoint:
    endpoint = request.getfixturevalue(request.param)
    assert isinstance(endpoint, Endpoint)
    return endpoint


@pytest.fixture
def bucket(s3_endpoint: Endpoint) -> Iterator[str]:
    """A new bucket, removed with everything in it after the test."""
    client = s3_endpoint.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


def make_bucket(client: Any) -> str:  # noqa: ANN401 boto3 is untyped
    """Create a bucket with a name of its own."""
    name = f"s3mgr-test-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return name


def remove_bucket(client: Any, name: str) -> None:  # noqa: ANN401 boto3 is untyped
    """Delete a bucket with its objects, their versions and unfinished uploads; one that is gone already is fine."""
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=name, Key=entry["Key"])
        for page in client.get_paginator("list_object_versions").paginate(Bucket=name):
            for entry in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
                client.delete_object(Bucket=name, Key=entry["Key"], VersionId=entry["VersionId"])
        for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
            with suppress(client.exceptions.NoSuchUpload):  # it ends just now
                client.abort_multipart_upload(
                    Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        client.delete_bucket(Bucket=name)
    except client.exceptions.NoSuchBucket:
        return
