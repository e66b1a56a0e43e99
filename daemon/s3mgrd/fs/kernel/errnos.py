"""The one table from errors to errno.

It lies here and not in `worker` because `fs.operations` answers the kernel and imports point downwards. Local
conditions (a name that exists, a directory that is not empty, a full disk) are OSErrors already and keep their errno.
"""

import errno

from s3mgrd.errors import (
    Archived,
    BucketNotFound,
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    PreconditionFailed,
    S3mgrError,
    TimedOut,
    TooLarge,
    Unavailable,
    Unforeseen,
    Unsupported,
    UserError,
)

ERRNOS: tuple[tuple[type[BaseException], int], ...] = (
    # Subclasses before their bases.
    (BucketNotFound, errno.EIO),
    (NotFound, errno.ENOENT),
    (Denied, errno.EACCES),
    (PreconditionFailed, errno.ESTALE),
    (Conflict, errno.EBUSY),
    (TooLarge, errno.EFBIG),
    (UserError, errno.EINVAL),
    (TimedOut, errno.ETIMEDOUT),
    (Unavailable, errno.EIO),
    (Archived, errno.EIO),
    (Unsupported, errno.EOPNOTSUPP),
    (Unforeseen, errno.EIO),
    (Corrupt, errno.EIO),
    (S3mgrError, errno.EIO),
)


def errno_of(error: BaseException) -> int:
    """Return what the program sees for *error*; EIO for anything unforeseen."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    for kind, number in ERRNOS:
        if isinstance(error, kind):
            return number
    return errno.EIO


def is_expected(error: BaseException) -> bool:
    """Whether *error* is one of the table's, neither a bug nor `Unforeseen`, so that a log line needs no stack."""
    return isinstance(error, OSError | S3mgrError) and not isinstance(error, Unforeseen)
