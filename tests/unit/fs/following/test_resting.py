"""What waits for more of its kind: one request for many, and nothing waits long, or for nothing."""

import trio
from trio.testing import MockClock

from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.following.resting import LONGEST_S, MANY, QUIET_S, Leftovers
from s3mgrd.fs.writing.backlog import GATHER_S
from tests.unit.fs.conftest import Lab

STEP_S = QUIET_S / 2
SOON_S = 2 * GATHER_S + 0.01
"""As long as anything waits that does not rest."""


async def wait(lab: Lab, seconds: float) -> None:
    """Let time pass for everybody."""
    lab.later(seconds)
    await trio.sleep(seconds)


async def replace(lab: Lab, name: str) -> None:
    """Write a file under another name and rename it, as rsync does."""
    await lab.write(f".{name}.tmp", b"hello")
    await lab.rename(f".{name}.tmp", name)


async def test_what_renames_leave_is_deleted_by_one_request_for_many(
    lab: Lab, autojump_clock: MockClock
) -> None:
    async with lab.mounted():
        start = trio.current_time()
        for number in range(int(3 * LONGEST_S / STEP_S)):
            await replace(lab, f"f{number}")
            await wait(lab, STEP_S)
            oldest = lab.store.objects.get(f".f{number - int((LONGEST_S + 1) / STEP_S)}.tmp")
            assert oldest is None
        assert lab.store.calls["delete_many"] == int((trio.current_time() - start) / LONGEST_S) - 1
        await wait(lab, QUIET_S + SOON_S)
        assert not [key for key in lab.stored() if key.endswith(".tmp")]


async def test_what_one_rename_leaves_is_deleted_soon(lab: Lab, autojump_clock: MockClock) -> None:
    async with lab.mounted():
        await replace(lab, "a")
        await wait(lab, QUIET_S + 2 * SOON_S)
        assert lab.stored() == ["a"]


async def test_a_removal_does_not_rest_and_takes_along_what_does(
    lab: Lab, autojump_clock: MockClock
) -> None:
    async with lab.mounted():
        await lab.write("b", b"")
        await replace(lab, "a")
        await wait(lab, SOON_S)
        assert lab.stored() == [".a.tmp", "a", "b"]
        await lab.unlink("b")
        await wait(lab, SOON_S)
        assert lab.stored() == ["a"]
        assert lab.store.calls["delete_many"] == 1


async def test_who_waits_for_everything_waits_for_no_rest(
    lab: Lab, autojump_clock: MockClock
) -> None:
    async with lab.mounted():
        await lab.mkdir("d")
        await wait(lab, GATHER_S / 2)
        await lab.write("d/b", b"")
        await replace(lab, "a")
        start = trio.current_time()
        await lab.settle()
        assert trio.current_time() < start + SOON_S
        assert lab.stored() == ["a", "d/", "d/b"]


async def test_many_do_not_rest(autojump_clock: MockClock) -> None:
    leftovers = Leftovers()
    keys = [str(number) for number in range(MANY)]
    for key in keys:
        leftovers.add(key)
    now = trio.current_time()
    assert leftovers.due_at(keys[1:]) == now + QUIET_S
    assert leftovers.due_at(keys) < now
    leftovers.drop(keys[1:])
    assert leftovers.due_at(keys) < now  # not all of them were left by renames
    await trio.sleep(LONGEST_S)
    for number in range(3 * MANY):  # and never deleted, because they were written anew
        leftovers.add(f"new {number}")
    assert leftovers.due_at(keys[:1]) < now


async def test_a_directory_that_is_being_filled_is_described_when_it_is_full(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """As tar and rsync do it: a directory gets its times last."""
    async with lab.mounted() as fs:
        directory = await lab.mkdir("d")
        for name in "abcd":
            await wait(lab, GATHER_S / 2)
            await lab.write(f"d/{name}", b"")
        await fs.attributes.change(directory.id, AttributeChange(mtime_ns=7))
        await wait(lab, SOON_S)
        assert lab.stored() == ["d/", "d/a", "d/b", "d/c", "d/d"]
        assert lab.store.calls["put"] == 5
        assert float(lab.store.objects["d/"].head.metadata["mtime"]) == 7e-9


async def test_an_empty_directory_is_made_at_once(lab: Lab, autojump_clock: MockClock) -> None:
    async with lab.mounted():
        await lab.mkdir("d")
        await wait(lab, SOON_S)
        assert lab.stored() == ["d/"]


async def test_a_directory_that_is_filled_for_long_is_described_before(
    lab: Lab, autojump_clock: MockClock
) -> None:
    step_s = GATHER_S / 2
    async with lab.mounted():
        await lab.mkdir("d")
        for number in range(int((LONGEST_S + 1) / step_s)):
            await lab.write(f"d/{number}", b"")
            await wait(lab, step_s)
            if number * step_s < LONGEST_S:
                assert "d/" not in lab.stored()
        assert "d/" in lab.stored()


async def test_a_directory_of_the_future_does_not_rest(lab: Lab, autojump_clock: MockClock) -> None:
    async with lab.mounted() as fs:
        directory = await lab.mkdir("d")
        await wait(lab, GATHER_S / 2)
        await fs.attributes.change(directory.id, AttributeChange(mtime_ns=lab.now_ns + 10**18))
        await wait(lab, SOON_S)
        assert lab.stored() == ["d/"]
