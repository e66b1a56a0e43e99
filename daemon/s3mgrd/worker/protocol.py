"""The conversation between the supervisor and a worker: messages and their meaning.

Transport: a SOCK_SEQPACKET unix socket; one JSON message a packet, at most `MAX_MESSAGE_BYTES`; descriptors
travel beside it as SCM_RIGHTS (`s3mgrd.worker.channel`). The supervisor binds and listens at
``<state-dir>/run/<mount>.sock`` and hands the listening descriptor to the worker, which accepts: so an
unprivileged worker needs no right in that directory, and a later supervisor finds the worker by that path.
The worker accepts only peers of uid 0 or its supervisor's uid; a new connection replaces the old one.

Order: the supervisor sends `Hello`, the worker answers with `HelloReply`; then `Configure`; then, when the
kernel connection is there, `Serve` with three descriptors. Either side may send requests afterwards; every
request is answered by a result or by an `ErrorReply`. Events expect no answer.

The supervisor may vanish at any time. The worker goes on serving and waits for the next connection.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct, field

from s3mgr.schema import (
    ConditionSupport,
    ConflictReason,
    Credentials,
    FailedUpload,
    LiveOptions,
    MountSpec,
    PendingRename,
    RestoreRequest,
    Support,
    WarmProgress,
)

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 192 << 10  # the kernel's default send buffer is 208 KiB
RING_BYTES = (
    64 << 10
)  # size of the repeat ring's memfd (`s3mgrd.worker.ring`); the supervisor makes it


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """First message of the supervisor. A worker of another protocol version refuses."""

    protocol: int
    version: str


class HelloReply(Struct, frozen=True, kw_only=True, tag="hello-reply"):
    """The worker introduces itself.

    `serving`: it has the kernel connection already (re-adoption). `ended`: it had one, and it was unmounted; the
    supervisor may have missed the `SessionEnded`.
    """

    protocol: int
    version: str
    pid: int
    mount: str
    serving: bool
    ended: bool = False


class CredentialGrant(Struct, frozen=True, kw_only=True, tag="credential-grant"):
    """Keys for a worker. `expires_at` None: they do not expire; otherwise the worker asks again before."""

    access_key: str
    secret_key: str
    session_token: str | None = None
    expires_at: datetime | None = None

    def __repr__(self) -> str:
        return "CredentialGrant(***)"

    def has_expired(self, now: datetime) -> bool:
        """Whether the keys are not valid any more at *now*."""
        return self.expires_at is not None and self.expires_at <= now


class Configure(Struct, frozen=True, kw_only=True, tag="configure"):
    """Everything a worker needs to open its store and its files.

    `spec` has the endpoint resolved (a URL, or ``aws``) and uid, gid and allow_other filled in.
    `credentials` None means anonymous. `connection_id` names the kernel connection: a worker that finds the
    same id in mount.db serves inodes that the kernel still holds. `probe`: ask the bucket before answering
    (a first mount); a replacement on a live connection must come up without S3.
    """

    name: str
    spec: MountSpec
    credentials: CredentialGrant | None
    connection_id: str
    probe: bool
    supervisor_uid: int


class Configured(Struct, frozen=True, kw_only=True, tag="configured"):
    """The store answers (if probed), mount.db is open, the journal is read."""

    journal_files: int
    journal_bytes: int
    journal_operations: int = 0
    """Changes that are no file's data: names, attributes, deletes."""
    conflicts: int = 0
    conflict_bytes: int = 0
    """Copies of data that lost against other writers: nothing is to be uploaded, and nothing thrown away."""


class Serve(Struct, frozen=True, kw_only=True, tag="serve"):
    """Serve the kernel connection.

    Descriptors: /dev/fuse after FUSE_INIT, the repeat ring's memfd, and the keeper's listening socket (`worker.keeper`).
    `resumed`: a worker served it before; ask the kernel to send unanswered requests again. `flags` and
    `flags2` are the FUSE_INIT capabilities that the kernel was given.
    """

    resumed: bool
    resend: bool
    flags: int
    flags2: int
    max_write: int
    minor: int


class Ok(Struct, frozen=True, kw_only=True, tag="ok"):
    """Done, nothing to tell."""


class GetStats(Struct, frozen=True, kw_only=True, tag="get-stats"):
    """Answered by `s3mgr.schema.MountStats` in a `Report`."""


class GetCache(Struct, frozen=True, kw_only=True, tag="get-cache"):
    """One page of what is cached below *path*; answered by `CacheReport` in a `Report`."""

    path: str = ""
    cursor: str | None = None
    limit: int = 100


class GetConflicts(Struct, frozen=True, kw_only=True, tag="get-conflicts"):
    """One page of the conflict copies; answered by `ConflictList` in a `Report`."""

    cursor: str | None = None
    limit: int = 100


class RestoreConflict(Struct, frozen=True, kw_only=True, tag="restore-conflict"):
    """Make a file of a conflict copy; answered by `RestoredConflict` in a `Report`."""

    id: int
    path: str | None = None
    partial: bool = False


class DiscardConflict(Struct, frozen=True, kw_only=True, tag="discard-conflict"):
    """Throw a conflict copy away. Only ever sent on the user's word."""

    id: int


class GetArchived(Struct, frozen=True, kw_only=True, tag="get-archived"):
    """One page of the archived objects below a path; answered by `ArchivedList` in a `Report`."""

    path: str
    cursor: str | None
    limit: int


class RestoreObjects(Struct, frozen=True, kw_only=True, tag="restore-objects"):
    """Have S3 restore archived objects below a path, a page of them; answered by `RestoreReport` in a `Report`."""

    request: RestoreRequest


class GetQueue(Struct, frozen=True, kw_only=True, tag="get-queue"):
    """One page of the queue of uploads; answered by `UploadQueue` in a `Report`."""

    cursor: str | None = None
    limit: int = 100


class PauseQueue(Struct, frozen=True, kw_only=True, tag="pause-queue"):
    """Hold uploads in the background back; answered by `UploadQueue`, without files, in a `Report`."""


class ResumeQueue(Struct, frozen=True, kw_only=True, tag="resume-queue"):
    """Let uploads in the background go on; answered as `PauseQueue`."""


class HurryUpload(Struct, frozen=True, kw_only=True, tag="hurry-upload"):
    """Have the file at *path* uploaded next; answered as `PauseQueue`."""

    path: str


class Warm(Struct, frozen=True, kw_only=True, tag="warm"):
    """Bring the files at *paths* and below into the block cache, with *pin* for good; answered by `WarmReport` at its end.

    `StatusEvent.warming` tells under *id* how far it is.
    """

    id: str
    paths: list[str]
    pin: bool = False


class StopWarming(Struct, frozen=True, kw_only=True, tag="stop-warming"):
    """Give up what `Warm` of this id goes on with; what is fetched stays."""

    id: str


class Evict(Struct, frozen=True, kw_only=True, tag="evict"):
    """Give up what is in the block cache of the files at *paths* and below; answered by `EvictReport`."""

    paths: list[str]


class Unpin(Struct, frozen=True, kw_only=True, tag="unpin"):
    """Take back the pins at *paths* and below; answered by `UnpinReport`."""

    paths: list[str]


class GetPins(Struct, frozen=True, kw_only=True, tag="get-pins"):
    """Answered by `PinList`."""


class GetCachedFiles(Struct, frozen=True, kw_only=True, tag="get-cached-files"):
    """The files that lead in the block cache; answered by `CachedFiles`."""

    by: Literal["bytes", "hits", "misses"] = "bytes"
    limit: int = 20


class Flush(Struct, frozen=True, kw_only=True, tag="flush"):
    """Upload everything that S3 does not have; answered by `FlushReport` in a `Report` after *timeout_s* at most."""

    timeout_s: float


class Invalidate(Struct, frozen=True, kw_only=True, tag="invalidate"):
    """Forget listings and names below *path*, kernel caches included; answered by `InvalidateReport`."""

    path: str


class SetOptions(Struct, frozen=True, kw_only=True, tag="set-options"):
    """Change live options now."""

    options: LiveOptions


class SetCredentials(Struct, frozen=True, kw_only=True, tag="set-credentials"):
    """Use other keys from now on."""

    credentials: Credentials


class Drain(Struct, frozen=True, kw_only=True, tag="drain"):
    """Prepare to stop: upload what is left, until *timeout_s*; answered by `FlushReport` in a `Report`.

    The kernel connection may still be served meanwhile, or already be gone.
    """

    timeout_s: float


class Discard(Struct, frozen=True, kw_only=True, tag="discard"):
    """Throw away everything that S3 does not have. Only ever sent on the user's word."""


class Stop(Struct, frozen=True, kw_only=True, tag="stop"):
    """Close mount.db and exit with status 0; what is left stays in the journal. A keeper lets go of the connection."""


class GetDescriptors(Struct, frozen=True, kw_only=True, tag="get-descriptors"):
    """Give duplicates of the kernel connection and the ring to a new supervisor; answered by `Descriptors`.

    Asked of a worker that lives, or of the keeper of one that died.
    """


class Descriptors(Struct, frozen=True, kw_only=True, tag="descriptors"):
    """Beside it travel /dev/fuse and the ring, in this order."""

    connection_id: str
    flags: int
    flags2: int
    max_write: int
    minor: int


class GetCredentials(Struct, frozen=True, kw_only=True, tag="get-credentials"):
    """Asked by the worker before its keys expire; answered by `CredentialGrant`."""


class Report(Struct, frozen=True, kw_only=True, tag="report"):
    """An API body, already encoded: the supervisor passes it on without looking inside."""

    body: bytes


class ErrorReply(Struct, frozen=True, kw_only=True, tag="error"):
    """A request failed. `kind` is the class name in `s3mgrd.errors`; the receiver raises that class again."""

    kind: str
    detail: str
    hint: str = ""
    request_id: str | None = None
    pointer: str = ""


class StatusEvent(Struct, frozen=True, kw_only=True, tag="status-event"):
    """What the worker knows of itself; sent when it changes, at most twice a second."""

    health: Literal["ok", "degraded", "bucket-gone"]
    reason: str = ""
    message: str = ""
    dirty_bytes: int = 0
    dirty_files: int = 0
    pending_operations: int = 0
    uploads_paused: bool = False
    failed_uploads: list[FailedUpload] = field(default_factory=list)
    renames: list[PendingRename] = field(default_factory=list)
    warming: list[WarmProgress] = field(default_factory=list)
    conflicts: int = 0
    conflict_bytes: int = 0
    conditional_writes: Literal["supported", "unsupported", "unknown"] = "unknown"
    conditions: ConditionSupport = ConditionSupport()
    checksums: Support = "unknown"
    checksum_algorithm: str = "CRC32C"


class ConflictEvent(Struct, frozen=True, kw_only=True, tag="conflict-event"):
    """What became of data that lost against another writer; see `s3mgr.schema.ConflictCopy`."""

    action: Literal["kept", "restored", "discarded"]
    id: int
    path: str
    size_bytes: int
    reason: ConflictReason


class SessionEnded(Struct, frozen=True, kw_only=True, tag="session-ended"):
    """The kernel connection is gone: somebody unmounted. The worker finishes its uploads and waits for `Stop`."""


class LogEvent(Struct, frozen=True, kw_only=True, tag="log-event"):
    """A warning or worse, for the supervisor's own log."""

    level: Literal["WARNING", "ERROR", "CRITICAL"]
    message: str


SupervisorRequest = (
    Hello
    | Configure
    | Serve
    | GetStats
    | GetCache
    | GetConflicts
    | RestoreConflict
    | DiscardConflict
    | GetArchived
    | RestoreObjects
    | GetQueue
    | PauseQueue
    | ResumeQueue
    | HurryUpload
    | Warm
    | StopWarming
    | Evict
    | Unpin
    | GetPins
    | GetCachedFiles
    | Flush
    | Invalidate
    | SetOptions
    | SetCredentials
    | Drain
    | Discard
    | Stop
    | GetDescriptors
)
WorkerRequest = GetCredentials
Reply = HelloReply | Configured | Ok | Descriptors | Report | CredentialGrant | ErrorReply
WorkerEvent = StatusEvent | ConflictEvent | SessionEnded | LogEvent


class Packet(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message on the wire. `id` pairs a reply with its request; 0 for events."""

    id: int = 0
    reply: bool = False
    body: SupervisorRequest | WorkerRequest | Reply | WorkerEvent
