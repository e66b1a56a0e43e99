"""Tasks side by side whose failure is one error, not a group: a program sees one errno."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from s3mgrd.s3.counting import Waiting


@asynccontextmanager
async def side_by_side() -> AsyncIterator[trio.Nursery]:
    """Open a nursery; when tasks fail, the others are cancelled and the first error that is no cancellation is raised."""
    try:
        with Waiting():  # that is what such tasks do
            async with trio.open_nursery() as nursery:
                yield nursery
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        first = next((e for e in errors if not isinstance(e, trio.Cancelled)), errors[0])
        raise first from group


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in _leaves(member)]
    return [error]
