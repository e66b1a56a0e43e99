"""Mounts of an ordinary user, through fusermount3.

The checkout and the interpreter may be out of that user's reach, so nothing is executed as them: a process is forked
from the test, after everything was imported, and becomes the user.
"""

import ctypes
import os
import pickle
import pwd
import shutil
import signal
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from s3mgr.schema import MountOptions, MountSpec
from s3mgrd.errors import Conflict, Denied, MountpointInvalid, S3mgrError, Unavailable
from s3mgrd.fuse import syscalls
from s3mgrd.fuse.connection import FuseConnection, FuseKernel
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo, topmost
from s3mgrd.worker import session
from s3mgrd.worker.protocol import Serve
from s3mgrd.worker.ring import Ring
from tests.fuse.demo_worker import Operations, pattern
from tests.fuse.lab import detach

USER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants a user with a name
CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC = 0x20000, 0x1000, 1 << 18, 0x4000
LIMIT_S = 20


@pytest.fixture
def base() -> Iterator[Path]:
    """Give a directory of the user's in which they may mount."""
    path = Path(tempfile.mkdtemp(prefix="s3mgr-user-mode-"))
    (path / "mnt").mkdir()
    for directory in (path, path / "mnt"):
        os.chown(directory, USER, USER)
    yield path
    detach(path)
    shutil.rmtree(path)


def replace_fuse_device(base: Path, mode: int) -> None:
    """Give this process, and nobody else, a /dev/fuse of the mode *mode*.

    udev makes it 0666; machines without udev leave it to root, and a test does not change a machine.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0
    syscalls.mount("none", "/", "none", MS_REC | MS_PRIVATE, "")
    node = base / "fuse"
    os.mknod(node, stat.S_IFCHR | mode, os.stat("/dev/fuse").st_rdev)
    node.chmod(mode)
    syscalls.mount(str(node), "/dev/fuse", "none", MS_BIND, "")


def as_user(function: Callable[[Path], Any], base: Path, *, device_mode: int | None = 0o666) -> Any:  # noqa: ANN401 - whatever it returns
    """Run *function* as the user, in a process and a mount namespace of its own, and return what it returns."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT_S)
        result: tuple[bool, Any]
        try:
            if device_mode is not None:
                replace_fuse_device(base, device_mode)
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            result = True, function(base)
        except BaseException:  # noqa: BLE001 - shown by the parent
            result = False, traceback.format_exc()
        os.write(write_fd, pickle.dumps(result))
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"ended with {status}"
    succeeded, value = pickle.loads(answer)  # noqa: S301 - our own child's
    assert succeeded, value
    return value


def spec(base: Path, **options: object) -> MountSpec:
    return MountSpec(
        bucket="demo",
        mountpoint=str(base / "mnt"),
        options=MountOptions(prefix="a, b\\c/", **options),  # type: ignore[arg-type] # any option
    )


def mounted(base: Path) -> MountEntry | None:
    return topmost(read_mountinfo(), str(base / "mnt"))


def mount(kernel: FuseKernel, base: Path) -> FuseConnection:
    async def run() -> FuseConnection:
        return await kernel.mount(spec(base), name="m", connection_id="1")

    return trio.run(run)


class Server:
    """A process that serves the connection, as a worker would, once it is told to.

    Made before the test opens anything in the mount: it would inherit the file, and wait for its own answer when it
    closes it.
    """

    def __init__(self, connection: FuseConnection, base: Path) -> None:
        read_fd, self._start_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            keep = {0, 1, 2, read_fd, connection.fuse_fd, connection.ring_fd}
            for name in os.listdir("/proc/self/fd"):
                if int(name) not in keep:
                    with suppress(OSError):
                        os.close(int(name))
            told = os.read(read_fd, 1)
            if told:  # else the test has ended
                _serve(connection, base, resumed=told == b"r")
            os._exit(0)
        os.close(read_fd)

    def start(self, *, resumed: bool) -> None:
        os.write(self._start_fd, b"r" if resumed else b"f")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _serve(connection: FuseConnection, base: Path, *, resumed: bool) -> NoReturn:
    with suppress(BaseException):
        journal = os.open(base / "journal", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        operations, ring = Operations(journal), Ring(connection.ring_fd)
        operations.ring, operations.resumed = ring, resumed
        message = Serve(
            resumed=resumed,
            resend=connection.can_resend,
            flags=connection.flags,
            flags2=connection.flags2,
            max_write=connection.max_write,
            minor=connection.minor,
        )

        async def main() -> None:
            await session.serve(operations, connection.fuse_fd, message, ring=ring)

        trio.run(main)
    os._exit(0)


def error_of(kernel: FuseKernel, what: Callable[[], Any]) -> S3mgrError:
    """Return the error that an async call of *kernel* raises."""

    async def run() -> S3mgrError:
        try:
            await what()
        except S3mgrError as exc:
            return exc
        raise AssertionError("it succeeded")

    return trio.run(run)


def live_through_a_takeover(base: Path) -> dict[str, Any]:
    kernel = FuseKernel(user_mode=True)
    connection = mount(kernel, base)
    entry = mounted(base)
    assert entry is not None
    first, second = Server(connection, base), Server(connection, base)
    first.start(resumed=False)
    fd = os.open(base / "mnt" / "data", os.O_RDONLY)
    before = os.pread(fd, 8, 800)
    first.kill()
    second.start(resumed=True)
    after = os.pread(fd, 8, 1600)
    busy = error_of(kernel, connection.unmount)
    os.close(fd)
    trio.run(connection.unmount)
    trio.run(connection.ended)
    trio.run(connection.unmount)
    os.waitpid(second.pid, 0)
    return {
        "entry": (entry.fs_type, entry.source, entry.user_id, entry.options),
        "options": entry.super_options,
        "read": (before, after),
        "busy": (type(busy), busy.hint),
        "left": mounted(base),
    }


def test_a_user_s_mount_survives_its_worker_and_is_unmounted(base: Path) -> None:
    seen = as_user(live_through_a_takeover, base)
    fs_type, source, user_id, options = seen["entry"]
    assert (fs_type, source, user_id) == ("fuse.s3mgr", "s3://demo/a, b\\c", USER)
    assert {"nosuid", "nodev"} <= set(options.split(","))
    assert "default_permissions" in seen["options"]
    assert "allow_other" not in seen["options"]
    assert seen["read"] == (pattern(800, 8), pattern(1600, 8))
    kind, hint = seen["busy"]
    assert kind is Conflict
    assert "--lazy" in hint
    assert seen["left"] is None


def abandon_and_clean(base: Path) -> tuple[list[str], bool, list[str]]:
    kernel = FuseKernel(user_mode=True)
    connection = mount(kernel, base)
    connection.close()
    path = str(base / "mnt")
    cleaned = trio.run(kernel.clean_stale, {path: "m"})
    return cleaned, mounted(base) is None, trio.run(kernel.clean_stale, {path: "m"})


def test_a_user_s_stale_mount_is_cleaned_by_that_user(base: Path) -> None:
    path = str(base / "mnt")
    assert as_user(abandon_and_clean, base) == ([path], True, [])


def test_another_user_s_stale_mount_is_not_touched(base: Path) -> None:
    async def leave_one() -> None:
        kernel = FuseKernel(user_mode=False)
        (await kernel.mount(spec(base), name="m", connection_id="1")).close()

    trio.run(leave_one)
    cleaned = as_user(
        lambda base: trio.run(FuseKernel(user_mode=True).clean_stale, {str(base / "mnt"): "m"}),
        base,
    )
    assert cleaned == []
    assert mounted(base) is not None


def drop_everything(base: Path) -> bool:
    kernel = FuseKernel(user_mode=True)
    connection = mount(kernel, base)
    connection.abort()  # a warning where the control file system is out of reach
    connection.close()
    try:
        os.listdir(base / "mnt")
    except OSError:
        pass
    else:
        return False
    trio.run(lambda: kernel.unmount_path(str(base / "mnt"), lazy=True))
    return True


def test_closing_the_last_descriptor_aborts_without_any_privilege(base: Path) -> None:
    assert as_user(drop_everything, base)


def is_other_allowed() -> bool:
    with suppress(FileNotFoundError):
        lines = Path("/etc/fuse.conf").read_text().splitlines()
        return "user_allow_other" in (line.strip() for line in lines)
    return False


def ask_for_others(base: Path) -> tuple[type[S3mgrError], str, str] | None:
    kernel = FuseKernel(user_mode=True)

    async def try_it() -> tuple[type[S3mgrError], str, str] | None:
        try:
            connection = await kernel.mount(
                spec(base, allow_other=True), name="m", connection_id="1"
            )
        except S3mgrError as exc:
            return type(exc), exc.detail, exc.hint
        await connection.unmount()
        return None

    return trio.run(try_it)


def test_allow_other_needs_the_administrator_s_permission(base: Path) -> None:
    refusal = as_user(ask_for_others, base)
    if is_other_allowed():
        assert refusal is None
    else:
        kind, detail, hint = refusal
        assert kind is Denied
        assert "allow_other" in detail
        assert "user_allow_other" in hint


def test_a_device_that_users_may_not_open_is_said_so(base: Path) -> None:
    kind, detail, hint = as_user(describe_refusal, base, device_mode=0o600)
    assert kind is Denied
    assert "/dev/fuse" in detail
    assert "chmod 666" in hint


def describe_refusal(base: Path) -> tuple[type[S3mgrError], str, str]:
    kernel = FuseKernel(user_mode=True)
    error = error_of(kernel, lambda: kernel.mount(spec(base), name="m", connection_id="1"))
    return type(error), error.detail, error.hint


def test_a_directory_of_somebody_else_is_refused(base: Path) -> None:
    os.chown(base / "mnt", 0, 0)

    def refused(base: Path) -> tuple[type[S3mgrError], type[S3mgrError]]:
        kernel = FuseKernel(user_mode=True)
        path = str(base / "mnt")
        checked = error_of(kernel, lambda: kernel.check_mountpoint(path, owner_uid=USER))
        tried = error_of(kernel, lambda: kernel.mount(spec(base), name="m", connection_id="1"))
        return type(checked), type(tried)

    assert as_user(refused, base) == (MountpointInvalid, MountpointInvalid)


async def test_a_missing_fusermount_is_said_with_what_to_install(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3mgrd.fuse.connection.FUSERMOUNT", "no-such-fusermount3")
    with pytest.raises(Unavailable, match="not installed") as failure:
        await FuseKernel(user_mode=True).mount(spec(base), name="m", connection_id="1")
    assert "apt-get install fuse3" in failure.value.hint


def test_root_is_told_what_the_kernel_refuses(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(syscalls, "mount", refuse)
    kernel = FuseKernel(user_mode=False)
    error = error_of(kernel, lambda: kernel.mount(spec(base), name="m", connection_id="1"))
    assert isinstance(error, Denied)
    assert "CAP_SYS_ADMIN" in error.hint
