"""A scripted server in a thread with a loop of its own, for tests that are no trio tasks themselves."""

import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tests.servers.scripted import Answer, Handler, ScriptedServer, serve

START_LIMIT_S = 10.0


@contextmanager
def run_scripted(
    script: list[Answer] | Handler, *, tls: ssl.SSLContext | None = None
) -> Iterator[ScriptedServer]:
    """Serve what `tests.servers.scripted.serve` serves; a handler runs in the server's thread."""
    started: queue.Queue[ScriptedServer] = queue.Queue()
    end = threading.Event()

    async def main() -> None:
        async with serve(script, tls=tls) as server:
            started.put(server)
            await trio.to_thread.run_sync(end.wait)

    thread = threading.Thread(target=trio.run, args=(main,), name="scripted S3", daemon=True)
    thread.start()
    try:
        yield started.get(timeout=START_LIMIT_S)
    finally:
        end.set()
        thread.join(START_LIMIT_S)
        assert not thread.is_alive(), "the scripted server does not end"
