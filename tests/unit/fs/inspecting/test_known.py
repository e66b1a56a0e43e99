"""What is known, page by page: entries, hidden keys, absent names; totals beside the loop."""

from collections.abc import Sequence

import msgspec
import pytest

from s3mgr.schema import CacheReport
from s3mgrd.cache.database import Row
from s3mgrd.errors import NotFound, UserError
from s3mgrd.fs.inspecting.known import Known
from s3mgrd.worker.protocol import MAX_MESSAGE_BYTES
from tests.unit.fs.conftest import WHO, Lab


async def pages(known: Known, path: str, limit: int) -> list[CacheReport]:
    """Follow the cursors."""
    found = [await known.report(path, None, limit)]
    while found[-1].cursor is not None:
        found.append(await known.report(path, found[-1].cursor, limit))
    return found


def everything(reports: list[CacheReport]) -> list[str]:
    found: list[str] = []
    for report in reports:
        found += [entry.path for entry in report.items]
        found += [key.key for key in report.hidden]
        found += [absent.name for absent in report.absent]
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
async def test_every_page_size_shows_everything_once_and_in_order(lab: Lab, limit: int) -> None:
    for key in ("d/a", "d/b", "d/sub/c", "d//x", "d/./y", "d/both", "d/both/z"):
        lab.store.insert(key, b"x")
    async with lab.mounted(sync=False) as fs:
        await lab.ls("d")
        for name in ("never", "nowhere"):
            await lab.find(f"d/{name}")
            fs.namespace.tell_absent((await lab.get("d")).id, name)
        found = await pages(Known(fs), "d", limit)
        assert everything(found) == [
            *(e.path for e in sorted((x for r in found for x in r.items), key=lambda e: e.inode)),
            "d/./", "d//", "d/both",
            "never", "nowhere",
        ]  # fmt: skip
        assert {e.path for r in found for e in r.items} == {"d/a", "d/b", "d/sub/", "d/both/"}
        assert (found[0].hidden_keys, found[0].absent_names) == (3, 2)


async def test_an_entry_says_what_told_of_it_and_how_long_it_is_believed(lab: Lab) -> None:
    lab.store.insert("listed", b"12345", metadata={"mode": "33188"})
    async with lab.mounted(sync=False) as fs:
        known = Known(fs)
        await lab.ls()
        lab.later(10)
        await lab.mkdir("made")
        await lab.write("written", b"xyz", close=False)
        entries = {e.path: e for e in (await known.report("", None, 100)).items}
        listed, written = entries["listed"], entries["written"]
        assert (listed.source, listed.age_s, listed.fresh_s) == ("listing", 10, 20)
        assert (listed.size_bytes, listed.attributes) == (5, "known")
        assert (written.source, written.dirty, written.staged_bytes) == ("local", True, 3)
        assert entries["made/"].source == "local"
        lab.later(30)
        await lab.get("listed")
        (alone,) = (await known.report("listed", None, 1)).items
        assert (alone.path, alone.fresh_s) == ("listed", 30)


async def test_a_name_asked_for_alone_is_said_to_be(lab: Lab) -> None:
    lab.store.insert("d/one", b"1")
    async with lab.mounted(sync=False) as fs:
        await lab.ls("d")
        lab.later(20)
        fs.volume.nodes.update((await lab.get("d/one")).id, seen_ns=lab.now_ns)
        (entry,) = (await Known(fs).report("d", None, 10)).items
        assert (entry.source, entry.fresh_s) == ("request", 30)
        lab.later(31)
        (entry,) = (await Known(fs).report("d", None, 10)).items
        assert (entry.age_s, entry.fresh_s) == (31, 0)


async def test_hits_are_counted_by_lookup_and_by_listing(lab: Lab) -> None:
    lab.store.insert("a", b"1")
    async with lab.mounted(sync=False) as fs:
        for _ in range(3):
            await lab.ls()
        report = await Known(fs).report("", None, 0)
        assert (report.listing_hits, report.listing_misses) == (2, 1)
        await lab.get("a")
        again = await Known(fs).report("", None, 0)
        assert again.metadata_hits == report.metadata_hits + 1


async def test_a_name_is_counted_once_for_each_time_that_somebody_asks(lab: Lab) -> None:
    """And not when something is about to be made under it: that is no question of a program's."""
    lab.store.insert("d/a", b"1")
    async with lab.mounted(sync=False) as fs:
        directory = (await lab.get("d")).id
        await fs.namespace.ensure_listed(directory)
        before = fs.namespace.hits, fs.namespace.misses
        fs.tree.create_now(directory, "new", WHO, lab.record, exclusive=True)
        fs.tree.mkdir_now(directory, "made", WHO, lab.record)
        assert (fs.namespace.hits, fs.namespace.misses) == before
        for name in ("a", "absent", "a"):
            await fs.namespace.lookup(directory, name)
        assert (fs.namespace.hits, fs.namespace.misses) == (before[0] + 3, before[1])
        lab.later(31)
        await fs.namespace.lookup(directory, "a")
        assert (fs.namespace.hits, fs.namespace.misses) == (before[0] + 3, before[1] + 1)


async def test_a_page_of_the_longest_names_fits_into_a_message(lab: Lab) -> None:
    deep = "/".join(["\x01" * 200] * 3)
    for i in range(200):
        lab.store.insert(f"{deep}/{i:03}{chr(2) * 200}", b"x")
    async with lab.mounted(sync=False) as fs:
        await lab.ls(deep)
        found = await pages(Known(fs), deep, 1000)
        assert len(everything(found)) == 200
        largest = max(len(msgspec.json.encode(report)) for report in found)
        assert largest * 4 / 3 < MAX_MESSAGE_BYTES - 1024  # it travels in base64


async def test_totals_are_counted_once_for_many_pages(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(50):
        lab.store.insert(f"{i:02}", b"x")
    async with lab.mounted(sync=False) as fs:
        await lab.ls()
        counted = 0
        fetch = fs.volume.database.fetch_aside

        async def count(query: str, arguments: Sequence[object]) -> list[Row]:
            nonlocal counted
            counted += 1
            return await fetch(query, arguments)

        monkeypatch.setattr(fs.volume.database, "fetch_aside", count)
        found = await pages(Known(fs), "", 7)
        assert (len(everything(found)), found[0].entries_total, counted) == (50, 50, 1)


@pytest.mark.parametrize("cursor", ["", "x", "12", "e-1", "e٣", "e" + "9" * 30])
async def test_a_cursor_of_somebody_else_is_refused(lab: Lab, cursor: str) -> None:
    async with lab.mounted(sync=False) as fs:
        with pytest.raises(UserError, match="cursor"):
            await Known(fs).report("", cursor, 1)


async def test_a_path_of_which_nothing_is_known_says_so(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs:
        with pytest.raises(NotFound):
            await Known(fs).report("a/b", None, 1)
