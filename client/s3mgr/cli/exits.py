"""Exit codes: the one table from what went wrong to what the shell sees, and the hints of last resort."""

from enum import IntEnum
from typing import Final

import click

from s3mgr.errors import (
    BadAnswer,
    ClientError,
    DaemonUnreachable,
    InvalidAddress,
    InvalidRequest,
    ProblemError,
    SocketDenied,
)


class ExitCode(IntEnum):
    """What ``s3mgr`` exits with; stable, scripts rely on it."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    PERMISSION = 5
    CONFLICT = 6
    TIMED_OUT = 7
    PARTIAL = 8
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANINGS: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "done, or already as asked",
    ExitCode.FAILURE: "failed",
    ExitCode.USAGE: "the command line or the request is wrong",
    ExitCode.UNREACHABLE: "the daemon is not running, or is stopping",
    ExitCode.NOT_FOUND: "no such mount, bucket or path",
    ExitCode.PERMISSION: "not permitted, or S3 rejected the keys",
    ExitCode.CONFLICT: "a name or mountpoint is taken, or the mount is not in the needed state",
    ExitCode.TIMED_OUT: "not done in time; the daemon carries on",
    ExitCode.PARTIAL: "done in part: some data is not in S3 yet, or some of several mounts failed",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; the daemon carries on",
    ExitCode.PIPE_CLOSED: "the reader of the output went away",
}

# Slugs of `s3mgr.schema.ProblemType`, as text so that the table costs no import; a test compares them.
_PROBLEMS: Final[dict[str, ExitCode]] = {
    "invalid-request": ExitCode.USAGE,
    "invalid-spec": ExitCode.USAGE,
    "not-found": ExitCode.NOT_FOUND,
    "method-not-allowed": ExitCode.FAILURE,
    "name-conflict": ExitCode.CONFLICT,
    "mountpoint-busy": ExitCode.CONFLICT,
    "mountpoint-invalid": ExitCode.USAGE,
    "spec-conflict": ExitCode.CONFLICT,
    "not-mounted": ExitCode.CONFLICT,
    "conflict": ExitCode.CONFLICT,
    "precondition-failed": ExitCode.CONFLICT,
    "dirty-data": ExitCode.PARTIAL,
    "not-permitted": ExitCode.PERMISSION,
    "unauthenticated": ExitCode.PERMISSION,
    "bucket-unreachable": ExitCode.FAILURE,
    "bucket-not-found": ExitCode.NOT_FOUND,
    "credentials-rejected": ExitCode.PERMISSION,
    "body-too-large": ExitCode.USAGE,
    "request-timeout": ExitCode.TIMED_OUT,
    "unsupported": ExitCode.FAILURE,
    "draining": ExitCode.UNREACHABLE,
    "not-ready": ExitCode.UNREACHABLE,
    "mount-failed": ExitCode.FAILURE,
    "internal": ExitCode.FAILURE,
}

_EXCEPTIONS: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (InvalidAddress, ExitCode.USAGE),
    (InvalidRequest, ExitCode.USAGE),
    (DaemonUnreachable, ExitCode.UNREACHABLE),
    (SocketDenied, ExitCode.PERMISSION),
    (BadAnswer, ExitCode.FAILURE),
    (click.UsageError, ExitCode.USAGE),
    (click.ClickException, ExitCode.FAILURE),
)

# Said when the daemon gave no hint of its own.
_HINTS: Final[dict[str, str]] = {
    "not-found": "see what there is: s3mgr ls",
    "name-conflict": "choose another name with --name",
    "mountpoint-busy": "see what is mounted: s3mgr ls; findmnt",
    "mountpoint-invalid": "give an existing, empty directory",
    "spec-conflict": "unmount it first, or choose another name with --name",
    "not-mounted": "see its state: s3mgr ls",
    "dirty-data": "it is uploaded by the next mount; s3mgr show lists it",
    "not-permitted": "use sudo, or join the group and log in again: sudo usermod -aG s3mgr $USER",
    "bucket-unreachable": "check --endpoint and the network",
    "bucket-not-found": "check the bucket's name and --endpoint",
    "credentials-rejected": "check the access key, the secret and the clock of this machine",
    "request-timeout": "try again with a longer --timeout",
    "draining": "the daemon is stopping: try again when it is back",
    "not-ready": "the daemon is starting: try again in a moment",
    "mount-failed": "see why: s3mgr logs NAME",
    "internal": "this is a bug in s3mgrd: its log has the details",
}


class CommandFailed(click.ClickException):
    """A command could not do its work; carries the line, the hint and the exit code.

    Attributes:
        hint: what the user can do, or empty.
        code: what to exit with.
    """

    def __init__(self, message: str, *, hint: str = "", code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class AlreadyReported(click.ClickException):
    """Everything was said while the command ran; only the exit code is left."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__("")
        self.code = code


def exit_code(exc: Exception) -> ExitCode:
    """Return the exit code of *exc*."""
    if isinstance(exc, (CommandFailed, AlreadyReported)):
        return exc.code
    if isinstance(exc, ProblemError):
        return _PROBLEMS.get(exc.problem.slug, ExitCode.FAILURE)
    for class_, code in _EXCEPTIONS:
        if isinstance(exc, class_):
            return code
    return ExitCode.FAILURE


def combined(codes: list[ExitCode], *, total: int) -> ExitCode:
    """Return the exit code of a command on *total* mounts of which some ended with *codes*."""
    failures = [code for code in codes if code is not ExitCode.OK]
    if not failures:
        return ExitCode.OK
    if len(failures) == total and len(set(failures)) == 1:
        return failures[0]
    return ExitCode.PARTIAL


def clause(sentence: str) -> str:
    """Make a sentence fit after a colon: one line, no full stop, no capital but of names and acronyms."""
    text = " ".join(sentence.split()).rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def describe(exc: ClientError) -> tuple[str, str]:
    """Return what to say about *exc*: one line, and a hint or an empty string."""
    if not isinstance(exc, ProblemError):
        return exc.detail, exc.hint
    problem = exc.problem
    detail = clause(exc.detail)
    for error in problem.errors:
        if error.detail not in exc.detail:
            field = error.pointer.removeprefix("/spec").removeprefix("/options").strip("/")
            detail += f"; {field}: {error.detail}" if field else f"; {error.detail}"
    return detail, exc.hint or _HINTS.get(problem.slug, "")
