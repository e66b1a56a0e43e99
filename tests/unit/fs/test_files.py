"""Files: what is written is what S3 gets, and what a crash leaves is what was acknowledged."""

import dataclasses
import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from s3mgrd.errors import BucketNotFound, PreconditionFailed, Unavailable
from s3mgrd.fs.kernel.errnos import errno_of
from s3mgrd.s3.port import Written
from tests.unit.fs.conftest import Lab


async def test_a_file_is_in_s3_when_it_is_closed(lab: Lab) -> None:
    async with lab.mounted():
        node = await lab.write("a.txt", b"hello")
        assert lab.data("a.txt") == b"hello"
        assert await lab.read("a.txt") == b"hello"
        head = lab.store.objects["a.txt"].head
        assert head.metadata["mode"] == str(0o100644)
        assert head.metadata["uid"] == "1000"
        assert head.content_type == "text/plain"
        assert node.size == 5
        assert lab.fs.syncer.left().is_nothing


async def test_a_file_may_be_read_before_it_is_closed(lab: Lab) -> None:
    async with lab.mounted():
        await lab.write("a", b"hello", close=False)
        assert lab.stored() == []
        assert await lab.read("a") == b"hello"
        assert lab.fs.syncer.left().files == 1


async def test_what_was_written_survives_a_crash_of_the_worker(lab: Lab) -> None:
    """The program still has the file open; the next worker serves the same handle and uploads at close."""
    async with lab.mounted():
        node = await lab.write("a", b"hello", close=False)
        await lab.fs.stages.write(node.id, 5, b" world")
    async with lab.mounted():
        assert lab.stored() == []
        assert await lab.read("a") == b"hello world"
        await lab.fs.stages.write(node.id, 11, b"!")
        await lab.fs.commit(node.id)
        assert lab.data("a") == b"hello world!"


async def test_what_was_left_by_a_crash_of_everything_is_uploaded_by_the_next_mount(
    lab: Lab,
) -> None:
    async with lab.mounted():
        await lab.write("a", b"hello", close=False)
    async with lab.mounted("second"):
        await lab.settle()
        assert lab.data("a") == b"hello"
        assert not lab.staging_files()


async def test_a_change_in_the_middle_keeps_the_rest(lab: Lab) -> None:
    body = bytes(range(256)) * 100
    lab.store.insert("a", body, metadata={"color": "red"}, content_type="image/png")
    async with lab.mounted():
        node = await lab.get("a")
        await lab.fs.stages.write(node.id, 1000, b"XYZ")
        assert await lab.read("a") == body[:1000] + b"XYZ" + body[1003:]
        await lab.fs.commit(node.id)
        assert lab.data("a") == body[:1000] + b"XYZ" + body[1003:]
        head = lab.store.objects["a"].head
        assert (head.metadata["color"], head.content_type) == ("red", "image/png")


async def test_truncation_both_ways_leaves_zeros_where_nothing_is(lab: Lab) -> None:
    lab.store.insert("a", b"0123456789")
    async with lab.mounted():
        inode = (await lab.get("a")).id
        lab.fs.stages.truncate(inode, 4)
        lab.fs.stages.truncate(inode, 8)
        await lab.fs.stages.write(inode, 10, b"x")
        assert await lab.read("a") == b"0123\0\0\0\0\0\0x"
        await lab.fs.commit(inode)
        assert lab.data("a") == b"0123\0\0\0\0\0\0x"


async def test_a_large_file_goes_in_parts(lab: Lab) -> None:
    body = bytes(range(251)) * 60_000  # 14 MiB: three parts of 5 MiB
    async with lab.mounted():
        await lab.write("big", body)
        assert lab.data("big") == body
        assert lab.store.calls["upload_part"] == 3
        assert await lab.read("big") == body


async def test_an_interrupted_upload_is_taken_up_by_the_next_worker(lab: Lab) -> None:
    """Parts that S3 has are not sent again, and no upload is left behind."""
    body = bytes(range(251)) * 60_000
    async with lab.mounted():
        node = await lab.write("big", body, close=False)
        lab.store.fail_next("complete_multipart", Unavailable("down"))
        with pytest.raises(Unavailable):
            await lab.fs.commit(node.id)
    sent = lab.store.calls["upload_part"]
    async with lab.mounted():
        await lab.fs.commit(node.id)
        assert lab.data("big") == body
        assert lab.store.calls["upload_part"] == sent
        assert await lab.store.list_multiparts("") == []


async def test_a_failed_upload_is_reported_kept_and_tried_again(lab: Lab) -> None:
    async with lab.mounted():
        lab.store.fail_next("put", Unavailable("down"))
        with pytest.raises(Unavailable):
            await lab.write("a", b"hello")
        row = lab.fs.volume.journal.dirty_staged()[0]
        assert (row.error, row.tries) == ("down", 1)
        await lab.settle()
        assert lab.data("a") == b"hello"
        assert lab.fs.volume.journal.dirty_staged() == []


async def test_a_lost_race_is_reported_and_the_data_kept(lab: Lab) -> None:
    lab.store.insert("a", b"one")
    async with lab.mounted():
        node = await lab.get("a")
        await lab.fs.stages.write(node.id, 0, b"ours")
        lab.store.insert("a", b"theirs")
        with pytest.raises(PreconditionFailed) as caught:
            await lab.fs.commit(node.id)
        assert errno_of(caught.value) == errno.ESTALE
        assert lab.data("a") == b"theirs"
        await lab.settle()
        assert lab.data("a") == b"theirs"
        assert lab.fs.volume.journal.conflict(node.id) is not None
        assert await lab.read_inode(node.id) == b"ours"


async def test_exclusive_creation_loses_against_an_object_that_came_meanwhile(lab: Lab) -> None:
    async with lab.mounted():
        node = await lab.write("a", b"ours", exclusive=True, close=False)
        lab.store.insert("a", b"theirs")
        with pytest.raises(PreconditionFailed):
            await lab.fs.commit(node.id)
        assert lab.data("a") == b"theirs"


async def test_an_overwritten_file_is_the_last_writers(lab: Lab) -> None:
    lab.store.insert("a", b"one")
    async with lab.mounted():
        node = await lab.get("a")
        lab.fs.stages.truncate(node.id, 0)
        await lab.fs.stages.write(node.id, 0, b"ours")
        lab.store.insert("a", b"theirs")
        await lab.fs.commit(node.id)
        assert lab.data("a") == b"ours"


@pytest.mark.parametrize("attributes", ["lazy", "off"])
async def test_an_upload_that_s3_did_before_the_crash_is_recognised_as_ours(
    lab: Lab, attributes: str
) -> None:
    """The condition fails because of our own earlier attempt; that is no lost race."""
    lab.settings = dataclasses.replace(lab.settings, attributes=attributes)
    lab.store.insert("a", b"one")
    put = lab.store.put

    async def put_and_die(*args: Any, **options: Any) -> Written:  # noqa: ANN401 - the port's own
        await put(*args, **options)
        raise Unavailable("no answer")

    async with lab.mounted(sync=False):
        node = await lab.get("a")
        await lab.fs.stages.write(node.id, 0, b"ours")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lab.store, "put", put_and_die)
            with pytest.raises(Unavailable):
                await lab.fs.commit(node.id)
    assert lab.data("a") == b"ours"
    async with lab.mounted():
        await lab.fs.commit(node.id)
        assert lab.fs.syncer.left().is_nothing
        assert lab.fs.volume.journal.count_conflicts() == (0, 0)


async def test_writes_wait_for_an_upload_so_that_no_mixture_is_sent(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"one", close=False)
        import trio

        with lab.store.hold("put") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.commit, node.id)
                await hold.arrived()
                assert fs.volume.locks.is_held(("inode", node.id))
                hold.release()
        assert lab.data("a") == b"one"


async def test_a_reader_keeps_its_version_or_gets_estale(lab: Lab) -> None:
    """Never a mixture: what is not held of a version that is gone cannot be read."""
    lab.store.insert("a", b"1" * 100)
    async with lab.mounted():
        node = await lab.get("a")
        lab.store.insert("a", b"2" * 100)
        with pytest.raises(OSError, match=r"[Ss]tale") as caught:
            await lab.read_inode(node.id)
        assert caught.value.errno == errno.ESTALE
        assert await lab.read("a") == b"2" * 100
        assert (await lab.get("a")).id != node.id


async def test_an_unlinked_open_file_stays_readable_and_goes_when_it_is_closed(lab: Lab) -> None:
    lab.store.insert("a", b"hello")
    async with lab.mounted() as fs:
        node = await lab.get("a")
        lab.held.add(node.id)
        await lab.unlink("a")
        assert await lab.find("a") is None
        await lab.settle()
        assert await lab.read_inode(node.id) == b"hello"
        lab.held.clear()
        fs.syncer.forget(node.id)
        await lab.settle()
        assert lab.stored() == []


async def test_a_file_that_another_replaced_stays_readable_for_who_has_it_open(lab: Lab) -> None:
    lab.store.insert("a", b"old")
    async with lab.mounted() as fs:
        node = await lab.get("a")
        lab.held.add(node.id)
        await lab.write("new", b"new")
        await lab.rename("new", "a")
        await lab.settle()
        assert lab.data("a") == b"new"
        assert await lab.read_inode(node.id) == b"old"
        lab.held.clear()
        fs.syncer.forget(node.id)
        await lab.settle()
        assert lab.stored() == ["a"]


async def test_a_removed_file_stays_as_it_is_for_who_has_it_open_when_a_link_takes_its_name(
    lab: Lab,
) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"old")
        lab.held.add(node.id)
        await lab.unlink("a")
        await lab.symlink("a", "target")
        await lab.settle()
        assert lab.data("a") == b"target"
        assert await lab.read_inode(node.id) == b"old"
        await fs.write(node.id, 0, b"O")
        assert await lab.read_inode(node.id) == b"Old"
        assert fs.volume.journal.count_conflicts() == (0, 0)
        lab.held.clear()
        fs.syncer.forget(node.id)
        await lab.settle()
        assert lab.stored() == ["a"]


async def test_a_full_disk_refuses_the_write_and_loses_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello", close=False)

        def full(fd: int, data: bytes, offset: int) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            patched.setattr(os, "pwritev", full)
            with pytest.raises(OSError, match="No space") as caught:
                await fs.stages.write(node.id, 5, b"more")
            assert caught.value.errno == errno.ENOSPC
        await fs.commit(node.id)
        assert lab.data("a") == b"hello"


async def test_a_bucket_that_is_gone_says_nothing_about_its_objects(lab: Lab) -> None:
    """Names stay, renames stay wanted, reads fail with EIO: the bucket may come back with everything in it."""
    lab.store.insert("a", b"hello")
    async with lab.mounted() as fs:
        assert await lab.ls() == ["a"]
        node = await lab.get("a")
        lab.store.bucket_exists = False
        with pytest.raises(BucketNotFound) as failure:
            await lab.read("a")
        assert errno_of(failure.value) == errno.EIO
        await lab.rename("a", "b")
        await lab.settle()
        assert fs.syncer.left().operations > 0
        lab.store.bucket_exists = True
        await lab.settle()
        assert lab.stored() == ["b"]
        assert (await lab.get("b")).id == node.id
        assert await lab.read("b") == b"hello"


async def test_an_upload_that_fails_as_its_file_is_removed_troubles_nobody(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab.mounted() as fs, trio.open_nursery() as nursery:
        node = await lab.write("a", b"hello", close=False)
        lab.held.add(node.id)
        lab.store.fail_next("put", Unavailable("the network is gone"))
        with lab.store.hold("put") as hold:
            nursery.start_soon(fs.uploader.commit, node.id)
            await hold.arrived()
            await lab.unlink("a")
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


async def test_the_failures_of_a_file_go_with_it(lab: Lab, autojump_clock: MockClock) -> None:
    """Or the mount would be degraded for ever by what nobody can do any more."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello", close=False)
        lab.held.add(node.id)
        lab.store.fail_next("put", Unavailable("the network is gone"), times=100)
        with pytest.raises(Unavailable):
            await fs.uploader.commit(node.id)
        lab.later(30)
        fs.syncer.wake()
        await trio.sleep(1)
        assert fs.syncer.errors() == ["the network is gone"]
        await lab.unlink("a")
        await trio.sleep(60)
        assert fs.syncer.errors() == []


async def test_a_file_that_was_removed_while_it_is_open_is_nothing_that_s3_lacks(lab: Lab) -> None:
    """Or flush, unmount and the status would speak of temporary files that nobody will ever upload."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello", close=False)
        await lab.write("b", b"kept", close=False)
        lab.held.add(node.id)
        await lab.unlink("a")
        assert (fs.syncer.left().files, fs.syncer.left().bytes) == (1, 4)
        async with fs.volume.locks.holding(("inode", node.id)):
            await fs.stages.write(node.id, 5, b" world")
        assert await lab.read_inode(node.id) == b"hello world"
        assert (fs.syncer.left().files, fs.syncer.left().bytes) == (1, 4)
        lab.held.clear()
        await lab.settle()
        assert fs.syncer.left().is_nothing
        assert (fs.stages.lacking.files, fs.stages.lacking.bytes) == (0, 0)
