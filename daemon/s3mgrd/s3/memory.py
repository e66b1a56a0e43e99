# over 600 lines because one store is read beside the one port that it implements
"""An `ObjectStore` in memory, with the semantics of S3 and hooks for tests.

It is what tests of the layers above run on, under trio's autojump clock: no thread, no socket, no real time. The
contract suite holds it to what real servers do.

Hooks: `hold` makes calls of an operation wait (and tells how many do), `fail_next` makes the next ones fail,
`before` sees every call, `calls` counts them, `clock` gives the time of writes. Operations are named as the port's methods.
"""

import base64
import hashlib
import math
import os
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import trio

from s3mgrd.errors import (
    Archived,
    BucketNotFound,
    Conflict,
    Corrupt,
    NotFound,
    PreconditionFailed,
    S3mgrError,
    TooLarge,
    UserError,
)
from s3mgrd.s3.algorithms import CRC64NVME, Algorithm, Checksum
from s3mgrd.s3.counting import StoreStats
from s3mgrd.s3.metadata import encode_metadata
from s3mgrd.s3.multipart import multipart_etag
from s3mgrd.s3.outage import Outage
from s3mgrd.s3.port import (
    ALWAYS,
    MAX_COPY_BYTES,
    MAX_LIST_KEYS,
    MAX_PUT_BYTES,
    MIN_PART_BYTES,
    NO_VERSIONS,
    REPLACED,
    Body,
    Checksums,
    Condition,
    Conditions,
    DeleteFailure,
    FileSlice,
    ListPage,
    ObjectHead,
    ObjectInfo,
    Part,
    PendingUpload,
    RangeRead,
    RestoreAnswer,
    RestoreState,
    Support,
    Tier,
    UploadNotes,
    Written,
    archive_class,
)

Operation = Literal[
    "probe",
    "list_page",
    "head",
    "checksum",
    "find_version",
    "get_range",
    "put",
    "delete",
    "delete_many",
    "copy",
    "restore",
    "create_multipart",
    "upload_part",
    "copy_part",
    "list_parts",
    "complete_multipart",
    "abort_multipart",
    "list_multiparts",
]
MAX_KEY_BYTES: Final = 1024
DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"
DAY_NS: Final = 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object: its bytes and what HEAD says."""

    data: bytes
    head: ObjectHead


@dataclass(slots=True)
class Hold:
    """A gate before an operation. `waiting` calls stand at it; `release` lets them and all later ones pass."""

    key: str | None = None
    """Only calls about this key, or listings of this prefix; None: all."""
    left: float = math.inf
    """How many more calls wait here."""
    waiting: int = 0
    _opened: trio.Event = field(default_factory=trio.Event)
    _arrived: trio.Event = field(default_factory=trio.Event)

    def release(self) -> None:
        """Open the gate for good."""
        self._opened.set()

    async def arrived(self) -> None:
        """Wait until a call stands at the gate."""
        await self._arrived.wait()

    async def pass_through(self) -> None:
        """Wait at the gate."""
        self.waiting += 1
        self._arrived.set()
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1


@dataclass(slots=True)
class _Upload:
    key: str
    metadata: dict[str, str]
    content_type: str | None
    started_ns: int
    like: ObjectHead | None
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryStore:
    """One bucket in memory.

    Attributes:
        clock: returns ns since the epoch; times of writes are rounded down to ms, as S3's are. The default begins at a fixed
            moment and advances by 1 ms a write, so that tests see the same times always.
        before: called with operation and key before each call.
        calls: how many calls of each operation were begun.
        damage: what reads get of a key from a position on, instead of the bytes that are there; as on a bad network.
        kept: keys that a batch does not delete, each with the code that it answers.
        bucket_exists: False makes every call fail with `BucketNotFound`.
        keeps_versions: the bucket has versioning: what is replaced or deleted is kept in `versions`.
        min_part_bytes: smallest part but the last; tests make it small.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        conditions: Support = "supported",
    ) -> None:
        self.stats = StoreStats()
        self.copy_notes: UploadNotes | None = None  # all copies are made at once
        self.outage = Outage()
        self.conditions = Conditions(*[conditions] * 5)
        self.checksums = Checksums("supported")
        self.keeps: Algorithm = CRC64NVME
        self.damage: Callable[[str, int, bytes], bytes] | None = None
        self.calls: Counter[Operation] = Counter()
        self.before: Callable[[Operation, str], None] | None = None
        self.kept: dict[str, str] = {}
        self.bucket_exists = True
        self.keeps_versions = False
        self.versions: dict[str, list[StoredObject]] = {}
        self.min_part_bytes = MIN_PART_BYTES
        self.max_copy_bytes = MAX_COPY_BYTES
        self.clock: Callable[[], int] = clock or self._tick
        self._now_ns = 1_700_000_000_000_000_000
        self._objects: dict[str, StoredObject] = {}
        self._order: list[bytes] = []
        """The keys as UTF-8, sorted: S3's order is that of bytes."""
        self._uploads: dict[str, _Upload] = {}
        self._upload_count = 0
        self._restoring: dict[str, int] = {}
        """Keys that are being restored, and for how many days."""
        self._holds: dict[Operation, list[Hold]] = {}
        self._failures: dict[Operation, deque[S3mgrError]] = {}

    # Hooks for tests.

    @contextmanager
    def hold(
        self, operation: Operation, key: str | None = None, *, first: float = math.inf
    ) -> Iterator[Hold]:
        """Make calls of *operation* (about *key*; the *first* so many) wait until the hold is released or its context is left."""
        hold = Hold(key, first)
        self._holds.setdefault(operation, []).append(hold)
        try:
            yield hold
        finally:
            self._holds[operation].remove(hold)
            hold.release()

    def fail_next(self, operation: Operation, error: S3mgrError, *, times: int = 1) -> None:
        """Make the next *times* calls of *operation* fail, before they do anything."""
        self._failures.setdefault(operation, deque()).extend([error] * times)

    @property
    def objects(self) -> Mapping[str, StoredObject]:
        """What is in the bucket."""
        return self._objects

    def insert(
        self,
        key: str,
        data: bytes = b"",
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        storage_class: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ObjectHead:
        """Write an object as another tool would: at once and without counting."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return self._store(
            key,
            data,
            etag,
            metadata or {},
            content_type or DEFAULT_CONTENT_TYPE,
            storage_class=storage_class,
            headers=headers,
        )

    def remove(self, key: str) -> None:
        """Delete an object as another tool would; one that does not exist is fine."""
        self._keep_version(key)
        if self._objects.pop(key, None) is not None:
            del self._order[bisect_left(self._order, _raw(key))]

    def finish_restores(self) -> None:
        """Let every restore that was begun have ended."""
        for key, days in self._restoring.items():
            stored = self._objects[key]
            until = RestoreState(is_ongoing=False, expires_ns=self.clock() + days * DAY_NS)
            self._objects[key] = replace(stored, head=replace(stored.head, restore=until))
        self._restoring.clear()

    # Live tuning: what the S3 adapter has, accepted for the sake of its callers.

    def set_retry_deadline(self, seconds: float) -> None:
        """Nothing fails here that a retry could mend."""

    def set_concurrency(self, requests: int) -> None:
        """Calls do not use anything that could be short."""

    def set_credentials(self, provider: Callable[[], Awaitable[object]]) -> None:
        """Everything is allowed."""

    # The port.

    async def probe(self, prefix: str) -> None:
        """See the port."""
        async with self._call("probe", prefix):
            pass

    async def list_page(
        self,
        prefix: str,
        *,
        delimited: bool,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = MAX_LIST_KEYS,
    ) -> ListPage:
        """See the port."""
        async with self._call("list_page", prefix):
            wanted = _raw(prefix)
            # A token is the last name of the page before; all keys below a rolled-up one were told with it.
            after = base64.b64decode(token) if token else _raw(start_after or "")
            rolled = bool(token) and delimited and after.endswith(b"/") and after != wanted
            first = bisect_left(self._order, _behind(after)) if rolled else 0
            if not rolled:
                first = bisect_right(self._order, after) if after else 0
            first = max(first, bisect_left(self._order, wanted))
            objects: list[ObjectInfo] = []
            prefixes: list[str] = []
            last = b""
            while first < len(self._order):
                raw = self._order[first]
                if not raw.startswith(wanted):
                    break
                if len(objects) + len(prefixes) >= max_keys:
                    return ListPage(objects, prefixes, base64.b64encode(last).decode())
                cut = raw.find(b"/", len(wanted)) if delimited else -1
                if cut >= 0:
                    last = raw[: cut + 1]
                    prefixes.append(_text(last))
                    first = bisect_left(self._order, _behind(last))
                    continue
                last = raw
                objects.append(_info(self._objects[_text(raw)].head))
                first += 1
            return ListPage(objects, prefixes, None)

    async def head(self, key: str) -> ObjectHead:
        """See the port."""
        async with self._call("head", key):
            return self._find(key).head

    async def checksum(self, key: str, etag: str) -> Checksum | None:
        """See the port."""
        async with self._call("checksum", key):
            found = self._find(key)
            is_it = found.head.etag == etag
            return Checksum.of(self.keeps, found.data) if is_it else None

    async def find_version(self, key: str, etag: str) -> str | None:
        """See the port."""
        async with self._call("find_version", key):
            found = [n for n, old in enumerate(self.versions.get(key, [])) if old.head.etag == etag]
            return str(found[-1]) if found else None

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
        """See the port."""
        async with self._call("get_range", key):
            old = self.versions.get(key, [])
            stored = self._find(key) if version_id is None else old[int(version_id)]
            if if_match is not None and stored.head.etag != if_match:
                raise PreconditionFailed(f"{key!r} is not the version expected")
            self._check_readable(stored.head)
            if start >= len(stored.data):
                raise UserError(f"the range begins at or beyond the end of {key!r}")
            data = stored.data[start:stop]
            if self.damage is not None:
                data = self.damage(key, start, data)
            self.stats.received_bytes += len(data)
            return RangeRead(data, stored.head)

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
        """See the port. A body in a file is read when the write takes effect."""
        async with self._call("put", key):
            if (body.length if isinstance(body, FileSlice) else len(body)) > MAX_PUT_BYTES:
                raise TooLarge(f"the body of {key!r} is too large for one PUT")
            encode_metadata(metadata)
            self._check(key, condition)
            data = self._receive(body)
            etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
            stored = self._store(
                key,
                data,
                etag,
                metadata,
                content_type or DEFAULT_CONTENT_TYPE,
                storage_class=like.storage_class if like else None,
                headers=like.headers if like else None,
            )
            return Written(etag, stored.mtime_ns)

    async def delete(self, key: str) -> None:
        """See the port."""
        async with self._call("delete", key):
            self.remove(key)

    async def delete_many(
        self, keys: Sequence[str], *, if_match: Mapping[str, str] = NO_VERSIONS
    ) -> Sequence[DeleteFailure]:
        """See the port."""
        failures = []
        async with self._call("delete_many", ""):
            for key in keys:
                if key in self.kept:
                    failures.append(DeleteFailure(key, self.kept[key], "it stays"))
                    continue
                try:
                    if key in self._objects and self.conditions.delete != "unsupported":
                        self._check(key, Condition(if_match=if_match.get(key)))
                except PreconditionFailed as error:
                    failures.append(DeleteFailure(key, REPLACED, error.detail))
                else:
                    self.remove(key)
        return failures

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
        """See the port."""
        if source_head is None:
            source_head = await self.head(source)
        async with self._call("copy", target):
            stored = self._find(source)
            if if_source_match is not None and stored.head.etag != if_source_match:
                raise PreconditionFailed(f"{source!r} is not the version expected")
            if source == target and metadata is None:
                raise UserError("a copy onto itself must change something")
            self._check_readable(stored.head)
            self._check(target, condition)
            if metadata is None:
                metadata, content_type = stored.head.metadata, stored.head.content_type
            else:
                encode_metadata(metadata)
                if replacing is not None:
                    kept = {k: v for k, v in source_head.metadata.items() if k not in replacing}
                    metadata = kept | dict(metadata)
                    content_type = content_type or source_head.content_type
            etag = hashlib.md5(stored.data, usedforsecurity=False).hexdigest()
            written = self._store(
                target,
                stored.data,
                etag,
                metadata,
                content_type or DEFAULT_CONTENT_TYPE,
                storage_class=source_head.storage_class,
                headers=source_head.headers,
            )
            return Written(etag, written.mtime_ns)

    async def restore(self, key: str, *, days: int | None, tier: Tier) -> RestoreAnswer:
        """See the port. It is ongoing until `finish_restores`."""
        async with self._call("restore", key):
            head = self._find(key).head
            if archive_class(head.storage_class) is None:
                raise Conflict(f"{key!r} is not archived")
            if head.restore is not None and head.restore.is_ongoing:
                return "ongoing"
            self._restoring[key] = days or 1
            if head.restore is not None:
                self.finish_restores()
                return "extended"
            ongoing = replace(head, restore=RestoreState(is_ongoing=True))
            self._objects[key] = replace(self._objects[key], head=ongoing)
            return "begun"

    @property
    def wants_trial(self) -> bool:
        """See the port."""
        return False

    async def try_upload(self, key: str) -> None:
        """See the port."""

    async def create_multipart(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        content_type: str | None = None,
        like: ObjectHead | None = None,
    ) -> str:
        """See the port."""
        async with self._call("create_multipart", key):
            _check_key(key)
            encode_metadata(metadata)
            self._upload_count += 1
            upload_id = f"upload-{self._upload_count}"
            self._uploads[upload_id] = _Upload(
                key, _lower(metadata), content_type or DEFAULT_CONTENT_TYPE, self.clock(), like
            )
            return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body) -> Part:
        """See the port."""
        async with self._call("upload_part", key):
            upload = self._find_upload(key, upload_id)
            data = self._receive(body)
            upload.parts[number] = data
            return _part(number, data)

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
        """See the port."""
        async with self._call("copy_part", key):
            upload = self._find_upload(key, upload_id)
            stored = self._find(source)
            if stored.head.etag != if_source_match:
                raise PreconditionFailed(f"{source!r} is not the version expected")
            self._check_readable(stored.head)
            upload.parts[number] = stored.data[start:stop]
            return _part(number, upload.parts[number])

    async def list_parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """See the port."""
        async with self._call("list_parts", key):
            upload = self._find_upload(key, upload_id)
            return [_part(number, upload.parts[number]) for number in sorted(upload.parts)]

    async def complete_multipart(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ALWAYS
    ) -> Written:
        """See the port."""
        async with self._call("complete_multipart", key):
            upload = self._find_upload(key, upload_id)
            for part in parts:
                held = upload.parts.get(part.number)
                if held is None or _part(part.number, held).etag != part.etag:
                    raise NotFound(f"the multipart upload of {key!r} lacks part {part.number}")
            if any(len(upload.parts[part.number]) < self.min_part_bytes for part in parts[:-1]):
                raise UserError(f"a part is smaller than {self.min_part_bytes} bytes")
            if not parts or [p.number for p in parts] != sorted({p.number for p in parts}):
                raise UserError("the parts are not in order")
            self._check(key, condition)
            etag = multipart_etag(parts)
            data = b"".join(upload.parts[part.number] for part in parts)
            stored = self._store(
                key,
                data,
                etag,
                upload.metadata,
                upload.content_type,
                storage_class=upload.like.storage_class if upload.like else None,
                headers=upload.like.headers if upload.like else None,
            )
            del self._uploads[upload_id]
            return Written(etag, stored.mtime_ns)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """See the port."""
        async with self._call("abort_multipart", key):
            self._uploads.pop(upload_id, None)

    async def list_multiparts(self, prefix: str) -> Sequence[PendingUpload]:
        """See the port."""
        async with self._call("list_multiparts", prefix):
            found = [
                PendingUpload(upload.key, upload_id, upload.started_ns)
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(prefix)
            ]
            return sorted(found, key=lambda pending: _raw(pending.key))

    # Below: what the methods above share. None of it has a checkpoint: a call takes effect at once.

    @asynccontextmanager
    async def _call(self, operation: Operation, key: str) -> AsyncIterator[None]:
        """Count a call, wait where it is held, fail where it shall; its effect follows without a checkpoint."""
        self.calls[operation] += 1
        counters = self.stats.of(operation)
        started = trio.current_time()
        try:
            if self.before is not None:
                self.before(operation, key)
            await trio.lowlevel.checkpoint()
            for hold in list(self._holds.get(operation, ())):
                if hold.key in (None, key) and hold.left > 0:
                    hold.left -= 1
                    await hold.pass_through()
            failures = self._failures.get(operation)
            if failures:
                raise failures.popleft()
            if self.outage.is_on and operation in ("list_page", "head", "get_range"):
                raise self.outage.refusal()
            if not self.bucket_exists:
                raise BucketNotFound("the bucket does not exist")
            yield
            self.outage.note_answer()
        except (NotFound, PreconditionFailed):
            raise
        except S3mgrError:
            counters.errors += 1
            raise
        finally:
            counters.count += 1
            counters.seconds += trio.current_time() - started

    def _tick(self) -> int:
        self._now_ns += 1_000_000
        return self._now_ns

    def _find(self, key: str) -> StoredObject:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFound(f"there is no object {key!r}") from None

    def _check_readable(self, head: ObjectHead) -> None:
        if archive_class(head.storage_class) is None:
            return
        if head.restore is None or not head.restore.is_readable(self.clock()):
            raise Archived(f"{head.key!r} is archived and must be restored before it can be read")

    def _find_upload(self, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NotFound(f"the multipart upload of {key!r} is gone")
        return upload

    def _check(self, key: str, condition: Condition) -> None:
        if self.conditions.writes == "unsupported":
            return
        stored = self._objects.get(key)
        if condition.absent and stored is not None:
            raise PreconditionFailed(f"{key!r} exists already")
        if condition.if_match is not None and (
            stored is None or stored.head.etag != condition.if_match
        ):
            raise PreconditionFailed(f"{key!r} is not the version expected")

    def _receive(self, body: Body) -> bytes:
        data = body
        if isinstance(data, FileSlice):
            data = os.pread(data.fd, data.length, data.offset)
            if isinstance(body, FileSlice) and len(data) < body.length:
                raise Corrupt("the file to upload is shorter than the part that belongs to it")
            if isinstance(body, FileSlice) and body.checksum and not body.checksum.is_of(data):
                raise Corrupt("what is uploaded is not what was written")
        self.stats.sent_bytes += len(data)
        return data

    def _keep_version(self, key: str) -> None:
        if self.keeps_versions and key in self._objects:
            self.versions.setdefault(key, []).append(self._objects[key])

    def _store(
        self,
        key: str,
        data: bytes,
        etag: str,
        metadata: Mapping[str, str],
        content_type: str | None,
        *,
        storage_class: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ObjectHead:
        _check_key(key)
        head = ObjectHead(
            key=key,
            size=len(data),
            etag=etag,
            mtime_ns=self.clock() // 1_000_000 * 1_000_000,
            metadata=_lower(metadata),
            content_type=content_type,
            storage_class=storage_class,
            headers=dict(headers or {}),
        )
        self._keep_version(key)
        if key not in self._objects:
            raw = _raw(key)
            self._order.insert(bisect_left(self._order, raw), raw)
        self._objects[key] = StoredObject(data, head)
        return replace(head)


def _behind(common: bytes) -> bytes:
    """Return what sorts first behind every key below a common prefix: "0" is the byte after the slash."""
    return common[:-1] + b"0"


def _raw(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _lower(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in metadata.items()}


def _check_key(key: str) -> None:
    if not key or len(_raw(key)) > MAX_KEY_BYTES:
        raise TooLarge(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(_raw(key))}")


def _part(number: int, data: bytes) -> Part:
    return Part(number, hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data))


def _info(head: ObjectHead) -> ObjectInfo:
    return ObjectInfo(head.key, head.size, head.etag, head.mtime_ns, head.storage_class)
