"""Wire types: the JSON that the daemon's API speaks, shared by the client and the daemon.

Everything that crosses the HTTP socket is defined here and nowhere else; the OpenAPI document and the
docs' option table are generated from these definitions. Requests refuse unknown fields (a typo in a
mount option could lose data); clients ignore unknown fields of answers, so that old clients work with new
daemons.

Conventions: snake_case; times are RFC 3339 UTC with ``Z``; durations end in ``_s`` (seconds, numbers);
sizes end in ``_bytes`` (integers); file modes are octal strings.
"""

from s3mgr.schema.archives import (
    ArchivedList,
    ArchivedObject,
    RestoreReport,
    RestoreRequest,
    RestoreTier,
)
from s3mgr.schema.cache import (
    CachedFile,
    CachedFiles,
    CachePaths,
    EvictReport,
    Pin,
    PinList,
    UnpinReport,
    WarmProgress,
    WarmReport,
)
from s3mgr.schema.conflicts import (
    ConflictCopy,
    ConflictList,
    ConflictReason,
    RestoreConflictRequest,
    RestoredConflict,
)
from s3mgr.schema.events import Event, EventType
from s3mgr.schema.mounts import (
    AbsentName,
    CacheEntry,
    CacheReport,
    ConditionSupport,
    Credentials,
    FailedUpload,
    FlushReport,
    FlushRequest,
    HiddenKey,
    InvalidateReport,
    InvalidateRequest,
    LogTail,
    Mount,
    MountList,
    MountPatch,
    MountRequest,
    MountSpec,
    MountState,
    MountStatus,
    PendingRename,
    Support,
)
from s3mgr.schema.operations import (
    Operation,
    OperationKind,
    OperationList,
    OperationState,
    Progress,
)
from s3mgr.schema.options import LiveOptions, MountOptions, OptionDoc, option_docs
from s3mgr.schema.problems import FieldError, Problem, ProblemType
from s3mgr.schema.queue import HurryRequest, QueuedFile, UploadQueue
from s3mgr.schema.stats import (
    DiskCacheStats,
    LatencyBucket,
    MountStats,
    OperationCount,
    RequestCount,
)
from s3mgr.schema.system import Info, KernelInfo, Readiness

__all__ = [
    "AbsentName",
    "ArchivedList",
    "ArchivedObject",
    "CacheEntry",
    "CachePaths",
    "CacheReport",
    "CachedFile",
    "CachedFiles",
    "ConditionSupport",
    "ConflictCopy",
    "ConflictList",
    "ConflictReason",
    "Credentials",
    "DiskCacheStats",
    "Event",
    "EventType",
    "EvictReport",
    "FailedUpload",
    "FieldError",
    "FlushReport",
    "FlushRequest",
    "HiddenKey",
    "HurryRequest",
    "Info",
    "InvalidateReport",
    "InvalidateRequest",
    "KernelInfo",
    "LatencyBucket",
    "LiveOptions",
    "LogTail",
    "Mount",
    "MountList",
    "MountOptions",
    "MountPatch",
    "MountRequest",
    "MountSpec",
    "MountState",
    "MountStats",
    "MountStatus",
    "Operation",
    "OperationCount",
    "OperationKind",
    "OperationList",
    "OperationState",
    "OptionDoc",
    "PendingRename",
    "Pin",
    "PinList",
    "Problem",
    "ProblemType",
    "Progress",
    "QueuedFile",
    "Readiness",
    "RequestCount",
    "RestoreConflictRequest",
    "RestoreReport",
    "RestoreRequest",
    "RestoreTier",
    "RestoredConflict",
    "Support",
    "UnpinReport",
    "UploadQueue",
    "WarmProgress",
    "WarmReport",
    "option_docs",
]
