"""What keyed requests have started (Idempotency-Key), for the one action that is not idempotent by nature."""

from collections import OrderedDict
from typing import Final

import trio

KEYS_REMEMBERED: Final = 1024


class Restarts:
    """The operations that keyed restarts started, so that a repeated request does not restart again.

    Only restart needs this: to flush or invalidate twice is the same as once. Kept in memory: a restart that was asked
    of an earlier daemon is over with it. Concurrency: `lock` is held while the intent is recorded, so that of
    two equal requests at once the second finds what the first has started.
    """

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self._operations: OrderedDict[tuple[int, str, str], str] = OrderedDict()

    def find(self, uid: int, name: str, key: str) -> str | None:
        """Return the operation that this user's *key* started on mount *name*."""
        return self._operations.get((uid, name, key))

    def remember(self, uid: int, name: str, key: str, operation_id: str) -> None:
        """Note what *key* started; the oldest key is forgotten when there are too many."""
        self._operations[uid, name, key] = operation_id
        if len(self._operations) > KEYS_REMEMBERED:
            self._operations.popitem(last=False)
