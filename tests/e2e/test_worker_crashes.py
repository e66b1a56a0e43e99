"""The death of a worker is invisible: programs go on, with the right bytes and names, and S3 gets everything once.

A fault injector kills workers with SIGKILL at random moments while programs work; the next kill comes when the next
worker serves. Its seed is printed, S3MGR_TEST_SEED sets it. S3MGR_TEST_SCALE=full runs with 1 GiB and 2,000 files.
"""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from s3mgrd.fs.writing.beginnings import GRACE_S
from tests.e2e.clocked_daemon import start_clocked
from tests.e2e.lab import Daemon, Lab, run, shell, wait_for
from tests.e2e.trees import describe, objects_of, read_bucket
from tests.servers.endpoint import Endpoint

FULL: Final = os.environ.get("S3MGR_TEST_SCALE") == "full"
BIG_BYTES: Final = 1 << 30 if FULL else 96 << 20
SMALL_FILES: Final = 2000 if FULL else 300
KILLS: Final = 20
LONGEST_PAUSE_S: Final = 0.4 if FULL else 0.15
"""Between the moment that a new worker serves and its death, at most: short enough to hit it in the middle of things."""
END_LIMIT_S: Final = 600.0 if FULL else 120.0

pytestmark = [pytest.mark.timeout(1200)] if FULL else []


@pytest.fixture
def s3_endpoint(ministack: Endpoint) -> Endpoint:
    """Only one server: what is tested is on this side."""
    return ministack


class Killer:
    """Kills the worker of a mount while a program runs, as often as wanted."""

    def __init__(self, daemon: Daemon, name: str = "m") -> None:
        seed = int(os.environ.get("S3MGR_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
        print(f"S3MGR_TEST_SEED={seed}")
        self.random: Final = random.Random(seed)  # noqa: S311 - no secret
        self._daemon: Final = daemon
        self._name: Final = name
        self.kills = 0

    def kill(self) -> None:
        """Kill once, at a random moment, and wait for the next worker."""
        time.sleep(self.random.uniform(0, LONGEST_PAUSE_S))  # the fault injector's own timing
        pid = self._daemon.kill_worker(self._name)
        self._daemon.wait_replaced(pid, self._name)
        self.kills += 1

    def torment(self, process: subprocess.Popen[bytes], stop: Path) -> str:
        """Kill `KILLS` times while *process* runs, then make *stop*, which ends it; returns what it printed."""
        while self.kills < KILLS and process.poll() is None:
            self.kill()
        stop.touch()
        out, err = process.communicate(timeout=END_LIMIT_S)
        assert process.returncode == 0, err.decode(errors="replace")[-4000:]
        assert self.kills == KILLS, "the program ended by itself"
        return out.decode()


def _until_stopped(
    lab: Lab, body: str, *arguments: str | os.PathLike[str]
) -> subprocess.Popen[bytes]:
    """Run *body* in bash, again and again (``$round`` counts) until the file $1 appears."""
    script = (
        f'set -eu -o pipefail\nround=0\nuntil [ -e "$1" ]; do round=$((round + 1))\n{body}\ndone'
    )
    return lab.program("bash", "-c", script, "bash", *arguments)


def _make_big(path: Path) -> str:
    """Write `BIG_BYTES` that repeat nowhere; returns their SHA-256."""
    digest = hashlib.sha256()
    source = random.Random(BIG_BYTES)  # noqa: S311 - no secret
    with path.open("wb") as file:
        for _ in range(BIG_BYTES >> 20):
            block = source.randbytes(1 << 20)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _check_status(daemon: Daemon) -> None:
    """Nothing is left, and the daemon counted what happened; a worker says how it is twice a second."""
    wait_for("nothing is dirty", lambda: not daemon.show().status.dirty_files)
    status = daemon.show().status
    assert (status.state, status.dirty_files, status.failed_uploads) == ("mounted", 0, [])
    assert status.restarts >= KILLS


def test_sha256sum_reads_the_right_bytes(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Reads in flight are answered by the next worker; the kernel's pages are dropped before each round."""
    digest = _make_big(lab.base / "big")
    client = s3_endpoint.boto3()
    with (lab.base / "big").open("rb") as source:
        client.put_object(Bucket=bucket, Key="big", Body=source)
    client.close()
    mount = daemon.mount(s3_endpoint, bucket)
    body = """
        dd if="$2" iflag=nocache count=0 status=none
        sha256sum < "$2"
    """
    program = _until_stopped(lab, body, lab.base / "stop", mount / "big")
    out = Killer(daemon).torment(program, lab.base / "stop")
    assert set(out.split()) == {digest, "-"}
    _check_status(daemon)


def test_cp_writes_the_right_bytes(lab: Lab, s3_endpoint: Endpoint, bucket: str) -> None:
    """Writes and uploads in flight; what was acknowledged before a death is not asked for again."""
    daemon, clock = start_clocked(lab)
    digest = _make_big(lab.base / "big")
    # MiniStack needs time for each part of a multipart upload that grows with all parts before it.
    options = (
        f"part_size_bytes={64 << 20 if FULL else 8 << 20},read_timeout_s=120,retry_deadline_s=240,"
        "staging_size_bytes=67108864"  # so that some of it is parked
    )
    mount = daemon.mount(s3_endpoint, bucket, "m", "-o", options)
    program = _until_stopped(
        lab, 'cp "$2" "$3/copy $((round % 2))"', lab.base / "stop", lab.base / "big", mount
    )
    Killer(daemon).torment(program, lab.base / "stop")
    names = sorted(os.listdir(mount))
    expected = f"{BIG_BYTES} {digest}"
    assert names in (["copy 1"], ["copy 0", "copy 1"])
    daemon.flush()  # what was parked is deleted in the background
    assert read_bucket(s3_endpoint, bucket) == dict.fromkeys(names, expected)
    run("cmp", lab.base / "big", mount / "copy 1")
    _check_status(daemon)
    client = s3_endpoint.boto3()
    # An upload that S3 began just as the worker was killed is aborted a day later.
    clock.later(GRACE_S)
    wait_for(
        "no unfinished upload",
        lambda: not client.list_multipart_uploads(Bucket=bucket).get("Uploads"),
    )
    client.close()


def test_tar_extracts_every_file_once(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Creations, small uploads, modes and times."""
    source = lab.directory("source")
    for number in range(SMALL_FILES):
        directory = source / f"d{number % 20}" / f"e{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"file {number}"
        path.write_bytes(f"{number} ".encode() * (number % 500))
        path.chmod(0o600 + number % 8)
        os.utime(path, ns=(number, 10**18 + number))
    run("tar", "--format=posix", "-C", source, "-c", "-f", lab.base / "tar", ".")
    mount = daemon.mount(s3_endpoint, bucket)
    body = """
        mkdir "$3/round $round"; tar -C "$3/round $round" -x -p -f "$2"
    """
    program = _until_stopped(lab, body, lab.base / "stop", lab.base / "tar", mount)
    Killer(daemon).torment(program, lab.base / "stop")
    daemon.flush()
    expected = describe(source)
    rounds = sorted(os.listdir(mount))
    assert rounds == sorted(f"round {n + 1}" for n in range(len(rounds)))
    objects: dict[str, str] = {}
    for name in rounds:
        assert describe(mount / name) == expected
        objects |= objects_of(expected, f"{name}/") | objects_of({}, name)
    found = read_bucket(s3_endpoint, bucket)
    for name in rounds:
        assert found.pop(f"{name}/").startswith("0 ")
    assert found == objects
    _check_status(daemon)


CHANGES = """
import os, sys, threading
stop, base, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.chdir(base)
def work(me):
    n = 0
    os.mkdir(me)
    while not os.path.exists(stop):
        n += 1
        a, b = f"{me}/a{n % 3}", f"{me}/b{n % 5}"
        os.mkdir(a)
        os.rename(a, b)
        os.rmdir(b)
        os.close(os.open(a, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.symlink("target", b)
        os.rename(a, b + "x")
        os.unlink(b + "x")
        os.rename(b, a)
        assert os.readlink(a) == "target"
        os.unlink(a)
        left = [x for x in os.listdir(me) if not x.startswith("kept")]
        assert left == [], left
        os.mkdir(f"{me}/kept{n}")
    names = sorted(os.listdir(me))
    assert names == sorted(f"kept{i + 1}" for i in range(n)), names
    print(n)
def guarded(me):
    try: work(me)
    except BaseException:
        import traceback; traceback.print_exc(); os._exit(1)
threads = [threading.Thread(target=guarded, args=(f"t{i}",)) for i in range(number)]
for t in threads: t.start()
for t in threads: t.join()
"""


def test_changes_of_the_tree_happen_exactly_once(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """A repeated mkdir, rename, rmdir, create, symlink or unlink is answered and not done again."""
    mount = daemon.mount(s3_endpoint, bucket)
    program = lab.program(sys.executable, "-S", "-c", CHANGES, lab.base / "stop", mount, "4")
    out = Killer(daemon).torment(program, lab.base / "stop")
    counts = [int(line) for line in out.split()]
    assert len(counts) == 4
    daemon.flush()
    expected = objects_of(describe(mount), "")
    assert len(expected) == 4 + sum(counts)
    assert read_bucket(s3_endpoint, bucket) == expected
    _check_status(daemon)


def test_mkdir_mv_and_rmdir_commands_succeed(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """The commands themselves, each a process of its own that looks at the tree afresh."""
    mount = daemon.mount(s3_endpoint, bucket)
    body = """
        cd "$2"; mkdir "a$round"; echo "$round" > "a$round/file"; mv "a$round" "b$round"
        mv "b$round/file" "kept$round"; rmdir "b$round"; [ "$(cat "kept$round")" = "$round" ]
    """
    program = _until_stopped(lab, body, lab.base / "stop", mount)
    Killer(daemon).torment(program, lab.base / "stop")
    daemon.flush()
    rounds = len(os.listdir(mount))
    tree = describe(mount)
    assert sorted(tree) == sorted(f"kept{n + 1}" for n in range(rounds))
    assert read_bucket(s3_endpoint, bucket) == objects_of(tree, "")
    _check_status(daemon)


def test_a_shell_sits_in_the_tree_with_open_files(
    lab: Lab, daemon: Daemon, s3_endpoint: Endpoint, bucket: str
) -> None:
    """Working directory, reading and writing descriptors, an unlinked file: all live through every death."""
    mount = daemon.mount(s3_endpoint, bucket)
    (mount / "deep" / "er").mkdir(parents=True)
    lines = "".join(f"line {n}\n" for n in range(KILLS))
    (mount / "deep" / "read").write_text(lines)
    killer = Killer(daemon)
    sitting = lab.program("bash", cwd=mount / "deep" / "er")
    assert sitting.stdin is not None
    assert sitting.stdout is not None

    def say(command: str) -> str:
        assert sitting.stdin is not None
        assert sitting.stdout is not None
        sitting.stdin.write(f'{command}; echo "status $?"\n'.encode())
        sitting.stdin.flush()
        answer: list[str] = []
        while True:
            line = sitting.stdout.readline().decode()
            if line.startswith("status "):
                assert line == "status 0\n", (command, answer)
                return "".join(answer)
            answer.append(line)

    say("exec 3<../read 4>written 5>>appended 6<>gone; rm gone; shopt -s nullglob")
    for number in range(KILLS):
        killer.kill()
        assert say('read -r line <&3; echo "$line"') == f"line {number}\n"
        say(f"echo {number} >&4; echo {number} | tee -a appended >&5; echo {number} >&6")
        if number % 2:
            assert say('mv written "written.$(date +%N)"; mv written.* written; echo *') == (
                "appended written\n"
            )
        assert say("pwd -P; wc -l < written; wc -l < appended; wc -l < /proc/self/fd/6") == (
            f"{mount}/deep/er\n{number + 1}\n{2 * number + 2}\n{number + 1}\n"
        )
    say("exec 3<&- 4>&- 5>&-")
    assert say("cat /proc/self/fd/6; exec 6>&-") == "".join(f"{n}\n" for n in range(KILLS))
    assert sitting.communicate(timeout=END_LIMIT_S) == (b"", b"")
    daemon.flush()
    numbers = [f"{n}\n" for n in range(KILLS)]
    assert (mount / "deep/er/written").read_text() == "".join(numbers)
    assert (mount / "deep/er/appended").read_text() == "".join(n * 2 for n in numbers)
    tree = describe(mount)
    assert sorted(tree) == ["deep", "deep/er", "deep/er/appended", "deep/er/written", "deep/read"]
    assert read_bucket(s3_endpoint, bucket) == objects_of(tree, "")
    _check_status(daemon)
    shell('rm -r "$1"/deep', mount)
    daemon.flush()
    assert read_bucket(s3_endpoint, bucket) == {}
