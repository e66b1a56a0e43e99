"""What works on a file system that hangs is ended in time, even where it cannot be killed."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.conformance import peers
from tests.conformance.peers import Site
from tests.e2e.lab import wait_for
from tests.fuse.lab import Lab

PATIENCE_S = 0.3


async def test_a_program_that_waits_for_an_answer_for_ever_is_ended_and_so_is_the_mount(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was read and never answered is waited for by the kernel, whatever is sent to the program."""
    monkeypatch.setattr(peers, "KILL_LIMIT_S", PATIENCE_S)
    connection = await lab.mount("m")
    site = Site(lab.base / "mnt" / "m")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                trio.to_thread.run_sync, os.read, connection.fuse_fd, connection.max_write + 4096
            )
        )
        with trio.fail_after(20):
            done = await trio.to_thread.run_sync(
                partial(site.run, ["stat", "--file-system", site.root], PATIENCE_S)
            )
    assert done.status is None
    assert await trio.to_thread.run_sync(site.trouble) == "Transport endpoint is not connected"


def test_a_program_that_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["sh", "-c", "echo $$ $WORD; sleep 1000 & sleep 1000"]
    done = Site(tmp_path).run(command, PATIENCE_S, log=log, environ={"WORD": "went"})
    assert done.status is None
    assert done.output == log.read_text()
    group, word = done.output.split()
    assert word == "went"
    wait_for("nobody of its group lives", lambda: not _living(int(group)))


def _living(group: int) -> list[str]:
    """Return the processes of *group* that are more than a line in the table."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(path.parent.name)
    return found
