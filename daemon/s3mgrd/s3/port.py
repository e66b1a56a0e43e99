"""The port between the file system and an object store.

Adapters: `s3mgrd.s3.client` (aiobotocore) and `s3mgrd.s3.memory` (tests, demo of the contract). One contract
suite, ``tests/contract/test_object_store.py``, passes on all of them.

Conventions: keys are `str` and complete (the mount's prefix included); ranges are half open; ETags are opaque
strings without quotes; times are ns since the epoch. Every method may raise `Unavailable` or `TimedOut` once
its retries ran out, `Denied` / `CredentialsRejected`, and `BucketNotFound`; only further errors are listed.
Every method may be cancelled at any point and leaves nothing behind but, for writes, the uncertainty whether
S3 did it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol

from msgspec import Struct

from s3mgrd.s3.algorithms import ENTERED, Checksum
from s3mgrd.s3.counting import StoreStats
from s3mgrd.s3.outage import Outage

Support = Literal["supported", "unsupported", "unknown"]

MAX_PARTS = 10_000
MIN_PART_BYTES = 5 << 20
MAX_PUT_BYTES = 5 << 30
MAX_COPY_BYTES = 5 << 30
MAX_OBJECT_BYTES = 5 << 40
MAX_DELETE_KEYS = 1000
MAX_LIST_KEYS = 1000
LIGHT_RANGE_BYTES = 128 << 10
"""A download of so many bytes takes as long as an answer without data."""
LIGHT_FACTOR = 4
"""So many times as many requests with little or no data as transfers may be made at the same time."""


ARCHIVE_CLASSES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects cannot be read before a copy of them was restored."""
MOVING_CLASS: Final = "INTELLIGENT_TIERING"
"""The class in which S3 may archive an object without changing its class: only HEAD tells (`ObjectHead.archive_status`)."""

Tier = Literal["Standard", "Bulk", "Expedited"]
RestoreAnswer = Literal["begun", "ongoing", "extended"]


def archive_class(storage_class: str | None) -> str | None:
    """Return *storage_class* if it keeps an object from being read, otherwise None."""
    return storage_class if storage_class in ARCHIVE_CLASSES else None


@dataclass(frozen=True, slots=True)
class RestoreState:
    """What HEAD says of the restored copy of an archived object: it is being made, or can be read until `expires_ns`."""

    is_ongoing: bool
    expires_ns: int | None = None

    def is_readable(self, now_ns: int) -> bool:
        """Whether there is a copy that can be read."""
        return not self.is_ongoing and (self.expires_ns is None or self.expires_ns > now_ns)


class ObjectInfo(Struct, frozen=True, gc=False):
    """What a listing says about an object. `mtime_ns` is S3's LastModified.

    A `Struct` because there are a thousand on a page: a frozen dataclass takes eight times as long to make.
    """

    key: str
    size: int
    etag: str
    mtime_ns: int
    storage_class: str | None = None


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What HEAD and GET say about one version. Metadata names are lower case, without ``x-amz-meta-``.

    `headers`: what else S3 keeps with the version, by lower-case header name: caching rules, encoding, encryption … (see
    `s3mgrd.s3.headers`). Opaque to the file system, which may remember it and hand it back.
    """

    key: str
    size: int
    etag: str
    mtime_ns: int
    metadata: Mapping[str, str]
    content_type: str | None = None
    storage_class: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    restore: RestoreState | None = None
    archive_status: str | None = None
    """Of an object that S3 moved to an archive although its class does not say so; None: it did not."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing: objects and, with a delimiter, common prefixes (ending in ``/``), each in key order.

    `next_token` continues the listing; None: this was the last page.
    """

    objects: Sequence[ObjectInfo]
    prefixes: Sequence[str]
    next_token: str | None


@dataclass(frozen=True, slots=True)
class RangeRead:
    """The bytes of a range and the head of the version they came from. `data` is shorter only at the object's end.

    `data` is the buffer that the bytes were received into: slice it rather than copy it.
    """

    data: bytes | memoryview
    head: ObjectHead


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A body that lies in an open file: *length* bytes at *offset* of *fd*. Read with pread; may be read more than once.

    `checksum`: that of the bytes when they were written; None: not known. What has changed since is not stored.
    """

    fd: int
    offset: int
    length: int
    checksum: Checksum | None = None


Body = bytes | FileSlice


@dataclass(frozen=True, slots=True)
class Written:
    """The version that S3 acknowledged.

    `mtime_ns` is its LastModified; of a PUT and of parts, whose answers do not tell that, when S3 answered, which is no
    earlier, in whole seconds. None: neither is known.
    """

    etag: str
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold for a write to happen; at most one field is set. `absent`: the key must not exist."""

    if_match: str | None = None
    absent: bool = False


ALWAYS = Condition()


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a store does with each kind of condition: evaluates it, ignores or refuses it, or nobody knows yet.

    `complete` is that of multipart uploads, `copy_source` the version that a copy must be made of, `delete` the version
    that may be deleted.
    """

    put_if_match: Support = "unknown"
    put_if_absent: Support = "unknown"
    complete: Support = "unknown"
    copy_source: Support = "unknown"
    delete: Support = "unknown"

    @property
    def writes(self) -> Support:
        """Whether no writer overwrites another unseen: both conditions of a PUT."""
        both = {self.put_if_match, self.put_if_absent}
        if "unsupported" in both:
            return "unsupported"
        return "unknown" if "unknown" in both else "supported"


@dataclass(frozen=True, slots=True)
class Checksums:
    """What a store does with the checksums of uploads; `algorithm` is the name of those that it verifies, or was asked for last."""

    support: Support = "unknown"
    algorithm: str = ENTERED.name


REPLACED: Final = "PreconditionFailed"
"""`DeleteFailure.code` of a key that is not deleted because it is another version."""


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of a multipart upload; `number` starts at 1. `checksum`: of its bytes, None: not known."""

    number: int
    etag: str
    size: int
    checksum: Checksum | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class DeleteFailure:
    """One key of a batch that S3 did not delete, and why."""

    key: str
    code: str
    message: str


NO_VERSIONS: Final[Mapping[str, str]] = MappingProxyType({})


TRIAL: Final = b"s3mgr"
"""What `ObjectStore.try_upload` sends."""


class UploadNotes(Protocol):
    """Takes note of the multipart uploads that a store begins and ends by itself: S3 keeps, and bills, the parts of one that nobody ends."""

    def upload_begun(self, key: str, upload_id: str) -> None:
        """An upload is there; nothing was copied yet."""

    def upload_ended(self, upload_id: str) -> None:
        """It is completed or aborted."""

    def upload_left(self, upload_id: str) -> None:
        """It is neither, as far as anybody knows, and has to be aborted."""


class ObjectStore(Protocol):
    """One bucket. Opened by an async context manager; safe for any number of tasks of one trio loop.

    Attributes:
        copy_notes: told of the uploads by which `copy` makes large objects, and of `try_upload`'s.
    """

    copy_notes: UploadNotes | None

    @property
    def stats(self) -> StoreStats:
        """Counters since the store was opened."""

    @property
    def outage(self) -> Outage:
        """Whether the store can be reached, for who can do without; see `s3mgrd.s3.outage`."""

    @property
    def conditions(self) -> Conditions:
        """What the store is known to do with conditions; found out by use."""

    @property
    def checksums(self) -> Checksums:
        """What the store is known to do with the checksums of uploads; found out by use."""

    async def probe(self, prefix: str) -> None:
        """Check that the bucket exists and may be listed below *prefix*; one request, short deadline.

        Raises:
            BucketNotFound, CredentialsRejected, Denied: as they say; `hint` tells what to do.
            InvalidSpec: wrong region, or an endpoint that does not speak S3.
            Unavailable: the endpoint refuses, cannot be resolved, fails TLS, or times out.
        """

    async def list_page(
        self,
        prefix: str,
        *,
        delimited: bool,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = MAX_LIST_KEYS,
    ) -> ListPage:
        """List one page of the keys that start with *prefix*, in UTF-8 byte order.

        With *delimited*, keys with a further ``/`` after *prefix* are rolled up into `prefixes`.
        """

    async def head(self, key: str) -> ObjectHead:
        """Ask for one object's metadata. Raises `NotFound`."""

    async def checksum(self, key: str, etag: str) -> Checksum | None:
        """Return the checksum of all bytes of version *etag*; None: the store keeps none, or that is another version now."""

    async def find_version(self, key: str, etag: str) -> str | None:
        """Return the id under which a bucket with versioning keeps version *etag* of *key*; None: there is no such one.

        Raises:
            Unsupported: the store keeps no versions.
        """

    async def get_range(
        self,
        key: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        version_id: str | None = None,
        is_whole: bool = False,
    ) -> RangeRead:
        """Read bytes [start, stop), of the version *version_id* or the current one; *stop* may lie beyond the end.

        *is_whole*: that is all of the version *if_match*. S3 then says its checksum, and the bytes are compared with it; of
        other ranges it tells one only of those that are one part.

        Raises:
            NotFound: no such key.
            PreconditionFailed: the object is not the version *if_match*.
            Archived: the object must be restored first.
            Corrupt: S3 keeps other bytes than it has a checksum of.
            UserError: *start* is at or beyond the end (416). Callers know sizes and do not ask.
        """

    async def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str],
        content_type: str | None = None,
        like: ObjectHead | None = None,
        condition: Condition = ALWAYS,
    ) -> Written:
        """Write one object with one request (at most `MAX_PUT_BYTES`). Raises `PreconditionFailed`, `TooLarge`.

        *like* is the version that this one follows: it gets that one's headers, storage class and tags.
        """

    async def delete(self, key: str) -> None:
        """Delete one key; a key that does not exist is a success, as in S3."""

    async def delete_many(
        self, keys: Sequence[str], *, if_match: Mapping[str, str] = NO_VERSIONS
    ) -> Sequence[DeleteFailure]:
        """Delete up to `MAX_DELETE_KEYS` keys with one request and return those that were not deleted.

        A key of *if_match* is deleted only if it is that version, where the store evaluates such conditions; otherwise it
        is among the failures, with the code `REPLACED`. A key that does not exist is a success, but for some stores
        also `REPLACED` if it is of *if_match*.
        """

    async def copy(
        self,
        source: str,
        target: str,
        *,
        source_size: int,
        if_source_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
        replacing: Collection[str] | None = None,
        content_type: str | None = None,
        source_head: ObjectHead | None = None,
        condition: Condition = ALWAYS,
    ) -> Written:
        """Copy one object on the server; by parts above `MAX_COPY_BYTES`.

        *metadata* None keeps the source's metadata and content type. Otherwise both are replaced; with *replacing*, only
        the metadata of these names is (they go, also where *metadata* has them not), and the content type stays unless
        one is given. What S3 keeps elsewhere (caching rules, storage class, encryption, tags) stays in any case; for that
        S3 is asked what it has (one HEAD), unless *source_head* says it of this version. *source* and *target* may be the
        same key when *metadata* is given.

        Raises:
            NotFound: no such source.
            PreconditionFailed: the source is not the version *if_source_match*, or *condition* does not hold.
        """

    async def restore(self, key: str, *, days: int | None, tier: Tier) -> RestoreAnswer:
        """Have S3 make a readable copy of an archived object: the work of minutes or hours, followed by HEAD.

        Where there is one already it is kept for *days* from now. *days* None is for `MOVING_CLASS`, whose objects come
        back for good.

        Raises:
            NotFound: no such key.
            Conflict: the object is not archived.
            Unsupported: the store has no archives.
        """

    async def create_multipart(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        content_type: str | None = None,
        like: ObjectHead | None = None,
    ) -> str:
        """Begin a multipart upload and return its id. *like* as for `put`."""

    @property
    def wants_trial(self) -> bool:
        """Whether `try_upload` would tell news; once at most for each kind of checksum."""

    async def try_upload(self, key: str) -> None:
        """Find out what the store does with checksums and conditions of multipart uploads, by one at *key*, where nothing may lie.

        Beside other uploads: those that know it are spared a HEAD, and a hash of what they send.

        Raises:
            S3mgrError: something failed, and may lie at *key*.
        """

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body) -> Part:
        """Upload one part; the same number again replaces it. Raises `NotFound` when the upload is gone."""

    async def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: str,
        start: int,
        stop: int,
        *,
        if_source_match: str,
    ) -> Part:
        """Make bytes [start, stop) of the object *source* a part, on the server; at most `MAX_COPY_BYTES`.

        MiniStack and radosgw 16 do not heed *if_source_match* here: look at the source again once all parts are copied.

        Raises:
            NotFound: no such source, or the upload is gone.
            PreconditionFailed: the source is not the version *if_source_match*.
            Unsupported: this store cannot.
        """

    async def list_parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """List the parts S3 has. Raises `NotFound` when the upload is gone."""

    async def complete_multipart(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ALWAYS
    ) -> Written:
        """Make the object out of its parts. Raises `NotFound` (upload gone), `PreconditionFailed`."""

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Throw an upload away; one that is gone is a success."""

    async def list_multiparts(self, prefix: str) -> Sequence[PendingUpload]:
        """List the unfinished uploads below *prefix*."""
