"""Changes that come together share transactions, a few at a time; what one of them raises is its own affair."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from s3mgrd.cache.database import MountDatabase
from s3mgrd.fs.following.turns import TURN, Turns
from tests.unit.fs.conftest import Lab


@asynccontextmanager
async def opened(lab: Lab) -> AsyncIterator[tuple[MountDatabase, Turns]]:
    """Give the database of a mount that does nothing else, and turns of it."""
    async with lab.mounted(sync=False) as fs:
        yield fs.volume.database, Turns(fs.volume.database)


def nothing(_: object) -> None:
    """Do nothing when a change is committed."""


async def test_changes_that_come_together_share_transactions_of_a_few(lab: Lab) -> None:
    async with opened(lab) as (database, turns):
        before = database._written
        seen: list[None] = []
        async with trio.open_nursery() as nursery:
            for number in range(2 * TURN + 1):
                nursery.start_soon(
                    turns.make, partial(database.set_meta, f"n{number}", "x"), seen.append
                )
        assert len(seen) == 2 * TURN + 1
        assert database._written - before == 3
        assert all(database.get_meta(f"n{number}") == "x" for number in range(2 * TURN + 1))


async def test_others_are_looked_at_between_two_turns(lab: Lab) -> None:
    """A program's request does not wait for all uploads that wake at once."""
    async with opened(lab) as (database, turns):
        done: list[None] = []
        most = 0

        async def look() -> None:
            nonlocal most
            before = 0
            while len(done) < 5 * TURN:
                most, before = max(most, len(done) - before), len(done)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for number in range(5 * TURN):
                nursery.start_soon(
                    turns.make, partial(database.set_meta, f"n{number}", "x"), done.append
                )
        assert 0 < most <= 2 * TURN  # two turns, where the loop runs the heir before who looks


async def test_what_one_change_raises_does_not_touch_the_others(lab: Lab) -> None:
    async with opened(lab) as (database, turns):
        followed: list[None] = []

        def fail() -> None:
            database.set_meta("bad", "x")
            raise OSError(5, "no")

        async def fails() -> None:
            with pytest.raises(OSError, match="no"):
                await turns.make(fail, followed.append)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.make, partial(database.set_meta, "a", "x"), followed.append)
            nursery.start_soon(fails)
            nursery.start_soon(turns.make, partial(database.set_meta, "b", "x"), followed.append)
        assert (database.get_meta("a"), database.get_meta("b")) == ("x", "x")
        assert database.get_meta("bad") is None
        assert len(followed) == 2


async def test_what_follows_one_change_and_fails_is_raised_to_who_asked_for_it(lab: Lab) -> None:
    async with opened(lab) as (database, turns):

        def fail(_: object) -> None:
            raise OSError(28, "full")

        async def fails() -> None:
            with pytest.raises(OSError, match="full"):
                await turns.make(partial(database.set_meta, "a", "x"), fail)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(turns.make, partial(database.set_meta, "b", "x"), nothing)
        assert (database.get_meta("a"), database.get_meta("b")) == ("x", "x")


@pytest.mark.parametrize("cancelled", [0, 1, TURN])
async def test_who_is_cancelled_keeps_nobody_from_their_changes(lab: Lab, cancelled: int) -> None:
    """Also the first, who would have made the changes of all; what follows a change is done where the change is."""
    async with opened(lab) as (database, turns):
        scope = trio.CancelScope()
        followed: list[None] = []

        async def make(number: int) -> None:
            change = partial(database.set_meta, f"n{number}", "x")
            if number != cancelled:
                await turns.make(change, nothing)
                return
            with scope:
                await turns.make(change, followed.append)

        scope.cancel()
        async with trio.open_nursery() as nursery:
            for number in range(TURN + 1):
                nursery.start_soon(make, number)
        made = {n for n in range(TURN + 1) if database.get_meta(f"n{n}") == "x"}
        assert made >= set(range(TURN + 1)) - {cancelled}
        assert (cancelled in made) == bool(followed)
        await turns.make(partial(database.set_meta, "later", "x"), nothing)
        assert database.get_meta("later") == "x"
