"""Listings: streamed, shared, and never shown in part as if they were all."""

import stat

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mgrd.cache.nodes import ROOT
from s3mgrd.errors import Unavailable
from s3mgrd.fs.learning.listing import PARALLEL
from s3mgrd.fs.learning.namespace import Entry
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import ListPage
from tests.unit.fs.conftest import Lab, settings

PAGE = 1000


def fill(lab: Lab, count: int, **changes: dict[str, str]) -> list[str]:
    """Put files into the bucket's root; returns their names."""
    names = [f"f{i:05}" for i in range(count)]
    for name in names:
        lab.store.insert(name, b"x", **changes)  # type: ignore[arg-type] # metadata or nothing
    return names


async def test_the_first_entries_are_shown_before_the_last_page_is_there(lab: Lab) -> None:
    names = fill(lab, 2 * PAGE + 5)
    async with lab.mounted(sync=False) as fs:
        shown = await fs.namespace.entries(ROOT, 0, 10)
        with lab.store.hold("list_page") as hold:
            listing = fs.lister.running(ROOT)
            assert listing is not None
            await hold.arrived()
            seen = [str(e.node.name) for e in shown]
            while more := fs.namespace.entries_now(ROOT, ROOT + len(seen), PAGE):
                seen += [str(e.node.name) for e in more]
            assert PAGE <= len(seen) < len(names)
            assert seen == names[: len(seen)]
            assert all(e.valid_s == 30 for e in shown)
            hold.release()
            await listing.finished()
        assert await lab.ls() == names


async def test_one_listing_serves_everybody_who_waits(lab: Lab) -> None:
    names = fill(lab, 3 * PAGE)
    results: list[list[str]] = []

    async def list_it() -> None:
        results.append(await lab.ls())

    async with lab.mounted(sync=False):
        with lab.store.hold("list_page") as hold:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(list_it)
                await wait_all_tasks_blocked()
                assert hold.waiting == 1
                hold.release()
        assert results == [names] * 20
        assert lab.store.calls["list_page"] == 3


async def test_a_listing_that_fails_half_way_is_an_error_and_not_a_short_directory(
    lab: Lab,
) -> None:
    """Whoever has read the first page already hears of it, too, and the next try gets everything."""
    names = fill(lab, 2 * PAGE)
    first: list[Entry] = []
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:

        async def begin() -> None:
            first.extend(await fs.namespace.entries(ROOT, 0, 2 * PAGE))

        with lab.store.hold("list_page") as page_1:
            nursery.start_soon(begin)
            await page_1.arrived()
            with lab.store.hold("list_page") as page_2:
                page_1.release()
                await page_2.arrived()
                await wait_all_tasks_blocked()
                assert len(first) == PAGE
                lab.store.fail_next("list_page", Unavailable("down"), times=2)
        # Programs take their time: the listing fails while nobody waits for it.
        await wait_all_tasks_blocked()
        assert fs.lister.running(ROOT) is None
        with pytest.raises(Unavailable, match="down"):
            await fs.namespace.entries(ROOT, first[-1].node.id, PAGE)
        assert await lab.ls() == names


async def test_names_that_may_be_out_of_date_are_not_shown_before_the_listing_confirms_them(
    lab: Lab,
) -> None:
    """A name looked up long ago is not made believable again by a listing that has not reached it."""
    names = fill(lab, 2 * PAGE)
    lab.store.insert("zz", b"old")
    async with lab.mounted(sync=False) as fs:
        assert await lab.find("zz") is not None
        lab.later(31)
        lab.store.remove("zz")
        assert await lab.ls() == names
        assert fs.namespace.entries_now(ROOT, 0, 1)[0].valid_s == 30


async def test_names_looked_up_just_now_do_not_stop_the_stream(lab: Lab) -> None:
    """Here one that was asked for alone, as it is where names are believed for a moment only."""
    lab.settings = settings(metadata_ttl_s=1.5)
    fill(lab, 2 * PAGE)
    async with lab.mounted(sync=False) as fs:
        await lab.get("f01999")
        lab.later(1)
        shown = await fs.namespace.entries(ROOT, 0, 10)
        assert fs.lister.running(ROOT) is not None
        assert (shown[0].node.name, shown[0].valid_s) == ("f01999", 0.5)


async def test_nothing_is_shown_without_the_attributes_that_must_be_known(lab: Lab) -> None:
    """A reader that is behind sees the entries of a page only when all of the page's are there."""
    lab.settings = settings(attributes="full")
    fill(lab, 2 * PAGE, metadata={"mode": str(0o100600)})
    async with lab.mounted(sync=False) as fs:
        shown = await fs.namespace.entries(ROOT, 0, 2 * PAGE)
        with lab.store.hold("head") as hold:
            await hold.arrived()  # the second page is in mount.db
            shown += fs.namespace.entries_now(ROOT, shown[-1].node.id, 2 * PAGE)
            assert len(shown) == PAGE
            hold.release()
        shown += await fs.namespace.entries(ROOT, shown[-1].node.id, 2 * PAGE)
        assert len(shown) == 2 * PAGE
        assert {entry.node.mode for entry in shown} == {0o600}


async def test_a_listing_beside_a_rename_is_not_asked_for_again_by_every_reader(lab: Lab) -> None:
    """What a listing cannot settle is settled by the next one after the rename, not by one for each getdents()."""
    for i in range(50):
        lab.store.insert(f"d/{i:02}", b"x")
    fill(lab, 500)
    async with lab.mounted(sync=False) as fs:
        await lab.ls("d")
        await lab.rename("d", "e")
        lab.later(31)
        before = lab.store.calls["list_page"]
        shown: list[Entry] = []
        while page := await fs.namespace.entries(ROOT, shown[-1].node.id if shown else 0, 10):
            shown += page
        assert len(shown) == 501
        assert lab.store.calls["list_page"] - before == 1


async def test_a_very_large_directory_is_listed_by_ranges_side_by_side(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """S3 tells a page at a time; ranges that begin at names in between make it tell several at the same time."""
    names = fill(lab, 5000)
    latency_s, page, running = 1.0, 50, 0
    most = 0
    begun_after: list[str] = []

    async def slow(
        prefix: str,
        *,
        delimited: bool,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = page,
    ) -> ListPage:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if start_after:
            begun_after.append(start_after)
        await trio.sleep(latency_s)
        running -= 1
        return await MemoryStore.list_page(
            lab.store,
            prefix,
            delimited=delimited,
            token=token,
            start_after=start_after,
            max_keys=page,
        )

    monkeypatch.setattr(lab.store, "list_page", slow)
    async with lab.mounted(sync=False):
        began = trio.current_time()
        assert await lab.ls() == names
        took_s = trio.current_time() - began
    pages = len(names) // page
    assert PARALLEL <= most <= 2 * PARALLEL
    assert len(begun_after) >= PARALLEL - 1
    assert took_s < pages * latency_s / 2
    # Ranges end with a page that is not full, or find nothing: a bounded waste.
    assert pages <= lab.store.calls["list_page"] <= 1.5 * pages


async def test_a_directory_that_a_page_for_another_name_told_of_is_listed_with_its_attributes(
    lab: Lab,
) -> None:
    """It was looked at as a neighbour; whoever lists it must not see defaults in the place of what its marker says."""
    lab.settings = settings(attributes="full")
    lab.store.insert("top/a", b"x")
    lab.store.insert("top/b/", b"", metadata={"mode": str(stat.S_IFDIR | 0o700)})
    lab.store.insert("top/c/inside", b"")
    async with lab.mounted(sync=False) as fs:
        await lab.get("top/a")
        fs.volume.distrust((await lab.get("top")).id)
        assert await lab.ls("top") == ["a", "b/", "c/"]
        node = fs.volume.nodes.find((await lab.get("top")).id, "b")
        assert node is not None
        assert node.mode == 0o700
