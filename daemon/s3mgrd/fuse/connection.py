"""The kernel connections of the supervisor: mount, handshake, watch, unmount, abort.

Nothing here opens, stats or lists anything inside a mount; see `mountpoints` for how a path is checked without.
Concurrency: blocking system calls run in threads of their own limiter; a call that hangs (an unmount that waits for
dirty pages) is left behind when its caller is cancelled.
"""

import errno
import fcntl
import logging
import os
import select
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar

import trio

from s3mgr.schema import KernelInfo, MountOptions, MountSpec
from s3mgrd.errors import (
    Conflict,
    Denied,
    MountpointBusy,
    MountpointInvalid,
    S3mgrError,
    TimedOut,
    Unavailable,
)
from s3mgrd.fuse import abi, syscalls, tuning
from s3mgrd.fuse.mountinfo import (
    FILESYSTEM_TYPE,
    MountEntry,
    MountWatch,
    read_mountinfo,
    topmost,
)
from s3mgrd.fuse.mountpoints import open_mountpoint
from s3mgrd.worker.protocol import RING_BYTES, Descriptors

FUSE_DEVICE: Final = "/dev/fuse"
FUSERMOUNT: Final = "fusermount3"
SUBTYPE: Final = FILESYSTEM_TYPE.removeprefix("fuse.")
COMMFD_ENV: Final = "_FUSE_COMMFD"

INIT_TIMEOUT_MS: Final = (
    5000  # the kernel queues FUSE_INIT within mount(2); this only bounds a broken kernel
)
CHECK_TIMEOUT_S: Final = 15.0  # a walk over a dead network mount may hang
COMMAND_TIMEOUT_S: Final = 60.0  # of fusermount3
SYNC_TIMEOUT_S: Final = 5.0
DEVICE_CHECK_S: Final = 1.0
"""How often `ended` asks whether a connection was aborted. Unmounts are seen at once, in the mount table; waiting on
the descriptor itself would wake the supervisor for each request of the mount."""
MAX_STACKED: Final = 64
MAX_SOURCE_BYTES: Final = 4000  # mount(2) copies a page

T = TypeVar("T")
log = logging.getLogger(__name__)


def source_of(spec: MountSpec) -> str:
    """Name *spec* as mountinfo shows it: ``s3://bucket`` or ``s3://bucket/prefix``."""
    prefix = spec.options.prefix.strip("/")
    source = f"s3://{spec.bucket}/{prefix}" if prefix else f"s3://{spec.bucket}"
    return source.encode()[:MAX_SOURCE_BYTES].decode("utf-8", "ignore")


class FuseConnection:
    """One kernel connection; implements `s3mgrd.mounts.ports.Connection`."""

    def __init__(
        self,
        kernel: "FuseKernel",
        *,
        connection_id: str,
        fuse_fd: int,
        ring_fd: int,
        caps: abi.Cap,
        max_write: int,
        minor: int,
        entry: MountEntry | None,
    ) -> None:
        self.id = connection_id
        self.fuse_fd = fuse_fd
        self.ring_fd = ring_fd
        self.flags = caps & 0xFFFF_FFFF
        self.flags2 = caps >> 32
        self.max_write = max_write
        self.minor = minor
        self.can_resend = bool(caps & abi.Cap.HAS_RESEND)
        self.unmount_requested = False
        """Whether `unmount` was called: then the end that `ended` reports is our own doing."""
        self._kernel = kernel
        self._entry = entry
        self._open = True

    def _find(self, entries: list[MountEntry]) -> MountEntry | None:
        """Return our mount as the table has it now; it keeps its id when it is moved."""
        ours = self._entry
        if ours is None:
            return None
        same = (e for e in entries if (e.mount_id, e.device) == (ours.mount_id, ours.device))
        return next(same, None)

    def _is_dead(self) -> bool:
        """Whether the kernel has ended the connection: unmounted everywhere, or aborted."""
        if not self._open:
            return True
        poll = select.poll()
        poll.register(self.fuse_fd, 0)
        return bool(poll.poll(0))

    async def ended(self) -> None:
        """Return when the kernel has ended the connection or somebody unmounted it. Cancel-safe."""
        with self._kernel.watch as watch:
            while True:
                changed = watch.subscribe()
                try:
                    if self._is_dead() or self._find(watch.entries()) is None:
                        return
                    with trio.move_on_after(DEVICE_CHECK_S):
                        await changed.wait()
                finally:
                    watch.unsubscribe(changed)

    async def unmount(self, *, lazy: bool = False) -> None:
        """Unmount; a mount that is gone already is a success.

        Raises:
            Conflict: it is busy, or something else is mounted over it.
            Denied: the kernel or fusermount3 refuses.
        """
        self.unmount_requested = True
        entries = read_mountinfo()
        entry = self._find(entries)
        if entry is None:
            return
        if topmost(entries, entry.mountpoint) != entry:
            raise Conflict(
                f"something else is mounted over {entry.mountpoint!r}",
                hint=f"unmount that first: umount {entry.mountpoint}",
            )
        if lazy:
            await self._sync(entry)
        try:
            await self._kernel.unmount_path(entry.mountpoint, lazy=lazy)
        except S3mgrError:
            if self._find(read_mountinfo()) is not None:
                raise

    async def sync(self) -> None:
        """Have the kernel send the writes it has gathered, for a limited time; see `s3mgrd.mounts.ports.Connection`."""
        entry = self._find(read_mountinfo())
        if entry is not None:
            await self._sync(entry)

    async def _sync(self, entry: MountEntry) -> None:
        if self.flags & tuning.WRITEBACK:
            await self._kernel.sync_tree(entry)

    def abort(self) -> None:
        """Make the kernel fail every request. The mountpoint stays, so nobody writes below it by mistake.

        Where the control file system is out of reach (an ordinary user, nothing mounted at /sys/fs/fuse/connections),
        `close` does the same once no worker holds the connection.
        """
        if self._entry is None or self._is_dead():
            return
        try:
            syscalls.abort_connection(self._entry.connection)
        except OSError as exc:
            log.warning("cannot abort connection %s: %s", self._entry.connection, exc)

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        if self._open:
            self._open = False
            os.close(self.fuse_fd)
            os.close(self.ring_fd)


class FuseKernel:
    """Makes kernel connections; implements `s3mgrd.mounts.ports.Kernel`.

    Args:
        user_mode: mount through fusermount3, as an ordinary user; otherwise by mount(2), as root.
    """

    def __init__(self, *, user_mode: bool) -> None:
        self.watch = MountWatch()
        self._user_mode = user_mode
        self._minor: int | None = None
        self._can_resend: bool | None = None
        # Apart from trio's own: a hanging unmount must not take the threads that everything else runs in.
        self._limiter = trio.CapacityLimiter(64)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def check_mountpoint(self, path: str, *, owner_uid: int, nonempty: bool = False) -> None:
        """Refuse what cannot be mounted on; see `s3mgrd.mounts.ports.Kernel`."""
        os.close(await self._open_mountpoint(path, owner_uid=owner_uid, nonempty=nonempty))

    async def _open_mountpoint(self, path: str, *, owner_uid: int, nonempty: bool) -> int:
        try:
            with trio.fail_after(CHECK_TIMEOUT_S):
                return await self._in_thread(
                    partial(open_mountpoint, path, owner_uid=owner_uid, nonempty=nonempty)
                )
        except trio.TooSlowError as exc:
            raise MountpointInvalid(
                f"a file system on the way to {path!r} does not answer",
                hint="unmount the dead mount (umount -l PATH), or choose another mountpoint",
            ) from exc

    async def mount(
        self, spec: MountSpec, *, name: str, connection_id: str, writeback_cache: bool | None = None
    ) -> FuseConnection:
        """Mount and answer FUSE_INIT; see `s3mgrd.mounts.ports.Kernel`.

        Args:
            spec: what to mount where; uid, gid and allow_other are filled in.
            name: of the mount, for messages.
            connection_id: a new one.
            writeback_cache: let the kernel gather writes (`tuning.WRITEBACK`); None: as the spec says.
        """
        gathers = partial(_gathers_writes, spec.options, writeback_cache)
        if self._user_mode:
            return await self._mount_shielded(
                spec, name, connection_id, gathers=gathers, target=None
            )
        target = await self._open_mountpoint(spec.mountpoint, owner_uid=0, nonempty=True)
        try:
            return await self._mount_shielded(
                spec, name, connection_id, gathers=gathers, target=target
            )
        finally:
            os.close(target)

    async def _mount_shielded(
        self,
        spec: MountSpec,
        name: str,
        connection_id: str,
        *,
        gathers: Callable[[abi.Cap], bool],
        target: int | None,
    ) -> FuseConnection:
        """Mount and shake hands without a chance to lose the new mount to a cancellation half-way.

        Bounded by `COMMAND_TIMEOUT_S` and `INIT_TIMEOUT_MS`.
        """
        with trio.CancelScope(shield=True):
            if target is None:
                fuse_fd = await self._mount_as_user(spec)
            else:
                fuse_fd = await self._in_thread(partial(_mount_as_root, spec, target))
            try:
                init, caps = await self._in_thread(partial(_handshake, fuse_fd, gathers))
                ring_fd = make_ring()
            except (OSError, ValueError) as exc:
                os.close(fuse_fd)
                await self.unmount_path(spec.mountpoint, lazy=True)
                raise Unavailable(
                    f"the kernel did not take up the FUSE connection of {name!r}: {exc}"
                ) from exc
        self._minor = init.minor
        self._can_resend = abi.Cap.HAS_RESEND in caps
        connection = FuseConnection(
            self,
            connection_id=connection_id,
            fuse_fd=fuse_fd,
            ring_fd=ring_fd,
            caps=caps,
            max_write=tuning.MAX_WRITE_BYTES,
            minor=init.minor,
            entry=_entry_of(fuse_fd, spec.mountpoint),
        )
        _raise_readahead(connection._entry)
        return connection

    async def adopt(
        self, spec: MountSpec, *, name: str, descriptors: Descriptors, fuse_fd: int, ring_fd: int
    ) -> FuseConnection:
        """Take over a connection that a living worker serves, or that waits for one; owns the descriptors from here on.

        If it was unmounted meanwhile, `FuseConnection.ended` returns at once.
        """
        caps = abi.Cap(descriptors.flags | descriptors.flags2 << 32)
        self._minor = descriptors.minor
        self._can_resend = abi.Cap.HAS_RESEND in caps
        entry = _entry_of(fuse_fd, spec.mountpoint)
        log.info("took over the connection of %s at %s", name, spec.mountpoint)
        return FuseConnection(
            self,
            connection_id=descriptors.connection_id,
            fuse_fd=fuse_fd,
            ring_fd=ring_fd,
            caps=caps,
            max_write=descriptors.max_write,
            minor=descriptors.minor,
            entry=entry,
        )

    async def clean_stale(self, mountpoints: Mapping[str, str]) -> list[str]:
        """Unmount what dead daemons left at *mountpoints* (path → name); see `s3mgrd.mounts.ports.Kernel`.

        The caller knows that no worker of these lives: a worker that did would lose its mount.
        """
        cleaned = []
        for path, name in mountpoints.items():
            for _ in range(MAX_STACKED):
                entry = _ours_at(path)
                if entry is None or not self._may_unmount(entry):
                    break
                log.warning("unmounting the stale mount of %s at %s", name, path)
                try:
                    await self._in_thread(partial(syscalls.abort_connection, entry.connection))
                except OSError as exc:
                    log.info("cannot abort connection %s: %s", entry.connection, exc)
                await self.unmount_path(entry.mountpoint, lazy=True)
                if path not in cleaned:
                    cleaned.append(path)
        return cleaned

    def _may_unmount(self, entry: MountEntry) -> bool:
        return not self._user_mode or entry.user_id == os.getuid()

    def info(self) -> KernelInfo:
        """What this kernel can do; see `s3mgrd.mounts.ports.Kernel`."""
        return KernelInfo(
            release=os.uname().release, fuse_minor=self._minor, resend=self._can_resend
        )

    async def sync_tree(self, entry: MountEntry) -> None:
        """Have the kernel send the writes it has gathered, which go with the connection; for a limited time.

        The worker asks for what it knows to be open, also after the mount was detached. What only a worker that died
        knew of, nobody else would ask for.
        """
        try:
            with trio.move_on_after(SYNC_TIMEOUT_S):
                await self._in_thread(partial(syscalls.sync_tree, entry.mountpoint, entry.device))
        except OSError as exc:
            log.info("cannot sync %s: %s", entry.mountpoint, exc)

    async def unmount_path(self, path: str, *, lazy: bool) -> None:
        """Unmount whatever is on top at *path*.

        Raises:
            Conflict: it is busy.
            Denied: not permitted.
            Unavailable: anything else.
        """
        if self._user_mode:
            flags = ["-u", "-z"] if lazy else ["-u"]
            message = await _fusermount([*flags, "--", path])
            if message is not None:
                raise _unmount_error(path, message, busy="busy" in message.lower())
            return
        try:
            await self._in_thread(partial(syscalls.unmount, path, lazy=lazy))
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # not a mountpoint any more
                return
            message = exc.strerror or str(exc)
            raise _unmount_error(path, message, busy=exc.errno == errno.EBUSY) from exc

    async def _mount_as_user(self, spec: MountSpec) -> int:
        """Let fusermount3 mount and return the connection that it hands back."""
        options = [
            f"fsname={_escape(source_of(spec))}",
            f"subtype={SUBTYPE}",
            "default_permissions",
            f"max_read={tuning.MAX_WRITE_BYTES}",
            "nosuid",
            "nodev",
            "ro" if spec.options.read_only else "rw",
        ]
        if spec.options.allow_other:
            options.append("allow_other")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            message = await _fusermount(
                ["-o", ",".join(options), "--", spec.mountpoint], comm=theirs.fileno()
            )
            if message is not None:
                raise _mount_error(spec.mountpoint, message)
            ours.setblocking(False)
            try:
                _, fds, _, _ = socket.recv_fds(ours, 16, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                fds = []
        if not fds:
            raise Unavailable(f"{FUSERMOUNT} gave no connection for {spec.mountpoint!r}")
        os.set_inheritable(fds[0], False)
        return fds[0]


def _mount_as_root(spec: MountSpec, target: int) -> int:
    """Open a connection and mount it on the directory that the descriptor *target* is; blocks."""
    try:
        fuse_fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise Unavailable(
            f"cannot open {FUSE_DEVICE}: {exc.strerror}",
            hint="load the kernel module: modprobe fuse; in a container pass --device /dev/fuse",
        ) from exc
    allow_other = spec.options.allow_other is not False
    # Without allow_other the kernel lets only this user in.
    user = 0 if allow_other or spec.options.uid is None else spec.options.uid
    group = 0 if allow_other or spec.options.gid is None else spec.options.gid
    options = (
        f"fd={fuse_fd},rootmode=40000,user_id={user},group_id={group},default_permissions,"
        f"max_read={tuning.MAX_WRITE_BYTES}"
    )
    if allow_other:
        options += ",allow_other"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    if spec.options.read_only:
        flags |= syscalls.MS_RDONLY
    try:
        syscalls.mount(source_of(spec), f"/proc/self/fd/{target}", FILESYSTEM_TYPE, flags, options)
    except OSError as exc:
        os.close(fuse_fd)
        raise _mount_error(spec.mountpoint, exc.strerror or str(exc), exc.errno) from exc
    return fuse_fd


def _gathers_writes(options: MountOptions, wish: bool | None, offered: abi.Cap) -> bool:
    """Whether a kernel that offers these capabilities is to gather writes; by default, where they outlive a worker."""
    if wish is not None or options.read_only:
        return bool(wish)
    if options.writeback_cache == "auto":
        return abi.Cap.HAS_RESEND in offered
    return options.writeback_cache == "on"


def _handshake(fuse_fd: int, gathers: Callable[[abi.Cap], bool]) -> tuple[abi.InitRequest, abi.Cap]:
    """Read the kernel's FUSE_INIT and answer it; blocks for `INIT_TIMEOUT_MS` at most.

    *gathers* says of what the kernel offers whether it is to gather writes.
    """
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    if not poll.poll(INIT_TIMEOUT_MS):
        raise TimeoutError(errno.ETIMEDOUT, "no FUSE_INIT")
    init = abi.parse_init(os.read(fuse_fd, tuning.MAX_WRITE_BYTES + abi.HEADER_ROOM))
    caps = init.caps & tuning.wanted(writeback_cache=gathers(init.caps))
    reply = abi.init_reply(
        init.unique,
        minor=init.minor,
        caps=caps,
        max_readahead=tuning.READAHEAD_BYTES,
        max_background=tuning.MAX_BACKGROUND,
        congestion_threshold=tuning.CONGESTION_THRESHOLD,
        max_write=tuning.MAX_WRITE_BYTES,
        max_pages=tuning.MAX_PAGES,
        time_gran_ns=tuning.TIME_GRAN_NS,
    )
    os.write(fuse_fd, reply)
    return init, caps


def make_ring() -> int:
    """Make the memory that outlives workers: where they note which changes are under way."""
    fd = os.memfd_create("s3mgr-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, RING_BYTES)
    # A worker maps it: nobody may pull the memory away from under the next one.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def _entry_of(fuse_fd: int, mountpoint: str) -> MountEntry | None:
    """Find the mount that *fuse_fd* serves: by the kernel's word where it gives one, else by its path."""
    entries = read_mountinfo()
    with open(f"/proc/self/fdinfo/{fuse_fd}") as file:
        for line in file:
            if line.startswith("fuse_connection:"):  # Linux 6.17
                number = int(line.split()[1])
                ours = [e for e in entries if e.is_ours and e.connection == number]
                at_path = [e for e in ours if e.mountpoint == os.path.normpath(mountpoint)]
                return next(iter(at_path or ours), None)
    return _ours_at(mountpoint)


def _ours_at(path: str) -> MountEntry | None:
    """Return the mount of s3mgr that is seen at *path*."""
    entry = topmost(read_mountinfo(), os.path.normpath(path))
    return entry if entry is not None and entry.is_ours else None


def _raise_readahead(entry: MountEntry | None) -> None:
    """Let the kernel read ahead as far as `tuning` says; only root may, and some containers forbid it."""
    if entry is None:
        return
    path = f"/sys/class/bdi/{entry.device}/read_ahead_kb"
    try:
        with open(path, "w") as file:
            file.write(str(tuning.READAHEAD_KB))
    except OSError as exc:
        log.info("cannot set %s: %s; sequential reads will be slower", path, exc.strerror)


async def _fusermount(arguments: list[str], *, comm: int | None = None) -> str | None:
    """Run fusermount3 and return what it complained about; None: it succeeded."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    pass_fds: tuple[int, ...] = ()
    if comm is not None:
        env[COMMFD_ENV] = str(comm)
        pass_fds = (comm,)
    try:
        with trio.fail_after(COMMAND_TIMEOUT_S):
            done = await trio.run_process(
                [FUSERMOUNT, *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd="/",
                env=env,
                pass_fds=pass_fds,
            )
    except FileNotFoundError as exc:
        raise Unavailable(
            f"{FUSERMOUNT} is not installed", hint="install it: sudo apt-get install fuse3"
        ) from exc
    except trio.TooSlowError as exc:
        raise TimedOut(f"{FUSERMOUNT} did not finish within {COMMAND_TIMEOUT_S:.0f} s") from exc
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix(f"{FUSERMOUNT}: ") if lines else f"status {done.returncode}"


def _escape(value: str) -> str:
    """Escape a mount option's value as fusermount3 reads it."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _mount_error(path: str, message: str, code: int | None = None) -> S3mgrError:
    text = f"cannot mount on {path!r}: {message}"
    if "user_allow_other" in message:
        return Denied(
            "allow_other is not permitted to ordinary users on this machine",
            hint="have root add the line 'user_allow_other' to /etc/fuse.conf, or mount with -o allow_other=false",
        )
    if FUSE_DEVICE in message and "denied" in message:
        return Denied(
            f"ordinary users may not open {FUSE_DEVICE} on this machine",
            hint=f"have root allow it, as udev does elsewhere: sudo chmod 666 {FUSE_DEVICE}",
        )
    if code == errno.EBUSY:
        return MountpointBusy(text)
    if code == errno.ENODEV:
        return Unavailable(text, hint="this kernel has no FUSE: modprobe fuse")
    if code in (errno.EPERM, errno.EACCES):
        return Denied(text, hint="mounting needs root with CAP_SYS_ADMIN")
    if "no write access" in message or "not owned" in message or "forbidden" in message:
        return MountpointInvalid(text, hint="mount on a writable directory of your own")
    if "permitted" in message:
        return Denied(text, hint=f"{FUSERMOUNT} must be setuid root and no_new_privs unset")
    return Unavailable(text)


def _unmount_error(path: str, message: str, *, busy: bool) -> S3mgrError:
    if busy:
        return Conflict(
            f"{path!r} is busy: a program has a file open or its working directory there",
            hint=f"find it with 'fuser -vm {path}', or detach the tree with --lazy",
        )
    text = f"cannot unmount {path!r}: {message}"
    if "permitted" in message:
        return Denied(text)
    return Unavailable(text)
