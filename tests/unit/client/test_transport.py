"""Addresses, sockets and the raw conversation."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3mgr.api import Client
from s3mgr.errors import (
    BadAnswer,
    ClientError,
    DaemonUnreachable,
    InvalidAddress,
    ProblemError,
    SocketDenied,
)
from s3mgr.transport import (
    SUN_PATH_MAX,
    SYSTEM_SOCKET,
    Address,
    Transport,
    default_address,
    parse_address,
)
from tests.descriptors import held_by

from .fake_daemon import FakeDaemon, make_mount, running


@pytest.mark.parametrize("text", ["unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"])
def test_forms_of_an_address(text: str) -> None:
    assert parse_address(text) == Address("/run/x.sock")
    assert str(parse_address(text)) == "unix:///run/x.sock"


@pytest.mark.parametrize("text", ["", "http://x", "https://x", "unix://x/y", "run/x", "unix:/a\0b"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidAddress):
        parse_address(text)


def test_the_default_address(tmp_path: Path) -> None:
    own = tmp_path / "s3mgr/s3mgr.sock"
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert default_address(environ, uid=1000) == Address(SYSTEM_SOCKET)
    own.parent.mkdir()
    own.touch()
    assert default_address(environ, uid=1000) == Address(str(own))
    assert default_address(environ, uid=0) == Address(SYSTEM_SOCKET)
    assert default_address({"XDG_RUNTIME_DIR": "relative"}, uid=1000) == Address(SYSTEM_SOCKET)
    named = {**environ, "S3MGR_HOST": "unix:///named"}
    assert default_address(named, uid=1000) == Address("/named")
    assert default_address({**named, "S3MGR_HOST": ""}, uid=0) == Address(SYSTEM_SOCKET)


def test_a_path_that_is_too_long_for_a_socket_address_is_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    # Bound under a short name: bind() has the same limit.
    short = tmp_path / "s"
    with running(short) as fake:
        fake.add(make_mount())
        os.rename(short, deep / "daemon.sock")
        path = deep / "daemon.sock"
        assert len(str(path)) > SUN_PATH_MAX
        assert len(Client.connect(f"unix://{path}").list_mounts().items) == 1
        assert str(deep) not in dict(held_by()).values()


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAddress, match="too long"):
        Client.connect(f"unix://{tmp_path}/{'n' * 120}").list_mounts()


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """Accept one connection, send *answer* and close; None: stay silent until the client goes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                if answer is None:
                    peer.recv(1)
                else:
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"SSH-2.0-OpenSSH\r\n", BadAnswer, "is not HTTP"),
        (b"", DaemonUnreachable, "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", DaemonUnreachable, "closed the con"),
        (None, DaemonUnreachable, "does not answer"),
    ],
)
def test_conversations_that_fail(
    tmp_path: Path, answer: bytes | None, error: type[ClientError], text: str
) -> None:
    path = tmp_path / "s"
    with answering(path, answer), pytest.raises(error, match=text):
        Client.connect(str(path), timeout_s=0.1).list_mounts()


def test_a_socket_of_another_kind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "s"))
        with pytest.raises(BadAnswer, match="is not a stream socket"):
            Client.connect(f"{tmp_path}/s").list_mounts()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), SocketDenied),
        (NotADirectoryError(20, "Not a directory"), DaemonUnreachable),
        (BlockingIOError(11, "Resource temporarily unavailable"), DaemonUnreachable),
    ],
)
def test_errors_of_connecting(
    monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[ClientError]
) -> None:
    def refuse(*_args: object) -> None:
        raise error

    monkeypatch.setattr("s3mgr.transport._connect_unix", refuse)
    with pytest.raises(expected):
        Transport(Address("/x")).request("GET", "/")


def test_an_error_of_the_reader_of_a_stream_stays_what_it_is(daemon: FakeDaemon) -> None:
    """Only what the socket does is translated, not what the consumer of events does."""
    client = Client.connect(daemon.host)
    with pytest.raises(BrokenPipeError), client.events(since=0):
        raise BrokenPipeError


def test_names_are_quoted(daemon: FakeDaemon) -> None:
    with pytest.raises(ProblemError):
        Client.connect(daemon.host).get_mount("a/../b?x")
    assert daemon.requests[-1].path == "/v1/mounts/a%2F..%2Fb%3Fx"


def test_the_other_observations_are_typed(daemon: FakeDaemon) -> None:
    """Routes that no command uses yet, and filters."""
    daemon.add(make_mount())
    client = Client.connect(daemon.host)
    client.list_mounts(state="failed", label="a=b")
    assert daemon.requests[-1].query == {"state": "failed", "label": "a=b"}
    with pytest.raises(ClientError):
        client.mount_stats("nope")
