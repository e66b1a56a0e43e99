"""The store keeps records, apart from their secrets, and survives being used at once."""

import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import trio

from s3mgr.schema import Event, Operation
from s3mgrd.errors import Unavailable
from s3mgrd.mounts.store import EventRecord, OperationRecord
from s3mgrd.state.store import memory_store
from tests.fakes.control import KEYS
from tests.unit.state.test_opening import NOW, opened, record


def event(cursor: int) -> EventRecord:
    return EventRecord(event=Event(cursor=cursor, type="mount.added", time=NOW), owner_uid=None)


def operation(number: int, **changes: object) -> OperationRecord:
    base = Operation(
        id=str(number), kind="mount", target="m", state="running", created_at=NOW, boot_id="b"
    )
    return OperationRecord(operation=msgspec.structs.replace(base, **changes), owner_uid=1)


def all_bytes(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir())


async def test_records_come_back_as_they_were_kept() -> None:
    with memory_store() as store:
        variants = (
            record("a"),
            record("b", credentials=None, desired="unmounted", reason="asked", may_be_dirty=True),
            record("c", provisional=True, forget=True, privileged=True, generation=9),
        )
        for variant in variants:
            await store.save_mount(variant)
        assert (await store.load()).mounts == variants
        changed = replace(variants[0], generation=2, credentials=None)
        await store.save_mount(changed)
        assert (await store.load()).mounts == (changed, *variants[1:])
        await store.forget_mount("b")
        await store.forget_mount("b")
        assert [m.name for m in (await store.load()).mounts] == ["a", "c"]


async def test_secrets_are_apart_from_specs_and_go_with_their_mount(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await store.save_mount(record())
    db = sqlite3.connect(tmp_path / "state.db")
    specs = db.execute("select * from mounts").fetchall()
    assert KEYS.secret_key not in repr(specs)
    db.close()
    with opened(tmp_path) as store:
        await store.forget_mount("data")
    assert KEYS.secret_key.encode() not in all_bytes(tmp_path)


async def test_cursors_are_remembered_when_their_events_are_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await store.append_events(tuple(event(n) for n in range(1, 11)), keep=3)
    with opened(tmp_path) as store:
        await store.append_events((), keep=0)
        stored = await store.load()
    assert stored.events == ()
    assert stored.last_cursor == 10


async def test_old_operations_are_pruned_and_running_ones_kept() -> None:
    with memory_store() as store:
        old = NOW - timedelta(days=2)
        await store.save_operations(
            (
                operation(1),
                operation(2, state="succeeded", finished_at=old),
                operation(3, state="failed", finished_at=NOW),
            )
        )
        await store.prune_operations(NOW - timedelta(days=1))
        kept = {o.operation.id for o in (await store.load()).operations}
        assert kept == {"1", "3"}


async def test_many_tasks_may_write_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(store.save_mount, record(f"m{number}"))
                nursery.start_soon(store.save_operations, (operation(number),))
        stored = await store.load()
    assert (len(stored.mounts), len(stored.operations)) == (20, 20)


async def test_a_second_opening_waits_for_the_first_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3mgrd.state.opening.BUSY_TIMEOUT_S", 0.05)
    with opened(tmp_path) as store:
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match="locked"):
            await store.save_mount(record())
        other.execute("rollback")
        other.close()
        await store.save_mount(record())
