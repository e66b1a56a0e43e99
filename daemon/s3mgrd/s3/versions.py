"""The versions that a bucket with versioning keeps of an object."""

from s3mgrd.s3.calls import Calls
from s3mgrd.s3.listing import etag_of
from s3mgrd.s3.retry import CallFailed


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
