"""Directories learned from S3: one listing for everyone who waits, merged page by page into mount.db.

Concurrency: at most one listing of a directory is under way; it runs as a task of the lister's nursery, so
that it goes on when the first who wanted it is gone. Pages are merged between two awaits. A page is the truth about
the range of names it spans: what mount.db has in that range and the page has not is gone, unless it is ours alone
(not uploaded yet, renamed, or changed after the listing began).
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from s3mgrd.cache.nodes import ROOT, STALE_NS, Inode, Kind, Marker, Node
from s3mgrd.fs import names
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.port import ListPage, ObjectInfo

log = logging.getLogger(__name__)

SHADOWED: Final = "shadowed by a directory of the same name"
MAX_KNOWN: Final = 1000
"""A directory of which more names than these are known from single requests is not shown before it is listed."""


@dataclass
class Listing:
    """A listing under way, and what its waiters need to know."""

    directory: Inode
    streams: bool
    """Nothing that this listing may contradict was known before: entries may be shown while the rest arrives."""
    changes_seen: int
    known_up_to: Inode
    """Entries with higher inode numbers come from this listing."""
    shown_up_to: Inode = ROOT
    """While it streams: entries with higher inode numbers lack attributes that must be known before they are shown."""
    page: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    error: BaseException | None = None

    async def next_page(self) -> None:
        """Wait for one more page or the end. Raises what the listing failed with."""
        await self.page.wait()
        self.raise_failure()

    async def finished(self) -> None:
        """Wait for the end. Raises what the listing failed with."""
        await self.done.wait()
        self.raise_failure()

    def announce(self) -> None:
        """Wake everyone who waits for a page."""
        self.page.set()
        self.page = trio.Event()

    def raise_failure(self) -> None:
        """Raise what the listing failed with; nothing while it runs or when it succeeded."""
        if self.error is not None:
            raise self.error


@dataclass
class _Seen:
    """What the pages so far said of names that a later page may settle."""

    hidden: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    """Objects whose name a local directory has; shown after all if that directory is gone."""
    marker: bool = False
    is_uncertain: bool = False
    position: str = ""


class Lister:
    """Lists directories of one volume. `fetch_attributes` is awaited with the files of each page before they are shown."""

    def __init__(
        self,
        volume: Volume,
        nursery: trio.Nursery,
        fetch_attributes: Callable[[Node, list[Inode]], Awaitable[None]],
    ) -> None:
        self._volume = volume
        self._nursery = nursery
        self._fetch_attributes = fetch_attributes
        self._running: dict[Inode, Listing] = {}

    def is_fresh(self, directory: Node) -> bool:
        """Whether the last complete listing may still be trusted."""
        if directory.listed_ns == 0:
            return False
        age_ns = self._volume.now_ns() - directory.listed_ns
        return 0 <= age_ns < self._volume.settings.metadata_ttl_s * 1e9

    def running(self, directory: Inode) -> Listing | None:
        """Return the listing of *directory* that is under way."""
        return self._running.get(directory)

    def start(self, directory: Node) -> Listing:
        """Begin a listing, or join the one under way."""
        listing = self._running.get(directory.id)
        if listing is None:
            listing = Listing(
                directory.id,
                self._may_stream(directory),
                self._volume.changes.begin(),
                known_up_to=Inode(self._volume.nodes.last_inode()),
            )
            self._running[directory.id] = listing
            self._nursery.start_soon(self._run, listing)
        return listing

    def _may_stream(self, directory: Node) -> bool:
        """Whether what is known of a directory may be shown before the listing has confirmed it."""
        if directory.listed_ns:
            return False
        known = self._volume.nodes.children(directory.id, limit=MAX_KNOWN + 1)
        oldest_ns = self._volume.now_ns() - int(self._volume.settings.metadata_ttl_s * NS)
        return len(known) <= MAX_KNOWN and all(
            node.seen_ns > oldest_ns or self._volume.is_ours_alone(node) for node in known
        )

    async def _run(self, listing: Listing) -> None:
        try:
            await self._list(listing)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits; the table of errnos judges it
            listing.error = error
            log.debug("listing of inode %d failed: %s", listing.directory, error)
        finally:
            self._volume.changes.end()
            del self._running[listing.directory]
            listing.announce()
            listing.done.set()

    async def _list(self, listing: Listing) -> None:
        volume = self._volume
        directory = volume.directory(listing.directory)
        prefix = volume.prefix_in_s3(directory)
        started_ns = volume.now_ns()
        seen = _Seen()
        token: str | None = None
        while True:
            page = await volume.store.list_page(prefix, delimited=True, token=token)
            token = page.next_token
            files = self._merge(directory, prefix, page, seen, listing, is_last=token is None)
            if files:
                await self._fetch_attributes(directory, files)
            if token is None:
                break
            listing.shown_up_to = Inode(volume.nodes.last_inode())
            listing.announce()
        with volume.database.transaction():
            volume.nodes.replace_hidden(
                directory.id, [(names.printable(key), reason) for key, reason in seen.hidden]
            )
            self._settle_marker(directory.id, seen, listing)
            volume.nodes.update(
                directory.id, listed_ns=STALE_NS if seen.is_uncertain else started_ns
            )

    def _settle_marker(self, directory: Inode, seen: _Seen, listing: Listing) -> None:
        node = self._volume.nodes.get(directory)
        if node is None or (node.marker == Marker.WANTED and not seen.marker):
            return
        if node.name is not None and self._volume.changes.is_newer(
            node.parent, node.name, listing.changes_seen
        ):
            return
        marker = Marker.EXISTS if seen.marker else Marker.NONE
        if node.marker != marker:
            self._volume.nodes.update(directory, marker=int(marker))

    # One page

    def _merge(
        self,
        directory: Node,
        prefix: str,
        page: ListPage,
        seen: _Seen,
        listing: Listing,
        *,
        is_last: bool,
    ) -> list[Inode]:
        """Bring mount.db up to a page; return what nobody has asked the attributes of yet."""
        volume = self._volume
        files, directories, end = _sort(prefix, page, seen)
        low, high = seen.position, None if is_last else end
        seen.position = end
        rows = self._rows(directory.id, low, high)
        leaving = volume.leaving_below(prefix)

        def is_ours(name: str) -> bool:
            return volume.changes.is_newer(
                directory.id, name, listing.changes_seen
            ) or volume.changes.is_key_newer(prefix + name, listing.changes_seen)

        without_attributes = []
        with volume.database.transaction():
            for name, info in files.items():
                if info.key in leaving or is_ours(name):
                    continue
                inode = self._see_file(directory.id, name, rows.get(name), info, seen)
                if inode is not None:
                    without_attributes.append(inode)
            for name in directories:
                if not is_ours(name):
                    inode = self._see_directory(directory.id, prefix, name, seen, leaving, listing)
                    if inode is not None:
                        without_attributes.append(inode)
            for name, node in rows.items():
                there = directories if node.is_directory else files
                if name not in there and not is_ours(name) and _is_between(node, low, high):
                    self._see_nothing(directory.id, name, node, seen)
        return without_attributes

    def _rows(self, directory: Inode, low: str, high: str | None) -> dict[str, Node]:
        """Return every entry that may sort after *low* and up to *high*, and few more."""
        low, high = names.bounds(low, high)
        bare = low.removesuffix("/")
        rows = {node.name: node for node in self._volume.nodes.range(directory, bare, high)}
        for name in names.directories_sorting_after(bare):
            node = self._volume.nodes.find(directory, name)
            if node is not None:
                rows[name] = node
        return {name: node for name, node in rows.items() if name is not None}

    def _see_file(
        self, directory: Inode, name: str, node: Node | None, info: ObjectInfo, seen: _Seen
    ) -> Inode | None:
        """Take over an object; return its inode where its attributes are not known."""
        if node is not None and node.is_directory:
            seen.objects[name] = (
                info  # whether the directory is still there, its own place in the order tells
            )
            return None
        if node is None:
            return self._add_file(directory, name, info)
        if node.etag == info.etag and node.remote_key is None:
            if node.remote_mtime_ns is None or node.remote_mtime_ns // NS != info.mtime_ns // NS:
                self._see_touched(node, info)  # HEAD tells whole seconds only
            return node.id if not node.attributes_known else None
        if self._volume.is_ours_alone(node):
            return None
        self._volume.detach(node)
        log.debug("inode %d: another version of %s appeared in S3", node.id, info.key)
        return self._add_file(directory, name, info)

    def _see_touched(self, node: Node, info: ObjectInfo) -> None:
        """The same bytes with another date: their metadata may have been replaced."""
        nodes = self._volume.nodes
        if (
            node.remote_mtime_ns is None or node.attributes_dirty
        ):  # our own write, whose date S3 had not told
            nodes.update(node.id, remote_mtime_ns=info.mtime_ns)
        else:
            nodes.update(
                node.id, remote_mtime_ns=info.mtime_ns, mtime_ns=info.mtime_ns, attributes_known=0
            )

    def _add_file(self, directory: Inode, name: str, info: ObjectInfo) -> Inode:
        return self._volume.nodes.insert(
            directory,
            name,
            Kind.FILE,
            info.mtime_ns,
            size=info.size,
            etag=info.etag,
            remote_mtime_ns=info.mtime_ns,
            seen_ns=0,
        )

    def _see_directory(
        self,
        directory: Inode,
        prefix: str,
        name: str,
        seen: _Seen,
        leaving: set[str],
        listing: Listing,
    ) -> Inode | None:
        """Take over a common prefix; return its inode if it is new here."""
        volume = self._volume
        node = volume.nodes.find(directory, name)
        if node is not None and not node.is_directory:
            if volume.is_ours_alone(node):
                return None
            seen.hidden.append((volume.key_in_s3(node), SHADOWED))
            volume.detach(node)
            node = None
        if node is not None:
            info = seen.objects.pop(name, None)
            if info is not None:
                seen.hidden.append((info.key, SHADOWED))
            return None
        below = f"{prefix}{name}/"
        if (
            any(key.startswith(below) for key in leaving)
            or volume.is_leaving(below, seen_from=prefix)
            or volume.changes.is_newer_below(below, listing.changes_seen)
        ):
            # What S3 still shows below may be only what we are about to delete: ask again later.
            seen.is_uncertain = True
            return None
        return volume.nodes.insert(directory, name, Kind.DIRECTORY, volume.now_ns())

    def _see_nothing(self, directory: Inode, name: str, node: Node, seen: _Seen) -> None:
        """An entry that S3 no longer has, unless it is ours alone."""
        if self._volume.is_ours_alone(node):
            return
        self._volume.detach(node)
        info = seen.objects.pop(name, None)
        if info is not None:
            self._add_file(directory, name, info)


def _sort(
    prefix: str, page: ListPage, seen: _Seen
) -> tuple[dict[str, ObjectInfo], dict[str, None], str]:
    """Split a page into files and directories by name, and find the end of its range."""
    files: dict[str, ObjectInfo] = {}
    directories: dict[str, None] = {}
    for info in page.objects:
        name = info.key[len(prefix) :]
        if not name:
            seen.marker = True
            if info.size:
                seen.hidden.append((info.key, "directory marker with content"))
        elif reason := names.why_hidden(name):
            seen.hidden.append((info.key, reason))
        else:
            files[name] = info
    for common in page.prefixes:
        name = common[len(prefix) : -1]
        if reason := names.why_hidden(name):
            seen.hidden.append((common, reason))
        else:
            directories[name] = None
    ends = [info.key[len(prefix) :] for info in page.objects[-1:]]
    ends += [common[len(prefix) :] for common in page.prefixes[-1:]]
    return files, directories, max(ends, default=seen.position)


def _is_between(node: Node, low: str, high: str | None) -> bool:
    place = names.sort_key(node.name or "", is_directory=node.is_directory)
    return low < place and (high is None or place <= high)
