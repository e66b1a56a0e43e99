"""Walk a person through the main job of s3mgr with real commands, each shown before its output.

Started by `packaging/demo`, which makes the virtual environment first. Everything lives in one throw-away
directory: an S3 endpoint on loopback (MiniStack), an s3mgrd with its own state, and a mounted bucket. However
the walk ends, by success, failure or Ctrl-C, the mount, the processes and the directory are gone afterwards;
with ``--keep`` they stay until ``--stop``.

Only processes that were started here are ended, each by its pid.
"""

import argparse
import contextlib
import ctypes
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
SCRIPTS: Final = Path(sys.executable).parent

BUCKET: Final = "demo"
LARGE_FILE_BYTES: Final = 256 << 20
KILL_AFTER_BYTES: Final = LARGE_FILE_BYTES // 4

START_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 120.0  # the daemon drains first
POLL_S: Final = (
    0.02  # what is polled here, a socket that appears or a file position, can not be waited for
)

PR_SET_CHILD_SUBREAPER: Final = 36


def boto3_command(code: str) -> str:
    """Return the command that runs *code* on an S3 client of another make; it may hold no double quote."""
    return f"""python3 -c "import boto3; s3 = boto3.client('s3'); {code}\""""


LIST_OBJECTS: Final = boto3_command(
    f"[print(o['Size'], o['Key']) for o in s3.list_objects_v2(Bucket='{BUCKET}')['Contents']]"
)


class DemoFailedError(Exception):
    """A step did not do what it should; the message says which."""


def record_path() -> Path:
    """Return where ``--keep`` leaves what ``--stop`` needs: one kept demo per user."""
    if os.getuid() == 0:
        return Path("/run/s3mgr-demo.json")
    return Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp"), f"s3mgr-demo-{os.getuid()}.json")  # noqa: S108 (checked in read_record)


def start_time(pid: int) -> str | None:
    """Return the kernel's start time of *pid*, which tells a process from a later one with its number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def children() -> list[int]:
    """Return the pids of this process's living children, orphans that were given to it included."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "ZX":
                found.append(int(entry.name))
    return found


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Wait until *pid* has ended, whoever its parent is."""
    deadline = time.monotonic() + timeout_s
    while start_time(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def end_process(pid: int, timeout_s: float) -> None:
    """Ask *pid* to end, and end it when it has not after *timeout_s*."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if not wait_gone(pid, timeout_s):
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid, timeout_s)


def mounts_below(directory: Path) -> list[str]:
    """Return the mountpoints below *directory* from the kernel's table, without touching them."""
    table = Path("/proc/self/mountinfo").read_text()
    points = (line.split()[4] for line in table.splitlines())
    return sorted((p for p in points if Path(p).is_relative_to(directory)), reverse=True)


def remove_directory(directory: Path) -> None:
    """Remove *directory*; refuse while something is mounted below: that would delete objects."""
    for point in mounts_below(directory):
        command = ["umount", "--lazy"] if os.getuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*command, point], check=False)
    left = mounts_below(directory)
    if left:
        raise DemoFailedError(f"still mounted: {', '.join(left)}; {directory} stays")
    shutil.rmtree(directory, ignore_errors=True)


def plain_environment() -> dict[str, str]:
    """Return the environment without the person's own AWS settings, and with the commands of this checkout."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    return {**own, "PATH": f"{SCRIPTS}:{os.environ.get('PATH', os.defpath)}"}


class Screen:
    """What the person sees: headings, commands and their output."""

    def __init__(self) -> None:
        self._bold, self._plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        self._step = 0

    def heading(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        print(f"\n{self._bold}{self._step}. {text}{self._plain}", flush=True)

    def command(self, text: str) -> None:
        """Show a command as it is typed."""
        print(f"{self._bold}$ {text}{self._plain}", flush=True)

    def note(self, text: str) -> None:
        """Say something between the commands."""
        print(text, flush=True)


class Demo:
    """One endpoint, one daemon and one mount, in a directory of their own."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.directory = Path(tempfile.mkdtemp(prefix="s3mgr-demo."))
        if os.getuid() == 0:
            # The workers of a root daemon have a user of their own, who must get through to its files.
            self.directory.chmod(0o755)
        self.mountpoint = self.directory / "bucket"
        self.mountpoint.mkdir()
        self.processes: dict[str, int] = {}
        self.exports: dict[str, str] = {}

    # -- servers

    def start(self) -> None:
        """Start the endpoint and the daemon; every command of the walk finds both by its environment."""
        port = self._start_endpoint()
        control = self.directory / "s3mgr.sock"
        self.exports = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3MGR_HOST": f"unix://{control}",
        }
        state, cache = self.directory / "state", self.directory / "cache"
        command = f"s3mgrd --state-dir {state} --cache-dir {cache} --socket {control}"
        self._screen.command(f"{command} &")
        self._spawn("s3mgrd", shlex.split(command))
        self._wait_until_ready(control)

    def _start_endpoint(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
            bind = f"fd://{listener.fileno()}"
            command = ["python3", "-m", "hypercorn", "--workers", "0", "--bind", bind]
            # Only S3, its files in our directory, and no look at Docker.
            settings = {
                "SERVICES": "s3",
                "GATEWAY_PORT": str(port),
                "TMPDIR": str(self.directory),
                "DOCKER_HOST": f"unix://{self.directory}/no-docker",
                "LOG_LEVEL": "WARNING",
                "PYTHONPATH": str(Path(__file__).parent),
            }
            self._spawn(
                "endpoint",
                [*command, "demo_endpoint:app"],
                settings=settings,
                pass_fds=(listener.fileno(),),
            )
        self._screen.note(f"An S3 endpoint (MiniStack) listens on http://127.0.0.1:{port}.")
        return port

    def _spawn(
        self,
        name: str,
        command: list[str],
        *,
        settings: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        # A session of its own: Ctrl-C is for the walk, which then stops the daemon in order.
        with self.log_path(name).open("wb") as log:
            process = subprocess.Popen(
                command,
                env={**plain_environment(), **(settings or {})},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        self.processes[name] = process.pid

    def log_path(self, name: str) -> Path:
        """Return the log of the server *name*."""
        return self.directory / f"{name}.log"

    def _wait_until_ready(self, control: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers(control):
            if start_time(self.processes["s3mgrd"]) is None or time.monotonic() > deadline:
                raise DemoFailedError("s3mgrd did not become ready")
            time.sleep(POLL_S)

    @staticmethod
    def _answers(control: Path) -> bool:
        connection = http.client.HTTPConnection("localhost")
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(control))
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    # -- commands

    def environment(self) -> dict[str, str]:
        """Return the environment of the commands."""
        return {**plain_environment(), **self.exports}

    def run(self, command: str) -> None:
        """Show *command*, run it, and fail when it does."""
        self._screen.command(command)
        done = subprocess.run(
            ["/bin/sh", "-c", command], check=False, cwd=self.directory, env=self.environment()
        )
        if done.returncode != 0:
            raise DemoFailedError(f"exit status {done.returncode}: {command}")

    def output(self, command: str) -> str:
        """Run *command* without showing it and return what it prints."""
        return subprocess.run(
            shlex.split(command),
            check=True,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environment(),
        ).stdout

    def status(self) -> dict[str, Any]:
        """Return the mount's status as `s3mgr show --json` has it."""
        shown: dict[str, Any] = json.loads(self.output(f"s3mgr show {BUCKET} --json"))["status"]
        return shown

    def can_replace_workers(self) -> bool:
        """Tell whether this kernel lets a new worker take over the requests of a dead one."""
        version = json.loads(self.output("s3mgr version --verbose --json"))
        return bool(version["daemon"]["kernel"]["resend"])

    # -- the walk

    def walk(self) -> None:
        """Do the main job, up to the unmount."""
        screen, run = self._screen, self.run

        screen.heading("A bucket that another program has put a large file into")
        for name, value in self.exports.items():
            screen.command(f"export {name}={value}")
        run(f"head -c {LARGE_FILE_BYTES} /dev/urandom >disk.img")
        run(boto3_command(f"s3.create_bucket(Bucket='{BUCKET}')"))
        run(boto3_command(f"s3.upload_file('disk.img', '{BUCKET}', 'images/disk.img')"))

        screen.heading("Mount it")
        run(f"s3mgr mount {BUCKET} bucket --name {BUCKET}")
        run("ls -l bucket bucket/images")

        screen.heading("Copy a tree in; in S3 it is plain objects")
        run(f"cp -r {CHECKOUT}/docs {CHECKOUT}/packaging bucket/")
        run(f"diff -r {CHECKOUT}/docs bucket/docs && echo identical")
        run(LIST_OBJECTS)

        screen.heading("Edit a file in place; another client reads the change")
        run("sed -i '1s/.*/# Edited through the mount/' bucket/docs/operations.md")
        get = f"s3.get_object(Bucket='{BUCKET}', Key='docs/operations.md')"
        run(boto3_command(f"print({get}['Body'].read().decode().splitlines()[0])"))

        if self.can_replace_workers():
            screen.heading("Read the large file, and kill the worker that serves it meanwhile")
            self._kill_during_a_read()
        else:
            screen.heading("Kill the worker, and read the large file")
            self._kill_before_a_read()

        screen.heading("Look at it")
        run("s3mgr ls")
        run(f"s3mgr show {BUCKET}")

    def _kill_during_a_read(self) -> None:
        worker = self.status()["worker_pid"]
        self._screen.command("sha256sum bucket/images/disk.img &")
        reader = subprocess.Popen(
            ["sha256sum", "bucket/images/disk.img"],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            position = self._wait_until_read(reader, KILL_AFTER_BYTES)
            self._kill(worker)
            self._screen.note(f"  (the worker; the reader was at {position >> 20} MiB)")
            self._screen.command("wait")
            printed, _ = reader.communicate(timeout=READ_TIMEOUT_S)
        finally:
            if reader.poll() is None:
                reader.kill()
                reader.wait()
        print(printed, end="", flush=True)
        if reader.returncode != 0:
            raise DemoFailedError("the reader noticed")
        self._compare(printed.split()[0])
        self._screen.note(
            f"Equal. Worker {worker} has been replaced by {self.status()['worker_pid']}."
        )

    def _kill_before_a_read(self) -> None:
        self._screen.note(
            f"This kernel ({os.uname().release}) can not hand a dead worker's requests to the next; Linux 6.9 can. So "
            "the worker is killed while nobody reads, and the bucket is mounted anew."
        )
        worker = self.status()["worker_pid"]
        self._kill(worker)
        deadline = time.monotonic() + START_TIMEOUT_S
        while (now := self.status())["state"] != "mounted" or now["worker_pid"] == worker:
            if time.monotonic() > deadline:
                raise DemoFailedError("the worker was not replaced")
            time.sleep(POLL_S)
        self._compare(self.output("sha256sum bucket/images/disk.img").split()[0])
        self._screen.note(f"Equal. Worker {worker} has been replaced by {now['worker_pid']}.")

    def _kill(self, worker: int) -> None:
        self._screen.command(f"kill -9 {worker}")
        os.kill(worker, signal.SIGKILL)

    def _compare(self, digest: str) -> None:
        self.run("sha256sum disk.img")
        if self.output("sha256sum disk.img").split()[0] != digest:
            raise DemoFailedError("what was read is not what was stored")

    @staticmethod
    def _wait_until_read(reader: subprocess.Popen[str], size_bytes: int) -> int:
        """Wait until *reader* has got *size_bytes* through read(2), and return how many it got."""
        counters = Path(f"/proc/{reader.pid}/io")
        deadline = time.monotonic() + START_TIMEOUT_S
        while reader.poll() is None and time.monotonic() < deadline:
            got = int(counters.read_text().split()[1])  # rchar
            if got >= size_bytes:
                return got
            time.sleep(POLL_S / 10)
        raise DemoFailedError("the reader ended, or hung, before its worker could be killed")

    def unmount(self) -> None:
        """Unmount with drain and show that S3 has everything."""
        self._screen.heading("Unmount: what is not in S3 yet is uploaded first")
        self.run(f"s3mgr unmount {BUCKET}")
        self.run("ls -A bucket | wc -l")
        self.run("s3mgr ls")
        self.run(LIST_OBJECTS)

    # -- the end

    def keep(self) -> None:
        """Leave it running, and say how to use and to stop it."""
        record = {
            "directory": str(self.directory),
            "processes": {name: [pid, start_time(pid)] for name, pid in self.processes.items()},
        }
        path = record_path()
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            json.dump(record, file)
        exports = " ".join(f"{name}={value}" for name, value in self.exports.items())
        self._screen.note(
            f"\nIt goes on running. The bucket is mounted on {self.mountpoint}; for s3mgr and S3 clients:\n\n"
            f"  export PATH={SCRIPTS}:$PATH {exports}\n\n"
            f"Logs: {self.log_path('s3mgrd')}. Stop it and remove everything with:\n\n"
            f"  {CHECKOUT}/packaging/demo --stop"
        )

    def show_logs(self) -> None:
        """Print the end of the logs, for whoever has to find out what failed."""
        logs = [self.log_path(name) for name in self.processes]
        for log in (*logs, *sorted(self.directory.glob("state/logs/*.log"))):
            lines = log.read_text(errors="replace").splitlines()[-30:]
            print(f"--- end of {log}", *lines, sep="\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End what was started, in order, and remove the directory."""
        # The daemon goes first: it drains to the endpoint.
        for name in ("s3mgrd", "endpoint"):
            if name in self.processes:
                end_process(self.processes[name], STOP_TIMEOUT_S)
        # Whatever an unclean end has left was given to this process, the nearest subreaper.
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        remove_directory(self.directory)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Turn a polite signal into the exception that Ctrl-C raises."""
    raise KeyboardInterrupt


def start(*, keep: bool) -> int:
    """Walk through the main job."""
    if read_record() is not None:
        print("demo: one is kept already; stop it first: packaging/demo --stop", file=sys.stderr)
        return 1
    set_signals(interrupt)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    began = time.monotonic()
    demo = Demo(Screen())
    kept = False
    try:
        status = walk_and_report(demo, keep=keep)
        kept = keep and status == 0
    finally:
        if not kept:
            set_signals(signal.SIG_IGN)  # an impatient second Ctrl-C does not stop the cleaning up
            try:
                demo.close()
            except DemoFailedError as error:
                print(f"demo: {error}", file=sys.stderr)
                status = 1
    if status == 0 and not kept:
        print(f"\nDone in {time.monotonic() - began:.0f} s; everything is cleaned up.")
    return status


def set_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Have *handler* called for every signal by which a person ends a program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def walk_and_report(demo: Demo, *, keep: bool) -> int:
    """Do everything up to the cleaning up; return the exit status."""
    try:
        demo.start()
        demo.walk()
        if keep:
            demo.keep()
        else:
            demo.unmount()
    except (DemoFailedError, OSError, subprocess.SubprocessError) as error:
        print(f"\ndemo: failed: {error}", file=sys.stderr, flush=True)
        demo.show_logs()
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; cleaning up", file=sys.stderr, flush=True)
        return 130
    return 0


def read_record() -> tuple[Path, dict[str, int]] | None:
    """Return the directory and the living processes of a kept demo; None: there is none."""
    try:
        descriptor = os.open(record_path(), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor) as file:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            raise SystemExit(f"demo: {record_path()} is another user's; remove it")
        record = json.load(file)
    processes: dict[str, list[str | int]] = record["processes"]
    living = {n: int(p) for n, (p, began) in processes.items() if start_time(int(p)) == began}
    return Path(record["directory"]), living


def stop() -> int:
    """End a kept demo and remove what it left."""
    kept = read_record()
    if kept is None:
        print("demo: none is kept running")
        return 0
    directory, processes = kept
    for name in ("s3mgrd", "endpoint"):
        if name in processes:
            end_process(processes[name], STOP_TIMEOUT_S)
    try:
        remove_directory(directory)
    except DemoFailedError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    record_path().unlink(missing_ok=True)
    print("demo: stopped and removed")
    return 0


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(
        prog="packaging/demo",
        description="Mount a bucket of an S3 endpoint on loopback, use it with ordinary programs, kill its worker "
        "under a running read, unmount it, and clean up.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--keep", action="store_true", help="leave it running and say how to use it")
    which.add_argument("--stop", action="store_true", help="stop what --keep has left running")
    arguments = parser.parse_args()
    return stop() if arguments.stop else start(keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
