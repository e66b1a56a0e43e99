"""Archived objects: what S3 cannot give out before it has restored a copy, and asking it to."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

RestoreTier = Literal["Standard", "Bulk", "Expedited"]


class ArchivedObject(Struct, frozen=True, kw_only=True):
    """An object in an archive, by its path in the mount.

    `state`: it is `archived`, S3 is `restoring` a copy, or a copy is `restored` and can be read until `expires_at` (null:
    for good). `error`: why S3 did not begin to restore it; null: it did, or was not asked.
    """

    path: str
    size_bytes: int
    storage_class: str
    state: Literal["archived", "restoring", "restored"]
    expires_at: datetime | None = None
    error: str | None = None


class ArchivedList(Struct, frozen=True, kw_only=True):
    """One page of the archived objects below a path, in the order of their keys. A page may be empty and not be the last."""

    items: list[ArchivedObject] = field(default_factory=list)
    cursor: str | None = None


class RestoreRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/mounts/{name}/archived/restore: have S3 make readable copies of archived objects."""

    path: Annotated[
        str,
        Meta(
            max_length=4096, description="A file or a directory of the mount; empty for all of it."
        ),
    ] = ""
    days: Annotated[
        int, Meta(ge=1, le=36_500, description="For how long the copies can be read.")
    ] = 7
    tier: Annotated[
        RestoreTier,
        Meta(
            description="How fast: `Expedited` minutes, `Standard` hours, `Bulk` up to two days; the price follows. "
            "S3 has not all of them for every class."
        ),
    ] = "Standard"
    cursor: Annotated[
        Annotated[str, Meta(max_length=2048)] | None,
        Meta(description="`cursor` of the answer before: go on from there."),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=100, description="Most objects for one answer.")] = 100


class RestoreReport(Struct, frozen=True, kw_only=True):
    """What S3 does now about the archived objects of one page: `begun` of them it restores, `failed` it refused.

    `items` are those and the ones of which a copy was restored before. With a `cursor` there may be more: ask again with it.
    """

    begun: int
    failed: int
    items: list[ArchivedObject] = field(default_factory=list)
    cursor: str | None = None
