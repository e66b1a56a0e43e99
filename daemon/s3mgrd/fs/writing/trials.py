"""What a store does with multipart uploads, found out beside the first one, so that no program waits for it."""

import logging

from s3mgrd.errors import S3mgrError
from s3mgrd.fs.volume import Volume
from s3mgrd.fs.writing import parking
from s3mgrd.s3.port import TRIAL

log = logging.getLogger(__name__)


async def find_out(volume: Volume) -> None:
    """Make an upload of no use, if that tells news. What it leaves by accident is deleted later, as what was written unseen.

    An upload that S3 began unseen is aborted a day later (`s3mgrd.fs.writing.beginnings`), also where the worker dies meanwhile.
    """
    if not volume.store.wants_trial:
        return
    key, journal = parking.parked_key(volume), volume.journal
    async with volume.locks.holding(("key", key)):
        with volume.database.transaction():
            journal.begin_write(key, size=len(TRIAL))
            wish = journal.put_beginning(key, now_ns=volume.now_ns())
        try:
            await volume.store.try_upload(key)
        except S3mgrError as error:
            journal.leave_beginning(wish, now_ns=volume.now_ns())
            log.info("what this store does with uploads is not known: %s", error)
        else:
            with volume.database.transaction():
                journal.end_beginning(wish)
                journal.end_writes(key)
