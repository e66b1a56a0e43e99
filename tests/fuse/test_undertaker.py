"""Who takes dead mounts away when no daemon is there to do it."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.fuse import abi, syscalls, tuning
from s3mgrd.fuse.abi import Opcode
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo, topmost
from tests.e2e.lab import wait_for

DAEMON = """
import sys
from pathlib import Path
from s3mgrd.fuse.undertaker import Undertaker
from s3mgrd.fuse.mountinfo import read_mountinfo, topmost
holder = Path(sys.argv[2])
undertaker = Undertaker.start(lambda: int(holder.read_text()) if holder.exists() else None, user_mode=False)
undertaker.note(topmost(read_mountinfo(), sys.argv[1]))
print("noted", flush=True)
sys.stdin.read()
"""
"""Mounts nothing, but takes what is at a path for its own."""
STATFS = 17
PAUSE_S = 6.0
"""Longer than it takes to look a few times."""


class Scene:
    """A mount whose connection this process holds, and the daemon that answers for it.

    Attributes:
        holder: a file with the number of the daemon that is there, if one is.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.path = base / "mnt"
        self.holder = base / "holder"
        self.path.mkdir()
        self._fuse_fd: int | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def mount(self, options: str = "user_id=0,group_id=0,allow_other") -> None:
        self._fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fuse_fd},rootmode=40000,{options}"
        syscalls.mount("s3://b", str(self.path), "fuse.s3mgr", 0, options)

    def start(self) -> None:
        self._daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, self.path, self.holder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline() == b"noted\n"

    def kill(self) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGKILL)
        self._daemon.wait()

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
        return topmost(read_mountinfo(), str(self.path))

    def said(self, *, limit_s: float = 20.0) -> str:
        """Wait for the undertaker's end, too, and return what both said."""
        assert self._daemon is not None
        return self._daemon.communicate(timeout=limit_s)[1].decode()

    def end(self) -> None:
        self.let_go()
        while self.seen() is not None:
            syscalls.unmount(str(self.path), lazy=True)
        if self._daemon is not None:
            self._daemon.kill()
            self.said()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.end()


@pytest.mark.parametrize(
    "options", ["user_id=0,group_id=0,allow_other", "user_id=1234,group_id=1234"]
)
def test_a_mount_that_died_with_its_daemon_is_taken_away(scene: Scene, options: str) -> None:
    """Also one that root may not even enter. What is below is the bare directory."""
    scene.mount(options)
    scene.start()
    scene.let_go()
    assert scene.seen() is not None  # the daemon lives: it is the daemon's to see to
    scene.kill()
    wait_for("the dead mount is gone", lambda: scene.seen() is None)
    assert os.listdir(scene.path) == []
    assert f"removed a dead mount from {scene.path}" in scene.said()


def test_a_mount_that_may_be_served_again_stays(scene: Scene) -> None:
    """As long as somebody holds the connection; and the one who takes it away has gone then."""
    scene.mount()
    scene.start()
    scene.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        scene.said(limit_s=PAUSE_S)
    assert scene.seen() is not None
    scene.let_go()
    wait_for("the dead mount is gone", lambda: scene.seen() is None)
    scene.said()


def test_whoever_cannot_be_told_to_stop_asking_is_the_only_one_who_asks(scene: Scene) -> None:
    """A worker read the question, and died before it answered: nothing ends such a wait but the connection's end."""
    scene.mount()
    scene.start()
    scene.kill()
    kinds = [scene.read_request() for _ in range(2)]
    assert kinds == [Opcode.INIT, STATFS]
    with pytest.raises(subprocess.TimeoutExpired):
        scene.said(limit_s=PAUSE_S)
    others = []
    while scene.has_request():
        others.append(scene.read_request())
    assert set(others) <= {Opcode.INTERRUPT}
    scene.let_go()
    wait_for("the dead mount is gone", lambda: scene.seen() is None)
    scene.said()


def test_what_is_dead_is_left_to_the_next_daemon_while_there_is_one(scene: Scene) -> None:
    scene.mount()
    scene.start()
    scene.holder.write_text("7")
    scene.let_go()
    scene.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        scene.said(limit_s=PAUSE_S)
    assert scene.seen() is not None
    scene.holder.unlink()
    wait_for("the dead mount is gone", lambda: scene.seen() is None)
    scene.said()


def test_nothing_else_is_taken_away(scene: Scene, tmp_path: Path) -> None:
    """Neither what covers the dead mount, nor another daemon's that is as dead."""
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    other.mount()
    scene.mount()
    scene.start()
    try:
        other.let_go()
        scene.let_go()
        syscalls.mount("cover", str(scene.path), "tmpfs", 0, "")
        scene.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            scene.said(limit_s=PAUSE_S)
        seen = scene.seen()
        assert seen is not None
        assert seen.fs_type == "tmpfs"
        syscalls.unmount(str(scene.path), lazy=True)
        wait_for("the dead mount is gone", lambda: scene.seen() is None)
        assert other.seen() is not None
    finally:
        other.end()


def test_a_later_mount_elsewhere_is_not_taken_for_one_of_ours(scene: Scene, tmp_path: Path) -> None:
    """Though the kernel gives it the same numbers, unless somebody else mounts something meanwhile."""
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    scene.mount()
    scene.start()
    scene.let_go()
    syscalls.unmount(str(scene.path), lazy=True)
    try:
        other.mount()
        scene.kill()
        assert scene.said() == ""
    finally:
        other.end()


def test_a_daemon_that_leaves_nothing_leaves_no_process(scene: Scene) -> None:
    scene.mount()
    scene.start()
    scene.let_go()
    syscalls.unmount(str(scene.path), lazy=True)
    scene.kill()
    assert scene.said() == ""
