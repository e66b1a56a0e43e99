"""A worker dies; nobody who uses its mount may notice."""

import hashlib
import os
import signal
import subprocess

import pytest
import trio

from s3mgrd.fs.kernel.repeats import Call
from s3mgrd.fuse.connection import FuseConnection
from s3mgrd.mounts.ports import WorkerExit
from s3mgrd.worker.protocol import GetStats
from s3mgrd.worker.ring import Ring
from s3mgrd.worker.spawn import WorkerProcess, WorkerProcesses
from tests.fuse.demo_worker import DATA_BYTES, EXPRESS, VANISHED, VANISHING, pattern
from tests.fuse.lab import Lab

READ_ALL = """
import hashlib, os, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as file:
    print("open", flush=True)
    while data := file.read(1 << 20):
        digest.update(data)
print(digest.hexdigest())
"""
HOLD_AND_READ = """
import os, sys, threading
fd = os.open(sys.argv[1] + "/slow", os.O_RDONLY)
os.chdir(sys.argv[1])
answers = []
thread = threading.Thread(target=lambda: answers.append(os.pread(fd, 8, 4096)))
thread.start()
print("waiting", flush=True)
thread.join()
answers.append(os.pread(fd, 8, 8192))
print([int.from_bytes(answer, "little") for answer in answers], sorted(os.listdir(".")))
"""
MKDIR_TWICE = """
import os, sys
for _ in range(2):
    try:
        os.mkdir(sys.argv[1])
        print("made")
    except FileExistsError:
        print("exists")
"""


async def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return (await trio.to_thread.run_sync(process.stdout.readline)).decode().strip()


async def next_worker(
    lab: Lab, workers: WorkerProcesses, dead: WorkerProcess, connection: FuseConnection
) -> None:
    """Wait for the death of a worker, have another take its place, and keep it to the end of the test."""
    with trio.fail_after(10):
        assert await dead.wait() == WorkerExit(None, signal.SIGKILL)
    worker = await lab.keep(workers.start(connection.id.removeprefix("id-of-")))
    lab.pids.add(worker.pid)
    await lab.serve(worker, connection, resumed=True)


async def test_a_file_is_read_to_its_end_over_five_kills(lab: Lab) -> None:
    """Kill -9 under a running read changes neither its bytes nor its success."""
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        reader = lab.program(READ_ALL, f"{lab.base}/mnt/m/data")
        assert await line(reader) == "open"
        worker.kill()
        await worker.wait()
    for _ in range(4):
        async with lab.worker(workers, "m") as worker:
            await lab.serve(worker, connection, resumed=True)
            worker.kill()
            await worker.wait()
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection, resumed=True)
        assert await lab.output(reader) == hashlib.sha256(pattern(0, DATA_BYTES)).hexdigest()


async def test_a_request_in_flight_is_answered_by_the_next_worker(lab: Lab) -> None:
    """What the dead worker had read and not answered comes again; open files and working directories stay."""
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        user = lab.program(HOLD_AND_READ, f"{lab.base}/mnt/m")
        assert await line(user) == "waiting"
        os.kill(worker.pid, signal.SIGKILL)
        await next_worker(lab, workers, worker, connection)
        assert await lab.output(user) == "[4096, 8192] ['crash', 'data', 'slow']"


async def test_a_read_that_kills_its_worker_is_answered_by_the_next(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        code = "import os, sys; f = os.open(sys.argv[1], 0); print(len(os.read(f, 100)))"
        user = lab.program(code, f"{lab.base}/mnt/m/crash")
        await next_worker(lab, workers, worker, connection)
        assert await lab.output(user) == "100"


@pytest.mark.parametrize("mount", ["m", EXPRESS])
async def test_a_change_that_was_made_but_not_answered_succeeds_once(lab: Lab, mount: str) -> None:
    """The repeat of a committed mkdir succeeds; the same call made anew fails, even by the same thread.

    So it is whether the next worker's requests are read by libfuse or looked at before.
    """
    workers = await lab.supervisor()
    connection = await lab.mount(mount)
    async with lab.worker(workers, mount) as worker:
        await lab.serve(worker, connection)
        user = lab.program(MKDIR_TWICE, f"{lab.base}/mnt/{mount}/die-after-x")
        await next_worker(lab, workers, worker, connection)
        assert await lab.output(user) == "made\nexists"


async def test_a_change_that_was_only_intended_is_made_by_the_next_worker(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        user = lab.program(MKDIR_TWICE, f"{lab.base}/mnt/m/die-before-x")
        await next_worker(lab, workers, worker, connection)
        assert await lab.output(user) == "made\nexists"


async def test_what_never_comes_again_is_forgotten_once_all_is_read(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await lab.mount(VANISHING)
    call = VANISHED
    number = (
        Ring(connection.ring_fd).begin(Call(call.op, call.parent, call.name, call.thread)).number
    )
    async with lab.worker(workers, VANISHING) as worker:
        await lab.serve(worker, connection, resumed=True)
        await worker.request(GetStats())  # so it had time to look for the first request
        assert Ring(connection.ring_fd).oldest == number + 1


async def test_an_answered_change_is_not_taken_for_a_repeat_after_a_crash(lab: Lab) -> None:
    """The same thread makes the same call before and after a crash in which it had nothing in flight."""
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    code = """
import os, sys
os.mkdir(sys.argv[1]); print("made", flush=True)
sys.stdin.readline()
try: os.mkdir(sys.argv[1])
except FileExistsError: print("exists")
"""
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        user = lab.program(code, f"{lab.base}/mnt/m/x")
        assert await line(user) == "made"
        worker.kill()
        await next_worker(lab, workers, worker, connection)
        assert await lab.output(user, b"\n") == "exists"
