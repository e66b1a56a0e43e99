"""Pages of listings merged into mount.db: the one place that decides what S3's word changes here.

A page is the truth about the range of names it spans: what mount.db has in that range and the page has not is gone,
unless it is ours alone (not uploaded yet, renamed, or changed after S3 was asked). That holds whoever asked:
a directory's own listing, one of several that share a large directory, a walk whose flat pages are cut into directories,
or a look at a few names. They all come here with `ListPage`s as a delimited listing of one directory gives them.

Nothing here waits: a page is merged between two checkpoints.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from s3mgrd.cache.nodes import ROOT, STALE_NS, Inode, Kind, Marker, Node
from s3mgrd.fs import names
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.s3.port import ARCHIVE_CLASSES, ListPage, ObjectInfo, archive_class

log = logging.getLogger(__name__)

SHADOWED: Final = "shadowed by a directory of the same name"


@dataclass(slots=True)
class Span:
    """The range of one directory's names that a sequence of pages passes, in S3's order.

    `position`: how far they came; what sorts up to it is settled. `stop`: where the range ends; None: with the
    directory. Both are places as `names.sort_key` tells them, and `stop` has no slash.
    """

    position: str = ""
    stop: str | None = None
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """The moment before S3 was asked: its answer tells of nothing that happened later."""

    changes_seen: int
    time_ns: int
    epoch: int


@dataclass(slots=True)
class Learned:
    """What the pages of one directory said so far, beyond what is merged: later pages may settle it.

    `asked`: before the first of them.
    """

    directory: Inode
    prefix: str
    asked: Moment
    hidden: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    """Objects whose name a local directory has; shown after all if that directory is gone."""
    marker: ObjectInfo | None = None
    is_uncertain: bool = False


class Merger:
    """Merges pages into the mount.db of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._epoch = 0

    def moment(self) -> Moment:
        """Return the present. The caller has called `Changes.begin`."""
        return Moment(self._volume.changes.now(), self._volume.now_ns(), self._epoch)

    def outdate(self) -> None:
        """Have nothing be trusted that S3 is telling now: what is being listed has to be listed again."""
        self._epoch += 1
        self._volume.covered.clear()

    def is_current(self, moment: Moment) -> bool:
        """Whether nobody called `outdate` since."""
        return moment.epoch == self._epoch

    def merge(
        self,
        learned: Learned,
        span: Span,
        page: ListPage,
        *,
        is_last: bool,
        is_empty: bool = False,
        leaving: set[str] | None = None,
    ) -> list[Inode]:
        """Bring mount.db up to a page, and *span* to its end.

        Args:
            learned: of the directory.
            span: where the page begins.
            page: in the order of S3; all of it lies behind `span.position`.
            is_last: no further page follows before `span.stop`.
            is_empty: mount.db is known to have no entry of the directory.
            leaving: as `Volume.leaving_below` of the directory's prefix or one above it, where the caller has it.

        Returns:
            The inodes of entries whose attributes nobody has asked for yet.
        """
        volume, directory = self._volume, learned.directory
        files, directories = self._sort(learned, page, span.stop)
        is_last = is_last or passes(page, learned.prefix, span.stop)
        low = span.position
        span.position = (span.stop or low) if is_last else (_end(page, learned.prefix) or low)
        span.is_done = is_last
        high = span.stop if is_last else span.position
        rows = {} if is_empty else self._rows(directory, low, high)
        if leaving is None:
            leaving = volume.leaving_below(learned.prefix)
        ours = self._ours(learned, files, directories, rows)
        new: dict[str, ObjectInfo] = {}
        found: list[Inode] = []
        with volume.database.transaction():
            for name, info in files.items():
                if name not in ours and info.key not in leaving:
                    inode = self._see_file(learned, name, rows.get(name), info, new)
                    if inode is not None:
                        found.append(inode)
            made = [
                name
                for name in directories
                if name not in ours
                and self._is_new_directory(learned, name, rows.get(name), leaving, new)
            ]
            # What a directory takes the place of is shadowed if it is still there, and gone otherwise.
            replaced = {name: rows[name] for name in made if name in rows}
            for name, file in replaced.items():
                if name in files or not _is_between(file, low, high):
                    learned.hidden.append((volume.key_in_s3(file), SHADOWED))
                volume.detach(file)
            found += [
                node.id
                for name in directories
                if (node := rows.get(name)) is not None
                and node.is_directory
                and not node.attributes_known
            ]
            for name, node in rows.items():
                if name in replaced:
                    continue
                there = directories if node.is_directory else files
                if name not in there and name not in ours and _is_between(node, low, high):
                    self._see_nothing(learned, name, node, new)
            found += self._add_files(directory, new)
            found += volume.nodes.insert_many(
                directory, Kind.DIRECTORY, [(name, volume.now_ns(), 0, None, None) for name in made]
            )
        return found

    def note_seen(self, learned: Learned, low: str, high: str | None) -> None:
        """Note in their rows that S3 was asked for the entries of a range, which no listing of all of them will tell."""
        if names.is_text(low) and (high is None or names.is_text(high)):
            self._volume.nodes.mark_seen(learned.directory, low, high, learned.asked.time_ns)

    def complete(self, learned: Learned) -> None:
        """Note that all of a directory was passed: its entries are those of mount.db."""
        volume, directory = self._volume, learned.directory
        with volume.database.transaction():
            self._settle_objects(learned)
            if learned.hidden or volume.nodes.has_hidden(directory):
                volume.nodes.replace_hidden(
                    directory, [(names.printable(key), reason) for key, reason in learned.hidden]
                )
            columns: dict[str, object] = {"listed_ns": learned.asked.time_ns}
            if learned.is_uncertain or not self.is_current(learned.asked):
                columns["listed_ns"] = STALE_NS
            volume.nodes.update(directory, **columns, **self._settled_marker(learned))
        volume.covered.drop(directory)

    def _settle_objects(self, learned: Learned) -> None:
        """Settle what lies at a directory's name where that directory was passed first, in another part of the listing."""
        for name, info in learned.objects.items():
            node = self._volume.nodes.find(learned.directory, name)
            if node is not None and node.is_directory:
                learned.hidden.append((info.key, SHADOWED))
            elif node is None and name not in self._ours(learned, {name: info}, {}, {}):
                self._add_files(learned.directory, {name: info})
        learned.objects.clear()

    def _settled_marker(self, learned: Learned) -> dict[str, object]:
        """Return what the marker changes in the directory's row."""
        volume, info = self._volume, learned.marker
        node = volume.nodes.get(learned.directory)
        if info is not None and volume.journal.pending_delete(info.key) is not None:
            info = None  # of the directory that had this name before
        if node is None or (node.marker == Marker.WANTED and info is None):
            return {}
        if node.is_detached or volume.prefix_in_s3(node) != learned.prefix:
            return {}  # a rename ended meanwhile, and knows what it brought along
        if volume.changes.is_key_newer(learned.prefix, learned.asked.changes_seen):
            return {}
        if info is None:
            return {"marker": int(Marker.NONE)} if node.marker == Marker.EXISTS else {}
        columns: dict[str, object] = {}
        if node.marker != Marker.EXISTS:
            columns["marker"] = int(Marker.EXISTS)
        before_ns = node.remote_mtime_ns
        if before_ns is None or before_ns // NS != info.mtime_ns // NS:
            columns["remote_mtime_ns"] = info.mtime_ns
            is_touched = before_ns is not None and info.mtime_ns // NS > before_ns // NS
            # Known without a description: there was no marker when it was asked for.
            if is_touched or volume.extras.description(node.id) is None:
                volume.extras.forget_description(node.id)
                if not node.attributes_dirty and node.id != ROOT:
                    columns["attributes_known"] = 0
        return columns

    # One page

    def _sort(
        self, learned: Learned, page: ListPage, stop: str | None
    ) -> tuple[dict[str, ObjectInfo], dict[str, None]]:
        """Split a page into files and directories by name, up to *stop*."""
        skip = len(learned.prefix)
        files: dict[str, ObjectInfo] = {}
        directories: dict[str, None] = {}
        for info in page.objects:
            name = info.key[skip:]
            if stop is not None and names.order(name) > names.order(stop):
                break
            if not name:
                learned.marker = info
                if info.size:
                    learned.hidden.append((info.key, "directory marker with content"))
            elif reason := names.why_hidden(name) or names.why_unusable(info.key):
                learned.hidden.append((info.key, reason))
            else:
                files[name] = info
        for common in page.prefixes:
            name = common[skip:-1]
            if stop is not None and names.order(common[skip:]) > names.order(stop):
                break
            if reason := names.why_hidden(name) or names.why_unusable(common):
                learned.hidden.append((common, reason))
            else:
                directories[name] = None
        return files, directories

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

    def _ours(
        self,
        learned: Learned,
        files: dict[str, ObjectInfo],
        directories: dict[str, None],
        rows: dict[str, Node],
    ) -> set[str]:
        """Return the names on which S3 has no say: they changed here after it was asked."""
        changes, seen = self._volume.changes, learned.asked.changes_seen
        if changes.is_quiet(seen):
            return set()
        return {
            name
            for name in {*files, *directories, *rows}
            if changes.is_newer(learned.directory, name, seen)
            or changes.is_key_newer(learned.prefix + name, seen)
        }

    def _see_file(
        self,
        learned: Learned,
        name: str,
        node: Node | None,
        info: ObjectInfo,
        new: dict[str, ObjectInfo],
    ) -> Inode | None:
        """Take over an object; return its inode where it was known and its attributes are not."""
        if node is None:
            new[name] = info
            return None
        if node.is_directory:
            # Whether the directory is still there, its own place in the order tells.
            learned.objects[name] = info
            return None
        if node.etag == info.etag and node.remote_key is None:
            if node.storage_class != info.storage_class:
                self._see_class(node, info)
            if node.remote_mtime_ns is None or node.remote_mtime_ns // NS != info.mtime_ns // NS:
                seen = self._see_touched(node, info)  # HEAD tells whole seconds only
                current = self._volume.node(seen)
                return None if current.attributes_known else seen
            return node.id if not node.attributes_known else None
        if self._volume.is_ours_alone(node):
            return None
        self._volume.detach(node)
        log.debug("inode %d: another version of %s appeared in S3", node.id, info.key)
        new[name] = info
        return None

    def _see_class(self, node: Node, info: ObjectInfo) -> None:
        """The same version in another storage class: archived, or back from there."""
        storage_class = archive_class(info.storage_class)
        if node.storage_class != storage_class:
            self._volume.nodes.set_storage_classes([(storage_class, node.id)])

    def _see_touched(self, node: Node, info: ObjectInfo) -> Inode:
        """The same bytes with another date. With a later one, their metadata were replaced since; returns what to show."""
        volume = self._volume
        date_ns = volume.date_in_s3(node.parent, info.mtime_ns)
        columns: dict[str, object] = {"remote_mtime_ns": date_ns}
        before_ns = node.remote_mtime_ns
        if before_ns is not None and info.mtime_ns // NS > before_ns // NS:
            volume.extras.forget_description(node.id)
            if not volume.has_newer_attributes(node):
                columns |= {"mtime_ns": info.mtime_ns, "attributes_known": 0}
                if (
                    node.kind == Kind.FILE
                    and volume.are_times_kept(node.id)
                    and not volume.is_ours_alone(node)
                ):
                    inode = volume.renew(node)
                    volume.nodes.update(inode, **columns)
                    return inode
        volume.nodes.update(node.id, **columns)
        return node.id

    def _add_files(self, directory: Inode, files: dict[str, ObjectInfo]) -> Sequence[Inode]:
        nodes = self._volume.nodes
        is_dated = self._volume.date_in_s3(directory, 1) is not None
        inodes = nodes.insert_many(
            directory,
            Kind.FILE,
            [
                (n, i.mtime_ns, i.size, i.etag, i.mtime_ns if is_dated else None)
                for n, i in files.items()
            ],
        )
        nodes.set_storage_classes(
            [
                (info.storage_class, inode)
                for inode, info in zip(inodes, files.values(), strict=True)
                if info.storage_class in ARCHIVE_CLASSES
            ]
        )
        return inodes

    def _is_new_directory(
        self,
        learned: Learned,
        name: str,
        node: Node | None,
        leaving: set[str],
        new: dict[str, ObjectInfo],
    ) -> bool:
        """Take over a common prefix; return whether it has to be added."""
        volume = self._volume
        if node is not None and node.is_directory:
            info = learned.objects.pop(name, None)
            if info is not None:
                learned.hidden.append((info.key, SHADOWED))
            return False
        if node is not None and volume.is_ours_alone(node):
            return False
        below = f"{learned.prefix}{name}/"
        if (
            any(key.startswith(below) for key in leaving)
            or volume.is_leaving(below, seen_from=learned.prefix)
            or volume.leaving_inside(below)
            or volume.changes.is_newer_below(below, learned.asked.changes_seen)
        ):
            # What S3 still shows below may be only what we are about to delete: ask again later.
            learned.is_uncertain = True
            return False
        if name in new:
            learned.hidden.append((new.pop(name).key, SHADOWED))
        return True

    def _see_nothing(
        self, learned: Learned, name: str, node: Node, new: dict[str, ObjectInfo]
    ) -> None:
        """An entry that S3 no longer has, unless it is ours alone."""
        if self._volume.is_ours_alone(node):
            return
        self._volume.detach(node)
        info = learned.objects.pop(name, None)
        if info is not None:
            new[name] = info


def _end(page: ListPage, prefix: str) -> str:
    """Return the place of a page's last entry; empty where it has none."""
    ends = [info.key[len(prefix) :] for info in page.objects[-1:]]
    ends += [common[len(prefix) :] for common in page.prefixes[-1:]]
    return max(ends, default="", key=names.order)


def passes(page: ListPage, prefix: str, stop: str | None) -> bool:
    """Whether a page reaches beyond the end of its range."""
    return stop is not None and names.order(_end(page, prefix)) > names.order(stop)


def _is_between(node: Node, low: str, high: str | None) -> bool:
    place = names.order(names.sort_key(node.name or "", is_directory=node.is_directory))
    return names.order(low) < place and (high is None or place <= names.order(high))
