"""The mounts that are compared: how each is started, by its documented way to be fast, restarted and ended.

Rivals are what is found on PATH. Each is one process tree, so that all it takes of the memory can be counted.
"""

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from s3mgr import __version__
from s3mgrd.fuse import syscalls
from tests.e2e.lab import Daemon, Lab, wait_for
from tests.programs import version_of
from tests.servers.endpoint import Endpoint

MOUNT_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 300.0
TTL_S: Final = 30
"""For how long names are believed, by all who can be told: s3mgr's own default."""
STREAMS: Final = 16
"""Transfers at a time, of those who have to be told."""


class Peer(ABC):
    """One way to mount a bucket, for one bucket: made anew for each comparison.

    Attributes:
        name: in the table.
        is_ours: whose figures are set against the best of the others.
    """

    name: str
    is_ours = False

    def __init__(self, lab: Lab, endpoint: Endpoint, bucket: str) -> None:
        self.lab: Final = lab
        self.endpoint: Final = endpoint
        self.bucket: Final = bucket

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Say which version is there; empty: none."""

    @property
    @abstractmethod
    def root(self) -> Path:
        """The mounted directory."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process that all others of it descend from."""

    @abstractmethod
    def start(self) -> None:
        """Mount the bucket; what was known before a `stop` may be used."""

    @abstractmethod
    def stop(self) -> None:
        """Unmount it, once everything is in S3."""


class S3mgr(Peer):
    """This project, by its own commands."""

    name = "s3mgr"
    is_ours = True
    options = ""

    def __init__(self, lab: Lab, endpoint: Endpoint, bucket: str) -> None:
        super().__init__(lab, endpoint, bucket)
        self._daemon: Final[Daemon] = lab.daemon(start=False)
        self._is_known = False

    @classmethod
    def version(cls) -> str:
        return __version__

    @property
    def root(self) -> Path:
        return self._daemon.mountpoint("m")

    @property
    def pid(self) -> int:
        assert self._daemon.process is not None
        return self._daemon.process.pid

    def start(self) -> None:
        self._daemon.start()
        if not self._is_known:
            options = ("-o", self.options) if self.options else ()
            self._daemon.mount(self.endpoint, self.bucket, "m", *options)
            self._is_known = True
        self._daemon.worker_pid("m")

    def stop(self) -> None:
        self._daemon.stop(limit_s=STOP_LIMIT_S)


class S3mgrWriteback(S3mgr):
    """The same, where close() does not wait for S3."""

    name = "s3mgr-writeback"
    options = "write_mode=writeback"


class Rival(Peer):
    """A program that serves a mount in the foreground."""

    program: str
    version_option = "--version"

    def __init__(self, lab: Lab, endpoint: Endpoint, bucket: str) -> None:
        super().__init__(lab, endpoint, bucket)
        self._root: Final = lab.directory("mnt/m")
        self.state: Final = lab.directory("state")
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return what mounts `bucket` on `root`; `state` is for files of its own."""

    @classmethod
    def version(cls) -> str:
        return version_of(cls.program, cls.version_option)

    @property
    def root(self) -> Path:
        return self._root

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        log = self.state / "log"
        with log.open("ab") as output:
            process = self._process = subprocess.Popen(
                self.command(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.state,
            )
        wait_for(
            f"{self.name} mounts",
            lambda: os.path.ismount(self.root) or process.poll() is not None,
            limit_s=MOUNT_LIMIT_S,
        )
        if process.poll() is not None:
            raise RuntimeError(f"{self.name} did not mount: {log.read_text()[-2000:]}")

    def stop(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + STOP_LIMIT_S
        while os.path.ismount(self.root) and time.monotonic() < deadline:
            try:
                syscalls.unmount(str(self.root), lazy=False)
            except OSError:  # it still has something open, or says so
                time.sleep(0.1)
        with suppress(OSError):
            syscalls.unmount(str(self.root), lazy=True)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.state),
            "AWS_ACCESS_KEY_ID": self.endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": self.endpoint.secret_key,
            "AWS_REGION": self.endpoint.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class Mountpoint(Rival):
    """mountpoint-s3, by AWS: new files only, nothing kept."""

    name, program = "mountpoint-s3", "mount-s3"

    def command(self) -> Sequence[str]:
        options = ["--endpoint-url", self.endpoint.url, "--region", self.endpoint.region]
        options += ["--force-path-style", "--allow-delete", "--allow-overwrite", "--allow-other"]
        options += ["--metadata-ttl", str(TTL_S), "--upload-checksums", "off"]
        return ["mount-s3", "--foreground", *options, self.bucket, str(self.root)]


class Geesefs(Rival):
    """geesefs, by Yandex: everything in memory, written behind close()."""

    name = program = "geesefs"

    def command(self) -> Sequence[str]:
        options = ["--endpoint", self.endpoint.url, "--region", self.endpoint.region]
        options += ["--stat-cache-ttl", f"{TTL_S}s", "--memory-limit", "2000", "-o", "allow_other"]
        return ["geesefs", "-f", *options, self.bucket, str(self.root)]


class Goofys(Rival):
    """goofys: what geesefs began as."""

    name = program = "goofys"

    def command(self) -> Sequence[str]:
        options = ["--endpoint", self.endpoint.url, "--region", self.endpoint.region]
        options += ["--stat-cache-ttl", f"{TTL_S}s", "--type-cache-ttl", f"{TTL_S}s"]
        return ["goofys", "-f", *options, "-o", "allow_other", self.bucket, str(self.root)]


class Rclone(Rival):
    """rclone mount, with its whole cache on disk, which writes behind close()."""

    name = program = "rclone"

    def command(self) -> Sequence[str]:
        remote = (
            f":s3,provider=Other,env_auth=true,region={self.endpoint.region},"
            f"endpoint='{self.endpoint.url}',force_path_style=true:{self.bucket}"
        )
        options = ["--config", "/dev/null", "--allow-other", "--use-server-modtime"]
        options += ["--dir-cache-time", f"{TTL_S}s", "--cache-dir", str(self.state / "cache")]
        options += ["--vfs-cache-mode", "full", "--vfs-write-back", "0s"]
        options += ["--vfs-read-chunk-streams", str(STREAMS), "--vfs-read-chunk-size", "4M"]
        options += ["--transfers", str(STREAMS)]
        return ["rclone", "mount", remote, str(self.root), *options]


class S3fs(Rival):
    """s3fs, with its cache on disk."""

    name = program = "s3fs"

    def command(self) -> Sequence[str]:
        keys = self.state / "keys"
        keys.write_text(f"{self.endpoint.access_key}:{self.endpoint.secret_key}")
        keys.chmod(0o600)
        options = f"url={self.endpoint.url},use_path_request_style,passwd_file={keys},allow_other"
        options += f",use_cache={self.state}/cache,parallel_count={STREAMS},multireq_max=64"
        options += f",max_stat_cache_size=1000000,stat_cache_expire={TTL_S},enable_noobj_cache"
        return ["s3fs", self.bucket, str(self.root), "-f", "-o", options]


PEERS: Final[Sequence[type[Peer]]] = (
    S3mgr,
    S3mgrWriteback,
    Mountpoint,
    Geesefs,
    Goofys,
    Rclone,
    S3fs,
)
