"""Conflict copies: what becomes of data that another writer outran, and of the name that it was to have."""

import dataclasses
import errno
from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import Conflict, NotFound, PreconditionFailed, Unavailable, UserError
from s3mgrd.fs.changing.conflicts import Notice
from s3mgrd.fs.volume import Settings
from s3mgrd.fs.writing import completing
from tests.unit.fs.conftest import Lab

pytestmark = pytest.mark.trio


async def lose(
    lab: Lab, path: str = "a", data: bytes = b"ours", *, theirs: bytes = b"theirs"
) -> Inode:
    """Change all of an existing file in place, and come second; returns the copy."""
    if path not in lab.store.objects:
        lab.store.insert(path, b"one")
    node = await lab.get(path)
    await lab.fs.stages.write(node.id, 0, data)
    lab.store.insert(path, theirs)
    with pytest.raises(PreconditionFailed):
        await lab.fs.commit(node.id)
    return node.id


async def append(lab: Lab) -> Inode:
    lab.store.insert("a", b"one")
    node = await lab.get("a")
    await lab.fs.stages.write(node.id, 3, b" ours")
    return node.id


async def create_exclusively(lab: Lab) -> Inode:
    return (await lab.write("a", b"ours", exclusive=True, close=False)).id


async def truncate(lab: Lab) -> Inode:
    lab.store.insert("a", b"one two")
    node = await lab.get("a")
    lab.fs.stages.truncate(node.id, 3)
    return node.id


def replace(lab: Lab) -> None:
    lab.store.insert("a", b"theirs")


def remove(lab: Lab) -> None:
    lab.store.remove("a")


@pytest.mark.parametrize(
    ("change", "theirs", "reason", "missing"),
    [
        pytest.param(append, replace, "replaced", 3, id="append, replaced"),
        pytest.param(append, remove, "removed", 3, id="append, removed"),
        pytest.param(truncate, replace, "replaced", 3, id="truncate, replaced"),
        pytest.param(truncate, remove, "removed", 3, id="truncate, removed"),
        pytest.param(create_exclusively, replace, "exists", 0, id="O_EXCL, exists"),
    ],
)
async def test_whoever_comes_second_becomes_a_copy_and_the_name_shows_the_winner(
    lab: Lab,
    change: Callable[[Lab], object],
    theirs: Callable[[Lab], None],
    reason: str,
    missing: int,
) -> None:
    """What nobody read of a base that is gone is missing, and said to be."""
    async with lab.mounted() as fs:
        inode: Inode = await change(lab)  # type: ignore[misc] # an awaitable of an inode
        theirs(lab)
        with pytest.raises(PreconditionFailed):
            await fs.commit(inode)
        row = fs.volume.journal.conflict(inode)
        assert row is not None
        assert (row.path, row.reason, row.missing) == ("a", reason, missing)
        there = lab.store.objects.get("a")
        assert row.winner_etag == (there.head.etag if there else None)
        if there is None:
            assert await lab.find("a") is None
            assert await lab.ls() == []
        else:
            assert await lab.read("a") == b"theirs"
            assert await lab.ls() == ["a"]
        assert fs.syncer.left().is_nothing


async def test_the_name_leads_to_the_winner_without_another_request(lab: Lab) -> None:
    async with lab.mounted():
        await lose(lab)
        heads = lab.store.calls["head"]
        assert (await lab.get("a")).etag == lab.store.objects["a"].head.etag
        assert lab.store.calls["head"] == heads


async def test_the_kernel_is_told_that_the_name_leads_elsewhere(lab: Lab) -> None:
    async with lab.mounted() as fs:
        told: list[tuple[int, str]] = []

        async def expire(names: Sequence[tuple[int, str]]) -> None:
            told.extend(names)

        fs.volume.expire_names = expire
        inode = await lose(lab)
        assert told == [(1, "a")]
        told.clear()
        await fs.conflicts.restore(inode, "b", partial=False)
        assert told == [(1, "b")]


async def test_who_has_it_open_goes_on_with_the_copy_and_hears_it_every_time(lab: Lab) -> None:
    async with lab.mounted() as fs:
        inode = await lose(lab)
        lab.held.add(inode)
        await fs.stages.write(inode, 4, b"!")
        assert await lab.read_inode(inode) == b"ours!"
        for _ in range(2):
            with pytest.raises(PreconditionFailed):
                await fs.commit(inode)
        assert fs.volume.node(inode).size == 5
        assert lab.data("a") == b"theirs"
        assert await lab.read("a") == b"theirs"


@pytest.mark.parametrize("connection", ["first", "second"])
@pytest.mark.parametrize("is_open", [False, True])
async def test_a_copy_survives_the_worker_and_the_mount(
    lab: Lab, connection: str, *, is_open: bool
) -> None:
    async with lab.mounted():
        inode = await lose(lab)
        if is_open:
            lab.held.add(inode)
            await lab.fs.stages.write(inode, 4, b"!")
    if connection != "first":
        lab.held.clear()
    async with lab.mounted(connection) as fs:
        fs.syncer.release_forgotten()
        assert [row.inode for row in fs.volume.journal.conflicts(after=0, limit=9)] == [inode]
        if is_open and connection == "first":
            with pytest.raises(PreconditionFailed):
                await fs.commit(inode)
        assert (await fs.conflicts.restore(inode, "b", partial=False)).path == "b"
        await lab.settle()
        assert lab.data("b") == (b"ours!" if is_open else b"ours")
        assert fs.volume.journal.count_conflicts() == (0, 0)


async def test_a_copy_that_is_let_go_keeps_what_was_written_last(lab: Lab) -> None:
    async with lab.mounted() as fs:
        inode = await lose(lab)
        lab.held.add(inode)
        await fs.stages.write(inode, 4, b"!")
        lab.held.clear()
        fs.syncer.forget(inode)
        assert fs.stages.get(inode) is None
        assert fs.volume.journal.count_conflicts() == (1, 5)


async def test_a_restored_copy_is_an_ordinary_file(lab: Lab) -> None:
    """Who still has it open writes to that file again."""
    notices: list[Notice] = []
    async with lab.mounted() as fs:
        fs.conflicts.tell = notices.append
        inode = await lose(lab)
        lab.held.add(inode)
        restored = await fs.conflicts.restore(inode, None, partial=False)
        assert (restored.path, restored.size) == ("a.conflict-20270115T080000Z", 4)
        await fs.stages.write(inode, 4, b"!")
        await fs.commit(inode)
        assert lab.data("a.conflict-20270115T080000Z") == b"ours!"
        assert await lab.ls() == ["a", "a.conflict-20270115T080000Z"]
    assert [(n.action, n.path) for n in notices] == [
        ("kept", "a"),
        ("restored", "a.conflict-20270115T080000Z"),
    ]


async def test_copies_of_one_moment_get_names_of_their_own(lab: Lab) -> None:
    async with lab.mounted() as fs:
        one, two = await lose(lab), await lose(lab, data=b"longer", theirs=b"others")
        names = [
            (await fs.conflicts.restore(copy, None, partial=False)).path for copy in (one, two)
        ]
        await lab.settle()
        assert [lab.data(name) for name in names] == [b"ours", b"longer"]


async def test_a_long_name_leaves_room_for_the_time(lab: Lab) -> None:
    name = "ä" * 127
    async with lab.mounted() as fs:
        copy = await lose(lab, name)
        restored = (await fs.conflicts.restore(copy, None, partial=False)).path
        assert len(restored.encode()) <= 255
        assert restored.startswith("äää")


async def test_restoring_never_overwrites(lab: Lab) -> None:
    """Neither what is known, nor what only S3 knows, nor what comes before the upload."""
    async with lab.mounted() as fs:
        copy = await lose(lab)
        await lab.mkdir("d")
        lab.store.insert("outside", b"theirs")
        lab.later(60)
        for taken in ("a", "d", "outside"):
            with pytest.raises(Conflict, match="exists already"):
                await fs.conflicts.restore(copy, taken, partial=False)
        with lab.store.hold("put") as hold:
            await fs.conflicts.restore(copy, "b", partial=False)
            await hold.arrived()
            lab.store.insert("b", b"theirs")
        await lab.settle()
        assert lab.data("b") == b"theirs"
        row = fs.volume.journal.conflict(copy)
        assert row is not None
        assert (row.path, row.reason) == ("b", "exists")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", UserError),
        ("..", UserError),
        ("x/../y", UserError),
        ("x" * 256, UserError),
        ("nowhere/b", NotFound),
        ("a/b", NotFound),
    ],
)
async def test_a_path_that_cannot_be_is_refused(
    lab: Lab, path: str, error: type[Exception]
) -> None:
    async with lab.mounted() as fs:
        copy = await lose(lab)
        with pytest.raises(error):
            await fs.conflicts.restore(copy, path, partial=False)
        assert fs.volume.journal.count_conflicts() == (1, 4)


async def test_what_nobody_has_any_more_becomes_zeros_only_on_request(lab: Lab) -> None:
    async with lab.mounted() as fs:
        inode = await append(lab)
        replace(lab)
        with pytest.raises(PreconditionFailed):
            await fs.commit(inode)
        with pytest.raises(OSError, match="Stale") as caught:
            await lab.read_inode(inode)
        assert caught.value.errno == errno.ESTALE
        with pytest.raises(Conflict, match="lacks 3 bytes"):
            await fs.conflicts.restore(inode, "b", partial=False)
        await fs.conflicts.restore(inode, "b", partial=True)
        await lab.settle()
        assert lab.data("b") == b"\0\0\0 ours"


async def test_a_discarded_copy_is_gone_from_the_disk(lab: Lab) -> None:
    async with lab.mounted() as fs:
        copy = await lose(lab)
        await fs.conflicts.discard(copy)
        assert fs.volume.staging.inodes() == set()
        with pytest.raises(NotFound):
            await fs.conflicts.discard(copy)
        with pytest.raises(NotFound):
            await fs.conflicts.restore(copy, "b", partial=False)


async def test_what_is_written_to_a_discarded_copy_is_refused(lab: Lab) -> None:
    """Nobody would ever see it."""
    async with lab.mounted() as fs:
        copy = await lose(lab)
        lab.held.add(copy)
        await fs.conflicts.discard(copy)
        assert await lab.read_inode(copy) == b"ours"
        with pytest.raises(OSError, match="Stale"):
            await fs.stages.write(copy, 0, b"!")
        with pytest.raises(PreconditionFailed):
            await fs.commit(copy)
    async with lab.mounted() as fs:
        with pytest.raises(OSError, match="Stale"):
            await fs.stages.write(copy, 0, b"!")
        lab.held.clear()
        fs.syncer.release_forgotten()
        assert fs.volume.staging.inodes() == set()


async def test_a_winner_that_cannot_be_asked_for_is_asked_for_later(lab: Lab) -> None:
    async with lab.mounted() as fs:
        lab.store.insert("a", b"one")
        node = await lab.get("a")
        await fs.stages.write(node.id, 0, b"ours")
        lab.store.insert("a", b"theirs")
        heads = 0

        def fail_the_last(operation: str, _: str) -> None:
            nonlocal heads
            heads += operation == "head"
            if heads == 2:  # perhaps it was ours, who was it
                lab.store.before = None
                lab.store.fail_next("head", Unavailable("down"))

        lab.store.before = fail_the_last
        with pytest.raises(PreconditionFailed):
            await fs.commit(node.id)
        assert heads == 2
        assert fs.volume.journal.count_conflicts() == (1, 4)
        await lab.settle()
        assert await lab.read("a") == b"theirs"


async def test_a_file_removed_while_it_loses_leaves_nothing(lab: Lab) -> None:
    """Its user threw it away; nobody lost anything."""
    lab.store.insert("a", b"one")
    async with lab.mounted() as fs:
        node = await lab.get("a")
        lab.held.add(node.id)
        await fs.stages.write(node.id, 0, b"ours")
        lab.store.insert("a", b"theirs")
        with lab.store.hold("put") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.commit, node.id)
                await hold.arrived()
                await lab.unlink("a")
                hold.release()
        assert fs.volume.journal.count_conflicts() == (0, 0)


async def test_a_file_renamed_while_it_loses_is_uploaded_under_its_new_name(lab: Lab) -> None:
    """The condition was about the old name."""
    lab.store.insert("a", b"one")
    async with lab.mounted() as fs:
        node = await lab.get("a")
        await fs.stages.write(node.id, 0, b"ours")
        lab.store.insert("a", b"theirs")
        with lab.store.hold("put") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.commit, node.id)
                await hold.arrived()
                await lab.rename("a", "b")
                hold.release()
        await lab.settle()
        assert lab.data("b") == b"ours"
        assert fs.volume.journal.count_conflicts() == (0, 0)


async def test_a_bucket_is_not_exchanged_under_copies(lab: Lab) -> None:
    async with lab.mounted():
        await lose(lab)
    lab.bucket = "other"
    with pytest.raises(Conflict, match="changes are kept"):
        async with lab.mounted("second"):
            pass


async def test_a_read_only_mount_restores_nothing(lab: Lab) -> None:
    async with lab.mounted():
        copy = await lose(lab)
    lab.settings = replace_settings(lab)
    async with lab.mounted("second") as fs:
        with pytest.raises(Conflict, match="read-only"):
            await fs.conflicts.restore(copy, "b", partial=False)


def replace_settings(lab: Lab) -> Settings:
    return dataclasses.replace(lab.settings, read_only=True)


# Deletes


async def test_a_removal_does_not_take_what_somebody_put_there_meanwhile(lab: Lab) -> None:
    """Rm removes the version that its user saw."""
    lab.store.insert("a", b"one")
    lab.store.insert("b", b"two")
    async with lab.mounted() as fs:
        with lab.store.hold("delete_many") as hold:
            await lab.unlink("a")
            await lab.unlink("b")
            await hold.arrived()
            lab.store.insert("a", b"theirs")
        await lab.settle()
        assert lab.stored() == ["a"]
        assert fs.syncer.left().is_nothing
        assert await lab.ls() == ["a"]
        assert await lab.read("a") == b"theirs"


async def test_a_store_without_conditional_deletes_deletes_what_lies_there(lab: Lab) -> None:
    lab.store.insert("a", b"one")
    lab.store.conditions = dataclasses.replace(lab.store.conditions, delete="unsupported")
    async with lab.mounted():
        with lab.store.hold("delete_many") as hold:
            await lab.unlink("a")
            await hold.arrived()
            lab.store.insert("a", b"theirs")
        await lab.settle()
        assert lab.stored() == []


async def test_an_object_replaced_during_a_directory_rename_stays_under_its_old_name(
    lab: Lab,
) -> None:
    lab.store.insert("d/a", b"one")
    async with lab.mounted():
        await lab.ls("d")
        with lab.store.hold("delete_many") as hold:
            await lab.rename("d", "e")
            await hold.arrived()
            lab.store.insert("d/a", b"theirs")
        await lab.settle()
        assert lab.data("e/a") == b"one"
        assert lab.data("d/a") == b"theirs"


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_name_made_anew_takes_the_place_of_the_version_that_was_removed_here(
    lab: Lab, *, is_replaced: bool
) -> None:
    """O_EXCL asks whether there is a file: one that was removed here is none, one that came since is."""
    lab.store.insert("a", b"one")
    async with lab.mounted(sync=False) as fs:
        await lab.unlink("a")
        node = await lab.write("a", b"ours", exclusive=True, close=False)
        if is_replaced:
            lab.store.insert("a", b"theirs")
            with pytest.raises(PreconditionFailed):
                await fs.commit(node.id)
            assert lab.data("a") == b"theirs"
            assert await lab.read("a") == b"theirs"
            assert fs.volume.journal.count_conflicts() == (1, 4)
        else:
            await fs.commit(node.id)
            assert lab.data("a") == b"ours"
        assert fs.volume.journal.deletes() == []


# What a copy lacks of the version that it was a change of.


async def lose_a_change(lab: Lab, data: bytes) -> int:
    """Change two bytes in the middle of a file of which nothing was read, while another writer replaces it."""
    lab.store.insert("f", data)
    node = await lab.get("f")
    await lab.fs.stages.write(node.id, 2, b"XY")
    lab.store.insert("f", b"theirs")
    with pytest.raises(PreconditionFailed):
        await lab.fs.commit(node.id)
    await wait_all_tasks_blocked(0.05)
    (copy,) = lab.fs.volume.journal.conflicts(after=0, limit=10)
    return copy.inode


async def test_a_copy_gets_what_it_lacks_from_the_versions_that_a_bucket_keeps(lab: Lab) -> None:
    lab.store.keeps_versions = True
    async with lab.mounted() as fs:
        copy = await lose_a_change(lab, b"0123456789")
        row = fs.volume.journal.conflict(copy)
        assert row is not None
        assert row.missing == 0
        await fs.conflicts.restore(copy, "mine", partial=False)
        await lab.settle()
        assert lab.data("mine") == b"01XY456789"
        assert lab.data("f") == b"theirs"


async def test_a_copy_that_could_not_be_completed_is_when_it_is_restored_or_by_the_next_worker(
    lab: Lab,
) -> None:
    lab.store.keeps_versions = True
    async with lab.mounted() as fs:
        lab.store.fail_next("find_version", Unavailable("S3 is away"), times=2)
        copy = await lose_a_change(lab, b"0123456789")
        with pytest.raises(Conflict, match="lacks 8 bytes"):
            await fs.conflicts.restore(copy, "mine", partial=False)
        await fs.conflicts.restore(copy, "mine", partial=False)
        await lab.settle()
        assert lab.data("mine") == b"01XY456789"
        lab.store.fail_next("find_version", Unavailable("S3 is away"))
        lab.later(60)
        second = await lose_a_change(lab, b"abcdefghij")
    async with lab.mounted("second") as fs:
        await fs.completer.run()
        row = fs.volume.journal.conflict(second)
        assert row is not None
        assert row.missing == 0


async def test_more_than_the_disk_should_hold_is_fetched_on_request_only(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "UNASKED_BYTES", 4)
    lab.store.keeps_versions = True
    async with lab.mounted() as fs:
        copy = await lose_a_change(lab, b"0123456789")
        row = fs.volume.journal.conflict(copy)
        assert row is not None
        assert row.missing == 8
        await fs.conflicts.restore(copy, "mine", partial=False)
        await lab.settle()
        assert lab.data("mine") == b"01XY456789"
