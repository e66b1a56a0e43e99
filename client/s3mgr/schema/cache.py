"""The block cache on disk as users see it: what is in it, what to bring there or give up, and what is to stay."""

from typing import Annotated

from msgspec import Meta, Struct, field

Path = Annotated[str, Meta(max_length=4096, description="Relative to the mount; empty: all of it.")]


class CachePaths(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/mounts/{name}/cache/…: files, and directories with everything below."""

    paths: Annotated[list[Path], Meta(min_length=1, max_length=1000)]


class WarmReport(Struct, frozen=True, kw_only=True):
    """What is in the cache now of what was asked for; `skipped` files changed meanwhile, or lie in an archive."""

    files: int
    bytes: int
    skipped: int = 0


class WarmProgress(Struct, frozen=True, kw_only=True):
    """How far a worker is in bringing files into the cache; `bytes_total` null: it still counts what there is."""

    id: str
    bytes_done: int = 0
    bytes_total: int | None = None


class EvictReport(Struct, frozen=True, kw_only=True):
    """What was given up on disk. `pinned_files` stay: they are unpinned first."""

    files: int
    bytes: int
    pinned_files: int = 0


class Pin(Struct, frozen=True, kw_only=True):
    """A path whose files stay in the cache: how many files are known there, their size, and how much of it is in the cache."""

    path: str
    files: int
    size_bytes: int
    cached_bytes: int


class PinList(Struct, frozen=True, kw_only=True):
    """All pins of a mount. `problem`: why not all of it is in the cache, where that could not be done."""

    items: list[Pin] = field(default_factory=list)
    problem: str = ""


class UnpinReport(Struct, frozen=True, kw_only=True):
    """The pins that were taken back. What they held stays in the cache until its turn to be evicted."""

    paths: list[str]


class CachedFile(Struct, frozen=True, kw_only=True):
    """A file of which something is in the cache, or was read through it since the worker began.

    `hit_bytes` is what reads took from there, `miss_bytes` what S3 had to be asked for. What programs read again from the
    kernel's memory, or the mount's, is neither.
    """

    path: str
    size_bytes: int
    cached_bytes: int
    is_pinned: bool = False
    hit_bytes: int = 0
    miss_bytes: int = 0


class CachedFiles(Struct, frozen=True, kw_only=True):
    """The files that lead by what was asked for, the first ones first."""

    items: list[CachedFile] = field(default_factory=list)
