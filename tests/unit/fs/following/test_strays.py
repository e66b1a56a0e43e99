"""Requests that S3 carried out and nobody saw end: what they left is taken up, or removed, and never shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import ANY

import pytest
import trio
import trio.testing

from s3mgrd.errors import Unavailable
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.s3.port import ObjectHead
from tests.unit.fs.conftest import Lab


@contextmanager
def answers_lost(lab: Lab, operation: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have S3 do what it is asked, and the answer never come."""
    really = getattr(lab.store, operation)

    async def unseen(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        await really(*args, **kwargs)
        raise Unavailable("no answer came")

    with monkeypatch.context() as patch:
        patch.setattr(lab.store, operation, unseen)
        yield


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_file_renamed_after_an_unseen_upload_leaves_nothing_behind(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    """The worker died between S3's answer and its own note of it, and the program went on with mv."""
    async with lab.mounted():
        with answers_lost(lab, "put", monkeypatch), pytest.raises(Unavailable):
            await lab.write("a", b"1", exclusive=exclusive)
        assert lab.stored() == ["a"]
    async with lab.mounted():
        await lab.rename("a", "b")
        lab.later(60)
        assert await lab.ls() == ["b"]
        await lab.settle()
        assert lab.stored() == ["b"]
        assert await lab.find("a") is None


async def test_a_file_removed_after_an_unseen_upload_does_not_come_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.mounted():
        await lab.mkdir("d")
        with answers_lost(lab, "put", monkeypatch), pytest.raises(Unavailable):
            await lab.write("d/a", b"1")
    async with lab.mounted(sync=False):
        await lab.unlink("d/a")
        lab.later(60)
        assert await lab.ls("d") == []
        assert await lab.find("d/a") is None
        await lab.rmdir("d")
    async with lab.mounted():
        await lab.settle()
        assert lab.stored() == []


async def test_an_upload_that_s3_carries_out_after_its_worker_died_leaves_nothing_behind(
    lab: Lab, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes were on their way, or the server was slow, when the next worker looked for it."""
    late: list[Any] = []

    async def sent(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - kept
        late.append((args, kwargs))
        raise Unavailable("the worker died")

    async with lab.mounted():
        with monkeypatch.context() as patch:
            patch.setattr(lab.store, "put", sent)
            with pytest.raises(Unavailable):
                await lab.write("a", b"1")
    async with lab.mounted():
        await lab.rename("a", "b")
        looked = trio.Event()
        really = lab.store.head

        async def head(key: str) -> ObjectHead:
            try:
                return await really(key)
            finally:
                if key == "a":
                    looked.set()

        monkeypatch.setattr(lab.store, "head", head)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.settle)
            await looked.wait()
            await trio.testing.wait_all_tasks_blocked()
            ((args, kwargs),) = late
            await lab.store.put(*args, **kwargs)
            lab.later(60)
            assert await lab.ls() == ["b"]
        assert lab.fs.syncer.left().is_nothing
        assert lab.stored() == ["b"]


async def test_a_file_written_on_after_an_unseen_upload_has_lost_no_race(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 has our own former content where the condition wants the version before, or nothing."""
    lab.store.insert("old", b"version")
    async with lab.mounted():
        for name, exclusive in (("new", True), ("old", False)):
            if exclusive:
                node = await lab.write(name, b"one", exclusive=True, close=False)
            else:
                node = await lab.get(name)
                await lab.fs.stages.write(node.id, 0, b"V")
            with answers_lost(lab, "put", monkeypatch), pytest.raises(Unavailable):
                await lab.fs.commit(node.id)
            lab.later(1)
            await lab.fs.stages.write(node.id, 1, b"!!")
            await lab.fs.commit(node.id)
    assert lab.data("new") == b"o!!"
    assert lab.data("old") == b"V!!sion"


async def test_a_large_upload_completed_unseen_is_not_sent_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(251)) * 60_000
    async with lab.mounted():
        node = await lab.write("big", body, close=False)
        with answers_lost(lab, "complete_multipart", monkeypatch), pytest.raises(Unavailable):
            await lab.fs.commit(node.id)
    sent = lab.store.calls["upload_part"]
    async with lab.mounted():
        await lab.fs.commit(node.id)
        assert lab.store.calls["upload_part"] == sent
        assert lab.fs.syncer.left().is_nothing
        assert await lab.read("big") == body


async def test_an_upload_abandoned_before_a_crash_is_aborted_after_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.mounted(sync=False):
        node = await lab.write("big", bytes(15 << 20), close=False)
        lab.store.fail_next("complete_multipart", Unavailable("down"))
        with pytest.raises(Unavailable):
            await lab.fs.commit(node.id)
        await lab.fs.stages.write(node.id, 0, b"changed")
    assert len(await lab.store.list_multiparts("")) == 1
    async with lab.mounted():
        assert not lab.fs.syncer.left().is_nothing
        await lab.settle()
        assert await lab.store.list_multiparts("") == []


async def test_the_upload_of_a_copy_that_a_crash_ended_is_aborted_after_it(lab: Lab) -> None:
    """And one that goes on is not."""
    async with lab.mounted():
        journal = lab.fs.volume.journal
        for key in ("dead", "done"):
            upload_id = await lab.store.create_multipart(key, metadata={})
            journal.upload_begun(key, upload_id)
        await lab.settle()
        assert len(await lab.store.list_multiparts("")) == 2
        await lab.store.abort_multipart("done", upload_id)
        journal.upload_ended(upload_id)
    async with lab.mounted():
        assert lab.fs.volume.journal.abandoned() == [("dead", ANY)]
        await lab.settle()
        assert await lab.store.list_multiparts("") == []
        assert lab.fs.volume.journal.abandoned() == []


async def test_another_writers_object_is_not_taken_for_ours(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.mounted():
        with answers_lost(lab, "put", monkeypatch), pytest.raises(Unavailable):
            await lab.write("a", b"1")
        lab.store.insert("a", b"theirs")
        await lab.rename("a", "b")
        await lab.settle()
        assert lab.stored() == ["a", "b"]
        assert lab.data("a") == b"theirs"
        lab.later(60)
        assert await lab.ls() == ["a", "b"]


async def test_a_directory_renamed_after_its_unseen_marker_is_at_one_place(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.mounted():
        with answers_lost(lab, "put", monkeypatch):
            node = await lab.mkdir("d")
            with pytest.raises(Unavailable):
                await lab.fs.syncer._objects.mark(node.id)
            assert lab.stored() == ["d/"]
    async with lab.mounted():
        await lab.rename("d", "e")
        lab.later(60)
        assert await lab.ls() == ["e/"]
        await lab.settle()
        assert lab.stored() == ["e/"]


async def test_a_directory_renamed_around_an_unseen_upload_takes_no_stray_along(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.mounted():
        await lab.mkdir("d")
        await lab.write("d/kept", b"2")
        with answers_lost(lab, "put", monkeypatch), pytest.raises(Unavailable):
            await lab.write("d/a", b"1")
        await lab.unlink("d/a")
        await lab.rename("d", "e")
        await lab.settle()
        assert lab.stored() == ["e/", "e/kept"]


async def test_a_rename_seen_by_nobody_and_then_renamed_again_ends_at_one_place(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.store.clock = lambda: lab.now_ns
    async with lab.mounted(sync=False):
        node = await lab.write("a", b"1")
        await lab.rename("a", "b")
        with answers_lost(lab, "copy", monkeypatch), pytest.raises(Unavailable):
            await lab.fs.syncer._objects.place(node.id)
        assert lab.stored() == ["a", "b"]
    async with lab.mounted():
        await lab.rename("b", "c")
        await lab.settle()
        assert lab.stored() == ["c"]


async def test_attributes_written_unseen_do_not_make_a_version_of_somebody_elses(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a large object onto itself gets another ETag, and its open files must not go stale for that."""
    really = lab.store.copy

    async def copy_with_other_etag(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        await really(*args, **kwargs)
        lab.store.insert("a", b"2", metadata=kwargs["metadata"])  # the ETag comes from the bytes
        raise Unavailable("no answer came")

    async with lab.mounted(sync=False):
        node = await lab.write("a", b"1")
        lab.held = {node.id}
        await lab.fs.attributes.change(node.id, AttributeChange(mode=0o600, mtime_ns=77))
        with monkeypatch.context() as patch:
            patch.setattr(lab.store, "copy", copy_with_other_etag)
            with pytest.raises(Unavailable):
                await lab.fs.syncer._objects.describe(node.id)
    async with lab.mounted():
        await lab.settle()
        lab.later(60)
        again = await lab.get("a")
        assert (again.id, again.mode) == (node.id, 0o600)
        assert await lab.read_inode(node.id) == b"2"
