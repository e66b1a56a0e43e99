"""The kernel connection: what the supervisor does with it, mostly while no worker serves it."""

import dataclasses
import errno
import os
import select
import sys

import pytest
import trio
import trio.testing

from s3mgr.schema import MountOptions, MountSpec
from s3mgr.schema.options import WritebackCache
from s3mgrd.errors import Conflict, MountpointBusy, MountpointInvalid, Unavailable
from s3mgrd.fuse import abi, syscalls, tuning
from s3mgrd.fuse.abi import Cap
from s3mgrd.fuse.cleanup import cleanup
from s3mgrd.fuse.connection import FuseKernel, make_ring, source_of
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo, topmost
from s3mgrd.worker.protocol import RING_BYTES, Descriptors
from tests.fuse.lab import Lab

PROMPT_S = 10.0


CLEAN_UP_BELOW = """
import sys
from s3mgrd.fuse import cleanup
from s3mgrd.fuse.mountinfo import read_mountinfo
cleanup.PROBE_TIMEOUT_S = 0.2
cleanup.read_mountinfo = lambda: [e for e in read_mountinfo() if e.mountpoint.startswith(sys.argv[1])]
print(*cleanup.cleanup(user_mode=False), sep="\\n")
"""  # it forks, so it is for a process of its own; other mounts of this machine are none of a test's business


def entry_at(path: str) -> MountEntry:
    entry = topmost(read_mountinfo(), path)
    assert entry is not None
    return entry


def control(entry: MountEntry, name: str) -> str:
    """Read a file of the connection's control directory."""
    directory = syscalls._open_fusectl()
    try:
        fd = os.open(f"{entry.connection}/{name}", os.O_RDONLY, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(fd) as file:
        return file.read().strip()


async def test_a_mount_has_the_limits_and_options_of_the_table(lab: Lab) -> None:
    connection = await lab.mount("m")
    entry = entry_at(f"{lab.base}/mnt/m")
    assert (entry.fs_type, entry.source) == ("fuse.s3mgr", "s3://demo")
    assert set(entry.options.split(",")) >= {"rw", "nosuid", "nodev"}
    assert set(entry.super_options.split(",")) >= {
        "rw",
        "user_id=0",
        "default_permissions",
        "allow_other",
        f"max_read={tuning.MAX_WRITE_BYTES}",
    }
    assert control(entry, "max_background") == str(tuning.MAX_BACKGROUND)
    assert control(entry, "congestion_threshold") == str(tuning.CONGESTION_THRESHOLD)
    readahead = trio.Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb")
    assert (await readahead.read_text()).strip() == str(tuning.READAHEAD_KB)
    assert os.fstat(connection.ring_fd).st_size == RING_BYTES
    assert connection.id == "id-of-m"
    granted = Cap(connection.flags | connection.flags2 << 32)
    assert Cap.WRITEBACK_CACHE not in granted
    assert granted & ~tuning.wanted(writeback_cache=False) == Cap(0)
    info = lab.kernel.info()
    assert (info.release, info.resend) == (os.uname().release, connection.can_resend)
    assert info.fuse_minor == connection.minor


@pytest.mark.parametrize(
    ("options", "gathers"),
    [
        (MountOptions(), True),
        (MountOptions(read_only=True), False),
        (MountOptions(writeback_cache="off"), False),
        (MountOptions(write_mode="writeback"), True),
        (MountOptions(write_mode="writeback", writeback_cache="off"), False),
        (MountOptions(writeback_cache="on"), True),
        (MountOptions(writeback_cache="on", read_only=True), False),
    ],
)
async def test_the_kernel_gathers_writes_unless_told_otherwise(
    lab: Lab, options: MountOptions, gathers: bool
) -> None:
    connection = await lab.kernel.mount(lab.spec("m", options=options), name="m", connection_id="1")
    assert bool(connection.flags & Cap.WRITEBACK_CACHE) == gathers
    await connection.unmount()
    connection.close()


@pytest.mark.parametrize(
    ("writeback_cache", "gathers"), [("auto", False), ("on", True), ("off", False)]
)
async def test_a_kernel_that_cannot_resume_gathers_only_on_demand(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, writeback_cache: WritebackCache, gathers: bool
) -> None:
    """What it has gathered would go with the worker."""
    parse_init = abi.parse_init

    def parse_older(message: bytes) -> abi.InitRequest:
        init = parse_init(message)
        return dataclasses.replace(init, caps=init.caps & ~Cap.HAS_RESEND)

    monkeypatch.setattr(abi, "parse_init", parse_older)
    spec = lab.spec("m", options=MountOptions(writeback_cache=writeback_cache))
    connection = await lab.kernel.mount(spec, name="m", connection_id="1")
    assert bool(connection.flags & Cap.WRITEBACK_CACHE) == gathers
    await connection.unmount()
    connection.close()


@pytest.mark.parametrize(
    ("options", "source"),
    [
        (MountOptions(), "s3://demo"),
        (MountOptions(prefix="a/b/"), "s3://demo/a/b"),
        (MountOptions(prefix="with, comma\\ and space/"), "s3://demo/with, comma\\ and space"),
        (MountOptions(prefix="ü" * 500), "s3://demo/" + "ü" * 500),
    ],
)
async def test_the_source_is_the_bucket_and_prefix(
    lab: Lab, options: MountOptions, source: str
) -> None:
    spec = lab.spec("m", options=options)
    assert source_of(spec) == source
    connection = await lab.kernel.mount(spec, name="m", connection_id="1")
    assert entry_at(spec.mountpoint).source == source
    await connection.unmount()
    connection.close()


async def test_a_read_only_mount_is_read_only_for_the_kernel(lab: Lab) -> None:
    spec = lab.spec("m", options=MountOptions(read_only=True))
    connection = await lab.kernel.mount(spec, name="m", connection_id="1")
    assert "ro" in entry_at(spec.mountpoint).options.split(",")
    await connection.unmount()
    connection.close()


async def test_without_allow_other_the_mount_is_the_owner_s_alone(lab: Lab) -> None:
    options = MountOptions(allow_other=False, uid=1234, gid=99)
    spec = lab.spec("m", options=options)
    connection = await lab.kernel.mount(spec, name="m", connection_id="1")
    entry = entry_at(spec.mountpoint)
    assert "allow_other" not in entry.super_options
    assert entry.user_id == 1234
    assert "group_id=99" in entry.super_options
    await connection.unmount()
    connection.close()


async def test_our_own_unmount_ends_the_connection_and_may_be_repeated(lab: Lab) -> None:
    connection = await lab.mount("m")
    await connection.unmount()
    with trio.fail_after(PROMPT_S):
        await connection.ended()
    await connection.unmount()
    assert connection.unmount_requested
    assert topmost(read_mountinfo(), f"{lab.base}/mnt/m") is None


@pytest.mark.parametrize("lazy", [False, True])
async def test_an_unmount_from_outside_is_noticed(lab: Lab, *, lazy: bool) -> None:
    """A second waiter notices too, and a mount that stays is not reported.

    The system call, because umount(8) looks into the mount first and would wait for a worker.
    """
    connection, other = await lab.mount("m"), await lab.mount("other")
    noticed: list[str] = []

    async def wait(name: str) -> None:
        await (connection if name != "other" else other).ended()
        noticed.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "other"):
            nursery.start_soon(wait, name)
        await trio.testing.wait_all_tasks_blocked()
        syscalls.unmount(f"{lab.base}/mnt/m", lazy=lazy)
        with trio.fail_after(PROMPT_S):
            while len(noticed) < 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert sorted(noticed) == ["first", "second"]
    assert not connection.unmount_requested


async def test_a_lazy_unmount_by_somebody_leaves_open_files_served(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    code = "import os, sys; f = os.open(sys.argv[1], 0); print(1, flush=True); input(); print(len(os.read(f, 9)))"
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        user = lab.program(code, f"{lab.base}/mnt/m/data")
        assert user.stdout is not None
        assert await trio.to_thread.run_sync(user.stdout.readline) == b"1\n"
        with pytest.raises(Conflict, match="busy"):
            await connection.unmount()
        await connection.unmount(lazy=True)
        with trio.fail_after(PROMPT_S):
            await connection.ended()
        assert await lab.output(user, b"\n") == "9"


async def test_a_mount_under_another_one_is_not_unmounted_by_mistake(lab: Lab) -> None:
    connection = await lab.mount("m")
    path = f"{lab.base}/mnt/m"
    syscalls.mount("none", path, "tmpfs", 0, "")
    try:
        with pytest.raises(Conflict, match="something else is mounted over"):
            await connection.unmount(lazy=True)
        assert entry_at(path).fs_type == "tmpfs"
    finally:
        syscalls.unmount(path, lazy=False)
    await connection.unmount()


async def test_abort_fails_those_who_wait_and_keeps_the_mountpoint(lab: Lab) -> None:
    """Nobody hangs after an abort, and nobody writes below the mountpoint by mistake."""
    connection = await lab.mount("m")
    code = "import os, sys\ntry: os.listdir(sys.argv[1])\nexcept OSError as e: print(e.errno)"
    user = lab.program(code, f"{lab.base}/mnt/m")
    poll = select.poll()
    poll.register(connection.fuse_fd, select.POLLIN)
    assert await trio.to_thread.run_sync(poll.poll, 10_000)  # its request waits for a worker
    connection.abort()
    assert int(await lab.output(user)) in {errno.ENOTCONN, errno.ECONNABORTED}
    with trio.fail_after(PROMPT_S):
        await connection.ended()
    assert entry_at(f"{lab.base}/mnt/m").is_ours
    connection.abort()
    await connection.unmount()


async def test_a_connection_is_adopted_with_what_the_worker_knows(lab: Lab) -> None:
    connection = await lab.mount("m")
    described = Descriptors(
        connection_id="id-of-m",
        flags=connection.flags,
        flags2=connection.flags2,
        max_write=connection.max_write,
        minor=connection.minor,
    )
    kernel = FuseKernel(user_mode=False)
    fds = {"fuse_fd": os.dup(connection.fuse_fd), "ring_fd": os.dup(connection.ring_fd)}
    adopted = await kernel.adopt(lab.spec("m"), name="m", descriptors=described, **fds)
    connection.close()
    assert (adopted.id, adopted.can_resend) == ("id-of-m", connection.can_resend)
    assert kernel.info().fuse_minor == connection.minor
    with trio.move_on_after(0.05):
        await adopted.ended()
        pytest.fail("it is still mounted")
    await adopted.unmount()
    with trio.fail_after(PROMPT_S):
        await adopted.ended()
    adopted.close()


async def test_a_connection_that_was_unmounted_before_its_adoption_has_ended(lab: Lab) -> None:
    connection = await lab.mount("m")
    described = Descriptors(connection_id="1", flags=0, flags2=0, max_write=1, minor=40)
    await connection.unmount()
    adopted = await lab.kernel.adopt(
        lab.spec("m"),
        name="m",
        descriptors=described,
        fuse_fd=os.dup(connection.fuse_fd),
        ring_fd=os.dup(connection.ring_fd),
    )
    with trio.fail_after(PROMPT_S):
        await adopted.ended()
    adopted.close()


async def test_a_mount_is_not_taken_for_unmounted_because_others_have_not_heard_of_it(
    lab: Lab,
) -> None:
    """Who mounts several at once looks at the last ones before the watch has told that the table has changed."""
    spec = lab.spec("m")
    with lab.kernel.watch as others:
        assert topmost(others.entries(), spec.mountpoint) is None
        # No checkpoint from here on: the watch cannot tell.
        fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fuse_fd},rootmode=40000,user_id=0,group_id=0"
        syscalls.mount("s3://demo", spec.mountpoint, "fuse.s3mgr", 0, options)
        connection = await lab.kernel.adopt(
            spec,
            name="m",
            descriptors=Descriptors(
                connection_id="7", flags=0, flags2=0, max_write=tuning.MAX_WRITE_BYTES, minor=40
            ),
            fuse_fd=fuse_fd,
            ring_fd=make_ring(),
        )
        with trio.move_on_after(0) as watched:
            await connection.ended()
        connection.close()
    assert watched.cancelled_caught


async def test_stale_mounts_are_removed_and_others_stay(lab: Lab) -> None:
    """What a dead daemon left goes, also stacked; other mounts and other file systems do not."""
    stale, other = await lab.mount("stale"), await lab.mount("other")
    again = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={again},rootmode=40000,user_id=0,group_id=0"
    syscalls.mount("s3://again", f"{lab.base}/mnt/stale", "fuse.s3mgr", 0, options)
    os.close(again)
    stale.close()
    plain = lab.base / "mnt" / "plain"
    plain.mkdir()
    found = {str(lab.base / "mnt" / name): name for name in ("stale", "plain", "absent")}
    assert await lab.kernel.clean_stale(found) == [str(lab.base / "mnt" / "stale")]
    assert topmost(read_mountinfo(), f"{lab.base}/mnt/stale") is None
    assert entry_at(f"{lab.base}/mnt/other").is_ours
    await other.unmount()


async def test_cleanup_unmounts_the_dead_and_spares_the_waiting(lab: Lab) -> None:
    """A connection whose descriptor somebody holds may come back to life; one that nobody holds is dead."""
    dead, waiting = await lab.mount("dead"), await lab.mount("waiting")
    dead.close()
    process = await trio.run_process(
        [sys.executable, "-c", CLEAN_UP_BELOW, str(lab.base)], capture_stdout=True
    )
    assert str(lab.base / "mnt" / "dead") in process.stdout.decode().splitlines()
    assert topmost(read_mountinfo(), f"{lab.base}/mnt/dead") is None
    assert entry_at(f"{lab.base}/mnt/waiting").is_ours
    await waiting.unmount()


async def test_checking_a_mountpoint_never_waits_for_a_worker(lab: Lab) -> None:
    """Mounted and unserved: the answers come from the mount table alone."""
    connection = await lab.mount("m")
    path = f"{lab.base}/mnt/m"
    with trio.fail_after(PROMPT_S):
        with pytest.raises(MountpointBusy, match="already mounted"):
            await lab.kernel.check_mountpoint(path, owner_uid=0)
        with pytest.raises(MountpointInvalid, match="inside another mount of s3mgr"):
            await lab.kernel.check_mountpoint(f"{path}/a/b", owner_uid=0)
        with pytest.raises(MountpointInvalid, match="inside another mount of s3mgr"):
            await lab.kernel.mount(
                MountSpec(bucket="b", mountpoint=f"{path}/a"),
                name="n",
                connection_id="2",
            )
    poll = select.poll()
    poll.register(connection.fuse_fd, select.POLLIN)
    assert poll.poll(0) == [], "a request was sent into the mount"
    await connection.unmount()


async def test_children_of_the_supervisor_hold_no_connection(lab: Lab) -> None:
    """A program that the supervisor starts must not keep a mount alive, nor hang in it."""
    connection = await lab.mount("m")
    code = "import os; [print(os.readlink(e.path)) for e in os.scandir('/proc/self/fd') if os.path.lexists(e.path)]"
    process = await trio.run_process(
        [sys.executable, "-c", code], capture_stdout=True, close_fds=False
    )
    listed = process.stdout.decode()
    assert "/dev/fuse" not in listed
    assert "s3mgr-ring" not in listed
    await connection.unmount()


async def test_a_device_that_is_missing_is_said_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3mgrd.fuse.connection.FUSE_DEVICE", "/dev/no-such-device")
    with pytest.raises(Unavailable, match="no-such-device") as failure:
        await lab.mount("m")
    assert "modprobe fuse" in failure.value.hint


async def test_a_failed_handshake_leaves_no_mount(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise OSError(errno.EMFILE, "no more files")

    monkeypatch.setattr("s3mgrd.fuse.connection.make_ring", fail)
    with pytest.raises(Unavailable, match="no more files"):
        await lab.mount("m")
    assert topmost(read_mountinfo(), f"{lab.base}/mnt/m") is None


def test_cleanup_finds_nothing_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3mgrd.fuse.cleanup.read_mountinfo", list)
    assert cleanup(user_mode=True) == []
