"""Tasks that accompany a block of code."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery whose tasks are cancelled when the body ends, and whose body's own exception comes out bare.

    A plain nursery wraps it into a group, so callers of a context manager that happens to have tasks inside could not
    write ``except WorkerLost``. An exception of a task still comes out in a group: it is a defect.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as exc:  # noqa: BLE001 - raised again below
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
