"""Conflict copies: data that lost against another writer, and what may be done with it."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

ConflictReason = Literal["replaced", "removed", "exists", "recovered"]


class ConflictCopy(Struct, frozen=True, kw_only=True):
    """What an upload that came second was to write; kept locally until it is restored or discarded.

    `reason`: the other writer had `replaced` or `removed` the object that was modified here, or had made one whose name
    must not `exist` yet; `recovered`: the mount's metadata was damaged, and
    what this was to become is not known for sure. `base_etag` is the version that was modified, `winner_etag` the one that won; null: there was
    none, or it is not known. `missing_bytes` of the base version were never read and are gone with it. `is_open`: a
    program still has it open, and may write to it.
    """

    id: int
    path: str
    size_bytes: int
    mtime: datetime
    lost_at: datetime
    reason: ConflictReason
    base_etag: str | None = None
    winner_etag: str | None = None
    missing_bytes: int = 0
    is_open: bool = False


class ConflictList(Struct, frozen=True, kw_only=True):
    """One page of a mount's conflict copies, oldest first, and the totals."""

    total: int
    total_bytes: int
    items: list[ConflictCopy] = field(default_factory=list)
    cursor: str | None = None


class RestoreConflictRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/mounts/{name}/conflicts/{id}/restore: make a file of a conflict copy."""

    path: Annotated[
        Annotated[str, Meta(min_length=1, max_length=4096)] | None,
        Meta(
            description="Relative to the mount; it must not exist. Default: beside the original, named after the time."
        ),
    ] = None
    partial: Annotated[
        bool, Meta(description="Also when bytes are missing; they become zeros.")
    ] = False


class RestoredConflict(Struct, frozen=True, kw_only=True):
    """The file that a conflict copy has become; its upload is under way."""

    path: str
    size_bytes: int
