"""``s3mgr conflicts`` against the daemon's real HTTP API on a fake domain."""

import json

import pytest

from s3mgrd.errors import Conflict
from tests.fakes.service import FakeService

from .conftest import Command


async def test_copies_are_listed_for_people_and_programs(
    served: FakeService, command: Command
) -> None:
    assert (await command("conflicts", "logs")).err == "'logs' has no conflict copies\n"
    served.add_conflict(7, "a/b.txt", size_bytes=2048, missing_bytes=1024, is_open=True)
    served.add_conflict(9, "new", reason="exists")
    shown = await command("conflicts", "/mnt/logs")
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines == [
        "ID SIZE LOST WHY PATH",
        "7 2.0 KiB 2030-01-02T03:04:05Z the file was replaced, 1.0 KiB missing, still open a/b.txt",
        "9 3 B 2030-01-02T03:04:05Z the name was taken new",
    ]
    found = json.loads((await command("conflicts", "logs", "--json")).out)
    assert [c["id"] for c in found["items"]] == [7, 9]
    assert (found["total"], found["total_bytes"]) == (2, 2051)


async def test_all_pages_are_fetched(served: FakeService, command: Command) -> None:
    for number in range(1, 251):
        served.add_conflict(number, f"f{number}")
    found = json.loads((await command("conflicts", "logs", "--json")).out)
    assert len(found["items"]) == 250


async def test_a_copy_is_restored_beside_the_original_or_where_asked(
    served: FakeService, command: Command
) -> None:
    served.add_conflict(7, "a/b")
    served.add_conflict(8, "c")
    done = await command("conflicts", "restore", "logs", "7")
    assert (done.code, done.out) == (0, "")
    assert done.err == "restored 3 B as /mnt/logs/a/b.conflict; it is being uploaded\n"
    done = await command(
        "conflicts", "restore", "logs", "8", "--as", "/mnt/logs/x/y", "--partial", "--json"
    )
    assert json.loads(done.out) == {"path": "x/y", "size_bytes": 3}
    assert served.calls[-1][1]["partial"] is True


@pytest.mark.parametrize("path", ["/etc/x", "../x", "/mnt/logs", ""])
async def test_a_path_outside_the_mount_is_refused(
    served: FakeService, command: Command, path: str
) -> None:
    served.add_conflict(7, "a")
    assert (await command("conflicts", "restore", "logs", "7", "--as", path)).code == 2
    assert len(served.conflicts) == 1


async def test_a_refusal_says_what_to_do(served: FakeService, command: Command) -> None:
    served.failures["restore_conflict"] = Conflict(
        "'a' exists already", hint="restore under another name"
    )
    done = await command("conflicts", "restore", "logs", "7")
    assert done.code == 6
    assert done.err == (
        "s3mgr: cannot restore conflict copy 7 of 'logs': 'a' exists already\n"
        "hint: restore under another name\n"
    )
    assert (await command("conflicts", "discard", "logs", "7", "--yes")).code == 4


async def test_copies_are_discarded_only_by_word(served: FakeService, command: Command) -> None:
    for number in (7, 8, 9):
        served.add_conflict(number, "a")
    refused = await command("conflicts", "discard", "logs", "7")
    assert (refused.code, len(served.conflicts)) == (2, 3)
    assert "nobody can be asked" in refused.err
    assert (await command("conflicts", "discard", "logs", "7", "--yes")).code == 0
    partly = await command("conflicts", "discard", "logs", "7", "8", "--yes")
    assert (partly.code, [c.id for c in served.conflicts]) == (8, [9])
    done = await command("conflicts", "discard", "logs", "--all", "--yes")
    assert (done.err, served.conflicts) == ("discarded 1 conflict copy of 'logs'\n", [])
    done = await command("conflicts", "discard", "logs", "--all", "--yes")
    assert (done.code, done.err) == (0, "discarded 0 conflict copies of 'logs'\n")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("logs", "7"),
        ("logs", "x"),
        ("restore", "logs"),
        ("restore", "logs", "7", "8"),
        ("discard", "logs"),
        ("discard", "logs", "7", "--all"),
        ("discard", "logs", "7", "--json"),
        ("logs", "--all"),
        ("logs", "--as", "x"),
        ("discard", "logs", "7", "--partial"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    served: FakeService, command: Command, words: tuple[str, ...]
) -> None:
    assert (await command("conflicts", *words)).code == 2
    assert served.calls == []


async def test_a_mount_may_be_called_as_an_action_is(served: FakeService, command: Command) -> None:
    served.add_mount("restore")
    assert (await command("conflicts", "restore")).err == "'restore' has no conflict copies\n"
