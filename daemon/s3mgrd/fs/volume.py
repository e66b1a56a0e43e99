"""What every part of the file system shares: the store, mount.db, the settings, and where things are.

Concurrency: all parts run as tasks of one trio loop. mount.db is read and written without a checkpoint, so code
between two awaits sees and leaves a consistent tree. What must hold across an await is guarded by the
inode's lock (`Locks`) or by looking again afterwards (`Changes`).
"""

import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import trio

from s3mgrd.cache.blocks import BlockCache
from s3mgrd.cache.database import MountDatabase
from s3mgrd.cache.extras import Extras
from s3mgrd.cache.nodes import ROOT, STALE_NS, Inode, Kind, Listed, Marker, Node, NodeTable
from s3mgrd.fs.absence import ToldAbsent
from s3mgrd.fs.coverage import Coverage
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.moves import MoveTable
from s3mgrd.journal.tables import Journal
from s3mgrd.s3.port import ObjectStore

NS: Final = 1_000_000_000


_CLOCK_REALTIME_COARSE: Final = 5


def kernel_now_ns() -> int:
    """Return the time (ns) that the kernel would give to a file now: of its last tick, a few milliseconds ago.

    With its writeback cache some times are the kernel's and some are ours. By a finer clock, a file that was made first
    could be the newer one.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


async def _tell_nobody(_: Sequence[tuple[Inode, str]]) -> None:
    """Stand for a kernel that there is not."""


def _nowhere(_: Inode) -> bool:
    """Stand for a kernel that keeps nothing."""
    return False


@dataclass(slots=True)
class Settings:
    """How the file system behaves. The second group may change while it runs."""

    prefix: str
    read_only: bool
    uid: int
    gid: int
    file_mode: int
    dir_mode: int
    attributes: str
    part_size_bytes: int

    metadata_ttl_s: float
    negative_ttl_s: float
    retry_deadline_s: float
    concurrency: int
    memory_limit_bytes: int
    metadata_size_bytes: int

    write_mode: str = "close"
    fsync: str = "local"
    dirty_limit_bytes: int = 4 << 30
    staging_size_bytes: int = 1 << 30


class Locks:
    """One lock per thing, made when wanted and dropped when nobody wants it.

    Order: an inode's lock before keys' locks; several keys in sorted order (`holding` does it).
    """

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[trio.Lock, int]] = {}

    @asynccontextmanager
    async def holding(self, *things: Hashable) -> AsyncIterator[None]:
        """Hold the locks of all *things*, taken in sorted order."""
        ordered = sorted(set(things), key=repr)
        taken = []
        try:
            for thing in ordered:
                lock, users = self._locks.get(thing, (None, 0))
                lock = lock or trio.Lock()
                self._locks[thing] = (lock, users + 1)
                try:
                    lock.acquire_nowait()  # a lock that nobody holds is worth no turn of the loop
                except trio.WouldBlock:
                    try:
                        await lock.acquire()
                    except trio.Cancelled:
                        self._leave(thing)
                        raise
                taken.append((thing, lock))
            yield
        finally:
            for thing, lock in reversed(taken):
                lock.release()
                self._leave(thing)

    def is_held(self, thing: Hashable) -> bool:
        """Whether somebody holds the lock of *thing* now."""
        lock, _ = self._locks.get(thing, (None, 0))
        return lock is not None and lock.locked()

    def is_awaited(self, thing: Hashable) -> bool:
        """Whether somebody waits for the lock of *thing* beside who holds it."""
        return self._locks.get(thing, (None, 0))[1] > 1

    def _leave(self, thing: Hashable) -> None:
        lock, users = self._locks[thing]
        if users == 1:
            del self._locks[thing]
        else:
            self._locks[thing] = (lock, users - 1)


class Changes:
    """Which names and keys changed here while S3 was being asked about them.

    An answer that S3 began to give before a local change must not undo it. Whoever asks takes `begin`, and
    skips what `is_newer` or `is_key_newer` holds for. Changes are remembered only while somebody asks.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._askers = 0
        self._names: dict[tuple[int, str], int] = {}
        self._keys: dict[str, int] = {}

    def begin(self) -> int:
        """Note that S3 is being asked; pair with `end`."""
        self._askers += 1
        return self._sequence

    def end(self) -> None:
        """Note that the answer is used up."""
        self._askers -= 1
        if not self._askers:
            self._names.clear()
            self._keys.clear()

    def note(self, parent: int, name: str) -> None:
        """Note a local change of a name, or that S3 just took one over."""
        self._sequence += 1
        if self._askers:
            self._names[parent, name] = self._sequence

    def note_key(self, key: str) -> None:
        """Note that S3 was just made to change *key*."""
        self._sequence += 1
        if self._askers:
            self._keys[key] = self._sequence

    def now(self) -> int:
        """Return what `begin` would, for who has begun already and asks S3 once more."""
        return self._sequence

    def is_quiet(self, than: int) -> bool:
        """Whether nothing at all changed after `begin` returned *than*."""
        return self._sequence <= than

    def is_key_newer(self, key: str, than: int) -> bool:
        """Whether *key* changed in S3 by our doing after `begin` returned *than*."""
        return self._keys.get(key, -1) > than

    def is_newer_below(self, prefix: str, than: int) -> bool:
        """Whether a key that starts with *prefix* changed by our doing after `begin` returned *than*."""
        return any(n > than and key.startswith(prefix) for key, n in self._keys.items())

    def is_newer(self, parent: int, name: str, than: int) -> bool:
        """Whether *name* changed after `begin` returned *than*."""
        return self._names.get((parent, name), -1) > than


@dataclass
class Volume:
    """One mounted bucket or prefix. Built once per worker; see the module docstring for who may touch what when."""

    store: ObjectStore
    database: MountDatabase
    nodes: NodeTable
    journal: Journal
    staging: StagingDirectory
    settings: Settings
    blocks: BlockCache | None = None
    """None: there is no disk to cache data on."""
    now_ns: Callable[[], int] = kernel_now_ns
    locks: Locks = field(default_factory=Locks)
    changes: Changes = field(default_factory=Changes)
    covered: Coverage = field(default_factory=Coverage)
    expire_names: Callable[[Sequence[tuple[Inode, str]]], Awaitable[None]] = _tell_nobody
    """Makes the kernel look names up again, each with its directory. May wait for requests in these: hold no lock."""
    kernel_keeps_times: bool = False
    """The kernel gathers writes (`s3mgrd.fuse.tuning.WRITEBACK`), and says itself when a file was written."""
    are_times_kept: Callable[[Inode], bool] = _nowhere
    """Whether the kernel goes on showing the size and the times that it has of an inode, whatever it is told."""
    moving: dict[int, trio.Event] = field(default_factory=dict)
    """Directories whose rename S3 has yet to follow, by inode; set when it has, or when it is planned anew."""
    told_absent: ToldAbsent = field(default_factory=ToldAbsent)
    """Names that the kernel believes are not there."""
    extras: Extras = field(init=False)

    def __post_init__(self) -> None:
        """Open what is kept beside the rows."""
        self.extras = Extras(self.database)

    @cached_property
    def moves(self) -> MoveTable:
        """The directory renames that S3 has yet to follow."""
        return MoveTable(self.database)

    @property
    def is_offline(self) -> bool:
        """Whether S3 cannot be reached, and what is known of it is to do (`offline_ok`)."""
        return self.store.outage.is_on

    def node(self, inode: int) -> Node:
        """Return the row of an inode. Raises OSError(ESTALE): nothing is known of that number."""
        node = self.nodes.get(inode)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def directory(self, inode: int) -> Node:
        """Return the row of a directory. Raises OSError: ESTALE, ENOTDIR."""
        node = self.node(inode)
        if not node.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    # Where things are

    def prefix_in_s3(self, directory: Node) -> str:
        """Return the prefix at which S3 has a directory's contents."""
        below = ""
        while True:
            if directory.remote_prefix is not None:
                return directory.remote_prefix + below
            if directory.id == ROOT:
                return self.settings.prefix + below
            below = f"{directory.name}/{below}"
            directory = self.node(directory.parent)

    def key_in_s3(self, node: Node) -> str:
        """Return the key at which S3 has a file's version. Raises OSError(ESTALE) for a detached one that never was there."""
        if node.remote_key is not None:
            return node.remote_key
        if node.name is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.prefix_in_s3(self.node(node.parent)) + node.name

    def place(self, node: Node) -> str:
        """Return the key at which S3 has a node: a file's version, or a directory's marker. Raises as `key_in_s3`."""
        return self.prefix_in_s3(node) if node.is_directory else self.key_in_s3(node)

    def path(self, node: Node) -> str:
        """Return a node's path in the mount: no leading slash, directories end in one; the root is empty."""
        parts = ["" if not node.is_directory else "/"] if node.id != ROOT else [""]
        while node.id != ROOT:
            parts.append(node.name if node.name is not None else f"(deleted inode {node.id})")
            node = self.node(node.parent)
            if node.id != ROOT:
                parts.append("/")
        return "".join(reversed(parts))

    def wanted_key(self, node: Node) -> str:
        """Return the key that a node's path spells: where its object belongs; directories end in a slash."""
        return self.settings.prefix + self.path(node)

    def is_below(self, node: Node, ancestor: int) -> bool:
        """Whether *node* is *ancestor* or inside it."""
        while node.id != ROOT:
            if node.id == ancestor:
                return True
            node = self.node(node.parent)
        return ancestor == ROOT

    # What is ours alone

    def is_ours_alone(self, node: Node) -> bool:
        """Whether S3's silence about *node* means nothing: it holds something that S3 was not given yet."""
        if node.remote_key is not None or node.remote_prefix is not None:
            return True
        if not node.is_directory:
            return node.etag is None or self.journal.is_dirty(node.id)
        return node.marker == Marker.WANTED or self.nodes.has_ours_below(node.id)

    def has_newer_attributes(self, node: Node) -> bool:
        """Whether attributes were changed here, or may have been, that S3 gets by a request of their own or with an upload."""
        return bool(node.attributes_dirty) or (
            not node.is_directory and self.journal.is_dirty(node.id)
        )

    def detach(self, node: Node) -> None:
        """Take a name away; who holds the inode keeps what it was. Below a directory everything goes with it."""
        with self.database.transaction():
            if node.is_directory:
                while children := self.nodes.children(node.id):
                    for child in children:
                        self.detach(child)
                self.nodes.update(node.id, name=None, marker=int(Marker.NONE), remote_prefix=None)
            else:
                key = self.key_in_s3(node) if node.etag is not None else None
                self.nodes.update(node.id, name=None, remote_key=key, attributes_dirty=0)

    def renew(self, node: Node) -> Inode:
        """Give a file's name to another inode, which is the same version: the kernel would not believe what changed of this one.

        Who has the file open goes on with the one that had the name.
        """
        assert node.name is not None, "only what has a name"  # noqa: S101 - a bug, not an input
        with self.database.transaction():
            self.detach(node)
            return self.nodes.insert(
                node.parent, node.name, Kind(node.kind), node.mtime_ns,
                atime_ns=node.atime_ns, ctime_ns=node.ctime_ns, mode=node.mode, uid=node.uid, gid=node.gid,
                special=node.special, rdev=node.rdev, target=node.target,
                size=node.size, etag=node.etag, remote_key=node.remote_key, storage_class=node.storage_class,
                remote_mtime_ns=node.remote_mtime_ns, seen_ns=node.seen_ns,
            )  # fmt: skip

    def distrust(self, directory: int) -> None:
        """Have a directory listed again before its entries are believed."""
        self.covered.drop(Inode(directory))
        node = self.nodes.get(directory)
        if node is not None and node.listed_ns:
            self.nodes.update(directory, listed_ns=STALE_NS)

    # Directory renames that S3 has yet to follow

    def leaving_below(self, prefix: str) -> set[str]:
        """Return the keys below *prefix* that S3 still shows although they are deleted or renamed here."""
        return (
            self.journal.deletes_below(prefix)
            | self.nodes.remote_keys_below(prefix)
            | self.strays_below(prefix)
        )

    def strays_below(self, prefix: str) -> set[str]:
        """Return the keys below *prefix* where a request of ours may have left something that no name here wants."""
        return {key for key in self.journal.writes_below(prefix) if not self.is_wanted_at(key)}

    def is_wanted_at(self, key: str) -> bool:
        """Whether a name here leads to *key*: by its path, or because S3 has yet to follow a rename of a directory around it."""
        if self.named_at(key) is not None:
            return True
        for row in self.moves.all() if self.moving else ():
            if key.startswith(row.source):
                *above, name = key[len(row.source) :].split("/")
                node = self.nodes.find_below(row.inode, [*above, name] if name else above)
                if node is not None and node.is_directory == (not name) and self.place(node) == key:
                    return True
        return False

    def named_at(self, key: str) -> Node | None:
        """Return what the path that *key* spells leads to: a directory for a key that ends in a slash, otherwise none."""
        if not key.startswith(self.settings.prefix):
            return None
        *above, name = key[len(self.settings.prefix) :].split("/")
        node = self.nodes.find_below(ROOT, [*above, name] if name else above)
        return node if node is not None and node.is_directory == (not name) else None

    def is_leaving(self, prefix: str, *, seen_from: str) -> bool:
        """Whether what S3 shows below *prefix* is on its way to another name, seen from outside of what moves."""
        return any(
            prefix.startswith(place) and not seen_from.startswith(place)
            for place in self._on_the_way()
        )

    def leaving_inside(self, prefix: str) -> list[str]:
        """Return the places inside of *prefix* from which, or to which, directories are on their way."""
        return [
            place for place in self._on_the_way() if place.startswith(prefix) and place != prefix
        ]

    def _on_the_way(self) -> list[str]:
        """Return the places from which, or to which, directories are on their way."""
        rows = self.moves.all() if self.moving else []
        sources = [row.source for row in rows]
        # A target that is a name here has a row there, the others are nobody's. But where another move still copies from
        # nothing was copied to, and what lies there is its directory's.
        return sources + [
            row.target
            for row in rows
            if not any(row.target.startswith(source) for source in sources if source != row.source)
        ]

    def move_around(self, directory: int) -> trio.Event | None:
        """Return what to wait for before S3 has *directory* where its path says: a pending rename of it or around it."""
        if not self.moving:
            return None
        node = self.node(directory)
        while node.id != ROOT:
            if node.id in self.moving:
                return self.moving[node.id]
            node = self.node(node.parent)
        return None

    def date_in_s3(self, directory: int, mtime_ns: int) -> int | None:
        """Return what a row in *directory* says of the date that S3 gives its object.

        None while S3 has yet to follow a rename: the copy that is made, or was made, has another date and is no other version.
        """
        return None if self.move_around(directory) is not None else mtime_ns

    # How things look

    def mode(self, node: Node | Listed) -> int:
        """Return the permission bits to show."""
        if node.mode is not None:
            return node.mode
        if node.kind == Kind.SYMLINK:
            return 0o777
        return self.settings.dir_mode if node.is_directory else self.settings.file_mode

    def owner(self, node: Node) -> tuple[int, int]:
        """Return the uid and gid to show."""
        uid = node.uid if node.uid is not None else self.settings.uid
        gid = node.gid if node.gid is not None else self.settings.gid
        return uid, gid

    def touch(self, directory: int) -> None:
        """Set a directory's mtime to now: an entry came or went. Local only; S3 keeps no such time."""
        now = self.now_ns()
        self.nodes.update(directory, mtime_ns=now, ctime_ns=now)


__all__ = ["NS", "Changes", "Inode", "Locks", "Settings", "Volume"]
