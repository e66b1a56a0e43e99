"""The server: its socket, who is at the other end, and a stop that nobody can hold up."""

import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from s3mgr.schema import LogTail
from s3mgrd.api import listening
from s3mgrd.api.server import OWNER_ONLY, serve_api
from s3mgrd.api.settings import ApiSettings
from s3mgrd.errors import Conflict, InvalidConfig
from s3mgrd.mounts.service import Principal
from tests.fakes.service import FakeService
from tests.unit.api.client import TIMEOUT_S, Client
from tests.unit.api.conftest import serving, until

REQUEST = {"spec": {"bucket": "b", "mountpoint": "/mnt/logs"}}
OTHER_UID = 12345
OTHER_GROUPS = (23456, 23457)

# Runs as another user: no import after the change of identity, since that user may not read the interpreter's files.
AS_OTHER_USER = f"""
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
os.setgroups({list(OTHER_GROUPS)})
os.setgid({OTHER_UID})
os.setuid({OTHER_UID})
sock.connect(sys.argv[1])
try:
    sock.sendall(sys.argv[2].encode())
    while data := sock.recv(65536):
        sys.stdout.buffer.write(data)
except ConnectionError:
    pass  # Refused: what was received says why, or nothing was.
"""


async def as_other_user(path: Path, method: str, target: str) -> bytes:
    """Send one request as another user; returns the raw answer."""
    request = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with trio.fail_after(TIMEOUT_S):
        done = await trio.run_process(
            [sys.executable, "-c", AS_OTHER_USER, str(path), request],
            capture_stdout=True,
        )
    return bytes(done.stdout)


def policy_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_gone(path: Path) -> bool:
    return not os.path.lexists(path)


def listen_briefly(path: Path) -> None:
    with listening.listening_socket(path, mode=0o600, gid=None):
        pass


# The socket.


async def test_the_socket_is_open_to_everybody_and_gone_at_the_end(
    service: FakeService, socket_path: Path
) -> None:
    """Peer credentials decide; the mode only lets users ask. The process's umask has no say."""
    before = os.umask(0o077)
    try:
        async with serving(service, socket_path):
            assert policy_of(socket_path) == 0o666
    finally:
        os.umask(before)
    assert is_gone(socket_path)


def test_a_users_own_socket_is_closed_to_others(socket_path: Path) -> None:
    with listening.listening_socket(socket_path, mode=OWNER_ONLY, gid=None):
        assert policy_of(socket_path) == 0o600


def test_nobody_can_connect_before_the_mode_is_set(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.chmod
    refusals = []

    def chmod(path: Path, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as early:
            refusals.append(early.connect_ex(str(socket_path)))
        real(path, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    with listening.listening_socket(socket_path, mode=OWNER_ONLY, gid=None):
        pass
    assert refusals == [111]  # ECONNREFUSED


def test_the_socket_belongs_to_the_admin_group(socket_path: Path) -> None:
    with listening.listening_socket(socket_path, mode=0o660, gid=OTHER_GROUPS[0]):
        assert socket_path.stat().st_gid == OTHER_GROUPS[0]


def test_a_stale_socket_is_replaced(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    with (
        listening.listening_socket(socket_path, mode=0o600, gid=None),
        socket.socket(socket.AF_UNIX) as probe,
    ):
        probe.connect(str(socket_path))


@pytest.mark.parametrize("full", [False, True], ids=["idle", "backlog full"])
def test_a_live_socket_is_never_taken(socket_path: Path, full: bool) -> None:
    """Two daemons with different state directories hold different locks."""
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(socket_path))
        live.listen(0)
        if full:
            waiting.connect(str(socket_path))
        with pytest.raises(Conflict, match="another daemon") as caught:
            listen_briefly(socket_path)
        assert "--socket" in caught.value.hint
        assert socket_path.exists()


@contextmanager
def file_at(path: Path) -> Iterator[None]:
    path.write_text("precious")
    yield
    assert path.read_text() == "precious"


def test_a_file_at_the_path_is_kept(socket_path: Path) -> None:
    with file_at(socket_path), pytest.raises(InvalidConfig, match="is not a socket"):
        listen_briefly(socket_path)


def test_a_path_that_is_too_long_is_said_so(directory: Path) -> None:
    longest = directory / ("x" * (107 - len(str(directory)) - 1))
    with listening.listening_socket(longest, mode=0o600, gid=None):
        assert longest.exists()
    with pytest.raises(InvalidConfig, match="108 bytes, and 107 is the most") as caught:
        listen_briefly(Path(f"{longest}x"))
    assert "--socket" in caught.value.hint


def test_a_missing_directory_is_said_so(directory: Path) -> None:
    with pytest.raises(InvalidConfig, match="No such file or directory"):
        listen_briefly(directory / "no" / "s")


def test_a_failure_after_bind_leaves_no_socket(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(path: Path, mode: int) -> None:
        raise OSError(5, "broken")

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(InvalidConfig, match="broken"):
        listen_briefly(socket_path)
    assert is_gone(socket_path)


def test_a_successors_socket_is_not_removed(socket_path: Path) -> None:
    with listening.listening_socket(socket_path, mode=0o600, gid=None):
        socket_path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(socket_path))
    with successor:
        assert socket_path.exists()


async def test_an_unusable_path_reaches_the_caller_as_it_is(
    service: FakeService, directory: Path
) -> None:
    """The composition root prints detail and hint; a group around it would hide both."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(InvalidConfig):
            await nursery.start(
                partial(
                    serve_api,
                    service,
                    directory / "no" / "s",
                    admin_uid=0,
                    admin_group=None,
                    shutdown=trio.Event(),
                )
            )


# Who is at the other end.


async def test_another_user_is_known_and_is_no_admin(
    service: FakeService, socket_path: Path
) -> None:
    service.add_mount("logs", owner_uid=0)
    async with serving(service, socket_path):
        assert b" 200 " in await as_other_user(socket_path, "GET", "/v1/mounts")
        refused = await as_other_user(socket_path, "DELETE", "/v1/mounts/logs")
    who: Principal = service.calls[0][1]["who"]
    assert (who.uid, who.gid, who.is_admin) == (OTHER_UID, OTHER_UID, False)
    assert who.groups == {OTHER_UID, *OTHER_GROUPS}
    assert refused.startswith(b"HTTP/1.1 403 ")
    assert b"urn:s3mgr:problem:not-permitted" in refused
    assert "logs" in service.mounts


async def test_a_member_of_the_admin_group_administers(
    service: FakeService, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = type("Group", (), {"gr_gid": OTHER_GROUPS[1]})
    monkeypatch.setattr("grp.getgrnam", {"s3mgr": group}.__getitem__)
    service.add_mount("logs", owner_uid=0)
    async with serving(service, socket_path, admin_group="s3mgr"):
        answer = await as_other_user(socket_path, "DELETE", "/v1/mounts/logs")
    assert answer.startswith(b"HTTP/1.1 204 ")


async def test_the_daemons_own_user_administers(service: FakeService, socket_path: Path) -> None:
    async with serving(service, socket_path, admin_uid=OTHER_UID, admin_group="no-such-group"):
        await as_other_user(socket_path, "GET", "/v1/mounts")
    assert service.calls[0][1]["who"].is_admin


async def test_one_user_cannot_take_all_connections(
    service: FakeService, socket_path: Path
) -> None:
    settings = ApiSettings(connections_per_user=0)
    async with serving(service, socket_path, settings=settings):
        assert await as_other_user(socket_path, "GET", "/livez") == b""
        assert (await Client(socket_path).get("/livez")).status == 204


# What is not HTTP.


async def exchange(path: Path, data: bytes) -> bytes:
    """Send bytes and read until the server closes the connection, which is a reset where it left bytes unread."""
    received = b""
    with trio.fail_after(TIMEOUT_S), contextlib.suppress(trio.BrokenResourceError):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(data)
            while chunk := await stream.receive_some(65536):
                received += chunk
    return received


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, TLS?\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
        b"PUT /v1/mounts/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_garbage_is_refused_and_the_server_goes_on(client: Client, data: bytes) -> None:
    answer = await exchange(client.path, data)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), answer
    assert (await client.get("/livez")).status == 204


async def test_websockets_are_refused_with_a_problem(client: Client) -> None:
    answer = await exchange(
        client.path,
        b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


async def test_a_connection_that_says_nothing_is_closed(
    service: FakeService, socket_path: Path
) -> None:
    """Before its first request, within one, and after one."""
    settings = ApiSettings(idle_timeout_s=0.05)
    async with serving(service, socket_path, settings=settings):
        assert await exchange(socket_path, b"") == b""
        assert await exchange(socket_path, b"GET /livez HTT") == b""
        answer = await exchange(socket_path, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 204 ")


async def test_a_client_that_asks_to_close_is_closed(client: Client) -> None:
    """Clients without a length, such as HTTP/1.0's, only know the end of an answer by it."""
    for head in (b"HTTP/1.1\r\nHost: x\r\nConnection: close", b"HTTP/1.0"):
        answer = await exchange(client.path, b"GET /v1/info " + head + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_requests_on_one_connection_are_answered_in_turn(client: Client) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = await exchange(client.path, request * 3 + last)
    assert answer.count(b"HTTP/1.1 204 ") == 4


async def test_many_clients_are_served_at_once(client: Client, service: FakeService) -> None:
    service.hold = trio.Event()
    service.add_mount("logs")
    statuses: list[int] = []

    async def flush() -> None:
        statuses.append((await client.request("POST", "/v1/mounts/logs/flush")).status)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(flush)
        await until(lambda: sum(name == "flush_mount" for name, _ in service.calls) == 50)
        assert (await client.get("/v1/mounts/logs")).status == 200
        service.hold.set()
    assert statuses == [200] * 50


# Clients that leave.


async def test_a_client_that_leaves_stops_the_waiting_and_not_the_work(
    client: Client, service: FakeService
) -> None:
    service.auto_end = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.request, "PUT", "/v1/mounts/logs", REQUEST)
        await until(lambda: service.waiters == 1)
        nursery.cancel_scope.cancel()
    await until(lambda: service.waiters == 0)
    assert service.operations["op-1"].state == "running"
    service.end("op-1", "succeeded")
    assert (await client.get("/v1/operations/op-1")).json["state"] == "succeeded"


async def test_a_client_that_leaves_during_its_body_harms_nobody(client: Client) -> None:
    async with await trio.open_unix_socket(str(client.path)) as stream:
        await stream.send_all(
            b"PUT /v1/mounts/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
    assert (await client.get("/livez")).status == 204


# The stop.


async def read_all(stream: trio.SocketStream) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    with trio.fail_after(TIMEOUT_S):
        while chunk := await stream.receive_some(65536):
            received += chunk
    return received


async def test_a_stop_lets_requests_finish(service: FakeService, socket_path: Path) -> None:
    service.add_mount("logs")
    head = b"POST /v1/mounts/logs/invalidate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    settings = ApiSettings(grace_s=1000.0)
    async with (
        serving(service, socket_path, settings=settings) as shutdown,
        await trio.open_unix_socket(str(socket_path)) as stream,
    ):
        await stream.send_all(head + b"{")
        # The answer to a later request proves that the head of this one has been read.
        assert (await Client(socket_path).get("/livez")).status == 204
        shutdown.set()
        await stream.send_all(b"}")
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"listings":1,"entries":3}')


async def test_a_stop_answers_those_who_wait(service: FakeService, socket_path: Path) -> None:
    """Waiting longer could only end in a closed connection; the operation can be asked for later."""
    service.add_mount("logs")
    service.auto_end = None
    service.hold = trio.Event()
    client = Client(socket_path)
    answers = {}

    async def ask(method: str, target: str, body: object = None) -> None:
        answers[target] = await client.request(method, target, body)

    settings = ApiSettings(grace_s=1000.0)
    with trio.fail_after(TIMEOUT_S):
        async with (
            trio.open_nursery() as nursery,
            serving(service, socket_path, settings=settings) as shutdown,
        ):
            nursery.start_soon(ask, "PUT", "/v1/mounts/new", REQUEST)
            nursery.start_soon(ask, "POST", "/v1/mounts/logs/flush")
            await until(lambda: service.waiters == 1)
            await service.held.wait()
            shutdown.set()
    assert answers["/v1/mounts/new"].status == 202
    assert answers["/v1/mounts/new"].json["state"] == "running"
    flush = answers["/v1/mounts/logs/flush"]
    assert (flush.status, flush.slug, flush.headers["retry-after"]) == (503, "draining", "5")


async def test_a_stop_closes_idle_connections_at_once(
    service: FakeService, socket_path: Path
) -> None:
    settings = ApiSettings(grace_s=1000.0)
    with trio.fail_after(TIMEOUT_S):
        async with (
            serving(service, socket_path, settings=settings) as shutdown,
            await trio.open_unix_socket(str(socket_path)) as stream,
        ):
            await stream.send_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 204 ")
            shutdown.set()
            assert await read_all(stream) == b""


class BigAnswers(FakeService):
    """Answers that no socket buffer holds."""

    async def mount_logs(
        self, who: Principal, name: str, *, lines: int, offset: int | None
    ) -> LogTail:
        return LogTail(lines=["x" * (1 << 20)] * 8, offset=0)


async def stuck_client(path: Path) -> trio.SocketStream:
    """Ask for a big answer and read only its beginning, so that the server's send is under way and blocked."""
    stream = await trio.open_unix_socket(str(path))
    await stream.send_all(b"GET /v1/mounts/x/logs HTTP/1.1\r\nHost: x\r\n\r\n")
    with trio.fail_after(TIMEOUT_S):
        assert (await stream.receive_some(10)).startswith(b"HTTP/1.1")
    return stream


async def test_a_client_that_does_not_read_cannot_hold_up_the_stop(socket_path: Path) -> None:
    settings = ApiSettings(grace_s=0.05, hard_close_s=0.05)
    with trio.fail_after(TIMEOUT_S):
        async with serving(BigAnswers(), socket_path, settings=settings):
            stuck = await stuck_client(socket_path)
        await stuck.aclose()
    assert is_gone(socket_path)


async def test_a_client_that_does_not_read_cannot_hold_up_a_cancellation(
    socket_path: Path,
) -> None:
    with trio.fail_after(TIMEOUT_S), trio.CancelScope() as scope:
        async with serving(BigAnswers(), socket_path):
            stuck = await stuck_client(socket_path)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    await stuck.aclose()
    assert is_gone(socket_path)


async def test_a_client_that_does_not_read_is_disconnected(
    socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = ApiSettings(send_timeout_s=0.05)
    async with serving(BigAnswers(), socket_path, settings=settings):
        async with await stuck_client(socket_path) as stuck:
            await until(lambda: "disconnected a client" in caplog.text)
            # What was sent before is still there; then comes the end.
            assert len(await read_all(stuck)) < 1 << 20
        assert (await Client(socket_path).get("/livez")).status == 204


async def test_a_client_that_leaves_during_its_answer_harms_nobody(socket_path: Path) -> None:
    async with serving(BigAnswers(), socket_path):
        async with await stuck_client(socket_path):
            pass
        assert (await Client(socket_path).get("/livez")).status == 204


def test_the_server_imports_in_a_process_of_its_own() -> None:
    """The composition root imports it first; a cycle would show only then."""
    code = "import s3mgrd.api.server"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=TIMEOUT_S)
