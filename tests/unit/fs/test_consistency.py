"""Close-to-open: two mounts of one bucket and a writer outside, with a clock that moves only when told.

What `metadata_ttl_s` lets a mount believe is exactly that, and no longer; what a program has open stays one version; and
who changes what another has changed meanwhile hears of it.
"""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import PreconditionFailed
from s3mgrd.fs.learning.forgetting import Forgetter
from tests.unit.fs.conftest import Lab

TTL_S = 30.0


@dataclass
class Pair:
    """Two mounts, `here` and `there`, and the bucket between them."""

    here: Lab
    there: Lab

    def insert(self, key: str, data: bytes) -> None:
        """Write as a program without a mount does."""
        self.here.store.insert(key, data)

    def remove(self, key: str) -> None:
        """Delete as a program without a mount does."""
        self.here.store.remove(key)

    def later(self, seconds: float) -> None:
        """Let time pass for both."""
        self.here.later(seconds)
        self.there.later(seconds)

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.here.mounted())
            await stack.enter_async_context(self.there.mounted())
            yield


@pytest.fixture
def pair(tmp_path: Path, autojump_clock: object) -> Pair:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = Lab(tmp_path / "here")
    # No two clocks agree to the nanosecond, nor could anybody tell the writes of the two apart.
    return Pair(here, Lab(tmp_path / "there", store=here.store, now_ns=here.now_ns + 1))


def set_ttl(pair: Pair, seconds: float) -> None:
    for lab in (pair.here, pair.there):
        lab.settings = replace(lab.settings, metadata_ttl_s=seconds, negative_ttl_s=seconds)


async def look(lab: Lab, path: str) -> bytes | None:
    """Open, read and close; None: there is no such file."""
    node = await lab.find(path)
    return None if node is None else await lab.read_inode(node.id)


async def forget(lab: Lab) -> None:
    """Do what `s3mgr invalidate` does, where there is no kernel to be told."""

    async def tell(_: object) -> None:
        await trio.lowlevel.checkpoint()

    forgetter = Forgetter(lab.fs.volume, lab.fs.namespace, tell_names=tell, tell_inodes=tell)
    await forgetter.forget("")


# What another did, seen from here.


async def made(pair: Pair) -> None:
    await pair.there.write("f", b"new")


async def overwritten(pair: Pair) -> None:
    await pair.there.write("f", b"new")


async def changed_in_place(pair: Pair) -> None:
    node = await pair.there.get("f")
    await pair.there.fs.stages.write(node.id, 0, b"new")
    await pair.there.fs.commit(node.id)


async def removed(pair: Pair) -> None:
    await pair.there.unlink("f")
    await pair.there.settle()


async def renamed_onto(pair: Pair) -> None:
    await pair.there.write("g", b"new")
    await pair.there.rename("g", "f")
    await pair.there.settle()


async def made_outside(pair: Pair) -> None:
    await trio.lowlevel.checkpoint()
    pair.insert("f", b"new")


async def removed_outside(pair: Pair) -> None:
    await trio.lowlevel.checkpoint()
    pair.remove("f")


CHANGES = [
    pytest.param(None, made, b"new", id="made there"),
    pytest.param(None, made_outside, b"new", id="made outside"),
    pytest.param(b"old", overwritten, b"new", id="overwritten there"),
    pytest.param(b"old", changed_in_place, b"new", id="changed in place there"),
    pytest.param(b"old", renamed_onto, b"new", id="renamed onto there"),
    pytest.param(b"old", made_outside, b"new", id="overwritten outside"),
    pytest.param(b"old", removed, None, id="removed there"),
    pytest.param(b"old", removed_outside, None, id="removed outside"),
]
Change = Callable[[Pair], Awaitable[None]]


@pytest.mark.parametrize("how", ["ttl 0", "ttl 30", "invalidated"])
@pytest.mark.parametrize("by", ["name", "listing"])
@pytest.mark.parametrize(("before", "change", "after"), CHANGES)
async def test_what_was_closed_there_is_seen_by_a_later_open_here(
    pair: Pair, before: bytes | None, change: Change, after: bytes | None, by: str, how: str
) -> None:
    """At once with a TTL of 0 or after an invalidation, and otherwise once the TTL is over, but not a second before."""
    set_ttl(pair, 0.0 if how == "ttl 0" else TTL_S)
    if before is not None:
        pair.insert("f", before)
    async with pair.mounted():
        if by == "listing":
            await pair.here.ls()
        assert await look(pair.here, "f") == before
        await change(pair)
        if how == "ttl 30":
            pair.later(TTL_S - 1)
            known = await pair.here.find("f")
            assert (known is not None) == (before is not None), "not asked again so soon"
            pair.later(2)
        elif how == "invalidated":
            await forget(pair.here)
        assert await look(pair.here, "f") == after
        listed = await pair.here.ls()
        assert ("f" in listed) == (after is not None)


# What is open stays what it is.


async def open_read(lab: Lab, path: str) -> Inode:
    node = await lab.get(path)
    lab.held.add(node.id)
    return node.id


BIG = bytes(range(256)) * (12 << 12)  # 12 MiB: several segments


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pair: pair.insert("f", b"x" * len(BIG)), id="replaced"),
        pytest.param(lambda pair: pair.insert("f", b"short"), id="cut short"),
        pytest.param(lambda pair: pair.insert("f", b"x" * (len(BIG) + 5)), id="grown"),
        pytest.param(lambda pair: pair.remove("f"), id="removed"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("looked_at", [False, True])
async def test_an_open_file_is_one_version_or_estale(
    pair: Pair, change: Callable[[Pair], None], *, restarted: bool, looked_at: bool
) -> None:
    """Also across a restart of the worker, and also when the name has been seen to lead elsewhere meanwhile."""
    set_ttl(pair, 0.0)
    pair.insert("f", BIG)
    here = pair.here
    async with here.mounted():
        inode = await open_read(here, "f")
        first = bytes(await here.fs.read(inode, 0, 4096, handle=1))
        assert first == BIG[:4096]
        change(pair)
        if not restarted:
            await expect_one_version(here, inode, looked_at=looked_at)
            return
    async with here.mounted():
        await expect_one_version(here, inode, looked_at=looked_at)


async def read_or_stale(here: Lab, inode: Inode, offset: int) -> bytes | None:
    """Read 1 MiB; None: ESTALE."""
    try:
        return bytes(await here.fs.read(inode, offset, 1 << 20, handle=1))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


async def expect_range(here: Lab, inode: Inode, offset: int) -> None:
    assert await read_or_stale(here, inode, offset) in (None, BIG[offset : offset + (1 << 20)])


async def expect_one_version(here: Lab, inode: Inode, *, looked_at: bool) -> None:
    if looked_at:
        await here.find("f")
    for offset in range(0, len(BIG), 1 << 20):
        await expect_range(here, inode, offset)


async def test_readahead_in_flight_brings_no_other_version(pair: Pair) -> None:
    """The object is replaced while several ranges of it are under way."""
    pair.insert("f", BIG)
    here = pair.here
    async with here.mounted():
        inode = await open_read(here, "f")
        # So little that not everything is on its way already.
        await here.fs.read(inode, 0, 64 << 10, handle=1)
        with here.store.hold("get_range") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_range, here, inode, 6 << 20)
                await hold.arrived()
                pair.insert("f", b"x" * len(BIG))
                hold.release()
        await expect_one_version(here, inode, looked_at=True)


async def test_an_open_file_replaced_by_this_mount_stays_readable(pair: Pair) -> None:
    """Overwriting by rename is how editors save; who reads on reads the old text."""
    pair.insert("f", b"old")
    here = pair.here
    async with here.mounted():
        inode = await open_read(here, "f")
        await here.write("g", b"new")
        await here.rename("g", "f")
        await here.settle()
        assert await here.read("f") == b"new"
        assert await here.read_inode(inode) == b"old"


async def test_two_versions_are_two_inodes(pair: Pair) -> None:
    """So the kernel's pages of one are never shown as the other's."""
    set_ttl(pair, 0.0)
    pair.insert("f", b"old")
    async with pair.here.mounted():
        one = await open_read(pair.here, "f")
        pair.insert("f", b"new")
        two = (await pair.here.get("f")).id
        assert one != two
        node = pair.here.fs.volume.node(one)
        assert (node.name, node.size) == (None, 3)


# Two writers of one file.


async def edit(lab: Lab) -> Inode:
    """Change all of it in place."""
    inode = (await lab.get("f")).id
    await lab.fs.stages.write(inode, 0, b"one more")
    return inode


async def append(lab: Lab) -> Inode:
    inode = (await lab.get("f")).id
    await lab.read_inode(inode)
    await lab.fs.stages.write(inode, 3, b" more")
    return inode


async def cut(lab: Lab) -> Inode:
    inode = (await lab.get("f")).id
    lab.fs.stages.truncate(inode, 1)
    return inode


async def overwrite(lab: Lab) -> Inode:
    """O_TRUNC."""
    return (await lab.write("f", b"one more", close=False)).id


async def create(lab: Lab) -> Inode:
    """O_CREAT without O_EXCL."""
    return (await lab.write("f", b"one more", close=False)).id


async def create_exclusively(lab: Lab) -> Inode:
    return (await lab.write("f", b"one more", close=False, exclusive=True)).id


Writer = Callable[[Lab], Awaitable[Inode]]


@pytest.mark.parametrize(
    ("before", "first", "second", "wins"),
    [
        pytest.param(b"one", edit, edit, False, id="edit, edit"),
        pytest.param(b"one", append, append, False, id="append, append"),
        pytest.param(b"one", overwrite, append, False, id="overwrite, append"),
        pytest.param(b"one", append, overwrite, True, id="append, overwrite"),
        pytest.param(b"one", overwrite, overwrite, True, id="overwrite, overwrite"),
        pytest.param(b"one", cut, edit, False, id="cut, edit"),
        pytest.param(b"one", edit, cut, False, id="edit, cut"),
        pytest.param(None, create, create, True, id="create, create"),
        pytest.param(None, create, create_exclusively, False, id="create, O_EXCL"),
        pytest.param(None, create_exclusively, create_exclusively, False, id="O_EXCL, O_EXCL"),
        pytest.param(None, create_exclusively, create, True, id="O_EXCL, create"),
    ],
)
async def test_of_two_writers_one_wins_and_the_other_hears_of_it_at_close(
    pair: Pair, before: bytes | None, first: Writer, second: Writer, *, wins: bool
) -> None:
    """Both began with the same version. Who replaces all of a file means to; who changes a part of it does not."""
    if before is not None:
        pair.insert("f", before)
    async with pair.mounted():
        mine, theirs = await second(pair.here), await first(pair.there)
        await pair.there.fs.commit(theirs)
        winner = pair.there.data("f")
        if wins:
            await pair.here.fs.commit(mine)
            assert pair.here.data("f") == b"one more"
        else:
            with pytest.raises(PreconditionFailed):
                await pair.here.fs.commit(mine)
            assert pair.here.data("f") == winner
            assert await look(pair.here, "f") == winner
            assert pair.here.fs.volume.journal.count_conflicts()[0] == 1
        await pair.here.settle()
        await pair.there.settle()
        assert pair.there.fs.volume.journal.count_conflicts()[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(edit, id="edit"),
        pytest.param(append, id="append"),
        pytest.param(cut, id="cut"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_change_of_what_was_removed_meanwhile_brings_nothing_back(
    pair: Pair, change: Writer, *, restarted: bool
) -> None:
    pair.insert("f", b"one")
    here = pair.here
    async with here.mounted():
        inode = await change(here)
        here.held.add(inode)
        pair.remove("f")
        if not restarted:
            with pytest.raises(PreconditionFailed):
                await here.fs.commit(inode)
            assert here.stored() == []
            return
    async with here.mounted():
        with pytest.raises(PreconditionFailed):
            await here.fs.commit(inode)
        assert here.stored() == []


async def test_exactly_one_of_two_exclusive_creators_wins_also_when_they_close_at_once(
    pair: Pair,
) -> None:
    async with pair.mounted():
        inodes = [await create_exclusively(lab) for lab in (pair.here, pair.there)]
        lost: list[Lab] = []

        async def close(lab: Lab, inode: Inode) -> None:
            try:
                await lab.fs.commit(inode)
            except PreconditionFailed:
                lost.append(lab)

        async with trio.open_nursery() as nursery:
            for lab, inode in zip((pair.here, pair.there), inodes, strict=True):
                nursery.start_soon(close, lab, inode)
        assert len(lost) == 1


# One mount is coherent with itself.


async def test_what_was_closed_here_is_seen_here_at_once_whatever_the_ttl(pair: Pair) -> None:
    here = pair.here
    async with here.mounted():
        await here.ls()
        assert await here.find("f") is None
        await here.write("f", b"one")
        assert await here.read("f") == b"one"
        assert await here.ls() == ["f"]
        await here.write("f", b"two")
        assert await here.read("f") == b"two"
        await here.unlink("f")
        assert await here.find("f") is None
        assert await here.ls() == []


async def test_a_listing_under_way_does_not_undo_what_was_closed_meanwhile(pair: Pair) -> None:
    pair.insert("d/old", b"old")
    here = pair.here
    async with here.mounted():
        with here.store.hold("list_page") as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.ls, "d")
                await hold.arrived()
                hold.release()
        await here.write("d/new", b"new")
        assert await here.ls("d") == ["new", "old"]
