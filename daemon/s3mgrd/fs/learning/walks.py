"""Walks: many directories of a tree learned from one flat listing.

find, du, rsync, tar, a loader: they read a directory, then one inside it, then the next. One delimited listing for each
costs a round trip a directory. So when a directory is listed whose parent was just read, or of whose siblings one
was just listed, S3 is asked for the keys of the *parent* without a delimiter, from that directory on. Each page is
cut into what a delimited listing would have told of every directory it passes, and merged by the same rules
(`s3mgrd.fs.learning.merging`). A directory that is passed from its first key to its last is listed.

Waste is bounded. One page costs one request, as the listing of the one directory would. The next is asked for when
somebody waits for what it may tell, or begins to read what the last one told; a walk that nobody follows ends. Who
waits for a directory while `PATIENCE` pages pass that tell nothing of it gets a listing of its own: what lies between is
more than this walk is good for. A walk that was idle goes on from where somebody is, not from where it was.

A program that keeps a stack takes the last directory first. So when a directory is listed that lies before the one listed last, the walk
begins as many directories before it as one page is likely to tell of, ends with it, and another one begins where that one began.

Concurrency: each walk is one task. `Frame`s are the directories that the listing is inside of, outermost first. A
directory is merged by one listing at a time: not where another lists it, and not with a page that was asked for
before what is known. Pages are merged between two checkpoints.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from s3mgrd.cache.nodes import ROOT, Inode, Node
from s3mgrd.errors import S3mgrError
from s3mgrd.fs import names
from s3mgrd.fs.learning.arrivals import Listing
from s3mgrd.fs.learning.merging import Learned, Merger, Moment, Span
from s3mgrd.fs.learning.metadata import Metadata
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.port import MAX_LIST_KEYS, ListPage, ObjectInfo

T = TypeVar("T")

log = logging.getLogger(__name__)

READ_NS: Final = 2 * NS
"""A directory listed so soon after its parent was read is a program's next step, not a person's."""
SIBLING_NS: Final = 60 * NS
"""A program that reads files on its way takes its time from one directory to the next."""
MAX_REMEMBERED: Final = 4096
MAX_WALKS: Final = 4
PATIENCE: Final = 2
USEFUL_SHARE: Final = 4
"""A page is useful to who waits for a directory if at least one of so many of its keys is directly inside."""
LARGE_PAGES: Final = 3
"""A directory that has more pages than these to itself gets a listing of its own."""
IDLE_S: Final = 5.0
MIN_TTL_S: Final = 2.0
"""With less, what a walk tells ahead would be out of date when somebody asks for it."""
AFTER: Final = "\U0010ffff"
"""Sorts behind everything that keys are likely to have."""


@dataclass(slots=True)
class Frame:
    """A directory that the flat listing is inside of."""

    prefix: str
    name: str
    above: "Frame | None" = None
    inode: Inode | None = None
    """None: nothing here is at this prefix; what lies below is not shown or belongs elsewhere."""
    learned: Learned | None = None
    """None: not merged by this walk."""
    span: Span = field(default_factory=Span)
    is_whole: bool = True
    """It is passed from its first key on."""
    is_resolved: bool = False
    is_closed: bool = False
    known_up_to: Inode = ROOT
    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Promise:
    """Somebody waits for a directory that the walk has not reached, or is inside of."""

    listing: Listing
    useless_pages: int = 0
    useful_pages: int = 0


class Walks:
    """Recognises walks on one volume, and runs them in *nursery*.

    Args:
        deliver: ends a listing that a walk was given.
        list_alone: begins the delimited listing of a directory that a walk was given and does not deliver.
        running: the listings under way.
    """

    def __init__(
        self,
        volume: Volume,
        nursery: trio.Nursery,
        merger: Merger,
        metadata: Metadata,
        running: Mapping[Inode, Listing],
        deliver: Callable[[Listing], None],
        list_alone: Callable[[Listing], None],
    ) -> None:
        self.volume = volume
        self.merger = merger
        self.metadata = metadata
        self.deliver = deliver
        self.list_alone = list_alone
        self.running = running
        self._nursery = nursery
        self._walks: list[Walk] = []
        self._read: OrderedDict[Inode, int] = OrderedDict()
        self._listed_in: OrderedDict[Inode, tuple[int, Inode]] = OrderedDict()
        """By directory: when one directly inside it was last listed, and which."""

    def note_read(self, directory: Inode) -> None:
        """Note that a program begins to read a directory's entries."""
        _remember(self._read, directory, self.volume.now_ns())
        for walk in self._walks:
            walk.note_read(directory)

    def take(self, directory: Node, listing: Listing) -> bool:
        """Take a listing over, if a walk passes the directory or should; otherwise it is the caller's."""
        if (
            self.volume.settings.metadata_ttl_s < MIN_TTL_S
            or directory.id == ROOT
            or directory.is_detached
        ):
            return False
        prefix = self.volume.prefix_in_s3(directory)
        sibling_ns, sibling = self._listed_in.get(directory.parent, (None, ROOT))
        is_step = self._is_step(directory, sibling_ns)
        for walk in sorted(self._walks, key=lambda walk: walk.inside(directory.id) is None):
            if walk.take(directory, prefix, listing):
                return True
        if not is_step:
            return False
        parent = self.volume.node(directory.parent)
        above = self.volume.prefix_in_s3(parent)
        if prefix != f"{above}{directory.name}/":
            return False  # a rename of it is under way, and S3 has it elsewhere
        begins_at = self._beginning_before(directory, sibling)
        if begins_at is not None:
            for walk in self._walks:
                walk.end_behind(above)
        if sum(not walk.is_over for walk in self._walks) >= MAX_WALKS:
            return False
        walk = Walk(self, parent, above, begins_at)
        self._walks.append(walk)
        taken = walk.take(directory, prefix, listing)
        self._nursery.start_soon(walk.run)
        return taken

    def _beginning_before(self, directory: Node, sibling: Inode) -> str | None:
        """Return the name from which on a walk that goes backwards had better ask for *directory*; None: it goes forwards.

        *sibling* was listed before.
        """
        nodes = self.volume.nodes
        last = nodes.get(sibling)
        if last is None or last.parent != directory.parent or last.name is None:
            return None
        name = directory.name or ""
        if names.order(last.name) <= names.order(name):
            return None
        keys = 1 + nodes.count_children(last.id, limit=MAX_LIST_KEYS)
        # One less than a page has: it tells that *directory* has ended, too.
        before = max(1, MAX_LIST_KEYS // keys - 1)
        return nodes.directory_before(directory.parent, name, at_most=before)

    def leave(self, directory: Inode) -> None:
        """Have no walk merge a directory any more that it is inside of: another listing does."""
        for walk in self._walks:
            frame = walk.inside(directory)
            if frame is not None:
                frame.learned = None

    def inside_since(self, directory: Inode) -> Inode | None:
        """Return the highest inode number before a walk came to a directory that it is inside of; None: there is none."""
        frames = (walk.inside(directory) for walk in self._walks)
        return next((frame.known_up_to for frame in frames if frame is not None), None)

    def ended(self, walk: "Walk") -> None:
        """Note that a walk is over."""
        self._walks.remove(walk)

    def is_open_elsewhere(self, directory: Inode, walk: "Walk") -> bool:
        """Whether another walk is merging a directory."""
        return any(
            other is not walk and other.inside(directory) is not None for other in self._walks
        )

    def _is_step(self, directory: Node, sibling_ns: int | None) -> bool:
        """Whether listing *directory* looks like a step of a walk; remembers that it is being listed.

        *sibling_ns*: when one beside it was last listed.
        """
        now_ns = self.volume.now_ns()
        read_ns = self._read.get(directory.parent)
        _remember(self._listed_in, directory.parent, (now_ns, directory.id))
        return (read_ns is not None and now_ns - read_ns < READ_NS) or (
            sibling_ns is not None and now_ns - sibling_ns < SIBLING_NS
        )


def _remember(known: OrderedDict[Inode, T], inode: Inode, what: T) -> None:
    known[inode] = what
    known.move_to_end(inode)
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)


class Walk:
    """One flat listing of what lies below *root*, page by page as somebody wants it."""

    def __init__(self, walks: Walks, root: Node, prefix: str, begins_at: str | None) -> None:
        self._walks = walks
        self._begins_at = begins_at
        """The name of a directory in *root*; None: it begins where somebody is."""
        self._volume = walks.volume
        self._merger = walks.merger
        self._prefix = prefix
        self._frames = [Frame(prefix, "", inode=root.id, is_whole=False)]
        self._promised: dict[str, _Promise] = {}
        self._delivered: set[Inode] = set()
        """Directories that the last page told of and nobody had asked for."""
        self._position = ""
        """The last key that was passed."""
        self._start_after = ""
        self._token: str | None = None
        self._shown_up_to = ROOT
        self._wanted = trio.Event()
        self._is_idle = True
        self._is_over = False

    # Who wants what

    def take(self, directory: Node, prefix: str, listing: Listing) -> bool:
        """Promise to deliver a directory, or to have it listed; False: this walk does not pass it any more."""
        if self._is_over or not prefix.startswith(self._prefix) or prefix == self._prefix:
            return False
        frame = next((frame for frame in self._frames if frame.prefix == prefix), None)
        if frame is not None:
            if frame.inode != directory.id or not self._is_good(frame):
                return False
            listing.shown_up_to = self._shown_up_to
        elif names.order(prefix) <= names.order(self._position):
            return False
        elif self._begins_at is not None and not self._position:
            self._jump(f"{self._prefix}{self._begins_at}/")
        elif self._is_idle:
            self._jump(prefix)
        self._promised[prefix] = _Promise(listing)
        self._wanted.set()
        return True

    def note_read(self, directory: Inode) -> None:
        """Go on when somebody begins to read what the last page told of."""
        # What comes after the last page of one that goes backwards was passed before.
        if directory in self._delivered and self._begins_at is None:
            self._wanted.set()

    @property
    def is_over(self) -> bool:
        """Whether it asks for nothing more."""
        return self._is_over

    def end_behind(self, prefix: str) -> None:
        """End if this goes backwards through the directory at *prefix*, and nobody waits for it."""
        if self._begins_at is not None and self._prefix == prefix and not self._promised:
            self._is_over = True
            self._wanted.set()

    def inside(self, directory: Inode) -> Frame | None:
        """Return the frame of a directory that the walk is inside of and merges."""
        return next(
            (f for f in self._frames if f.inode == directory and f.learned is not None), None
        )

    def _is_good(self, frame: Frame) -> bool:
        """Whether what was and will be merged of a directory can be its listing."""
        if frame.learned is None or not frame.is_whole:
            return False
        age_ns = self._volume.now_ns() - frame.learned.asked.time_ns
        return 0 <= age_ns < self._volume.settings.metadata_ttl_s * NS

    def _jump(self, prefix: str) -> None:
        """Go on at a directory farther on: nobody asked for what lies between."""
        self._go_to(_before(prefix))
        while not prefix.startswith(self._frames[-1].prefix):
            self._frames.pop()
        for frame in self._frames:
            self._leave_gap(frame)

    def _go_to(self, start_after: str) -> None:
        self._token = None
        self._start_after = start_after

    def _leave_gap(self, frame: Frame) -> None:
        """Note that keys of a directory were left out before the present start."""
        frame.is_whole = False
        frame.span.position = self._start_after[len(frame.prefix) :]

    # The task

    async def run(self) -> None:
        """Ask for pages while somebody wants them."""
        self._volume.changes.begin()
        try:
            while await self._is_wanted() and await self._next_page():
                pass
        except S3mgrError as error:
            log.debug("the walk below %r ends: %s", self._prefix, error)
        finally:
            self._is_over = True
            self._walks.ended(self)
            self._volume.changes.end()
            for prefix in list(self._promised):
                self._give_up(prefix)

    async def _is_wanted(self) -> bool:
        if not self._promised:
            self._is_idle = True
            with trio.move_on_after(IDLE_S):
                await self._wanted.wait()
        is_wanted = not self._is_over and (bool(self._promised) or self._wanted.is_set())
        self._wanted = trio.Event()
        self._is_idle = False
        return is_wanted

    async def _next_page(self) -> bool:
        """Ask for one page and merge it; returns whether more follow."""
        asked = self._merger.moment()
        page = await self._volume.store.list_page(
            self._prefix,
            delimited=False,
            token=self._token,
            start_after=None if self._token else self._start_after,
        )
        if not self._merger.is_current(asked):
            return False
        self._token = page.next_token
        touched = self._cut(page)
        found = self._merge(touched, asked)
        if self._walks.metadata.may_want():
            await self._fetch_attributes(found)
        self._shown_up_to = Inode(self._volume.nodes.last_inode())
        self._settle(touched, page)
        return page.next_token is not None

    def _cut(self, page: ListPage) -> list[Frame]:
        """Cut a page into what every directory has of it; returns their frames, each after the one it is inside of."""
        touched = list(self._frames)
        stack = self._frames
        for info in page.objects:
            while not info.key.startswith(stack[-1].prefix):
                stack.pop().is_closed = True
            top = stack[-1]
            start = len(top.prefix)
            while (end := info.key.find("/", start)) >= 0:
                prefix = info.key[: end + 1]
                top.prefixes.append(prefix)
                top = Frame(prefix, info.key[start:end], above=top)
                if self._start_after.startswith(prefix):
                    self._leave_gap(top)
                stack.append(top)
                touched.append(top)
                start = end + 1
            top.objects.append(info)
        if page.next_token is None:
            for frame in stack:
                frame.is_closed = True
        return touched

    # Merging

    def _merge(self, touched: list[Frame], asked: Moment) -> list[tuple[Node, list[Inode]]]:
        """Merge the directories of a page; returns whose entries lack attributes."""
        volume = self._volume
        known_up_to = Inode(volume.nodes.last_inode())
        leaving = volume.leaving_below(self._prefix)
        found = []
        with volume.database.transaction():
            for frame in touched:
                is_new = not frame.is_resolved
                if is_new:
                    self._resolve(frame, asked, known_up_to)
                elif frame.learned is not None and not self._is_in_place(frame):
                    frame.inode = frame.learned = None
                if frame.learned is not None and (
                    frame.objects or frame.prefixes or frame.is_closed
                ):
                    page = ListPage(frame.objects, frame.prefixes, None)
                    inodes = self._merger.merge(
                        frame.learned,
                        frame.span,
                        page,
                        is_last=frame.is_closed,
                        is_empty=is_new and frame.inode is not None and frame.inode > known_up_to,
                        leaving=leaving,
                    )
                    if inodes:
                        found.append((frame.learned.directory, inodes))
        return [(node, inodes) for d, inodes in found if (node := volume.nodes.get(d)) is not None]

    def _resolve(self, frame: Frame, asked: Moment, known_up_to: Inode) -> None:
        """Find what lies at a prefix here, and whether this walk is to merge it."""
        volume = self._volume
        frame.is_resolved = True
        frame.known_up_to = known_up_to
        above = frame.above
        if above is None:
            if not self._is_in_place(frame):
                frame.inode = None
                return
            node = volume.nodes.get(frame.inode or 0)
        elif above.inode is None or names.why_hidden(frame.name):
            return
        elif volume.changes.is_newer(above.inode, frame.name, asked.changes_seen):
            return  # made or renamed here since: what S3 has below may belong to its predecessor
        else:
            node = volume.nodes.find(above.inode, frame.name)
        if node is None or not node.is_directory or (above and node.remote_prefix is not None):
            return
        frame.inode = node.id
        running = self._walks.running.get(node.id)
        promise = self._promised.get(frame.prefix)
        if (
            (running is None or (promise is not None and promise.listing is running))
            and node.listed_ns <= asked.time_ns
            and not self._walks.is_open_elsewhere(node.id, self)
        ):
            frame.learned = Learned(node.id, frame.prefix, asked)

    def _is_in_place(self, frame: Frame) -> bool:
        """Whether S3 still has a directory's contents at the frame's prefix."""
        node = self._volume.nodes.get(frame.inode or 0)
        return (
            node is not None
            and not node.is_detached
            and self._volume.prefix_in_s3(node) == frame.prefix
        )

    async def _fetch_attributes(self, found: list[tuple[Node, list[Inode]]]) -> None:
        async with side_by_side() as nursery:
            for node, inodes in found:
                nursery.start_soon(self._walks.metadata.fetch, node, inodes)

    # What a page settled

    def _settle(self, touched: list[Frame], page: ListPage) -> None:
        """Complete the directories that a page ends, and tell who waits."""
        if page.objects:
            self._position = page.objects[-1].key
        self._delivered.clear()
        with self._volume.database.transaction():
            for frame in touched:
                if frame.learned is None:
                    continue
                if frame.prefix not in self._promised:
                    self._delivered.add(frame.learned.directory)
                if frame.is_closed and frame.is_whole:
                    self._merger.complete(frame.learned)
        by_prefix = {frame.prefix: frame for frame in touched}
        for prefix in list(self._promised):
            self._settle_promise(prefix, by_prefix.get(prefix), page)
        for frame in touched:
            frame.objects, frame.prefixes = [], []

    def _settle_promise(self, prefix: str, frame: Frame | None, page: ListPage) -> None:
        promise = self._promised[prefix]
        if frame is not None and (frame.is_closed or frame.learned is None):
            if frame.is_closed and frame.learned is not None and frame.is_whole:
                del self._promised[prefix]
                self._walks.deliver(promise.listing)
            else:
                self._give_up(prefix)
        elif page.next_token is None or (
            frame is None and names.order(prefix) <= names.order(self._position)
        ):
            self._give_up(prefix)  # S3 has nothing there any more, or somebody else is at it
        elif frame is not None and len(frame.objects) * USEFUL_SHARE >= len(page.objects):
            promise.useful_pages += 1
            promise.listing.shown_up_to = self._shown_up_to
            promise.listing.announce()
            if promise.useful_pages >= LARGE_PAGES and self._frames[-1] is frame:
                self._hand_over(prefix, frame)
        else:
            promise.useless_pages += 1
            if promise.useless_pages >= PATIENCE:
                self._give_up(prefix, frame)

    def _hand_over(self, prefix: str, frame: Frame) -> None:
        """Leave a large directory to a listing of its own, which uses several ranges at once, and go on behind it."""
        promise = self._promised[prefix]
        assert frame.learned is not None  # noqa: S101 - its pages were merged
        promise.listing.begun = (frame.learned, frame.span)
        self._give_up(prefix, frame)
        self._frames.pop()
        self._go_to(prefix[:-1] + "/" + AFTER)

    def _give_up(self, prefix: str, frame: Frame | None = None) -> None:
        """Have a directory listed by itself."""
        if frame is not None:
            frame.learned = None
        self._walks.list_alone(self._promised.pop(prefix).listing)


def _before(prefix: str) -> str:
    """Return where to start so that *prefix* itself is the first thing told, but for what nobody calls a file."""
    return prefix[:-1] + "." + AFTER
