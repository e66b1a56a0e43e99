"""Multipart uploads that S3 began although nobody saw its answer: the worker died, or none came.

S3 tells an upload's number only in its answer, and takes no mark by which an upload could be found again. So `begin` notes
the wish before it asks. A wish that is left over is resolved a day later (`GRACE_S`): an upload of that very key which
began about then, of which nobody here knows, and which has no part to this day is aborted.

Another client's upload must never be. It could be taken for ours only if it began within `CLOCKS_S` of a request of ours for the
same key whose answer got lost, and if it sent no part for a day. An upload that has a part is never touched: of ours nobody knew
the number that it takes to send one. An empty upload costs nothing meanwhile.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from s3mgrd.errors import NotFound, S3mgrError, TimedOut, Unavailable
from s3mgrd.fs.volume import NS, Volume
from s3mgrd.journal.tables import BeginningRow
from s3mgrd.s3.port import ObjectHead

GRACE_S: Final = 86_400
"""Whoever lives sends the first part within it."""
CLOCKS_S: Final = 900
"""S3 refuses requests of a clock that differs by more than this from its own."""

log = logging.getLogger(__name__)


async def begin(
    volume: Volume,
    key: str,
    note: Callable[[str], None],
    *,
    metadata: Mapping[str, str],
    content_type: str | None,
    like: ObjectHead | None = None,
) -> str:
    """Begin an upload and return its number, of which *note* takes note in the transaction that drops the wish.

    Raises what `ObjectStore.create_multipart` does.
    """
    journal, retries = volume.journal, volume.store.stats.retries
    wish = journal.put_beginning(key, now_ns=volume.now_ns())
    try:
        upload_id = await volume.store.create_multipart(
            key, metadata=metadata, content_type=content_type, like=like
        )
    except (Unavailable, TimedOut):
        journal.leave_beginning(wish, now_ns=volume.now_ns())
        raise
    except S3mgrError:
        journal.end_beginning(wish)  # refused
        raise
    except BaseException:
        journal.leave_beginning(wish, now_ns=volume.now_ns())
        raise
    with volume.database.transaction():
        note(upload_id)
        if volume.store.stats.retries == retries:
            journal.end_beginning(wish)
        else:  # perhaps an attempt before this one got no answer, and began another
            journal.leave_beginning(wish, now_ns=volume.now_ns())
    return upload_id


async def resolve(volume: Volume, row: BeginningRow) -> None:
    """Abort the upload that a wish of a day ago may have left. May be repeated at any point.

    Raises:
        Unavailable, TimedOut: S3 does not answer.
    """
    try:
        await _abort_unknown(volume, row)
    except (Unavailable, TimedOut):
        raise
    except S3mgrError as error:
        log.info("uploads of %s that were begun unseen cannot be looked for: %s", row.key, error)
    volume.journal.end_beginning(row.number)


async def _abort_unknown(volume: Volume, row: BeginningRow) -> None:
    first_ns, last_ns = row.since_ns - CLOCKS_S * NS, row.until_ns + CLOCKS_S * NS
    for upload in await volume.store.list_multiparts(row.key):
        if (
            upload.key != row.key
            or not first_ns <= upload.started_ns <= last_ns
            or volume.journal.knows_upload(upload.upload_id)
        ):
            continue
        with suppress(NotFound):  # completed or aborted meanwhile, by who knew it
            if not await volume.store.list_parts(upload.key, upload.upload_id):
                log.info("an upload of %s that was begun unseen is aborted", upload.key)
                await volume.store.abort_multipart(upload.key, upload.upload_id)
