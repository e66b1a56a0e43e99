"""The table of states: complete, without dead ends, and enforced."""

from typing import get_args

import pytest

from s3mgr.schema import MountState
from s3mgrd.mounts.machine import UP, Reason, is_settled, may_follow
from s3mgrd.mounts.status import StatusKeeper

STATES: tuple[MountState, ...] = get_args(MountState)

ILLEGAL: frozenset[tuple[MountState, MountState]] = frozenset(
    {
        # A state that was left for good is not entered again behind the reconciler's back.
        ("mounting", "pending"),
        ("mounted", "pending"),
        ("degraded", "pending"),
        ("draining", "mounting"),
        # What is down comes up only by way of an attempt. Only "failed" may be up: without its bucket.
        ("unmounted", "mounting"),
        ("unmounted", "mounted"),
        ("unmounted", "degraded"),
    }
)


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_every_pair_of_states_is_decided(old: MountState, new: MountState) -> None:
    assert may_follow(old, new) == ((old, new) not in ILLEGAL)


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_the_keeper_refuses_what_the_table_refuses(old: MountState, new: MountState) -> None:
    changes: list[str] = []
    keeper = StatusKeeper("m", old, "", lambda: changes.append("changed"))
    if may_follow(old, new):
        keeper.enter(new, "why")
        assert keeper.state == new
        assert changes == ["changed"]
    else:
        with pytest.raises(AssertionError):
            keeper.enter(new, "why")


def test_every_state_can_be_left_and_reached() -> None:
    for state in STATES:
        others = [s for s in STATES if s != state]
        assert any(may_follow(state, other) for other in others)
        assert state == "pending" or any(may_follow(other, state) for other in others)


def test_only_what_goes_on_is_unsettled() -> None:
    assert {s for s in STATES if not is_settled(s)} == {"pending", "mounting", "draining"}
    assert {"mounted", "degraded"} == UP


def test_since_changes_with_the_state_only() -> None:
    keeper = StatusKeeper("m", "mounted", "", lambda: None)
    since = keeper.now.since
    keeper.enter("mounted", Reason.RESUMED)
    assert keeper.now.since == since
    keeper.enter("degraded", Reason.WORKER_RESTARTING)
    assert keeper.now.since > since
