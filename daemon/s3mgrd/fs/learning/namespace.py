"""Names: what a name leads to, asked of mount.db first and of S3 only when mount.db may be out of date.

Changes of names are in `s3mgrd.fs.changes`.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from typing import Final, Literal, NamedTuple

from s3mgrd.cache.nodes import (
    MAX_INODE,
    ROOT,
    Inode,
    Listed,
    Marker,
    Node,
)
from s3mgrd.errors import Unavailable
from s3mgrd.fs.learning.arrivals import Listing
from s3mgrd.fs.learning.asking import Asker
from s3mgrd.fs.learning.listing import Lister
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.volume import NS, Volume

log = logging.getLogger(__name__)

SMALL_DIRECTORY: Final = 1000
"""Entries: up to so many one page lists, so that asking for one name and asking for all cost the same."""
BURST: Final = 8
"""Names asked for one by one in one directory within `BURST_NS`; more, and the directory is listed."""
BURST_NS: Final = 5 * NS
WITNESSES: Final = 8
"""Entries of a directory that are looked at to know whether it is still there without a marker."""


class Absent(Enum):
    """What a name leads to that is known to lead to nothing."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


class Entry(NamedTuple):
    """One entry of a directory, and for how long the kernel may believe it."""

    node: Listed
    valid_s: float


class Namespace:
    """Looks names up and keeps listings fresh. Counts how often mount.db had the answer."""

    def __init__(self, volume: Volume, lister: Lister, metadata: Metadata, asker: Asker) -> None:
        self._volume = volume
        self._lister = lister
        self._metadata = metadata
        self._asker = asker
        self.hits = 0
        self.misses = 0
        self.listing_hits = 0
        self.listing_misses = 0

    # Looking up

    def known(self, parent: Inode, name: str) -> Node | Literal[Absent.ABSENT] | None:
        """Return what *name* in *parent* leads to if mount.db can say and show it; None: S3 has to be asked.

        While S3 cannot be reached, what it said last is good enough (`offline_ok`).

        Raises:
            OSError: ESTALE or ENOTDIR for *parent*.
        """
        directory = self._volume.directory(parent)
        node = self._volume.nodes.find(parent, name)
        is_offline = self._volume.is_offline
        if not self._asker.is_known(directory, name, node) and not (
            is_offline and (node is not None or self._asker.was_absent(directory, name))
        ):
            return None
        if node is not None and not is_offline and not self._asker.may_show(directory, node):
            return None
        return ABSENT if node is None else node

    def note_hit(self, parent: Inode, name: str) -> None:
        """Count a name for which mount.db had the answer, once for each time that somebody asked."""
        self.hits += 1
        log.debug("cache hit: name %r in inode %d", name, parent)

    async def lookup(self, parent: Inode, name: str) -> Node | None:
        """Return what *name* in *parent* leads to; None: nothing.

        Raises:
            OSError: ESTALE or ENOTDIR for *parent*.
            S3mgrError: S3 had to be asked and did not answer.
        """
        found = self.known(parent, name)
        if found is None:
            try:
                return await self._ask(parent, name)
            except Unavailable:
                found = self.known(parent, name) if self._volume.is_offline else None
                if found is None:
                    raise
        else:
            self.note_hit(parent, name)
        return None if found is ABSENT else found

    async def _ask(self, parent: Inode, name: str) -> Node | None:
        self.misses += 1
        log.debug("cache miss: name %r in inode %d", name, parent)
        async with self._volume.locks.holding(("name", parent, name)):
            directory = self._volume.directory(parent)
            node = self._volume.nodes.find(parent, name)
            if not self._asker.is_known(directory, name, node):
                await self._asker.ask(directory, name)
                node = self._volume.nodes.find(parent, name)
            return node if node is None else await self._asker.show(directory, node)

    async def existing(self, parent: Inode, name: str) -> Node:
        """As `lookup`, but raises FileNotFoundError where there is nothing."""
        node = await self.lookup(parent, name)
        if node is None:
            raise FileNotFoundError(2, "No such file or directory")
        return node

    async def with_attributes(self, inode: Inode) -> Node:
        """Return an inode's row once its attributes in S3 are known, so that changing one keeps the others."""
        if not self.knows_attributes(self._volume.node(inode)):
            await self._metadata.know(inode)
        return self._volume.node(inode)

    def knows_attributes(self, node: Node) -> bool:
        """Whether `with_attributes` returns at once."""
        return bool(node.attributes_known) or node.is_detached

    def valid_for_s(self, node: Node) -> float:
        """Return for how long the kernel may believe that the name leads to *node*."""
        settings = self._volume.settings
        ttl_ns = int(settings.metadata_ttl_s * NS)
        if node.id == ROOT or node.is_detached:
            return settings.metadata_ttl_s
        directory = self._volume.nodes.get(node.parent)
        asked_ns = max(node.seen_ns, directory.listed_ns if directory else 0)
        if node.name is not None and not asked_ns:
            asked_ns = self._volume.covered.as_of_ns(node.parent, node.name)
        left_ns = asked_ns + ttl_ns - self._volume.now_ns()
        if left_ns <= 0 and not node.is_directory and self._volume.is_ours_alone(node):
            return (
                settings.metadata_ttl_s
            )  # of a directory, all that is below would have to be looked at
        return max(0.0, min(left_ns / NS, settings.metadata_ttl_s))

    def tell_absent(self, parent: Inode, name: str) -> float:
        """Return for how long the kernel may believe that *name* is not in *parent*, and remember that it does."""
        if self._volume.is_offline:
            return 0.0  # it may be out of date, and is asked for again when S3 is back
        now_ns = self._volume.now_ns()
        valid_s = self._volume.settings.negative_ttl_s
        directory = self._volume.nodes.get(parent)
        if directory is not None and self._lister.is_fresh(directory):
            valid_s = min(valid_s, self._listed_for_s(directory, now_ns))
        end_ns = now_ns + int(valid_s * NS)
        if valid_s <= 0 or not self._volume.told_absent.note(parent, name, end_ns, now_ns):
            return 0.0  # what cannot be remembered could not be taken back
        return valid_s

    def _listed_for_s(self, directory: Node, now_ns: int) -> float:
        """Return for how long the last listing of a directory may still be believed."""
        ttl_s = self._volume.settings.metadata_ttl_s
        return max(0.0, min(ttl_s - (now_ns - directory.listed_ns) / NS, ttl_s))

    # Forgetting; see `s3mgrd.fs.learning.forgetting`

    def outdate(self) -> None:
        """Have nothing be trusted that S3 is telling now: somebody knows better."""
        self._asker.forget()
        self._lister.forget()

    def forget_absent(
        self, directories: Collection[Inode], name: str | None = None
    ) -> list[tuple[Inode, str]]:
        """Forget which names (or that one name) are not in *directories*; returns those that the kernel was told of."""
        return self._volume.told_absent.take(directories, name)

    def absent(self, directory: Inode) -> dict[str, int]:
        """Return the names that are known not to be in a directory, with the time (ns) until which that is believed."""
        now_ns = self._volume.now_ns()
        found: dict[str, int] = {}
        for known in (self._asker.absent, self._volume.told_absent.ends):
            for (parent, name), end_ns in known.items():
                if parent == directory and end_ns > now_ns:
                    found[name] = max(end_ns, found.get(name, 0))
        return found

    def count_absent(self) -> int:
        """Count the names that are known not to be anywhere."""
        now_ns = self._volume.now_ns()
        known = self._asker.absent | self._volume.told_absent.ends
        return sum(end_ns > now_ns for end_ns in known.values())

    # Directories

    async def ensure_listed(self, inode: Inode) -> Node:
        """Wait until the directory's entries in mount.db are complete and fresh; returns its row."""
        directory = self._volume.directory(inode)
        if not self._lister.is_fresh(directory):
            await self._lister.start(directory).finished()
        return self._volume.directory(inode)

    def knows_entries(self, directory: Node, after: int) -> bool:
        """Whether mount.db has all entries of a directory that somebody reads now; no: S3 has to be asked, or is being asked."""
        if (
            not directory.listed_ns
            or (after == 0 and not self._lister.is_fresh(directory) and not self._volume.is_offline)
            or self._lister.running(directory.id) is not None
        ):
            return False
        if after == 0:
            self._note_listing(directory.id, is_hit=True)
        return True

    def known_entries(self, directory: Node, after: int, limit: int) -> Iterable[Entry]:
        """Yield entries as `entries` returns them, where `knows_entries` says so."""
        return self._entries_of(directory, None, after, limit)

    def _note_listing(self, inode: Inode, *, is_hit: bool) -> None:
        self.listing_hits += is_hit
        self.listing_misses += not is_hit
        log.debug("cache %s: entries of inode %d", "hit" if is_hit else "miss", inode)
        self._lister.note_read(inode)

    async def entries(self, inode: Inode, after: int, limit: int) -> list[Entry]:
        """Return up to *limit* entries with inode numbers above *after*; empty at the end.

        Of a directory that was never listed, entries are given while the listing still runs. When that
        fails, so does this: a directory is never shown in part as if it were all.
        """
        directory = self._volume.directory(inode)
        listing = self._lister.running(inode)
        is_complete = directory.listed_ns > 0
        is_fresh = self._lister.is_fresh(directory)
        if after == 0:
            self._note_listing(inode, is_hit=is_fresh)
        is_out_of_date = after == 0 and not is_fresh and not self._volume.is_offline
        if listing is None and (not is_complete or is_out_of_date):
            listing = self._lister.start(directory)
        if listing is not None and not listing.streams and (after == 0 or not is_complete):
            try:
                await listing.finished()
            except Unavailable:
                if not (is_complete and self._volume.is_offline):
                    raise
                listing = None
        while True:
            entries = self.entries_now(inode, after, limit)
            if not entries and listing is not None and listing.done.is_set():
                listing.raise_failure()
                entries = self.entries_now(inode, after, limit)
                listing = None
            if not entries and listing is None:
                self._lister.note_read(inode)  # what a walk does next, it does after the end
            if entries or listing is None:
                return entries
            await listing.next_page()

    def entries_now(self, inode: Inode, after: int, limit: int) -> list[Entry]:
        """Return as `entries` what can be shown without waiting."""
        directory = self._volume.directory(inode)
        return list(self._entries_of(directory, self._lister.running(inode), after, limit))

    def _entries_of(
        self, directory: Node, listing: Listing | None, after: int, limit: int
    ) -> Iterator[Entry]:
        """Yield what can be shown of a directory; no checkpoint before the last."""
        now_ns = self._volume.now_ns()
        ttl_s = self._volume.settings.metadata_ttl_s
        listed_s, listed_after, up_to = self._listed_for_s(directory, now_ns), 0, MAX_INODE
        if not directory.listed_ns:
            if listing is None or not listing.streams:
                return
            listed_s, listed_after, up_to = ttl_s, listing.known_up_to, listing.shown_up_to
        later_ns = now_ns - int((ttl_s - listed_s) * NS)
        for node in self._volume.nodes.listed(directory.id, after=after, up_to=up_to, limit=limit):
            if node.seen_ns <= later_ns and node.id > listed_after:
                yield Entry(node, listed_s)
            else:
                seen_s = min(ttl_s - (now_ns - node.seen_ns) / NS, ttl_s)
                yield Entry(node, max(listed_s if node.id > listed_after else 0.0, seen_s))

    async def is_empty(self, directory: Node) -> bool:
        """Whether a directory has no entry and no hidden key, by a listing that is fresh."""
        directory = await self.ensure_listed(directory.id)
        nodes = self._volume.nodes
        return not nodes.count_children(directory.id, limit=1) and not nodes.has_hidden(
            directory.id
        )

    def marker_wanted(self, directory: Inode) -> bool:
        """Whether a directory would vanish from S3 now that an entry left it, or may: what else it had, others may have removed."""
        nodes = self._volume.nodes
        node = nodes.get(directory)
        if node is None or node.id == ROOT or node.is_detached or node.marker != Marker.NONE:
            return False
        if self._volume.is_offline or self._lister.is_fresh(node):
            return not nodes.count_children(directory, limit=1)
        return not any(
            self._asker.is_known(node, child.name or "", child)
            for child in nodes.children(directory, limit=WITNESSES)
        )
