"""The hooks of the store in memory; what it stores is in the contract suite."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.errors import BucketNotFound, Unavailable
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import Condition


async def test_a_held_operation_waits_until_it_is_released() -> None:
    store = MemoryStore()
    store.insert("k", b"data")
    done: list[bytes | memoryview] = []

    async def read() -> None:
        done.append((await store.get_range("k", 0, 4)).data)

    async with trio.open_nursery() as nursery:
        with store.hold("get_range") as hold:
            nursery.start_soon(read)
            nursery.start_soon(read)
            await hold.arrived()
            await wait_all_tasks_blocked()
            assert (hold.waiting, done) == (2, [])
            await store.head("k")  # other operations pass
            hold.release()
            await wait_all_tasks_blocked()
            assert done == [b"data"] * 2
            await store.get_range("k", 0, 1)  # released for good
    assert hold.waiting == 0


async def test_a_held_write_takes_effect_after_its_release() -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        with store.hold("put") as hold:
            nursery.start_soon(lambda: store.put("k", b"x", metadata={}))
            await hold.arrived()
            assert store.objects == {}
    assert list(store.objects) == ["k"]


async def test_a_cancelled_call_does_nothing() -> None:
    store = MemoryStore()
    with store.hold("put") as hold:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: store.put("k", b"x", metadata={}))
            await hold.arrived()
            nursery.cancel_scope.cancel()
        assert hold.waiting == 0
    assert store.objects == {}


async def test_the_next_calls_fail_as_often_as_told() -> None:
    store = MemoryStore()
    store.fail_next("put", Unavailable("broken"), times=2)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await store.put("k", b"x", metadata={})
    assert store.objects == {}
    await store.put("k", b"x", metadata={})
    assert store.stats.calls["put"].errors == 2


async def test_calls_are_counted_and_seen() -> None:
    store = MemoryStore()
    seen: list[tuple[str, str]] = []
    store.before = lambda operation, key: seen.append((operation, key))
    await store.put("k", b"x", metadata={})
    await store.list_page("", delimited=True)
    assert store.calls == {"put": 1, "list_page": 1}
    assert seen == [("put", "k"), ("list_page", "")]


async def test_times_come_from_the_clock() -> None:
    now = 1_000_000_123_456
    store = MemoryStore(clock=lambda: now)
    assert store.insert("k").mtime_ns == 1_000_000_000_000
    other = MemoryStore()
    assert other.insert("a").mtime_ns < other.insert("b").mtime_ns


async def test_it_runs_on_a_clock_that_jumps(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        with store.hold("head") as hold:
            nursery.start_soon(store.head, "k")
            store.insert("k")
            await trio.sleep(3600)
            hold.release()
    assert store.stats.calls["head"].seconds == pytest.approx(3600)


async def test_others_may_write_delete_and_remove_the_bucket() -> None:
    store = MemoryStore()
    store.insert("k", b"1", metadata={"m": "1"}, storage_class="GLACIER")
    assert (await store.head("k")).storage_class == "GLACIER"
    store.remove("k")
    store.remove("k")
    assert (await store.list_page("", delimited=False)).objects == []
    store.bucket_exists = False
    with pytest.raises(BucketNotFound):
        await store.probe("")


async def test_it_can_play_a_store_without_conditions() -> None:
    store = MemoryStore(conditions="unsupported")
    await store.put("k", b"1", metadata={})
    await store.put("k", b"2", metadata={}, condition=Condition(absent=True))
    assert store.objects["k"].data == b"2"
