"""What the waiters of a listing need to know: pages that arrive, the end, or the failure.

Who lists is another's business: the directory's own listing (`s3mgrd.fs.learning.listing`), or a walk that passes it
(`s3mgrd.fs.learning.walks`).
"""

from dataclasses import dataclass, field

import trio

from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.fs.learning.merging import Learned, Span
from s3mgrd.s3.counting import Waiting
from s3mgrd.s3.port import ListPage


@dataclass
class Listing:
    """A listing of one directory under way."""

    directory: Inode
    streams: bool
    """Nothing that this listing may contradict was known before: entries may be shown while the rest arrives."""
    known_up_to: Inode
    """Entries with higher inode numbers come from this listing."""
    shown_up_to: Inode = ROOT
    """While it streams: entries with higher inode numbers lack attributes that must be known before they are shown."""
    begun: tuple[Learned, Span] | None = None
    """What another merged of it already; None: nothing."""
    first_page: ListPage | None = None
    """What was asked for ahead, to be merged as what comes next."""
    pages: int = 0
    """So many are merged."""
    page: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    error: BaseException | None = None

    async def next_page(self) -> None:
        """Wait until the names of one more page are known, or its attributes, or for the end. Raises what the listing failed with."""
        with Waiting():
            await self.page.wait()
        self.raise_failure()

    async def finished(self) -> None:
        """Wait for the end. Raises what the listing failed with."""
        with Waiting():
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
