"""What a worker is asked about its block cache: bring files there, give them up, pin them, tell what is in it.

The parts of `s3mgrd.worker.control.WorkerService` that only need the file system.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import trio

from s3mgr.schema import (
    CachedFiles,
    EvictReport,
    PinList,
    UnpinReport,
    WarmProgress,
    WarmReport,
)
from s3mgrd.errors import Conflict
from s3mgrd.fs.filesystem import FileSystem
from s3mgrd.fs.inspecting import cached
from s3mgrd.fs.reading.warming import Warming


class Cacher(ABC):
    """Answers for one worker."""

    def __init__(self) -> None:
        self._warming: dict[str, tuple[Warming, trio.CancelScope]] = {}

    @abstractmethod
    def _file_system(self) -> FileSystem:
        """Return the file system. Raises `NotMounted`."""

    async def warm(self, warm_id: str, paths: Sequence[str], *, pin: bool) -> WarmReport:
        """Bring files into the block cache, for good with *pin*. Raises `Conflict` too when it is told to stop."""
        fs = self._file_system()
        warming, scope = Warming(), trio.CancelScope()
        self._warming[warm_id] = (warming, scope)
        try:
            with scope:
                if pin:
                    await fs.pins.pin(paths, warming)
                else:
                    plan = await fs.warmer.plan(paths)
                    fs.warmer.require_room(plan)
                    await fs.warmer.fetch(plan, warming)
        finally:
            del self._warming[warm_id]
        if scope.cancelled_caught:
            raise Conflict("it was told to stop", hint="what was fetched stays in the cache")
        return WarmReport(
            files=warming.files_total, bytes=warming.bytes_done, skipped=warming.skipped
        )

    async def stop_warming(self, warm_id: str) -> None:
        """Give up what `warm` goes on with."""
        if warm_id in self._warming:
            self._warming[warm_id][1].cancel()

    def warming(self) -> list[WarmProgress]:
        """Tell how far everything that `warm` goes on with is."""
        return [
            WarmProgress(id=warm_id, bytes_done=warming.bytes_done, bytes_total=warming.bytes_total)
            for warm_id, (warming, _) in self._warming.items()
        ]

    async def evict(self, paths: Sequence[str]) -> EvictReport:
        """Give up what is in the block cache of files."""
        return await cached.evict(self._file_system(), paths)

    async def unpin(self, paths: Sequence[str]) -> UnpinReport:
        """Take back pins."""
        fs = self._file_system()
        return UnpinReport(paths=[gone for path in paths for gone in await fs.pins.unpin(path)])

    async def pins(self) -> PinList:
        """List the pins."""
        return await cached.pins(self._file_system())

    async def cached_files(self, by: Literal["bytes", "hits", "misses"], limit: int) -> CachedFiles:
        """List the files that lead in the block cache."""
        return await cached.files(self._file_system(), by=by, limit=limit)
