"""The archived objects below a path: which they are, what S3 does about them, and having copies of them restored.

S3 is asked, not mount.db: a whole tree may be wanted of which nothing was ever listed. Flat listings find the archived
objects; a HEAD of each tells how it is.
"""

import binascii
import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

import trio

from s3mgr.schema import ArchivedList, ArchivedObject, RestoreReport, RestoreRequest
from s3mgrd.cache.nodes import ROOT, Kind, Node
from s3mgrd.errors import Conflict, NotFound, S3mgrError, UserError
from s3mgrd.fs import names
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting.inspection import as_time
from s3mgrd.fs.tasks import side_by_side
from s3mgrd.s3.port import ARCHIVE_CLASSES, MOVING_CLASS, ObjectHead, Tier, archive_class

log = logging.getLogger(__name__)

LISTED_CLASSES: Final = ARCHIVE_CLASSES | {MOVING_CLASS}
MAX_PAGES: Final = 10
"""Pages of a listing that are looked through for one answer; the next answer goes on from there."""
PARALLEL: Final = 32
PAGE_BYTES: Final = 8 << 10
"""Bytes of paths in one answer: a message to the supervisor has a limit, and an error may name the path again."""
ERROR_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class _Place:
    """An object that may be archived: its key, its path in the mount, and what the listing said."""

    key: str
    path: str
    size: int
    storage_class: str | None

    def item(
        self,
        state: Literal["archived", "restoring", "restored"],
        *,
        expires_ns: int | None = None,
        error: str | None = None,
    ) -> ArchivedObject:
        """Describe it."""
        return ArchivedObject(
            path=self.path,
            size_bytes=self.size,
            storage_class=self.storage_class or "",
            state=state,
            expires_at=None if expires_ns is None else as_time(expires_ns),
            error=error,
        )


class Restorer:
    """Lists and restores the archived objects of one file system."""

    def __init__(self, fs: FileSystem) -> None:
        self._volume: Final = fs.volume
        self._namespace: Final = fs.namespace
        self._gate: Final = fs.archive

    async def report(self, path: str, cursor: str | None, limit: int) -> ArchivedList:
        """List archived objects at *path* and below, in the order of their keys, and what S3 does about each.

        Raises:
            NotFound: there is no such path.
            UserError: *cursor* is none of ours.
            S3mgrError: S3 could not be asked.
        """
        found, following = await self._find(path, cursor, limit)
        items: list[ArchivedObject | None] = [None] * len(found)

        async def ask(index: int, place: _Place) -> None:
            try:
                head = await self._volume.store.head(place.key)
            except NotFound:
                return  # removed since it was listed
            items[index] = self._item(place, head)

        await _each(found, ask)
        return ArchivedList(items=[item for item in items if item is not None], cursor=following)

    async def restore(self, request: RestoreRequest) -> RestoreReport:
        """Have S3 restore the archived objects at a path and below, those of one page; raises as `report`.

        An object that S3 does not restore does not keep it from restoring the others.
        """
        found, following = await self._find(request.path, request.cursor, request.limit)
        items: list[ArchivedObject | None] = [None] * len(found)

        async def begin(index: int, place: _Place) -> None:
            items[index] = await self._begin(place, days=request.days, tier=request.tier)

        await _each(found, begin)
        self._gate.forget()
        done = [item for item in items if item is not None]
        begun = sum(1 for item in done if item.state == "restoring" and not item.error)
        if begun:
            log.info("S3 was asked to restore %d archived objects at %r", begun, request.path)
        return RestoreReport(
            begun=begun,
            failed=sum(1 for item in done if item.error),
            items=done,
            cursor=following,
        )

    async def _begin(self, place: _Place, *, days: int, tier: Tier) -> ArchivedObject | None:
        store = self._volume.store
        try:
            if place.storage_class == MOVING_CLASS:
                head = await store.head(place.key)
                if head.archive_status is None:
                    return None
                await store.restore(place.key, days=None, tier=tier)
                return self._item(place, await store.head(place.key))
            answer = await store.restore(place.key, days=days, tier=tier)
            if answer == "extended":
                return self._item(place, await store.head(place.key))
        except (NotFound, Conflict):
            return None  # removed, or brought back, since it was listed
        except S3mgrError as error:
            return place.item("archived", error=error.detail[:ERROR_CHARACTERS])
        return place.item("restoring")

    def _item(self, place: _Place, head: ObjectHead) -> ArchivedObject | None:
        state = head.restore
        if archive_class(head.storage_class) is None and head.archive_status is None:
            return None
        if state is None:
            return place.item("archived")
        if state.is_ongoing:
            return place.item("restoring")
        if not state.is_readable(self._volume.now_ns()):
            return place.item("archived")
        return place.item("restored", expires_ns=state.expires_ns)

    async def _find(
        self, path: str, cursor: str | None, limit: int
    ) -> tuple[list[_Place], str | None]:
        """Return up to *limit* archived objects, and where to go on; None: there are no more."""
        node = await self._node(path)
        volume = self._volume
        if not node.is_directory:
            head = await volume.store.head(volume.key_in_s3(node))
            return [_Place(volume.key_in_s3(node), volume.path(node), head.size, head.storage_class)], None  # fmt: skip
        prefix, shown = volume.prefix_in_s3(node), volume.path(node)
        after = prefix + _read_cursor(cursor) if cursor else None
        token: str | None = None
        found: list[_Place] = []
        pages, room = 0, PAGE_BYTES
        while True:
            page = await volume.store.list_page(
                prefix, delimited=False, token=token, start_after=after if token is None else None
            )
            for info in page.objects:
                if info.storage_class not in LISTED_CLASSES or not names.is_text(info.key):
                    continue
                name = info.key.removeprefix(prefix)
                room -= len(shown.encode()) + len(name.encode())
                if len(found) == limit or (found and room < 0):
                    return found, _write_cursor(found[-1].key.removeprefix(prefix))
                found.append(_Place(info.key, shown + name, info.size, info.storage_class))
            token, pages = page.next_token, pages + 1
            if token is None:
                return found, None
            last = page.objects[-1].key if page.objects else ""
            if pages >= MAX_PAGES and last and names.is_text(last):
                return found, _write_cursor(last.removeprefix(prefix))

    async def _node(self, path: str) -> Node:
        node = self._volume.node(ROOT)
        for name in filter(None, path.split("/")):
            found = await self._namespace.lookup(node.id, name) if node.is_directory else None
            if found is None:
                raise NotFound(
                    f"there is no {path!r} in the mount", hint="paths are relative to the mount"
                )
            node = found
        if node.kind not in (Kind.DIRECTORY, Kind.FILE, Kind.SYMLINK) or (
            not node.is_directory and node.etag is None
        ):
            raise NotFound(f"S3 has no object of {path!r}")
        return node


async def _each(places: list[_Place], work: Callable[[int, _Place], Awaitable[None]]) -> None:
    limiter = trio.CapacityLimiter(PARALLEL)

    async def run(index: int, place: _Place) -> None:
        async with limiter:
            await work(index, place)

    async with side_by_side() as nursery:
        for index, place in enumerate(places):
            nursery.start_soon(run, index, place)


def _write_cursor(name: str) -> str:
    return urlsafe_b64encode(name.encode()).decode()


def _read_cursor(cursor: str) -> str:
    """Read the cursor of a page. Raises `UserError`."""
    try:
        return urlsafe_b64decode(cursor.encode("ascii")).decode()
    except (binascii.Error, UnicodeError) as error:
        raise UserError(
            f"{cursor!r} is no cursor", hint="use the cursor of the last page"
        ) from error
