"""The queue of uploads: files that are on the local disk, and that the mount brings to S3 in the background."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field


class QueuedFile(Struct, frozen=True, kw_only=True):
    """A file whose upload waits for its turn or its next try, or is going on.

    `since`: S3 has lacked something of it since then. `state`: it is `uploading`, is `waiting` for its turn, has `failed`
    (`retry_at`: the next try; null: none, S3 takes no such file), or is held back because the queue is `paused`. `tries`
    counts those that failed, `error` is what the last of them said.
    """

    path: str
    size_bytes: int
    since: datetime
    state: Literal["uploading", "waiting", "failed", "paused"]
    tries: int = 0
    error: str | None = None
    retry_at: datetime | None = None


class UploadQueue(Struct, frozen=True, kw_only=True):
    """Totals of a mount's queue, and one page of it in the order in which it goes.

    `writers_waiting`: so many close() wait because more than `dirty_limit_bytes` are queued. A file that changes its place
    between two pages may be on both.
    """

    total_files: int
    total_bytes: int
    dirty_limit_bytes: int
    is_paused: bool
    writers_waiting: int
    items: list[QueuedFile] = field(default_factory=list)
    cursor: str | None = None


class HurryRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/mounts/{name}/queue/hurry: have one file uploaded next, also while the queue is paused."""

    path: Annotated[str, Meta(min_length=1, max_length=4096, description="Relative to the mount.")]
