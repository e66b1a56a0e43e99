"""What S3 says of one version of an object besides its head: its checksum, and where a bucket with versioning keeps it."""

from s3mgrd.s3.algorithms import Checksum
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.listing import etag_of
from s3mgrd.s3.reading import whole_checksum
from s3mgrd.s3.retry import CallFailed


async def checksum_of(calls: Calls, key: str, etag: str) -> Checksum | None:
    """Do what the port's `checksum` promises."""
    try:
        answer = await calls.call("HeadObject", {"ChecksumMode": "ENABLED"}, key=key)
    except CallFailed as failure:
        raise failure.error from failure
    return whole_checksum(answer) if etag_of(answer.get("ETag")) == etag else None


async def find_version(calls: Calls, key: str, etag: str) -> str | None:
    """Do what the port's `find_version` promises: go through the versions of *key*, the newest first."""
    marker: dict[str, str | None] = {}
    while True:
        try:
            answer = await calls.call("ListObjectVersions", {"Prefix": key, **marker})
        except CallFailed as failure:
            raise failure.error from failure
        for version in answer.get("Versions", []):
            if version["Key"] == key and etag_of(version.get("ETag")) == etag:
                return str(version["VersionId"])
        # Keys that begin as this one does come behind it.
        if not answer.get("IsTruncated") or answer.get("NextKeyMarker") != key:
            return None
        marker = {"KeyMarker": key, "VersionIdMarker": answer.get("NextVersionIdMarker")}
