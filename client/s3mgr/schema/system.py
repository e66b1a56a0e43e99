"""The daemon itself: version, limits, readiness."""

from datetime import datetime

from msgspec import Struct, field


class KernelInfo(Struct, frozen=True, kw_only=True):
    """What this kernel's FUSE offers of what s3mgr uses."""

    release: str
    fuse_minor: int | None = None
    resend: bool | None = None


class Info(Struct, frozen=True, kw_only=True):
    """GET /v1/info."""

    version: str
    api_version: str
    pid: int
    boot_id: str
    started_at: datetime
    user_mode: bool
    state_dir: str
    cache_dir: str
    worker_user: str
    kernel: KernelInfo
    libraries: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Readiness(Struct, frozen=True, kw_only=True):
    """GET /readyz: `ready` once the store is open and every stored mount was tried; degraded mounts do not fail it."""

    ready: bool
    checks: dict[str, bool]
    degraded_mounts: list[str] = field(default_factory=list)
