"""HTTP to the daemon over its unix socket: addresses, requests, event streams.

Knows nothing of routes or types (that is `s3mgr.api`). Synchronous, one connection per request: the
socket is local, and a command makes a handful of requests.
"""

import contextlib
import errno
import http.client
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from s3mgr.errors import BadAnswer, DaemonUnreachable, InvalidAddress, SocketDenied

SYSTEM_SOCKET: Final = "/run/s3mgr/s3mgr.sock"
HOST_VARIABLE: Final = "S3MGR_HOST"
ADMIN_GROUP: Final = "s3mgr"

# sizeof(sockaddr_un.sun_path) is 108, less the NUL that ends it.
SUN_PATH_MAX: Final = 107


@dataclass(frozen=True, slots=True)
class Address:
    """Where the daemon listens: the path of a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


def parse_address(text: str) -> Address:
    """Read ``unix:///path``, ``unix:/path`` or a bare absolute path.

    Raises:
        InvalidAddress: another scheme, or no absolute path.
    """
    scheme, separator, rest = text.partition(":")
    if text.startswith("/"):
        path = text
    elif separator and scheme == "unix":
        path = rest.removeprefix("//")
    else:
        raise InvalidAddress(
            f"cannot use the address '{text}': only unix sockets are supported",
            hint=f"write it as unix:///path, e.g. unix://{SYSTEM_SOCKET}",
        )
    if not path.startswith("/") or "\0" in path:
        raise InvalidAddress(
            f"cannot use the address '{text}': the path of the socket must be absolute",
            hint=f"write it as unix:///path, e.g. unix://{SYSTEM_SOCKET}",
        )
    return Address(path)


def default_address(environ: Mapping[str, str], *, uid: int) -> Address:
    """Return the address to use when none was given.

    ``S3MGR_HOST``; else root talks to the system's daemon; another user to their own daemon
    where it has a socket, else to the system's.
    """
    if text := environ.get(HOST_VARIABLE):
        return parse_address(text)
    own = user_socket(environ)
    if uid != 0 and own is not None and os.path.exists(own):
        return Address(own)
    return Address(SYSTEM_SOCKET)


def user_socket(environ: Mapping[str, str]) -> str | None:
    """Return the path where a user's own daemon listens; None where nothing tells."""
    runtime, state = environ.get("XDG_RUNTIME_DIR", ""), environ.get("XDG_STATE_HOME", "")
    if runtime.startswith("/"):
        return f"{runtime}/s3mgr/s3mgr.sock"
    if not state.startswith("/"):
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        state = f"{home}/.local/state"
    return f"{state}/s3mgr/s3mgr.sock"


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose transport is a unix socket."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        # "localhost" becomes the Host header, which HTTP/1.1 demands.
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            _connect_unix(connection, self._path)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


def _connect_unix(connection: socket.socket, path: str) -> None:
    """Connect to *path*, also where it is longer than a socket address may be."""
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        connection.connect(path)
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The kernel follows the magic link, so the address stays short whatever the directory's depth.
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > SUN_PATH_MAX:
            raise InvalidAddress(
                f"the file name of the socket {path} is too long",
                hint=f"a socket address holds {SUN_PATH_MAX} bytes; choose a shorter name",
            )
        connection.connect(short)
    finally:
        os.close(fd)


def _lower(answer: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.getheaders()}


class Transport:
    """Speaks HTTP to one address. Holds nothing open between requests."""

    def __init__(
        self, address: Address, *, timeout_s: float = 30.0, own_socket: str | None = None
    ) -> None:
        """Remember where to connect; *own_socket* (the user's own daemon) only shapes hints.

        Args:
            address: where the daemon listens.
            timeout_s: longest wait for a connection or for the next bytes.
            own_socket: where this user's own daemon would listen.
        """
        self.address: Final = address
        self._timeout_s = timeout_s
        self._own_socket = own_socket

    def request(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience_s: float = 0.0,
    ) -> Response:
        """Send one request and read the whole answer, whatever its status.

        Args:
            method: HTTP method.
            target: path and query, encoded.
            body: JSON, or None.
            headers: more headers.
            patience_s: how long the daemon was asked to wait before it answers; added to the timeout.

        Raises:
            DaemonUnreachable, SocketDenied, InvalidAddress, BadAnswer.
        """
        with self._opened(method, target, body, headers or {}, self._timeout_s + patience_s) as got:
            return self._complete(got)

    @contextlib.contextmanager
    def stream(
        self, target: str, *, headers: Mapping[str, str] | None = None, silence_s: float
    ) -> Iterator[tuple[Response, Iterator[bytes]]]:
        """Open a GET whose body is read line by line as it comes.

        Yields:
            The answer, and its lines without line ends; for a status other than 200 the body is complete
            and there are no lines.

        Raises:
            DaemonUnreachable: also from the iterator, when nothing came for *silence_s* or the stream broke.
        """
        with self._opened("GET", target, None, headers or {}, silence_s) as got:
            if got.status == http.client.OK:
                yield Response(got.status, _lower(got), b""), self._lines(got)
            else:
                yield self._complete(got), iter(())

    def _complete(self, answer: http.client.HTTPResponse) -> Response:
        with self._translated():
            return Response(answer.status, _lower(answer), answer.read())

    def _lines(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._translated():
                line = answer.readline()
            if not line:
                return
            yield line.rstrip(b"\r\n")

    @contextlib.contextmanager
    def _opened(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Iterator[http.client.HTTPResponse]:
        sent = {"Accept": "application/json, application/problem+json, text/event-stream"}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection = _UnixConnection(self.address.path, timeout_s=timeout_s)
        try:
            with self._translated():
                try:
                    connection.request(method, target, body=body, headers={**sent, **headers})
                except (BrokenPipeError, ConnectionResetError):
                    # A server may refuse a body before it has read it all; its answer says why.
                    if connection.sock is None:
                        raise
                answer = connection.getresponse()
            with answer:
                # Not translated: an exception thrown in here is the consumer's, e.g. a closed stdout.
                yield answer
        finally:
            connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise socket and HTTP errors as ours."""
        path = self.address.path
        try:
            yield
        except TimeoutError as exc:
            raise DaemonUnreachable(
                f"the daemon behind {path} does not answer",
                hint="look at its log: journalctl -u s3mgr",
            ) from exc
        except PermissionError as exc:
            raise SocketDenied(
                f"no permission on the socket {path}",
                hint=f"use sudo, or join its group and log in again: "
                f"sudo usermod -aG {ADMIN_GROUP} $USER",
            ) from exc
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise DaemonUnreachable(
                f"the daemon is not running: there is no socket {path}", hint=self._start_hint()
            ) from exc
        except ConnectionRefusedError as exc:
            raise DaemonUnreachable(
                f"the daemon is not running: nobody listens on the socket {path}",
                hint=self._start_hint(),
            ) from exc
        except (ConnectionError, http.client.IncompleteRead, http.client.RemoteDisconnected) as exc:
            raise DaemonUnreachable(
                f"the daemon behind {path} closed the connection",
                hint="it may be restarting: try again, then look at its log",
            ) from exc
        except http.client.HTTPException as exc:
            raise BadAnswer(
                f"the answer from {path} is not HTTP", hint="is this the socket of s3mgrd?"
            ) from exc
        except OSError as exc:
            if exc.errno == errno.EPROTOTYPE:
                raise BadAnswer(
                    f"{path} is not a stream socket", hint="is this the socket of s3mgrd?"
                ) from exc
            raise DaemonUnreachable(
                f"cannot connect to {path}: {exc.strerror or exc}", hint=self._start_hint()
            ) from exc

    def _start_hint(self) -> str:
        if self.address.path == SYSTEM_SOCKET:
            if os.geteuid() == 0:
                return "start it: systemctl start s3mgr"
            return "start it: sudo systemctl start s3mgr, or run your own: s3mgrd"
        if self.address.path == self._own_socket:
            return "start it: s3mgrd"
        return f"start it with --socket {self.address.path}, or correct --host / {HOST_VARIABLE}"
