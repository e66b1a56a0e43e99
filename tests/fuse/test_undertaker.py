"""Who takes dead mounts away when no daemon is there to do it."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.fuse import abi, tuning
from s3mgrd.fuse.abi import Opcode
from s3mgrd.fuse.mountinfo import MountEntry, parse_mountinfo, topmost
from s3mgrd.state.lock import instance_lock
from s3mgrd.undertaker import PID_NAME
from tests.e2e.lab import wait_for

NAMESPACE = """
import sys
from s3mgrd.fuse import syscalls
from s3mgrd.fuse.mountinfo import read_mountinfo
for entry in reversed(read_mountinfo()):
    if entry.is_ours:
        syscalls.unmount(entry.mountpoint, lazy=True)
print(flush=True)
sys.stdin.read()
"""
"""A copy of another test's mount would keep that alive when it is unmounted where it was made."""
UNDERTAKER = """
import sys
from s3mgrd import undertaker
undertaker.LOOK_INTERVAL_S = 0.2
undertaker.HANDED_OVER_S = float(sys.argv.pop(1))
undertaker.main(sys.argv[1:])
"""
REPLACED_LATE = """
import os, sys
from s3mgrd.fuse import cleanup, syscalls
remove = cleanup._detach
def remove_late(fd, path, *, user_mode):
    syscalls.unmount(path, lazy=True)
    mount(path)
    remove(fd, path, user_mode=user_mode)
def mount(path):
    fuse_fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse_fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    syscalls.mount("s3://b", path, "fuse.s3mgr", 0, options)
cleanup._detach = remove_late
found = cleanup.remove_dead([sys.argv[1]], user_mode=sys.argv[2] == "user", timeout_s=20.0)
assert list(found) == [sys.argv[1]]
"""
"""The next daemon takes the dead mount away and mounts anew while this process is about to take away what it found dead."""
MOUNT = """
import sys
from s3mgrd.fuse import syscalls
syscalls.mount("s3://b", sys.argv[1], "fuse.s3mgr", 0, sys.argv[2])
"""
STATFS = 17
PAUSE_S = 2.0
"""Longer than it takes to look a few times."""
NEVER_S = "3600"


class Scene:
    """A mount whose connection this process holds, and the undertaker of the daemon that made it.

    In a mount namespace of their own: what another test's ``s3mgrd --cleanup`` finds dead it takes away, too.
    """

    def __init__(self, base: Path) -> None:
        self.path = base / "mnt"
        self.state_dir = base / "state"
        self.path.mkdir(parents=True)
        self.state_dir.mkdir()
        hold = [sys.executable, "-c", NAMESPACE]
        self._namespace = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--", *hold],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._namespace.stdout is not None
        assert self._namespace.stdout.readline() == b"\n"
        self._fuse_fd: int | None = None
        self._undertaker: subprocess.Popen[bytes] | None = None

    def command(self, *command: str | Path) -> list[str | Path]:
        """Make *command* one in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._namespace.pid}/ns/mnt", "--", *command]

    def run(self, *command: str | Path, pass_fds: tuple[int, ...] = ()) -> None:
        """Run a program in the namespace, which succeeds."""
        subprocess.run(self.command(*command), check=True, timeout=60, pass_fds=pass_fds)

    def mount(self, options: str = "user_id=0,group_id=0,allow_other") -> None:
        fuse_fd = self._fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fuse_fd},rootmode=40000,{options}"
        self.run(sys.executable, "-c", MOUNT, self.path, options, pass_fds=(fuse_fd,))

    def unmount(self) -> None:
        """Detach what is on top."""
        self.run("umount", "-l", "-c", self.path)

    def start(self, *, handed_over_s: str = NEVER_S, only: Path | None = None) -> None:
        """Start the undertaker of a daemon with one mountpoint."""
        arguments = (handed_over_s, self.state_dir, only or self.path)
        self._undertaker = subprocess.Popen(
            self.command(sys.executable, "-c", UNDERTAKER, *arguments),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def let_go(self) -> None:
        """End the connection."""
        if self._fuse_fd is not None:
            os.close(self._fuse_fd)
            self._fuse_fd = None

    def read_request(self) -> int:
        """Wait for a request, answer it only if it is FUSE_INIT, and return its kind."""
        assert self._fuse_fd is not None
        wait_for("there is a request", self.has_request)
        message = os.read(self._fuse_fd, tuning.MAX_WRITE_BYTES + abi.HEADER_ROOM)
        _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(message)
        if opcode == Opcode.INIT:
            reply = abi.init_reply(
                unique,
                minor=abi.parse_init(message).minor,
                caps=abi.Cap(0),
                max_readahead=0,
                max_background=1,
                congestion_threshold=1,
                max_write=tuning.MAX_WRITE_BYTES,
                max_pages=tuning.MAX_PAGES,
                time_gran_ns=1,
            )
            os.write(self._fuse_fd, reply)
        return int(opcode)

    def has_request(self) -> bool:
        """Whether somebody asks and nobody has read it."""
        assert self._fuse_fd is not None
        poll = select.poll()
        poll.register(self._fuse_fd, select.POLLIN)
        return bool(poll.poll(0))

    def seen(self) -> MountEntry | None:
        """What is mounted."""
        mountinfo = Path(f"/proc/{self._namespace.pid}/mountinfo").read_bytes()
        return topmost(parse_mountinfo(mountinfo), str(self.path))

    def said(self, *, limit_s: float = 20.0) -> str:
        """Wait for the undertaker's end and return what it said."""
        assert self._undertaker is not None
        return self._undertaker.communicate(timeout=limit_s)[1].decode()

    def forget_undertaker(self) -> "subprocess.Popen[bytes]":
        """Have the caller see to the undertaker, so that another can be started."""
        undertaker, self._undertaker = self._undertaker, None
        assert undertaker is not None
        return undertaker

    def goes_on(self) -> None:
        """Give the undertaker time to look a few times, and see that it has not ended."""
        with pytest.raises(subprocess.TimeoutExpired):
            self.said(limit_s=PAUSE_S)

    def end(self) -> None:
        self.let_go()
        if self._undertaker is not None:
            self._undertaker.kill()
            self.said()
        self._namespace.communicate()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.end()


@pytest.mark.parametrize(
    "options", ["user_id=0,group_id=0,allow_other", "user_id=1234,group_id=1234"]
)
def test_a_mount_that_nobody_can_serve_any_more_is_taken_away(scene: Scene, options: str) -> None:
    """Also one that root may not even enter."""
    scene.mount(options)
    scene.let_go()
    assert scene.seen() is not None
    scene.start()
    assert f"removed a dead mount from {scene.path}" in scene.said()
    assert scene.seen() is None


def test_a_mount_that_may_be_served_again_stays(scene: Scene) -> None:
    """As long as somebody holds the connection, if only one that has not begun to serve."""
    scene.mount()
    scene.start()
    scene.goes_on()
    assert scene.seen() is not None
    scene.let_go()
    assert "removed a dead mount" in scene.said()
    assert scene.seen() is None


def test_a_question_that_was_read_and_never_answered_is_in_nobody_s_way(scene: Scene) -> None:
    """A worker read it and died: nothing ends such a wait but the connection's end."""
    scene.mount()
    scene.start()
    assert [scene.read_request() for _ in range(2)] == [Opcode.INIT, STATFS]
    scene.goes_on()
    scene.let_go()
    assert "removed a dead mount" in scene.said()
    assert scene.seen() is None


def test_what_is_dead_is_left_to_the_next_daemon_while_there_is_one(scene: Scene) -> None:
    scene.mount()
    scene.let_go()
    with instance_lock(str(scene.state_dir)):
        scene.start()
        scene.goes_on()
        assert scene.seen() is not None
    assert "removed a dead mount" in scene.said()
    assert scene.seen() is None


def test_a_daemon_that_has_been_there_for_a_while_sees_to_it_alone(scene: Scene) -> None:
    scene.mount()
    with instance_lock(str(scene.state_dir)):
        scene.start(handed_over_s="0.5")
        assert scene.said() == ""
    assert scene.seen() is not None


def test_of_several_undertakers_only_the_last_one_stays(scene: Scene) -> None:
    """A daemon that is started again and again, and dies each time, leaves one each time."""
    scene.mount()
    scene.start()
    wait_for("it has begun", (scene.state_dir / PID_NAME).exists)
    first = scene.forget_undertaker()
    scene.start()
    assert first.communicate(timeout=20)[1] == b""
    assert first.returncode == 0
    scene.goes_on()
    scene.let_go()
    assert "removed a dead mount" in scene.said()


def test_what_covers_a_dead_mount_stays(scene: Scene) -> None:
    scene.mount()
    scene.let_go()
    scene.run("mount", "-t", "tmpfs", "cover", scene.path)
    scene.start()
    scene.goes_on()
    seen = scene.seen()
    assert seen is not None
    assert seen.fs_type == "tmpfs"
    scene.unmount()
    assert "removed a dead mount" in scene.said()
    assert scene.seen() is None


def test_another_daemon_s_dead_mount_stays(scene: Scene) -> None:
    """It is not at one of the daemon's mountpoints."""
    scene.mount()
    scene.let_go()
    scene.start(only=scene.path.with_name("elsewhere"))
    assert scene.said() == ""
    assert scene.seen() is not None


@pytest.mark.parametrize("mode", ["root", "user"])
def test_what_takes_the_place_of_a_dead_mount_in_the_last_moment_stays(
    scene: Scene, mode: str
) -> None:
    """What is taken away is what was found dead, and not what is at its path or has its number."""
    scene.mount()
    scene.let_go()
    before = scene.seen()
    scene.run(sys.executable, "-c", REPLACED_LATE, scene.path, mode)
    after = scene.seen()
    assert before is not None
    assert after is not None
    assert after.mount_id != before.mount_id
