"""Directories on their way in S3: what may be done inside meanwhile, where they may go next, and names that change places."""

import errno
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import Denied, TimedOut, Unavailable
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.changing.tree import RENAME_EXCHANGE, RENAME_NOREPLACE
from s3mgrd.fs.following import move, sync
from s3mgrd.fs.following.strays import Strays
from s3mgrd.fs.inspecting import inspection
from tests.unit.fs.conftest import Lab, settings

DAY_S = 86400
RENAME_WHITEOUT = 4


async def expect(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        await call()  # type: ignore[misc] # a coroutine function
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def fill(lab: Lab, *keys: str) -> None:
    for key in keys:
        lab.store.insert(key, b"" if key.endswith("/") else key.encode())


def contents(lab: Lab) -> dict[str, bytes]:
    return {key: lab.data(key) for key in lab.stored()}


# Names that change places


async def test_a_directory_that_takes_the_place_of_the_one_it_was_in(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """And has one of its own name: what lies there would be copied over what has yet to be copied."""
    fill(lab, "p/q/", "p/q/a", "p/q/q/", "p/q/q/a", "p/q/q/b", "p/q/q/q/a", "p/x", "t/u/y")
    async with lab.mounted():
        for path in ("", "p", "p/q", "p/q/q", "p/q/q/q", "t", "t/u"):
            await lab.ls(path)
        await lab.rename("p/q", "t/u", RENAME_EXCHANGE)
        await lab.rename("p", "t/u", RENAME_EXCHANGE)
        await lab.settle()
        lab.later(60)
        assert [await lab.ls(path) for path in ("p", "p/q")] == [["a", "q/"], ["a", "b", "q/"]]
    assert contents(lab) == {
        "p/": b"",
        "p/a": b"p/q/a",
        "p/q/": b"",
        "p/q/a": b"p/q/q/a",
        "p/q/b": b"p/q/q/b",
        "p/q/q/a": b"p/q/q/q/a",
        "t/u/q/y": b"t/u/y",
        "t/u/x": b"p/x",
    }


async def test_two_files_change_places(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, "a", "d/b")
    async with lab.mounted():
        first, second = await lab.get("a"), await lab.get("d/b")
        await lab.rename("a", "d/b", RENAME_EXCHANGE)
        assert ((await lab.get("d/b")).id, (await lab.get("a")).id) == (first.id, second.id)
        assert (await lab.read("a"), await lab.read("d/b")) == (b"d/b", b"a")
        await lab.settle()
        assert contents(lab) == {"a": b"d/b", "d/b": b"a"}
        lab.later(60)
        assert (await lab.read("a"), await lab.read("d/b")) == (b"d/b", b"a")


async def test_two_files_of_which_one_is_not_in_s3_change_places(
    lab: Lab, autojump_clock: MockClock
) -> None:
    fill(lab, "a")
    async with lab.mounted() as fs:
        node = await lab.write("b", b"new", close=False)
        await lab.rename("a", "b", RENAME_EXCHANGE)
        await fs.commit(node.id)
        await lab.settle()
        assert contents(lab) == {"a": b"new", "b": b"a"}


async def test_a_file_that_is_uploaded_while_its_old_object_is_put_aside_is_where_it_was_uploaded(
    lab: Lab,
) -> None:
    """Another file waits for the old key, which cannot become free by a move: what lies there is being changed."""
    fill(lab, "a")
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        await lab.rename("a", "b")
        changed = await lab.get("b")
        await fs.stages.write(changed.id, 0, b"b, and much longer")
        new = await lab.write("a", b"new", close=False)
        with lab.store.hold("copy") as hold:
            nursery.start_soon(fs.commit, new.id)
            await hold.arrived()
            await fs.commit(changed.id)
        await lab.settle()
        assert contents(lab) == {"a": b"new", "b": b"b, and much longer"}
        node = await lab.get("b")
        assert (fs.volume.key_in_s3(node), node.etag) == ("b", lab.store.objects["b"].head.etag)


async def test_two_directories_change_places(lab: Lab, autojump_clock: MockClock) -> None:
    """Each one's place is taken by the other: one goes out of the way first, and nothing of that is seen."""
    fill(lab, "d/", "d/x", "d/s/y", "p/e/x", "p/e/z")
    async with lab.mounted():
        await lab.rename("d", "p/e", RENAME_EXCHANGE)
        assert await lab.ls("d") == ["x", "z"]
        assert await lab.ls("p/e") == ["s/", "x"]
        assert await lab.read("d/x") == b"p/e/x"
        with lab.store.hold("copy") as hold:
            await hold.arrived()
            lab.later(60)
            assert await lab.ls() == ["d/", "p/"]
            assert await lab.ls("p") == ["e/"]
        await lab.settle()
        assert contents(lab) == {
            "d/x": b"p/e/x", "d/z": b"p/e/z", "p/e/": b"", "p/e/x": b"d/x", "p/e/s/y": b"d/s/y",
        }  # fmt: skip
        lab.later(60)
        assert await lab.ls() == ["d/", "p/"]
        assert await lab.read("p/e/s/y") == b"d/s/y"


async def test_a_file_and_a_directory_change_places(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, "a", "p/d/x")
    async with lab.mounted():
        await lab.rename("a", "p/d", RENAME_EXCHANGE)
        assert await lab.read("p/d") == b"a"
        assert await lab.ls("a") == ["x"]
        await lab.settle()
        assert contents(lab) == {"a/x": b"p/d/x", "p/d": b"a"}
        lab.later(60)
        assert (await lab.ls(), await lab.ls("p")) == (["a/", "p/"], ["d"])


async def test_new_directories_change_places_before_s3_heard_of_them(
    lab: Lab, autojump_clock: MockClock
) -> None:
    fill(lab, "e/x")
    async with lab.mounted():
        await lab.mkdir("d")
        await lab.rename("d", "e", RENAME_EXCHANGE)
        lab.later(60)
        assert (await lab.ls("d"), await lab.ls("e")) == (["x"], [])
        await lab.settle()
        assert contents(lab) == {"d/x": b"e/x", "e/": b""}


async def test_an_exchange_is_undone_by_another(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, "d/x", "e/x")
    async with lab.mounted():
        await lab.rename("d", "e", RENAME_EXCHANGE)
        await lab.rename("d", "e", RENAME_EXCHANGE)
        assert await lab.read("d/x") == b"d/x"
        await lab.settle()
        assert contents(lab) == {"d/x": b"d/x", "e/x": b"e/x"}
        assert lab.store.calls["copy"] == 0


async def test_exchange_refuses_what_cannot_be(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, "a", "d/e/x")
    async with lab.mounted():
        await expect(errno.ENOENT, lambda: lab.rename("a", "none", RENAME_EXCHANGE))
        await expect(errno.ENOENT, lambda: lab.rename("none", "a", RENAME_EXCHANGE))
        await expect(errno.EINVAL, lambda: lab.rename("d", "d/e", RENAME_EXCHANGE))
        await expect(errno.EINVAL, lambda: lab.rename("d/e", "d", RENAME_EXCHANGE))
        await expect(errno.EINVAL, lambda: lab.rename("a", "b", RENAME_WHITEOUT))
        both = RENAME_EXCHANGE | RENAME_NOREPLACE
        await expect(errno.EINVAL, lambda: lab.rename("a", "d", both))
        await lab.rename("a", "a", RENAME_EXCHANGE)
        assert await lab.ls() == ["a", "d/"]


async def test_an_exchange_survives_a_crash_at_any_request(
    lab: Lab, autojump_clock: MockClock
) -> None:
    for n in range(1, 40):
        count = 0

        def fail(operation: str, key: str, n: int = n) -> None:
            nonlocal count
            if operation in ("put", "copy", "delete", "delete_many"):
                count += 1
                if count >= n:
                    raise Unavailable("the network is gone")

        for key in lab.stored():
            lab.store.remove(key)
        fill(lab, "d/x", "d/y", "e/x", "e/z/w", "f")
        lab.later(60)
        async with lab.mounted(f"c{n}"):
            assert await lab.ls() == ["d/", "e/", "f"]
            await lab.rename("d", "e", RENAME_EXCHANGE)
            await lab.rename("f", "e", RENAME_EXCHANGE)
            lab.store.before = fail
            await lab.settle()
        lab.store.before = None
        async with lab.mounted(f"d{n}"):
            await lab.settle()
            assert contents(lab) == {
                "d/x": b"e/x", "d/z/w": b"e/z/w", "f/x": b"d/x", "f/y": b"d/y", "e": b"f",
            }, n  # fmt: skip
            lab.later(60)
            assert await lab.ls() == ["d/", "e", "f/"]
        if count < n:
            return
    pytest.fail("the exchange never ran through")


# Changes inside a directory that is on its way


async def test_changes_inside_a_renamed_directory_do_not_wait(
    lab: Lab, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move, "COPIES", 1)
    lab.settings = settings(concurrency=1)
    fill(lab, *(f"d/{n}" for n in "0abcdefgh"))
    async with lab.mounted() as fs:
        assert len(await lab.ls("d")) == 9
        with lab.store.hold("copy") as hold:
            await lab.rename("d", "e")
            await hold.arrived()
            await lab.write("e/new", b"new")
            await lab.write("e/a", b"changed")
            await lab.unlink("e/b")
            await lab.rename("e/c", "e/c2")
            await lab.rename("e/d", "out")
            await lab.mkdir("e/sub")
            await lab.rename("e/f", "e/sub/f")
            await lab.write("e/sub/g", b"in a new directory")
            await fs.attributes.change((await lab.get("e/g")).id, AttributeChange(mode=0o600))
            assert "d" not in await lab.ls()
        await lab.settle()
        expected = {
            "e/0": b"d/0", "e/a": b"changed", "e/c2": b"d/c", "e/e": b"d/e", "e/g": b"d/g", "e/h": b"d/h", "e/new": b"new",
            "e/sub/": b"", "e/sub/f": b"d/f", "e/sub/g": b"in a new directory", "out": b"d/d",
        }  # fmt: skip
        assert contents(lab) == expected
        assert lab.store.objects["e/g"].head.metadata["mode"] == str(0o100600)
        lab.later(60)
        assert await lab.ls("e") == ["0", "a", "c2", "e", "g", "h", "new", "sub/"]
        assert await lab.read("e/a") == b"changed"


async def test_changes_after_the_copies_and_before_the_switch_count(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """The second look at the old place is held up: everything is copied then, and has to be taken back."""
    fill(lab, *(f"d/{n}" for n in "abcd"))
    stack = ExitStack()
    async with lab.mounted():
        assert (await lab.ls("d"), await lab.ls()) == (["a", "b", "c", "d"], ["d/"])
        with lab.store.hold("copy") as copies:
            await lab.rename("d", "e")
            await copies.arrived()
            hold = stack.enter_context(lab.store.hold("list_page"))
        await hold.arrived()
        with stack:
            assert "e/a" in lab.stored()
            await lab.write("e/a", b"changed")
            await lab.unlink("e/b")
            await lab.rename("e/c", "out")
            await lab.rename("e/d", "e/a2")
            await lab.write("e/d", b"another")
        await lab.settle()
        assert contents(lab) == {
            "e/a": b"changed", "out": b"d/c", "e/a2": b"d/d", "e/d": b"another",
        }  # fmt: skip


async def test_what_a_renamed_directory_leaves_is_deleted_without_waiting_for_more(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """Other deletes are gathered for a moment; here all of them are there at once."""
    fill(lab, "d/a", "d/b")
    async with lab.mounted():
        await lab.ls("d")
        with lab.store.hold("copy") as copies, lab.store.hold("delete_many") as deletes:
            await lab.rename("d", "e")
            await copies.arrived()
            copied_at = trio.current_time()
            copies.release()
            await deletes.arrived()
            assert trio.current_time() == copied_at
        await lab.settle()
    assert contents(lab) == {"e/a": b"d/a", "e/b": b"d/b"}


async def test_who_has_a_file_open_reads_and_writes_it_through_the_rename(
    lab: Lab, autojump_clock: MockClock
) -> None:
    fill(lab, "d/a", "d/b")
    async with lab.mounted() as fs:
        written, removed = await lab.get("d/a"), await lab.get("d/b")
        lab.held = {written.id, removed.id}
        fs.stages.opened(written.id)
        await fs.stages.write(written.id, 0, b"D")
        await lab.rename("d", "e")
        await lab.unlink("e/b")
        await trio.sleep(1)
        assert await lab.read_inode(removed.id) == b"d/b"
        await fs.stages.write(written.id, 3, b"!")
        await fs.commit(written.id)
        await lab.settle()
        assert await lab.read("e/a") == b"D/a!"
        assert await lab.read_inode(removed.id) == b"d/b"
        lab.held.clear()
        await lab.settle()
        assert contents(lab) == {"e/a": b"D/a!"}


async def test_what_was_being_uploaded_goes_along(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, "d/a")
    async with lab.mounted():
        await lab.ls("d")
        with lab.store.hold("put") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lab.write, "d/new", b"new")
                await hold.arrived()
                await lab.rename("d", "e")
                await trio.sleep(1)
                hold.release()
        await lab.settle()
        assert contents(lab) == {"e/a": b"d/a", "e/new": b"new"}


async def test_what_others_put_at_the_old_name_does_not_replace_what_was_made_here(
    lab: Lab,
    autojump_clock: MockClock,
) -> None:
    fill(lab, "d/a")
    async with lab.mounted():
        await lab.ls("d")
        with lab.store.hold("copy") as hold:
            await lab.rename("d", "e")
            await hold.arrived()
            await lab.write("e/n", b"ours")
            lab.store.insert("d/n", b"theirs")
        await lab.settle()
        assert contents(lab) == {"e/a": b"d/a", "e/n": b"ours", "d/n": b"theirs"}


# Where it goes next


@pytest.mark.parametrize("copied", [0, 3])
async def test_a_directory_that_is_renamed_back_stays_where_it_was(
    lab: Lab, autojump_clock: MockClock, copied: int
) -> None:
    fill(lab, *(f"d/{n}" for n in range(9)))
    is_copied = trio.Event()

    def count(operation: str, key: str) -> None:
        if lab.store.calls["copy"] == copied:
            is_copied.set()

    lab.store.before = count
    async with lab.mounted():
        await lab.rename("d", "e")
        if copied:
            await is_copied.wait()
        await lab.rename("e", "d")
        await lab.settle()
        assert lab.stored() == [f"d/{n}" for n in range(9)]
        assert await lab.read("d/3") == b"d/3"


async def test_a_directory_goes_on_to_another_name(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, *(f"d/{n}" for n in range(9)))
    async with lab.mounted():
        with lab.store.hold("copy") as hold:
            await lab.rename("d", "e")
            await hold.arrived()
            await lab.rename("e", "f")
            await lab.mkdir("e")
        await lab.settle()
        assert contents(lab) == {"e/": b""} | {f"f/{n}": f"d/{n}".encode() for n in range(9)}


async def test_directories_are_renamed_inside_and_around_each_other(
    lab: Lab, autojump_clock: MockClock
) -> None:
    fill(lab, "p/a", "p/s/x", "p/s/t/y", "p/u/z")
    async with lab.mounted():
        with lab.store.hold("copy") as hold:
            await lab.rename("p", "q")
            await hold.arrived()
            await lab.rename("q/s", "q/s2")  # inside
            await lab.rename("q/s2/t", "t")  # out of both
            await lab.rename("q", "r")  # around
            await lab.rename("r/u", "r/s2/u")
        assert await lab.read("r/s2/u/z") == b"p/u/z"
        await lab.settle()
        assert contents(lab) == {
            "r/a": b"p/a", "r/s2/": b"", "r/s2/x": b"p/s/x", "t/y": b"p/s/t/y", "r/s2/u/z": b"p/u/z",
        } or contents(lab) == {
            "r/a": b"p/a", "r/s2/x": b"p/s/x", "t/y": b"p/s/t/y", "r/s2/u/z": b"p/u/z",
        }  # fmt: skip
        lab.later(60)
        assert await lab.ls("r/s2") == ["u/", "x"]


async def test_a_directory_replaces_an_empty_one(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, "d/a", "e/")
    async with lab.mounted():
        await lab.rename("d", "e")
        await lab.settle()
        assert contents(lab) == {"e/a": b"d/a"}


async def test_the_old_name_is_free_when_s3_has_followed(
    lab: Lab, autojump_clock: MockClock
) -> None:
    fill(lab, "d/a")
    async with lab.mounted():
        with lab.store.hold("copy") as hold:
            await lab.rename("d", "e")
            await hold.arrived()
            with pytest.raises(TimedOut):
                await lab.mkdir("d")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lab.mkdir, "d")
                await trio.sleep(1)
                hold.release()
        await lab.settle()
        assert lab.stored() == ["d/", "e/a"]


async def test_it_is_told_how_far_a_rename_is(lab: Lab, autojump_clock: MockClock) -> None:
    fill(lab, *(f"d/{n}" for n in range(9)))

    def refuse(operation: str, key: str) -> None:
        if operation == "copy" and key == "p/e/5":
            raise Denied(f"{key} must not be written")

    lab.store.before = refuse
    async with lab.mounted() as fs:
        await lab.mkdir("p")
        await lab.rename("d", "p/e")
        assert inspection.pending_renames(fs) == []  # nobody wants to hear of what takes no time
        await lab.settle()
        lab.later(2)
        (told,) = inspection.pending_renames(fs)
        assert (told.source, told.target) == ("d/", "p/e/")
        assert (told.objects_done, told.objects_total) == (8, 9)
        assert (told.bytes_done, told.bytes_total) == (24, 27)
        assert told.error == "p/e/5 must not be written"
    async with lab.mounted() as fs:
        (again,) = inspection.pending_renames(fs)
        assert again.id == told.id
        lab.store.before = None
        await lab.settle()
        assert inspection.pending_renames(fs) == []


# S3 that is away, refuses, or was left in the middle


async def test_a_rename_outlives_a_day_without_s3(
    lab: Lab, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "IDLE_S", 30.0)  # a day of looking every second takes a minute
    fill(lab, *(f"d/{n}" for n in range(9)))
    away = False

    def fail(operation: str, key: str) -> None:
        if away:
            raise Unavailable("the network is gone")

    lab.store.before = fail
    async with lab.mounted():
        assert (await lab.ls("d"), await lab.ls()) == ([str(n) for n in range(9)], ["d/"])
        away = True
        await lab.rename("d", "e")
        await trio.sleep(DAY_S / 2)
    async with lab.mounted("after a reboot"):
        await trio.sleep(DAY_S / 2)
        assert lab.fs.syncer.errors() == ["the network is gone"]
        away = False
        await trio.sleep(301)  # the longest wait between two tries
        assert lab.stored() == [f"e/{n}" for n in range(9)]
        assert lab.fs.syncer.left().is_nothing


async def test_a_rename_that_s3_refuses_can_be_taken_back(
    lab: Lab, autojump_clock: MockClock
) -> None:
    """The tree keeps the new name, everything can be read, and what was not refused is copied already."""
    fill(lab, *(f"d/{n}" for n in range(400)))

    def refuse(operation: str, key: str) -> None:
        if operation == "copy" and key.startswith("forbidden/") and key != "forbidden/0":
            raise Denied(f"{key} must not be written")

    lab.store.before = refuse
    async with lab.mounted() as fs:
        await lab.rename("d", "forbidden")
        await lab.settle()
        assert len(await lab.ls("forbidden")) == 400
        assert await lab.read("forbidden/7") == b"d/7"
        assert "must not be written" in fs.syncer.errors()[0]
        assert lab.store.calls["copy"] < 200
        await lab.rename("forbidden", "d")
        await lab.settle()
        assert fs.syncer.errors() == []
        assert fs.syncer.left().is_nothing
        assert len(lab.stored()) == 400


async def test_one_object_that_s3_refuses_does_not_hold_up_the_others(
    lab: Lab, autojump_clock: MockClock
) -> None:
    fill(lab, *(f"d/{n}" for n in range(9)))

    def refuse(operation: str, key: str) -> None:
        if operation == "copy" and key == "e/0":
            raise Denied(f"{key} must not be written")

    lab.store.before = refuse
    async with lab.mounted():
        await lab.rename("d", "e")
        await lab.settle()
        assert [key for key in lab.stored() if key.startswith("e/")] == [
            f"e/{n}" for n in range(1, 9)
        ]
        lab.store.before = None
        await lab.settle()
        assert lab.stored() == [f"e/{n}" for n in range(9)]


@pytest.mark.parametrize("whole", [False, True])
async def test_an_object_of_which_a_dead_worker_wrote_attributes_is_renamed(
    lab: Lab, autojump_clock: MockClock, whole: bool
) -> None:
    """Nobody saw that request end. It is no stray because the path that its key spells leads nowhere any more."""
    async with lab.mounted() as fs:
        await lab.mkdir("d")
        node = await lab.write("d/a", b"1")
        await lab.settle()
    etag = lab.store.objects["d/a"].head.etag
    with lab.store.hold("copy") as hold:
        async with lab.mounted() as fs:
            await fs.attributes.change(node.id, AttributeChange(mode=0o600))
            await hold.arrived()
    key = "d/a"  # the request had arrived nevertheless
    metadata = {**lab.store.objects[key].head.metadata, "mode": str(0o100600)}
    lab.store.insert(key, b"1", metadata=metadata)
    assert lab.store.objects[key].head.etag == etag
    async with lab.mounted(sync=False) as fs:
        await lab.rename(*(("d", "e") if whole else ("d/a", "d/b")))
        assert list(Strays(fs.volume).pending()) == []
    async with lab.mounted():
        await lab.settle()
        name = "e/a" if whole else "d/b"
        assert await lab.read(name) == b"1"
        assert [key for key in lab.stored() if not key.endswith("/")] == [name]


async def test_what_is_discarded_is_as_s3_has_it_again(lab: Lab, autojump_clock: MockClock) -> None:
    """Nothing of it is sent later: not what was renamed, not what was removed, not what was never uploaded."""
    fill(lab, "a", "b", "c/x", "d/y")
    async with lab.mounted(sync=False) as fs:
        assert (await lab.ls(), await lab.ls("c")) == (["a", "b", "c/", "d/"], ["x"])
        await lab.rename("a", "a2")
        await lab.rename("c", "d/c2")
        await lab.unlink("b")
        await lab.mkdir("new")
        await lab.write("new/file", b"new", close=False)
        fs.discard()
        assert fs.syncer.left().is_nothing
    async with lab.mounted("second"):
        assert await lab.ls() == ["a", "b", "c/", "d/"]
        assert (await lab.ls("c"), await lab.ls("d")) == (["x"], ["y"])
        assert await lab.read("c/x") == b"c/x"
        await lab.settle()
        assert contents(lab) == {"a": b"a", "b": b"b", "c/x": b"c/x", "d/y": b"d/y"}
