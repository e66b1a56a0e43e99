"""The commands against the daemon's real HTTP API, served from a fake domain: both sides mean the same."""

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from s3mgr.cli.exits import _PROBLEMS
from s3mgr.schema import Credentials, MountOptions, Operation
from s3mgrd import errors
from s3mgrd.api.server import serve_api
from s3mgrd.mounts.service import Principal
from tests.fakes.service import FakeService

from .conftest import Command, Result


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeService]:
    """The real API over a fake domain; S3MGR_HOST names it."""
    service, shutdown, path = FakeService(), trio.Event(), tmp_path / "api.sock"
    monkeypatch.setenv("S3MGR_HOST", f"unix://{path}")
    async with trio.open_nursery() as nursery:
        start = partial(serve_api, service, path, admin_uid=0, admin_group=None, shutdown=shutdown)
        await nursery.start(start)
        yield service
        shutdown.set()


async def test_a_life_of_a_mount(served: FakeService, command: Command) -> None:
    keys = ("--access-key", "AKIAKEY", "--secret-key", "s3cr3t")
    mounted = await command("mount", "bucket/a", "mnt", "-o", "ro,concurrency=4", *keys)
    assert (mounted.code, mounted.err.startswith("mounted 'bucket-a'")) == (0, True)
    (put,) = [arguments for method, arguments in served.calls if method == "put_mount"]
    assert put["only_create"] is True
    assert put["keep_on_failure"] is False
    assert put["request"].credentials == Credentials(access_key="AKIAKEY", secret_key="s3cr3t")
    assert put["request"].spec.options == MountOptions(prefix="a/", read_only=True, concurrency=4)

    again = await command("mount", "bucket/a", "mnt", "-o", "ro,concurrency=4", *keys)
    assert (again.code, "is mounted already" in again.err) == (0, True)
    assert (await command("ls", "-q")).out == "bucket-a\n"
    shown = json.loads((await command("show", "bucket-a", "--json")).out)
    assert shown["spec"]["options"]["prefix"] == "a/"
    assert "s3cr3t" not in json.dumps(shown)

    assert (await command("flush", "bucket-a", "--timeout", "1m")).code == 0
    assert served.calls[-1][1]["timeout_s"] == 60.0
    assert (await command("invalidate", "bucket-a", "x")).code == 0
    assert served.calls[-1][1]["path"] == "x"
    assert (await command("restart", "bucket-a")).code == 0
    assert (await command("logs", "bucket-a")).out == "one\ntwo\n"
    cache = json.loads((await command("cache", "bucket-a", "--limit", "2", "--json")).out)
    assert [item["path"] for item in cache["items"]] == ["a/ä", "a/ä"]
    assert "s3mgrd 9.9" in (await command("version", "--verbose")).out

    gone = await command("unmount", "mnt", "--timeout", "10s")
    assert (gone.code, served.mounts) == (0, {})
    (delete,) = [arguments for method, arguments in served.calls if method == "delete_mount"]
    assert (delete["mode"], delete["timeout_s"], delete["keep"]) == ("clean", 10.0, False)
    assert (await command("unmount", "mnt")).code == 4


async def test_long_work_is_waited_for(
    served: FakeService, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.add_mount("logs")
    served.auto_end = None
    results: list[Result] = []
    asked = trio.Event()
    get_operation = served.get_operation

    def look(who: Principal, operation_id: str) -> Operation:
        asked.set()
        return get_operation(who, operation_id)

    monkeypatch.setattr(served, "get_operation", look)

    async def unmount() -> None:
        results.append(await command("unmount", "logs", "--keep"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unmount)
        await asked.wait()
        served.end("op-1", "succeeded")
    assert results[0].code == 0
    assert "its definition is kept" in results[0].err


async def test_no_wait_keeps_what_fails_later(served: FakeService, command: Command) -> None:
    served.auto_end = None
    result = await command("mount", "bucket", "mnt", "--no-wait")
    assert (result.code, "in the background" in result.err) == (0, True)
    (put,) = [arguments for method, arguments in served.calls if method == "put_mount"]
    assert put["keep_on_failure"] is True


async def test_events_are_streamed(served: FakeService, command: Command) -> None:
    served.emit("mount.added", "a")
    served.emit("mount.removed", "a")
    result = await command("events", "--since", "0", "--json", "--count", "2")
    assert [json.loads(line)["type"] for line in result.out.splitlines()] == [
        "mount.added",
        "mount.removed",
    ]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.NameConflict("The name 'x' is taken."), 6, "the name 'x' is taken"),
        (errors.SpecConflict("It is up with another spec."), 6, "it is up with another spec"),
        (errors.MountpointBusy("Something is there."), 6, "something is there"),
        (errors.MountpointInvalid("/m is not empty"), 2, "/m is not empty"),
        (errors.BucketNotFound("bucket 'x' not found"), 4, "bucket 'x' not found"),
        (errors.CredentialsRejected("The clock is off."), 5, "the clock is off"),
        (errors.TimedOut("no answer in 5 s"), 1, "no answer in 5 s"),
        (errors.Denied("You may not."), 5, "you may not"),
        (errors.InvalidSpec("Bad.", pointer="/spec/region"), 2, "bad"),
        (errors.Stopping("The daemon is stopping."), 3, "the daemon is stopping"),
    ],
)
async def test_an_error_of_the_domain_reaches_the_shell(
    served: FakeService, command: Command, error: errors.S3mgrError, code: int, line: str
) -> None:
    served.failures["put_mount"] = error
    result = await command("mount", "bucket", "mnt", "--name", "x")
    assert result.code == code
    assert result.err.splitlines()[0] == f"s3mgr: cannot mount 'x': {line}"


def test_every_problem_of_the_api_has_an_exit_code() -> None:
    from s3mgrd.api.problems import ERRORS, STATUSES

    kinds = {*ERRORS.values(), *STATUSES.values()}
    assert {kind.type.value for kind in kinds} <= set(_PROBLEMS)
