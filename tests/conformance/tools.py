"""Runs one tool on one mounted directory and returns its cases.

Every tool runs as root, niced, under a limit of time; one that does not end in time is killed, and the run has died.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance.parsing import parse_pjdfstest, shorten, stress_outcome
from tests.conformance.peers import Site
from tests.conformance.results import Case, Outcome

MOUNT_AGAIN: Final = """\
#!/bin/sh
# Tests remount what they run on. -i: by the kernel alone, without the file system's helper program; and once what
# was removed just before is forgotten, which FUSE tells the file system without waiting.
for _ in $(seq 40); do
    /bin/mount -i "$@" 2>/dev/null && exit
    sleep 0.05
done
exec /bin/mount -i "$@"
"""

PJDFSTEST_CONFIG: Final = """\
[features]
posix_fallocate = {{}}
rename_ctime = {{}}
utime_now = {{}}
utimensat = {{}}
[settings]
naptime = 0.01
allow_remount = {remount}
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""

REMOUNTING: Final = "erofs"
"""Part of the names of the tests that remount."""

FSX_SEED: Final = 20_260_731
FSX_COMMON: Final = """\
flen = 262144
nomsyncafterwrite = {nosync}
[opsize]
max = 65536
[weights]
read = 10
write = 10
truncate = 5
posix_fallocate = 1
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
"""
FSX_MAPPED: Final = "mapread = 10\nmapwrite = 10\ninvalidate = 1\n"
FSX_UNMAPPED: Final = "mapread = 0\nmapwrite = 0\ninvalidate = 0\n"
FSX_RARELY: Final = "close_open = 0.2\nfsync = 0.1\nfdatasync = 0.1\n"
FSX_OFTEN: Final = "close_open = 1\nfsync = 1\nfdatasync = 1\n"
FSX_SYNCED_SHARE: Final = 50
"""Every msync, fsync and close is an upload: the case that is full of them has so many times fewer operations."""

STRESSORS: Final = (
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dup",
    "fallocate",
    "fcntl",
    "fiemap",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "handle",
    "hdd",
    "io",
    "iomix",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "readahead",
    "rename",
    "revio",
    "seek",
    "sync-file",
    "symlink",
    "touch",
    "utime",
    "xattr",
    "aio",
)
"""stress-ng's stressors of files and directories; not those of other file systems, of chattr and of /proc, and not getdent,
which walks the whole machine and every mount on it."""


KILL_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Where the tools are, and how much they shall do.

    Attributes:
        programs: the directory that cargo installed into.
        scratch: for configurations and what tools leave.
    """

    programs: Path
    scratch: Path
    fsx_operations: int
    stress_s: int
    dbench_s: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class _Done:
    status: int | None
    output: str


def run_pjdfstest(box: Toolbox, site: Site) -> tuple[list[Case], str]:
    """Run the whole suite, then the tests that remount by themselves.

    A test that fails leaves files open in pjdfstest, and what has files open for writing is not mounted read-only.
    """
    bin_directory = box.scratch / "bin"
    bin_directory.mkdir(exist_ok=True)
    (bin_directory / "mount").write_text(MOUNT_AGAIN)
    (bin_directory / "mount").chmod(0o755)
    environ = {"PATH": f"{bin_directory}:{os.environ['PATH']}", "NO_COLOR": "1"}
    found: dict[str, Case] = {}
    for remount, names in (("false", ()), ("true", (REMOUNTING,))):
        config = box.scratch / "pjdfstest.toml"
        config.write_text(PJDFSTEST_CONFIG.format(remount=remount))
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="s3mgr-other-") as other:
            done = _run(
                box,
                [box.programs / "pjdfstest", "-c", config, "-p", site.root, "-s", other, *names],
                environ,
            )
        cases, wrong = parse_pjdfstest(done.output)
        found |= {case.name: case for case in cases}
        if done.status is None:
            wrong = "it did not end"
        if wrong:
            where = f"after {cases[-1].name}" if cases else "before its first test"
            return list(
                found.values()
            ), f"{where}, {len(found)} tests in: {site.trouble() or wrong}"
    return list(found.values()), ""


def run_fsx(box: Toolbox, site: Site) -> tuple[list[Case], str]:
    """Run random operations on one file: mapped, direct, and synced all the time."""
    shim = box.scratch / "direct.so"
    source = Path(__file__).with_name("direct.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source], check=True)
    fast, slow = FSX_COMMON.format(nosync="true"), FSX_COMMON.format(nosync="false")
    kinds: dict[str, tuple[str, int, Mapping[str, str]]] = {
        "mmap": (fast + FSX_MAPPED + FSX_RARELY, box.fsx_operations, {}),
        "direct": (
            fast + FSX_UNMAPPED + FSX_RARELY,
            box.fsx_operations,
            {"LD_PRELOAD": str(shim), "DIRECT_FILE": str(site.root / "fsx-direct")},
        ),
        "synced": (slow + FSX_MAPPED + FSX_OFTEN, box.fsx_operations // FSX_SYNCED_SHARE, {}),
    }
    cases: list[Case] = []
    for kind, (config, operations, environ) in kinds.items():
        (box.scratch / f"fsx-{kind}.toml").write_text(config)
        done = _run(
            box,
            [
                *(box.programs / "fsx", "-N", str(operations), "-S", str(FSX_SEED)),
                *("-f", box.scratch / f"fsx-{kind}.toml", "-P", box.scratch),
                site.root / f"fsx-{kind}",
            ],
            environ,
        )
        name = f"{kind}, {operations:,} operations"
        if done.status == 0:
            cases.append(Case(name, Outcome.PASSED))
            continue
        lines = [line for line in done.output.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-3:]
        cases.append(Case(name, Outcome.FAILED, shorten(" ".join(errors[:2]))))
        if trouble := site.trouble() or ("it did not end" if done.status is None else ""):
            return cases, f"in {name}: {trouble}"
    return cases, ""


def run_stress(box: Toolbox, site: Site) -> tuple[list[Case], str]:
    """Run every stressor by itself, with what it can verify verified."""
    cases: list[Case] = []
    for stressor in STRESSORS:
        directory = site.root / f"stress-{stressor}"
        try:
            directory.mkdir()
        except OSError as error:
            return cases, f"before {stressor}: {site.trouble() or error.strerror}"
        done = _run(
            box,
            [
                *("stress-ng", f"--{stressor}", "1", "--timeout", str(box.stress_s)),
                *(
                    "--temp-path",
                    directory,
                    "--verify",
                    "--hdd-bytes",
                    "64m",
                    "--iomix-bytes",
                    "16m",
                ),
                *("--fallocate-bytes", "16m", "--seek-size", "16m", "--readahead-bytes", "16m"),
                *("--revio-bytes", "16m", "--sync-file-bytes", "16m", "--copy-file-bytes", "128m"),
            ],
        )
        if done.status is None:
            cases.append(Case(stressor, Outcome.FAILED, "it did not end"))
        else:
            cases.append(Case(stressor, *stress_outcome(done.status, done.output)))
        if trouble := site.trouble():
            return cases, f"in {stressor}: {trouble}"
    return cases, ""


def run_dbench(box: Toolbox, site: Site) -> tuple[list[Case], str]:
    """Run a file server's load, with two clients."""
    loadfile = "/usr/share/dbench/client.txt"
    done = _run(box, ["dbench", "-t", str(box.dbench_s), "-D", site.root, "-c", loadfile, "2"])
    name = f"2 clients, {box.dbench_s} s"
    if done.status == 0 and "Throughput" in done.output:
        return [Case(name, Outcome.PASSED)], ""
    lines = [line for line in done.output.splitlines() if "fail" in line.lower()]
    case = Case(name, Outcome.FAILED, shorten(" ".join(lines[:2]) or f"status {done.status}"))
    return [case], site.trouble() or ("it did not end" if done.status is None else "")


RUNNERS: Final[Mapping[str, Callable[[Toolbox, Site], tuple[list[Case], str]]]] = {
    "pjdfstest": run_pjdfstest,
    "fsx": run_fsx,
    "stress-ng": run_stress,
    "dbench": run_dbench,
}


def versions(box: Toolbox) -> Iterator[tuple[str, str]]:
    """Yield the tools' versions and the kernel's."""
    yield "Linux", os.uname().release.partition("-")[0]
    for name in ("pjdfstest", "fsx"):
        yield name, _run(box, [box.programs / name, "--version"]).output.split()[-1]
    for name in ("stress-ng", "dbench"):
        done = _run(box, ["dpkg-query", "-W", "-f", "${Version}", name])
        yield name, done.output.partition("-")[0]


def _run(
    box: Toolbox, command: list[str | os.PathLike[str]], environ: Mapping[str, str] | None = None
) -> _Done:
    """Run a tool in a process group of its own, of which nothing is left; status None: it was killed at the limit.

    What it printed last lies in the scratch directory.
    """
    with (box.scratch / f"{Path(command[0]).name}.log").open("w+b") as output:
        process = subprocess.Popen(
            ["nice", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = process.wait(box.limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(
                subprocess.TimeoutExpired
            ):  # one that waits for a dead mount ends with it
                process.wait(KILL_LIMIT_S)
        output.seek(0)
        return _Done(status, output.read().decode(errors="replace"))
