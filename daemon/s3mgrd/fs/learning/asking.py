"""Single names asked of S3, each by as few requests as the next ones may share.

What a name leads to takes two questions: is there an object, and is there anything below? One page of its
directory's listing that begins at the name answers both, and the same for the next thousand names. The first name
asked for in a directory costs the directory's first page: most directories are listed with it. Where it does not reach the name,
the page that begins at the name comes next. Whoever asks for more finds them there; a second one in the same page has the
page behind it fetched ahead. Beside the first page goes a listing of what lies below the name, unless it is like a
file's: if that turns out to be a directory, the next step of a path is known with it. Where a page cannot tell (thousands of
names begin like this one), or does not come, the name is asked for alone.

Concurrency: one page of a directory is under way at a time, as a task of *nursery*; who asks meanwhile waits for it.
"""

import logging
from typing import Final, NamedTuple

import trio

from s3mgrd.cache.nodes import ROOT, STALE_NS, Inode, Kind, Node
from s3mgrd.errors import NotFound, S3mgrError
from s3mgrd.fs.learning.listing import Lister
from s3mgrd.fs.learning.merging import Learned, Span
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.names import MAX_KEY_BYTES, check_key, is_like_a_file, order
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.counting import Waiting
from s3mgrd.s3.port import ListPage, ObjectHead

log = logging.getLogger(__name__)

SMALL_DIRECTORY: Final = 1000
"""Entries: up to so many one page lists, so that asking for one name and asking for all cost the same."""
BURST: Final = 8
"""Pages asked for in one directory within `BURST_NS`, each for one name; more, and the directory is listed."""
BURST_NS: Final = 5 * NS
MAX_ABSENT: Final = 65_536
MAX_ENDS: Final = 4096
MIN_TTL_S: Final = 2.0
"""With less, what a page tells of other names would be out of date when somebody asks for them."""
MAX_PROBES: Final = 4
"""Looks at a name while what lies there is on its way elsewhere."""
PATIENCE: Final = 2
"""Pages of a listing under way for which a name waits."""
FIRST_PRINTABLE: Final = 0x20
LAST: Final = "\U0010ffff"
"""Sorts behind everything that names are likely to have."""


class _End(NamedTuple):
    """Where a page began and ended, and for the sake of which name it was asked for; empty: ahead."""

    low: str
    end: str
    name: str


class Asker:
    """Asks S3 about names of one volume."""

    def __init__(
        self, volume: Volume, nursery: trio.Nursery, lister: Lister, metadata: Metadata
    ) -> None:
        self._volume = volume
        self._nursery = nursery
        self._lister = lister
        self._metadata = metadata
        self.absent: dict[tuple[Inode, str], int] = {}
        """Names that were asked for alone and are not there, and until when that is believed."""
        self._asked: dict[Inode, list[int]] = {}
        self._looks: dict[Inode, trio.Event] = {}
        self._ends: dict[Inode, _End] = {}
        """Of the last page of a directory, until the one behind it is asked for."""

    def is_known(self, directory: Node, name: str, node: Node | None) -> bool:
        """Whether mount.db's answer for *name* may be given without asking S3."""
        if self._lister.is_fresh(directory):
            return True
        settings = self._volume.settings
        now_ns = self._volume.now_ns()
        covered_ns = self._volume.covered.as_of_ns(directory.id, name)
        if node is None:
            return (
                self.absent.get((directory.id, name), 0) > now_ns
                or 0 <= now_ns - covered_ns < settings.negative_ttl_s * NS
            )
        if 0 <= now_ns - max(node.seen_ns, covered_ns) < settings.metadata_ttl_s * NS:
            return True
        return not node.is_directory and self._volume.is_ours_alone(node)

    def was_absent(self, directory: Node, name: str) -> bool:
        """Whether a name was not there when S3 was last asked about it, however long ago."""
        return (
            directory.listed_ns > 0
            or (directory.id, name) in self.absent
            or self._volume.covered.as_of_ns(directory.id, name) > 0
        )

    def forget(self) -> None:
        """Have no name be taken for absent without asking."""
        self.absent.clear()

    def may_show(self, directory: Node, node: Node) -> bool:
        """Whether a known row has the attributes that the policy wants shown; has the names behind it fetched ahead."""
        if self._lister.is_fresh(directory):
            return True
        self._read_on(directory.id, node.name or "")
        return not self._metadata.wants(node)

    async def show(self, directory: Node, node: Node) -> Node | None:
        """Return a known row once its attributes are what the policy wants shown."""
        if self.may_show(directory, node):
            return node
        await self._metadata.show(node)
        return self._volume.nodes.find(directory.id, node.name or "")

    async def ask(self, directory: Node, name: str) -> None:
        """Bring mount.db up to date about one name, by its directory's listing where that is as cheap.

        Raises OSError: ENAMETOOLONG, S3 would not even be asked for such a key.
        """
        check_key(self._volume.prefix_in_s3(directory) + name)
        children = self._volume.nodes.count_children(directory.id, limit=SMALL_DIRECTORY + 1)
        if directory.listed_ns > STALE_NS and children <= SMALL_DIRECTORY:
            await self._lister.start(directory).finished()
            if self._lister.is_fresh(self._volume.directory(directory.id)):
                return
        elif self._volume.settings.metadata_ttl_s >= MIN_TTL_S and await self._look(
            directory, name
        ):
            await self._know_directory(directory.id, name)
            return
        await self._ask_alone(directory, name)

    # By a page

    async def _look(self, directory: Node, name: str) -> bool:
        """Have a page tell about a name; returns whether one did."""
        if self._lister.running(directory.id) is not None:
            return await self._await_listing(directory.id, name)
        if directory.id in self._looks:
            with Waiting():
                await self._looks[directory.id].wait()
            if self._is_covered(directory.id, name):
                return True
        low = _before(name)
        prefix = self._volume.prefix_in_s3(directory)
        if directory.id in self._looks or len((prefix + low).encode()) > MAX_KEY_BYTES:
            return False
        if self._is_burst(directory.id):
            self._lister.start(directory)
            return await self._await_listing(directory.id, name)
        if self._volume.covered.has(directory.id):
            with Waiting():
                await self._begin_page(directory.id, low, name).wait()
        else:
            await self._look_first(directory, prefix, name)
            if self._may_look_on(directory.id, name):
                with Waiting():
                    await self._begin_page(directory.id, low, name).wait()
        return self._is_covered(directory.id, name)

    def _may_look_on(self, directory: Inode, name: str) -> bool:
        """Whether the first page of a directory did not reach a name, and nobody asks for another."""
        return (
            directory in self._ends
            and directory not in self._looks
            and self._lister.running(directory) is None
            and not self._is_covered(directory, name)
        )

    async def _await_listing(self, directory: Inode, name: str) -> bool:
        """Wait for a listing under way to come past a name, not for long; returns whether it did."""
        listing = self._lister.running(directory)
        last = listing.pages + PATIENCE if listing is not None else 0
        while (listing := self._lister.running(directory)) is not None:
            if self._is_covered(directory, name) or listing.pages >= last:
                break
            try:
                await listing.next_page()
            except S3mgrError as error:
                log.debug("the listing of inode %d does not help: %s", directory, error)
                return False
        return self._is_covered(directory, name)

    async def _look_first(self, directory: Node, prefix: str, name: str) -> None:
        """Ask for a directory's first page, which is all of most, and at once for what is likely to be wanted next.

        That is what is inside of the name, unless it is like a file's; and its attributes, where those of an object would be asked for.
        """
        volume = self._volume
        head: ObjectHead | None = None
        inside: ListPage | None = None
        volume.changes.begin()
        asked = self._lister.merger.moment()
        try:
            done = self._begin_page(directory.id, "", name)

            of_object = trio.CancelScope()

            async def ask_object() -> None:
                nonlocal head
                with of_object:
                    head = await self._metadata.ask_ahead(directory.id, prefix + name)

            async def ask_inside() -> None:
                nonlocal inside
                inside = await volume.store.list_page(f"{prefix}{name}/", delimited=True)

            with Waiting():
                async with side_by_side() as nursery:
                    if self._expects_object(directory, name):
                        nursery.start_soon(ask_object)
                    if not is_like_a_file(name):
                        nursery.start_soon(ask_inside)
                    await done.wait()
                    node = volume.nodes.find(directory.id, name)
                    if node is None or node.is_directory:
                        of_object.cancel()
            node = volume.nodes.find(directory.id, name)
            if node is None or volume.changes.is_newer(directory.id, name, asked.changes_seen):
                return
            if node.is_directory and inside is not None:
                self._lister.adopt(node, f"{prefix}{name}/", inside, asked)
            elif head is not None and head.etag == node.etag:
                self._metadata.learn(node, head, may_renew=True)
        finally:
            volume.changes.end()

    def _expects_object(self, directory: Node, name: str) -> bool:
        """Whether a name is likely to be an object, and if it is one, S3 has to be asked for its attributes."""
        if self._metadata.is_bare(directory.id):
            return False
        # In the root of a bucket, what is not like a file hardly ever is one.
        is_likely = directory.id != ROOT or is_like_a_file(name)
        return self._metadata.wants_all() or (is_likely and self._metadata.has_samples_left)

    def _begin_page(self, directory: Inode, low: str, name: str = "") -> trio.Event:
        """Begin to ask for the page behind *low*, for the sake of *name*; empty: ahead."""
        done = self._looks[directory] = trio.Event()
        self._ends.pop(directory, None)
        self._nursery.start_soon(self._run_page, directory, low, name, done)
        return done

    async def _run_page(self, directory: Inode, low: str, name: str, done: trio.Event) -> None:
        self._volume.changes.begin()
        try:
            await self._page(self._volume.directory(directory), low, name)
        except (S3mgrError, OSError) as error:
            log.debug("names of inode %d cannot be listed: %s", directory, error)
        finally:
            self._volume.changes.end()
            del self._looks[directory]
            done.set()

    async def _page(self, directory: Node, low: str, name: str) -> None:
        volume, merger = self._volume, self._lister.merger
        if directory.is_detached:
            return
        prefix = volume.prefix_in_s3(directory)
        learned = Learned(directory.id, prefix, merger.moment())
        page = await volume.store.list_page(
            prefix, delimited=True, start_after=prefix + low if low else None
        )
        if not self._lister.may_merge(directory.id, prefix, learned.asked):
            return
        is_last = page.next_token is None
        if is_last and not low:
            listing = self._lister.adopt(directory, prefix, page, learned.asked)
            while (
                listing is not None
                and not listing.done.is_set()
                and not self._is_covered(directory.id, name)
            ):
                await listing.next_page()
            return
        span = Span(position=low)
        merger.merge(learned, span, page, is_last=is_last)
        if learned.is_uncertain:
            return
        end = None if is_last else span.position
        merger.note_seen(learned, low, end)
        volume.covered.add(directory.id, low, end, learned.asked.time_ns)
        if end is not None:
            if len(self._ends) >= MAX_ENDS:
                self._ends.clear()
            self._ends[directory.id] = _End(low, end, name)

    def _read_on(self, directory: Inode, name: str) -> None:
        """Fetch the next page of names ahead when somebody finds one in the last."""
        last = self._ends.get(directory)
        if (
            last is not None
            and name != last.name
            and order(name) > order(last.low)
            and directory not in self._looks
            and self._lister.running(directory) is None
        ):
            self._begin_page(directory, last.end)

    def _is_covered(self, directory: Inode, name: str) -> bool:
        node = self._volume.nodes.find(directory, name)
        return self.is_known(self._volume.directory(directory), name, node)

    # Alone

    async def _ask_alone(self, directory: Node, name: str) -> None:
        prefix = self._volume.prefix_in_s3(directory)
        begun = self._volume.changes.begin()
        try:
            head, below = await self._probe(prefix, name)
            changes, current = self._volume.changes, self._volume.directory(directory.id)
            if not current.is_detached and self._volume.prefix_in_s3(current) != prefix:
                # Its rename ended meanwhile: what was seen is what is left at the old place.
                await self._ask_alone(current, name)
                return
            if (
                changes.is_newer(directory.id, name, begun)
                or changes.is_key_newer(prefix + name, begun)
                or changes.is_newer_below(f"{prefix}{name}/", begun)
            ):
                return
            self._apply(directory, name, head, is_directory=bool(below))
        finally:
            self._volume.changes.end()
        if f"{prefix}{name}/" in below:
            await self._know_directory(directory.id, name)

    async def _know_directory(self, parent: Inode, name: str) -> None:
        """Learn the attributes that a directory's marker keeps, before it is shown."""
        node = self._volume.nodes.find(parent, name)
        if node is not None and node.is_directory and not node.attributes_known:
            await self._metadata.know(node.id)

    async def _probe(self, prefix: str, name: str) -> tuple[ObjectHead | None, set[str]]:
        """Ask at once whether a name is an object and which keys lie below it: one at least of a directory, its marker first."""
        key = prefix + name
        for _ in range(MAX_PROBES):
            leaving = self._volume.leaving_below(key)
            places = self._volume.leaving_inside(key + "/")
            is_alone = not leaving and not places
            head, found = await self._probe_once(key, max_keys=1 if is_alone else 1000)
            # What was written meanwhile to where it is not wanted any more may be all that was found.
            added = self._volume.leaving_below(key) - leaving
            leaving |= added
            places += self._volume.leaving_inside(key + "/")
            if not added:
                break
        below = {k for k in found - leaving if not k.startswith(tuple(places))}
        if key in leaving:
            head = None
        if self._volume.is_leaving(key + "/", seen_from=prefix):
            below.clear()
        return head, below

    async def _probe_once(self, key: str, *, max_keys: int) -> tuple[ObjectHead | None, set[str]]:
        head: ObjectHead | None = None

        async def ask_object() -> None:
            nonlocal head
            try:
                head = await self._volume.store.head(key)
            except NotFound:
                head = None

        async with side_by_side() as nursery:
            nursery.start_soon(ask_object)
            page = await self._volume.store.list_page(key + "/", delimited=False, max_keys=max_keys)
        return head, {info.key for info in page.objects}

    def _apply(
        self, directory: Node, name: str, head: ObjectHead | None, *, is_directory: bool
    ) -> None:
        volume = self._volume
        now_ns = volume.now_ns()
        with volume.database.transaction():
            node = volume.nodes.find(directory.id, name)
            if node is not None and not self._is_same(node, head, is_directory=is_directory):
                if volume.is_ours_alone(node):
                    return
                volume.detach(node)
                node = None
            if is_directory:
                inode = (
                    node.id
                    if node
                    else volume.nodes.insert(directory.id, name, Kind.DIRECTORY, now_ns)
                )
                volume.nodes.update(inode, seen_ns=now_ns)
            elif head is not None:
                if node is None:
                    inode = volume.nodes.insert(
                        directory.id, name, Kind.FILE, head.mtime_ns,
                        size=head.size, etag=head.etag,
                        remote_mtime_ns=volume.date_in_s3(directory.id, head.mtime_ns),
                    )  # fmt: skip
                    node = volume.node(inode)
                node = self._metadata.learn(node, head, may_renew=True)
                volume.nodes.update(node.id, seen_ns=now_ns)
            else:
                self._note_absent(directory.id, name, now_ns)

    def _is_same(self, node: Node, head: ObjectHead | None, *, is_directory: bool) -> bool:
        if is_directory or head is None:
            return node.is_directory and is_directory
        return not node.is_directory and node.etag == head.etag

    def _note_absent(self, directory: Inode, name: str, now_ns: int) -> None:
        if len(self.absent) >= MAX_ABSENT:
            self.absent.clear()
        self.absent[directory, name] = now_ns + int(self._volume.settings.negative_ttl_s * NS)

    def _is_burst(self, directory: Inode) -> bool:
        now_ns = self._volume.now_ns()
        times = [t for t in self._asked.get(directory, []) if now_ns - t < BURST_NS]
        times.append(now_ns)
        self._asked[directory] = times
        if len(times) < BURST:
            return False
        del self._asked[directory]
        return True


def _before(name: str) -> str:
    """Return a place just before a name, behind which a listing tells of it first."""
    last = ord(name[-1])
    if last <= FIRST_PRINTABLE:
        return name[:-1]
    return name[:-1] + chr(0xD7FF if last == 0xE000 else last - 1) + LAST
