"""When a file was last changed: by write or by utimens, whichever came last, also to a worker that takes over."""

import os
import stat

from s3mgrd.cache.nodes import ROOT
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from tests.unit.fs.conftest import WHO, Lab, settings

S = 1_000_000_000


async def test_the_last_of_write_and_utimens_says_the_time_after_a_crash(lab: Lab) -> None:
    """Whatever else changes the file afterwards: its owner, its name, or what is fetched of its base version."""
    said_ns = 5 * S
    lab.settings = settings(write_mode="writeback")
    lab.store.insert("based", b"0123456789")
    async with lab.mounted(sync=False) as fs:
        inodes = {}
        for name in ("written", "told"):
            inodes[name] = (await lab.write(name, b"x", close=False)).id
        inodes["based"] = (await lab.get("based")).id
        await fs.stages.write(inodes["based"], 0, b"x")
        for inode in inodes.values():
            await fs.attributes.change(inode, AttributeChange(mtime_ns=said_ns))
            fs.stages.time_set(inode)
        await fs.stages.write(inodes["written"], 1, b"y")
        await fs.attributes.change(inodes["written"], AttributeChange(uid=1001))
        await lab.rename("written", "renamed")
        stage, row = fs.stages.get(inodes["based"]), fs.volume.journal.staged(inodes["based"])
        assert stage is not None
        assert row is not None
        await fs.uploader._sender.complete(fs.volume.node(inodes["based"]), stage, row)
        assert not stage.file.missing()
    async with lab.mounted(sync=False) as fs:
        times = {name: fs.stages.mtime_ns(await lab.get(name)) for name in ("told", "based")}
        assert times == dict.fromkeys(("told", "based"), said_ns)
        assert fs.stages.mtime_ns(await lab.get("renamed")) > said_ns


async def test_what_is_fetched_of_a_base_version_is_no_change(lab: Lab) -> None:
    lab.settings = settings(write_mode="writeback")
    lab.store.insert("a", b"0123456789")
    async with lab.mounted(sync=False) as fs:
        node = await lab.get("a")
        await fs.stages.write(node.id, 0, b"x")
        stage, row = fs.stages.get(node.id), fs.volume.journal.staged(node.id)
        assert stage is not None
        assert row is not None
        stage.file.set_mtime_ns(S)
        await fs.uploader._sender.complete(node, stage, row)
    async with lab.mounted(sync=False) as fs:
        assert fs.stages.mtime_ns(await lab.get("a")) == S
        assert await lab.read("a") == b"x123456789"


async def test_a_removed_file_that_is_open_keeps_its_time_after_a_crash(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs:
        node = await lab.write("a", b"x", close=False)
        await fs.attributes.change(node.id, AttributeChange(mtime_ns=5 * S))
        fs.stages.time_set(node.id)
        await fs.stages.write(node.id, 1, b"y")
        lab.held.add(node.id)
        await lab.unlink("a")
    async with lab.mounted(sync=False) as fs:
        assert fs.stages.mtime_ns(fs.volume.node(node.id)) > 5 * S


async def test_a_device_of_which_another_client_replaced_the_metadata_is_still_that_device(
    lab: Lab,
) -> None:
    """Also where the kernel, which holds it, keeps the times of files."""
    device = os.makedev(1, 3)
    async with lab.mounted() as fs:
        fs.volume.kernel_keeps_times = True
        node = await fs.tree.mknod(ROOT, "null", stat.S_IFCHR | 0o600, device, WHO, lab.record)
        lab.held.add(node.id)
        await lab.settle()
        await lab.ls()
        lab.later(60)
        lab.store.clock = lambda: lab.now_ns + 60 * S
        lab.store.insert("null", metadata=lab.store.objects["null"].head.metadata)
        await lab.ls()
        found = await lab.get("null")
        assert (found.id, found.special, found.rdev) == (node.id, stat.S_IFCHR, device)
