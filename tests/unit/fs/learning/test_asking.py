"""Names asked for one by one: few requests, and never an answer that S3 did not give."""

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mgrd.errors import Unavailable
from s3mgrd.s3.port import ListPage
from tests.unit.fs.conftest import Lab, settings


def fill(lab: Lab, count: int, prefix: str = "d/") -> list[str]:
    paths = [f"{prefix}f{i:07d}" for i in range(count)]
    for path in paths:
        lab.store.insert(path, b"abc")
    return paths


async def test_many_names_in_one_directory_cost_its_pages(lab: Lab) -> None:
    paths = fill(lab, 2000)
    async with lab.mounted(sync=False):
        for path in paths[::10]:
            assert (await lab.get(path)).size == 3
        # The first page of the root, what is in d, which is too much to be all of it; then two pages, of which one name is a sample.
        assert lab.store.calls["list_page"] <= 4
        assert lab.store.calls["head"] <= 2


async def test_one_name_of_a_large_directory_costs_no_second_page(lab: Lab) -> None:
    """Only who asks for another has the names behind fetched ahead."""
    paths = fill(lab, 2000)
    async with lab.mounted(sync=False):
        await lab.get("d")
        before = lab.store.calls["list_page"]
        for _ in range(2):
            await lab.get(paths[7])
            await wait_all_tasks_blocked()
        assert lab.store.calls["list_page"] == before + 1
        await lab.get(paths[8])
        await wait_all_tasks_blocked()
        assert lab.store.calls["list_page"] == before + 2


async def test_a_name_behind_the_first_page_costs_one_that_begins_there(lab: Lab) -> None:
    paths = fill(lab, 5000)
    async with lab.mounted(sync=False):
        await lab.get("d")
        before = lab.store.calls["list_page"]
        assert (await lab.get(paths[4500])).size == 3
        assert lab.store.calls["list_page"] == before + 2


async def test_the_first_name_of_a_small_directory_tells_of_all(lab: Lab) -> None:
    """Also of those before it, and of those that are not there."""
    paths = fill(lab, 20)
    async with lab.mounted(sync=False):
        await lab.get(paths[10])
        before = lab.store.calls.total()
        assert (await lab.get(paths[0])).size == 3
        assert await lab.find("d/absent") is None
        assert len(await lab.ls("d")) == 20
        assert lab.store.calls.total() == before


async def test_a_bucket_without_metadata_is_not_asked_again_by_the_next_worker(lab: Lab) -> None:
    """A day later it is: somebody may have begun to write metadata."""
    for i in range(20):
        lab.store.insert(f"d{i}/file", b"1")
    async with lab.mounted(sync=False):
        for i in range(10):
            await lab.ls(f"d{i}")
    looked_at = lab.store.calls["head"]
    assert looked_at <= 8 + 1
    async with lab.mounted("second", sync=False):
        await lab.ls("d11")
        assert lab.store.calls["head"] == looked_at
    lab.later(25 * 3600)
    async with lab.mounted("third", sync=False):
        await lab.ls("d12")
        assert lab.store.calls["head"] > looked_at


async def test_names_that_are_not_there_cost_one_page_together(lab: Lab) -> None:
    fill(lab, 3000)
    async with lab.mounted(sync=False):
        for i in range(100):
            assert await lab.find(f"d/absent-{i}") is None
        assert lab.store.calls["list_page"] <= 5


async def test_every_second_step_of_a_path_is_known_with_the_one_before(lab: Lab) -> None:
    lab.store.insert("a/b/c/d/e/f", b"x")
    async with lab.mounted(sync=False):
        assert await lab.find("a/b/c/d/e/f") is not None
        assert lab.store.calls["list_page"] <= 6


async def test_making_files_asks_for_none_of_them(lab: Lab) -> None:
    """The page that told of the first tells that the others are not there."""
    fill(lab, 10)
    async with lab.mounted(sync=False):
        await lab.write("d/new-0", b"", close=False)
        before = lab.store.calls.total()
        for i in range(1, 50):
            await lab.write(f"d/new-{i}", b"", close=False)
        assert lab.store.calls.total() == before


async def test_what_others_do_is_seen_after_the_ttl(lab: Lab) -> None:
    """What a page told of is believed as long as what was asked for alone, and no longer."""
    paths = fill(lab, 3000)
    async with lab.mounted(sync=False):
        await lab.get(paths[0])
        assert await lab.find("d/f0000010x") is None
        lab.store.insert("d/f0000010x", b"new")
        lab.store.remove(paths[20])
        lab.store.insert(paths[30], b"another")
        lab.later(29)
        assert (await lab.get(paths[30])).size == 3
        lab.later(2)
        assert await lab.find("d/f0000010x") is not None
        assert await lab.find(paths[20]) is None
        assert (await lab.get(paths[30])).size == 7


async def test_without_a_time_to_live_each_name_is_asked_for(lab: Lab) -> None:
    lab.settings = settings(metadata_ttl_s=0.0, negative_ttl_s=0.0)
    fill(lab, 20)
    async with lab.mounted(sync=False):
        for size in (1, 2, 3):
            lab.store.insert("d/f0000003", b"x" * size)
            assert (await lab.get("d/f0000003")).size == size
        assert await lab.find("d/new") is None
        lab.store.insert("d/new", b"")
        assert await lab.find("d/new") is not None


async def test_a_name_that_thousands_begin_like_is_asked_for_alone(lab: Lab) -> None:
    """A page that begins at the name does not reach the directory of the same name."""
    fill(lab, 2500, "d/x-")
    lab.store.insert("d/x", b"file")
    lab.store.insert("d/x/inside", b"")
    async with lab.mounted(sync=False):
        assert (await lab.get("d/x")).is_directory


async def test_a_page_that_fails_leaves_the_name_to_be_asked_for_alone(lab: Lab) -> None:
    fill(lab, 1500)
    async with lab.mounted(sync=False):
        directory = await lab.get("d")
        await wait_all_tasks_blocked()
        lab.later(60)
        lab.fs.volume.nodes.update(directory.id, listed_ns=0)
        await lab.get("d/f0000001")
        lab.later(60)
        lab.store.fail_next("list_page", Unavailable("busy"))
        assert await lab.fs.namespace.lookup(directory.id, "f0000002") is not None


@pytest.mark.parametrize("policy", ["full", "lazy"])
async def test_a_name_is_shown_with_its_attributes_and_they_are_asked_for_once(
    lab: Lab, policy: str
) -> None:
    """Also where the page told of it before anybody asked."""
    lab.settings = settings(attributes=policy)
    for i in range(20):
        lab.store.insert(f"d/f{i:02}", b"x", metadata={"mode": str(0o100600)})
    fill(lab, 1500)
    async with lab.mounted(sync=False):
        for _ in range(2):
            for i in range(20):
                assert (await lab.get(f"d/f{i:02}")).mode == 0o600
        assert lab.store.calls["head"] <= 20 + 2  # and two for the directory


async def test_a_name_changed_here_while_its_page_is_on_the_way_is_not_undone(lab: Lab) -> None:
    """S3 answers the page with what was there before."""
    paths = fill(lab, 1500)
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        await lab.get(paths[0])
        directory = await lab.get("d")
        really, answered = lab.store.list_page, trio.Event()

        async def late(*args: Any, **kwargs: Any) -> ListPage:  # noqa: ANN401 - passed on
            page = await really(*args, **kwargs)
            await answered.wait()
            return page

        lab.later(60)
        lab.store.list_page = late  # type: ignore[method-assign] # as the store's, but late
        nursery.start_soon(fs.namespace.lookup, directory.id, "f0000700")
        await wait_all_tasks_blocked()
        node = fs.volume.nodes.find(directory.id, "f0000800")
        assert node is not None
        fs.volume.nodes.update(node.id, seen_ns=fs.volume.now_ns())
        await fs.tree.unlink(directory.id, "f0000800", lab.record)
        answered.set()
        await wait_all_tasks_blocked()
        assert fs.volume.nodes.find(directory.id, "f0000800") is None
        assert fs.volume.nodes.find(directory.id, "f0000700") is not None


async def test_a_directory_is_found_while_the_attributes_of_its_neighbours_are_asked_for(
    lab: Lab,
) -> None:
    """The root's listing looks at one file for them; who wants a directory without a marker need not wait for that."""
    lab.store.insert("a", b"x")
    lab.store.insert("d/f", b"x")
    async with lab.mounted(sync=False):
        with lab.store.hold("head") as hold:
            assert (await lab.get("d")).is_directory
            await wait_all_tasks_blocked()
            assert (
                hold.waiting == 2
            )  # of the root's file, and of the directory's, which is likely to be next


async def test_a_file_that_its_directory_is_judged_by_is_asked_for_beside_the_listing(
    lab: Lab,
) -> None:
    """Not after it; and the directory's other files need not be asked for to judge it."""
    for key in ("d/a", "d/b", "z.txt"):
        lab.store.insert(key, b"x")
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        await lab.get("z.txt")  # so the root is known, and "d" in it
        await wait_all_tasks_blocked()
        heads, samples = lab.store.calls["head"], fs.metadata._samples_left
        with lab.store.hold("list_page") as hold:
            nursery.start_soon(lab.get, "d/a")
            await hold.arrived()
            await wait_all_tasks_blocked()
            assert lab.store.calls["head"] == heads + 1
        await wait_all_tasks_blocked()
        assert (await lab.get("d/a")).attributes_known
        await lab.get("d/b")
        assert await lab.ls("d") == ["a", "b"]
        assert lab.store.calls["head"] == heads + 1
        assert fs.metadata._samples_left == samples - 1


async def test_what_is_found_to_be_a_directory_is_not_kept_waiting_for_the_object_it_is_not(
    lab: Lab,
) -> None:
    for key in ("d/e/f", "z.txt"):
        lab.store.insert(key, b"x")
    async with lab.mounted(sync=False):
        await lab.get("z.txt")  # so the root is known, and "d" in it
        with lab.store.hold("head", "d/e") as hold:
            assert (await lab.get("d/e")).is_directory
            assert lab.store.calls["head"] > 1
            assert not hold.waiting


async def test_a_file_is_not_shown_before_its_directory_was_judged(lab: Lab) -> None:
    """Another of its files is being looked at, the last that may be looked at: whether this one's attributes matter is not known."""
    for name in ("a", "b"):
        lab.store.insert(f"d/{name}", b"x", metadata={"mode": str(0o100600)})
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        fs.metadata._samples_left = 2  # and one for the root
        modes: list[int | None] = []

        async def look() -> None:
            modes.append((await lab.get("d/b")).mode)

        with lab.store.hold("head", "d/a") as hold:
            nursery.start_soon(look)
            await hold.arrived()
            await wait_all_tasks_blocked()
            assert modes == []
        await wait_all_tasks_blocked()
        assert modes == [0o600]
        assert lab.store.calls["head"] == 3  # the root's sample, and each file once
