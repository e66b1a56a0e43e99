"""An upload of no use beside the first large one: nobody waits for it, and nothing of it stays."""

import pytest
import trio

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.fs.relocation import PARKED
from s3mgrd.fs.writing.beginnings import GRACE_S
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import TRIAL
from tests.unit.fs.conftest import Lab
from tests.unit.fs.writing.test_streaming import BODY, begin, write


class Curious(MemoryStore):
    """A store that wants a trial, which leaves an object and fails with `error`, if there is one, or an upload if it `hangs`."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[str] = []
        self.error: S3mgrError | None = None
        self.hangs = False

    @property
    def wants_trial(self) -> bool:
        return not self.tried

    async def try_upload(self, key: str) -> None:
        self.tried.append(key)
        if self.hangs:
            await self.create_multipart(key, metadata={})
            await trio.sleep_forever()
        if self.error is not None:
            self.insert(key, TRIAL)
            raise self.error


@pytest.fixture
def curious(lab: Lab) -> Curious:
    lab.store = Curious()
    return lab.store


async def test_the_first_upload_of_several_parts_has_the_store_tried_once(
    lab: Lab, curious: Curious
) -> None:
    async with lab.mounted() as fs:
        for name in ("a", "b"):
            inode = await begin(lab, name)
            await write(lab, inode, 0, len(BODY))
            await fs.commit(inode)
        assert len(curious.tried) == 1
        assert curious.tried[0].startswith(PARKED)
        assert not fs.volume.journal.writes_below("")


async def test_a_change_of_a_large_object_has_it_tried_too(lab: Lab, curious: Curious) -> None:
    curious.insert("a", BODY)
    async with lab.mounted() as fs:
        node = await lab.get("a")
        await fs.stages.write(node.id, 0, b"new")
        await fs.commit(node.id)
        assert len(curious.tried) == 1


async def test_what_a_trial_left_is_not_shown_and_deleted(lab: Lab, curious: Curious) -> None:
    curious.error = Unavailable("it answers no more")
    async with lab.mounted() as fs:
        inode = await begin(lab, "a")
        await write(lab, inode, 0, len(BODY))
        await fs.commit(inode)
        assert await lab.ls() == ["a"]
        fs.syncer.wake()
        await trio.sleep(1)  # by a clock that jumps
        assert lab.stored() == ["a"]


async def test_a_trial_that_s3_began_as_the_worker_died_is_aborted_a_day_later(
    lab: Lab, curious: Curious
) -> None:
    curious.hangs = True
    curious._now_ns = lab.now_ns
    async with lab.mounted() as fs:
        inode = await begin(lab, "a")
        await write(lab, inode, 0, len(BODY))
        await fs.commit(inode)
    (upload,) = await curious.list_multiparts("")
    assert upload.key == curious.tried[0]
    async with lab.mounted():
        lab.later(GRACE_S)
        await lab.settle()
        assert await curious.list_multiparts("") == []
