"""Bad input to the API of a real daemon: a problem that names what is wrong, and a daemon that goes on as before."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.lab import Daemon, Lab, wait_for
from tests.e2e.wire import Answer, ask
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(module_lab: Lab) -> Daemon:
    return module_lab.daemon()


@pytest.fixture(autouse=True)
def still_well(daemon: Daemon) -> Iterator[None]:
    """Whatever was sent: nothing was stored, nothing is mounted, and the daemon answers."""
    yield
    assert daemon.api.list_mounts().items == []
    assert daemon.mounts() == []


def request(**spec: object) -> dict[str, Any]:
    return {"spec": {"bucket": "bucket", "mountpoint": "/mnt/x", **spec}}


BODIES = [
    ("no JSON", b"{", 400, "invalid-request", None),
    ("no UTF-8", b'{"spec": {"bucket": "\xff"}}', 400, "invalid-request", None),
    ("empty", b"", 400, "invalid-request", None),
    ("nothing", {}, 422, "invalid-spec", "/spec"),
    ("a list", [], 422, "invalid-spec", None),
    ("null", b"null", 422, "invalid-spec", None),
    ("spec of another type", {"spec": "bucket"}, 422, "invalid-spec", "/spec"),
    ("no mountpoint", {"spec": {"bucket": "b"}}, 422, "invalid-spec", "/spec/mountpoint"),
    ("relative mountpoint", request(mountpoint="mnt"), 422, "invalid-spec", "/spec/mountpoint"),
    ("mountpoint with ..", request(mountpoint="/mnt/../etc"), 422, "invalid-spec", "/spec/mountpoint"),
    ("NUL in the mountpoint", request(mountpoint="/mnt/\0x"), 422, "invalid-spec", "/spec/mountpoint"),
    ("root as mountpoint", request(mountpoint="/"), 422, "invalid-spec", "/spec/mountpoint"),
    ("endless mountpoint", request(mountpoint="/" + "x" * 5000), 422, "invalid-spec", "/spec/mountpoint"),
    ("bucket of another type", request(bucket=7), 422, "invalid-spec", "/spec/bucket"),
    ("empty bucket", request(bucket=""), 422, "invalid-spec", "/spec/bucket"),
    ("impossible bucket", request(bucket="../../etc"), 422, "invalid-spec", "/spec/bucket"),
    ("unknown field", request(buckt="b"), 422, "invalid-spec", "/spec/buckt"),
    ("unknown option", request(options={"x": 1}), 422, "invalid-spec", "/spec/options/x"),
    ("option of another type", request(options={"uid": "0"}), 422, "invalid-spec", "/spec/options/uid"),
    ("option out of range", request(options={"uid": -1}), 422, "invalid-spec", "/spec/options/uid"),
    ("option far out of range", request(options={"concurrency": 10**30}), 422, "invalid-spec", "/spec/options/concurrency"),
    ("not a number", b'{"spec": {"bucket": "b-1", "mountpoint": "/mnt/x", "options": {"metadata_ttl_s": NaN}}}', 400, "invalid-request", None),
    ("write_mode=later", request(options={"write_mode": "later"}), 422, "invalid-spec", "/spec/options/write_mode"),
    ("prefix with ..", request(options={"prefix": "a/../b/"}), 422, "invalid-spec", "/spec/options/prefix"),
    ("labels of another type", request(labels={"a": 1}), 422, "invalid-spec", "/spec/labels"),
    ("impossible endpoint", request(endpoint="file:///etc/passwd"), 422, "invalid-spec", "/spec/endpoint"),
    ("keys in the endpoint", request(endpoint="http://key:SECRET@host"), 422, "invalid-spec", "/spec/endpoint"),
    ("keys and anonymous", request(anonymous=True) | {"credentials": {"access_key": "a", "secret_key": "SECRET"}}, 422, "invalid-spec", None),
    ("half of the keys", request() | {"credentials": {"access_key": "a"}}, 422, "invalid-spec", "/credentials/secret_key"),
    ("nested without end", b'{"spec":' * 20_000, 422, "invalid-spec", None),
    ("over the limit", json.dumps(request(labels={"a": "x" * MIB})).encode(), 413, "body-too-large", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "slug", "pointer"), [row[1:] for row in BODIES], ids=[r[0] for r in BODIES]
)
def test_a_body_that_cannot_be_a_mount(
    daemon: Daemon, body: object, status: int, slug: str, pointer: str | None
) -> None:
    answer = ask(daemon, "PUT", "/v1/mounts/x", body)
    assert (answer.status, answer.slug) == (status, slug), answer.json
    problem = answer.json
    assert problem["detail"]
    assert problem["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
    assert "SECRET" not in answer.body.decode()
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], problem


@pytest.mark.parametrize(
    "name",
    ["Upper", "-dash", ".dot", "a" * 64, "two%20words", "..", "%2e%2e", "a%2Fb", "n%C3%BC", "%00"],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_name_that_no_mount_can_have(daemon: Daemon, method: str, name: str) -> None:
    answer = ask(daemon, method, f"/v1/mounts/{name}", request() if method == "PUT" else None)
    assert answer.status in (404, 422), answer
    assert answer.slug in ("not-found", "invalid-request")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1/mounts?colour=red", 422),
        ("GET", "/v1/mounts?state=asleep", 422),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/mounts/absent", 404),
        ("GET", "/v1/mounts/absent/stats", 404),
        ("POST", "/v1/mounts/absent/restart", 404),
        ("POST", "/v1/mounts/absent/flush", 404),
        ("PATCH", "/v1/mounts", 405),
        ("GET", "/v1/mounts/absent/cache?limit=-1", 422),
        ("GET", "/v1/mounts/absent/cache?limit=many", 422),
        ("DELETE", "/v1/mounts/absent?mode=quickly", 422),
        ("DELETE", "/v1/mounts/absent?timeout_s=-1", 422),
        ("GET", "/v1/events?since=yesterday", 422),
        ("GET", "/v1/operations/absent", 404),
    ],
)
def test_a_request_that_makes_no_sense(
    daemon: Daemon, method: str, target: str, status: int
) -> None:
    answer = ask(daemon, method, target)
    assert answer.status == status, answer
    assert answer.slug


def raw(daemon: Daemon, data: bytes) -> bytes:
    """Send bytes, and read until the daemon has closed or one answer is there."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(daemon.socket))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v1/mounts HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"PUT /v1/mounts/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n{",
        b"PUT /v1/mounts/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/mounts/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_what_is_no_http_is_no_harm(daemon: Daemon, data: bytes) -> None:
    try:
        answer = raw(daemon, data)
    except ConnectionError:
        return
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:200]


def test_of_many_who_want_one_name_one_gets_it(daemon: Daemon, ministack: Endpoint) -> None:
    """Different mounts under one name at the same time: one is made, the others learn that it was not theirs."""
    client = ministack.boto3()
    bucket = make_bucket(client)
    directories = [daemon.mountpoint(f"race-{number}") for number in range(8)]
    for directory in directories:
        directory.mkdir()

    def put(number: int) -> Answer:
        body = {
            "spec": {
                "bucket": bucket,
                "mountpoint": str(directories[number]),
                "endpoint": ministack.url,
            },
            "credentials": {"access_key": "a", "secret_key": "b"},
        }
        return ask(daemon, "PUT", "/v1/mounts/one", body)

    try:
        with ThreadPoolExecutor(len(directories)) as pool:
            answers = list(pool.map(put, range(len(directories))))
        made = [number for number, answer in enumerate(answers) if answer.status < 300]
        assert len(made) == 1, [a.status for a in answers]
        refused = {answer.slug for n, answer in enumerate(answers) if n not in made}
        assert refused <= {"spec-conflict", "name-conflict", "conflict"}
        assert [e.mountpoint for e in daemon.mounts()] == [str(directories[made[0]])]
        assert daemon.show("one").spec.mountpoint == str(directories[made[0]])
        # The same wish from many at once is one wish.
        with ThreadPoolExecutor(len(directories)) as pool:
            again = list(pool.map(put, made * 8))
        assert {answer.status for answer in again} == {200}
        assert len({answer.json["generation"] for answer in again}) == 1
    finally:
        daemon.run("unmount", "one", "--ignore-missing")
        remove_bucket(client, bucket)
        client.close()


def test_a_mount_that_is_wanted_and_unwanted_at_once_ends_as_one_of_both(
    daemon: Daemon, ministack: Endpoint
) -> None:
    """PUT and DELETE race, again and again: no answer is an internal error, and what is left can be unmounted."""
    client = ministack.boto3()
    bucket = make_bucket(client)
    directory = daemon.mountpoint("turn")
    directory.mkdir()
    body = {
        "spec": {"bucket": bucket, "mountpoint": str(directory), "endpoint": ministack.url},
        "credentials": {"access_key": "a", "secret_key": "b"},
    }

    def turn(number: int) -> Answer:
        if number % 2:
            return ask(daemon, "DELETE", "/v1/mounts/turn")
        return ask(daemon, "PUT", "/v1/mounts/turn", body)

    try:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(turn, range(24)))
        assert {a.status for a in answers} <= {200, 201, 204, 409, 502}, [
            (a.status, a.body) for a in answers
        ]
        assert all(a.slug in ("conflict", "mount-failed") for a in answers if a.status > 299)
        daemon.run("unmount", "turn", "--ignore-missing")
        wait_for("it is gone", lambda: not daemon.mounts())
    finally:
        daemon.run("unmount", "turn", "--ignore-missing")
        remove_bucket(client, bucket)
        client.close()
