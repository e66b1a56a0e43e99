"""The relay with a network in it: a request comes as it was sent, late, and is counted."""

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from tests.servers.distance import NEAR, Distance, Network, distance_before, kind_of
from tests.servers.endpoint import Endpoint
from tests.servers.scripted import Answer, Request, ScriptedServer
from tests.servers.threaded import run_scripted

DELAY_S = 0.05


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """Give a server that says what it was sent."""

    def answer(request: Request) -> Answer:
        if request.method == "DELETE":
            return Answer("204 No Content")
        return Answer(body=request.body or b"0123456789" * 1000)

    with run_scripted(answer) as running:
        yield running


@pytest.fixture
def relay(server: ScriptedServer) -> Iterator[Distance]:
    with distance_before(Endpoint("ministack", server.url, "k", "s"), NEAR) as between:
        yield between


def connect(relay: Distance) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(relay.endpoint.url.removeprefix("http://"), timeout=30)


def test_one_connection_carries_many_requests_as_they_were_sent(
    relay: Distance, server: ScriptedServer
) -> None:
    """Bodies with and without a length of their own, answers with and without a body."""
    connection = connect(relay)
    large = bytes(range(256)) * 4096
    for method, body in (
        ("PUT", large),
        ("GET", None),
        ("HEAD", None),
        ("DELETE", None),
        ("POST", b"text"),
    ):
        connection.request(method, "/bucket/key", body=body, headers={"X-Two": "2"})
        answer = connection.getresponse().read()
        assert answer == (b"" if method in ("HEAD", "DELETE") else body or b"0123456789" * 1000)
    connection.close()
    assert [request.method for request in server.requests] == [
        "PUT",
        "GET",
        "HEAD",
        "DELETE",
        "POST",
    ]
    assert server.requests[0].headers["x-two"] == "2"
    assert relay.counts() == dict.fromkeys(["PUT", "GET", "HEAD", "DELETE", "POST"], 1)
    relay.reset()
    assert not relay.counts()


def test_who_asks_before_sending_a_body_is_told_to_go_on(
    relay: Distance, server: ScriptedServer
) -> None:
    """The server need not know of it."""
    with socket.create_connection(("127.0.0.1", int(relay.endpoint.url.rpartition(":")[2]))) as raw:
        raw.sendall(
            b"PUT /b/k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"xy")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
    assert server.requests[0].body == b"xy"
    assert "expect" not in server.requests[0].headers


def test_answers_come_after_the_delay_of_their_kind_and_no_faster_than_the_bandwidth(
    relay: Distance,
) -> None:
    """Other kinds are not delayed."""
    relay.network = Network({"GET": DELAY_S}, bytes_per_s=10_000 / DELAY_S)
    connection = connect(relay)
    begun = time.monotonic()
    connection.request("GET", "/bucket/key")
    assert len(connection.getresponse().read()) == 10_000
    assert time.monotonic() - begun >= DELAY_S
    connection.close()


def test_a_server_that_is_gone_ends_the_connection(relay: Distance) -> None:
    """A client sees what it would see without the relay."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with distance_before(Endpoint("ministack", f"http://127.0.0.1:{port}", "k", "s"), NEAR) as dead:
        connection = connect(dead)
        connection.request("GET", "/bucket/key")
        with pytest.raises(ConnectionError):
            connection.getresponse()
        connection.close()


@pytest.mark.parametrize(
    ("method", "target", "headers", "kind"),
    [
        ("GET", "/bucket?list-type=2&prefix=a/b", {}, "LIST"),
        ("GET", "/bucket/key?uploadId=1", {}, "LIST"),
        ("GET", "/bucket/key", {}, "GET"),
        ("PUT", "/bucket/key?partNumber=1&uploadId=1", {}, "PUT"),
        ("PUT", "/bucket/key", {"x-amz-copy-source": "/bucket/other"}, "COPY"),
        ("POST", "/bucket?delete", {}, "DELETE"),
        ("POST", "/bucket/key?uploads", {}, "POST"),
    ],
)
def test_requests_are_told_apart_by_what_they_do(
    method: str, target: str, headers: dict[str, str], kind: str
) -> None:
    """As their delays are."""
    assert kind_of(method, target, headers) == kind
