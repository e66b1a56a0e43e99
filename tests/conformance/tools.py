"""Runs one tool on one mounted directory and returns its cases.

Every step runs as root, niced, under a limit of time. What does not end in time is killed and has failed; the run
goes on with the next step if the mount still answers, and has ended there if not.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.conformance.parsing import parse_pjdfstest, shorten, stress_outcome
from tests.conformance.peers import Done, Site
from tests.conformance.results import TOOLS, Case, Ending, Outcome

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
FSX_ROUND: Final = 100_000
"""Operations with one seed. fsx 0.3.2 never unmaps what it read through a mapping, and the kernel allows 65,530 of them."""
FSX_COMMON: Final = """\
flen = 262144
nomsyncafterwrite = {nosync}
[opsize]
min = 1
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
FSX_KINDS: Final[Mapping[str, tuple[str, int]]] = {
    "fsx-mmap": (FSX_COMMON.format(nosync="true") + FSX_MAPPED + FSX_RARELY, 1),
    "fsx-direct": (FSX_COMMON.format(nosync="true") + FSX_UNMAPPED + FSX_RARELY, 1),
    "fsx-synced": (FSX_COMMON.format(nosync="false") + FSX_MAPPED + FSX_OFTEN, 50),
}
"""Configuration, and by how much fewer operations it has than wanted: each msync, fsync and close is an upload."""

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
STRESS_SIZES: Final = (
    *(
        "--hdd-bytes",
        "64m",
        "--iomix-bytes",
        "16m",
        "--fallocate-bytes",
        "16m",
        "--seek-size",
        "16m",
    ),
    *("--readahead-bytes", "16m", "--revio-bytes", "16m", "--sync-file-bytes", "16m"),
    *("--copy-file-bytes", "128m"),
)

STRESS_COUNTS: Final[Mapping[str, int]] = {"fsize": 500}
"""Stressors that end after so many rounds: a fraction of a second. fsize takes what is not written for written, and says that
it failed, when the time is up within a fallocate() that stress-ng has to emulate: there is none here. On ramfs, too."""

STEP_GRACE_S: Final = 60.0
"""A load that was given S seconds has hung when it has not ended after twice as long and this."""
OTHER_LIMIT_S: Final = 30.0
"""For a program that does next to nothing."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Where the tools are, and how much they shall do.

    Attributes:
        programs: the directory that cargo installed into.
        scratch: for configurations and what tools leave.
        limit_s: for pjdfstest, and for what fsx does with one seed.
    """

    programs: Path
    scratch: Path
    fsx_operations: int
    stress_s: int
    dbench_s: int
    limit_s: float


Ran = tuple[list[Case], Ending | None]
"""The cases of a run, and why it ended before its end."""


def run_pjdfstest(box: Toolbox, site: Site) -> Ran:
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
            done = site.run(
                [box.programs / "pjdfstest", "-c", config, "-p", site.root, "-s", other, *names],
                box.limit_s,
                environ=environ,
                log=box.scratch / "pjdfstest.log",
            )
        cases, wrong = parse_pjdfstest(done.output)
        found |= {case.name: case for case in cases}
        if done.status is None or wrong:
            where = f"after {cases[-1].name}" if cases else "before its first test"
            ending = _ending(site, f"{where}, {len(found)} tests in", done, wrong)
            return list(found.values()), ending
    return list(found.values()), None


def run_fsx(kind: str, box: Toolbox, site: Site) -> Ran:
    """Run random operations of one kind on one file."""
    config, share = FSX_KINDS[kind]
    file = site.root / "fsx"
    environ = {}
    if kind == "fsx-direct":
        shim = box.scratch / "direct.so"
        source = Path(__file__).with_name("direct.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source], check=True)
        environ = {"LD_PRELOAD": str(shim), "DIRECT_FILE": str(file)}
    (box.scratch / f"{kind}.toml").write_text(config)
    operations = box.fsx_operations // share
    name = f"{operations:,} operations"
    for number, begun in enumerate(range(0, operations, FSX_ROUND)):
        seed = FSX_SEED + number
        done = site.run(
            [
                *(box.programs / "fsx", "-N", str(min(FSX_ROUND, operations - begun))),
                *("-S", str(seed), "-f", box.scratch / f"{kind}.toml", "-P", box.scratch, file),
            ],
            box.limit_s,
            environ=environ,
            log=box.scratch / f"{kind}.log",
        )
        if done.status != 0:
            lines = [line for line in done.output.splitlines() if line.strip()]
            errors = [line for line in lines if "ERROR" in line] or lines[-3:]
            detail = f"seed {seed}: {_hung(done) or ' '.join(errors[:2])}"
            ending = _ending(site, f"with seed {seed}", done, _hung(done))
            return [Case(name, Outcome.FAILED, shorten(detail))], ending
    return [Case(name, Outcome.PASSED)], None


def run_stress(box: Toolbox, site: Site) -> Ran:
    """Run every stressor by itself, with what it can verify verified."""
    cases: list[Case] = []
    for stressor in STRESSORS:
        directory = site.root / f"stress-{stressor}"
        made = site.run(["mkdir", directory], OTHER_LIMIT_S)
        if made.status != 0:
            return cases, _ending(site, f"before {stressor}", made, made.output.strip())
        done = site.run(
            stress_command(stressor, directory, box.stress_s),
            2 * box.stress_s + STEP_GRACE_S,
            log=box.scratch / "stress-ng.log",
            cwd=box.scratch,  # some stressors leave files there
        )
        if done.status is None:
            cases.append(Case(stressor, Outcome.FAILED, _hung(done)))
        else:
            cases.append(Case(stressor, *stress_outcome(done.status, done.output)))
        if stressor in STRESS_COUNTS:
            # It leaves bytes behind the end of all files, where the kernel, which gathers writes, finds out as it closes the file that
            # they cannot be. Whoever syncs first is told, and that shall not be another stressor.
            site.run(["sync", "-f", directory], OTHER_LIMIT_S)
        if ending := _ending(site, f"in {stressor}", done):
            return cases, ending
    return cases, None


def stress_command(stressor: str, directory: Path, seconds: int) -> list[str | Path]:
    """Return what runs one stressor for so long, or until it has done what is enough."""
    rounds = STRESS_COUNTS.get(stressor)
    limit_s = seconds if rounds is None else seconds + STEP_GRACE_S / 2
    return [
        *("stress-ng", f"--{stressor}", "1", "--timeout", f"{limit_s:.0f}"),
        *(() if rounds is None else (f"--{stressor}-ops", str(rounds))),
        *("--temp-path", directory, "--verify", *STRESS_SIZES),
    ]


def run_dbench(box: Toolbox, site: Site) -> Ran:
    """Run a file server's load, with two clients."""
    loadfile = "/usr/share/dbench/client.txt"
    done = site.run(
        ["dbench", "-t", str(box.dbench_s), "-D", site.root, "-c", loadfile, "2"],
        2 * box.dbench_s + STEP_GRACE_S,
        log=box.scratch / "dbench.log",
    )
    name = f"2 clients, {box.dbench_s} s"
    if done.status == 0 and "Throughput" in done.output:
        return [Case(name, Outcome.PASSED)], None
    lines = [line for line in done.output.splitlines() if "fail" in line.lower()]
    detail = _hung(done) or " ".join(lines[:2]) or f"status {done.status}"
    return [Case(name, Outcome.FAILED, shorten(detail))], _ending(
        site, "on the way", done, _hung(done)
    )


RUNNERS: Final[Mapping[str, Callable[[Toolbox, Site], Ran]]] = {
    "pjdfstest": run_pjdfstest,
    **{kind: partial(run_fsx, kind) for kind in FSX_KINDS},
    "stress-ng": run_stress,
    "dbench": run_dbench,
}
assert tuple(RUNNERS) == TOOLS


def version(box: Toolbox, tool: str) -> str:
    """Return a tool's version."""
    if tool in ("stress-ng", "dbench"):
        command: list[str | Path] = ["dpkg-query", "-W", "-f", "${Version}", tool]
    else:
        command = [box.programs / tool.partition("-")[0], "--version"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=OTHER_LIMIT_S, check=True
    )
    return done.stdout.split()[-1].partition("-")[0]


def _hung(done: Done) -> str:
    return f"hung after {done.hung_s:,} s" if done.status is None else ""


def _ending(site: Site, where: str, done: Done, wrong: str = "") -> Ending | None:
    """Say why a run ends here; None: the mount answers and nothing is *wrong*, so that it can go on."""
    trouble = site.trouble()
    if trouble and done.hung_s:  # aborted, maybe, to end what waited
        trouble = "the mount does not answer any more"
    if not (trouble or wrong):
        return None
    return Ending(f"{where}: {trouble or wrong}", done.hung_s)
