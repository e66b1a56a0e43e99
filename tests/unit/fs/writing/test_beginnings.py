"""Uploads that S3 began although nobody saw its answer: they go, a day later, and nobody else's does."""

from collections.abc import Mapping

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.errors import Denied, S3mgrError, TimedOut, Unavailable, Unsupported
from s3mgrd.fs.volume import NS
from s3mgrd.fs.writing.beginnings import CLOCKS_S, GRACE_S
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import ObjectHead
from tests.unit.fs.conftest import Lab
from tests.unit.fs.writing.test_streaming import BODY, begin, write


class Silent(MemoryStore):
    """A store whose answer to the first request for an upload gets lost: with `error`, or with who asked."""

    error: S3mgrError | None = None
    is_silent = True

    async def create_multipart(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        content_type: str | None = None,
        like: ObjectHead | None = None,
    ) -> str:
        upload_id = await super().create_multipart(
            key, metadata=metadata, content_type=content_type, like=like
        )
        if self.is_silent:
            self.is_silent = False
            if self.error is not None:
                raise self.error
            await trio.sleep_forever()
        return upload_id


@pytest.fixture
def silent(lab: Lab) -> Lab:
    """A lab with such a store, by whose clock it is as late as here."""
    lab.store = Silent()
    lab.store._now_ns = lab.now_ns
    return lab


def left(lab: Lab) -> list[tuple[object, ...]]:
    return list(lab.fs.volume.database.execute("SELECT key, until_ns FROM beginnings"))


async def uploads(lab: Lab) -> set[str]:
    return {upload.upload_id for upload in await lab.store.list_multiparts("")}


async def test_an_upload_begun_as_the_worker_died_is_aborted_a_day_later(silent: Lab) -> None:
    """And none that anybody else began, whatever its key."""
    store = silent.store
    before = await MemoryStore.create_multipart(store, "big", metadata={})
    store._now_ns += (CLOCKS_S + 1) * NS
    silent.later(CLOCKS_S + 1)
    async with silent.mounted():
        inode = await begin(silent)
        await write(silent, inode, 0, 11 << 20)
        assert left(silent) == [("big", None)]
    (ours,) = await uploads(silent) - {before}
    others = {before, await store.create_multipart("bigger", metadata={})}
    at_work = await store.create_multipart("big", metadata={})
    await store.upload_part("big", at_work, 1, b"theirs")
    async with silent.mounted() as fs:
        await write(silent, inode, 11 << 20, len(BODY))
        await fs.commit(inode)
        assert silent.data("big") == BODY
        await silent.settle()
        assert await uploads(silent) == {ours, at_work, *others}
        store._now_ns += (CLOCKS_S + 1) * NS
        others.add(await store.create_multipart("big", metadata={}))
        store.calls.clear()
        silent.later(GRACE_S - 1)
        await silent.settle()
        assert store.calls["list_multiparts"] == 0
        silent.later(1)
        await silent.settle()
        assert await uploads(silent) == {at_work, *others}
        assert left(silent) == []
        assert fs.syncer.left().is_nothing


@pytest.mark.parametrize("error", [Unavailable("lost"), TimedOut("lost")])
async def test_an_upload_whose_answer_got_lost_is_aborted_as_well(
    silent: Lab, error: S3mgrError
) -> None:
    assert isinstance(silent.store, Silent)
    silent.store.error = error
    async with silent.mounted() as fs:
        inode = await begin(silent)
        await write(silent, inode, 0, len(BODY))
        await fs.commit(inode)
        assert silent.data("big") == BODY
        assert left(silent) == [("big", silent.now_ns)]
        assert len(await uploads(silent)) == 1
        silent.later(GRACE_S)
        await silent.settle()
        assert await uploads(silent) == set()
        assert left(silent) == []


async def test_an_upload_that_is_known_stays_however_long_it_takes(
    silent: Lab, autojump_clock: MockClock
) -> None:
    assert isinstance(silent.store, Silent)
    silent.store.error = Unavailable("lost")
    async with silent.mounted():
        inode = await begin(silent)
        with silent.store.hold("upload_part"):
            await write(silent, inode, 0, len(BODY))
            await trio.sleep(60)  # it begins again
            known = silent.fs.volume.journal.upload(inode)
            assert known is not None
            assert len(await uploads(silent)) == 2
            silent.later(GRACE_S)
            await trio.sleep(5)
            assert await uploads(silent) == {known.upload_id}


async def test_what_was_refused_left_nothing(silent: Lab) -> None:
    silent.store.fail_next("create_multipart", Denied("no"), times=2)
    async with silent.mounted():
        inode = await begin(silent)
        await write(silent, inode, 0, 11 << 20)
        assert left(silent) == []


async def test_a_store_that_lists_no_uploads_is_not_asked_for_ever(
    silent: Lab, autojump_clock: MockClock
) -> None:
    assert isinstance(silent.store, Silent)
    silent.store.error = Unavailable("lost")
    silent.store.fail_next("list_multiparts", Unavailable("later"))
    silent.store.fail_next("list_multiparts", Unsupported("never"))
    async with silent.mounted():
        inode = await begin(silent)
        await write(silent, inode, 0, 11 << 20)
        silent.later(GRACE_S)
        await trio.sleep(600)
        await wait_all_tasks_blocked()
        assert silent.store.calls["list_multiparts"] == 2
        assert left(silent) == []
