"""A small worker for the tests of the process side: a file system in memory, a journal of one file, real FUSE.

On the mounts `EXPRESS` and `VANISHING` requests are looked at before libfuse sees them, as in a real worker. On the
latter, `VANISHED` is among what is said to come again, and never does, as if its caller was killed at that moment.

The root holds ``data`` (`DATA_BYTES` of a pattern, read with direct I/O), ``slow`` (the first worker never answers a
read of it), ``crash`` (reading it kills the worker), and the directories that were made. `mkdir NAME` is exactly-once;
a name that starts with ``die-before-`` or ``die-after-`` kills the worker once, around the commit.
"""

import errno
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast
from unittest import mock

import pyfuse3
import trio

from s3mgr.schema import (
    ArchivedList,
    CachedFiles,
    CacheReport,
    ConflictList,
    Credentials,
    EvictReport,
    FlushReport,
    InvalidateReport,
    LiveOptions,
    MountSpec,
    MountStats,
    PinList,
    RestoredConflict,
    RestoreReport,
    RestoreRequest,
    UnpinReport,
    UploadQueue,
    WarmReport,
)
from s3mgrd.errors import CredentialsRejected, NotFound
from s3mgrd.fs.kernel.express import Express
from s3mgrd.fs.kernel.repeats import Call
from s3mgrd.fuse.abi import Opcode, Resent
from s3mgrd.worker import session
from s3mgrd.worker.control import ControlServer
from s3mgrd.worker.messenger import Messenger
from s3mgrd.worker.privileges import renounce
from s3mgrd.worker.protocol import Configure, Configured, CredentialGrant, Serve, StatusEvent
from s3mgrd.worker.ring import Ring

DATA_BYTES = 64 << 20
KEPT_S = {"kept": 600.0, "kept-briefly": 0.5, "kept-late": 600.0}
"""Mounts whose connections are kept after the death of their workers, and for how long; *late* by a process that gets no time before."""
EXPRESS, VANISHING = "express", "vanishing"
ROOT, DATA, SLOW, CRASH, FIRST_DIRECTORY = 1, 2, 3, 4, 100
VANISHED = Resent(Opcode.MKDIR, ROOT, b"vanished", 0)
FILES = {b"data": DATA, b"slow": SLOW, b"crash": CRASH}


def _wait_for_the_parent_s_death(_: str) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.01)


def pattern(offset: int, length: int) -> bytes:
    """The contents of ``data``: each eight bytes hold their own offset."""
    first = offset // 8
    last = (offset + length + 7) // 8
    words = struct.pack(f"<{last - first}Q", *range(first * 8, last * 8, 8))
    return words[offset - first * 8 : offset - first * 8 + length]


class Operations(pyfuse3.Operations):
    """The file system."""

    def __init__(self, journal: int) -> None:
        super().__init__()
        self.ring: Ring | None = None
        self.resumed = False
        self.journal = journal  # lines "number name"; stands for mount.db
        self.committed: dict[int, bytes] = {}
        for line in os.pread(journal, 1 << 20, 0).splitlines():
            number, name = line.split(b" ", 1)
            self.committed[int(number)] = name

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        is_directory = inode == ROOT or inode >= FIRST_DIRECTORY
        entry.st_mode = pyfuse3.ModeT(
            stat.S_IFDIR | 0o777 if is_directory else stat.S_IFREG | 0o644
        )
        entry.st_size = 0 if is_directory else DATA_BYTES
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    def _directories(self) -> dict[bytes, int]:
        return {name: FIRST_DIRECTORY + number for number, name in self.committed.items()}

    async def getattr(self, inode, ctx=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201 - pyfuse3's
        return self._entry(inode)

    async def lookup(self, parent_inode, name, ctx=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        inode = FILES.get(name) or self._directories().get(name)
        if parent_inode != ROOT or inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(inode)

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        if fh == CRASH and not self.resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        if fh == SLOW and not self.resumed:
            await trio.sleep_forever()
        return pattern(off, min(size, max(0, DATA_BYTES - off)))

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        return inode

    async def readdir(self, fh, start_id, token):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        names = sorted((FILES | self._directories()).items()) if fh == ROOT else []
        for position, (name, inode) in enumerate(names[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._entry(inode), position):
                return

    async def statfs(self, ctx):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        return pyfuse3.StatvfsData()

    async def forget(self, inode_list):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        print(f"forget {inode_list}", flush=True)

    async def mkdir(self, parent_inode, name, mode, ctx):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        assert self.ring is not None
        intent = self.ring.begin(Call(Opcode.MKDIR, parent_inode, name, ctx.pid))
        if name.startswith(b"die-before-") and not self.resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        if not (intent.repeated and intent.number in self.committed):
            if name in self._directories():
                self.ring.end(intent)
                raise pyfuse3.FUSEError(errno.EEXIST)
            os.write(self.journal, b"%d %s\n" % (intent.number, name))
            self.committed[intent.number] = name
        if name.startswith(b"die-after-") and not self.resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        self.ring.end(intent)
        return self._entry(self._directories()[name])


class Nobody:
    """Stands for `Express`: answers nothing."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


class Service:
    """Answers the control socket."""

    def __init__(self, journal: int, nursery: trio.Nursery, express: Express | None) -> None:
        self.operations = Operations(journal)
        self.express = express
        self.nursery = nursery
        self.control: ControlServer | None = None
        self.credentials: CredentialGrant | None = None
        self.started = time.monotonic()
        self.invalidated: list[str] = []

    async def configure(self, message: Configure) -> Configured:
        """Ask for credentials when the spec names a profile, as the real one does before keys expire."""
        assert self.control is not None
        if message.spec.profile is not None:
            self.credentials = await self.control.get_credentials()
        self.control.emit(StatusEvent(health="ok", message="configured"))
        return Configured(journal_files=0, journal_bytes=0)

    async def serve(self, message: Serve, fuse_fd: int, ring_fd: int) -> None:
        """Start the session and wait until it runs."""
        running = trio.Event()
        self.operations.ring = Ring(ring_fd)
        self.operations.resumed = message.resumed
        self.nursery.start_soon(self._serve, message, fuse_fd, running)
        await running.wait()

    async def _serve(self, message: Serve, fuse_fd: int, running: trio.Event) -> None:
        assert self.control is not None
        assert self.operations.ring is not None
        await session.serve(
            self.operations,
            fuse_fd,
            message,
            ring=self.operations.ring,
            express=self.express,
            started=running.set,
        )
        running.set()
        self.control.session_ended()

    async def stats(self) -> MountStats:
        """Give figures that a test can recognise."""
        return MountStats(worker_pid=os.getpid(), uptime_s=1.5, memory_bytes=2)

    async def cache(self, path: str, cursor: str | None, limit: int) -> CacheReport:
        """Fail in the way that the path names."""
        if path == "defect":
            raise RuntimeError("a defect")
        raise NotFound(f"nothing cached below {path!r}", hint="look elsewhere")

    async def conflicts(self, cursor: str | None, limit: int) -> ConflictList:
        """Have none."""
        return ConflictList(total=0, total_bytes=0)

    async def restore_conflict(
        self, conflict_id: int, path: str | None, *, partial: bool
    ) -> RestoredConflict:
        """Have none."""
        raise NotFound("no such copy")

    async def discard_conflict(self, conflict_id: int) -> None:
        """Have none."""
        raise NotFound("no such copy")

    async def queue(self, cursor: str | None, limit: int) -> UploadQueue:
        """Have nothing to upload."""
        return UploadQueue(
            total_files=0, total_bytes=0, dirty_limit_bytes=0, is_paused=False, writers_waiting=0
        )

    async def pause_queue(self) -> UploadQueue:
        """Have nothing to hold back."""
        return await self.queue(None, 0)

    async def resume_queue(self) -> UploadQueue:
        """Have nothing to let go."""
        return await self.queue(None, 0)

    async def hurry_upload(self, path: str) -> UploadQueue:
        """Have none."""
        raise NotFound("no such file waits")

    async def warm(self, warm_id: str, paths: Sequence[str], *, pin: bool) -> WarmReport:
        """Have no cache."""
        return WarmReport(files=0, bytes=0)

    async def stop_warming(self, warm_id: str) -> None:
        """Have nothing to stop."""

    async def evict(self, paths: Sequence[str]) -> EvictReport:
        """Have no cache."""
        return EvictReport(files=0, bytes=0)

    async def unpin(self, paths: Sequence[str]) -> UnpinReport:
        """Have no cache."""
        return UnpinReport(paths=[])

    async def pins(self) -> PinList:
        """Have no cache."""
        return PinList()

    async def cached_files(self, by: Literal["bytes", "hits", "misses"], limit: int) -> CachedFiles:
        """Have no cache."""
        return CachedFiles()

    async def archived(self, path: str, cursor: str | None, limit: int) -> ArchivedList:
        """Have none."""
        return ArchivedList()

    async def restore_objects(self, request: RestoreRequest) -> RestoreReport:
        """Restore nothing."""
        return RestoreReport(begun=0, failed=0)

    async def flush(self, timeout_s: float) -> FlushReport:
        """Hang, if that much time was given."""
        await trio.sleep(timeout_s)
        return FlushReport(uploaded_files=1, remaining_files=0, remaining_bytes=0)

    async def invalidate(self, path: str) -> InvalidateReport:
        """Answer something too large for a packet."""
        if path == "huge":
            raise NotFound("x" * (300 << 10))
        return InvalidateReport(listings=1, entries=len(path))

    async def set_options(self, options: LiveOptions) -> None:
        """Do nothing."""

    async def set_credentials(self, credentials: Credentials) -> None:
        """Do nothing."""

    async def drain(self, timeout_s: float) -> FlushReport:
        """Have nothing to drain."""
        return FlushReport(uploaded_files=0, remaining_files=0, remaining_bytes=0)

    async def discard(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""


def run(listener: socket.socket, mount: str, mount_dir: Path, cache_dir: Path) -> None:
    """Be the worker: the zygote's entry."""
    if mount == "stillborn":
        raise SystemExit(7)
    if mount == "kept-late":
        mock.patch("s3mgrd.worker.messenger.name_process", _wait_for_the_parent_s_death).start()
    if mount == VANISHING:
        found = session.Unanswered([VANISHED])
        mock.patch("s3mgrd.worker.session.collect_unanswered", return_value=found).start()
    messenger = Messenger.start(keep_limit_s=KEPT_S[mount]) if mount in KEPT_S else None
    journal = os.open(mount_dir / "journal", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    (cache_dir / "cached").touch()
    renounce()
    print(f"worker of {mount} is up", flush=True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            express = cast(Express, Nobody()) if mount in (EXPRESS, VANISHING) else None
            service = Service(journal, nursery, express)
            attach = None
            if messenger is not None:
                await nursery.start(messenger.run)
                attach = messenger.attach
            service.control = ControlServer(listener, mount, service, attach)
            await service.control.run()
            nursery.cancel_scope.cancel()

    trio.run(main)


def resolve(spec: MountSpec) -> CredentialGrant:
    """Resolve credentials in the way that the profile names."""
    match spec.profile:
        case "good":
            return CredentialGrant(
                access_key=os.environ.get("AWS_ACCESS_KEY_ID", ""),
                secret_key=f"of uid {os.getuid()}",
                expires_at=datetime(2030, 1, 1, tzinfo=UTC),
            )
        case "defect":
            raise RuntimeError("a defect")
        case "hang":
            time.sleep(600)
    raise CredentialsRejected("there are none", hint="tried: nothing")
