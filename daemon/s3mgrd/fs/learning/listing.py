"""Directories learned from S3: one listing for everyone who waits, merged page by page into mount.db.

Concurrency: at most one listing of a directory is under way; it runs as a task of the lister's nursery, so that it
goes on when the first who wanted it is gone. A walk that passes a directory is the listing of it for whoever
asks meanwhile (`s3mgrd.fs.learning.walks`). The next page is asked for while one is merged and its attributes are fetched.

A directory that turns out to be large is listed by several ranges of its names side by side: whoever lists a range
gives the half that is farther away to another, as long as fewer than `PARALLEL` are at work. Where the names are is not
known, so some halves are empty; their number is bounded by that of the pages.
"""

import logging
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.fs.learning.arrivals import Listing
from s3mgrd.fs.learning.merging import Learned, Merger, Moment, Span, passes
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.learning.ranges import middle
from s3mgrd.fs.learning.walks import Walks
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.port import ListPage

log = logging.getLogger(__name__)

MAX_KNOWN: Final = 2048
"""A directory of which more names than these are known from single requests is not shown before it is listed."""
PARALLEL: Final = 4
SPLIT_AFTER: Final = 3
"""Pages after which a directory counts as large."""


class _Moved(Exception):
    """S3 has the directory's contents elsewhere by now than where they were asked for."""


class Lister:
    """Lists directories of one volume."""

    def __init__(self, volume: Volume, nursery: trio.Nursery, metadata: Metadata) -> None:
        self._volume = volume
        self._nursery = nursery
        self._metadata = metadata
        self.merger = Merger(volume)
        self._running: dict[Inode, Listing] = {}
        self._walks = Walks(
            volume, nursery, self.merger, metadata, self._running, self._deliver, self._list_alone
        )

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
            listing = self._begin(directory)
            if not self._walks.take(directory, listing):
                self._list_alone(listing)
        return listing

    def adopt(self, directory: Node, prefix: str, page: ListPage, asked: Moment) -> Listing | None:
        """Take the first page of a directory, asked for ahead, for its listing if it is all of it; None: it is not.

        The caller has called `Changes.begin` before *asked*, and `end` not yet.
        """
        if page.next_token is not None or not self.may_merge(directory.id, prefix, asked):
            return None
        if not any(info.key == prefix for info in page.objects):
            self._volume.nodes.update(directory.id, attributes_known=1)  # no marker to have any
        listing = self._begin(directory)
        listing.begun = (Learned(directory.id, prefix, asked), Span())
        listing.first_page = page
        self._list_alone(listing)
        return listing

    def may_merge(self, directory: Inode, prefix: str, asked: Moment) -> bool:
        """Whether a page asked for at a moment may be merged now: no listing is at it, nothing newer is known, and it has not moved."""
        node = self._volume.nodes.get(directory)
        return (
            node is not None
            and node.is_directory
            and not node.is_detached
            and directory not in self._running
            and node.listed_ns <= asked.time_ns
            and self._walks.inside_since(directory) is None
            and self.merger.is_current(asked)
            and self._volume.prefix_in_s3(node) == prefix
        )

    def _begin(self, directory: Node) -> Listing:
        since = self._walks.inside_since(directory.id)
        known_up_to = since or Inode(self._volume.nodes.last_inode())
        listing = Listing(directory.id, self._may_stream(directory, known_up_to), known_up_to)
        self._volume.changes.begin()
        self._running[directory.id] = listing
        return listing

    def note_read(self, directory: Inode) -> None:
        """Note that a program begins to read a directory's entries."""
        self._walks.note_read(directory)

    def forget(self) -> None:
        """Have nothing be trusted that S3 is telling now: somebody knows better."""
        self.merger.outdate()

    def _may_stream(self, directory: Node, up_to: Inode) -> bool:
        """Whether the entries of a directory up to that inode may be shown before the listing has confirmed them."""
        if directory.listed_ns:
            return False
        known = self._volume.nodes.children(directory.id, up_to=up_to, limit=MAX_KNOWN + 1)
        oldest_ns = self._volume.now_ns() - int(self._volume.settings.metadata_ttl_s * NS)
        wants = self._metadata.may_want()
        return len(known) <= MAX_KNOWN and all(
            (node.seen_ns > oldest_ns and (node.attributes_known or not wants))
            or self._volume.is_ours_alone(node)
            for node in known
        )

    def _deliver(self, listing: Listing, error: BaseException | None = None) -> None:
        """End a listing: mount.db has the directory, or *error* says why not."""
        listing.error = error
        self._volume.changes.end()
        del self._running[listing.directory]
        listing.announce()
        listing.done.set()

    def _list_alone(self, listing: Listing) -> None:
        self._walks.leave(listing.directory)
        self._nursery.start_soon(self._run, listing)

    async def _run(self, listing: Listing) -> None:
        try:
            await self._list(listing)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits; the table of errnos judges it
            log.debug("listing of inode %d failed: %s", listing.directory, error)
            self._deliver(listing, error)
        except BaseException:
            self._deliver(listing)
            raise
        else:
            self._deliver(listing)

    async def _list(self, listing: Listing) -> None:
        while True:
            directory = self._volume.directory(listing.directory)
            if directory.is_detached:
                return  # whoever has it open sees it as it was; S3 has no place for it any more
            if listing.begun is not None:
                learned, span = listing.begun
            else:
                prefix = self._volume.prefix_in_s3(directory)
                learned, span = Learned(directory.id, prefix, self.merger.moment()), Span()
            try:
                async with side_by_side() as nursery:
                    work = _OneDirectory(
                        self._volume, self._metadata, self.merger, listing, learned, nursery
                    )
                    await work.run(span)
            except _Moved:
                listing.begun = listing.first_page = None
                continue
            self.merger.complete(learned)
            return


class _OneDirectory:
    """The work on one directory: ranges of its names, each passed by a task of *nursery*."""

    def __init__(
        self,
        volume: Volume,
        metadata: Metadata,
        merger: Merger,
        listing: Listing,
        learned: Learned,
        nursery: trio.Nursery,
    ) -> None:
        self._volume = volume
        self._metadata = metadata
        self._merger = merger
        self._listing = listing
        self._learned = learned
        self._nursery = nursery
        self._running = 0
        self._pages = 0
        self._empty = 0
        self._alphabet: set[str] = set()
        self._unshown: set[Inode] = set()
        """Of pages that are merged and lack attributes: the highest inode number before each."""

    async def run(self, span: Span) -> None:
        """Pass a range, and start tasks for what is split off."""
        await self._pass(span)

    async def _pass(self, span: Span) -> None:
        self._running += 1
        try:
            page = self._listing.first_page or await self._ask(span, None)
            self._listing.first_page = None
            if not (page.objects or page.prefixes):
                self._empty += 1
            while not span.is_done:
                page = await self._merge_and_ask(span, page)
        finally:
            self._running -= 1

    async def _ask(self, span: Span, token: str | None) -> ListPage:
        prefix = self._learned.prefix
        first = prefix + span.position if span.position else None
        return await self._volume.store.list_page(
            prefix, delimited=True, token=token, start_after=None if token else first
        )

    async def _merge_and_ask(self, span: Span, page: ListPage) -> ListPage:
        """Merge a page while the next one of its range is on its way; returns that, or *page* where it was the last."""
        following = page
        async with side_by_side() as nursery:

            async def ask() -> None:
                nonlocal following
                following = await self._ask(span, page.next_token)

            is_last = page.next_token is None or passes(page, self._learned.prefix, span.stop)
            if not is_last:
                nursery.start_soon(ask)
            await self._merge(span, page, is_last=is_last)
        return following

    async def _merge(self, span: Span, page: ListPage, *, is_last: bool) -> None:
        volume = self._volume
        directory = volume.directory(self._learned.directory)
        if directory.is_detached or volume.prefix_in_s3(directory) != self._learned.prefix:
            raise _Moved
        low, before = span.position, Inode(volume.nodes.last_inode())
        files = self._merger.merge(self._learned, span, page, is_last=is_last)
        self._pages += 1
        self._listing.pages += 1
        if not is_last:
            self._share(span, page)
        if self._merger.is_current(self._learned.asked) and not self._learned.is_uncertain:
            end = span.stop if is_last else span.position
            volume.covered.add(self._learned.directory, low, end, self._learned.asked.time_ns)
        if files and self._metadata.may_want():
            self._unshown.add(before)
            # Who waits for one name need not wait for the attributes of others.
            self._listing.announce()
            await self._metadata.fetch(directory, files)
            self._unshown.remove(before)
        last = Inode(volume.nodes.last_inode())
        self._listing.shown_up_to = min(self._unshown, default=last)
        self._listing.announce()

    def _share(self, span: Span, page: ListPage) -> None:
        """Give a part of what is left to another task, where that may pay."""
        if self._pages < SPLIT_AFTER or self._running >= PARALLEL or self._empty > self._pages // 2:
            return
        skip = len(self._learned.prefix)
        self._alphabet.update(*(info.key[skip:] for info in page.objects))
        self._alphabet.update(*(common[skip:-1] for common in page.prefixes))
        split = middle(span.position, span.stop, self._alphabet)
        if split is not None:
            other = Span(position=split, stop=span.stop)
            span.stop = split
            self._nursery.start_soon(self._pass, other)
