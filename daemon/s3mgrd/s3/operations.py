"""S3's operations as HTTP, for the calls that are made often: parameters into a request, headers into an answer.

What belongs where is read from botocore's description of S3, once a process; so names and values are botocore's, and a
call that is not known here, or has a parameter that needs more than to be written down, goes through aiobotocore instead
(`s3mgrd.s3.calls` decides). botocore interprets its description anew for each request, which takes about 1 ms; here a
request is a few lookups.
"""

import functools
import re
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

from botocore.model import ServiceModel

from s3mgr import __version__
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.connections import Address
from s3mgrd.s3.documents import write_list
from s3mgrd.s3.http import HttpRequest
from s3mgrd.s3.models import data_loader
from s3mgrd.s3.settings import StoreSettings, is_plain_bucket, resolve_addressing
from s3mgrd.s3.signing import EMPTY_SHA256, UNSIGNED_PAYLOAD, Signer
from s3mgrd.worker.protocol import CredentialGrant

Params = Mapping[str, object]
Kind = Literal["string", "integer", "long", "boolean", "timestamp"]

LEAN: Final = frozenset(
    {
        "AbortMultipartUpload",
        "CompleteMultipartUpload",
        "CopyObject",
        "CreateMultipartUpload",
        "DeleteObject",
        "DeleteObjects",
        "GetObject",
        "HeadObject",
        "ListObjectsV2",
        "PutObject",
        "UploadPart",
        "UploadPartCopy",
    }
)
_NEEDS_LIBRARY: Final = re.compile(r".*SSECustomer.*|ChecksumAlgorithm")
"""Parameters of which botocore makes several headers, or changes the body; but none where there is no body."""
_PLAIN: Final = ("CreateMultipartUpload", "ChecksumAlgorithm")
_DOCUMENTS: Final = {"Delete": ("Objects", "Object"), "MultipartUpload": ("Parts", "Part")}
"""Parameters that are sent as XML: the list in it, and the name of its elements."""
_WRITTEN: Final = frozenset(
    {"Bucket", "Key", "Body", "ContentLength", "Metadata", "CopySource", *_DOCUMENTS}
)
"""Parameters that `Requests.make` knows by name."""
_ROOTS: Final = {"Delete": "Delete", "MultipartUpload": "CompleteMultipartUpload"}
_SAFE: Final = "-._~"
USER_AGENT: Final = f"s3mgr/{__version__}"


@dataclass(frozen=True, slots=True)
class Operation:
    """How one operation travels. Maps are from botocore's names to those of HTTP and, for answers, back."""

    name: str
    method: str
    fixed_query: str
    queries: Mapping[str, str]
    headers: Mapping[str, str]
    answers: Mapping[str, tuple[str, Kind]]

    def takes(self, params: Params) -> bool:
        """Tell whether a request with *params* can be made here."""
        return all(
            name in _WRITTEN
            or ((name in self.queries or name in self.headers) and isinstance(value, (str, int)))
            for name, value in params.items()
        )


@functools.cache
def operation(name: str) -> Operation | None:
    """Return how *name* travels; None: through aiobotocore."""
    if name not in LEAN:
        return None
    model = _service().operation_model(name)
    queries, headers, answers = {}, {}, {}
    for member, shape in model.input_shape.members.items():
        place = shape.serialization
        if _NEEDS_LIBRARY.fullmatch(member) and (name, member) != _PLAIN:
            continue
        if place.get("location") == "querystring":
            queries[member] = place["name"]
        elif place.get("location") == "header":
            headers[member] = place["name"].lower()
    if model.output_shape is not None:
        for member, shape in model.output_shape.members.items():
            if shape.serialization.get("location") == "header":
                answers[shape.serialization["name"].lower()] = (member, shape.type_name)
    method = model.http["method"]
    fixed = model.http["requestUri"].partition("?")[2]
    return Operation(name, method, fixed, queries, headers, answers)


@functools.cache
def _service() -> Any:  # noqa: ANN401 botocore is untyped
    return ServiceModel(data_loader().load_service_model("s3", "service-2"))


class Requests:
    """Makes the requests of one store.

    Args:
        settings: of the store.
        url: what the store's own bucket is reached by without the bucket's name, as botocore has resolved it.
    """

    def __init__(self, settings: StoreSettings, url: str) -> None:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        host = parts.hostname or ""
        netloc = parts.netloc.removesuffix(":443" if is_tls else ":80")
        path = parts.path.rstrip("/")
        is_virtual = resolve_addressing(settings) == "virtual"
        self.can_name_bucket: Final = is_plain_bucket(
            settings.bucket, is_host=is_virtual, is_tls=is_tls
        )
        """Otherwise the bucket's name is something that botocore must interpret."""
        if is_virtual:
            host, netloc = f"{settings.bucket}.{host}", f"{settings.bucket}.{netloc}"
        else:
            path = f"{path}/{settings.bucket}"
        self._path: Final = path
        self._address: Final = Address(is_tls, host, parts.port or (443 if is_tls else 80))
        self._fixed: Final = {
            "host": netloc,
            "user-agent": USER_AGENT,
            "accept-encoding": "identity",
        }
        self._signer: Final = None if settings.anonymous else Signer(settings.region)

    def make(
        self,
        operation: Operation,
        params: Params,
        body: UploadBody | None,
        grant: CredentialGrant | None,
    ) -> HttpRequest:
        """Write the request down and sign it.

        Raises:
            UnicodeEncodeError: the key is not Unicode.
        """
        headers = dict(self._fixed)
        pairs = []
        content: UploadBody | bytes = b"" if body is None else body
        for name, value in params.items():
            if name in operation.queries:
                pairs.append((operation.queries[name], quote(_text(value), safe=_SAFE)))
            elif name in operation.headers:
                headers[operation.headers[name]] = _text(value)
            elif name in _DOCUMENTS:
                content = write_list(_ROOTS[name], *_DOCUMENTS[name], value)
        headers |= _structured(params)
        if operation.name == "DeleteObjects" and isinstance(content, bytes):
            # S3 demands a checksum here, of any kind.
            headers["x-amz-sdk-checksum-algorithm"] = "CRC32"
            headers["x-amz-checksum-crc32"] = b64encode(
                zlib.crc32(content).to_bytes(4, "big")
            ).decode("ascii")
        if operation.method not in ("GET", "HEAD"):
            length = content.length if isinstance(content, UploadBody) else len(content)
            headers["content-length"] = str(length)
        path = self._path
        if "Key" in params:
            path = f"{path}/{quote(str(params['Key']), safe=f'/{_SAFE}')}"
        target, query = _with_query(path or "/", operation.fixed_query, pairs)
        if self._signer is not None and grant is not None:
            headers |= self._signer.sign(
                operation.method, path or "/", query, headers, _payload_sha256(content), grant
            )
        return HttpRequest(self._address, operation.method, target, headers, content)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _structured(params: Params) -> dict[str, str]:
    """Write down the parameters that have parts."""
    headers = {}
    metadata = params.get("Metadata")
    if isinstance(metadata, Mapping):
        for name, value in metadata.items():
            headers[f"x-amz-meta-{name.lower()}"] = value
    source = params.get("CopySource")
    if isinstance(source, Mapping):
        headers["x-amz-copy-source"] = quote(
            f"{source['Bucket']}/{source['Key']}", safe=f"/{_SAFE}"
        )
    elif source is not None:
        headers["x-amz-copy-source"] = str(source)
    return headers


def _with_query(path: str, fixed: str, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """Return the target, and the query in the form that is signed: sorted, each name with ``=``."""
    written = [f"{name}={value}" for name, value in pairs]
    if not fixed and not written:
        return path, ""
    target = f"{path}?{'&'.join([fixed, *written] if fixed else written)}"
    if fixed:
        written.append(fixed if "=" in fixed else f"{fixed}=")
    return target, "&".join(sorted(written))


def _payload_sha256(content: UploadBody | bytes) -> str:
    if isinstance(content, UploadBody):
        return content.sha256 or UNSIGNED_PAYLOAD
    return sha256(content).hexdigest() if content else EMPTY_SHA256
