"""Trouble with S3 is known while it lasts and no longer, whether or not anybody asks for a file."""

import pytest
import trio
import trio.testing

from s3mgrd.errors import BucketNotFound, CredentialsRejected, Denied, S3mgrError, Unavailable
from s3mgrd.fs.health import FIRST_LOOK_S, LAST_LOOK_S, Health
from s3mgrd.s3.memory import MemoryStore

Clock = trio.testing.MockClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def watched(store: MemoryStore, nursery: trio.Nursery) -> Health:
    health = Health(store, "")
    nursery.start_soon(health.watch)
    await trio.testing.wait_all_tasks_blocked()
    return health


@pytest.mark.parametrize(
    "error", [Unavailable("down"), CredentialsRejected("expired"), BucketNotFound("gone")]
)
async def test_trouble_is_over_when_the_bucket_answers_again(
    store: MemoryStore, nursery: trio.Nursery, autojump_clock: Clock, error: S3mgrError
) -> None:
    health = await watched(store, nursery)
    store.fail_next("probe", error, times=3)
    health.note(error)
    await trio.sleep(3 * FIRST_LOOK_S)
    assert health.trouble is error
    await trio.sleep(2 * LAST_LOOK_S)
    assert health.trouble is None
    asked = store.calls["probe"]
    await trio.sleep(100 * LAST_LOOK_S)
    assert store.calls["probe"] == asked


async def test_a_request_that_succeeds_ends_the_trouble_at_once(
    store: MemoryStore, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    health = await watched(store, nursery)
    health.note(Unavailable("down"))
    assert health.trouble is not None
    await store.list_page("", delimited=True)
    assert health.trouble is None


async def test_a_refused_object_is_no_trouble_of_the_mount(
    store: MemoryStore, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    """Many refusals in a row cost one question in a while."""
    health = await watched(store, nursery)
    for _ in range(1000):
        health.note(Denied("not this one"))
        assert health.trouble is None
        await trio.sleep(FIRST_LOOK_S / 100)
    assert health.trouble is None
    assert 1 <= store.calls["probe"] <= 12


async def test_a_bucket_that_refuses_everything_is_trouble(
    store: MemoryStore, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    health = await watched(store, nursery)
    store.fail_next("probe", Denied("the policy changed"))
    health.note(Denied("not this one"))
    await trio.testing.wait_all_tasks_blocked()
    assert str(health.trouble) == "the policy changed"
    await trio.sleep(2 * LAST_LOOK_S)
    assert health.trouble is None


async def test_new_trouble_after_the_old_is_watched_too(
    store: MemoryStore, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    health = await watched(store, nursery)
    for _ in range(3):
        health.note(Unavailable("down"))
        assert health.trouble is not None
        await trio.sleep(2 * LAST_LOOK_S)
        assert health.trouble is None
