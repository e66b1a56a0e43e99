"""Staged data that outlives mount.db: what each staging file was to become, and how it is saved when nothing else says so.

While mount.db can be trusted, its journal says what staged data is, and a staging file that it does not know is not wanted.
When it was lost, the notes in the staging files' own logs take its place: what S3 had not got becomes a conflict copy
with the reason "recovered", under an inode number that the kernel never saw.
"""

import logging
from typing import Final

from s3mgrd.cache.nodes import ROOT, Inode, Kind, Node
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.staging import Description, StagedFile
from s3mgrd.journal.tables import ConflictRow, StagedRow

log = logging.getLogger(__name__)

PRIVATE: Final = 0o600
"""The mode of what was saved: whose it was, and who might read it, was in mount.db."""


def purpose(volume: Volume, node: Node, row: StagedRow | None) -> Description | None:
    """Say what staged data is to become; None: S3 need not get it."""
    if row is None or not row.dirty or node.is_detached:
        return None
    return Description(
        path=volume.path(node),
        base_key=volume.key_in_s3(node) if row.base_etag is not None else None,
        base_etag=row.base_etag,
        base_size=row.base_size,
        condition=row.condition,
    )


def note_purpose(volume: Volume, inode: Inode) -> None:
    """Bring the note in the log of an inode's staging file up to its rows, after these changed."""
    node = volume.nodes.get(inode)
    row = volume.journal.staged(inode)
    volume.staging.describe(inode, purpose(volume, node, row) if node is not None else None)


class Recovery:
    """Saves what is staged and in no journal. Used once, before the first request."""

    def __init__(self, volume: Volume) -> None:
        self._volume: Final = volume

    def save(self, *, is_database_lost: bool) -> int:
        """Make conflict copies of staged data that mount.db knows nothing of, remove the rest of it; returns how many.

        Args:
            is_database_lost: nothing that mount.db does not say may be taken for granted.
        """
        volume = self._volume
        known = {row.inode for row in volume.journal.all_staged()}
        saved = 0
        for number in sorted(volume.staging.inodes() - known):
            try:
                file = self._open(number)
            except OSError as error:
                log.warning("staged data of inode %d cannot be read, and stays: %s", number, error)
                continue
            try:
                if self._is_wanted(file, is_database_lost=is_database_lost):
                    self._keep(number, file)
                    saved += 1
                else:
                    self._clear(file)
            finally:
                file.close()
            volume.staging.remove(number)
        return saved

    def _open(self, number: int) -> StagedFile:
        """Open staging files, with the size of the base that their note tells."""
        file = self._volume.staging.adopt(number, 0)
        if file.description is None or not file.description.base_size:
            return file
        base_size = file.description.base_size
        file.close()
        return self._volume.staging.adopt(number, base_size)

    def _is_wanted(self, file: StagedFile, *, is_database_lost: bool) -> bool:
        if not is_database_lost:
            # An empty one was being made when the worker died, and nobody was told that it was.
            return file.description is not None and (len(file.extents) > 0 or file.size > 0)
        return file.description is not None or not file.is_described

    def _clear(self, file: StagedFile) -> None:
        """Have what was parked of unwanted data deleted."""
        volume = self._volume
        for parked in file.parked:
            volume.journal.add_delete(
                parked.key, etag=parked.etag, holder=None, now_ns=volume.now_ns()
            )

    def _keep(self, number: int, file: StagedFile) -> None:
        volume = self._volume
        said = file.description
        path = said.path if said is not None else f"inode-{number}"
        now_ns = volume.now_ns()
        missing = file.missing_bytes()
        with volume.database.transaction():
            inode = volume.nodes.insert(
                ROOT, None, Kind.FILE, file.mtime_ns(),
                size=file.size, mode=PRIVATE, ctime_ns=now_ns, seen_ns=now_ns, attributes_known=1,
            )  # fmt: skip
            volume.journal.put_staged(
                inode,
                dirty=False,
                base_etag=said.base_etag if said is not None else None,
                base_size=said.base_size if said is not None else 0,
                condition="always",
                now_ns=now_ns,
            )
            volume.journal.add_conflict(
                ConflictRow(inode, path, "recovered", None, missing, now_ns)
            )
            for parked in file.parked:
                volume.journal.park(parked.key, inode, now_ns=now_ns)
            # Both numbers lead to the files until this is committed: a crash saves them twice rather than not at all.
            volume.staging.link(number, inode)
        log.warning(
            "what was to be %s was staged, and is not in mount.db: kept as conflict copy %d, %d bytes",
            path,
            inode,
            file.size,
        )
