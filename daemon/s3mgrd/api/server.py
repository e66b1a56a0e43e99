"""The server: endpoints, their accept loops, and a stop that no client can hold up.

hypercorn speaks HTTP; the accept loop is ours, because hypercorn's own neither tells who is at the other end of a unix
socket, nor leaves a live daemon's socket alone, nor ever ends while a client does not read (its sends are shielded from
cancellation). `TCPServer`, `Lifespan` and `WorkerContext` are not hypercorn's documented API: the version is pinned and
a contract test guards what is used here.

Tasks, and who ends whom::

    lifespan nursery        Quart's lifespan; the hard close
      connection nursery    one task per connection; has the grace as its deadline
        accept nursery      one accept loop per endpoint; cancelled first

A stop: no more accepting; hypercorn is told, so that idle connections close, and the others after their answer; event
streams end and waits answer early (they watch the same event); after the grace the tasks are cancelled, and shortly after
that the sockets are closed under those that are shielded; last, the lifespan ends.

TCP with TLS would be a second `Endpoint`: another listener, and an `identify` that reads tokens or certificates.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, LifespanState

from s3mgrd.api import auth
from s3mgrd.api.app import create_app
from s3mgrd.api.connections import Connections, Identify, Protocol
from s3mgrd.api.listening import EVERYBODY, OWNER_ONLY, listening_socket
from s3mgrd.api.settings import ApiSettings
from s3mgrd.mounts.service import MountService

__all__ = ["EVERYBODY", "OWNER_ONLY", "Endpoint", "serve_api", "serve_endpoints"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something to accept connections from.

    Attributes:
        listener: where they come from; closed by the server.
        identify: tells who is at the other end of one.
    """

    listener: trio.SocketListener
    identify: Identify


async def serve_api(
    service: MountService,
    socket_path: Path,
    *,
    admin_uid: int,
    admin_group: str | None,
    worker_user: str | None = None,
    shutdown: trio.Event,
    socket_mode: int = EVERYBODY,
    settings: ApiSettings | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on a unix socket until *shutdown* is set; started once connections are accepted.

    Returns at most `grace_s` + `hard_close_s` after *shutdown* was set, whatever clients do. When cancelled instead,
    all connections are closed at once.

    Args:
        service: the domain.
        socket_path: where to listen; the caller holds the instance lock. A socket that nobody serves is replaced.
        admin_uid: the uid that the daemon runs as.
        admin_group: its members administer; None or an unknown group: only root and *admin_uid* do.
        worker_user: an existing account that never administers; None: workers run as the daemon's own user.
        shutdown: set to stop.
        socket_mode: permissions of the socket.
        settings: limits and times.
        task_status: for `trio.Nursery.start`.

    Raises:
        InvalidConfig: the path cannot be used.
        Conflict: another daemon serves that socket.
    """
    settings = settings or ApiSettings()
    policy = auth.admin_policy(admin_uid, admin_group, worker_user)
    with listening_socket(socket_path, mode=socket_mode, gid=policy.admin_gid) as listening:
        endpoint = Endpoint(
            trio.SocketListener(trio.socket.from_stdlib_socket(listening)),
            lambda stream: auth.peer_principal(stream.socket, policy),
        )
        await serve_endpoints(
            create_app(service, shutdown, settings),
            [endpoint],
            shutdown=shutdown,
            settings=settings,
            task_status=task_status,
        )


async def serve_endpoints(
    app: ASGIFramework,
    endpoints: Sequence[Endpoint],
    *,
    shutdown: trio.Event,
    settings: ApiSettings,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* on all *endpoints* until *shutdown* is set."""
    config = _hypercorn_config(settings)
    context = WorkerContext(None)
    state: LifespanState = {}
    lifespan = Lifespan(ASGIWrapper(app), config, state)
    connections = Connections(Protocol(app, config, context, state), settings)

    async def hard_close() -> None:
        try:
            await shutdown.wait()
            await trio.sleep(settings.grace_s + settings.hard_close_s)
        finally:
            # Also when the server itself is cancelled: nothing else could end a shielded send.
            connections.abort()

    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        lifespan_nursery.start_soon(hard_close)
        async with trio.open_nursery() as connection_nursery:
            async with trio.open_nursery() as accept_nursery:
                for endpoint in endpoints:
                    await accept_nursery.start(
                        partial(
                            trio.serve_listeners,
                            partial(connections.serve, endpoint.identify),
                            [endpoint.listener],
                            handler_nursery=connection_nursery,
                        )
                    )
                task_status.started()
                await shutdown.wait()
                accept_nursery.cancel_scope.cancel()
            await context.terminated.set()
            connection_nursery.cancel_scope.deadline = trio.current_time() + settings.grace_s
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()


def _hypercorn_config(settings: ApiSettings) -> Config:
    config = Config()
    config.errorlog = logging.getLogger("s3mgrd.api.http")
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = settings.idle_timeout_s
    config.h11_max_incomplete_size = settings.max_head_bytes
    return config
