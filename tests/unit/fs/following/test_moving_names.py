"""What is seen of names while directories are on their way in S3."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3mgrd.cache.nodes import Node
from s3mgrd.errors import Unavailable
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
