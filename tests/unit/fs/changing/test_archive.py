"""Archived objects: what needs their bytes fails before anything is changed, and what does not need them works."""

import errno
import os

import msgspec
import pytest

from s3mgr.schema import RestoreRequest
from s3mgrd.cache.nodes import ROOT
from s3mgrd.errors import Archived, Unavailable
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.inspecting.restoring import Restorer
from s3mgrd.fs.kernel.errnos import errno_of
from s3mgrd.s3.port import MOVING_CLASS
from s3mgrd.worker.protocol import MAX_MESSAGE_BYTES
from tests.unit.fs.conftest import START_NS, Lab, settings

DAY_S = 86_400


@pytest.fixture
def cold(lab: Lab) -> Lab:
    """A bucket with archived objects and others."""
    lab.store.clock = lambda: lab.now_ns
    lab.store.insert("cold", b"hello", storage_class="DEEP_ARCHIVE")
    lab.store.insert("warm", b"hello", storage_class="STANDARD_IA")
    lab.store.insert("empty", b"", storage_class="GLACIER")
    lab.store.insert("d/a", b"aa", storage_class="GLACIER")
    lab.store.insert("d/b", b"bb")
    lab.store.insert("d/e/c", b"cc", storage_class="GLACIER")
    return lab


async def opened(lab: Lab, path: str, flags: int = os.O_RDONLY) -> None:
    await lab.fs.archive.opening(await lab.get(path), flags)


async def refused(lab: Lab, path: str, flags: int = os.O_RDONLY) -> str:
    with pytest.raises(Archived) as caught:
        await opened(lab, path, flags)
    assert errno_of(caught.value) == errno.EIO
    return caught.value.detail


async def test_opening_fails_with_the_class_and_costs_one_head(cold: Lab) -> None:
    """The listing says that an object is archived; only whether a copy was restored has to be asked."""
    async with cold.mounted():
        await cold.ls()
        cold.store.calls.clear()
        for path in ("warm", "empty"):
            await opened(cold, path)
        assert cold.store.calls["head"] == 0
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            said = await refused(cold, "cold", flags)
            assert "'cold' is archived in storage class DEEP_ARCHIVE and must be restored" in said
        assert (cold.store.calls["head"], cold.store.calls["get_range"]) == (1, 0)
        cold.later(31)
        node = await cold.get("cold")
        cold.store.calls.clear()
        for _ in range(2):
            with pytest.raises(Archived):
                await cold.fs.archive.opening(node, os.O_RDONLY)
        assert cold.store.calls["head"] == 1


async def test_what_is_archived_is_known_after_a_restart_and_followed_by_listings(
    cold: Lab,
) -> None:
    async with cold.mounted():
        await cold.ls()
    async with cold.mounted():
        node = await cold.get("cold")
        assert node.storage_class == "DEEP_ARCHIVE"
        # Lifecycle rules change the class of a version that stays as it is.
        cold.store.insert("cold", b"hello")
        cold.store.insert("warm", b"hello", storage_class="GLACIER")
        cold.later(31)
        await cold.ls()
        assert (await cold.get("cold")).id == node.id
        await opened(cold, "cold")
        assert "GLACIER" in await refused(cold, "warm")


async def test_a_restored_copy_can_be_read_until_it_expires(cold: Lab) -> None:
    async with cold.mounted():
        await refused(cold, "cold")
        await cold.store.restore("cold", days=2, tier="Standard")
        cold.later(31)
        assert "is being restored" in await refused(cold, "cold")
        cold.store.finish_restores()
        cold.later(31)
        await opened(cold, "cold")
        assert await cold.read("cold") == b"hello"
        cold.store.calls.clear()
        cold.later(DAY_S)
        await opened(cold, "cold")
        assert cold.store.calls["head"] == 0
        cold.later(DAY_S + 1)
        assert "must be restored" in await refused(cold, "cold")


async def test_a_ttl_of_zero_asks_each_time(cold: Lab) -> None:
    cold.settings = settings(metadata_ttl_s=0)
    async with cold.mounted():
        await refused(cold, "cold")
        await cold.store.restore("cold", days=2, tier="Standard")
        assert "is being restored" in await refused(cold, "cold")
        cold.store.finish_restores()
        await opened(cold, "cold")


async def test_what_would_copy_the_object_fails_before_it_changes_anything(cold: Lab) -> None:
    """S3 copies nothing out of an archive: a rename that it could never follow is refused at once."""
    async with cold.mounted() as fs:
        node = await cold.get("cold")
        for change in (
            lambda: fs.tree.rename(ROOT, "cold", ROOT, "new", 0, cold.record),
            lambda: fs.tree.rename(ROOT, "cold", ROOT, "warm", 2, cold.record),
            lambda: fs.attributes.change(node.id, AttributeChange(mode=0o600)),
            lambda: fs.attributes.set_xattr(node.id, b"user.x", b"y", cold.record),
        ):
            with pytest.raises(Archived):
                await change()
        with pytest.raises(Archived):
            fs.stages.truncate(node.id, 3)
        with pytest.raises(Archived):
            await fs.stages.write(node.id, 2, b"x")
        assert await cold.get("cold") == node
        assert fs.volume.extras.xattrs(node.id) == {}
        assert fs.syncer.left().is_nothing
        assert not cold.staging_files()


async def test_a_restored_object_is_renamed_and_edited_and_stays_in_its_class(cold: Lab) -> None:
    async with cold.mounted() as fs:
        await cold.store.restore("cold", days=2, tier="Standard")
        cold.store.finish_restores()
        await opened(cold, "cold")
        await fs.tree.rename(ROOT, "cold", ROOT, "new", 0, cold.record)
        await cold.settle()
        assert cold.store.objects["new"].head.storage_class == "DEEP_ARCHIVE"
        # The restored copy was the old object's.
        assert "'new' is archived" in await refused(cold, "new")


async def test_an_archived_file_is_overwritten_and_removed(cold: Lab) -> None:
    async with cold.mounted() as fs:
        await opened(cold, "cold", os.O_WRONLY)
        await cold.write("cold", b"new")
        assert cold.data("cold") == b"new"
        assert cold.store.objects["cold"].head.storage_class is None
        await opened(cold, "cold")
        await fs.tree.unlink((await cold.get("d")).id, "a", cold.record)
        await cold.settle()
        assert cold.stored() == ["cold", "d/b", "d/e/c", "empty", "warm"]


async def test_a_renamed_directory_waits_for_its_archived_objects_and_says_so(cold: Lab) -> None:
    async with cold.mounted() as fs:
        await fs.tree.rename(ROOT, "d", ROOT, "n", 0, cold.record)
        await cold.settle()
        assert any("archived" in error for error in fs.syncer.errors())
        assert await cold.read("n/b") == b"bb"
        for key in ("d/a", "d/e/c"):
            await cold.store.restore(key, days=2, tier="Standard")
        cold.store.finish_restores()
        await cold.settle()
        assert cold.stored() == ["cold", "empty", "n/a", "n/b", "n/e/c", "warm"]


async def test_archived_objects_are_listed_and_restored_below_a_path(cold: Lab) -> None:
    async with cold.mounted() as fs:
        restorer = Restorer(fs)
        found = await restorer.report("", None, 100)
        assert [(item.path, item.storage_class, item.state) for item in found.items] == [
            ("cold", "DEEP_ARCHIVE", "archived"),
            ("d/a", "GLACIER", "archived"),
            ("d/e/c", "GLACIER", "archived"),
            ("empty", "GLACIER", "archived"),
        ]
        first = await restorer.restore(RestoreRequest(path="d", days=3, limit=1))
        assert [(item.path, item.state) for item in first.items] == [("d/a", "restoring")]
        assert (first.begun, first.failed) == (1, 0)
        assert first.cursor is not None
        rest = await restorer.restore(RestoreRequest(path="d", days=3, cursor=first.cursor))
        assert [item.path for item in rest.items] == ["d/e/c"]
        assert rest.cursor is None
        cold.store.finish_restores()
        one = await restorer.report("d/a", None, 100)
        (item,) = one.items
        assert item.state == "restored"
        assert item.expires_at is not None
        assert int(item.expires_at.timestamp()) == START_NS // 10**9 + 3 * DAY_S
        await opened(cold, "d/a")
        assert (await restorer.report("d/b", None, 100)).items == []
        assert (await restorer.restore(RestoreRequest(path="warm"))).items == []


async def test_an_object_that_is_not_restored_does_not_keep_the_others(cold: Lab) -> None:
    async with cold.mounted() as fs:
        cold.store.fail_next("restore", Archived("no"))
        done = await Restorer(fs).restore(RestoreRequest(path="d"))
        assert (done.begun, done.failed) == (1, 1)
        assert sorted((item.state, item.error) for item in done.items) == [
            ("archived", "no"),
            ("restoring", None),
        ]


async def test_the_class_that_says_nothing_is_asked_object_by_object(cold: Lab) -> None:
    cold.store.insert("m/a", b"a", storage_class=MOVING_CLASS)
    async with cold.mounted() as fs:
        await opened(cold, "m/a")
        assert (await Restorer(fs).report("m", None, 100)).items == []
        assert (await Restorer(fs).restore(RestoreRequest(path="m"))).items == []
        assert cold.store.calls["restore"] == 0


async def test_the_longest_keys_that_fail_fit_into_messages(lab: Lab) -> None:
    names = [f"{number:03}" + "\x01" * 252 + "/" + "\x02" * 250 for number in range(100)]
    for name in names:
        lab.store.insert(name, b"x", storage_class="GLACIER")
    async with lab.mounted() as fs:
        lab.store.fail_next("restore", Unavailable("no " + "\x01" * 2000), times=100)
        seen: list[str] = []
        cursor: str | None = None
        while True:
            done = await Restorer(fs).restore(RestoreRequest(cursor=cursor))
            assert (
                len(msgspec.json.encode(done)) < MAX_MESSAGE_BYTES * 5 // 8
            )  # it travels as base64
            seen += [item.path for item in done.items]
            cursor = done.cursor
            if cursor is None:
                break
        assert seen == names
