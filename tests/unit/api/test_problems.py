"""Every failure is a problem: what is wrong, where, and what to do."""

import inspect
import json
import logging
from pathlib import Path

import pytest
import trio

from s3mgr.schema import ProblemType
from s3mgrd import errors
from s3mgrd.api import problems
from s3mgrd.api.problems import ERRORS, STATUSES, describe, kind_of
from s3mgrd.api.settings import ApiSettings
from tests.fakes.service import FakeService
from tests.unit.api.client import Answer, Client
from tests.unit.api.conftest import serving

REQUEST = {"spec": {"bucket": "b", "mountpoint": "/mnt/logs"}}

ERROR_CLASSES = [
    cls
    for module in (errors, problems)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, errors.S3mgrError) and cls.__module__ == module.__name__
]

EXPECTED = {
    errors.UserError: (422, "invalid-spec"),
    errors.InvalidConfig: (500, "internal"),
    errors.InvalidSpec: (422, "invalid-spec"),
    errors.MountpointInvalid: (422, "mountpoint-invalid"),
    errors.TooLarge: (413, "body-too-large"),
    errors.NotFound: (404, "not-found"),
    errors.BucketNotFound: (404, "bucket-not-found"),
    errors.Denied: (403, "not-permitted"),
    errors.CredentialsRejected: (502, "credentials-rejected"),
    errors.Conflict: (409, "conflict"),
    errors.PreconditionFailed: (412, "precondition-failed"),
    errors.NameConflict: (409, "name-conflict"),
    errors.SpecConflict: (409, "spec-conflict"),
    errors.DirtyData: (409, "dirty-data"),
    errors.MountpointBusy: (409, "mountpoint-busy"),
    errors.NotMounted: (409, "not-mounted"),
    errors.Unavailable: (502, "bucket-unreachable"),
    errors.TimedOut: (502, "bucket-unreachable"),
    errors.Stopping: (503, "draining"),
    errors.WorkerLost: (502, "mount-failed"),
    errors.Archived: (409, "conflict"),
    errors.Unsupported: (501, "unsupported"),
    errors.Unforeseen: (502, "bucket-unreachable"),
    errors.Corrupt: (500, "internal"),
    errors.Defect: (500, "internal"),
    problems.MalformedRequest: (400, "invalid-request"),
    problems.InvalidParameter: (422, "invalid-request"),
    problems.UnsupportedMediaType: (415, "invalid-request"),
    problems.Unauthenticated: (401, "unauthenticated"),
    problems.NotReady: (503, "not-ready"),
}


def assert_problem(answer: Answer, status: int, slug: str) -> None:
    """Check what holds for every problem."""
    assert (answer.status, answer.slug) == (status, slug), answer.body
    body = answer.json
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == "urn:uuid:" + answer.headers["x-request-id"]


def test_every_error_class_has_its_own_row() -> None:
    """A class without a row would silently become its parent's problem."""
    assert set(ERROR_CLASSES) == set(ERRORS)
    assert set(EXPECTED) == set(ERRORS) - {errors.S3mgrError}


def test_every_problem_type_can_happen() -> None:
    kinds = {kind.type for kind in (*ERRORS.values(), *STATUSES.values())}
    assert kinds == set(ProblemType)


def test_a_class_of_a_later_version_falls_back_to_its_nearest_ancestor() -> None:
    class StillUnknown(errors.MountpointBusy):
        pass

    assert kind_of(StillUnknown("x")) == ERRORS[errors.MountpointBusy]


@pytest.mark.parametrize("cls", EXPECTED, ids=lambda cls: cls.__name__)
async def test_an_error_of_the_domain_becomes_its_problem(
    client: Client,
    service: FakeService,
    expected_errors: set[str],
    cls: type[errors.S3mgrError],
) -> None:
    status, slug = EXPECTED[cls]
    if status == 500:
        expected_errors.add("s3mgrd.api.app")
    service.failures["get_mount"] = cls("what happened", hint="what to do")
    answer = await client.get("/v1/mounts/logs")
    assert_problem(answer, status, slug)
    assert (answer.json["detail"], answer.json["hint"]) == ("what happened", "what to do")
    assert answer.json["mount"] == "logs"
    assert answer.json.get("retryable", False) == (ERRORS[cls].retryable)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_an_error_that_points_at_a_field_says_which() -> None:
    problem = describe(errors.SpecConflict("no", pointer="/spec/bucket"), "logs")
    assert [(e.pointer, e.detail) for e in problem.errors] == [("/spec/bucket", "no")]


async def test_what_nobody_foresaw_is_logged_and_not_told(
    client: Client,
    service: FakeService,
    expected_errors: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected_errors.add("s3mgrd.api.app")
    service.failures["get_mount"] = RuntimeError("/etc/secret-path")
    answer = await client.get("/v1/mounts/logs")
    assert_problem(answer, 500, "internal")
    assert b"secret-path" not in answer.body
    record = next(r for r in caplog.records if r.levelno == logging.ERROR)
    assert record.__dict__["request_id"] == answer.headers["x-request-id"]
    assert record.exc_info is not None


async def test_errors_raised_inside_a_nursery_are_unwrapped(
    client: Client, service: FakeService
) -> None:
    service.failures["get_mount"] = ExceptionGroup("g", [errors.NotMounted("it is down")])
    assert_problem(await client.get("/v1/mounts/logs"), 409, "not-mounted")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("POST", "/flush"),
        ("POST", "/invalidate"),
        ("POST", "/restart"),
        ("GET", "/stats"),
        ("GET", "/cache"),
        ("GET", "/logs"),
    ],
)
async def test_a_mount_that_does_not_exist_is_not_found(
    client: Client, method: str, target: str
) -> None:
    body: object = None if method == "GET" else {}
    answer = await client.request(method, f"/v1/mounts/none{target}", body)
    assert_problem(answer, 404, "not-found")
    assert (answer.json["mount"], answer.json["hint"]) == ("none", "list them: s3mgr ls")


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/v1", "/v1/mounts/", "/v1//mounts", "/v1/mounts/a/b", "/v1/mounts/a%2Fb"),
        *("/static/x", "*", "?x", "http:", "http://[", "%00", "/v1/%ff"),
    ],
)
async def test_unknown_paths_are_not_found(client: Client, target: str) -> None:
    assert_problem(await client.get(target), 404, "not-found")


async def test_a_whole_url_as_target_is_understood(client: Client) -> None:
    """RFC 9112 §3.2.2: a server must accept the absolute form."""
    assert (await client.get("http://localhost/livez")).status == 204


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/mounts", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/v1/mounts/x", {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT"}),
        ("GET", "/v1/mounts/x/flush", {"OPTIONS", "POST"}),
        ("BREW", "/livez", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    client: Client, method: str, target: str, allowed: set[str]
) -> None:
    answer = await client.request(method, target)
    assert_problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"spec": {"bucket": "\xff"}}',
        b'{"spec": {"bucket": "\\ud800"}}',
        b'{"spec": {"bucket": "b", "mountpoint": "/x", "options": {"metadata_ttl_s": NaN}}}',
        json.dumps(REQUEST).encode() + b"}",
        json.dumps(REQUEST).encode("utf-16"),
    ],
)
async def test_a_body_that_is_not_json_is_refused(client: Client, raw: bytes) -> None:
    answer = await client.request("PUT", "/v1/mounts/logs", raw=raw)
    assert_problem(answer, 400, "invalid-request")


def options(**values: object) -> dict[str, object]:
    return {"spec": {"bucket": "b", "mountpoint": "/mnt/logs", "options": values}}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], None),
        ("x", None),
        ({}, "/spec"),
        ({"spec": None}, "/spec"),
        ({"spec": {"bucket": "b"}}, "/spec/mountpoint"),
        ({"spec": {"bucket": "", "mountpoint": "/m"}}, "/spec/bucket"),
        ({"spec": {"bucket": "b", "mountpoint": "relative"}}, "/spec/mountpoint"),
        ({"spec": {"bucket": "b", "mountpoint": 7}}, "/spec/mountpoint"),
        ({**REQUEST, "extra": 1}, "/extra"),
        ({**REQUEST, "~/x": 1}, "/~0~1x"),
        ({**REQUEST, "a`\n`b": 1}, "/a`\n`b"),
        (options(uid="root"), "/spec/options/uid"),
        (options(uid=-1), "/spec/options/uid"),
        (options(uid=1 << 80), "/spec/options/uid"),
        (options(debug="yes"), "/spec/options/debug"),
        (options(attributes="some"), "/spec/options/attributes"),
        (options(write_mode="later"), "/spec/options/write_mode"),
        (options(metadata_ttl=3), "/spec/options/metadata_ttl"),
        (options(part_size_bytes=1), "/spec/options/part_size_bytes"),
        (options(file_mode="0999"), "/spec/options/file_mode"),
        ({"spec": {**REQUEST["spec"], "labels": {"": "x"}}}, "/spec/labels"),
        ({"spec": {**REQUEST["spec"], "labels": {"k": 1}}}, "/spec/labels"),
        ({**REQUEST, "credentials": {"access_key": "a"}}, "/credentials/secret_key"),
    ],
)
async def test_json_of_the_wrong_shape_says_where(
    client: Client, service: FakeService, body: object, pointer: str | None
) -> None:
    answer = await client.request("PUT", "/v1/mounts/logs", body)
    assert_problem(answer, 422, "invalid-spec")
    assert [e["pointer"] for e in answer.json.get("errors", [])] == ([pointer] if pointer else [])
    assert not service.mounts


async def test_a_refused_secret_is_not_repeated(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t" * 1000
    body = {**REQUEST, "credentials": {"access_key": "a", "secret_key": secret}}
    answer = await client.request("PUT", "/v1/mounts/logs", body)
    assert_problem(answer, 422, "invalid-spec")
    assert b"s3cr3t" not in answer.body
    body["credentials"] = {"access_key": "a", "secret_key": "s3cr3t"}
    assert (await client.request("PUT", "/v1/mounts/logs", body)).status == 201
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PATCH", "/v1/mounts/logs", {"spec": {}}),
        ("PATCH", "/v1/mounts/logs", {"options": {"uid": 3}}),
        ("PATCH", "/v1/mounts/logs", {"options": None}),
        ("POST", "/v1/mounts/logs/flush", {"timeout": 3}),
        ("POST", "/v1/mounts/logs/flush", {"timeout_s": -1}),
        ("POST", "/v1/mounts/logs/invalidate", {"path": 3}),
        ("POST", "/v1/mounts/logs/invalidate", []),
    ],
)
async def test_other_bodies_are_checked_too(
    client: Client, service: FakeService, method: str, target: str, body: object
) -> None:
    service.add_mount("logs")
    assert_problem(await client.request(method, target, body), 422, "invalid-spec")
    assert service.calls == []


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/mounts?colour=red"),
        ("GET", "/v1/mounts?state=asleep"),
        ("GET", "/v1/mounts?state=failed&state=failed"),
        ("GET", "/v1/mounts/logs?x"),
        ("PUT", "/v1/mounts/logs?wait_s=soon"),
        ("PUT", "/v1/mounts/logs?wait_s=-1"),
        ("PUT", "/v1/mounts/logs?wait_s=nan"),
        ("PUT", "/v1/mounts/logs?wait_s=inf"),
        ("PUT", "/v1/mounts/logs?timeout_s=3"),
        ("DELETE", "/v1/mounts/logs?mode=brutal"),
        ("DELETE", "/v1/mounts/logs?keep=maybe"),
        ("GET", "/v1/mounts/logs/cache?limit=1001"),
        ("GET", "/v1/mounts/logs/cache?limit=1.5"),
        ("GET", "/v1/mounts/logs/logs?lines=-1"),
        ("GET", "/v1/events?since=-1"),
        ("GET", "/v1/events?since=99999999999999999999"),
        ("GET", "/livez?verbose=1"),
        ("GET", "/openapi.json?%00=%ff"),
        ("PUT", "/v1/mounts/UPPER"),
        ("PUT", "/v1/mounts/-dash"),
        ("PUT", "/v1/mounts/" + "a" * 64),
        ("PUT", "/v1/mounts/a%0A"),
        ("GET", "/v1/mounts/a%20b"),
        ("DELETE", "/v1/mounts/%C3%A4"),
        ("POST", "/v1/mounts/a%00/flush"),
    ],
)
async def test_parameters_and_names_are_checked(
    client: Client, service: FakeService, method: str, target: str
) -> None:
    body = REQUEST if method == "PUT" else None
    assert_problem(await client.request(method, target, body), 422, "invalid-request")
    assert not service.calls


async def test_an_unknown_parameter_is_told_the_known_ones(client: Client) -> None:
    answer = await client.get("/v1/mounts?colour=red")
    assert "colour" in answer.json["detail"]
    assert "state, label" in answer.json["hint"]


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain", "x"])
async def test_a_body_that_says_it_is_not_json_is_refused(client: Client, media: str) -> None:
    answer = await client.request(
        "PUT", "/v1/mounts/logs", REQUEST, headers={"Content-Type": media}
    )
    assert_problem(answer, 415, "invalid-request")
    assert "application/json" in answer.json["hint"]


@pytest.mark.parametrize("header", ["Origin", "Referer"])
async def test_requests_of_web_pages_are_refused(
    client: Client, service: FakeService, header: str
) -> None:
    for method, target in (("GET", "/livez"), ("PUT", "/v1/mounts/x"), ("GET", "/none")):
        answer = await client.request(method, target, REQUEST, headers={header: "http://localhost"})
        assert_problem(answer, 403, "not-permitted")
    assert not service.calls


async def test_a_huge_body_is_refused_before_it_is_read(client: Client) -> None:
    """Only the head is sent: waiting for the body would hang."""
    async with client.open(
        "PUT", "/v1/mounts/x", headers={"Content-Length": str((1 << 20) + 1)}
    ) as answer:
        body = b"".join([c async for c in answer.chunks])
    assert_problem(Answer(answer.status, answer.headers, body), 413, "body-too-large")


async def test_a_huge_body_of_unknown_length_is_refused(client: Client) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    async with client.open(
        "PUT",
        "/v1/mounts/x",
        raw=chunk * 20,
        headers={"Transfer-Encoding": "chunked"},
    ) as answer:
        assert answer.status == 413


async def test_a_body_of_exactly_the_limit_is_read(client: Client) -> None:
    raw = json.dumps(REQUEST).encode()
    raw += b" " * ((1 << 20) - len(raw))
    assert (await client.request("PUT", "/v1/mounts/x", raw=raw)).status == 201


async def test_a_body_that_does_not_arrive_times_out(
    service: FakeService, socket_path: Path
) -> None:
    settings = ApiSettings(body_timeout_s=0.05)
    async with (
        serving(service, socket_path, settings=settings),
        Client(socket_path).open(
            "PUT", "/v1/mounts/x", headers={"Content-Length": "100"}
        ) as answer,
    ):
        body = b"".join([c async for c in answer.chunks])
    assert_problem(Answer(answer.status, answer.headers, body), 408, "request-timeout")


@pytest.mark.parametrize("target", ["/livez", "/none", "/v1/mounts/x"])
async def test_every_answer_carries_the_safety_headers(client: Client, target: str) -> None:
    answer = await client.get(target)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["server"].startswith("s3mgrd/")
    assert answer.headers["s3mgr-version"]
    assert answer.headers["cache-control"] == "no-store"
    other = await client.get(target)
    assert answer.headers["x-request-id"] != other.headers["x-request-id"]


async def test_concurrent_puts_of_one_name_create_it_once(
    client: Client, service: FakeService
) -> None:
    statuses: list[int] = []

    async def put() -> None:
        headers = {"If-None-Match": "*"}
        statuses.append(
            (await client.request("PUT", "/v1/mounts/x", REQUEST, headers=headers)).status
        )

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(put)
    assert sorted(statuses) == [201] + [412] * 19
