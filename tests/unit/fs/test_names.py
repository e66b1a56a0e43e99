"""Names: what can be shown and what a new name becomes."""

import errno

import pytest

from s3mgrd.cache.nodes import ROOT
from s3mgrd.fs import names
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import ListPage, ObjectInfo
from tests.unit.fs.conftest import START_NS, Lab


@pytest.mark.parametrize(
    ("name", "is_hidden"),
    [
        ("a", False),
        ("ä" * 127, False),
        ("a\nb", False),
        ("", True),
        (".", True),
        ("..", True),
        ("...", False),
        ("a\0", True),
        ("a" * 255, False),
        ("a" * 256, True),
        ("ä" * 128, True),
        ("\udcff", True),
    ],
)
def test_what_cannot_be_a_name_is_hidden(name: str, is_hidden: bool) -> None:
    assert bool(names.why_hidden(name)) is is_hidden


@pytest.mark.parametrize(
    ("raw", "number"), [(b"\xff", errno.EILSEQ), (b"a" * 256, errno.ENAMETOOLONG)]
)
def test_names_that_cannot_become_keys_are_refused(raw: bytes, number: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        names.decode_name(raw)
    assert caught.value.errno == number


def test_directories_sort_after_names_that_begin_alike() -> None:
    assert names.directories_sorting_after("a-b.txt") == ["a", "a-b"]


async def test_keys_that_are_not_utf8_are_counted_and_do_not_stop_a_listing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def info(key: str) -> ObjectInfo:
        return ObjectInfo(key, 1, "etag", START_NS)

    pages = {
        None: ListPage([info("a"), info("b\udcff")], ["b\udcfe/"], "1"),
        "1": ListPage([info("c")], [], None),
    }

    async def list_page(prefix: str, *, token: str | None = None, **rest: object) -> ListPage:
        return pages[token]

    monkeypatch.setattr(lab.store, "list_page", list_page)
    async with lab.mounted() as fs:
        for _ in range(2):
            await fs.namespace.ensure_listed(ROOT)
            assert await lab.ls() == ["a", "c"]
            assert fs.volume.nodes.count_hidden() == 2
            lab.later(60)


async def test_keys_that_s3_could_not_have_are_counted_and_not_asked_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stores take longer keys; what is shown must be readable anywhere, and no request is sent in vain."""
    deep = "/".join(["d" * 200] * 5)
    longest, longer = f"{deep}/{'k' * 19}", f"{deep}/{'k' * 20}"
    accents = "\u00e9" * 9 + "e"
    assert len(longest) == names.MAX_KEY_BYTES
    monkeypatch.setattr("s3mgrd.s3.memory._check_key", lambda key: None)
    for key in (longest, longer, f"{deep}/{'b' * 19}/x", f"{deep}/{accents}"):
        lab.store.insert(key)
    async with lab.mounted() as fs:
        assert await lab.ls(deep) == ["k" * 19, accents]
        directory = (await lab.get(deep)).id
        hidden = fs.volume.nodes.hidden(directory, after="", limit=9)
        assert sorted(hidden) == [
            (f"{deep}/{'b' * 19}/", "key over 1024 bytes"),
            (longer, "key over 1024 bytes"),
        ]
        lab.later(60)
        asked = lab.store.calls.total()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
            await fs.namespace.lookup(directory, "k" * 20)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert lab.store.calls.total() == asked


async def test_a_page_may_end_anywhere(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and directories that begin alike, with pages of every size, listed twice with changes between."""
    keys = ["a", "a-b", "a/x", "a.b", "a0", "ab/", "ab", "b/c/d", "b-", "c", "c/"]
    for page in range(1, 6):
        lab.later(60)
        for key in list(lab.store.objects):
            lab.store.remove(key)
        for key in keys:
            lab.store.insert(key, b"")

        async def small(
            prefix: str,
            *,
            delimited: bool,
            token: str | None = None,
            start_after: str | None = None,
            page: int = page,
        ) -> ListPage:
            return await MemoryStore.list_page(
                lab.store,
                prefix,
                delimited=delimited,
                token=token,
                start_after=start_after,
                max_keys=page,
            )

        with monkeypatch.context() as patched:
            patched.setattr(lab.store, "list_page", small)
            async with lab.mounted(f"c{page}") as fs:
                await fs.namespace.ensure_listed(
                    ROOT
                )  # while it streams, a name may be shown as both
                wanted = ["a-b", "a.b", "a/", "a0", "ab/", "b-", "b/", "c/"]
                assert await lab.ls() == wanted, page
                lab.later(60)
                assert await lab.ls() == wanted, page
                lab.store.remove("a/x")
                lab.store.remove("c/")
                lab.store.remove("a-b")
                lab.later(60)
                assert await lab.ls() == ["a", "a.b", "a0", "ab/", "b-", "b/", "c"], page


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Readme", "README"),
        ("caf\u00e9", "cafe\u0301"),
        ("name", "name "),
        ("a.b", "a\nb"),
        ("+", "%2B"),
    ],
)
async def test_names_that_others_take_for_the_same_are_two(lab: Lab, old: str, new: str) -> None:
    """Case, normalisation, blanks and escapes tell names apart; renaming from one to the other is a rename."""
    async with lab.mounted():
        await lab.write(old, b"1")
        await lab.write(new, b"2")
        assert await lab.ls() == sorted([old, new])
        await lab.unlink(new)
        await lab.rename(old, new)
        await lab.settle()
        assert await lab.ls() == [new]
    assert lab.stored() == [new]
    assert lab.data(new) == b"1"
