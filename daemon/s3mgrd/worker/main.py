"""A worker, put together: opens what it needs, gives up its rights, and serves one mount until told to stop.

Order matters. mount.db and the staging directory are opened by path while the process still may; then it renounces
every right, before it has read a byte from the network or the kernel. Everything after that happens in trio:
`MountWorker.run` owns the file system's tasks, the control server's conversations only ask it.
"""

import errno
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from s3mgr.schema import (
    CacheReport,
    Credentials,
    FlushReport,
    InvalidateReport,
    LiveOptions,
    MountStats,
)
from s3mgrd import logs
from s3mgrd.cache.blocks import BlockCache, open_block_cache
from s3mgrd.cache.damage import SetAside
from s3mgrd.cache.database import MountDatabase, open_database
from s3mgrd.cache.nodes import Inode, NodeTable
from s3mgrd.errors import (
    Conflict,
    NotMounted,
    S3mgrError,
    Unavailable,
)
from s3mgrd.fs.absence import ToldAbsent
from s3mgrd.fs.changing.conflicts import Notice
from s3mgrd.fs.filesystem import BUCKET, FileSystem, adopt_database
from s3mgrd.fs.following.sync import Left
from s3mgrd.fs.inspecting import inspection
from s3mgrd.fs.inspecting.known import Known
from s3mgrd.fs.kernel.operations import Operations, ask_kernel_holds
from s3mgrd.fs.learning.forgetting import Forgetter
from s3mgrd.fs.volume import Settings, Volume
from s3mgrd.fuse import abi, tuning
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.tables import Journal
from s3mgrd.s3.client import S3Store, open_store
from s3mgrd.s3.settings import StoreSettings
from s3mgrd.worker import allocator, session
from s3mgrd.worker.caching import Cacher
from s3mgrd.worker.conditions import Found, Memory
from s3mgrd.worker.control import ControlServer
from s3mgrd.worker.keys import Keys
from s3mgrd.worker.messenger import Messenger
from s3mgrd.worker.pending import PendingAnswers
from s3mgrd.worker.privileges import renounce
from s3mgrd.worker.protocol import (
    Configure,
    Configured,
    ConflictEvent,
    CredentialGrant,
    LogEvent,
    Serve,
    StatusEvent,
)
from s3mgrd.worker.ring import Ring
from s3mgrd.worker.status import status_of

log = logging.getLogger(__name__)

STATUS_INTERVAL_S: Final = 0.5
IDENTITY: Final = "identity"
"""In mount.db's meta: whose inode numbers the block cache means."""
CLOSE_LIMIT_S: Final = 10.0
"""Background work in the middle of a request gets so long to end when the worker stops."""

GATHERED_LIMIT_S: Final = 10.0  # the kernel waits for a page that is being read
EXIT_DAMAGED: Final = 65
"""EX_DATAERR. Any status but 0 has the worker replaced."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a worker opened before it gave up its rights."""

    database: MountDatabase
    staging: StagingDirectory
    told_absent: ToldAbsent
    damaged: SetAside | None


def open_files(mount_dir: Path) -> Files:
    """Open mount.db and the staging directory.

    When mount.db cannot be trusted, another takes its place. Staged data stays where it is: its files say what they are.

    Raises:
        Corrupt: mount.db is from a newer version, and holds changes.
    """
    path, staging = mount_dir / "mount.db", mount_dir / "staging"
    is_gone = not path.exists()
    database, damaged = open_database(path)
    if is_gone and damaged is None and staging.exists() and any(staging.iterdir()):
        damaged = SetAside(None, "it is gone, and staged data is there")
    staging.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return Files(database, StagingDirectory(fd), ToldAbsent.open(mount_dir), damaged)


def open_blocks(database: MountDatabase, cache_dir: Path) -> BlockCache | None:
    """Open the block cache; how much it may hold is in the spec, which is not known yet."""
    identity = database.get_meta(IDENTITY)
    if identity is None:
        identity = str(uuid.uuid4())
        database.set_meta(IDENTITY, identity)
    return open_block_cache(cache_dir, owner=identity, limit_bytes=0)


def run_worker(listener: socket.socket, mount: str, mount_dir: Path, cache_dir: Path) -> None:
    """Be the worker of *mount* until its supervisor says stop. The zygote's entry; see `worker.zygote.Entry`.

    Raises SystemExit(`EXIT_DAMAGED`): mount.db was found to be damaged; the next worker sets it aside.
    """
    messenger = Messenger.start()
    logs.setup("info", "text")
    failure: S3mgrError | None = None
    files: Files | None = None
    blocks: BlockCache | None = None
    try:
        files = open_files(mount_dir)
        blocks = open_blocks(files.database, cache_dir)
    except S3mgrError as error:
        failure = error
    renounce()
    allocator.keep_little()
    allocator.look_rarely()
    worker = MountWorker(mount, files, blocks, failure, messenger)
    trio.run(worker.main, listener)
    if files is not None and files.database.damage:
        raise SystemExit(EXIT_DAMAGED)


class _Forward(logging.Handler):
    """Sends warnings and worse to the supervisor's log."""

    def __init__(self, server: ControlServer) -> None:
        super().__init__(logging.WARNING)
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        self._server.emit(
            LogEvent(
                level="WARNING" if record.levelno < logging.ERROR else "ERROR",
                message=logs.redact(record.getMessage())[:4096],
            )
        )


class MountWorker(PendingAnswers, Cacher):
    """Implements `worker.control.WorkerService`.

    Concurrency: `_live` holds the store and the file system open from `configure` to `stop`; requests of the supervisor
    use them from tasks of their own.
    """

    def __init__(
        self,
        mount: str,
        files: Files | None,
        blocks: BlockCache | None,
        failure: S3mgrError | None,
        messenger: Messenger,
    ) -> None:
        super().__init__()
        self._mount = mount
        self._messenger = messenger
        self._files = files
        self._blocks = blocks
        self._failure = failure
        self._started = time.monotonic()
        self._fs: FileSystem | None = None
        self._known: Known | None = None
        self._store: S3Store | None = None
        self._fuse_fd: int | None = None
        """The kernel connection while libfuse serves it."""
        self._is_resumed = False
        self._stopping = trio.Event()
        self._closed = trio.Event()
        self._last_status: StatusEvent | None = None
        self._keys = Keys(lambda: self._server.get_credentials())

    async def main(self, listener: socket.socket) -> None:
        """Serve the control socket until `Stop`."""
        self._server = ControlServer(listener, self._mount, self, self._messenger.attach)
        handler = _Forward(self._server)
        logging.getLogger().addHandler(handler)
        if self._files is not None and self._files.damaged is not None:
            log.error(
                "%s. The tree is read from S3 again. Changes of names and attributes that S3 had not got yet are lost; look at "
                "the tree. Data that was not uploaded is in 's3mgr conflicts %s'",
                self._files.damaged,
                self._mount,
            )
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._messenger.run)
                if self._files is not None:
                    nursery.start_soon(self._end_when_damaged, self._files, nursery.cancel_scope)
                await self._server.run()
                nursery.cancel_scope.cancel()
        finally:
            logging.getLogger().removeHandler(handler)

    async def _end_when_damaged(self, files: Files, everything: trio.CancelScope) -> None:
        """End as soon as mount.db turns out to be damaged: what it says may be wrong, so nothing may follow from it.

        What is staged stays; requests that are not answered are answered by the next worker.
        """
        await files.database.damaged.wait()
        log.error(
            "mount.db is damaged (%s): this worker ends; the next one sets the file aside and reads the tree from S3 again",
            files.database.damage,
        )
        everything.cancel()

    # Opening and closing

    async def configure(self, message: Configure) -> Configured:
        """Open the store and the file system; see `worker.protocol.Configure`."""
        if self._failure is not None:
            raise self._failure
        if self._fs is not None or self._files is None:
            raise Conflict("this worker is configured already")
        configured: Configured = await self._nursery.start(self._live, message, self._files)
        return configured

    async def _live(
        self, message: Configure, files: Files, task_status: trio.TaskStatus[Configured]
    ) -> None:
        """Hold everything open until told to stop."""
        _set_debug(message.spec.options.debug)
        try:
            async with self._open_store(message) as store:
                spec = message.spec
                bucket = f"{spec.endpoint}|{spec.bucket}|{spec.options.prefix}"
                store.outage.watch(is_watched=spec.options.offline_ok)
                if message.probe:
                    await self._probe(store, files.database, spec.options.prefix, bucket)
                volume = Volume(
                    store,
                    files.database,
                    NodeTable(files.database),
                    Journal(files.database),
                    files.staging,
                    _settings(message),
                    self._blocks,
                    told_absent=files.told_absent,
                )
                files.told_absent.adopt(message.connection_id)
                if self._blocks is not None:
                    self._blocks.free_share = message.spec.options.cache_free_share
                    await self._blocks.set_limit(message.spec.options.cache_size_bytes)
                volume.expire_names = self._expire_names
                self._is_resumed = adopt_database(
                    volume, bucket=bucket, connection_id=message.connection_id
                )
                async with trio.open_nursery() as nursery:
                    fs = FileSystem(volume, nursery, self._kernel_holds)
                    fs.recover(is_database_lost=files.damaged is not None)
                    nursery.start_soon(fs.completer.run)
                    nursery.start_soon(files.database.check)
                    self._fs, self._store, self._known = fs, store, Known(fs)
                    self._memory = Memory(files.database)
                    found = self._memory.recall(volume.now_ns())
                    store.recall(found.conditions, found.checksums)
                    nursery.start_soon(fs.syncer.run)
                    fs.pruner.let_go = self._let_go
                    nursery.start_soon(fs.pruner.run)
                    fs.conflicts.tell = self._tell_conflict
                    fs.reader.comparer.tell_inodes = self._invalidate_inodes
                    nursery.start_soon(fs.pins.run)
                    if self._blocks is not None:
                        nursery.start_soon(self._blocks.watch_disk)
                    nursery.start_soon(fs.health.watch)
                    nursery.start_soon(self._report_status)
                    fs.syncer.wake()
                    left = fs.syncer.left()
                    conflicts, conflict_bytes = volume.journal.count_conflicts()
                    task_status.started(
                        Configured(
                            journal_files=left.files,
                            journal_bytes=left.bytes,
                            journal_operations=left.operations,
                            conflicts=conflicts,
                            conflict_bytes=conflict_bytes,
                        )
                    )
                    await self._stopping.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self._fs = self._known = None
            if self._stopping.is_set():
                files.staging.close()
                files.told_absent.close()
                files.database.close()
                if self._blocks is not None:
                    self._blocks.close()
                self._closed.set()

    async def _probe(
        self, store: S3Store, database: MountDatabase, prefix: str, bucket: str
    ) -> None:
        """Ask the bucket. One that was mounted before, and may do without S3, is mounted without an answer."""
        try:
            await store.probe(prefix)
        except Unavailable as error:
            if not store.outage.is_watched or database.get_meta(BUCKET) != bucket:
                raise
            store.outage.begin(error)

    @asynccontextmanager
    async def _open_store(self, message: Configure) -> AsyncIterator[S3Store]:
        spec, options = message.spec, message.spec.options
        self._keys.put(message.credentials)
        settings = StoreSettings(
            bucket=spec.bucket,
            region=spec.region,
            endpoint_url=None if spec.endpoint == "aws" else spec.endpoint,
            addressing=options.addressing,
            anonymous=message.credentials is None,
            credentials=None if message.credentials is None else self._keys.provide,
            connect_timeout_s=options.connect_timeout_s,
            read_timeout_s=options.read_timeout_s,
            retry_deadline_s=options.retry_deadline_s,
            concurrency=options.concurrency,
            sign_payload=options.sign_payload,
        )
        async with open_store(settings) as store:
            yield store

    async def stop(self) -> None:
        """Close everything; what is left stays in the journal."""
        self._stopping.set()
        if self._fs is None:
            return
        with trio.move_on_after(CLOSE_LIMIT_S):
            await self._closed.wait()

    # Serving

    async def serve(self, message: Serve, fuse_fd: int, ring_fd: int) -> None:
        """Begin to serve the kernel connection; returns once libfuse reads from it."""
        fs = self._file_system()
        await self._nursery.start(self._serve, fs, message, fuse_fd, Ring(ring_fd))

    async def _serve(
        self,
        fs: FileSystem,
        message: Serve,
        fuse_fd: int,
        ring: Ring,
        task_status: trio.TaskStatus[None],
    ) -> None:
        def started() -> None:
            self._fuse_fd = fuse_fd
            task_status.started()

        fs.volume.kernel_keeps_times = bool(message.flags & tuning.WRITEBACK)
        try:
            operations = Operations(fs, ring)
            await session.serve(
                operations, fuse_fd, message, ring=ring, express=operations.express, started=started
            )
        finally:
            self._fuse_fd, self._is_resumed = None, False
            ring.close()
        log.info("the kernel connection has ended")
        await self._messenger.detach()
        fs.syncer.release_forgotten()
        fs.syncer.wake()
        self._server.session_ended()

    def _kernel_holds(self, inode: Inode) -> bool:
        """Whether the kernel may hold an inode: asked while a session is up, otherwise as the last worker left it."""
        return ask_kernel_holds(inode) if self._fuse_fd is not None else self._is_resumed

    async def _expire_names(self, names: Sequence[tuple[Inode, str]]) -> None:
        """Make the kernel look names up again."""
        await self._tell([abi.notify_expire_entry(parent, name.encode()) for parent, name in names])

    async def _invalidate_inodes(self, inodes: Sequence[tuple[Inode, bool]]) -> None:
        """Make the kernel ask for attributes again, and for the content of inodes with True beside them."""
        await self._tell([abi.notify_inval_inode(inode, pages=pages) for inode, pages in inodes])

    async def _tell(self, notifications: Sequence[bytes]) -> None:
        if self._fuse_fd is None:
            return
        for said in await self._messenger.tell(notifications):
            # ENOENT: the kernel does not know the name or inode. ENODEV, EPERM: the connection has ended.
            if said not in (0, errno.ENOENT, errno.ENODEV, errno.EPERM):
                log.debug("the kernel refuses a notification: %s", os.strerror(said))

    async def _let_go(self, inodes: Sequence[Inode]) -> None:
        """Ask the kernel to forget inodes that nobody uses."""
        if self._fuse_fd is not None:
            await trio.to_thread.run_sync(session.let_go, self._fuse_fd, inodes)

    def _tell_conflict(self, notice: Notice) -> None:
        self._server.emit(
            ConflictEvent(
                action=notice.action,
                id=notice.id,
                path=notice.path,
                size_bytes=notice.size,
                reason=notice.reason,
            )
        )
        self._tell_status()

    def _file_system(self) -> FileSystem:
        if self._fs is None:
            raise NotMounted("this worker is not configured")
        return self._fs

    # Requests

    async def stats(self) -> MountStats:
        """Count what was done since the worker started."""
        fs = self._file_system()
        return inspection.stats(fs, uptime_s=time.monotonic() - self._started)

    async def cache(self, path: str, cursor: str | None, limit: int) -> CacheReport:
        """Describe what is known below *path*."""
        if self._known is None:
            raise NotMounted("this worker is not configured")
        return await self._known.report(path, cursor, limit)

    async def flush(self, timeout_s: float) -> FlushReport:
        """Upload what S3 does not have, for *timeout_s* at most."""
        fs = self._file_system()
        before = fs.syncer.left()
        with trio.move_on_after(timeout_s):
            with trio.move_on_after(GATHERED_LIMIT_S):  # the kernel sends what it drops
                await self._invalidate_inodes([(inode, True) for inode in fs.gathered()])
            await fs.syncer.flush()
        self._tell_status()  # in the place of one that still waits to be sent, and is older
        return self._flush_report(fs, before)

    async def drain(self, timeout_s: float) -> FlushReport:
        """Upload what is left before the end."""
        fs = self._file_system()
        fs.syncer.release_forgotten()
        return await self.flush(timeout_s)

    def _flush_report(self, fs: FileSystem, before: Left) -> FlushReport:
        left = fs.syncer.left()
        conflicts, conflict_bytes = fs.volume.journal.count_conflicts()
        return FlushReport(
            uploaded_files=max(0, before.files - left.files),
            remaining_files=left.files,
            remaining_bytes=left.bytes,
            remaining_operations=left.operations,
            failed_uploads=inspection.failed_uploads(fs),
            conflicts=conflicts,
            conflict_bytes=conflict_bytes,
        )

    async def discard(self) -> None:
        """Throw away what S3 does not have."""
        self._file_system().discard()

    async def invalidate(self, path: str) -> InvalidateReport:
        """Make the next look at *path* and below ask S3, past the kernel's caches too."""
        fs = self._file_system()
        forgetter = Forgetter(
            fs.volume,
            fs.namespace,
            tell_names=self._expire_names,
            tell_inodes=self._invalidate_inodes,
        )
        fs.archive.forget()
        done = await forgetter.forget(path)
        fs.pins.hurry()
        return InvalidateReport(listings=done.listings, entries=done.names)

    async def set_options(self, options: LiveOptions) -> None:
        """Change live options now."""
        fs, store = self._file_system(), self._store
        settings = fs.volume.settings
        for name in (
            "metadata_ttl_s",
            "negative_ttl_s",
            "retry_deadline_s",
            "concurrency",
            "memory_limit_bytes",
            "metadata_size_bytes",
            "fsync",
            "dirty_limit_bytes",
            "staging_size_bytes",
        ):
            value = getattr(options, name)
            if isinstance(value, int | float | str):
                setattr(settings, name, value)
        if store is not None:
            store.set_retry_deadline(settings.retry_deadline_s)
            store.set_concurrency(settings.concurrency)
            if isinstance(options.offline_ok, bool):
                store.outage.watch(is_watched=options.offline_ok)
        if self._blocks is not None:
            if isinstance(options.cache_free_share, float | int):
                self._blocks.free_share = options.cache_free_share
            if isinstance(options.cache_size_bytes, int):
                self._blocks.limit_bytes = options.cache_size_bytes
            await self._blocks.shrink()
        if isinstance(options.debug, bool):
            _set_debug(options.debug)

    async def set_credentials(self, credentials: Credentials) -> None:
        """Use other keys from now on."""
        grant = CredentialGrant(
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            session_token=credentials.session_token,
        )
        self._keys.put(grant)
        if self._store is not None:
            self._store.set_credentials(self._keys.provide)

    # Status

    async def _report_status(self) -> None:
        """Tell the supervisor how things are, whenever that changes."""
        while True:
            self._tell_status()
            await trio.sleep(STATUS_INTERVAL_S)

    def _tell_status(self) -> None:
        fs = self._file_system()
        damaged = self._files.damaged if self._files is not None else None
        status = status_of(fs, damaged, self.warming())
        if status != self._last_status:
            self._server.emit(status)
            store = fs.volume.store
            self._memory.keep(Found(store.conditions, store.checksums), fs.volume.now_ns())
            self._last_status = status


def _set_debug(debug: bool) -> None:
    logging.getLogger("s3mgrd").setLevel(logging.DEBUG if debug else logging.INFO)


def _settings(message: Configure) -> Settings:
    """Translate the spec's options; the supervisor has filled in uid and gid."""
    options = message.spec.options
    umask = int(options.umask, 8)
    return Settings(
        prefix=options.prefix,
        read_only=options.read_only,
        uid=options.uid or 0,
        gid=options.gid or 0,
        file_mode=int(options.file_mode, 8) & ~umask,
        dir_mode=int(options.dir_mode, 8) & ~umask,
        attributes=options.attributes,
        part_size_bytes=options.part_size_bytes,
        metadata_ttl_s=options.metadata_ttl_s,
        negative_ttl_s=options.negative_ttl_s,
        retry_deadline_s=options.retry_deadline_s,
        concurrency=options.concurrency,
        memory_limit_bytes=options.memory_limit_bytes,
        metadata_size_bytes=options.metadata_size_bytes,
        write_mode=options.write_mode,
        fsync=options.fsync,
        dirty_limit_bytes=options.dirty_limit_bytes,
        staging_size_bytes=options.staging_size_bytes,
    )
