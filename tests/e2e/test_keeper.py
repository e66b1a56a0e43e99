"""Worker and daemon die together: what keeps the connection meanwhile, and for how long."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from s3mgrd.fuse import syscalls
from tests.descriptors import held_by
from tests.e2e.lab import SCRIPTS, Daemon, Lab, shell, wait_for
from tests.e2e.service_manager import ServiceManager
from tests.e2e.trees import read_bucket
from tests.servers.endpoint import Endpoint

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
number = 0
for line in sys.stdin:
    os.write(fd, bytes([number % 251]) * 1000)
    number += 1
    print(number, flush=True)
os.close(fd)
print("closed", flush=True)
"""
"""Writes a thousand bytes for each line it is sent, closes at their end, and dies of any error."""


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


class Writer:
    """A program that has a file open; see `WRITER`."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.process = lab.program(sys.executable, "-S", "-c", WRITER, path)
        self.written = 0
        self.ask()
        self.answer()

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def answer(self) -> None:
        assert self.process.stdout is not None
        self.written += 1
        assert self.process.stdout.readline() == b"%d\n" % self.written

    def close(self) -> None:
        out, err = self.process.communicate(timeout=60)
        assert out == b"closed\n", err.decode()

    @property
    def content(self) -> bytes:
        return b"".join(bytes([n % 251]) * 1000 for n in range(self.written))


class Caller:
    """A program that makes one call when it is told, and prints what came of it.

    A program, because a file that is open here would be closed by each process that is started from here.
    """

    def __init__(self, lab: Lab, call: str, *arguments: Path) -> None:
        code = f"import os, sys\n{call}\nprint('done', flush=True)"
        self._process = lab.program(sys.executable, "-S", "-c", code, *arguments)

    def waits(self) -> bool:
        """Whether it waits for an answer of the mount, or for a page that such an answer is to fill."""
        stack = Path(f"/proc/{self._process.pid}/stack").read_text()
        return "request_wait_answer" in stack or "folio_wait" in stack

    def finish(self) -> None:
        out, err = self._process.communicate(timeout=60)
        assert out == b"done\n", err.decode()


AT_ONCE_S = 10.0
MAKE = "os.mkdir(sys.argv[1])"
RENAME = "os.rename(sys.argv[1], sys.argv[2])"
READ = "assert open(sys.argv[1], 'rb').read() == bytes(range(256)) * 4000"


@pytest.mark.parametrize("gather", ["on", "off"])
def test_nobody_notices_that_worker_and_daemon_died_together(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str, gather: str
) -> None:
    """What was written, in the kernel or at the worker, what waits for an answer, and what comes meanwhile."""
    mount = daemon.mount(s3_endpoint, bucket, "m", "-o", f"writeback_cache={gather}")
    (mount / "old").write_bytes(bytes(range(256)) * 4000)
    (mount / "first").touch()
    daemon.flush()
    writer = Writer(lab, mount / "open")
    for _ in range(20):
        writer.ask()
        writer.answer()
    daemon.wait_replaced(daemon.kill_worker())
    os.kill(daemon.worker_pid(), signal.SIGSTOP)  # what is asked now has no answer
    made = Caller(lab, MAKE, mount / "made")
    read = Caller(lab, READ, mount / "old")
    wait_for("both wait", lambda: made.waits() and read.waits())
    daemon.kill_but_keepers()
    assert len(daemon.keepers()) == 1
    renamed = Caller(lab, RENAME, mount / "first", mount / "second")
    writer.ask()
    wait_for("it waits, too", renamed.waits)

    daemon.start()
    mounted = daemon.wait_state("mounted")
    assert mounted.status.reason == "resumed"
    for program in (made, read, renamed):
        program.finish()
    writer.answer()
    writer.ask()
    writer.answer()
    writer.close()
    daemon.flush()
    objects = read_bucket(s3_endpoint, bucket)
    assert sorted(objects) == ["made/", "old", "open", "second"]
    assert _body(s3_endpoint, bucket, "open") == writer.content
    assert len(daemon.mounts()) == 1
    wait_for("only the new keeper is left", lambda: len(daemon.keepers()) == 1)
    daemon.run("unmount", "m")
    wait_for("no keeper is left", lambda: not daemon.keepers())


def test_both_may_die_again_and_again(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Also before the next worker has served anybody, and with the worker dying first."""
    mount = daemon.mount(s3_endpoint, bucket, "m", "-o", "writeback_cache=on")
    writer = Writer(lab, mount / "open")
    daemon.kill_but_keepers()
    for _ in range(3):
        daemon.start()  # its API answers; the worker may be up or not
        daemon.kill_but_keepers()
        writer.ask()
        daemon.start()
        daemon.wait_state("mounted")
        writer.answer()
        daemon.kill_with_worker()
    daemon.start()
    daemon.wait_state("mounted")
    writer.close()
    assert (mount / "open").read_bytes() == writer.content


def test_a_daemon_that_lives_has_one_keeper_for_a_mount(
    daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """However often its worker was replaced, by force or as asked."""
    mount = daemon.mount(s3_endpoint, bucket)
    for _ in range(9):
        daemon.wait_replaced(daemon.kill_worker())
    worker = daemon.worker_pid()
    daemon.run("restart", "m")
    daemon.wait_replaced(worker)
    (mount / "file").write_bytes(b"1")
    wait_for("one keeper is left", lambda: len(daemon.keepers()) == 1)
    assert sorted(p.name for p in (daemon.state_dir / "run").iterdir()) == ["m.keep", "m.sock"]
    daemon.run("unmount", "m")
    wait_for("no keeper is left", lambda: not daemon.keepers())
    assert list((daemon.state_dir / "run").iterdir()) == []


def test_an_unmount_by_somebody_ends_the_keeper(
    daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """And the next daemon mounts again: nobody saw it."""
    mount = daemon.mount(s3_endpoint, bucket)
    daemon.kill_but_keepers()
    assert daemon.keepers()
    syscalls.unmount(str(mount), lazy=True)  # umount(8) asks the mount for its size
    wait_for("the keeper has ended", lambda: not daemon.keepers())
    assert "the kernel connection has ended" in dict(daemon.logs())["d: worker m.log"]


@pytest.mark.parametrize(
    "command", [["umount", "-c"], ["fusermount3", "-u"], ["umount", "-l"]], ids=" ".join
)
def test_an_administrator_can_unmount_what_nobody_serves(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str, command: list[str]
) -> None:
    """At once, or with an error that says why not; what the worker had acknowledged is uploaded by the next."""
    is_lazy = "-l" in command
    gather = "off" if is_lazy else "on"
    mount = daemon.mount(s3_endpoint, bucket, "m", "-o", f"writeback_cache={gather}")
    writer = Writer(lab, mount / "open")
    daemon.kill_but_keepers()
    done = subprocess.run([*command, mount], capture_output=True, text=True, timeout=AT_ONCE_S)
    if is_lazy:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode != 0
        assert "busy" in done.stderr
    assert bool(daemon.mounts()) == (not is_lazy)
    daemon.start()
    if not is_lazy:
        writer.close()
    wait_for("it is in S3", lambda: "open" in read_bucket(s3_endpoint, bucket))
    wait_for("all of it is", lambda: _body(s3_endpoint, bucket, "open") == writer.content)
    if is_lazy:
        return
    daemon.wait_state("mounted")
    daemon.kill_but_keepers()
    subprocess.run([*command, mount], check=True, timeout=AT_ONCE_S)
    assert not daemon.mounts()
    wait_for("the keeper has ended", lambda: not daemon.keepers())


def test_cleanup_ends_keepers_only_when_the_daemon_does_not_come_back(
    daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """It is run before each start, too, by systemd, which says what the end was."""
    mount = daemon.mount(s3_endpoint, bucket)
    daemon.kill_but_keepers()
    _clean_up(daemon, SERVICE_RESULT="signal")
    assert daemon.keepers()
    assert daemon.mounts()
    daemon.start()
    daemon.wait_state("mounted")
    _clean_up(
        daemon, SERVICE_RESULT="success"
    )  # as long as a daemon lives, it is none of its business
    shell('touch "$1"/file', mount)
    daemon.kill_but_keepers()
    assert str(mount) in _clean_up(daemon, SERVICE_RESULT="success")
    assert not daemon.mounts()
    wait_for("the keeper has ended", lambda: not daemon.keepers())
    daemon.start()
    daemon.wait_state("mounted")
    assert os.listdir(mount) == ["file"]


def test_a_mount_that_nobody_keeps_any_more_goes_and_nothing_that_was_written(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """The daemon cannot start again, and the keeper's time is over: nobody meets a dead mount, whatever comes next."""
    mount = daemon.mount(s3_endpoint, bucket, "m", "-o", "write_mode=writeback")
    daemon.run("queue", "pause", "m")
    (mount / "file").write_bytes(b"content")
    config = daemon.config_file.read_text()
    daemon.config_file.write_text("nonsense")
    daemon.kill_with_worker()
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(30) == 2
    assert "is not valid TOML" in _clean_up(daemon, SERVICE_RESULT="exit-code")
    assert daemon.mounts()
    for keeper in daemon.keepers():
        os.kill(keeper, signal.SIGKILL)  # as when its time is over
    wait_for("nothing is mounted", lambda: not daemon.mounts())
    wait_for("no process is left", lambda: not daemon.pids())
    assert os.listdir(mount) == []
    (mount / "stray").touch()
    daemon.config_file.write_text(config)
    daemon.start()
    failed = daemon.wait_state("failed")
    assert "not empty" in failed.status.message
    (mount / "stray").unlink()
    daemon.run("restart", "m")
    assert (mount / "file").read_bytes() == b"content"
    daemon.run("queue", "resume", "m")
    daemon.flush()
    assert _body(s3_endpoint, bucket, "file") == b"content"


def _clean_up(daemon: Daemon, **environ: str) -> str:
    done = subprocess.run(
        [SCRIPTS / "s3mgrd", "--config", daemon.config_file, "--cleanup"],
        env={"PATH": os.environ["PATH"], **environ},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.fixture
def systemd(lab: Lab) -> Iterator[ServiceManager]:
    manager = ServiceManager(lab.daemon(start=False))
    manager.start()
    yield manager
    manager.end()


def test_systemd_keeps_what_nobody_else_is_left_to_keep(
    lab: Lab, systemd: ServiceManager, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Daemon, worker and keeper die together, again and again; one mount has gone meanwhile."""
    (daemon,) = lab.daemons
    mount = daemon.mount(s3_endpoint, f"{bucket}/a", "m", "-o", "writeback_cache=on")
    other = daemon.mount(s3_endpoint, f"{bucket}/b", "other")
    writer = Writer(lab, mount / "open")
    wait_for("both mounts are held", lambda: len(systemd.names()) == 4)
    held = [name for name in systemd.names() if ",m," in name]
    systemd.put("unknown")
    for _ in range(2):
        daemon.kill_all()
        with suppress(OSError):  # once only
            syscalls.unmount(str(other), lazy=True)
        writer.ask()
        systemd.start()
        daemon.wait_state("mounted")
        writer.answer()
    assert daemon.show().status.reason == "resumed"
    wait_for("the other is mounted anew", lambda: len(systemd.names()) == 4)
    assert [name for name in systemd.names() if ",m," in name] == held
    writer.close()
    daemon.flush()
    assert _body(s3_endpoint, bucket, "a/open") == writer.content
    assert len(daemon.mounts()) == 2
    daemon.run("unmount", "m")
    wait_for("one is let go of", lambda: len(systemd.names()) == 2)
    assert daemon.stop() == 0
    wait_for("all is let go of", lambda: systemd.names() == [])


def test_a_living_worker_comes_before_what_systemd_gives(
    lab: Lab, systemd: ServiceManager, s3_endpoint: Endpoint, bucket: str
) -> None:
    """So does a keeper; and the daemon does not hold the connection twice."""
    (daemon,) = lab.daemons
    daemon.mount(s3_endpoint, bucket, "m")
    wait_for("the mount is held", lambda: len(systemd.names()) == 2)
    held, worker = systemd.names(), daemon.worker_pid()
    daemon.kill()
    systemd.start()
    daemon.wait_state("mounted")
    assert daemon.worker_pid() == worker
    daemon.kill_but_keepers()
    systemd.start()
    assert daemon.wait_state("mounted").status.reason == "resumed"
    assert systemd.names() == held
    assert daemon.process is not None
    pid = daemon.process.pid
    # For a moment there is another: what was sent to the worker, say.
    wait_for("the daemon has one descriptor", lambda: _connections(pid) == 1)


def _connections(pid: int) -> int:
    return sum(target == "/dev/fuse" for _, target in held_by(pid))


def _body(endpoint: Endpoint, bucket: str, key: str) -> bytes:
    client = endpoint.boto3()
    body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.close()
    return body
