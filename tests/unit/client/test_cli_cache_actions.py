"""``s3mgr cache warm|evict|pin|…`` against the daemon's real HTTP API on a fake domain."""

import json

import pytest

from tests.fakes.service import FakeService

from .conftest import Command


def asked(served: FakeService, verb: str) -> list[list[str]]:
    return [given["paths"] for name, given in served.calls if name == verb]


async def test_files_are_warmed_and_pinned_by_paths_in_the_mount(
    served: FakeService, command: Command
) -> None:
    done = await command("cache", "warm", "logs", "a/b", "/mnt/logs/c")
    assert (done.code, done.out) == (0, "")
    assert done.err == "warmed 0 in the cache of 'logs'\n"
    assert asked(served, "warm_cache") == [["a/b", "c"]]
    found = json.loads((await command("cache", "pin", "/mnt/logs", ".", "--json")).out)
    assert (found["kind"], found["state"]) == ("pin", "succeeded")
    assert asked(served, "pin_cache") == [[""]]


async def test_paths_in_a_mount_s_tree_name_the_mount(
    served: FakeService, command: Command
) -> None:
    served.add_mount("logs-more")
    assert (await command("cache", "warm", "/mnt/logs/a", "/mnt/logs/b/")).code == 0
    assert (await command("cache", "warm", "/mnt/logs")).code == 0
    assert asked(served, "warm_cache") == [["a", "b"], [""]]
    assert {given["name"] for name, given in served.calls if name == "warm_cache"} == {"logs"}
    for path, code in (("/mnt/other", 4), ("/mnt/log", 4)):
        assert (await command("cache", "evict", path)).code == code
    mixed = await command("cache", "evict", "/mnt/logs/a", "/mnt/logs-more/b")
    assert (mixed.code, "is not below /mnt/logs" in mixed.err) == (2, True)


async def test_what_is_only_handed_in_goes_on(served: FakeService, command: Command) -> None:
    served.auto_end = None
    done = await command("cache", "warm", "logs", "a", "--no-wait")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("warming the cache of 'logs': under way; ")


async def test_pins_are_listed_and_taken_back(served: FakeService, command: Command) -> None:
    assert (await command("cache", "pins", "logs")).err == "nothing is pinned in 'logs'\n"
    await command("cache", "pin", "logs", "a\n")
    shown = await command("cache", "pins", "logs")
    assert shown.out.splitlines()[1].split() == ["2", "2.0", "KiB", "1.0", "KiB", "a\\n"]
    done = await command("cache", "evict", "logs", "a")
    assert done.err == (
        "'logs': gave up 3.0 KiB of 3 files; 1 pinned file stay: unpin them first\n"
    )
    done = await command("cache", "unpin", "logs", "a\n")
    assert (done.code, done.err) == (0, "'logs': unpinned a\\n\n")
    done = await command("cache", "unpin", "logs", "a")
    assert (done.code, done.err.splitlines()[1]) == (6, "hint: look at the pins")


async def test_the_files_that_lead_are_listed(served: FakeService, command: Command) -> None:
    shown = await command("cache", "files", "logs", "--by", "hits")
    cells = shown.out.splitlines()[1].split()
    assert cells == ["4.0", "KiB", "2.0", "KiB", "yes", "1.0", "KiB", "0", "a\\n"]
    assert served.calls[-1][1]["by"] == "hits"


async def test_a_mount_may_be_called_as_an_action_is(served: FakeService, command: Command) -> None:
    """A word alone is a mount, and `show` says so in any case."""
    served.add_mount("warm")
    for words in (("warm",), ("show", "warm"), ("show", "warm", "a")):
        assert (await command("cache", *words)).code == 0
        assert served.calls[-1][1]["name"] == "warm"
    assert (await command("cache", "warm", "warm", "a")).err.startswith("warmed ")


@pytest.mark.parametrize(
    "words",
    [("warm", "logs"), ("evict", "logs"), ("show", "logs", "a", "b"), ("logs", "a", "b"), ("pins", "logs", "a")],
)  # fmt: skip
async def test_what_is_missing_or_too_much_is_said(
    served: FakeService, command: Command, words: tuple[str, ...]
) -> None:
    done = await command("cache", *words)
    assert done.code == 2
    assert "PATH" in done.err
