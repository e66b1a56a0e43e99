"""What is seen of names while directories are on their way in S3."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.nodes import Marker, Node
from s3mgrd.errors import Unavailable
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from tests.unit.fs.conftest import Lab, settings


async def test_a_renamed_directory_is_not_seen_while_another_is_on_its_way_from_inside_of_it(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.store.insert("d/x/1", b"1")
    lab.store.insert("d/y", b"2")

    def refuse(operation: str, key: str) -> None:
        if operation == "copy" and key.startswith("x/"):
            raise Unavailable("down")

    async with lab.mounted() as fs:
        await lab.ls("d/x")
        lab.store.before = refuse
        await lab.rename("d/x", "x")
        await lab.rename("d", "e")
        await trio.sleep(1)
        assert len(fs.volume.moving) == 1
        lab.later(60)
        assert await lab.find("d") is None
        assert await lab.ls() == ["e/", "x/"]
        assert await lab.find("d") is None
        lab.store.before = None
        await lab.settle()
    assert {key: lab.data(key) for key in lab.stored()} == {"e/y": b"2", "x/1": b"1"}


async def test_a_name_that_is_asked_for_while_its_directorys_rename_ends_is_still_there(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.settings = settings(metadata_ttl_s=0.0, negative_ttl_s=0.0)
    found: list[Node | None] = []

    async def look() -> None:
        found.append(await lab.fs.namespace.lookup(directory.id, "a"))

    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        directory = await lab.mkdir("d")
        node = await lab.write("d/a", b"1")
        await lab.settle()
        with lab.store.hold("delete_many") as deletes:
            with lab.store.hold("copy") as copies:
                await lab.rename("d", "e")
                await copies.arrived()
                with lab.store.hold("head") as heads:
                    nursery.start_soon(look)
                    await heads.arrived()
                    await wait_all_tasks_blocked()
                    copies.release()
                    await deletes.arrived()
                    assert not fs.volume.moving
                    heads.release()
                    await wait_all_tasks_blocked()
            deletes.release()
    assert [now.id for now in found if now] == [node.id]


@pytest.mark.parametrize("is_directory", [True, False])
async def test_a_name_whose_attributes_are_being_written_stays_when_its_directory_is_renamed(
    lab: Lab, autojump_clock: MockClock, is_directory: bool
) -> None:
    lab.settings = settings(metadata_ttl_s=0.0, negative_ttl_s=0.0)
    async with lab.mounted() as fs:
        await lab.mkdir("d")
        node = await lab.mkdir("d/a") if is_directory else await lab.write("d/a", b"1")
        await lab.settle()
        with lab.store.hold("put" if is_directory else "copy") as writes:
            await fs.attributes.change(node.id, AttributeChange(mode=0o700))
            await writes.arrived()
            await lab.rename("d", "e")
            assert (await lab.get("e/a")).id == node.id
            writes.release()
            await wait_all_tasks_blocked()
            assert (await lab.get("e/a")).id == node.id
        await lab.settle()
        assert (await lab.get("e/a")).id == node.id
        assert fs.volume.mode(await lab.get("e/a")) == 0o700
    assert lab.stored() == ["e/", "e/a/" if is_directory else "e/a"]


async def test_what_a_listing_tells_of_the_place_that_a_rename_just_left_is_not_believed(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.settings = settings(metadata_ttl_s=0.0, negative_ttl_s=0.0)
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        await lab.mkdir("d")
        directory = await lab.mkdir("d/s")
        nodes = [await lab.mkdir("d/s/a"), await lab.write("d/s/b", b"1")]
        await lab.settle()
        with lab.store.hold("list_page", "d/s/") as listing:
            nursery.start_soon(fs.namespace.ensure_listed, directory.id)
            await listing.arrived()
            await lab.rename("d", "e")
            await trio.sleep(1)
            assert not fs.volume.moving
            assert not [key for key in lab.stored() if key.startswith("d/")]
        await wait_all_tasks_blocked()
        assert [(await lab.get(path)).id for path in ("e/s/a", "e/s/b")] == [n.id for n in nodes]


async def test_a_directory_that_is_renamed_and_removed_while_it_is_being_listed_leaves_no_marker(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """Its first listing is what tells that there is one. Until S3 has followed the rename, that lies where it was."""
    lab.store.insert("d/")
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        directory = (await lab.get("d")).id
        await lab.ls("d")
        fs.volume.nodes.update(directory, marker=int(Marker.NONE), listed_ns=0)
        with lab.store.hold("copy") as copies:
            with lab.store.hold("list_page", "d/", first=1) as listing:
                nursery.start_soon(fs.namespace.ensure_listed, directory)
                await listing.arrived()
                await lab.rename("d", "e")
            await copies.arrived()
            await lab.rmdir("e")
        await lab.settle()
        lab.later(60)
        assert await lab.ls() == []
    assert lab.stored() == []


async def test_a_directory_that_is_renamed_as_soon_as_it_is_seen_and_removed_leaves_no_marker(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.store.insert("d/")
    async with lab.mounted():
        with lab.store.hold("copy") as copies:
            await lab.rename("d", "e")
            await copies.arrived()
            await lab.rmdir("e")
        await lab.settle()
    assert lab.stored() == []


async def test_what_a_walk_tells_of_the_place_that_a_rename_just_left_is_not_believed(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.store.insert("d/a/1", b"1")
    lab.store.insert("d/b/2", b"2")
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        inside = {name: (await lab.get(f"d/{name}")).id for name in await lab.ls("d")}
        walked = (await lab.get("d/b")).id
        with lab.store.hold("list_page", "d/", first=1) as walk:
            nursery.start_soon(fs.namespace.ensure_listed, walked)
            await walk.arrived()
            await lab.rename("d", "e")
            await trio.sleep(1)
            assert not fs.volume.moving
            assert not [key for key in lab.stored() if key.startswith("d/")]
        await wait_all_tasks_blocked()
        assert {name: (await lab.get(f"e/{name}")).id for name in await lab.ls("e")} == inside


async def test_attributes_of_a_directory_are_asked_for_again_when_a_rename_took_its_marker_elsewhere(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.settings = settings(attributes="full")
    lab.store.insert("d/a/", b"", metadata={"mode": "16832", "uid": "7", "gid": "8"})
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        directory = await lab.get("d")
        with lab.store.hold("head", "d/a/", first=1) as look:
            nursery.start_soon(fs.namespace.ensure_listed, directory.id)
            await look.arrived()
            await lab.rename("d", "e")
            await trio.sleep(1)
            assert lab.stored() == ["e/a/"]
        node = await lab.get("e/a")
        assert (fs.volume.mode(node), fs.volume.owner(node)) == (0o700, (7, 8))


async def test_what_is_uploaded_to_a_place_that_a_rename_left_is_not_found_there(
    lab: Lab, autojump_clock: MockClock
) -> None:
    lab.settings = settings(metadata_ttl_s=0.0, negative_ttl_s=0.0)
    found: list[Node | None] = []

    async def look() -> None:
        found.append(await lab.find("d"))

    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        await lab.mkdir("d")
        await lab.settle()
        node = await lab.write("d/f", b"1", close=False)
        with lab.store.hold("put", "d/f") as put:
            nursery.start_soon(fs.commit, node.id)
            await put.arrived()
            await lab.rename("d", "e")
            with lab.store.hold("list_page", "d/", first=1) as listing:
                nursery.start_soon(look)
                await listing.arrived()
                put.release()
                await wait_all_tasks_blocked()
        await lab.settle()
        assert found == [None]
        assert await lab.ls() == ["e/"]
        assert await lab.read("e/f") == b"1"
    assert lab.stored() == ["e/", "e/f"]
