"""Forgetting: making the next look at a path ask S3, past mount.db and past the kernel's caches.

Nothing is thrown away: names and versions stay in mount.db and are only not believed any more, so what S3 confirms keeps
its inode, its attributes and its data. The kernel is told at once, name by name: it looks a name up again before it
believes it. Pages of files need no telling: an inode is one version, and another version is another inode.

A large tree is passed in pieces, with a checkpoint after each, so that the mount goes on being served.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from s3mgrd.cache.nodes import ROOT, STALE_NS, Inode, Node
from s3mgrd.fs.learning.namespace import Namespace
from s3mgrd.fs.volume import Volume

PIECE: Final = 1024
"""Entries between two checkpoints: some milliseconds."""

TellNames = Callable[[Sequence[tuple[Inode, str]]], Awaitable[None]]
TellInodes = Callable[[Sequence[tuple[Inode, bool]]], Awaitable[None]]


@dataclass(slots=True)
class Forgotten:
    """How much was believed until now."""

    listings: int = 0
    names: int = 0
    directories: set[Inode] = field(default_factory=set)


class Forgetter:
    """Forgets parts of one volume.

    Args:
        tell_names: makes the kernel look names up again, each with its directory.
        tell_inodes: makes the kernel ask again for attributes, and where True stands beside, for what it keeps of the
            content: of directories.
    """

    def __init__(
        self,
        volume: Volume,
        namespace: Namespace,
        *,
        tell_names: TellNames,
        tell_inodes: TellInodes,
    ) -> None:
        self._volume: Final = volume
        self._namespace: Final = namespace
        self._tell_names: Final = tell_names
        self._tell_inodes: Final = tell_inodes

    async def forget(self, path: str) -> Forgotten:
        """Make the next look at *path*, and at everything below it, ask S3.

        Nothing needs to be known of *path*: then it is forgotten that there was nothing, as far down as anybody looked.
        """
        self._namespace.outdate()
        done = Forgotten()
        node = self._volume.node(ROOT)
        for name in filter(None, path.split("/")):
            found = self._volume.nodes.find(node.id, name)
            if found is None or not found.is_directory:
                await self._forget_name(node, name, found, done)
                return done
            parent, node = node, found
        if node.id != ROOT:
            await self._forget_name(parent, node.name or "", node, done)
        await self._forget_tree(node, done)
        return done

    async def _forget_name(
        self, parent: Node, name: str, node: Node | None, done: Forgotten
    ) -> None:
        """Forget what one name leads to; its directory's listing may be believed for no other reason."""
        volume = self._volume
        with volume.database.transaction():
            volume.distrust(parent.id)
            if node is not None:
                volume.nodes.update(node.id, seen_ns=0)
        volume.changes.note(parent.id, name)  # an answer that is on its way is older than this
        self._namespace.forget_absent({parent.id}, name)
        done.names += 1
        await self._tell_names([(parent.id, name)])
        around = [(parent.id, True)]
        await self._tell_inodes(around if node is None else [*around, (node.id, node.is_directory)])

    async def _forget_tree(self, top: Node, done: Forgotten) -> None:
        waiting = [top.id]
        while waiting:
            directory = self._volume.nodes.get(waiting.pop())
            if directory is None:
                continue  # removed meanwhile
            done.directories.add(directory.id)
            done.listings += directory.listed_ns > STALE_NS
            self._volume.distrust(directory.id)
            waiting += await self._forget_entries(directory.id, done)
        absent = self._namespace.forget_absent(done.directories)
        done.names += len(absent)
        for start in range(0, len(absent), PIECE):
            await self._tell_names(absent[start : start + PIECE])

    async def _forget_entries(self, directory: Inode, done: Forgotten) -> list[Inode]:
        """Forget when the entries of a directory were seen; returns the directories among them."""
        volume = self._volume
        inside: list[Inode] = []
        after = 0
        while entries := list(volume.nodes.listed(directory, after=after, limit=PIECE)):
            with volume.database.transaction():
                volume.nodes.forget_seen(directory, after=after, up_to=entries[-1].id)
            inside += [entry.id for entry in entries if entry.is_directory]
            after = entries[-1].id
            done.names += len(entries)
            await self._tell_names([(directory, entry.name) for entry in entries])
            await trio.lowlevel.checkpoint()
        await self._tell_inodes([(directory, True)])
        return inside
