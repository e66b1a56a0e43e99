"""Events: order, resumption, resets, and subscribers that are too slow."""

from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from s3mgr.schema import Event
from s3mgrd.mounts.events import KEPT_EVENTS, SUBSCRIBER_EVENTS, EventLog
from s3mgrd.mounts.store import EventRecord
from s3mgrd.state.store import StateStore, memory_store
from tests.fakes.control import BOB, ROOT, control, make_config


@pytest.fixture
def store() -> Iterator[StateStore]:
    with memory_store() as opened:
        yield opened


def anybody(record: EventRecord) -> bool:
    return True


async def collect(log: EventLog, since: int | None) -> list[Event]:
    async with log.subscribe(since, anybody) as events:
        log.close()
        return [event async for event in events]


async def started(store: StateStore) -> EventLog:
    stored = await store.load()
    log = EventLog(store)
    log.start(stored.events, stored.last_cursor)
    return log


async def test_who_lists_and_then_watches_misses_nothing(store: StateStore) -> None:
    log = await started(store)
    log.publish("mount.added", "a")
    cursor = log.cursor
    log.publish("mount.state", "a")
    async with log.subscribe(cursor, anybody) as events:
        log.publish("mount.removed", "a")
        assert [(await anext(events)).type for _ in range(2)] == ["mount.state", "mount.removed"]


async def test_without_a_cursor_only_what_comes_is_seen(store: StateStore) -> None:
    log = await started(store)
    log.publish("mount.added", "a")
    assert await collect(log, None) == []


async def test_events_survive_the_daemon_and_cursors_never_repeat(store: StateStore) -> None:
    log = await started(store)
    for name in "abc":
        log.publish("mount.added", name)
    await log.flush()
    last = log.cursor
    log = await started(store)
    assert log.cursor > last
    log.publish("mount.added", "d")
    seen = await collect(log, 1)
    assert [e.mount for e in seen] == ["b", "c", "d"]
    assert [e.cursor for e in seen] == sorted({e.cursor for e in seen})


async def test_a_cursor_whose_events_a_crash_lost_gets_a_reset(store: StateStore) -> None:
    log = await started(store)
    log.publish("mount.added", "a")
    await log.flush()
    log.publish("mount.added", "lost")
    lost = log.cursor
    log = await started(store)
    assert [e.type for e in await collect(log, lost)] == ["reset"]


async def test_too_old_and_impossible_cursors_get_one_reset_with_the_cursor_to_go_on_from(
    store: StateStore,
) -> None:
    log = await started(store)
    for number in range(KEPT_EVENTS + 10):
        log.publish("mount.added", str(number))
    for since in (0, 9, log.cursor + 1):
        async with log.subscribe(since, anybody) as events:
            reset = await anext(events)
            assert (reset.type, reset.cursor) == ("reset", log.cursor)
    assert len(await collect(log, 10)) == KEPT_EVENTS


async def test_only_the_last_events_are_stored(store: StateStore) -> None:
    log = await started(store)
    for number in range(KEPT_EVENTS + 10):
        log.publish("mount.added", str(number))
        if number % 500 == 0:
            await log.flush()
    await log.flush()
    stored = await store.load()
    assert len(stored.events) == KEPT_EVENTS
    assert stored.last_cursor == log.cursor


async def test_a_slow_subscriber_is_closed_and_the_others_are_not(store: StateStore) -> None:
    log = await started(store)
    async with log.subscribe(None, anybody) as slow, log.subscribe(None, anybody) as quick:
        for _ in range(SUBSCRIBER_EVENTS + 1):
            log.publish("mount.state", "a")
            await anext(quick)
        assert len([event async for event in slow]) == SUBSCRIBER_EVENTS
        log.publish("mount.state", "b")
        assert (await anext(quick)).mount == "b"


async def test_events_are_stored_soon_without_being_asked(
    autojump_clock: MockClock, store: StateStore
) -> None:
    log = await started(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.publish("mount.added", "a")
        await trio.sleep(1)
        assert (await store.load()).last_cursor == 1
        nursery.cancel_scope.cancel()


async def test_subscribers_see_only_what_they_may(autojump_clock: MockClock) -> None:
    async with (
        control(config=make_config(list_visibility="own")) as c,
        c.manager.subscribe(BOB, since=None) as his,
        c.manager.subscribe(ROOT, since=None) as all_of_them,
    ):
        await c.mount()
        assert (await anext(all_of_them)).mount == "data"
        await c.manager.stop()
        assert [e.type async for e in his] == ["daemon.stopping"]
        assert "mount.state" in [e.type async for e in all_of_them]


async def test_a_mount_tells_its_life(autojump_clock: MockClock) -> None:
    async with control() as c:
        cursor = c.manager.list_mounts(ROOT).cursor
        await c.mount()
        operation = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=1)
        assert operation is not None
        await c.manager.wait_operation(operation.id)
        seen = []
        async with c.manager.subscribe(ROOT, since=cursor) as events:
            async for event in events:
                seen.append((event.type, event.data.get("state")))
                if event.type == "operation.changed" and len(seen) > 6:
                    break
        assert [s for s in seen if s[0] != "operation.changed"] == [
            ("mount.added", None),
            ("mount.state", "mounting"),
            ("mount.state", "mounted"),
            ("mount.state", "draining"),
            ("mount.state", "unmounted"),
            ("mount.removed", None),
        ]
