"""What the answer to a write, or its failure, says about what became of the object."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from s3mgrd.errors import NotFound, PreconditionFailed, S3mgrError
from s3mgrd.s3.answers import Answer
from s3mgrd.s3.listing import time_ns
from s3mgrd.s3.port import Condition, ObjectHead
from s3mgrd.s3.retry import CallFailed


def answered_ns(answer: Answer) -> int | None:
    """Return when S3 answered, in ns; None: it did not say."""
    date = answer.get("Date")
    return time_ns(date) if isinstance(date, datetime) else None


def may_be_ours(failure: CallFailed) -> bool:
    """Tell whether a write may have been refused only because its own first attempt had succeeded."""
    return failure.after_ambiguous and isinstance(failure.error, (PreconditionFailed, NotFound))


async def holds(
    head: Callable[[str], Awaitable[ObjectHead]],
    key: str,
    etag: str,
    metadata: Mapping[str, str] | None = None,
) -> bool:
    """Tell whether *key* is the object that a repeated write was to make; *head* looks for it."""
    try:
        found = await head(key)
    except S3mgrError:
        return False
    return found.etag == etag and (metadata is None or dict(found.metadata) == dict(metadata))


def lost_if_gone(failure: CallFailed, condition: Condition) -> S3mgrError:
    """Say what a failed PUT means: S3 answers 404 to If-Match on a key that is gone."""
    error = failure.error
    if condition.if_match is not None and isinstance(error, NotFound):
        return PreconditionFailed(
            f"another writer was first: {error.detail}", request_id=error.request_id
        )
    return error
