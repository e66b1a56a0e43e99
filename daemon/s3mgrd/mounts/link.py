"""A kernel connection and the worker that serves it: how each is made, replaced and taken apart.

Mechanism only; when to do what is decided in `mount`. Everything here runs in the mount's one task.
"""

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

import trio

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.mounts.ports import Connection, DescriptorStore, Kernel, Workers
from s3mgrd.mounts.session import WorkerSession, converse
from s3mgrd.mounts.spec import live_options
from s3mgrd.mounts.store import MountRecord
from s3mgrd.worker.protocol import (
    Configure,
    Configured,
    CredentialGrant,
    Descriptors,
    Serve,
    SetCredentials,
    SetOptions,
    WorkerEvent,
)

log = logging.getLogger(__name__)

Found = Literal["nothing", "serving", "kept", "ended", "idle"]

# Of a daemon that took the connection over and never had any: the worker asks for better ones before its first request.
NO_KEYS_YET: Final = CredentialGrant(
    access_key="", secret_key="", expires_at=datetime.fromtimestamp(0, UTC)
)
# Taking apart what did not work must end, whatever hangs.
DISMANTLE_S: Final = 30.0
# A worker that lives answers for its descriptors at once.
ADOPT_TIMEOUT_S: Final = 10.0


class Link:
    """What one mount has of processes and kernel objects at the moment.

    Attributes:
        session: the worker, perhaps dead already; None: none was started.
        connection: the kernel connection; None: nothing is mounted.
        detached: the tree was unmounted by us or by somebody else; the connection may still have users.
        ended_outside: the connection ended and it was not us.
    """

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        workers: Workers,
        descriptors: DescriptorStore,
        *,
        record: Callable[[], MountRecord],
        on_event: Callable[[WorkerEvent], None],
        wake: Callable[[], None],
        interrupt: Callable[[], None],
        supervisor_uid: int,
    ) -> None:
        self.session: WorkerSession | None = None
        self.connection: Connection | None = None
        self.detached = False
        self.ended_outside = False
        # Our own doing ends the connection, or will: an unmount or an abort.
        self._expect_end = False
        self._name: Final = name
        self._kernel: Final = kernel
        self._workers: Final = workers
        self._descriptors: Final = descriptors
        self._record: Final = record
        self._on_event: Final = on_event
        self._wake: Final = wake
        self._interrupt: Final = interrupt
        self._supervisor_uid: Final = supervisor_uid
        self._last_grant: CredentialGrant | None = None
        self._nursery: trio.Nursery | None = None

    def enter(self, nursery: trio.Nursery) -> None:
        """Use *nursery* for conversations and watchers; called once, by the mount's task."""
        self._nursery = nursery

    @property
    def live_session(self) -> WorkerSession | None:
        """The session if its worker lives."""
        return self.session if self.session is not None and self.session.is_alive else None

    async def credentials(self) -> CredentialGrant | None:
        """Find the keys for the mount as it is wanted now; None: anonymous."""
        record = self._record()
        if record.credentials is not None:
            keys = record.credentials
            return CredentialGrant(
                access_key=keys.access_key,
                secret_key=keys.secret_key,
                session_token=keys.session_token,
            )
        if record.spec.anonymous:
            return None
        return await self._workers.credentials(record.spec)

    async def start_worker(self, *, connection_id: str, probe: bool) -> Configured:
        """Start a worker and configure it. With *probe* the bucket must answer, too."""
        assert self._nursery is not None, "enter() comes first"  # noqa: S101 - a bug, not an input
        await self.drop_worker()
        try:
            grant = await self.credentials()
        except S3mgrError:
            # A worker on a live connection must come up without the network; it asks again by itself.
            if probe:
                raise
            grant = self._last_grant or NO_KEYS_YET
        self._last_grant = grant
        self.session = await self._nursery.start(
            converse, self._workers.start(self._name), self._grant, self._on_event, self._wake
        )
        record = self._record()
        reply = await self._live().request(
            Configure(
                name=self._name,
                spec=record.spec,
                credentials=grant,
                connection_id=connection_id,
                probe=probe,
                supervisor_uid=self._supervisor_uid,
            )
        )
        if not isinstance(reply, Configured):
            raise Unavailable(f"the worker answered with {type(reply).__name__}")
        return reply

    async def mount(self, *, connection_id: str) -> None:
        """Make the kernel connection. Programs that enter it wait until `serve`."""
        self.connection = await self._kernel.mount(
            self._record().spec, name=self._name, connection_id=connection_id
        )
        self._watch(self.connection)
        await self._store(self.connection)

    async def serve(self, *, resumed: bool) -> None:
        """Give the connection to the worker."""
        connection = self.connection
        if connection is None:
            raise Unavailable("the connection is gone")
        async with self._workers.keeper(self._name) as keeper_fd:
            await self._live().request(
                Serve(
                    resumed=resumed,
                    resend=resumed and connection.can_resend,
                    flags=connection.flags,
                    flags2=connection.flags2,
                    max_write=connection.max_write,
                    minor=connection.minor,
                ),
                fds=(connection.fuse_fd, connection.ring_fd, keeper_fd),
            )

    async def check_mountpoint(self) -> None:
        """Raise unless the mountpoint can be mounted on now."""
        record = self._record()
        # An administrator may use a directory of anybody's.
        owner = 0 if record.privileged else record.owner_uid
        await self._kernel.check_mountpoint(record.spec.mountpoint, owner_uid=owner)

    async def adopt(self) -> Found:
        """Look for what an earlier daemon left behind and take it over.

        Returns:
            "serving": worker and connection are ours now; "kept": the connection is, its worker is dead; "ended": a worker
            whose mount somebody unmounted; "idle": a worker that never served; "nothing": no worker. Dead mounts are
            removed in the last two cases.
        """
        assert self._nursery is not None, "enter() comes first"  # noqa: S101 - a bug, not an input
        record = self._record()
        try:
            with trio.fail_after(ADOPT_TIMEOUT_S):
                self.session = await self._nursery.start(
                    converse,
                    self._workers.adopt(self._name),
                    self._grant,
                    self._on_event,
                    self._wake,
                )
                if self.session is not None and self.session.worker.serving:
                    await self._adopt_connection(await self.session.worker.descriptors())
                    return "serving"
        except (S3mgrError, trio.TooSlowError) as error:
            log.warning(
                "the worker left behind cannot be adopted: %s", error, extra={"mount": self._name}
            )
            await self.drop_worker()
        if self.session is not None and self.session.worker.ended:
            return "ended"
        found: Found = "nothing" if self.session is None else "idle"
        await self.drop_worker()
        kept = await self._workers.kept(self._name) or self._descriptors.take(self._name)
        if kept is not None:
            await self._adopt_connection(kept)
            return "kept"
        await self._descriptors.remove(self._name)
        if await self._kernel.clean_stale({record.spec.mountpoint: self._name}):
            log.info(
                "removed a dead mount from %s", record.spec.mountpoint, extra={"mount": self._name}
            )
        return found

    async def apply(self) -> None:
        """Tell the worker the live options and keys as they are wanted now."""
        record = self._record()
        session = self._live()
        await session.request(SetOptions(options=live_options(record.spec.options)))
        if record.credentials is not None:
            await session.request(SetCredentials(credentials=record.credentials))

    async def detach(self, *, lazy: bool) -> None:
        """Unmount the tree; the worker goes on serving who still has something open (*lazy*).

        Raises `Conflict` when it is busy and not *lazy*; nothing has changed then.
        """
        if self.connection is None or self.detached:
            return
        self._expect_end = True  # before the watcher can take it for somebody else's
        try:
            await self.connection.unmount(lazy=lazy)
        except BaseException:
            self._expect_end = False
            raise
        self.detached = True

    def abort(self) -> None:
        """Fail every program that waits for the connection, so that nobody hangs."""
        if self.connection is not None:
            self._expect_end = True
            self.connection.abort()

    async def drop_worker(self) -> None:
        """End the worker, by force if need be, and forget it."""
        session, self.session = self.session, None
        if session is not None:
            await session.kill()

    async def stop_worker(self) -> None:
        """End the worker in order and forget it."""
        session, self.session = self.session, None
        if session is not None:
            await session.stop()

    async def let_go(self) -> None:
        """Have nobody hold the connection any more; the mount must be detached and the worker stopped."""
        if self.connection is not None:
            with trio.CancelScope(shield=True):
                await self._workers.release(self._name)
                await self._descriptors.remove(self._name)
        self.close_connection()

    def close_connection(self) -> None:
        """Close our descriptors; who else holds the connection goes on."""
        connection, self.connection = self.connection, None
        self.detached = self._expect_end = self.ended_outside = False
        if connection is not None:
            connection.close()

    async def dismantle(self) -> None:
        """Take everything apart, whatever state it is in; bounded, also when cancelled."""
        with trio.CancelScope(shield=True):
            if self.connection is not None and not self.detached:
                self._expect_end = True
                await self._unmount(self.connection)
            with trio.move_on_after(DISMANTLE_S):
                await self.stop_worker()
        await self.let_go()

    async def _unmount(self, connection: Connection) -> None:
        """Unmount lazily, or log why not.

        Tried twice: a process that was stopped meanwhile, or whose machine slept, finds its time over, and a mount that
        stays would be dead for all who enter it, and in the way of the next.
        """
        for _ in range(2):
            with trio.move_on_after(DISMANTLE_S):
                try:
                    await connection.unmount(lazy=True)
                except S3mgrError as error:
                    log.warning("cannot unmount: %s", error.detail, extra={"mount": self._name})
                return
        log.warning("not unmounted in time", extra={"mount": self._name})

    async def _grant(self) -> CredentialGrant:
        """Answer a worker that asks for keys."""
        grant = await self.credentials()
        if grant is None:
            raise Unavailable("the mount is anonymous and has no keys")
        self._last_grant = grant
        return grant

    async def _adopt_connection(self, found: tuple[Descriptors, int, int]) -> None:
        descriptors, fuse_fd, ring_fd = found
        self.connection = await self._kernel.adopt(
            self._record().spec,
            name=self._name,
            descriptors=descriptors,
            fuse_fd=fuse_fd,
            ring_fd=ring_fd,
        )
        self._watch(self.connection)
        await self._store(self.connection)

    async def _store(self, connection: Connection) -> None:
        """Have the connection outlive us, if a worker can take it up again."""
        if connection.can_resend:
            described = Descriptors(
                connection_id=connection.id,
                flags=connection.flags,
                flags2=connection.flags2,
                max_write=connection.max_write,
                minor=connection.minor,
            )
            await self._descriptors.put(
                self._name, described, connection.fuse_fd, connection.ring_fd
            )

    def _live(self) -> WorkerSession:
        if self.live_session is None:
            raise Unavailable("the worker is gone")
        return self.live_session

    def _watch(self, connection: Connection) -> None:
        assert self._nursery is not None, "enter() comes first"  # noqa: S101 - a bug, not an input
        self._nursery.start_soon(self._await_end, connection)

    async def _await_end(self, connection: Connection) -> None:
        await connection.ended()
        if self.connection is connection and not self._expect_end:
            self.ended_outside = True
            self._interrupt()


def new_connection_id() -> str:
    """Make an id that no other connection has or had."""
    return str(uuid.uuid4())
