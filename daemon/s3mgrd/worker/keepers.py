"""The supervisor's side of keepers (`worker.keeper`): makes their sockets, asks them, and has them end.

A keeper listens at ``<state-dir>/run/<mount>.keep``. The next worker's keeper gets a socket of another name, which takes
the place of the old one once that worker serves: at each moment whoever has the connection can be found.
"""

import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import trio

from s3mgrd.errors import Conflict, Denied, Unavailable, Unsupported, WorkerLost
from s3mgrd.state.lock import instance_lock
from s3mgrd.worker.channel import Body, Fds, close_all, open_channel
from s3mgrd.worker.protocol import Descriptors, GetDescriptors, Packet, Reply, Stop
from s3mgrd.worker.workdirs import WorkDirs

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 5.0
"""A keeper answers at once, unless its worker lives or is on its way out."""
END_TIMEOUT_S: Final = 2.0
MAX_REPLY_BYTES: Final = 4096


async def ask(dirs: WorkDirs, mount: str) -> tuple[Descriptors, int, int] | None:
    """Take duplicates of the kernel connection and the ring that a keeper holds; the caller owns both.

    Returns:
        None: there is no keeper, or its worker lives.
    """
    sock = await trio.to_thread.run_sync(dirs.connect_keeper, mount)
    if sock is None:
        return None
    with trio.move_on_after(ASK_TIMEOUT_S):
        async with open_channel(sock, _refuse) as channel:
            try:
                reply, fds = await channel.request(GetDescriptors())
            except WorkerLost:
                return None
            if isinstance(reply, Descriptors) and len(fds) == 2:
                return reply, fds[0], fds[1]
            close_all(fds)
    return None


async def _refuse(body: Body, fds: Fds) -> tuple[Reply, Fds]:
    close_all(fds)
    raise Unsupported(f"a supervisor does not answer {type(body).__name__}")


@asynccontextmanager
async def renewed(dirs: WorkDirs, mount: str) -> AsyncIterator[int]:
    """Give a listening socket for the keeper of a worker that is about to serve; it stays ours.

    When the context ends well, that keeper has the place of the one before, which is told to end.
    """
    with await trio.to_thread.run_sync(dirs.listen_keeper, mount) as listener:
        try:
            yield listener.fileno()
        except BaseException:
            # It may have taken the connection up with a worker that dies now.
            _tell(dirs.connect_keeper(mount, is_new=True))
            dirs.drop_keeper(mount, is_new=True)
            raise
    old = dirs.connect_keeper(mount)
    dirs.replace_keeper(mount)
    _tell(old)


def release(dirs: WorkDirs, mount: str) -> None:
    """Have the keeper of *mount* let go of the connection, as soon as its worker is gone; blocks for a moment."""
    _tell(dirs.connect_keeper(mount))
    dirs.drop_keeper(mount)


def end_all(state_dir: str) -> None:
    """End every keeper whose worker is dead, and wait until the connections are let go of.

    Nothing while a daemon runs: what it finds it knows how to use.
    """
    dirs = WorkDirs(Path(state_dir).absolute(), Path(), None)
    with suppress(Conflict, Denied, Unavailable), instance_lock(state_dir):
        _end_all(dirs)


def _end_all(dirs: WorkDirs) -> None:
    told = []
    for mount in dirs.kept_mounts():
        worker = dirs.connect(mount)
        if worker is not None:
            worker.close()
            continue
        keeper = dirs.connect_keeper(mount)
        if keeper is not None and _send_stop(keeper):
            told.append(keeper)
        dirs.drop_keeper(mount)
    _await_end(told)


def _await_end(told: Iterable[socket.socket]) -> None:
    for keeper in told:
        with keeper, suppress(OSError):
            keeper.settimeout(END_TIMEOUT_S)
            while keeper.recv(MAX_REPLY_BYTES):
                pass


def _tell(keeper: socket.socket | None) -> None:
    """Tell a keeper to end; what waits in its socket it reads even when we are gone."""
    if keeper is not None:
        with keeper:
            _send_stop(keeper)


def _send_stop(keeper: socket.socket) -> bool:
    try:
        keeper.send(msgspec.json.encode(Packet(id=1, body=Stop())), socket.MSG_DONTWAIT)
    except OSError as error:
        log.debug("a keeper cannot be told to end: %s", os.strerror(error.errno or 0))
        return False
    return True
