"""The one table from errors to errno, and its description for users."""

import errno
import os
from pathlib import Path

import pytest

from s3mgrd import errors
from s3mgrd.fs.kernel.errnos import ERRNOS, errno_of

SEMANTICS = Path(__file__).parents[4] / "docs" / "semantics.md"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.NotFound("x"), errno.ENOENT),
        (errors.BucketNotFound("x"), errno.EIO),
        (errors.CredentialsRejected("x"), errno.EACCES),
        (errors.Denied("x"), errno.EACCES),
        (errors.PreconditionFailed("x"), errno.ESTALE),
        (errors.TooLarge("x"), errno.EFBIG),
        (errors.TimedOut("x"), errno.ETIMEDOUT),
        (errors.Unavailable("x"), errno.EIO),
        (errors.Archived("x"), errno.EIO),
        (errors.Unforeseen("x"), errno.EIO),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT),
        (ZeroDivisionError(), errno.EIO),
    ],
)
def test_each_error_has_its_errno(error: Exception, number: int) -> None:
    assert errno_of(error) == number


def test_subclasses_stand_before_their_bases() -> None:
    classes = [cls for cls, _ in ERRNOS]
    for i, cls in enumerate(classes):
        assert not any(issubclass(later, cls) for later in classes[i + 1 :]), cls


def test_every_errno_is_in_the_documents_table() -> None:
    table = SEMANTICS.read_text().partition("## Errors")[2]
    for _, number in ERRNOS:
        assert errno.errorcode[number].replace("ENOTSUP", "EOPNOTSUPP") in table
