"""Mounts: what the user wants (spec), what is (status), and what may be asked of one."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from s3mgr.schema.options import LiveOptions, MountOptions
from s3mgr.schema.stats import DiskCacheStats

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

MountName = Annotated[str, Meta(pattern=NAME_PATTERN, description="Identity of a mount.")]
MountState = Literal[
    "pending", "mounting", "mounted", "degraded", "draining", "unmounted", "failed"
]
DEFAULT_REGION = "us-east-1"


class Credentials(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Access keys sent with a mount request. Write-only: no answer, log or process list ever shows them."""

    access_key: Annotated[str, Meta(min_length=1, max_length=512)]
    secret_key: Annotated[str, Meta(min_length=1, max_length=4096)]
    session_token: Annotated[str, Meta(max_length=16384)] | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"


class MountSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user wants of one mount, without secrets; stored before anything happens."""

    bucket: Annotated[str, Meta(min_length=1, max_length=255, description="Bucket name.")]
    mountpoint: Annotated[
        str,
        Meta(
            pattern=r"^/.",
            max_length=4095,
            description="Absolute path of an empty directory; unique among mounts.",
        ),
    ]
    endpoint: Annotated[
        Annotated[str, Meta(min_length=1, max_length=2048)] | None,
        Meta(
            description="URL of the S3 endpoint; `aws` means AWS itself. Default: the daemon's `endpoint`."
        ),
    ] = None
    region: Annotated[str, Meta(min_length=1, max_length=64)] = DEFAULT_REGION
    profile: Annotated[
        Annotated[str, Meta(min_length=1, max_length=255)] | None,
        Meta(
            description="Profile in the daemon user's AWS configuration to take credentials from."
        ),
    ] = None
    anonymous: Annotated[bool, Meta(description="Send unsigned requests.")] = False
    persist: Annotated[bool, Meta(description="Mount again when the daemon starts.")] = True
    labels: dict[
        Annotated[str, Meta(min_length=1, max_length=63)], Annotated[str, Meta(max_length=255)]
    ] = field(default_factory=dict)
    origin: Annotated[
        Literal["api", "cli", "fstab"],
        Meta(description="Who asked: decides what an unmount from outside means."),
    ] = "api"
    options: MountOptions = field(default_factory=MountOptions)


class MountRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of PUT /v1/mounts/{name}: the spec, and credentials that are never given back."""

    spec: MountSpec
    credentials: Credentials | None = None


class MountPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of PATCH /v1/mounts/{name}, a merge-patch (RFC 7396) of what may change while mounted."""

    options: LiveOptions | UnsetType = UNSET
    credentials: Credentials | UnsetType = UNSET
    labels: dict[str, str | None] | UnsetType = UNSET
    persist: bool | UnsetType = UNSET


class FailedUpload(Struct, frozen=True, kw_only=True):
    """Data that S3 does not have because its upload failed; kept locally and tried again."""

    path: str
    size_bytes: int
    error: str
    since: datetime
    tries: int
    retry_at: datetime | None = None


Support = Literal["supported", "unsupported", "unknown"]


class ConditionSupport(Struct, frozen=True, kw_only=True):
    """What the mount's store does with conditions; use finds it out, and until then it is `unknown`.

    Where a condition is not supported, it is checked right before the write, which is not atomic; that of a delete is not
    checked at all.
    """

    put_if_match: Support = "unknown"
    put_if_absent: Support = "unknown"
    complete: Support = "unknown"
    copy_source: Support = "unknown"
    delete: Support = "unknown"


class PendingRename(Struct, frozen=True, kw_only=True):
    """The rename of a directory that S3 has yet to follow: paths in the mount, and how far it is.

    Totals are what is known so far, 0 at first. `error`: what the last try failed with.
    """

    id: str
    source: str
    target: str
    since: datetime
    objects_done: int = 0
    objects_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    error: str = ""


class MountStatus(Struct, frozen=True, kw_only=True):
    """What is: observed by the daemon, never set by the user."""

    state: MountState
    since: datetime
    reason: str = ""
    message: str = ""
    hint: str = ""
    restarts: int = 0
    retry_at: datetime | None = None
    observed_generation: int = 0
    worker_pid: int | None = None
    worker_memory_bytes: int | None = None
    dirty_bytes: int = 0
    dirty_files: int = 0
    pending_operations: int = 0
    uploads_paused: bool = False
    failed_uploads: list[FailedUpload] = field(default_factory=list)
    renames: list[PendingRename] = field(default_factory=list)
    conflicts: int = 0
    conflict_bytes: int = 0
    conditional_writes: Support = "unknown"
    conditions: ConditionSupport = ConditionSupport()
    checksums: Support = "unknown"
    checksum_algorithm: str = "CRC32C"
    log_tail: list[str] = field(default_factory=list)


class Mount(Struct, frozen=True, kw_only=True):
    """One mount: identity, wish and observation. `generation` counts changes of the spec."""

    name: str
    generation: int
    owner_uid: int
    created_at: datetime
    desired: Literal["mounted", "unmounted"]
    has_credentials: bool
    spec: MountSpec
    status: MountStatus


class MountList(Struct, frozen=True, kw_only=True):
    """All mounts that the caller may see, and the event cursor to watch from."""

    items: list[Mount]
    cursor: int


class FlushRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/mounts/{name}/flush: upload what S3 does not have yet, and wait."""

    timeout_s: Annotated[float, Meta(ge=0, le=86400)] = 300.0


class FlushReport(Struct, frozen=True, kw_only=True):
    """What a flush or a drain achieved: what is left stays in the journal."""

    uploaded_files: int
    remaining_files: int
    remaining_bytes: int
    remaining_operations: int = 0
    failed_uploads: list[FailedUpload] = field(default_factory=list)
    conflicts: int = 0
    conflict_bytes: int = 0


class InvalidateRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/mounts/{name}/invalidate: forget what is known below a path of the mount."""

    path: Annotated[
        str, Meta(max_length=4096, description="Relative to the mount; empty for the whole mount.")
    ] = ""


class InvalidateReport(Struct, frozen=True, kw_only=True):
    """How many directory listings and names were forgotten."""

    listings: int
    entries: int


class CacheEntry(Struct, frozen=True, kw_only=True):
    """One name that the mount knows, and what of its data is held locally.

    `source`: what told of it last: a listing of its directory, a request for it alone, or this mount itself, when S3 has
    nothing of it yet. `age_s`: since then; null: it is not believed any more. `fresh_s`: for so long it is believed
    without asking. `attributes`: whether mode, owner and times are known, or S3 has yet to get them. `cached_bytes` of its data are in
    memory, `disk_bytes` in the cache on disk.
    """

    path: str
    kind: Literal["file", "directory", "symlink", "other"]
    inode: int
    size_bytes: int
    mtime: datetime | None = None
    etag: str | None = None
    age_s: float | None = None
    source: Literal["listing", "request", "local"] = "listing"
    fresh_s: float = 0.0
    attributes: Literal["known", "unknown", "pending"] = "unknown"
    dirty: bool = False
    cached_bytes: int = 0
    disk_bytes: int = 0
    is_pinned: bool = False
    staged_bytes: int = 0


class HiddenKey(Struct, frozen=True, kw_only=True):
    """A key that has no name in the mount, and why; what is not UTF-8 in it is escaped with backslashes."""

    key: str
    reason: str


class AbsentName(Struct, frozen=True, kw_only=True):
    """A name that is known not to be there, and for how long that is believed."""

    name: str
    fresh_s: float


class CacheReport(Struct, frozen=True, kw_only=True):
    """Totals of the metadata and data caches, and one page: entries, then hidden keys, then absent names."""

    entries_total: int
    directories_listed: int
    hidden_keys: int
    metadata_bytes: int
    data_bytes: int
    data_limit_bytes: int
    staged_bytes: int
    metadata_hits: int
    metadata_misses: int
    data_hits: int
    data_misses: int
    listing_hits: int = 0
    listing_misses: int = 0
    absent_names: int = 0
    disk_cache: DiskCacheStats = DiskCacheStats()
    items: list[CacheEntry] = field(default_factory=list)
    hidden: list[HiddenKey] = field(default_factory=list)
    absent: list[AbsentName] = field(default_factory=list)
    cursor: str | None = None


class LogTail(Struct, frozen=True, kw_only=True):
    """The last lines of a worker's log; `offset` continues from there."""

    lines: list[str]
    offset: int
