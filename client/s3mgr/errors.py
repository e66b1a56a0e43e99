"""Every error that the client raises on purpose.

    ClientError
    ├── InvalidAddress     --host or S3MGR_HOST names something that cannot be a daemon's socket
    ├── InvalidRequest     the input cannot become a request; the daemon was not asked
    ├── DaemonUnreachable  nobody listens on the socket, or nobody answers
    ├── SocketDenied       the socket exists, and this user may not use it
    ├── BadAnswer          whoever answered does not speak this API
    └── ProblemError       the daemon answered with a problem

`s3mgr.cli.exits` is the one place that turns these into exit codes.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from s3mgr.schema import Problem


class ClientError(Exception):
    """Root of the tree; never raised itself.

    Attributes:
        detail: what happened, one sentence without a full stop.
        hint: what the user can do; empty where nothing is known to help.
    """

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.detail: Final = detail
        self.hint: Final = hint


class InvalidAddress(ClientError):
    """The daemon's address is malformed, of an unsupported scheme, or too long for a socket."""


class InvalidRequest(ClientError):
    """The command line or the environment cannot become a request, e.g. an option out of range."""


class DaemonUnreachable(ClientError):
    """No daemon: no socket, a dead socket, or no answer in time. Not raised for a refused permission."""


class SocketDenied(ClientError):
    """The file system refuses this user the daemon's socket. Not raised when the daemon itself refuses."""


class BadAnswer(ClientError):
    """The answer is not HTTP, not JSON, or not of the expected shape: probably not s3mgrd."""


class ProblemError(ClientError):
    """The daemon answered with an RFC 9457 problem, or a background operation ended with one."""

    def __init__(self, problem: "Problem") -> None:
        super().__init__(problem.detail or problem.title, hint=problem.hint)
        self.problem: Final = problem
