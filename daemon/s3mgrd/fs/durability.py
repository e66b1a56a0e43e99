"""What a power loss may not take: brought to the local disk, once for all who wait for it at the same time.

A disk syncs a few hundred times a second, however little it has to write. So who asks while a sync is under way waits for
the next one, together with all who asked meanwhile: that takes what each of them needs, and syncs the directory and
mount.db once for them all.
"""

import logging
from typing import Final

import trio

from s3mgrd.cache.database import MountDatabase
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.staging import StagedFile

log = logging.getLogger(__name__)


class LocalDisk:
    """Syncs the staging files and mount.db of one volume.

    Attributes:
        syncs: how many there were.
    """

    def __init__(self, staging: StagingDirectory, database: MountDatabase) -> None:
        self._staging: Final = staging
        self._database: Final = database
        self._waiting: dict[int, StagedFile] = {}
        self._asked = 0
        self._done = 0
        self._is_running = False
        self._ended = trio.Event()
        self.syncs = 0

    async def sync(self, file: StagedFile | None = None) -> None:
        """Return when all that was changed before is on the disk: mount.db, and *file*, which the caller keeps open and locked.

        Raises:
            OSError: the disk refused. Who waited with the caller tries for itself.
        """
        self._asked += 1
        mine = self._asked
        if file is not None:
            self._waiting[mine] = file
        try:
            while self._done < mine:
                if self._is_running:
                    await self._ended.wait()
                else:
                    await self._run()
        finally:
            self._waiting.pop(mine, None)

    async def _run(self) -> None:
        """Sync for all who have asked until now."""
        last, files = self._asked, list(self._waiting.values())
        self._is_running = True
        try:
            # Not to be left half-way: a thread that still syncs must not meet a file that somebody closes.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._sync_files, files)
                await self._database.checkpoint()
            self.syncs += 1
            self._done = last
        finally:
            self._is_running = False
            self._ended.set()
            self._ended = trio.Event()

    def _sync_files(self, files: list[StagedFile]) -> None:
        for file in files:
            file.sync()
        if files:
            self._staging.sync()
