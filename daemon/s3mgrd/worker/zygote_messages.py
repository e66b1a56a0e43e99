"""What the supervisor and its zygote say to each other: one JSON message a packet, descriptors beside it."""

from typing import Final

from msgspec import Struct

from s3mgr.schema import MountSpec

MAX_PACKET_BYTES: Final = 128 << 10


class Setup(Struct, frozen=True, kw_only=True, tag="setup"):
    """First message: what to import, and whom workers run as (None: as the daemon). Answered by `Ready`.

    `entry`, `warm`, `resolver` and `heir` are ``module:function``; an empty `heir` is none.
    """

    entry: str
    warm: tuple[str, ...]
    resolver: str
    heir: str
    state_dir: str
    uid: int | None
    gid: int | None


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """Everything is imported."""


class ForkWorker(Struct, frozen=True, kw_only=True, tag="fork-worker"):
    """Make a worker. Descriptors: its listening socket, its log. Answered by `Forked`.

    `mount_dir` and `cache_dir` are its own, absolute, and belong to the worker user.
    """

    id: int
    mount: str
    mount_dir: str
    cache_dir: str


class ResolveCredentials(Struct, frozen=True, kw_only=True, tag="resolve-credentials"):
    """Resolve the daemon's own credentials in a process of its own. Descriptor: a pipe for the answer.

    `environment` holds the AWS_* variables, which the zygote itself must not have. Answered by `Forked`.
    """

    id: int
    spec: MountSpec
    environment: dict[str, str]

    def __repr__(self) -> str:
        return "ResolveCredentials(***)"


class Forked(Struct, frozen=True, kw_only=True, tag="forked"):
    """A child is there. Descriptor: its pidfd."""

    id: int
    pid: int


class ForkFailed(Struct, frozen=True, kw_only=True, tag="fork-failed"):
    """No child could be made."""

    id: int
    detail: str


class Exited(Struct, frozen=True, kw_only=True, tag="exited"):
    """A child has ended, and was reaped. Negative `code`: by that signal."""

    pid: int
    code: int


ToZygote = Setup | ForkWorker | ResolveCredentials
FromZygote = Ready | Forked | ForkFailed | Exited
