"""The limits of the API, in one place; tests shorten the times."""

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Limits and times of the HTTP server.

    Attributes:
        max_body_bytes: longer request bodies are refused (413).
        max_head_bytes: longest request line and headers together.
        body_timeout_s: how long a request body may take to arrive (408).
        idle_timeout_s: how long a connection may sit without a request, also before its first.
        send_timeout_s: how long a client may refuse to take bytes before it is disconnected. Larger than any
            pause of a live client, since a unix socket buffers some 200 KiB.
        heartbeat_s: silence on an event stream after which a comment is sent.
        grace_s: how long requests may go on once the server is told to stop.
        hard_close_s: how long after the grace connections that still exist are closed under their tasks.
        connections_per_user: most connections of one user at a time; root and the daemon's own user have no limit.
    """

    max_body_bytes: int = MIB
    max_head_bytes: int = 16 * KIB
    body_timeout_s: float = 20.0
    idle_timeout_s: float = 30.0
    send_timeout_s: float = 60.0
    heartbeat_s: float = 15.0
    grace_s: float = 3.0
    hard_close_s: float = 0.5
    connections_per_user: int = 128
