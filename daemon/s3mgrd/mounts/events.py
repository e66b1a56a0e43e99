"""What changed, in order: published at once, stored a moment later, resumable by cursor.

Concurrency: everything runs in the trio thread. `publish` has no checkpoint: it gives the next cursor, keeps
the event in memory and hands it to every subscriber. `run` writes to the store in batches. A crash may lose
the last events that were not written yet; their cursors are not used again (`start` skips a gap as wide as the
buffer), and who resumes from inside the gap gets a `reset`.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, Self

import trio

from s3mgr.schema import Event, EventType
from s3mgrd.errors import S3mgrError
from s3mgrd.mounts.store import EventRecord, Store

KEPT_EVENTS: Final = 2000
SUBSCRIBER_EVENTS: Final = 64
# Most events that may be published but not stored; beyond that `run` has stopped working.
UNSTORED_EVENTS: Final = 10_000
# Long enough that a burst is one commit, short enough that a crash loses next to nothing.
BATCH_S: Final = 0.05
RETRY_S: Final = 5.0

log = logging.getLogger(__name__)

MaySee = Callable[[EventRecord], bool]


class EventLog:
    """The events of this daemon and the last ones of the daemon before."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self._events: deque[EventRecord] = deque(maxlen=KEPT_EVENTS)
        self._unstored: deque[EventRecord] = deque(maxlen=UNSTORED_EVENTS)
        self._wake = trio.Event()
        self._cursor = 0
        # Cursors in [gap_start, gap_stop) were perhaps seen by somebody, but what they meant is lost.
        self._gap_start = 0
        self._gap_stop = 0
        self._dropped_to = 0
        self._subscribers: dict[trio.MemorySendChannel[EventRecord], MaySee] = {}
        self._closed = False

    def start(self, events: tuple[EventRecord, ...], last_cursor: int) -> None:
        """Continue after what was stored; called once, before anything else."""
        self._events.extend(events)
        self._gap_start = last_cursor + 1
        # Nothing before means nothing that somebody could have seen.
        self._cursor = last_cursor + UNSTORED_EVENTS if last_cursor else 0
        self._gap_stop = self._cursor + 1
        self._dropped_to = self._events[0].event.cursor - 1 if self._events else last_cursor

    @property
    def cursor(self) -> int:
        """The cursor of the last event; watching from here misses nothing that comes."""
        return self._cursor

    def publish(
        self,
        kind: EventType,
        mount: str | None = None,
        *,
        owner_uid: int | None = None,
        data: dict[str, Any] | None = None,  # Any: the payload depends on the type
    ) -> None:
        """Give the event a cursor and pass it on; no checkpoint."""
        self._cursor += 1
        event = Event(
            cursor=self._cursor, type=kind, time=datetime.now(UTC), mount=mount, data=data or {}
        )
        record = EventRecord(event=event, owner_uid=owner_uid)
        if len(self._events) == KEPT_EVENTS:
            self._dropped_to = self._events[0].event.cursor
        self._events.append(record)
        self._unstored.append(record)
        self._wake.set()
        for channel, may_see in list(self._subscribers.items()):
            if not may_see(record):
                continue
            try:
                channel.send_nowait(record)
            except trio.WouldBlock:
                # Too slow: it reconnects and resumes from its cursor.
                self._subscribers.pop(channel)
                channel.close()
            except trio.BrokenResourceError:
                self._subscribers.pop(channel)

    @asynccontextmanager
    async def subscribe(
        self, since: int | None, may_see: MaySee
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Yield the events after *since*, stored ones first; None: only what comes.

        The iterator ends when the log is closed or the subscriber lets more than `SUBSCRIBER_EVENTS` queue up.
        """
        # No checkpoint between looking back and subscribing, so nothing falls between the two.
        backlog = self._backlog(since, may_see)
        send, receive = trio.open_memory_channel[EventRecord](SUBSCRIBER_EVENTS)
        if self._closed:
            send.close()
        else:
            self._subscribers[send] = may_see
        try:
            yield _Subscription(backlog, receive)
        finally:
            self._subscribers.pop(send, None)
            send.close()
            receive.close()

    def close(self) -> None:
        """End every subscription and take no new ones; events are still stored."""
        self._closed = True
        for channel in self._subscribers:
            channel.close()
        self._subscribers.clear()

    async def run(self) -> None:
        """Store what is published, for ever. Cancel it after `flush`."""
        while True:
            await self._wake.wait()
            await trio.sleep(BATCH_S)
            try:
                await self.flush()
            except S3mgrError as error:
                log.error("events cannot be stored: %s", error.detail)  # noqa: TRY400 - the disk's fault, no stack
                await trio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Store what is not stored yet. Raises what the store raises; nothing is lost then."""
        self._wake = trio.Event()
        batch = tuple(self._unstored)
        if not batch:
            return
        try:
            await self._store.append_events(batch, keep=KEPT_EVENTS)
        except S3mgrError:
            self._wake.set()
            raise
        last = batch[-1].event.cursor
        while self._unstored and self._unstored[0].event.cursor <= last:
            self._unstored.popleft()

    def _backlog(self, since: int | None, may_see: MaySee) -> list[Event]:
        if since is None or since == self._cursor:
            return []
        lost = self._gap_start <= since < self._gap_stop - 1
        if since < self._dropped_to or since > self._cursor or lost:
            reset = Event(cursor=self._cursor, type="reset", time=datetime.now(UTC))
            return [reset]
        return [r.event for r in self._events if r.event.cursor > since and may_see(r)]


class _Subscription:
    """Old events, then live ones. No async generator: nobody has to close it in the right task."""

    def __init__(
        self, backlog: list[Event], receive: trio.MemoryReceiveChannel[EventRecord]
    ) -> None:
        self._backlog: Final = deque(backlog)
        self._receive: Final = receive

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._backlog:
            await trio.lowlevel.checkpoint()
            return self._backlog.popleft()
        try:
            record = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        return record.event
