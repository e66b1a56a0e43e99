"""The daemon of an ordinary user: mounts through fusermount3, no right but the user's own."""

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.lab import COMMAND_LIMIT_S, SCRIPTS, Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

USER = pwd.getpwnam("nobody")  # fusermount3 wants a user with a name

# udev makes /dev/fuse 0666; machines without udev leave it to root. A test does not change a machine, so it happens in a
# mount namespace of its own, in which everything of the user's runs.
NAMESPACE = """
set -eu
mkdir "$1/dev"
mount -t tmpfs -o mode=0755 none "$1/dev"
mknod -m 0666 "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
echo ready
exec sleep infinity
"""


class UserDaemon(Daemon):
    """A daemon that runs as `USER`."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, "user", {})
        self.runtime = self.base / "run"
        self.runtime.mkdir(mode=0o700)
        for path in (self.base, self.base / "mnt", self.base / "home", self.runtime):
            os.chown(path, USER.pw_uid, USER.pw_gid)
        self.holder = lab.program(
            *("unshare", "--mount", "--propagation", "private", "--"),
            *("sh", "-c", NAMESPACE, "sh", lab.directory("namespace")),
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n", self.holder.communicate()
        self.capabilities: tuple[str, ...] = ()
        if self.execute(str(SCRIPTS / "s3mgrd"), "--version").returncode:
            # The checkout lies where only root gets to: let the user read, and only read, everything.
            self.capabilities = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")

    def command(self, *command: str) -> list[str]:
        """Make *command* one of the user's, in the user's namespace."""
        return [
            *("nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--"),
            *("setpriv", f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups"),
            *(*self.capabilities, "--", *command),
        ]

    def variables(self) -> dict[str, str]:
        """Environment of the user's programs."""
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return kept | {
            "HOME": str(self.base / "home"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "LC_ALL": "C.UTF-8",
        }

    def start_as(self, *arguments: str) -> None:
        """Start ``s3mgrd ARGUMENTS`` as the user; returns at once."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(str(SCRIPTS / "s3mgrd"), *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=self.variables(),
            )

    def start(self, *, wait: bool = True) -> "UserDaemon":
        """Start it with its configuration file."""
        self.start_as("--config", str(self.config_file))
        if wait:
            wait_for("the daemon's API answers", self._answers)
        return self

    def execute(
        self, *command: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the user's."""
        return subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=self.variables() | dict(environ or {}),
            timeout=COMMAND_LIMIT_S,
            check=False,
        )

    def shell(self, script: str, *arguments: str | Path) -> str:
        """Run a shell script of the user's that succeeds; returns what it printed."""
        done = self.execute("bash", "-euc", script, "bash", *map(str, arguments))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def begin_shell(self, script: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Begin a shell script of the user's; returns when it has printed an empty line."""
        program = subprocess.Popen(
            self.command("bash", "-euc", script, "bash", *map(str, arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=self.variables(),
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "\n"
        return program

    def s3mgr(
        self, *arguments: str | Path, endpoint: Endpoint | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``s3mgr ARGUMENTS`` as the user; succeeds."""
        environ = {"S3MGR_HOST": f"unix://{self.socket}"}
        if endpoint is not None:
            environ |= {
                "AWS_ACCESS_KEY_ID": endpoint.access_key,
                "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
                "AWS_ENDPOINT_URL_S3": endpoint.url,
            }
        done = self.execute(str(SCRIPTS / "s3mgr"), *map(str, arguments), environ=environ)
        assert done.returncode == 0, done.stderr
        return done

    def mount_as_user(self, endpoint: Endpoint, bucket: str) -> Path:
        """Mount *bucket* as ``m`` on a directory of the user's."""
        directory = self.mountpoint("m")
        self.shell('mkdir -p "$1"', directory)
        self.s3mgr("mount", bucket, directory, "--name", "m", endpoint=endpoint)
        return directory

    def mountpoints(self) -> list[str]:
        """What is mounted in the user's namespace below `base`."""
        table = Path(f"/proc/{self.holder.pid}/mountinfo").read_text()
        points = [line.split()[4] for line in table.splitlines()]
        return [point for point in points if point.startswith(f"{self.base}/")]


@pytest.fixture
def user_daemon(lab: Lab) -> UserDaemon:
    daemon = UserDaemon(lab)
    lab.daemons.append(daemon)
    return daemon


@pytest.fixture
def bucket(ministack: Endpoint) -> Iterator[str]:
    client = ministack.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


def content(endpoint: Endpoint, bucket: str, key: str) -> bytes:
    client = endpoint.boto3()
    body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.close()
    return body


def test_an_ordinary_user_mounts_writes_reads_and_unmounts(
    user_daemon: UserDaemon, ministack: Endpoint, bucket: str
) -> None:
    """Everything runs as that user and belongs to them; a killed worker is noticed by no program."""
    daemon = user_daemon.start()
    info = daemon.api.info()
    assert info.user_mode
    directory = daemon.mount_as_user(ministack, bucket)
    printed = daemon.shell('cd "$1"; echo hello > file; cat file; stat -c %U:%a file .', directory)
    assert printed == "hello\nnobody:644\nnobody:755\n"
    assert content(ministack, bucket, "file") == b"hello\n"
    for pid in daemon.pids():
        owners = {line for line in _status(pid) if line.startswith(("Uid:", "Gid:"))}
        ids = {number for line in owners for number in line.split()[1:]}
        assert ids == {str(USER.pw_uid), str(USER.pw_gid)}, pid

    # A program has a file open and a working directory inside while the worker is replaced.
    old = daemon.worker_pid()
    program = daemon.begin_shell(
        'cd "$1"; exec 3>open; echo before >&3; echo; read -r; echo after >&3; exec 3>&-; cat open; pwd -P',
        directory,
    )
    daemon.kill_worker()
    out, _ = program.communicate("go\n", timeout=COMMAND_LIMIT_S)
    assert (program.returncode, out) == (0, f"before\nafter\n{directory}\n")
    assert daemon.wait_replaced(old) != old
    assert content(ministack, bucket, "open") == b"before\nafter\n"

    assert daemon.mountpoints() == [str(directory)]
    daemon.s3mgr("unmount", "m")
    assert daemon.mountpoints() == []
    assert daemon.stop() == 0


def test_an_unmount_from_outside_is_respected(
    user_daemon: UserDaemon, ministack: Endpoint, bucket: str
) -> None:
    """What was written is uploaded all the same, nothing is mounted behind the user's back, and one may mount again."""
    daemon = user_daemon.start()
    directory = daemon.mount_as_user(ministack, bucket)
    daemon.shell('echo first > "$1/file"; mkdir "$1/made"; fusermount3 -u "$1"', directory)
    mount = daemon.wait_state("unmounted")
    assert (mount.status.reason, mount.desired) == ("unmounted-outside", "unmounted")
    assert daemon.mountpoints() == []
    assert content(ministack, bucket, "file") == b"first\n"
    assert content(ministack, bucket, "made/") == b""
    daemon.s3mgr("mount", bucket, directory, "--name", "m", endpoint=ministack)
    assert daemon.shell('cat "$1/file"', directory) == "first\n"
    daemon.s3mgr("unmount", "m")


def test_a_user_s_mount_survives_worker_and_daemon(
    user_daemon: UserDaemon, ministack: Endpoint, bucket: str
) -> None:
    """Without any privilege: a program that has a file open goes on with the next daemon."""
    daemon = user_daemon.start()
    directory = daemon.mount_as_user(ministack, bucket)
    program = daemon.begin_shell(
        'cd "$1"; exec 3>open; echo 1 >&3; echo; read -r; echo 2 >&3; cat open', directory
    )
    daemon.kill_but_keepers()
    daemon.start()
    out, _ = program.communicate("\n", timeout=COMMAND_LIMIT_S)
    assert (program.returncode, out) == (0, "1\n2\n")
    daemon.s3mgr("unmount", "m")
    assert daemon.mountpoints() == []
    assert content(ministack, bucket, "open") == b"1\n2\n"
    wait_for("nobody keeps it", lambda: not daemon.keepers())


def test_a_mount_that_nobody_can_serve_any_more_goes(
    user_daemon: UserDaemon, ministack: Endpoint, bucket: str
) -> None:
    """Through fusermount3, when daemon, worker and keeper are dead."""
    daemon = user_daemon.start()
    directory = daemon.mount_as_user(ministack, bucket)
    daemon.kill_with_worker()
    for keeper in daemon.keepers():
        os.kill(keeper, signal.SIGKILL)
    wait_for("nothing is mounted", lambda: not daemon.mountpoints())
    wait_for("no process is left", lambda: not daemon.pids())
    assert os.listdir(directory) == []


def test_a_crash_of_everything_leaves_nothing_that_the_next_daemon_cannot_mend(
    user_daemon: UserDaemon, ministack: Endpoint, bucket: str
) -> None:
    """The dead mount goes, the mount comes back, and what was written but not closed is uploaded."""
    daemon = user_daemon.start()
    directory = daemon.mount_as_user(ministack, bucket)
    program = daemon.begin_shell('exec 3>"$1/open"; echo kept >&3; echo; read -r', directory)
    daemon.kill_all()
    program.communicate("\n", timeout=COMMAND_LIMIT_S)
    daemon.start()
    daemon.wait_state("mounted")
    daemon.s3mgr("flush", "m")
    assert daemon.mountpoints() == [str(directory)]
    assert content(ministack, bucket, "open") == b"kept\n"
    assert daemon.shell('cat "$1/open"', directory) == "kept\n"
    daemon.s3mgr("unmount", "m")


def test_client_and_daemon_meet_where_the_user_has_their_files(user_daemon: UserDaemon) -> None:
    """Without any option: state, cache and socket in the XDG directories, closed to others."""
    daemon = user_daemon
    daemon.start_as()
    done = wait_for(
        "the client finds the daemon",
        lambda: daemon.execute(str(SCRIPTS / "s3mgr"), "ls", "--json").returncode == 0,
    )
    assert done
    socket = daemon.runtime / "s3mgr" / "s3mgr.sock"
    state = daemon.base / "home" / ".local" / "state" / "s3mgr"
    cache = daemon.base / "home" / ".cache" / "s3mgr"
    assert socket.stat().st_mode & 0o777 == 0o600
    for path in (socket, state, state / "state.db", cache):
        assert path.stat().st_uid == USER.pw_uid
        assert path.stat().st_mode & 0o077 == 0, path
    assert daemon.stop() == 0


def _status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()
