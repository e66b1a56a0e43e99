"""How well S3 serves the mount."""

import logging
from typing import Final

import trio

from s3mgrd.errors import BucketNotFound, CredentialsRejected, Denied, S3mgrError, Unavailable
from s3mgrd.s3.port import ObjectStore

log = logging.getLogger(__name__)

FIRST_LOOK_S: Final = 1.0
LAST_LOOK_S: Final = 30.0
OUTAGE_LOOK_S: Final = 5.0
"""While an outage lasts nobody else asks."""
_TROUBLE: Final = (Unavailable, CredentialsRejected, BucketNotFound)


class Health:
    """Remembers the last trouble with S3 until a request succeeds, and asks by itself whether it is over.

    That one object may not be read is no trouble of the mount. But where nothing may be read any more, each refusal
    looks like that, so the bucket itself is asked.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._trouble: S3mgrError | None = None
        self._succeeded_before = 0
        self._doubt = trio.Event()
        store.outage.begun = self._set
        if store.outage.is_on:
            self._doubt.set()

    def note(self, error: BaseException) -> None:
        """Take note of an error that came out of the store."""
        if isinstance(error, _TROUBLE):
            self._set(error)
        elif isinstance(error, Denied):
            self._doubt.set()

    @property
    def trouble(self) -> S3mgrError | None:
        """The last trouble; None once S3 has answered a request since."""
        if self._trouble is not None and self._succeeded() > self._succeeded_before:
            self._trouble = None
        return self._trouble

    async def watch(self) -> None:
        """Ask the bucket while there is trouble, or a reason to expect it; until cancelled."""
        while True:
            await self._doubt.wait()
            self._doubt = trio.Event()
            delay_s = FIRST_LOOK_S
            while True:
                if self._trouble is None:
                    await self._look()
                await trio.sleep(delay_s)
                if self.trouble is None:
                    break
                await self._look()
                limit_s = OUTAGE_LOOK_S if self._store.outage.is_on else LAST_LOOK_S
                delay_s = min(2 * delay_s, limit_s)

    async def _look(self) -> None:
        try:
            await self._store.probe(self._prefix)
        except S3mgrError as error:
            if self._trouble is None:
                log.warning("the bucket does not answer: %s", error)
            self._set(error)
        else:
            self._trouble = None

    def _set(self, error: S3mgrError) -> None:
        self._trouble = error
        self._succeeded_before = self._succeeded()
        self._doubt.set()

    def _succeeded(self) -> int:
        return sum(c.count - c.errors for c in self._store.stats.calls.values())
