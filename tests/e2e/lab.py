"""Real daemons with directories of their own, and nothing left behind: no process, no mount, no file.

A `Lab` makes `Daemon`s. Tests are ordinary functions: daemon, command line and programs are other processes, and
so is the test to them. What waits here asks the daemon's API until a deadline; nothing is awaited by sleeping alone.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from s3mgr.api import Client
from s3mgr.errors import ClientError
from s3mgr.schema import Mount
from s3mgrd.fuse import syscalls
from s3mgrd.fuse.mountinfo import MountEntry, read_mountinfo
from tests.descriptors import held_by
from tests.servers.endpoint import Endpoint

T = TypeVar("T")

START_LIMIT_S: Final = 30.0
COMMAND_LIMIT_S: Final = 120.0
STOP_LIMIT_S: Final = 60.0
POLL_S: Final = 0.02
"""Between two looks at what another process does; nothing tells us."""
KEEPER: Final = "s3mgr:messenger"
CHECKOUT: Final = Path(__file__).parents[2]
SCRIPTS: Final = Path(sys.executable).parent
DEFAULTS: Final = {
    "worker_user": "nobody",
    "restart_limit": 1000,
    "restart_window_s": 60.0,
    "restart_backoff_s": 0.01,
    "restart_backoff_max_s": 0.02,
    "shutdown_timeout_s": 30.0,
}
"""Workers are killed on purpose, often; everything else is as the daemon has it."""


def wait_for(
    what: str,
    probe: Callable[[], T | None],
    *,
    limit_s: float = START_LIMIT_S,
    poll_s: float = POLL_S,
) -> T:
    """Return the first truthy answer of *probe*; fails with *what* after *limit_s*."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(poll_s)


class Daemon:
    """One `s3mgrd` with state, cache, socket and mountpoints below `base`; may be started again and again.

    Attributes:
        api: the client library on its socket.
        environ: variables that the daemon gets when it is started.
        program: what is started.
        pass_fds: descriptors that it gets when it is started.
        name: distinguishes the daemons of one test.
    """

    def __init__(self, lab: "Lab", name: str, config: Mapping[str, object]) -> None:
        self.name: Final = name
        self.base: Final = lab.base / name
        self.state_dir: Final = self.base / "state"
        self.log: Final = self.base / "daemon.log"
        self.socket: Final = self.base / "s3mgr.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}
        self.program: Sequence[str | Path] = (SCRIPTS / "s3mgrd",)
        self.pass_fds: Sequence[int] = ()
        self._logs: list[tuple[str, str]] = []
        for directory in (self.base, self.base / "mnt", self.base / "home"):
            directory.mkdir(mode=0o755)
        self.config_file: Final = self.base / "s3mgr.toml"
        values = {
            "state_dir": str(self.state_dir),
            "cache_dir": str(self.base / "cache"),
            "socket": str(self.socket),
            **DEFAULTS,
            **config,
        }
        # A JSON string, number or list of strings is a TOML one.
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
        self.config_file.write_text("".join(lines))
        self.api: Final = Client.connect(f"unix://{self.socket}", environ={})

    # The process

    def start(self, *, wait: bool = True) -> "Daemon":
        """Start it; with *wait*, return when its API answers."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.program, "--config", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(self.base / "home") | self.environ,
                pass_fds=self.pass_fds,
            )
        if wait:
            wait_for("the daemon's API answers", self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended: {self.process.returncode}"
        try:
            self.api.info()
        except ClientError:
            return False
        return True

    def stop(self, *, limit_s: float = STOP_LIMIT_S) -> int:
        """SIGTERM, wait, and return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def kill(self) -> None:
        """SIGKILL the daemon alone; its workers live on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """SIGKILL everything together: daemon, zygote, workers, and what keeps their connections."""
        self._kill(self.pids)

    def kill_but_keepers(self) -> None:
        """SIGKILL daemon, zygote and workers together."""
        self._kill(lambda: sorted(set(self.pids()) - set(self.keepers())))

    def _kill(self, find: Callable[[], list[int]]) -> None:
        pids = set(find())
        for pid in pids:
            _signal(pid, signal.SIGSTOP)  # none of them sees another die
        for pid in pids | set(find()):
            _signal(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        wait_for("the killed processes are gone", lambda: not find())

    def keepers(self) -> list[int]:
        """The workers' messengers, which keep the connections when the workers die."""
        return [pid for pid in self.pids() if _name_of(pid) == KEEPER]

    def pids(self) -> list[int]:
        """Every living process that has a file of this daemon's open: itself, its zygote, its workers."""
        return processes_with_files_below(self.base)

    # The command line

    def run(
        self,
        *arguments: str,
        check: bool = True,
        endpoint: Endpoint | None = None,
        environ: Mapping[str, str] | None = None,
        limit_s: float = COMMAND_LIMIT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``s3mgr ARGUMENTS`` against this daemon, with the keys of *endpoint* in the environment."""
        variables = _environment(self.base / "home") | {"S3MGR_HOST": f"unix://{self.socket}"}
        if endpoint is not None:
            variables |= {
                "AWS_ACCESS_KEY_ID": endpoint.access_key,
                "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
                "AWS_ENDPOINT_URL_S3": endpoint.url,
                "AWS_REGION": endpoint.region,
            }
        done = subprocess.run(
            [SCRIPTS / "s3mgr", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=variables | dict(environ or {}),
            cwd=self.base / "home",
            timeout=limit_s,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"s3mgr {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    def mountpoint(self, name: str) -> Path:
        """Path of the mountpoint of mount *name*, below `base`; `mount` makes it."""
        return self.base / "mnt" / name

    def mount(self, endpoint: Endpoint, bucket: str, name: str = "m", *arguments: str) -> Path:
        """``s3mgr mount BUCKET`` on a directory of its own; returns it."""
        directory = self.mountpoint(name)
        if not any(entry.mountpoint == str(directory) for entry in read_mountinfo()):
            directory.mkdir(exist_ok=True)
        self.run("mount", bucket, str(directory), "--name", name, *arguments, endpoint=endpoint)
        return directory

    def show(self, name: str = "m") -> Mount:
        """Spec and status of a mount, as ``s3mgr show NAME --json`` gives it, through the API."""
        return self.api.get_mount(name)

    def flush(self, name: str = "m") -> None:
        """``s3mgr flush NAME``: everything is in S3 afterwards, or the test fails."""
        self.run("flush", name)

    # Workers

    def worker_pid(self, name: str = "m") -> int:
        """Pid of the worker that serves *name*; waits until there is one and the mount is up."""
        return wait_for(f"'{name}' is mounted", lambda: self._serving_pid(name))

    def _serving_pid(self, name: str) -> int | None:
        try:
            status = self.show(name).status
        except ClientError:
            return None
        is_up = status.state == "mounted" or status.reason == "uploads-paused"
        return status.worker_pid if is_up else None

    def kill_worker(self, name: str = "m") -> int:
        """SIGKILL the worker of *name* once it serves; returns its pid."""
        pid = self.worker_pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_with_worker(self, name: str = "m") -> None:
        """SIGKILL the daemon, and then the worker of *name*, whose connection its keeper has from then on."""
        worker = self.worker_pid(name)
        self.kill()
        os.kill(worker, signal.SIGKILL)

    def wait_replaced(self, old_pid: int, name: str = "m") -> int:
        """Wait until another worker than *old_pid* serves *name*; returns its pid."""

        def replaced() -> int | None:
            pid = self._serving_pid(name)
            return pid if pid != old_pid else None

        return wait_for(f"the worker {old_pid} of '{name}' is replaced", replaced)

    def wait_state(self, state: str, name: str = "m", *, limit_s: float = START_LIMIT_S) -> Mount:
        """Wait until *name* is in *state*."""

        def there() -> Mount | None:
            mount = self.show(name)
            return mount if mount.status.state == state else None

        return wait_for(f"'{name}' is {state}", there, limit_s=limit_s)

    # What is left

    def mounts(self) -> list[MountEntry]:
        """This daemon's lines in mountinfo."""
        return [e for e in read_mountinfo() if e.mountpoint.startswith(f"{self.base}/")]

    def logs(self) -> list[tuple[str, str]]:
        """Return a title and a text for the daemon's log and each worker's, also after the end."""
        if self.base.exists():
            workers = sorted((self.state_dir / "logs").glob("*.log*"))
            self._logs = [(f"{self.name}: s3mgrd", _read(self.log))]
            self._logs += [(f"{self.name}: worker {path.name}", _read(path)) for path in workers]
        return self._logs

    def end(self) -> None:
        """End everything that is this daemon's, however it is."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for entry in reversed(self.mounts()):
            with suppress(OSError):
                syscalls.abort_connection(entry.connection)
            with suppress(OSError):
                syscalls.unmount(entry.mountpoint, lazy=True)
        for pid in self.pids():
            _signal(pid, signal.SIGKILL)
        wait_for("no process is left", lambda: not self.pids())


class Lab:
    """Makes daemons and programs, and ends them all."""

    def __init__(self) -> None:
        # Not tmp_path: a socket's path holds 107 bytes, and other users must get to their mountpoints.
        self.base: Final = Path(tempfile.mkdtemp(prefix="s3mgr-e2e-", dir="/tmp"))
        self.base.chmod(0o755)
        self.daemons: Final[list[Daemon]] = []
        self._programs: Final[list[subprocess.Popen[bytes]]] = []

    def daemon(self, name: str = "d", *, start: bool = True, **config: object) -> Daemon:
        """Make a daemon; *config* are keys of its configuration file."""
        made = Daemon(self, name, config)
        self.daemons.append(made)
        return made.start() if start else made

    def directory(self, name: str) -> Path:
        """Make a local directory."""
        path = self.base / name
        path.mkdir(parents=True)
        return path

    def program(
        self, *command: str | os.PathLike[str], cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that is killed at the test's end if it still runs then."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd or "/",
            env=program_environment(self.base),
        )
        self._programs.append(process)
        return process

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self._programs:
            if process.poll() is None:
                process.kill()
        for daemon in self.daemons:
            daemon.end()
            daemon.logs()
        for process in self._programs:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):  # what is buffered for a program that is gone
                        pipe.close()
        left = [e.mountpoint for e in read_mountinfo() if e.mountpoint.startswith(f"{self.base}/")]
        assert not left, f"still mounted: {left}"
        shutil.rmtree(self.base)


def program_environment(home: Path) -> dict[str, str]:
    """Environment of programs that work in a mount: nothing of this user's configuration."""
    return _environment(home) | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }


def run(
    *command: str | os.PathLike[str],
    cwd: Path | None = None,
    input: bytes | None = None,
    limit_s: float = COMMAND_LIMIT_S,
) -> str:
    """Run a program that succeeds; returns what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd or "/",
        input=input if input is not None else b"",
        capture_output=True,
        timeout=limit_s,
        env=program_environment(Path("/nonexistent")),
        check=False,
    )
    words = " ".join(os.fspath(word) for word in command)
    assert done.returncode == 0, f"{words}: {done.stderr.decode(errors='replace')[-4000:]}"
    return done.stdout.decode(errors="surrogateescape")


def shell(script: str, *arguments: str | os.PathLike[str], cwd: Path | None = None) -> str:
    """Run a bash script that succeeds (``set -eu -o pipefail``); *arguments* are $1, $2."""
    return run("bash", "-c", f"set -eu -o pipefail\n{script}", "bash", *arguments, cwd=cwd)


def processes_with_files_below(directory: Path) -> list[int]:
    """Return the living processes, not this one, that have a regular file or log below *directory* open.

    Links in /proc are read and nothing is opened, so that a mount that nobody serves hangs nobody.
    """
    found = []
    wanted = f"{directory}/"
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            if any(
                target.startswith(wanted) and not target.startswith(f"{wanted}mnt/")
                for _, target in held_by(int(entry))
            ):
                found.append(int(entry))
    return found


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def _environment(home: Path) -> dict[str, str]:
    """Keep of this process's environment only what programs need to be found."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "HOME": str(home), "LC_ALL": "C.UTF-8"}


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
