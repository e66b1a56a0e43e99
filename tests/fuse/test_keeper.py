"""The keeper of a connection: what it gives to whom, and what ends it."""

import os
from contextlib import suppress

import trio
import trio.testing

from s3mgrd.fuse.connection import FuseConnection
from s3mgrd.fuse.mountinfo import read_mountinfo, topmost
from s3mgrd.worker.channel import close_all
from s3mgrd.worker.spawn import WorkerProcesses
from tests.fuse.demo_worker import KEPT_S, pattern
from tests.fuse.lab import WAIT_S, Lab

READ = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(os.pread(fd, 8, 800).hex(), flush=True)
sys.stdin.readline()
print(os.pread(fd, 8, 1600).hex(), flush=True)
"""


async def serve_and_lose(lab: Lab, workers: WorkerProcesses, name: str) -> FuseConnection:
    """Mount, serve, and kill the worker; the connection's descriptors are still open here."""
    connection = await lab.mount(name)
    async with lab.worker(workers, name) as worker:
        await lab.serve(worker, connection)
        worker.kill()
        with trio.fail_after(WAIT_S):
            await worker.wait()
    return connection


async def find_kept(workers: WorkerProcesses, name: str) -> None:
    """Get the connection of a mount from its keeper, and let go of it."""
    found = await workers.kept(name)
    assert found is not None
    close_all(found[1:])


async def test_the_next_worker_serves_what_was_kept(lab: Lab) -> None:
    """A program in the tree, between two calls and in one, notices nothing."""
    workers = await lab.supervisor()
    connection = await lab.mount("kept")
    async with lab.worker(workers, "kept") as worker:
        await lab.serve(worker, connection)
        program = lab.program(READ, f"{lab.base}/mnt/kept/data")
        assert program.stdout is not None
        first = await trio.to_thread.run_sync(program.stdout.readline)
        assert first.decode().strip() == pattern(800, 8).hex()
        worker.kill()
        with trio.fail_after(WAIT_S):
            await worker.wait()
    connection.close()
    assert program.stdin is not None
    program.stdin.write(b"\n")
    program.stdin.flush()
    with trio.fail_after(WAIT_S):
        kept = await workers.kept("kept")
    assert kept is not None
    described, fuse_fd, ring_fd = kept
    assert described.connection_id == connection.id
    assert (described.flags, described.flags2) == (connection.flags, connection.flags2)
    adopted = await lab.kernel.adopt(
        lab.spec("kept"), name="kept", descriptors=described, fuse_fd=fuse_fd, ring_fd=ring_fd
    )
    async with lab.worker(workers, "kept") as worker:
        await lab.serve(worker, adopted, resumed=True)
        output = await lab.output(program)
        assert output == pattern(1600, 8).hex()
        await adopted.unmount()
    adopted.close()


async def test_a_connection_is_not_kept_for_ever(lab: Lab) -> None:
    """Then programs get their error, and what is left of the mount can be cleaned up."""
    workers = await lab.supervisor()
    began = trio.current_time()
    connection = await serve_and_lose(lab, workers, "kept-briefly")
    program = lab.program(
        "import os, sys\ntry: os.listdir(sys.argv[1])\nexcept OSError as e: print(e.errno)",
        f"{lab.base}/mnt/kept-briefly",
    )
    connection.close()
    assert await lab.output(program) in ("103", "107")  # ECONNABORTED, ENOTCONN
    assert trio.current_time() - began > KEPT_S["kept-briefly"]
    assert await workers.kept("kept-briefly") is None
    path = f"{lab.base}/mnt/kept-briefly"
    assert await lab.kernel.clean_stale({path: "kept-briefly"}) == [path]
    assert topmost(read_mountinfo(), path) is None


async def test_a_keeper_ends_when_nobody_shall_serve_the_connection(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await serve_and_lose(lab, workers, "kept")
    await find_kept(workers, "kept")
    await workers.release("kept")
    assert await workers.kept("kept") is None
    await connection.unmount(lazy=True)


async def test_a_worker_that_dies_before_its_keeper_got_any_time_loses_nothing(lab: Lab) -> None:
    """On a busy machine, right after the mount was made."""
    workers = await lab.supervisor()
    connection = await serve_and_lose(lab, workers, "kept-late")
    await find_kept(workers, "kept-late")
    await connection.unmount(lazy=True)


async def test_a_worker_that_lives_has_the_connection_to_itself(lab: Lab) -> None:
    """Its keeper gives nothing away, and answers who asks early as soon as the worker is dead."""
    workers = await lab.supervisor()
    connection = await lab.mount("kept")
    async with lab.worker(workers, "kept") as worker, trio.open_nursery() as nursery:
        await lab.serve(worker, connection)
        answers = []

        async def ask() -> None:
            answers.append(await workers.kept("kept"))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert answers == []
        worker.kill()
    (answer,) = answers
    assert answer is not None
    for fd in answer[1:]:
        os.close(fd)
    await connection.unmount(lazy=True)


async def test_a_worker_that_fails_to_serve_leaves_the_keeper_before_it_in_place(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await serve_and_lose(lab, workers, "kept")
    with suppress(ConnectionError):
        async with workers.keeper("kept"):
            raise ConnectionError("the worker died")
    await find_kept(workers, "kept")
    await connection.unmount(lazy=True)
