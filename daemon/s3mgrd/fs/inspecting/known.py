"""What the mount knows, for people to see: totals, and of one directory its entries, hidden keys and absent names by page.

Totals of a large mount.db take some tens of milliseconds to count, so they are counted in a thread, beside the loop,
and not again for every page.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from s3mgr.schema import AbsentName, CacheEntry, CacheReport, HiddenKey
from s3mgrd.cache.nodes import ROOT, STALE_NS, Inode, Kind, Marker, Node
from s3mgrd.errors import NotFound, UserError
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting.inspection import as_time, disk_cache
from s3mgrd.fs.volume import NS

TOTALS_AGE_S: Final = 2.0
PAGE_BYTES: Final = 128 << 10
"""Bytes of JSON in one page: a message to the supervisor has a limit. Any entry has room."""
_KINDS: Final[Mapping[int, Literal["file", "directory", "symlink", "other"]]] = {
    Kind.FILE: "file",
    Kind.DIRECTORY: "directory",
    Kind.SYMLINK: "symlink",
    Kind.SPECIAL: "other",
}


@dataclass(frozen=True, slots=True)
class _Totals:
    """Counts of a whole mount.db, and when they were made."""

    entries: int
    listed: int
    hidden: int
    at_s: float


class Known:
    """Describes what one file system knows. Changes nothing."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs: Final = fs
        self._volume: Final = fs.volume
        self._totals: _Totals | None = None

    async def report(self, path: str, cursor: str | None, limit: int) -> CacheReport:
        """Describe what is known: totals, and a page of directory *path*, or the one entry of a file.

        The pages of a directory give its entries first, then its hidden keys, then the names that are known not to be there.

        Raises:
            NotFound: nothing is known of *path*.
            UserError: *cursor* is none of ours.
        """
        place = _Place.read(cursor)
        totals = await self._count()
        # No checkpoint from here on.
        fs, volume = self._fs, self._volume
        node = self._find(path)
        page = _Page(limit)
        if node.is_directory:
            page.is_last = self._fill(node, place, page)
        else:
            page.is_last = page.take(self._entry(node), "")
        return CacheReport(
            entries_total=totals.entries - 1,  # the root has no name
            directories_listed=totals.listed,
            hidden_keys=totals.hidden,
            absent_names=fs.namespace.count_absent(),
            metadata_bytes=volume.database.size_bytes(),
            data_bytes=fs.reader.held_bytes,
            data_limit_bytes=volume.settings.memory_limit_bytes,
            staged_bytes=fs.stages.total_bytes(),
            metadata_hits=fs.namespace.hits,
            metadata_misses=fs.namespace.misses,
            listing_hits=fs.namespace.listing_hits,
            listing_misses=fs.namespace.listing_misses,
            data_hits=fs.reader.hits,
            data_misses=fs.reader.misses,
            disk_cache=disk_cache(volume.blocks),
            items=page.items,
            hidden=page.hidden,
            absent=page.absent,
            cursor=page.cursor,
        )

    async def _count(self) -> _Totals:
        now_s = time.monotonic()
        if self._totals is None or now_s - self._totals.at_s > TOTALS_AGE_S:
            ((entries, listed, hidden),) = await self._volume.database.fetch_aside(
                "SELECT (SELECT count(*) FROM inodes INDEXED BY inodes_by_parent WHERE name IS NOT NULL), "
                "(SELECT count(*) FROM inodes WHERE kind = ? AND listed_ns > ?), "
                "(SELECT count(*) FROM hidden)",
                (int(Kind.DIRECTORY), STALE_NS),
            )
            self._totals = _Totals(int(entries), int(listed), int(hidden), now_s)
        return self._totals

    def _find(self, path: str) -> Node:
        node = self._volume.nodes.find_below(ROOT, filter(None, path.split("/")))
        if node is None:
            raise NotFound(
                f"nothing is known of {path!r}",
                hint="paths are relative to the mount; look at it once to learn of it",
            )
        return node

    def _fill(self, directory: Node, place: "_Place", page: "_Page") -> bool:
        """Put on a page what comes after *place*; whether that is all there is."""
        nodes = self._volume.nodes
        if place.part == "e":
            after = int(place.after or 0)
            for child in nodes.children(directory.id, after=after, limit=page.room + 1):
                if not page.take(self._entry(child), f"e{child.id}"):
                    return False
        if place.part != "a":
            last = place.after if place.part == "h" else ""
            for key, reason in nodes.hidden(directory.id, after=last, limit=page.room + 1):
                if not page.take(HiddenKey(key=key, reason=reason), f"h{key}"):
                    return False
        for name, end_ns in sorted(self._fs.namespace.absent(directory.id).items()):
            if place.part == "a" and name <= place.after:
                continue
            left_s = (end_ns - self._volume.now_ns()) / NS
            if not page.take(AbsentName(name=name, fresh_s=round(left_s, 3)), f"a{name}"):
                return False
        return True

    def _entry(self, node: Node) -> CacheEntry:
        fs, volume = self._fs, self._volume
        blocks, is_file = volume.blocks, not node.is_directory
        stage = fs.stages.get(node.id)
        parent = volume.nodes.get(node.parent)
        listed_ns = parent.listed_ns if parent is not None else 0
        asked_ns = max(node.seen_ns, listed_ns)
        is_ours = node.id != ROOT and self._is_ours_alone(node)
        source: Literal["listing", "request", "local"] = "listing"
        if is_ours:
            source = "local"
        elif node.seen_ns > listed_ns:
            source = "request"
        attributes: Literal["known", "unknown", "pending"] = "unknown"
        if node.attributes_dirty:
            attributes = "pending"
        elif node.attributes_known:
            attributes = "known"
        return CacheEntry(
            path=volume.path(node),
            kind=_KINDS[node.kind],
            inode=node.id,
            size_bytes=fs.stages.size(node),
            mtime=as_time(fs.stages.mtime_ns(node)),
            etag=node.etag,
            age_s=round((volume.now_ns() - asked_ns) / NS, 3) if asked_ns > STALE_NS else None,
            source=source,
            fresh_s=round(fs.namespace.valid_for_s(node), 3),
            attributes=attributes,
            dirty=(stage is not None and stage.dirty) or bool(node.attributes_dirty),
            cached_bytes=fs.reader.holds(Inode(node.id)),
            disk_bytes=blocks.stored_bytes(node.id) if blocks is not None and is_file else 0,
            is_pinned=blocks is not None and is_file and blocks.is_pinned(node.id, node.etag or ""),
            staged_bytes=fs.stages.local_bytes(node.id),
        )

    def _is_ours_alone(self, node: Node) -> bool:
        """Whether S3 has nothing of *node* yet. Of a directory what is below is not looked at: that could be much."""
        if node.is_directory:
            return node.marker == Marker.WANTED or node.remote_prefix is not None
        return self._volume.is_ours_alone(node)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a page begins: behind an entry (e, by inode), a hidden key (h) or an absent name (a)."""

    part: Literal["e", "h", "a"]
    after: str

    @classmethod
    def read(cls, cursor: str | None) -> "_Place":
        """Read the cursor of a page. Raises `UserError`."""
        if cursor is None:
            return cls("e", "")
        part, after = cursor[:1], cursor[1:]
        if part == "e" and after.isascii() and after.isdecimal() and len(after) < 19:
            return cls("e", after)
        if part == "h":
            return cls("h", after)
        if part == "a":
            return cls("a", after)
        raise UserError(f"{cursor!r} is no cursor", hint="use the cursor of the last page")


class _Page:
    """One page being filled."""

    def __init__(self, limit: int) -> None:
        self.room = limit
        self._bytes_left = PAGE_BYTES
        self.items: list[CacheEntry] = []
        self.hidden: list[HiddenKey] = []
        self.absent: list[AbsentName] = []
        self._passed: str | None = None
        self.is_last = False

    def take(self, what: CacheEntry | HiddenKey | AbsentName, place: str) -> bool:
        """Put one more on the page, which then ends at *place*; whether there was room."""
        size = len(msgspec.json.encode(what))
        if not self.room or size > self._bytes_left:
            return False
        self.room -= 1
        self._bytes_left -= size
        self._passed = place
        match what:
            case CacheEntry():
                self.items.append(what)
            case HiddenKey():
                self.hidden.append(what)
            case AbsentName():
                self.absent.append(what)
        return True

    @property
    def cursor(self) -> str | None:
        """Where the next page begins; None: there is none, or none was asked for."""
        return None if self.is_last else self._passed
