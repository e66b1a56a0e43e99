"""Changes of the tree: at once here, then in S3, and after a crash in any state of it."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from s3mgrd.errors import Unavailable
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.changing.tree import RENAME_EXCHANGE, RENAME_NOREPLACE
from s3mgrd.s3.port import ListPage
from tests.unit.fs.conftest import WHO, Lab, settings


async def expect(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        await call()  # type: ignore[misc] # a coroutine function
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


async def test_a_directory_is_a_marker(lab: Lab) -> None:
    async with lab.mounted():
        await lab.mkdir("d")
        assert await lab.ls() == ["d/"]
        await lab.settle()
        assert lab.stored() == ["d/"]
        assert lab.store.objects["d/"].head.content_type == "application/x-directory"


async def test_a_new_directory_keeps_its_marker_when_it_is_renamed_at_once(lab: Lab) -> None:
    """Its contents are in S3 before its marker is, so the rename finds something to copy, but no marker."""
    async with lab.mounted(sync=False):
        await lab.mkdir("d")
        await lab.write("d/a", b"1")
        await lab.rename("d", "e")
    async with lab.mounted():
        await lab.settle()
        assert lab.stored() == ["e/", "e/a"]


async def test_a_directory_looked_up_alone_has_its_attributes(lab: Lab) -> None:
    async with lab.mounted():
        node = await lab.mkdir("d")
        change = AttributeChange(mode=0o700, mtime_ns=123_456_789)
        await lab.fs.attributes.change(node.id, change)
        await lab.settle()
        (lab.directory / "other").mkdir()
    other = Lab(lab.directory / "other", lab.store)
    async with other.mounted():
        node = await other.get("d")
        assert (node.mode, node.mtime_ns) == (0o700, 123_456_789)


async def test_what_cancels_out_is_never_sent(lab: Lab) -> None:
    async with lab.mounted():
        for _ in range(20):
            await lab.mkdir("d")
            await lab.rename("d", "e")
            await lab.rmdir("e")
        await lab.settle()
        assert lab.stored() == []
        assert lab.store.calls["put"] <= 2


async def test_the_last_entry_of_an_implied_directory_leaves_a_marker(lab: Lab) -> None:
    lab.store.insert("d/a", b"1")
    async with lab.mounted():
        await lab.unlink("d/a")
        await lab.settle()
        assert lab.stored() == ["d/"]
        assert await lab.ls() == ["d/"]


async def test_a_tree_is_removed_without_a_trace(lab: Lab) -> None:
    lab.store.insert("d/a", b"1")
    lab.store.insert("d/e/b", b"2")
    lab.store.insert("d/e/", b"")
    async with lab.mounted():
        await lab.unlink("d/e/b")
        await lab.rmdir("d/e")
        await lab.unlink("d/a")
        await lab.rmdir("d")
        await lab.settle()
        assert lab.stored() == []
        lab.later(60)
        assert await lab.ls() == []


async def test_rmdir_of_what_is_not_empty_is_refused(lab: Lab) -> None:
    lab.store.insert("d/a")
    lab.store.insert("hidden//x")
    async with lab.mounted():
        await expect(errno.ENOTEMPTY, lambda: lab.rmdir("d"))
        await expect(errno.ENOTEMPTY, lambda: lab.rmdir("hidden"))
        await expect(errno.ENOENT, lambda: lab.rmdir("none"))
        await expect(errno.ENOTDIR, lambda: lab.rmdir("d/a"))
        await expect(errno.EISDIR, lambda: lab.unlink("d"))


async def test_names_that_exist_are_not_made_again(lab: Lab) -> None:
    lab.store.insert("a", b"1")
    lab.store.insert("d/b", b"1")
    async with lab.mounted():
        await expect(errno.EEXIST, lambda: lab.mkdir("a"))
        await expect(errno.EEXIST, lambda: lab.mkdir("d"))
        await expect(errno.EEXIST, lambda: lab.symlink("a", "x"))
        await expect(errno.EEXIST, lambda: lab.write("a", b"2", exclusive=True))


async def test_write_temporary_and_rename_ends_with_one_object(lab: Lab) -> None:
    lab.store.insert("config", b"old")
    async with lab.mounted():
        await lab.write("config.tmp", b"new")
        await lab.rename("config.tmp", "config")
        assert await lab.read("config") == b"new"
        assert await lab.ls() == ["config"]
        await lab.settle()
        assert {key: lab.data(key) for key in lab.stored()} == {"config": b"new"}
        assert await lab.read("config") == b"new"


@pytest.mark.parametrize("removed", [False, True])
async def test_a_file_renamed_back_or_removed_while_s3_follows_is_not_at_both_names(
    lab: Lab, removed: bool
) -> None:
    async with lab.mounted():
        node = await lab.write("a", b"1")
        lab.held = {node.id}
        with lab.store.hold("copy") as hold:
            await lab.rename("a", "b")
            await hold.arrived()
            if removed:
                await lab.unlink("b")
            else:
                await lab.rename("b", "a")
            hold.release()
            await lab.settle()
        assert lab.stored() == ["a"]
        assert await lab.read_inode(node.id) == b"1"
        lab.held.clear()
        await lab.settle()
        assert lab.stored() == ([] if removed else ["a"])


async def test_a_file_is_renamed_while_it_is_written(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello", close=False)
        await lab.rename("a", "b")
        await fs.commit(node.id)
        await lab.settle()
        assert lab.stored() == ["b"]


async def test_an_uploaded_file_is_written_again_after_its_rename(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        await lab.rename("a", "b")
        await fs.stages.write(node.id, 5, b"!")
        await fs.commit(node.id)
        await lab.settle()
        assert {key: lab.data(key) for key in lab.stored()} == {"b": b"hello!"}


@pytest.mark.parametrize("removed", [False, True])
async def test_a_file_is_renamed_and_written_while_its_attributes_are_copied(
    lab: Lab, removed: bool
) -> None:
    """The copy, which arrives last, is under the old name, and no version of the file any more."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"old")
        lab.held.add(node.id)
        with lab.store.hold("copy") as hold:
            await fs.attributes.change(node.id, AttributeChange(mode=0o600))
            await hold.arrived()
            await lab.rename("a", "b")
            await fs.stages.write(node.id, 0, b"new!")
            await fs.commit(node.id)
            if removed:
                await lab.unlink("b")
            hold.release()
            await lab.settle()
        assert await lab.read_inode(node.id) == b"new!"
        assert {key: lab.data(key) for key in lab.stored()} == {"b": b"new!"}


async def test_a_link_that_changes_places_with_a_file_under_upload_overwrites_nothing(
    lab: Lab,
) -> None:
    async with lab.mounted(sync=False) as fs, trio.open_nursery() as nursery:
        node = await lab.write("file", b"data", close=False)
        with lab.store.hold("put") as hold:
            nursery.start_soon(fs.commit, node.id)
            await hold.arrived()
            link = await lab.symlink("link", "target")
            await lab.rename("link", "file", RENAME_EXCHANGE)
            nursery.start_soon(fs.syncer._objects.describe, link.id)
            await trio.testing.wait_all_tasks_blocked()
            hold.release()
    async with lab.mounted():
        await lab.settle()
        assert {key: lab.data(key) for key in lab.stored()} == {"file": b"target", "link": b"data"}


@pytest.mark.parametrize("why", ["chmod", "rename", "rename of its directory", "replaced"])
async def test_a_file_uploaded_in_parts_is_written_while_s3_copies_it(lab: Lab, why: str) -> None:
    """The copy has another ETag, and is the same version: neither what is read of it nor the upload finds another writer's."""
    body = bytes(range(251)) * 60_000
    async with lab.mounted() as fs:
        await lab.mkdir("d")
        node = await lab.write("d/a", body)
        lab.held.add(node.id)
        with lab.store.hold("copy") as hold:
            if why == "chmod":
                await fs.attributes.change(node.id, AttributeChange(mode=0o600))
            elif why == "rename":
                await lab.rename("d/a", "d/b")
            elif why == "replaced":
                await lab.write("d/new", b"new")
                await lab.rename("d/new", "d/a")
            else:
                await lab.rename("d", "e")
            await hold.arrived()
            await fs.stages.write(node.id, 0, b"!")
            hold.release()
            await lab.settle()
        assert await lab.read_inode(node.id) == b"!" + body[1:]
        assert fs.volume.journal.count_conflicts() == (0, 0)
        key = {"chmod": "d/a", "rename": "d/b", "rename of its directory": "e/a"}.get(why)
        assert key is None or lab.data(key) == b"!" + body[1:]


async def test_names_change_places_in_a_ring(lab: Lab) -> None:
    """Each object's place is taken by another: none can be moved first."""
    for name in "abc":
        lab.store.insert(name, name.encode())
    async with lab.mounted(sync=False):
        await lab.rename("a", "t")
        await lab.rename("b", "a")
        await lab.rename("c", "b")
        await lab.rename("t", "c")
    async with lab.mounted():
        await lab.settle()
        assert {key: lab.data(key) for key in lab.stored()} == {"a": b"b", "b": b"c", "c": b"a"}
        assert [await lab.read(name) for name in "abc"] == [b"b", b"c", b"a"]


async def test_a_new_file_takes_the_name_of_a_renamed_one(lab: Lab) -> None:
    lab.store.insert("a", b"old")
    async with lab.mounted(sync=False):
        await lab.rename("a", "b")
        await lab.write("a", b"new")
    async with lab.mounted():
        await lab.settle()
        assert {key: lab.data(key) for key in lab.stored()} == {"a": b"new", "b": b"old"}


async def test_a_new_file_takes_the_name_of_a_renamed_one_that_is_being_written(lab: Lab) -> None:
    """What S3 still has there is ours, so that who demands that the file be new has lost no race."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"1")
        await fs.stages.write(node.id, 0, b"2")
        await lab.rename("a", "b")
        await lab.write("a", b"3", exclusive=True)
        await fs.commit(node.id)
        await lab.settle()
        assert fs.volume.journal.count_conflicts() == (0, 0)
    assert {key: lab.data(key) for key in lab.stored()} == {"a": b"3", "b": b"2"}


async def test_a_removed_name_is_used_again_before_s3_heard_of_it(lab: Lab) -> None:
    lab.store.insert("a", b"old")
    async with lab.mounted(sync=False):
        await lab.unlink("a")
        await lab.write("a", b"new", exclusive=True)
    async with lab.mounted():
        await lab.settle()
        assert lab.data("a") == b"new"


async def test_rename_refuses_what_posix_refuses(lab: Lab) -> None:
    for key in ("a", "b", "d/x", "e/y"):
        lab.store.insert(key, key.encode())
    async with lab.mounted():
        await expect(errno.EEXIST, lambda: lab.rename("a", "b", RENAME_NOREPLACE))
        await expect(errno.EISDIR, lambda: lab.rename("a", "d"))
        await expect(errno.ENOTDIR, lambda: lab.rename("d", "a"))
        await expect(errno.ENOTEMPTY, lambda: lab.rename("d", "e"))
        await expect(errno.EINVAL, lambda: lab.rename("d", "d/z"))
        await expect(errno.ENOENT, lambda: lab.rename("none", "z"))
        await expect(errno.EINVAL, lambda: lab.rename("a", "z", 1 << 4))


async def test_a_directory_is_renamed_at_once_and_s3_follows(lab: Lab) -> None:
    for i in range(30):
        lab.store.insert(f"d/sub{i % 3}/f{i:02d}", bytes([i]))
    lab.store.insert("d/", b"")
    async with lab.mounted():
        with lab.store.hold("copy") as hold:
            await lab.rename("d", "e")
            assert await lab.ls() == ["e/"]
            assert await lab.ls("e") == ["sub0/", "sub1/", "sub2/"]
            assert await lab.read("e/sub1/f04") == bytes([4])
            await hold.arrived()
            assert await lab.find("d") is None
            hold.release()
        await lab.settle()
        assert all(key.startswith("e/") for key in lab.stored())
        assert len(lab.stored()) == 31
        assert await lab.read("e/sub1/f04") == bytes([4])
        lab.later(60)
        assert await lab.ls() == ["e/"]


async def test_a_directory_rename_goes_on_after_a_crash(lab: Lab) -> None:
    for i in range(10):
        lab.store.insert(f"d/f{i}", bytes([i]))
    async with lab.mounted(sync=False):
        await lab.rename("d", "e")
    copied = 0

    def crash_in_the_middle(operation: str, key: str) -> None:
        nonlocal copied
        copied += operation == "copy"
        if copied >= 5 and operation == "copy":
            raise Unavailable("the network is gone")

    lab.store.before = crash_in_the_middle
    async with lab.mounted():
        await lab.settle()
        assert await lab.ls("e") == [f"f{i}" for i in range(10)]
    lab.store.before = None
    async with lab.mounted("second"):
        await lab.settle()
        assert lab.stored() == [f"e/f{i}" for i in range(10)]


async def test_what_others_add_to_a_directory_while_it_is_renamed_is_not_lost(lab: Lab) -> None:
    lab.store.insert("d/a", b"1")
    async with lab.mounted():
        with lab.store.hold("copy") as hold:
            await lab.rename("d", "e")
            await hold.arrived()
            lab.store.insert("d/b", b"2")
            hold.release()
        await lab.settle()
        assert lab.stored() == ["e/a", "e/b"]
        lab.later(60)
        assert await lab.ls("e") == ["a", "b"]


async def test_a_local_directory_is_renamed_without_asking_s3(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs:
        await lab.mkdir("d")
        node = await lab.write("d/a", b"1", close=False)
        await lab.rename("d", "e")
        assert fs.volume.moves.all() == []
        await fs.commit(node.id)
        assert lab.stored() == ["e/a"]


async def test_attributes_are_kept_in_metadata_and_survive_losing_everything(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        await fs.attributes.change(
            node.id, AttributeChange(mode=0o600, uid=5, gid=6, mtime_ns=1_234_567_890_123_456_789)
        )
        await lab.settle()
        assert lab.store.calls["copy"] == 1
    (lab.directory / "mount.db").unlink()
    async with lab.mounted("second"):
        node = await lab.get("a")
        assert (node.mode, node.uid, node.gid) == (0o600, 5, 6)
        assert node.mtime_ns == 1_234_567_890_123_456_789
        assert await lab.read("a") == b"hello"


@pytest.mark.parametrize(("mode", "after"), [(0o6755, 0o755), (0o6744, 0o2744), (0o644, 0o644)])
async def test_a_changed_owner_takes_setuid_and_setgid_away(
    lab: Lab, mode: int, after: int
) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        await fs.attributes.change(node.id, AttributeChange(mode=mode))
        changed = await fs.attributes.change(
            node.id, AttributeChange(uid=7, strips_privileges=True)
        )
        assert (changed.mode, changed.uid) == (after, 7)


async def test_symbolic_links_are_objects(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.symlink("l", "some/where")
        assert await fs.read_target(node.id) == "some/where"
        await lab.settle()
        assert lab.data("l") == b"some/where"
        assert lab.store.objects["l"].head.metadata["mode"] == str(0o120644)
    (lab.directory / "mount.db").unlink()
    async with lab.mounted("second") as fs:
        assert await lab.ls() == ["l"]
        node = await lab.get("l")
        assert await fs.read_target(node.id) == "some/where"


async def test_a_link_removed_and_forgotten_while_it_is_sent_is_no_failure(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is gone by the time S3 answers; what S3 was given is deleted again."""
    async with lab.mounted() as fs:
        with lab.store.hold("put") as hold:
            node = await lab.symlink("l", "some/where")
            await hold.arrived()
            await lab.unlink("l")
            fs.syncer.forget(node.id)
            hold.release()
            await lab.settle()
        assert lab.stored() == []
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


async def test_a_read_only_mount_refuses_every_change(lab: Lab) -> None:
    from tests.unit.fs.conftest import settings

    lab.store.insert("a", b"1")
    lab.settings = settings(read_only=True)
    async with lab.mounted():
        for call in (
            lambda: lab.mkdir("d"),
            lambda: lab.unlink("a"),
            lambda: lab.rename("a", "b"),
            lambda: lab.symlink("l", "x"),
            lambda: lab.write("new", b"1"),
        ):
            await expect(errno.EROFS, call)
        assert await lab.read("a") == b"1"


async def test_a_crash_at_any_request_loses_nothing(lab: Lab) -> None:
    """Run a script of changes again and again, with S3 failing at the nth request, then let the next worker finish."""
    for n in range(1, 40):
        count = 0

        def fail(operation: str, key: str, n: int = n) -> None:
            nonlocal count
            if operation in ("put", "copy", "delete", "delete_many"):
                count += 1
                if count >= n:
                    raise Unavailable("the network is gone")

        for key in list(lab.store.objects):
            lab.store.remove(key)
        lab.store.insert("in/a", b"a")
        lab.store.insert("in/b", b"b")
        lab.later(60)
        lab.store.before = fail
        async with lab.mounted(f"c{n}"):
            await lab.ls("in")
            await lab.rename("in/a", "in/c")
            await lab.mkdir("out")
            await lab.rename("in/b", "out/b")
            await lab.symlink("out/l", "b")
            await lab.settle()
        lab.store.before = None
        async with lab.mounted(f"d{n}"):
            await lab.settle()
            found = {k: lab.data(k) for k in lab.stored() if not k.endswith("/")}
            assert found == {"in/c": b"a", "out/b": b"b", "out/l": b"b"}, n
            assert await lab.ls("out") == ["b", "l"]
            for name in ("in/c", "out/b", "out/l"):
                await lab.unlink(name)
            await lab.rmdir("in")
            await lab.rmdir("out")
            await lab.settle()
            assert lab.stored() == [], n
        if count < n:
            return
    pytest.fail("the script never ran through")


@pytest.mark.parametrize("is_answered_late", [False, True])
async def test_a_directory_made_where_another_was_keeps_its_own_marker(
    lab: Lab, is_answered_late: bool
) -> None:
    """The marker that S3 still shows, or showed a moment ago, is that of the directory that was renamed."""
    async with lab.mounted():
        await lab.mkdir("d")
        await lab.settle()
        with lab.store.hold("delete_many") as deletes, lab.store.hold("put") as puts:
            await lab.rename("d", "e")
            await deletes.arrived()
            made = await lab.mkdir("d")
            lab.fs.volume.distrust(made.id)
            if is_answered_late:
                asked = lab.store.list_page

                async def late(prefix: str, **options: Any) -> ListPage:  # noqa: ANN401 - as given
                    page = await asked(prefix, **options)
                    deletes.release()
                    await trio.sleep(5)
                    return page

                lab.store.list_page = late  # type: ignore[method-assign]
            await lab.fs.namespace.ensure_listed(made.id)
            puts.release()
        await lab.settle()
        assert lab.stored() == ["d/", "e/"]


async def test_nothing_is_made_in_a_directory_that_another_client_removed(lab: Lab) -> None:
    """A program may still work in it; what it made there would be nowhere."""
    lab.store.insert("d/f", b"1")
    lab.store.insert("g", b"2")
    async with lab.mounted() as fs:
        directory = (await lab.get("d")).id
        file = await lab.get("g")
        lab.store.remove("d/f")
        lab.later(60)
        assert await lab.find("d") is None
        for change in (
            fs.tree.create(directory, "new", WHO, lab.record, exclusive=False),
            fs.tree.mkdir(directory, "new", WHO, lab.record),
            fs.tree.symlink(directory, "new", "target", WHO, lab.record),
            fs.tree.rename(file.parent, "g", directory, "new", 0, lab.record),
        ):
            with pytest.raises(FileNotFoundError):
                await change
        await lab.settle()
    assert lab.stored() == ["g"]


async def test_a_directory_that_only_its_entries_made_outlives_the_last_though_others_removed_the_rest(
    lab: Lab, autojump_clock: object
) -> None:
    lab.settings = settings(metadata_ttl_s=0.0, negative_ttl_s=0.0)
    lab.store.insert("d/1", b"1")
    lab.store.insert("d/2", b"2")
    async with lab.mounted() as fs:
        directory = await lab.get("d")
        await lab.ls("d")
        lab.store.remove("d/2")
        fs.volume.distrust(directory.id)
        await lab.rename("d/1", "e")
        await lab.settle()
        assert (await lab.get("d")).id == directory.id
    assert lab.stored() == ["d/", "e"]
