"""What a walk's flat pages teach is what listings of each directory do, whatever the keys, and whatever changes meanwhile."""

import errno
import random
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.fs.learning.namespace import Entry
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import ListPage
from tests.unit.fs import conftest
from tests.unit.fs.conftest import Lab

PARTS = ["a", "b", "c", "a-", "a.x", "b!", "", ".", "é", "\udcff", "z" * 256, "d", "~"]
"""Components of keys: some sort between ``a`` and ``a/``, some cannot be names."""

keys = st.lists(
    st.tuples(
        st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join),
        st.sampled_from(["", "/", "/"]),
        st.sampled_from([b"", b"x", b"content"]),
    ).map(lambda t: (t[0] + t[1] or "/", t[2])),
    max_size=40,
)
Described = dict[str, tuple[object, ...]]


def run(body: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine without real time."""

    async def main() -> None:
        await body()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def slow_small_pages(store: MemoryStore, size: int, rng: random.Random | None = None) -> None:
    """Give pages of few keys; with *rng*, some time after they were true."""
    really = store.list_page

    async def list_page(
        prefix: str,
        *,
        delimited: bool,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        page = await really(
            prefix,
            delimited=delimited,
            token=token,
            start_after=start_after,
            max_keys=min(size, max_keys),
        )
        if rng is not None:
            await trio.sleep(rng.random())
        return page

    store.list_page = list_page  # type: ignore[method-assign] # as the store's, in small pieces


async def read(lab: Lab, inode: Inode) -> list[Entry]:
    """Read a directory to its end."""
    entries: list[Entry] = []
    while page := await lab.fs.namespace.entries(inode, entries[-1].node.id if entries else 0, 3):
        entries += page
    return entries


async def walk(lab: Lab, inode: Inode = ROOT) -> None:
    """Read a directory, then each one inside it."""
    try:
        entries = await read(lab, inode)
    except OSError as error:
        if error.errno != errno.ESTALE:  # removed since its name was read
            raise
        return
    for entry in entries:
        if entry.node.is_directory:
            await walk(lab, entry.node.id)


def describe(lab: Lab) -> Described:
    """Tell all that mount.db knows of the tree."""
    volume = lab.fs.volume
    found: Described = {}

    def look(inode: Inode, path: str) -> None:
        node = volume.node(inode)
        found[path] = (node.marker, node.listed_ns, volume.nodes.has_hidden(inode))
        for child in volume.nodes.children(inode, limit=1000):
            if child.is_directory:
                look(child.id, f"{path}{child.name}/")
            else:
                found[f"{path}{child.name}"] = (child.size, child.etag, child.mtime_ns)

    look(ROOT, "")
    hidden = volume.database.execute("SELECT key, reason FROM hidden").fetchall()
    found["hidden"] = tuple(sorted(hidden))
    return found


def fill(lab: Lab, content: list[tuple[str, bytes]]) -> None:
    """Put objects where nothing lies; with times that do not depend on the order of the tests."""
    for key, data in content:
        lab.store.insert(key, data)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=keys, second=keys, size=st.integers(1, 5))
@example(  # an object that is gone when a directory takes its name is not shadowed
    first=[("a", b""), ("b/a/a", b""), ("b/b", b"")],
    second=[("a", b""), ("c", b""), ("b/b/", b"")],
    size=1,
)
def test_a_walk_learns_what_listings_learn(
    first: list[tuple[str, bytes]], second: list[tuple[str, bytes]], size: int
) -> None:
    """Two buckets with the same content, walked twice with changes between: by flat pages and directory by directory."""
    learned: list[list[Described]] = []

    async def body(directory: Path, *, walks: bool) -> None:
        lab = Lab(directory)
        if not walks:
            lab.settings = conftest.settings(metadata_ttl_s=1.0)
        slow_small_pages(lab.store, size)
        fill(lab, first)
        async with lab.mounted(sync=False):
            states = []
            await walk(lab)
            states.append(describe(lab))
            for key, _ in first[::2]:
                lab.store.remove(key)
            fill(lab, second)
            lab.later(60)
            await walk(lab)
            states.append(describe(lab))
            learned.append(states)

    for walks in (True, False):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            run(lambda path=path, walks=walks: body(path, walks=walks))  # type: ignore[misc]
    assert learned[0] == learned[1]


class Meddler:
    """Changes things while a walk is under way: here, by names that begin with an l, and elsewhere, by others'."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self.lab = lab
        self.rng = rng
        self.files: dict[str, bytes] = {}
        """Made here, and not removed since."""
        self.directories: set[str] = set()
        self.gone: set[str] = set()

    def _directory(self) -> str:
        return self.rng.choice(["", "a/", "a/b/", "c/", *sorted(self.directories)])

    async def step(self) -> None:
        """Do one thing."""
        kind = self.rng.choice(
            ["write", "write", "unlink", "mkdir", "rmdir", "rename", "move", "other"]
        )
        try:
            await getattr(self, kind)()
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise

    async def write(self) -> None:
        path, data = f"{self._directory()}l{self.rng.randrange(6)}", self.rng.randbytes(3)
        await self.lab.write(path, data)
        self.files[path] = data
        self.gone.discard(path)

    async def unlink(self) -> None:
        if self.files:
            path = self.rng.choice(sorted(self.files))
            await self.lab.unlink(path)
            del self.files[path]
            self.gone.add(path)

    async def mkdir(self) -> None:
        path = f"{self._directory()}l{self.rng.choice('xyz')}"
        await self.lab.mkdir(path)
        self.directories.add(path + "/")

    async def rmdir(self) -> None:
        if self.directories:
            path = self.rng.choice(sorted(self.directories))
            await self.lab.rmdir(path[:-1])
            self.directories.remove(path)

    async def rename(self) -> None:
        if self.files:
            old = self.rng.choice(sorted(self.files))
            new = f"{self._directory()}l{self.rng.randrange(6)}"
            await self.lab.rename(old, new)
            self.files[new] = self.files.pop(old)
            if old != new:
                self.gone.add(old)
            self.gone.discard(new)

    async def move(self) -> None:
        if self.directories:
            old = self.rng.choice(sorted(self.directories))
            new = f"{self._directory()}l{self.rng.choice('xyz')}/"
            if new.startswith(old) or new in self.directories:
                return
            await self.lab.rename(old[:-1], new[:-1])
            for path in [p for p in self.files if p.startswith(old)]:
                self.files[new + path[len(old) :]] = self.files.pop(path)
                self.gone.add(path)
            for path in [p for p in self.directories if p.startswith(old)]:
                self.directories.remove(path)
                self.directories.add(new + path[len(old) :])
            self.gone -= set(self.files)

    async def other(self) -> None:
        key = f"{self.rng.choice(['', 'a/', 'a/b/', 'c/', 'd/e/'])}o{self.rng.randrange(6)}"
        if self.rng.random() < 0.5:
            self.lab.store.insert(key, self.rng.randbytes(2))
        else:
            self.lab.store.remove(key)

    def check(self, shown: set[str]) -> None:
        """What was changed here is as it was left."""
        assert set(self.files) <= shown, (sorted(set(self.files) - shown), sorted(shown))
        assert not self.gone & shown, sorted(self.gone & shown)


async def shown_files(lab: Lab, inode: Inode, path: str = "") -> set[str]:
    """Walk, and return the paths of files."""
    found: set[str] = set()
    for entry in await read(lab, inode):
        if entry.node.is_directory:
            found |= await shown_files(lab, entry.node.id, f"{path}{entry.node.name}/")
        else:
            found.add(f"{path}{entry.node.name}")
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 30), size=st.integers(1, 7))
def test_a_walk_undoes_nothing_that_is_done_meanwhile(seed: int, size: int) -> None:
    """Writes, removals and renames of files and directories here, and others' changes, while pages are on their way."""

    async def body(directory: Path) -> None:
        rng = random.Random(seed)  # noqa: S311 - no secret
        lab = Lab(directory)
        for above in ("a/", "a/b/", "c/", "d/e/"):
            lab.store.insert(above + "stays", b"x")
        for i in range(30):
            lab.store.insert(rng.choice(["", "a/", "a/b/", "c/", "d/e/", "f/"]) + f"o{i}", b"x")
        slow_small_pages(lab.store, size, rng)
        meddler = Meddler(lab, rng)
        async with lab.mounted():
            for _ in range(4):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(walk, lab)
                    for _ in range(rng.randrange(12)):
                        await meddler.step()
                        await trio.sleep(rng.random())
                meddler.check(await shown_files(lab, ROOT))
                lab.later(rng.choice([0, 1, 31, 60]))
                if rng.random() < 0.5:
                    await lab.settle()
            await lab.settle()
            lab.later(60)
            shown = await shown_files(lab, ROOT)
            meddler.check(shown)
            assert shown == {key for key in lab.stored() if not key.endswith("/")}

    with tempfile.TemporaryDirectory() as directory:
        run(lambda: body(Path(directory)))
