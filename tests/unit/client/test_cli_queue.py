"""``s3mgr queue`` against the daemon's real HTTP API on a fake domain."""

import json

import pytest

from s3mgrd.errors import Conflict
from tests.fakes.service import EPOCH, FakeService

from .conftest import Command


async def test_the_queue_is_listed_for_people_and_programs(
    served: FakeService, command: Command
) -> None:
    empty = await command("queue", "logs")
    assert (empty.code, empty.out, empty.err) == (0, "", "'logs': nothing is queued\n")
    served.add_queued("a/b.txt", size_bytes=2048, state="uploading")
    served.add_queued("new\n", state="failed", tries=3, error="S3 is away", retry_at=EPOCH)
    served.is_paused, served.writers_waiting = True, 2
    shown = await command("queue", "/mnt/logs")
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["STATE", "SIZE", "AGE", "TRIES", "RETRY", "PATH", "ERROR"]
    assert [*lines[1][:3], *lines[1][4:]] == ["uploading", "2.0", "KiB", "0", "-", "a/b.txt"]
    assert lines[2][4:] == ["3", "2030-01-02T03:04:05Z", "new\\n", "S3", "is", "away"]
    assert shown.err == (
        "'logs': 2 files with 2.0 KiB queued, paused; 2 programs cannot close files: more than 1.0 MiB queued\n"
    )
    found = json.loads((await command("queue", "logs", "--json")).out)
    assert [file["path"] for file in found["items"]] == ["a/b.txt", "new\n"]
    assert (found["total_files"], found["total_bytes"], found["is_paused"]) == (2, 2051, True)


async def test_pages_are_fetched_up_to_the_limit(served: FakeService, command: Command) -> None:
    for number in range(250):
        served.add_queued(f"f{number}")
    for options, count in (((), 100), (("--limit", "150"), 150), (("--all",), 250)):
        found = json.loads((await command("queue", "logs", "--json", *options)).out)
        assert len(found["items"]) == count
    shown = await command("queue", "logs", "--limit", "1")
    assert shown.err.endswith("there are more than 1 files; list them with --all\n")
    totals = await command("queue", "logs", "--limit", "0")
    assert (totals.out, totals.err) == ("", "'logs': 250 files with 750 B queued\n")


async def test_the_queue_is_paused_and_resumed(served: FakeService, command: Command) -> None:
    served.add_queued("a")
    done = await command("queue", "pause", "logs")
    assert (done.code, done.out) == (0, "")
    assert done.err == "paused the upload queue of 'logs': 1 file with 3 B queued, paused\n"
    assert served.is_paused
    done = await command("queue", "resume", "/mnt/logs", "--json")
    assert json.loads(done.out)["is_paused"] is False


async def test_one_file_is_hurried(served: FakeService, command: Command) -> None:
    served.add_queued("a")
    served.add_queued("d/b")
    done = await command("queue", "hurry", "logs", "/mnt/logs/d/b")
    assert (done.code, done.err) == (0, "'d/b' goes next; 2 files with 6 B queued\n")
    assert served.queue[0].path == "d/b"
    gone = await command("queue", "hurry", "logs", "c")
    assert gone.code == 4
    assert gone.err == (
        "s3mgr: cannot hurry the upload of 'c' of 'logs': 'c' does not wait to be uploaded\n"
        "hint: look again\n"
    )
    served.failures["hurry_upload"] = Conflict("'a' is still being written")
    assert (await command("queue", "hurry", "logs", "a")).code == 6
    for path in ("/etc/x", "../x", "/mnt/logs", ""):
        assert (await command("queue", "hurry", "logs", path)).code == 2


@pytest.mark.parametrize(
    "words",
    [(), ("logs", "a"), ("pause", "logs", "a"), ("hurry", "logs"), ("hurry", "logs", "a", "b")],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    served: FakeService, command: Command, words: tuple[str, ...]
) -> None:
    assert (await command("queue", *words)).code == 2
    assert served.calls == []


async def test_a_mount_may_be_called_as_an_action_is(served: FakeService, command: Command) -> None:
    served.add_mount("pause")
    assert (await command("queue", "pause")).err == "'pause': nothing is queued\n"
    assert not served.is_paused
