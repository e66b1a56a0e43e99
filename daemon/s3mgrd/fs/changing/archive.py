"""Archived objects: what cannot be done with them before S3 has restored a copy that can be read.

A listing tells that an object lies in an archive (`storage_class` of its row). Whether a restored copy of it can be read
now only HEAD tells: it is asked when a program opens such a file, and what it said is believed as long as a name
is, or until the copy expires. S3 neither reads nor copies what is archived, so whatever needs either fails before anything is
changed: open for reading or appending, a change in part, a rename, changed attributes. Removing and overwriting work.

S3 says of no object of `MOVING_CLASS` in its listings that it is archived; opening such a one works, reading it fails.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from os import O_ACCMODE, O_APPEND, O_WRONLY
from typing import Final

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.errors import Archived, NotFound
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.port import ObjectHead, RestoreState, archive_class

MAX_KNOWN: Final = 4096
"""Objects whose state is remembered."""


_Version = tuple[str, str, int | None]
"""Key, ETag, and when it was written: a copy of ours has the bytes and not what was restored of them."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What HEAD said of a restored copy, and until when that is believed."""

    state: RestoreState | None
    until_ns: int


class ArchiveGate:
    """Refuses what needs the bytes of an archived object of one volume, unless a restored copy of it can be read.

    Args:
        is_staged: whether a file has bytes here; what becomes of those is for others to judge.
    """

    def __init__(self, volume: Volume, is_staged: Callable[[Inode], bool]) -> None:
        self._volume: Final = volume
        self._is_staged: Final = is_staged
        self._known: Final[OrderedDict[_Version, _Known]] = OrderedDict()

    async def opening(self, node: Node, flags: int) -> None:
        """Refuse an open(2) after which bytes in the archive would be needed.

        Whether a file that is only written to will be overwritten is not known yet: the kernel truncates after opening.

        Raises:
            Archived: no copy can be read.
            S3mgrError: S3 could not be asked.
        """
        if not self._is_archived(node) or self._is_cached(node):
            return
        await self.look(node)
        if flags & O_ACCMODE != O_WRONLY or flags & O_APPEND:
            self.check(node)

    async def look(self, node: Node) -> None:
        """Ask S3 for what is not known of an archived object; nothing for all others."""
        if not self._is_archived(node):
            return
        known = self._known.get(self._version(node))
        if known is not None and known.until_ns > self._volume.now_ns():
            return
        try:
            head = await self._volume.store.head(self._volume.key_in_s3(node))
        except NotFound:
            return  # whoever needs it next finds out
        self._learn(node, head)

    def check(self, node: Node) -> None:
        """Refuse what needs an object's bytes, by what is known; call `look` before. No checkpoint.

        Raises:
            Archived: no copy can be read.
        """
        if not self._is_archived(node):
            return
        known = self._known.get(self._version(node))
        state = known.state if known is not None else None
        if state is not None and state.is_readable(self._volume.now_ns()):
            return
        doing = (
            "is being restored" if state is not None and state.is_ongoing else "must be restored"
        )
        raise Archived(
            f"{self._volume.key_in_s3(node)!r} is archived in storage class {node.storage_class} and {doing} "
            "before it can be read or copied",
            hint="s3mgr restore has S3 make a copy that can be read",
        )

    def forget(self) -> None:
        """Ask S3 again before anything is believed."""
        self._known.clear()

    def _is_archived(self, node: Node) -> bool:
        if node.storage_class is None or node.etag is None or not node.size:
            return False
        current = self._volume.nodes.get(node.id)  # `look` may have found it brought back
        return (
            current is not None
            and current.storage_class is not None
            and not self._is_staged(node.id)
        )

    def _is_cached(self, node: Node) -> bool:
        blocks = self._volume.blocks
        return blocks is not None and blocks.has(node.id, node.etag or "", 0, node.size)

    def _version(self, node: Node) -> _Version:
        written_ns = node.remote_mtime_ns
        written_s = None if written_ns is None else written_ns // NS
        return self._volume.key_in_s3(node), node.etag or "", written_s

    def _learn(self, node: Node, head: ObjectHead) -> None:
        if head.etag != node.etag:
            return  # another version, which a look at the name will tell
        volume, state = self._volume, head.restore
        now_ns = volume.now_ns()
        if archive_class(head.storage_class) != node.storage_class:
            storage_class = archive_class(head.storage_class)
            volume.nodes.set_storage_classes([(storage_class, node.id)])
        until_ns = now_ns + int(volume.settings.metadata_ttl_s * NS)
        if state is not None and state.expires_ns is not None and state.is_readable(now_ns):
            until_ns = state.expires_ns
        self._known[self._version(node)] = _Known(state, until_ns)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
