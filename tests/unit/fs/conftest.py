"""A file system on an in-memory store, without a kernel: what the handlers call, called directly."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from s3mgrd.cache.blocks import BlockCache, open_block_cache
from s3mgrd.cache.database import MountDatabase, open_database
from s3mgrd.cache.nodes import ROOT, Inode, Listed, Node, NodeTable
from s3mgrd.fs.changing.tree import Creator
from s3mgrd.fs.filesystem import FileSystem, adopt_database
from s3mgrd.fs.volume import NS, Settings, Volume
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.shared import PREFIX, SharedLog
from s3mgrd.journal.tables import Journal
from s3mgrd.s3.memory import MemoryStore

START_NS = 1_800_000_000 * NS
WHO = Creator(uid=1000, gid=1000, mode=0o644)


def crash_database(database: MountDatabase) -> None:
    """Leave the files as a killed worker does: the log is not folded back, as SQLite would when it closes."""
    path = database.execute("PRAGMA database_list").fetchone()[2]
    files = {Path(path + suffix): Path(path + suffix).read_bytes() for suffix in ("", "-wal")}
    if database._checker is not None:
        database._checker.close()
    database._checkpointer.close()
    database._connection.close()
    if database._file is not None:
        os.close(database._file)
    database._witness.close()
    for file, content in files.items():
        file.write_bytes(content)


def settings(**changes: object) -> Settings:
    """Return settings with small limits."""
    values: dict[str, object] = {
        "prefix": "",
        "read_only": False,
        "uid": 0,
        "gid": 0,
        "file_mode": 0o644,
        "dir_mode": 0o755,
        "attributes": "lazy",
        "part_size_bytes": 5 << 20,
        "metadata_ttl_s": 30.0,
        "negative_ttl_s": 30.0,
        "retry_deadline_s": 60.0,
        "concurrency": 8,
        "memory_limit_bytes": 32 << 20,
        "metadata_size_bytes": 1 << 30,
    }
    return Settings(**(values | changes))  # type: ignore[arg-type] # names and types as above


@dataclass
class Lab:
    """One bucket in memory and a mount of it that can be stopped in any way and opened again."""

    directory: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    now_ns: int = START_NS
    settings: Settings = field(default_factory=settings)
    held: set[int] = field(default_factory=set)
    """Inodes the kernel holds."""
    blocks: BlockCache | None = None
    repeats: int = 0
    bucket: str = "bucket"
    fs: FileSystem = field(init=False)
    _database: MountDatabase = field(init=False)

    def staging_files(self) -> set[str]:
        """Return the names of staging files, also of those that are in the log they share."""
        directory = os.open(self.directory / "staging", os.O_RDONLY | os.O_DIRECTORY)
        own = {name for name in os.listdir(directory) if not name.startswith(PREFIX)}
        log = SharedLog(directory)
        found = own | {str(inode) for inode in log.load()}
        for segment in log._segments:
            os.close(segment.fd)
        os.close(directory)
        return found

    @asynccontextmanager
    async def mounted(
        self, connection: str = "first", *, sync: bool = True, is_database_lost: bool = False
    ) -> AsyncIterator[FileSystem]:
        """Open the file system; leaving is a crash: nothing is closed in order."""
        (self.directory / "staging").mkdir(exist_ok=True)
        database, _ = open_database(self.directory / "mount.db")
        fd = os.open(self.directory / "staging", os.O_RDONLY | os.O_DIRECTORY)
        volume = Volume(
            self.store,
            database,
            NodeTable(database),
            Journal(database),
            StagingDirectory(fd),
            self.settings,
            self.blocks,
            now_ns=lambda: self.now_ns,
        )
        try:
            adopt_database(volume, bucket=self.bucket, connection_id=connection)
            async with trio.open_nursery() as nursery:
                self.fs = FileSystem(volume, nursery, lambda inode: inode in self.held)
                self.fs.recover(is_database_lost=is_database_lost)
                if sync:
                    nursery.start_soon(self.fs.syncer.run)
                yield self.fs
                nursery.cancel_scope.cancel()
        finally:
            os.close(fd)
            crash_database(database)

    def later(self, seconds: float) -> None:
        """Let time pass for listings and names."""
        self.now_ns += int(seconds * NS)

    def record(self, inode: int) -> None:
        """Stand for the repeat ring."""
        self.repeats += 1

    async def find(self, path: str) -> Node | None:
        """Look a path up as the kernel does, name by name."""
        node: Node | None = self.fs.volume.node(ROOT)
        for name in filter(None, path.split("/")):
            if node is None:
                return None
            node = await self.fs.namespace.lookup(node.id, name)
        return node

    async def get(self, path: str) -> Node:
        """Look up a path that exists."""
        node = await self.find(path)
        assert node is not None, path
        return node

    async def _parent(self, path: str) -> tuple[Inode, str]:
        parent, _, name = path.rpartition("/")
        return (await self.get(parent)).id, name

    async def write(
        self, path: str, data: bytes, *, exclusive: bool = False, close: bool = True
    ) -> Node:
        """Write a file from its beginning, as `cp` does."""
        parent, name = await self._parent(path)
        node = await self.fs.tree.create(parent, name, WHO, self.record, exclusive=exclusive)
        self.fs.stages.take_up(node)
        if self.fs.stages.size(node):
            self.fs.stages.truncate(node.id, 0)
        await self.fs.stages.write(node.id, 0, data)
        if close:
            await self.fs.commit(node.id)
        return self.fs.volume.node(node.id)

    async def read(self, path: str) -> bytes:
        """Read a whole file."""
        return await self.read_inode((await self.get(path)).id)

    async def read_inode(self, inode: Inode, handle: int = 1) -> bytes:
        """Read a whole file by its number."""
        size = self.fs.stages.size(self.fs.volume.node(inode))
        try:
            return bytes(await self.fs.read(inode, 0, size, handle=handle))
        finally:
            self.fs.reader.close(handle)

    async def mkdir(self, path: str) -> Node:
        """Make a directory."""
        parent, name = await self._parent(path)
        return await self.fs.tree.mkdir(parent, name, Creator(1000, 1000, 0o755), self.record)

    async def symlink(self, path: str, target: str) -> Node:
        """Make a symbolic link."""
        parent, name = await self._parent(path)
        return await self.fs.tree.symlink(parent, name, target, WHO, self.record)

    async def unlink(self, path: str) -> None:
        """Remove a file."""
        await self.fs.tree.unlink(*await self._parent(path), self.record)

    async def rmdir(self, path: str) -> None:
        """Remove a directory."""
        await self.fs.tree.rmdir(*await self._parent(path), self.record)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Rename."""
        await self.fs.tree.rename(
            *await self._parent(old), *await self._parent(new), flags, self.record
        )

    async def ls(self, path: str = "") -> list[str]:
        """List a directory, in order; directories end in a slash."""
        inode = (await self.get(path)).id
        found: list[Listed] = []
        while page := await self.fs.namespace.entries(inode, found[-1].id if found else 0, 3):
            found += [entry.node for entry in page]
        return sorted(f"{n.name}/" if n.is_directory else str(n.name) for n in found)

    async def settle(self) -> None:
        """Wait until S3 has everything."""
        await self.fs.syncer.flush()

    def stored(self) -> list[str]:
        """Return the bucket's keys."""
        return sorted(self.store.objects)

    def data(self, key: str) -> bytes:
        """Return an object's bytes."""
        return self.store.objects[key].data


@pytest.fixture
def lab(tmp_path: Path, autojump_clock: object) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def cached(lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """A lab with a block cache of 64 MiB."""
    lab.blocks = open_block_cache(tmp_path, owner="lab", limit_bytes=64 << 20)
    assert lab.blocks is not None
    yield lab
    lab.blocks.close()
