"""What S3 keeps with a version besides its bytes, its metadata and its tags, and how it is sent along with a copy.

CopyObject forgets some of it unless it is told again: the storage class, the encryption and the website redirect always,
the rest when metadata is replaced. PutObject and a multipart upload begin with nothing.
"""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from s3mgrd.s3.answers import Answer
from s3mgrd.s3.metadata import encode_metadata
from s3mgrd.s3.port import ObjectHead

SSE: Final = "x-amz-server-side-encryption"
DESCRIPTIVE: Final[Mapping[str, str]] = {
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "expires": "Expires",
}
"""Headers that belong to the metadata: copied with it or replaced with it. Each with its name in botocore."""
PLACING: Final[Mapping[str, str]] = {
    "x-amz-website-redirect-location": "WebsiteRedirectLocation",
    SSE: "ServerSideEncryption",
    "x-amz-server-side-encryption-aws-kms-key-id": "SSEKMSKeyId",
    "x-amz-server-side-encryption-bucket-key-enabled": "BucketKeyEnabled",
}
"""Headers that a copy gets only when they are sent with it."""
TAG_COUNT: Final = "x-amz-tagging-count"
_TRANSFER_CODING: Final = "aws-chunked"
"""How an upload was signed on its way; some stores keep it although it says nothing about the object."""


def headers_of(answer: Answer) -> dict[str, str]:
    """Read the headers that are worth keeping out of the answer to a HEAD or GET."""
    found: dict[str, str] = {}
    for header, name in (*DESCRIPTIVE.items(), *PLACING.items()):
        value = answer.get("ExpiresString") if name == "Expires" else answer.get(name)
        if name == "ContentEncoding" and value:
            codings = [coding.strip() for coding in str(value).split(",")]
            value = ", ".join(coding for coding in codings if coding != _TRANSFER_CODING)
        if value:
            found[header] = "true" if value is True else str(value)
    if answer.get("TagCount"):
        found[TAG_COUNT] = str(answer["TagCount"])
    return found


def placing_params(head: ObjectHead) -> dict[str, object]:
    """Make the parameters that give a copy the storage class, encryption and redirect of *head*."""
    params: dict[str, object] = {
        name: head.headers[header] for header, name in PLACING.items() if header in head.headers
    }
    if "BucketKeyEnabled" in params:
        params["BucketKeyEnabled"] = params["BucketKeyEnabled"] == "true"
    if head.storage_class is not None:
        params["StorageClass"] = head.storage_class
    return params


def is_ordinary(head: ObjectHead) -> bool:
    """Whether a copy that is told nothing but the storage class is like *head*: no redirect, no key of its own."""
    told = {header: value for header, value in head.headers.items() if header in PLACING}
    return told in ({}, {SSE: "AES256"})


def describing_params(head: ObjectHead) -> dict[str, object]:
    """Make the parameters that give a write the caching rules, encoding, language and expiry of *head*."""
    params: dict[str, object] = {
        name: head.headers[header] for header, name in DESCRIPTIVE.items() if header in head.headers
    }
    if "Expires" in params and not _is_date(head.headers["expires"]):
        del params["Expires"]  # S3 keeps any text, botocore sends dates only
    return params


def _is_date(text: str) -> bool:
    try:
        parsedate_to_datetime(text)
    except ValueError:
        return False
    return True


def metadata_params(
    head: ObjectHead,
    metadata: Mapping[str, str] | None,
    replacing: frozenset[str] | None,
    content_type: str | None,
) -> dict[str, object]:
    """Make the parameters of metadata and type for a copy of *head*; the arguments are those of the port's `copy`."""
    if metadata is None:
        kept, content_type = head.metadata, head.content_type
    elif replacing is None:
        kept = metadata
    else:
        kept = {n: v for n, v in head.metadata.items() if n not in replacing} | dict(metadata)
        content_type = content_type or head.content_type
    return {"Metadata": encode_metadata(kept), "ContentType": content_type}
