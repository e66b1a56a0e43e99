"""Loads of others, for a moment each, on one real mount: what they verify must hold, and S3 must have everything after it."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

from s3mgrd.fuse import syscalls
from tests.conformance.parsing import stress_outcome
from tests.conformance.results import Outcome
from tests.conformance.tools import stress_command
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket

STRESSORS: Final = (
    "access",
    "chmod",
    "dentry",
    "dir",
    "fpunch",
    "fstat",
    "hdd",
    "iomix",
    "lockf",
    "open",
    "rename",
    "seek",
    "symlink",
    "utime",
)
"""Of stress-ng: those that change names, attributes and contents, and look whether they find them again."""
LIMIT_S: Final = 100
LOADFILE: Final = Path("/usr/share/dbench/client.txt")


@pytest.fixture(scope="module")
def served(ministack: Endpoint, module_lab: Lab) -> tuple[Daemon, Path]:
    daemon = module_lab.daemon()
    bucket = make_bucket(ministack.boto3())
    return daemon, daemon.mount(ministack, bucket, "m", "-o", "attributes=full")


def _ran(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=cwd,
    )


def _run(*command: str | Path) -> str:
    done = _ran(*command)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.parametrize("stressor", STRESSORS)
def test_what_stress_ng_writes_it_finds_again(served: tuple[Daemon, Path], stressor: str) -> None:
    daemon, root = served
    directory = root / stressor
    directory.mkdir()
    output = _run(
        *(
            "stress-ng",
            f"--{stressor}",
            "1",
            "--timeout",
            "1",
            "--temp-path",
            directory,
            "--verify",
        ),
        *("--hdd-bytes", "8m", "--iomix-bytes", "4m", "--seek-size", "4m"),
    )
    assert "fail:" not in output
    assert "skipping" not in output
    daemon.flush()
    assert daemon.show().status.state == "mounted"


def test_a_file_servers_clients_are_served(served: tuple[Daemon, Path]) -> None:
    daemon, root = served
    (root / "dbench").mkdir()
    assert "Throughput" in _run("dbench", "-t", "5", "-D", root / "dbench", "-c", LOADFILE, "2")
    daemon.flush()
    assert daemon.show().status.state == "mounted"


def test_a_stressor_does_not_fail_for_the_want_of_fallocate_alone(tmp_path: Path) -> None:
    """A ramfs has none either, so what the conformance run blames on a mount must not happen there: one time in three it did."""
    directory = tmp_path / "ramfs"
    directory.mkdir()
    syscalls.mount("none", str(directory), "ramfs", 0, "")
    try:
        for _ in range(12):
            done = _ran(*stress_command("fsize", directory, 1), cwd=tmp_path)
            assert stress_outcome(done.returncode, done.stdout) == (Outcome.PASSED, "")
    finally:
        syscalls.unmount(str(directory), lazy=True)
