"""The worker's side of the kernel connection: libfuse is started on a connection that is long since open.

How. libfuse insists on answering FUSE_INIT, and the supervisor has done that when it mounted. So libfuse is given one
end of a socket pair (as ``/dev/fd/N``) that holds one FUSE_INIT of our making. While it handles that, it calls
`Operations.init`, which puts the real connection in the socket's place with dup2. libfuse's answer then goes to
the kernel, which knows no such request and says ENOENT; libfuse takes that for an interrupted request and goes on.

After another worker has died, three things come first (`collect_unanswered`): the kernel is asked to send again what
that one had read and not answered; those requests are read once here, only to learn which they are, since libfuse hides
the kernel's mark; and once libfuse is in place the kernel is asked again, so that libfuse gets them all.

One connection per process, once: pyfuse3 keeps its session in module globals. Concurrency: `MAX_TASKS` tasks inside
`pyfuse3.main`, each with one request in hand.
"""

import errno
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import pyfuse3
import trio

from s3mgrd.fs.kernel.express import Express
from s3mgrd.fuse import abi, tuning
from s3mgrd.worker import receiving, waiting
from s3mgrd.worker.express import Lane
from s3mgrd.worker.protocol import Serve
from s3mgrd.worker.ring import Ring

MAX_TASKS: Final = 128
"""Requests in hand at a time. More than the kernel's max_background (64), so that a storm of readahead against a slow
S3 leaves room for everything else; a close that waits for its upload holds one. Memory: a task's buffer is 1 MiB of
address space, of which a request touches as much as it carries, so only large writes cost: 128 programs that write
1 MiB each at the same moment would hold 128 MiB, one that copies a file holds a few."""
MIN_TASKS: Final = 4
"""Tasks kept waiting for the next request; fewer would be started anew for each burst, more would keep buffers."""
UNBLOCK_INTERVAL_S: Final = 1.0
"""See `interrupted_regularly`."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Unanswered:
    """What a dead worker left: requests it had read (they will come again), and forgets (they will not)."""

    resent: list[abi.Resent] = field(default_factory=list)
    forgets: list[tuple[int, int]] = field(default_factory=list)


def collect_unanswered(fuse_fd: int) -> Unanswered:
    """Find out which requests the kernel sends once more; they must be asked for again afterwards.

    Requests that no worker ever saw are read here as well, and come again with the rest; only forgets do not, so
    they are returned. Returns at once: what is queued is finite, since nobody gets an answer meanwhile.

    Raises:
        OSError: ENODEV: the connection has ended.
    """
    found = Unanswered()
    buffer = receiving.warm(receiving.BUFFER_BYTES)
    view = memoryview(buffer)
    flags = fcntl.fcntl(fuse_fd, fcntl.F_GETFL) & ~os.O_NONBLOCK
    fcntl.fcntl(fuse_fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        os.write(fuse_fd, abi.notify_resend())
        while True:
            try:
                size = os.readv(fuse_fd, [buffer])
            except BlockingIOError:
                return found
            except OSError as exc:
                if exc.errno == errno.ENOENT:  # its caller was killed meanwhile
                    continue
                raise
            message = view[:size]
            found.forgets += abi.parse_forgets(message)
            again = abi.parse_resent(message)
            if again is not None:
                found.resent.append(again)
    finally:
        # The mode belongs to the connection, whoever reads it; libfuse expects to block.
        fcntl.fcntl(fuse_fd, fcntl.F_SETFL, flags)


def let_go(fuse_fd: int, inodes: Sequence[int]) -> None:
    """Ask the kernel to drop names and inodes that no program uses; it says which by forgetting them. Linux 6.18 and later."""
    try:
        os.write(fuse_fd, abi.notify_prune(inodes))
    except OSError as exc:
        # EINVAL: an older kernel, which forgets them when it needs the memory. The others: the connection has ended.
        if exc.errno not in (errno.EINVAL, errno.ENODEV, errno.EPERM):
            log.debug("the kernel does not let go of %d inodes: %s", len(inodes), exc)


@contextmanager
def interrupted_regularly() -> Iterator[None]:
    """Have a signal interrupt the main thread once a second.

    pyfuse3 waits until the connection is readable and then reads, blocking, with the interpreter's lock. If the one
    request there is disappears in between (its caller was killed), that read would stop the whole worker until the
    next request. The signal ends it with EINTR, after which pyfuse3 waits again. Only in the main thread.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, UNBLOCK_INTERVAL_S, UNBLOCK_INTERVAL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def serve(
    operations: pyfuse3.Operations,
    fuse_fd: int,
    message: Serve,
    *,
    ring: Ring,
    express: Express | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve the kernel connection until it ends (somebody unmounted it, or it was aborted); returns normally then.

    Cancelling leaves requests unanswered; the next worker gets them again.

    Args:
        operations: the file system, ready to answer; its `init` is replaced.
        fuse_fd: the connection; stays the caller's.
        message: the supervisor's `Serve`.
        ring: of this connection; learns which calls are repeats.
        express: answers what it can before *operations* are asked.
        started: called once libfuse reads from the kernel, or finds that the connection has ended already; always
            before this returns.
    """
    asks_again = message.resumed and message.resend
    if message.resumed:
        try:
            left = collect_unanswered(fuse_fd) if message.resend else Unanswered()
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise
            started()
            return
        ring.resume(left.resent)
        log.info("resumed; %d requests come again", len(left.resent))
        if left.forgets:
            await operations.forget(left.forgets)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session_fd = ours.detach()
    receiver = receiving.install()
    libfuse_reads = True
    if receiver is not None and express is not None:
        take = partial(receiver.take, session_fd, Lane(express, session_fd))
        libfuse_reads = not waiting.watch(session_fd, take, express.settle)
    else:
        waiting.watch(session_fd)

    def hand_over() -> None:
        os.dup2(fuse_fd, session_fd, inheritable=False)
        os.set_blocking(session_fd, libfuse_reads)
        if asks_again:
            with suppress(OSError):  # it has ended meanwhile: libfuse's next read says so
                os.write(fuse_fd, abi.notify_resend())
            if receiver is not None and not libfuse_reads:
                receiver.expect(ring)
        started()

    operations.init = hand_over  # type: ignore[method-assign] # the one call that libfuse makes while it handles INIT
    with theirs, interrupted_regularly() if libfuse_reads else nullcontext():
        theirs.send(
            abi.init_request(
                minor=message.minor,
                max_readahead=tuning.READAHEAD_BYTES,
                flags=message.flags,
                flags2=message.flags2,
            )
        )
        # From here on libfuse owns session_fd.
        pyfuse3.init(operations, f"/dev/fd/{session_fd}", {"fsname=s3mgr"})
        try:
            await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
        finally:
            trio.lowlevel.notify_closing(session_fd)
            pyfuse3.close(unmount=False)
