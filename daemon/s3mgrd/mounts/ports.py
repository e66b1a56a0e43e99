"""What the domain needs of the outside, as protocols; adapters live in `fuse`, `worker` and `state`.

The unit tests of this package drive the domain with fakes of these, under trio's autojump clock.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from s3mgr.schema import KernelInfo, LiveOptions, MountSpec, Problem
from s3mgrd.errors import S3mgrError
from s3mgrd.worker.protocol import (
    Configure,
    CredentialGrant,
    Descriptors,
    Reply,
    SupervisorRequest,
    WorkerEvent,
)

CredentialsSource = Callable[[], Awaitable[CredentialGrant]]
"""Answers a worker's `GetCredentials`. An `S3mgrError` it raises goes to the worker as `ErrorReply`."""

DescribeProblem = Callable[[S3mgrError, str | None], Problem]
"""Error and mount name → the problem that an operation or an event carries; `api.problems` has the only table."""


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker ended: a status, or the signal that ended it. Both None: nobody could wait for it."""

    status: int | None
    signal: int | None


class Worker(Protocol):
    """A running worker process and the conversation with it."""

    pid: int
    serving: bool
    """From its hello: it has a kernel connection that is up."""
    ended: bool
    """From its hello: it had one, and somebody unmounted it while no supervisor was there."""

    def set_credentials_source(self, source: CredentialsSource) -> None:
        """Answer the worker's `GetCredentials` by *source*; called once, before `Configure` or right after adoption.

        Each request runs in a task of the conversation, so *source* may take its time. Until it is set, requests are
        answered by `Unavailable`.
        """

    def memory_bytes(self) -> int | None:
        """Memory of the process now, private pages only where that can be told; microseconds, no checkpoint."""

    async def request(self, message: SupervisorRequest, *, fds: tuple[int, ...] = ()) -> Reply:
        """Send *message* and wait for the reply.

        Cancel-safe: a late reply is dropped. An `ErrorReply` is raised as the class it names.

        Raises:
            WorkerLost: the process or its socket ended first.
        """

    async def descriptors(self) -> tuple[Descriptors, int, int]:
        """Take duplicates of a serving worker's kernel connection and ring (re-adoption); the caller owns both."""

    @property
    def events(self) -> trio.MemoryReceiveChannel[WorkerEvent]:
        """What the worker reports; ends when the worker is gone. Bounded; old status events give way to new ones."""

    async def wait(self) -> WorkerExit:
        """Wait until the process has ended."""

    def kill(self) -> None:
        """End the process with SIGKILL; nothing when it has ended."""


class Workers(Protocol):
    """Makes worker processes (the zygote's port)."""

    def start(self, mount: str) -> AbstractAsyncContextManager[Worker]:
        """Fork a worker for *mount* and say hello; leaving the context closes the conversation, not the process.

        Raises:
            Unavailable: no worker could be made; `detail` says why.
        """

    def adopt(self, mount: str) -> AbstractAsyncContextManager[Worker | None]:
        """Find the worker of *mount* that an earlier supervisor left behind, by its control socket; None: there is none."""

    def keeper(self, mount: str) -> AbstractAsyncContextManager[int]:
        """Give the socket that goes with `Serve`: what keeps the connection of *mount* when that worker dies listens there.

        When the context ends well, the worker serves, and nobody keeps the connection for the worker before any more.

        Raises:
            Unavailable: it could not be made.
        """

    async def kept(self, mount: str) -> tuple[Descriptors, int, int] | None:
        """Take duplicates of the kernel connection and ring that outlived the worker and daemon of *mount*; the caller owns both.

        None: there are none, or that worker lives.
        """

    async def release(self, mount: str) -> None:
        """Have the connection of *mount* kept no longer than its worker lives: nobody is to serve it any more."""

    async def credentials(self, spec: MountSpec) -> CredentialGrant:
        """Resolve the daemon's own credentials for *spec* (profile, files, web identity, container, instance).

        Raises:
            CredentialsRejected: there are none; `hint` lists what was tried.
        """

    def log_path(self, mount: str) -> str:
        """Where the worker of *mount* writes its log."""

    async def forget(self, mount: str) -> None:
        """Remove everything that is kept for *mount* (mount.db, journal, staging, cache, log, socket).

        Only called when no worker runs and nothing is left that S3 does not have, or on the word *discard*: a later
        mount of that name may be another bucket.
        """


class DescriptorStore(Protocol):
    """Holds kernel connections where they outlive every process of ours; may do nothing."""

    async def put(self, mount: str, described: Descriptors, fuse_fd: int, ring_fd: int) -> None:
        """Have the connection of *mount* held, in the place of what is held for it; the descriptors stay the caller's."""

    def take(self, mount: str) -> tuple[Descriptors, int, int] | None:
        """Return what an earlier daemon put there for *mount*; the caller owns the descriptors. None: nothing that lives."""

    async def remove(self, mount: str) -> None:
        """Have nothing of *mount* held any more."""

    async def keep_only(self, mounts: Collection[str]) -> None:
        """Have nothing held but what belongs to *mounts*; called once, before the first of them is adopted."""


class Connection(Protocol):
    """One kernel connection, owned by the supervisor for as long as the mount lives."""

    @property
    def id(self) -> str:
        """Unique per connection, also across daemon runs."""

    @property
    def fuse_fd(self) -> int:
        """The descriptor of /dev/fuse."""

    @property
    def ring_fd(self) -> int:
        """The memfd that outlives workers and tells repeated requests from new ones."""

    @property
    def flags(self) -> int:
        """FUSE_INIT capabilities that the kernel was given, low half."""

    @property
    def flags2(self) -> int:
        """The high half."""

    @property
    def max_write(self) -> int:
        """Longest write that the kernel sends, bytes."""

    @property
    def minor(self) -> int:
        """Minor version of the kernel's FUSE protocol."""

    @property
    def can_resend(self) -> bool:
        """Whether the kernel hands unanswered requests to the next worker."""

    async def ended(self) -> None:
        """Return when the kernel has ended the connection or somebody unmounted it (mountinfo and fd are watched)."""

    async def sync(self) -> None:
        """Have the kernel send the worker the writes it has gathered, whoever of the workers saw the files opened."""

    async def unmount(self, *, lazy: bool = False) -> None:
        """Unmount it. Raises `Conflict` when it is busy; a mount that is gone already is a success."""

    def abort(self) -> None:
        """Make the kernel fail every request with ENOTCONN/ECONNABORTED so that nobody hangs."""

    def close(self) -> None:
        """Close the descriptors. The kernel ends the connection when nobody else holds one."""


class Kernel(Protocol):
    """Makes kernel connections (the fuse package's port)."""

    async def check_mountpoint(self, path: str, *, owner_uid: int, nonempty: bool = False) -> None:
        """Refuse what cannot be mounted on, without ever touching a tree of ours.

        Raises:
            MountpointInvalid: missing, not a directory, not empty, a symlink, not the caller's, inside another mount of ours.
            MountpointBusy: something is mounted there already.
        """

    async def mount(self, spec: MountSpec, *, name: str, connection_id: str) -> Connection:
        """Mount and answer FUSE_INIT; from here on programs that enter the mountpoint wait for a worker.

        *connection_id* is new, and becomes `Connection.id`: the worker was configured with it before.

        Raises:
            MountpointInvalid, MountpointBusy, Denied, Unavailable.
        """

    async def adopt(
        self, spec: MountSpec, *, name: str, descriptors: Descriptors, fuse_fd: int, ring_fd: int
    ) -> Connection:
        """Take over a connection that a living worker serves, or that waits for one; owns the descriptors from here on."""

    async def clean_stale(self, mountpoints: Mapping[str, str]) -> list[str]:
        """Unmount dead mounts of ours (fuse.s3mgr whose connection nobody serves) among *mountpoints* (path → name).

        Returns:
            The paths that were unmounted. Mounts whose worker lives are left alone.
        """

    def info(self) -> KernelInfo:
        """What this kernel can do; `resend` and `fuse_minor` are known after the first connection."""


__all__ = [
    "Configure",
    "Connection",
    "CredentialsSource",
    "DescribeProblem",
    "DescriptorStore",
    "Kernel",
    "LiveOptions",
    "Worker",
    "WorkerExit",
    "Workers",
]
