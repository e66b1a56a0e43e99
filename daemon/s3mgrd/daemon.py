"""The daemon's life: what starts after what, what a signal does, and what ends before what.

Start: directories, lock, state, workers, mounts, API. End: the API still answers while mounts drain, so that
``s3mgr ls`` shows it; then it closes, the last changes are stored, and the lock goes last of all.
"""

import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from s3mgrd import logs
from s3mgrd.api.problems import describe
from s3mgrd.api.server import EVERYBODY, OWNER_ONLY, serve_api
from s3mgrd.config import Startup
from s3mgrd.errors import Denied, InvalidConfig, Unavailable
from s3mgrd.fdstore import SystemdStore
from s3mgrd.fuse.connection import FUSE_DEVICE, FUSERMOUNT, FuseKernel
from s3mgrd.mounts.manager import Identity, Manager
from s3mgrd.mounts.reports import read_tail_in_thread
from s3mgrd.notify import Notifier
from s3mgrd.state.lock import instance_lock, prepare_directory
from s3mgrd.state.store import open_store
from s3mgrd.worker.spawn import WorkerProcesses

log = logging.getLogger(__name__)

# How often the drain's progress is told, and how much longer systemd is asked to wait each time.
PROGRESS_INTERVAL_S: Final = 2.0
EXTEND_S: Final = 30.0
MIB: Final = 1 << 20
HEIR: Final = "s3mgrd.undertaker:take_over"


async def run_daemon(startup: Startup, notifier: Notifier, reload: Callable[[], Startup]) -> None:
    """Serve until a signal asks to stop.

    Args:
        startup: what was asked for.
        notifier: tells systemd.
        reload: reads the configuration again, for SIGHUP.

    Raises:
        S3mgrError: it cannot start; alone or in exception groups.
    """
    config = startup.config
    check_fuse(user_mode=startup.user_mode)
    prepare_directory(config.state_dir, what="state_dir")
    prepare_directory(config.cache_dir, what="cache_dir")
    with instance_lock(config.state_dir):
        _prepare_socket_directory(config.socket, user_mode=startup.user_mode)
        boot_id = str(uuid.uuid4())
        # Blocks the loop while nothing else runs on it.
        store, warnings = open_store(config.state_dir, boot_id=boot_id)
        warnings = [*startup.warnings, *warnings]
        for warning in warnings:
            log.warning("%s", warning)
        worker_user = None if startup.user_mode else config.worker_user
        with store:
            async with WorkerProcesses(
                Path(config.state_dir), Path(config.cache_dir), worker_user, heir=HEIR
            ) as workers:
                manager = Manager(
                    config=config,
                    identity=Identity(
                        boot_id=boot_id, user_mode=startup.user_mode, warnings=tuple(warnings)
                    ),
                    kernel=FuseKernel(user_mode=startup.user_mode),
                    workers=workers,
                    descriptors=SystemdStore(notifier),
                    store=store,
                    describe=describe,
                    read_log=read_tail_in_thread,
                )
                await _serve(startup, manager, notifier, reload)
    log.info("stopped")


async def _serve(
    startup: Startup, manager: Manager, notifier: Notifier, reload: Callable[[], Startup]
) -> None:
    config = startup.config
    closing = trio.Event()
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        await nursery.start(_handle_signals, manager, stop, reload)
        nursery.start_soon(_feed_watchdog, notifier)
        await nursery.start(manager.run)
        async with trio.open_nursery() as api_nursery:
            await api_nursery.start(
                partial(
                    serve_api,
                    manager,
                    Path(config.socket),
                    admin_uid=os.geteuid(),
                    admin_group=None if startup.user_mode else config.admin_group or None,
                    worker_user=None if startup.user_mode else config.worker_user,
                    shutdown=closing,
                    socket_mode=OWNER_ONLY if startup.user_mode else EVERYBODY,
                )
            )
            log.info("listening on %s", config.socket)
            nursery.start_soon(_tell_when_ready, manager, notifier)
            await stop.wait()
            notifier.stopping()
            log.info("stopping: draining mounts for up to %g s", config.shutdown_timeout_s)
            async with trio.open_nursery() as progress_nursery:
                progress_nursery.start_soon(_tell_progress, manager, notifier)
                await manager.stop()
                progress_nursery.cancel_scope.cancel()
            closing.set()
        nursery.cancel_scope.cancel()


async def _handle_signals(
    manager: Manager,
    stop: trio.Event,
    reload: Callable[[], Startup],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP:
                _reload_level(reload)
            elif stop.is_set():
                log.warning("asked to stop again: what is left stays in the journals")
                manager.hurry()
            else:
                log.info("%s", signal.Signals(number).name)
                stop.set()


def _reload_level(reload: Callable[[], Startup]) -> None:
    try:
        level = reload().config.log_level
    except InvalidConfig as error:
        log.error("the configuration stays as it is: %s", error.detail)  # noqa: TRY400 - the user's error, no stack
        return
    logs.set_level(level)
    log.info("the log level is %s; other changes need a restart", level)


async def _feed_watchdog(notifier: Notifier) -> None:
    if notifier.watchdog_s is None:
        return
    while True:
        notifier.ping()
        await trio.sleep(notifier.watchdog_s / 2)


async def _tell_when_ready(manager: Manager, notifier: Notifier) -> None:
    await manager.wait_reconciled()
    log.info("ready")
    notifier.ready()


async def _tell_progress(manager: Manager, notifier: Notifier) -> None:
    while True:
        draining = manager.draining()
        text = ", ".join(f"{name}: {size / MIB:.0f} MiB left" for name, size in draining[:5])
        if len(draining) > 5:
            text += f" and {len(draining) - 5} more"
        notifier.status(f"draining {text}" if draining else "stopping", extend_s=EXTEND_S)
        await trio.sleep(PROGRESS_INTERVAL_S)


def check_fuse(*, user_mode: bool) -> None:
    """Raise unless this process can make FUSE mounts, as far as that can be told without making one."""
    if not os.path.exists(FUSE_DEVICE):
        raise Unavailable(
            f"{FUSE_DEVICE} does not exist",
            hint="Load the kernel module (modprobe fuse); in a container pass --device /dev/fuse.",
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise Denied(
            f"{FUSE_DEVICE} cannot be opened by this user",
            hint="Root must allow it, as udev does elsewhere: chmod 666 /dev/fuse (in a container: --device /dev/fuse).",
        )
    if user_mode and shutil.which(FUSERMOUNT) is None:
        raise Unavailable(
            f"{FUSERMOUNT} is not installed, and an ordinary user cannot mount without it",
            hint="Root must install it: apt install fuse3",
        )


def _prepare_socket_directory(socket: str, *, user_mode: bool) -> None:
    directory = os.path.dirname(socket)
    try:
        os.makedirs(directory, mode=0o700 if user_mode else 0o755, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(
            f"cannot make {directory} for the socket: {error.strerror}",
            hint="Choose another place with --socket.",
        ) from error
