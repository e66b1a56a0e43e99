"""The file systems that the tools run on: how each is mounted with POSIX attributes kept, watched, and ended.

Rivals are what is found on PATH. Each is mounted by its documented options for attributes, with its caches as they come.
"""

import os
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3mgr import __version__
from s3mgrd.fuse import syscalls
from s3mgrd.fuse.mountinfo import read_mountinfo
from tests.e2e.lab import Lab, wait_for
from tests.programs import version_of
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket

MOUNT_LIMIT_S: Final = 30.0
FLUSH_LIMIT_S: Final = 300.0
RIVAL_STOP_LIMIT_S: Final = 120.0
PROBE_LIMIT_S: Final = 20.0
KILL_LIMIT_S: Final = 10.0
PART_MIB: Final = 64
"""Of all mounts that can be told: MiniStack puts parts together in time that grows with the square of their number."""
OPTIONS: Final = (
    *("-o", "attributes=full", "-o", f"part_size_bytes={PART_MIB << 20}"),
    # And a server in one Python process takes a while for a file of 2 GiB.
    *("-o", "retry_deadline_s=900", "-o", "read_timeout_s=300"),
)
"""Of s3mgr's mounts."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended. Attributes: `status`: None, it was killed `hung_s` after its start; `output`: of both streams."""

    status: int | None
    output: str
    hung_s: int = 0


class Peer(ABC):
    """One way to mount a bucket."""

    name: str

    @abstractmethod
    def version(self) -> str:
        """Say which version is there; empty: none."""

    @abstractmethod
    @contextmanager
    def mounted(self, endpoint: Endpoint) -> Iterator["Site"]:
        """Mount a new bucket. Nothing is left behind, however it ends."""


class Site:
    """One mounted bucket. It may hang at any time: whatever looks at it is another process, which `run` can end."""

    def __init__(self, root: Path) -> None:
        self.root: Final = root

    def run(
        self,
        command: Sequence[str | Path],
        limit_s: float,
        *,
        environ: Mapping[str, str] | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
    ) -> Done:
        """Run a program that works here, in a process group of its own of which nothing is left.

        What waits for an answer of a file system that hangs cannot be killed: then the mount is aborted, too.
        *log* keeps what was printed.
        """
        began = time.monotonic()
        with log.open("w+b") if log else tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                ["nice", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
                cwd=cwd,
                start_new_session=True,
            )
            status: int | None = None
            try:
                status = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                pass
            finally:
                self._end(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
        return Done(status, text, 0 if status is not None else round(time.monotonic() - began))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.abort()
            process.wait(KILL_LIMIT_S)

    def abort(self) -> None:
        """Have the kernel refuse every request to the mount, also those that wait."""
        for entry in read_mountinfo():
            if entry.mountpoint == str(self.root) and entry.fs_type.startswith("fuse"):
                with suppress(OSError):
                    syscalls.abort_connection(entry.connection)

    def trouble(self) -> str:
        """Say why nothing can be done here any more; empty: all is well."""
        done = self.run(["stat", "--file-system", "--format=%T", self.root], PROBE_LIMIT_S)
        if done.status is None:
            return f"the mount does not answer within {PROBE_LIMIT_S:g} s"
        if done.status:
            return done.output.strip().rpartition(": ")[2]
        return "" if "fuse" in done.output else "nothing is mounted any more"

    def after(self) -> list[str]:
        """Say what is wrong once a tool is through."""
        return []


class S3mgr(Peer):
    """This project, by its own commands."""

    name = "s3mgr"

    def version(self) -> str:
        return __version__

    @contextmanager
    def mounted(self, endpoint: Endpoint) -> Iterator[Site]:
        lab = Lab()
        try:
            site = _OwnSite(lab, endpoint)
            yield site
        finally:
            lab.end()


class _OwnSite(Site):
    def __init__(self, lab: Lab, endpoint: Endpoint) -> None:
        self._daemon = lab.daemon()
        bucket = make_bucket(endpoint.boto3())
        super().__init__(self._daemon.mount(endpoint, bucket, "m", *OPTIONS))

    def after(self) -> list[str]:
        """Everything must reach S3, by one worker, without an error that nobody foresaw."""
        flushed = self._daemon.run("flush", "m", check=False, limit_s=FLUSH_LIMIT_S)
        wrong = [] if flushed.returncode == 0 else [f"s3mgr flush: {flushed.stderr.strip()}"]
        if self._daemon.show().status.state != "mounted":
            wrong.append(f"the mount is {self._daemon.show().status.state}")
        for title, text in self._daemon.logs():
            lines = text.splitlines()
            wrong += [
                f"{title}: {line}"
                for line in lines
                if "unforeseen" in line or line.startswith("Traceback") or "worker died" in line
            ]
        return wrong


class Rival(Peer):
    """A program that serves a mount in the foreground."""

    program: str
    version_option = "--version"

    @abstractmethod
    def command(self, endpoint: Endpoint, bucket: str, root: Path, state: Path) -> Sequence[str]:
        """Return what mounts *bucket* on *root*; *state* is for files of its own."""

    def version(self) -> str:
        return version_of(self.program, self.version_option)

    @contextmanager
    def mounted(self, endpoint: Endpoint) -> Iterator[Site]:
        lab = Lab()
        lab.base.chmod(0o755)
        root, state = lab.directory("mnt/m"), lab.directory("state")
        bucket = make_bucket(endpoint.boto3())
        with (state / "log").open("wb") as log:
            process = subprocess.Popen(
                self.command(endpoint, bucket, root, state),
                env=self._environment(endpoint, state),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=state,
            )
        try:
            wait_for(
                f"{self.name} mounts",
                lambda: _is_mounted(root) or process.poll() is not None,
                limit_s=MOUNT_LIMIT_S,
            )
            if process.poll() is not None:
                text = (state / "log").read_text(errors="replace")
                raise RuntimeError(f"{self.name} did not mount: {text[-2000:]}")
            yield Site(root)
        finally:
            with suppress(OSError):
                syscalls.unmount(str(root), lazy=True)
            try:
                process.wait(RIVAL_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lab.end()

    def _environment(self, endpoint: Endpoint, state: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(state),
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
            "AWS_REGION": endpoint.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def _is_mounted(root: Path) -> bool:
    return any(entry.mountpoint == str(root) for entry in read_mountinfo())


class S3fs(Rival):
    """s3fs-fuse: attributes in metadata."""

    name = program = "s3fs"

    def command(self, endpoint: Endpoint, bucket: str, root: Path, state: Path) -> Sequence[str]:
        keys = state / "keys"
        keys.write_text(f"{endpoint.access_key}:{endpoint.secret_key}")
        keys.chmod(0o600)
        options = f"url={endpoint.url},use_path_request_style,passwd_file={keys},allow_other"
        options += f",multipart_size={PART_MIB}"
        return ["s3fs", bucket, str(root), "-f", "-o", options]


class Geesefs(Rival):
    """geesefs: attributes, special files and times on request."""

    name = program = "geesefs"

    def command(self, endpoint: Endpoint, bucket: str, root: Path, state: Path) -> Sequence[str]:
        return [
            *("geesefs", "-f", "--endpoint", endpoint.url, "--region", endpoint.region),
            *("--enable-perms", "--enable-specials", "--enable-mtime", "--fsync-on-close"),
            *("--part-sizes", f"{PART_MIB}:10000"),
            *("-o", "allow_other,default_permissions", bucket, str(root)),
        ]


class Rclone(Rival):
    """rclone mount: no attributes but times; writes through a cache on disk."""

    name = program = "rclone"

    def command(self, endpoint: Endpoint, bucket: str, root: Path, state: Path) -> Sequence[str]:
        remote = (
            f":s3,provider=Other,env_auth=true,region={endpoint.region},"
            f"endpoint='{endpoint.url}',force_path_style=true,"
            f"chunk_size={PART_MIB}Mi:{bucket}"
        )
        return [
            *("rclone", "mount", remote, str(root), "--config", "/dev/null"),
            *("--vfs-cache-mode", "full", "--cache-dir", f"{state}/cache"),
            *("--vfs-write-back", "0s", "--vfs-links", "--allow-other", "--default-permissions"),
        ]


RIVALS: Final[tuple[Rival, ...]] = (S3fs(), Geesefs(), Rclone())
