"""Attributes learned from S3: who is asked for them, when, and what an answer changes.

A listing does not tell an object's metadata, and a HEAD for every key is what makes other mounts slow. So: ``off``
never asks. ``full`` asks for every object before it is shown, in parallel. ``lazy`` looks at one file of a directory,
and asks for the others' before they are shown if that one carries POSIX metadata; it gives up looking when the
first `SAMPLES` directories of a bucket had none, until some turns up (a GET tells it too). What a version's metadata
says is remembered with it and never asked again; so is what else S3 keeps with it (`s3mgrd.fs.descriptions`), because
each copy has to say it again.

Concurrency: who wants a file's attributes, or a directory judged, while somebody else asks for the same, waits for that.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Kind, Node
from s3mgrd.errors import Denied, NotFound, PreconditionFailed
from s3mgrd.fs import attributes, descriptions
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.counting import Waiting
from s3mgrd.s3.port import ObjectHead, archive_class

log = logging.getLogger(__name__)

SAMPLES: Final = 8
PARALLEL: Final = 64
MAX_BARE: Final = 65_536
SAMPLES_AGE_NS: Final = 24 * 3600 * NS
"""After so long a new worker looks again: somebody else may have begun to write metadata."""
SAMPLED: Final = "posix_samples"
"""Name in meta: how many directories may still be looked at, and until when (ns) that holds."""
USED: Final = "posix_metadata"
"""Name in meta: "yes" once an object with POSIX metadata was seen."""


class Metadata:
    """Fetches and applies object metadata for one volume."""

    def __init__(self, volume: Volume, kernel_holds: Callable[[Inode], bool]) -> None:
        self._volume = volume
        self._kernel_holds = kernel_holds
        self._samples_left, self._samples_until_ns = self._recall_samples()
        self._carrying: set[Inode] = set()
        self._bare: set[Inode] = set()
        """Directories of which the file that was looked at carried nothing; forgotten when too many."""
        self._in_use = volume.database.get_meta(USED) == "yes"
        self._judging: dict[Inode, trio.Event] = {}
        """Directories of which a file is being looked at."""
        self._asking: dict[tuple[Inode, bool], trio.Event] = {}
        """What is being asked for, and whether it may be renewed."""

    def may_want(self) -> bool:
        """Whether `fetch` might ask for anything: False spares going through entries for nothing."""
        policy = self._volume.settings.attributes
        is_open = self._in_use or self._samples_left > 0 or len(self._judging) > 0
        return policy == "full" or (policy == "lazy" and is_open)

    def wants_all(self) -> bool:
        """Whether `fetch` is likely to ask for everything."""
        policy = self._volume.settings.attributes
        return policy == "full" or (policy == "lazy" and self._in_use)

    @property
    def has_samples_left(self) -> bool:
        """Whether `fetch` may still look at a file of a directory to judge it."""
        return self._volume.settings.attributes == "lazy" and self._samples_left > 0

    def is_bare(self, directory: Inode) -> bool:
        """Whether nothing is asked for in a directory, because the file that was looked at carried nothing."""
        return self._volume.settings.attributes == "lazy" and directory in self._bare

    def _recall_samples(self) -> tuple[int, int]:
        """Return how many directories may still be looked at, and until when (ns) that holds."""
        text = self._volume.database.get_meta(SAMPLED)
        if text is not None:
            left, until_ns = map(int, text.split())
            if self._volume.now_ns() < until_ns:
                return left, until_ns
        return SAMPLES, self._volume.now_ns() + SAMPLES_AGE_NS

    def _spend_sample(self) -> None:
        self._samples_left -= 1
        text = f"{self._samples_left} {self._samples_until_ns}"
        self._volume.database.set_meta(SAMPLED, text)

    async def fetch(self, directory: Node, inodes: list[Inode]) -> None:
        """Ask for the metadata of those of *inodes* that the policy wants known before they are shown."""
        policy = self._volume.settings.attributes
        if policy == "off":
            return
        if policy == "lazy" and not await self._sample(directory, inodes):
            return
        limiter = trio.CapacityLimiter(PARALLEL)
        async with side_by_side() as nursery:
            for inode in inodes:
                node = self._volume.nodes.get(inode)
                if node is None or node.attributes_known:
                    continue
                await limiter.acquire_on_behalf_of(inode)
                nursery.start_soon(self._fetch_limited, inode, limiter)

    async def _sample(self, directory: Node, inodes: list[Inode]) -> bool:
        """Whether the files of *directory* carry POSIX metadata, judged by one of them."""
        while (judged := self._judging.get(directory.id)) is not None:
            with Waiting():
                await judged.wait()
        if directory.id in self._carrying:
            return True
        if directory.id in self._bare:
            return False
        if not self._in_use:
            if not self._samples_left:
                return False
            self._spend_sample()
        nodes = [self._volume.nodes.get(inode) for inode in inodes]
        samples = [
            node.id for node in nodes if node is not None and not node.is_directory
        ] or inodes
        judged = self._judging[directory.id] = trio.Event()
        try:
            await self._fetch_one(samples[0], may_renew=True)
        finally:
            del self._judging[directory.id]
            judged.set()
        sample = self._volume.nodes.get(samples[0])
        return self._judge(directory.id, carries=sample is not None and sample.mode is not None)

    def _judge(self, directory: Inode, *, carries: bool) -> bool:
        if carries:
            self._carrying.add(directory)
        else:
            if len(self._bare) >= MAX_BARE:
                self._bare.clear()
            self._bare.add(directory)
        return carries

    async def ask_ahead(self, directory: Inode, key: str) -> ObjectHead | None:
        """Ask S3 about what is perhaps a file of *directory*, while its listing is under way; None: it is none.

        The directory is judged by it: `fetch` need not look at another of its files.
        """
        judged = trio.Event()
        leads = self._judging.setdefault(directory, judged) is judged
        try:
            head = await self._volume.store.head(key)
        except NotFound:
            return None
        else:
            if self._volume.settings.attributes == "lazy" and directory not in self._carrying:
                if not self._in_use and self._samples_left > 0:
                    self._spend_sample()
                self._judge(directory, carries=attributes.decode(head.metadata).mode is not None)
            return head
        finally:
            if leads:
                del self._judging[directory]
                judged.set()

    def wants(self, node: Node) -> bool:
        """Whether `show` would ask for anything."""
        if node.attributes_known or node.attributes_dirty or node.is_detached:
            return False
        if self._volume.settings.attributes == "lazy" and node.parent in self._bare:
            return False
        return self.may_want()

    async def show(self, node: Node) -> None:
        """Ask for what `fetch` would ask for, for the sake of one name: its extended attributes are wanted."""
        if self.wants(node):
            await self.fetch(self._volume.node(node.parent), [node.id])

    async def know(self, inode: Inode) -> None:
        """Ask for one object's metadata, unless the policy is ``off``."""
        if self._volume.settings.attributes != "off":
            await self._fetch_one(inode)

    def note_in_use(self) -> None:
        """Note that objects of this bucket carry POSIX metadata."""
        if not self._in_use:
            self._in_use = True
            self._volume.database.set_meta(USED, "yes")

    def learn(self, node: Node, head: ObjectHead, *, may_renew: bool = False) -> Node:
        """Take over what *head* says about the version that *node* is; returns the node to show.

        A node that the kernel holds as a file and that turns out to be something else gets a new inode number, and
        (*may_renew*: the caller goes by the name) so does one whose time the kernel would not take from us.
        """
        volume = self._volume
        if volume.settings.attributes == "off" or node.attributes_dirty:
            return node
        if not node.is_directory and head.etag != node.etag:
            return node
        if node.attributes_known and (
            not _is_touched(node, head) or volume.has_newer_attributes(node)
        ):
            return node
        found = attributes.decode(head.metadata)
        if not found.is_empty:
            self.note_in_use()
        columns: dict[str, object] = {
            "attributes_known": 1,
            "storage_class": archive_class(head.storage_class),
        }
        text = descriptions.write(head)
        if node.attributes_known:
            columns |= dict.fromkeys(("mode", "uid", "gid", "atime_ns", "ctime_ns"))
            date_ns = volume.date_in_s3(node.parent, head.mtime_ns)
            columns |= {"mtime_ns": head.mtime_ns, "remote_mtime_ns": date_ns}
        for name in ("mode", "uid", "gid", "mtime_ns", "atime_ns", "ctime_ns"):
            value = getattr(found, name)
            if value is not None:
                columns[name] = value
        if found.kind not in (None, Kind.DIRECTORY, node.kind) and not node.is_directory:
            columns |= {
                "kind": int(found.kind or node.kind),
                "special": found.special,
                "rdev": found.rdev,
            }
        with volume.database.transaction():
            shown = node.id
            if self._is_renewed(node, columns, may_renew=may_renew):
                shown = volume.renew(node)
            for inode in {node.id, shown}:  # who has the one open goes on with it
                if inode == shown or "kind" not in columns:
                    volume.nodes.update(inode, **columns)
                volume.extras.replace_xattrs(inode, found.xattrs)
                volume.extras.describe(inode, text)
        return volume.node(shown)

    def _is_renewed(self, node: Node, columns: Mapping[str, object], *, may_renew: bool) -> bool:
        """Whether a node gets a new number, because the kernel would not believe *columns* of the one it holds."""
        if node.name is None:
            return False
        if "kind" in columns:
            return self._kernel_holds(node.id)
        return (
            may_renew
            and node.kind == Kind.FILE
            and columns.get("mtime_ns", node.mtime_ns) != node.mtime_ns
            and self._volume.are_times_kept(node.id)
            and not self._volume.is_ours_alone(node)
        )

    # What goes along with a copy

    def own(self, node: Node) -> dict[str, str]:
        """Return the metadata that keeps a node's attributes; none with ``attributes=off``."""
        volume = self._volume
        if volume.settings.attributes == "off":
            return {}
        uid, gid = volume.owner(node)
        xattrs = volume.extras.xattrs(node.id)
        return attributes.encode(node, mode=volume.mode(node), uid=uid, gid=gid, xattrs=xattrs)

    def remembered(self, node: Node, key: str) -> ObjectHead | None:
        """Return what S3 keeps, at *key*, with the version that *node* is; None: S3 has to be asked.

        The metadata of the head are only what others put there.
        """
        if self._volume.settings.attributes == "off" or not (
            node.attributes_known or node.attributes_dirty
        ):
            return None  # "off" treats all metadata as others', which is not remembered
        text = self._volume.extras.description(node.id)
        return None if text is None else descriptions.read(text, node, key)

    async def head_of(self, node: Node, key: str) -> ObjectHead:
        """As `remembered`, but ask S3 if need be, and remember the answer. *node* may be another one afterwards.

        Raises:
            NotFound: nothing lies at *key*.
            PreconditionFailed: another version lies there than *node*.
        """
        head = self.remembered(node, key)
        if head is not None:
            return head
        head = await self._volume.store.head(key)
        if not node.is_directory and head.etag != node.etag:
            raise PreconditionFailed(f"{key} was replaced")
        current = self._volume.nodes.get(node.id)
        if current is not None and not current.is_detached:
            current = self.learn(current, head)
            if current.attributes_known or current.attributes_dirty:
                self._volume.extras.describe(current.id, descriptions.write(head))
        return replace(head, metadata=self._others(head))

    def _others(self, head: ObjectHead) -> dict[str, str]:
        if self._volume.settings.attributes == "off":
            return dict(head.metadata)  # nothing of it is ours then
        return descriptions.others_metadata(head)

    def note_written(self, inode: Inode, like: ObjectHead) -> None:
        """Remember what a version that was just written was given besides its attributes; in its transaction."""
        self._volume.extras.describe(inode, descriptions.write(like))
        node, storage_class = self._volume.nodes.get(inode), archive_class(like.storage_class)
        if node is not None and node.storage_class != storage_class:
            self._volume.nodes.set_storage_classes([(storage_class, inode)])

    async def _fetch_limited(self, inode: Inode, limiter: trio.CapacityLimiter) -> None:
        try:
            node = self._volume.nodes.get(inode)
            if node is not None and not node.attributes_known:
                await self._fetch_one(inode, may_renew=True)
        finally:
            limiter.release_on_behalf_of(inode)

    async def _fetch_one(self, inode: Inode, *, may_renew: bool = False) -> None:
        while (asked := self._asked(inode, may_renew=may_renew)) is not None:
            with Waiting():
                await asked.wait()
            node = self._volume.nodes.get(inode)
            if node is None or node.attributes_known:
                return
        asked = self._asking[inode, may_renew] = trio.Event()
        try:
            await self._ask(inode, may_renew=may_renew)
        finally:
            del self._asking[inode, may_renew]
            asked.set()

    def _asked(self, inode: Inode, *, may_renew: bool) -> trio.Event | None:
        """Return what to wait for where somebody asks for the same, and may do as much with the answer."""
        asked = self._asking.get((inode, True))
        if asked is None and not may_renew:
            asked = self._asking.get((inode, False))
        return asked

    async def _ask(self, inode: Inode, *, may_renew: bool) -> None:
        volume = self._volume
        node = volume.nodes.get(inode)
        while node is not None and not node.is_detached:
            key = volume.place(node)
            head: ObjectHead | None = None
            try:
                head = await volume.store.head(key)
            except NotFound:
                pass
            except Denied as error:
                log.warning("attributes of %s cannot be read: %s", key, error)
                return
            node = volume.nodes.get(inode)
            if node is None or node.is_detached:
                return
            if volume.place(node) != key:
                continue  # S3 followed a rename meanwhile: this was of what is at the old place now
            if head is not None:
                self.learn(node, head, may_renew=may_renew)
            elif node.is_directory:
                # An implied directory has no metadata; a file that is gone is the next listing's business.
                volume.nodes.update(inode, attributes_known=1)
            return


def _is_touched(node: Node, head: ObjectHead) -> bool:
    """Whether a version's metadata were replaced since they were learned: the same bytes with a later date."""
    return node.remote_mtime_ns is not None and head.mtime_ns // NS > node.remote_mtime_ns // NS
