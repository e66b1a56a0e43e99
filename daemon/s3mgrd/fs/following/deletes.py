"""Deletes: keys that are to vanish from S3, many with one request, and what becomes of those that S3 keeps.

A name is gone here as soon as it is removed; S3 follows. What S3 refuses to delete for good (no permission, a lock) comes
back into the mount, with a line in the log and for a while in the status: a name that is gone here and there in S3 would be a
lie, and asking again for ever is no use. Who wants it gone removes it again.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode
from s3mgrd.errors import Denied, Unavailable
from s3mgrd.fs.following.strays import find_unseen
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.journal.tables import DeleteRow
from s3mgrd.s3.port import REPLACED, DeleteFailure

log = logging.getLogger(__name__)

REST_S: Final = 0.2
SHOWN_NS: Final = 300 * NS
"""How long the status tells of something that S3 refused to delete."""
MAX_REFUSED: Final = 100
TEMPORARY: Final = frozenset(
    {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "503", "500", ""}
)  # fmt: skip
"""Codes with which S3 says of one key of a batch that another try may succeed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One key that S3 did not delete and will not."""

    key: str
    reason: str
    at_ns: int


class Deleter:
    """Deletes what is pending of one volume, one batch at a time."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._refused: deque[Refused] = deque(maxlen=MAX_REFUSED)

    def refused(self) -> list[Refused]:
        """Return what S3 refused to delete in the last minutes, the latest last."""
        oldest_ns = self._volume.now_ns() - SHOWN_NS
        return [refused for refused in self._refused if refused.at_ns > oldest_ns]

    async def delete(self, rows: Sequence[DeleteRow]) -> None:
        """Delete a batch.

        Raises:
            Unavailable: some were not deleted, and may be by another try.
            S3mgrError: the batch as a whole failed.
        """
        volume = self._volume
        async with volume.locks.holding(*[("key", row.key) for row in rows]):
            # Looked at again: another version may have come and gone while the locks were waited for.
            rows = volume.journal.still_to_delete([row.key for row in rows])
            keys = [row.key for row in rows]
            if not keys:  # all of them wait for renames, whose ends wake the loop
                await trio.sleep(REST_S)
                return
            failures = await self._ask(keys, rows)
            refused = [failure for failure in failures if failure.code not in TEMPORARY]
            later = {failure.key for failure in failures if failure.code in TEMPORARY}
            with volume.database.transaction():
                done = [key for key in keys if key not in later]
                volume.journal.drop_deletes(done)
                for key in done:
                    volume.changes.note_key(key)
            names = [self._reappear(failure) for failure in refused]
        # May wait for requests in these directories, so without the locks.
        await volume.expire_names([name for name in names if name is not None])
        if later:
            first = next(failure for failure in failures if failure.key in later)
            raise Unavailable(
                f"{len(later)} of {len(keys)} objects were not deleted; {first.key}: {first.code} {first.message}"
            )

    async def _ask(self, keys: list[str], rows: Sequence[DeleteRow]) -> Sequence[DeleteFailure]:
        versions = await self._versions(rows)
        try:
            return await self._volume.store.delete_many(keys, if_match=versions)
        except Denied as error:
            return [DeleteFailure(key, "AccessDenied", error.detail) for key in keys]

    async def _versions(self, rows: Sequence[DeleteRow]) -> dict[str, str]:
        """Return which version is to be deleted at each key: what another writer put there meanwhile is not ours."""
        versions = {row.key: row.etag for row in rows if row.etag is not None}
        for key in self._volume.journal.written_among(list(versions)):
            unseen = await find_unseen(self._volume, key)
            if unseen is not None:
                versions[key] = unseen.etag
        return versions

    def _reappear(self, failure: DeleteFailure) -> tuple[Inode, str] | None:
        """Show again what S3 keeps; returns the name under which it comes back, with its directory."""
        if failure.code == REPLACED:
            log.info("%s is not deleted: somebody replaced it first", failure.key)
        else:
            log.warning(
                "%s is not deleted and shown again: %s %s",
                failure.key, failure.code, failure.message,
            )  # fmt: skip
            reason = f"{failure.code} {failure.message}".strip()
            self._refused.append(Refused(failure.key, reason, self._volume.now_ns()))
        return self._distrust(failure.key)

    def _distrust(self, key: str) -> tuple[Inode, str] | None:
        """Have the last directory on the way to *key* that is known here listed again."""
        volume = self._volume
        if not key.startswith(volume.settings.prefix):
            return None
        path = key[len(volume.settings.prefix) :].removesuffix("/").split("/")
        for depth in range(len(path) - 1, -1, -1):
            above = volume.settings.prefix + "".join(f"{part}/" for part in path[:depth])
            directory = volume.named_at(above)
            if directory is not None:
                volume.distrust(directory.id)
                return directory.id, path[depth]
        return None
