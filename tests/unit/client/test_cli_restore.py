"""``s3mgr restore`` against the daemon's real HTTP API on a fake domain."""

import json

import pytest

from s3mgr.schema import RestoreRequest
from s3mgrd.errors import Unsupported
from tests.fakes.service import EPOCH, FakeService

from .conftest import Command


def request_of(service: FakeService) -> RestoreRequest:
    request = service.calls[-1][1]["request"]
    assert isinstance(request, RestoreRequest)
    return request


async def test_objects_are_restored_and_shown_for_people_and_programs(
    served: FakeService, command: Command
) -> None:
    served.add_archived("d/a", size_bytes=2048)
    served.add_archived("d/b\n", storage_class="DEEP_ARCHIVE")
    served.add_archived("e", state="restored", expires_at=EPOCH)
    done = await command("restore", "/mnt/logs", "/mnt/logs/d", "e", "--days", "3")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert lines == [
        ["STATE", "UNTIL", "CLASS", "SIZE", "PATH", "ERROR"],
        ["restoring", "-", "GLACIER", "2.0", "KiB", "d/a"],
        ["restoring", "-", "DEEP_ARCHIVE", "3", "B", "d/b\\n"],
        ["restored", "2030-01-02T03:04:05Z", "GLACIER", "3", "B", "e"],
    ]
    assert done.err == "'logs': 3 archived objects: 1 restored, 2 restoring\n"
    assert request_of(served) == RestoreRequest(path="e", days=3, tier="Standard")
    shown = await command("restore", "logs", ".", "--status", "--json")
    assert [item["state"] for item in json.loads(shown.out)] == ["archived", "archived", "restored"]
    assert served.calls[-1][0] == "list_archived"
    none = await command("restore", "logs", "x", "--tier", "bulk")
    assert (none.code, none.out, none.err) == (0, "", "'logs': no object there is archived\n")
    assert request_of(served).tier == "Bulk"


async def test_all_pages_are_restored(served: FakeService, command: Command) -> None:
    for number in range(250):
        served.add_archived(f"f{number}")
    for options in ((), ("--status",)):
        done = await command("restore", "logs", ".", "--json", *options)
        assert len(json.loads(done.out)) == 250


async def test_what_s3_refused_is_told_and_is_no_success(
    served: FakeService, command: Command
) -> None:
    served.add_archived("a")
    served.add_archived("b", error="not now")
    done = await command("restore", "logs", ".")
    assert done.code == 8
    assert "not now" in done.out
    assert done.err == "'logs': 2 archived objects: 1 restoring, 1 refused\n"
    served.failures["restore_objects"] = Unsupported("this store has no archives")
    done = await command("restore", "logs", ".")
    assert done.code != 0
    assert "cannot restore archived objects of 'logs': this store has no archives" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("logs",),
        ("logs", "../x"),
        ("logs", ".", "--days", "0"),
        ("logs", ".", "--tier", "fast"),
        ("logs", "/elsewhere"),
    ],
)
async def test_bad_input_is_refused(
    served: FakeService, command: Command, words: tuple[str, ...]
) -> None:
    assert (await command("restore", *words)).code == 2
    assert not [name for name, _ in served.calls if name == "restore_objects"]
