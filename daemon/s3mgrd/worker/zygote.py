"""The zygote: a process that has imported everything, and forks a worker in a few milliseconds when asked.

Started as ``python -m s3mgrd.worker.zygote FD`` by `s3mgrd.worker.breeder`, with a clean environment and no
secrets. It never starts a thread and never touches a mount. It ends when the supervisor's end of the socket closes,
and its heir sees to what is left; its workers go on.

A forked child leaves the loop by returning from it, so that no frame of the zygote is left on its stack, closes every
descriptor but its own, and only then becomes what it is for.
"""

import array
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from s3mgr.schema import MountSpec
from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.worker.allocator import give_back
from s3mgrd.worker.channel import error_reply
from s3mgrd.worker.privileges import Identity, become_worker, name_process
from s3mgrd.worker.protocol import CredentialGrant, ErrorReply
from s3mgrd.worker.zygote_messages import (
    MAX_PACKET_BYTES,
    Exited,
    Forked,
    ForkFailed,
    ForkWorker,
    FromZygote,
    Ready,
    ResolveCredentials,
    Setup,
    ToZygote,
)

MAX_DESCRIPTORS: Final = 4
RESOLVE_LIMIT_S: Final = 120
"""After this a resolver ends itself, whatever it hangs in; its supervisor has given up long before."""

Entry = Callable[[socket.socket, str, Path, Path], None]
"""Runs a worker to its end: its listening control socket, the mount's name, the mount's directory (mount.db, staging),
its cache directory. Called in a process that was forked for it, after `become_worker`; it calls `renounce` itself."""
Resolver = Callable[[MountSpec], CredentialGrant]
"""Resolves the daemon's own credentials; raises `S3mgrError`."""
Heir = Callable[[str], None]
"""Called last thing when the supervisor of a state directory has gone, in order or not."""


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What a forked child is to do: serve a mount."""

    mount: str
    mount_dir: str
    cache_dir: str
    listener_fd: int
    log_fd: int


@dataclass(frozen=True, slots=True)
class ResolverJob:
    """What a forked child is to do: resolve credentials and write them to a pipe."""

    spec: MountSpec
    environment: dict[str, str]
    answer_fd: int


Job = WorkerJob | ResolverJob


class Zygote:
    """The loop of the zygote process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._children: dict[int, int] = {}  # pidfd → pid

    def receive(self) -> tuple[ToZygote, list[int]] | None:
        """Wait for a message and its descriptors; None: the supervisor is gone."""
        data, fds, _, _ = socket.recv_fds(
            self._socket, MAX_PACKET_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return None
        message: ToZygote = msgspec.json.decode(data, type=ToZygote)
        return message, fds

    def send(self, message: FromZygote, fds: tuple[int, ...] = ()) -> None:
        """Send *message* with *fds*."""
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        )
        self._socket.sendmsg([msgspec.json.encode(message)], ancillary)

    def run(self) -> Job | None:
        """Work until the supervisor is gone (None), or until this is the forked child (its job)."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd in self._children:
                    poll.unregister(fd)
                    self._reap(fd)
                    continue
                received = self.receive()
                if received is None:
                    return None
                message, fds = received
                if isinstance(message, Setup):
                    continue  # only the first one counts
                job = _job_of(message, fds)
                pidfd = self._fork(message.id, fds)
                if pidfd is None:
                    return job
                if pidfd >= 0:
                    poll.register(pidfd, select.POLLIN)

    def _fork(self, request: int, fds: list[int]) -> int | None:
        """Fork and report; returns the pidfd, -1 when it failed, and None in the child."""
        try:
            pid = os.fork()
        except OSError as exc:
            self.send(ForkFailed(id=request, detail=exc.strerror or str(exc)))
            pid = -1
        if pid == 0:
            return None
        for fd in fds:
            os.close(fd)
        if pid < 0:
            return -1
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self.send(Forked(id=request, pid=pid), (pidfd,))
        return pidfd

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self.send(Exited(pid=pid, code=os.waitstatus_to_exitcode(status)))


def _job_of(message: ForkWorker | ResolveCredentials, fds: list[int]) -> Job:
    if isinstance(message, ForkWorker):
        listener_fd, log_fd = fds
        return WorkerJob(message.mount, message.mount_dir, message.cache_dir, listener_fd, log_fd)
    (answer_fd,) = fds
    return ResolverJob(message.spec, message.environment, answer_fd)


def load(name: str) -> Any:  # noqa: ANN401 - entry, warm-ups and resolver have different signatures
    """Import ``module:function``."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _close_all_but(keep: set[int]) -> None:
    with os.scandir("/proc/self/fd") as listing:
        fds = [int(entry.name) for entry in listing]
    for fd in fds:
        if fd not in keep:
            try:
                os.close(fd)
            except OSError as exc:  # the listing's own descriptor is closed already
                if exc.errno != errno.EBADF:
                    raise


def _be_worker(job: WorkerJob, entry: Entry, identity: Identity | None) -> NoReturn:
    """Turn into the worker of a mount and end with it."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(job.log_fd, 1)
        os.dup2(job.log_fd, 2)
        _close_all_but({0, 1, 2, job.listener_fd})
        name_process(f"s3mgr:{job.mount}")
        become_worker(identity)
        listener = socket.socket(fileno=job.listener_fd)
        entry(listener, job.mount, Path(job.mount_dir), Path(job.cache_dir))
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - the last frame of a process: what it says is all that anybody learns
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_resolver(job: ResolverJob, resolver: Resolver) -> NoReturn:
    """Resolve credentials, write them or the error to the pipe, and end."""
    answer: CredentialGrant | ErrorReply
    try:
        signal.alarm(RESOLVE_LIMIT_S)
        _close_all_but({0, 1, 2, job.answer_fd})
        os.environ.update(job.environment)
        try:
            answer = resolver(job.spec)
        except S3mgrError as exc:
            answer = error_reply(exc)
        with os.fdopen(job.answer_fd, "wb") as pipe:
            pipe.write(msgspec.json.encode(answer))
    except BaseException:  # noqa: BLE001 - the last frame of a process: its closed pipe tells the supervisor
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def run_zygote(sock: socket.socket) -> int:
    """Be the zygote at the other end of *sock*; returns the process's exit status. Does not return in a child."""
    zygote = Zygote(sock)
    received = zygote.receive()
    if received is None or not isinstance(received[0], Setup):
        return 1
    setup = received[0]
    for warm in setup.warm:
        load(warm)()
    entry: Entry = load(setup.entry)
    resolver: Resolver = load(setup.resolver)
    identity = (
        Identity(setup.uid, setup.gid) if setup.uid is not None and setup.gid is not None else None
    )
    if len(os.listdir("/proc/self/task")) != 1:
        raise Unavailable("an imported library has started a thread; a forked worker would lack it")
    # Objects that are there now are shared with all workers; a collection would touch, and so copy, each page.
    gc.disable()
    gc.collect()
    give_back()
    gc.freeze()
    try:
        zygote.send(Ready())
        job = zygote.run()
    except ConnectionError:  # the supervisor went away in the middle of a word
        job = None
    if job is None:
        if setup.heir:
            sock.close()
            heir: Heir = load(setup.heir)
            heir(setup.state_dir)
        return 0
    sock.detach()  # the number is closed with all others
    del zygote
    gc.enable()
    if isinstance(job, WorkerJob):
        _be_worker(job, entry, identity)
    _be_resolver(job, resolver)


if __name__ == "__main__":
    sys.exit(run_zygote(socket.socket(fileno=int(sys.argv[1]))))
