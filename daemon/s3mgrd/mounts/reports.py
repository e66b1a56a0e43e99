"""API bodies that a worker has encoded, and the tail of its log."""

import os
import stat
from typing import Final, TypeVar

import msgspec
import trio

from s3mgr.schema import LogTail
from s3mgrd.errors import NotFound, Unavailable
from s3mgrd.worker.protocol import Reply, Report

T = TypeVar("T")

# What one answer reads at most, however many lines were asked for.
MAX_TAIL_BYTES: Final = 1 << 20

_READERS: Final = trio.CapacityLimiter(4)


async def read_tail_in_thread(path: str, lines: int, offset: int | None) -> LogTail:
    """`read_tail` without stopping the loop."""
    return await trio.to_thread.run_sync(read_tail, path, lines, offset, limiter=_READERS)


def decode_report(reply: Reply, kind: type[T]) -> T:
    """Decode the body of *reply*. Raises `Unavailable` when the worker answered something else."""
    if not isinstance(reply, Report):
        raise Unavailable(f"the worker answered with {type(reply).__name__}, not with a report")
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the worker's {kind.__name__} cannot be read: {error}") from error


def read_tail(path: str, lines: int, offset: int | None) -> LogTail:
    """Read the last *lines* lines of a log, or, with *offset*, the lines that came after it.

    A line that is still being written is left for the next call. Blocks on the disk: call it in a thread.

    Raises:
        NotFound: there is no log (yet).
        Unavailable: it cannot be read.
    """
    try:
        # O_NOFOLLOW, O_NONBLOCK: the file's directory is written by an unprivileged worker.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return _tail(fd, lines, offset)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise NotFound("there is no log yet", hint="A worker writes one as it starts.") from error
    except OSError as error:
        raise Unavailable(f"the log cannot be read: {error.strerror}") from error


def _tail(fd: int, lines: int, offset: int | None) -> LogTail:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Unavailable("the log is no regular file")
    size = status.st_size
    start = max(0, size - MAX_TAIL_BYTES)
    if offset is not None and offset <= size:  # beyond the end: it was rotated, so begin again
        start = max(start, offset)
    data = os.pread(fd, size - start, start)
    complete, newline, _ = data.rpartition(b"\n")
    end = start + len(complete) + len(newline)
    if not newline:
        return LogTail(lines=[], offset=start)
    found = complete.decode(errors="replace").split("\n")
    if start > 0 and start != offset:
        found = found[1:]  # begins in the middle
    if offset is None and lines < len(found):
        found = found[len(found) - lines :]
    return LogTail(lines=found, offset=end)
