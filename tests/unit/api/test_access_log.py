"""The access log: who changed what, with the id that the client was told."""

import logging
from pathlib import Path

import pytest
import trio

from tests.fakes.service import FakeService
from tests.unit.api.client import Client
from tests.unit.api.conftest import serving, until

REQUEST = {"spec": {"bucket": "b", "mountpoint": "/mnt/logs"}}
LOGGER = "s3mgrd.api.access"


def records(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == LOGGER and r.levelno == level]


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in records(caplog, level)]


async def test_a_mutation_is_logged_with_principal_id_route_status_and_time(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST)
    await until(lambda: lines(caplog, logging.INFO) != [])
    (record,) = records(caplog, logging.INFO)
    assert record.getMessage() == "PUT /v1/mounts/logs 201"
    extra = record.__dict__
    assert (extra["uid"], extra["route"]) == (0, "/v1/mounts/{name}")
    assert extra["request_id"] == answer.headers["x-request-id"]
    assert isinstance(extra["ms"], int)


async def test_reading_is_logged_for_debugging_only(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    await client.get("/v1/mounts")
    await client.get("/none")
    await until(lambda: len(lines(caplog, logging.DEBUG)) == 2)
    assert lines(caplog, logging.DEBUG) == ["GET /v1/mounts 200", "GET /none 404"]
    assert [r.__dict__["route"] for r in records(caplog, logging.DEBUG)] == ["/v1/mounts", "-"]
    assert lines(caplog, logging.INFO) == []


async def test_a_refused_mutation_is_logged_too(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    await client.request("PUT", "/v1/mounts/logs", {"nonsense": 1})
    await until(lambda: lines(caplog, logging.INFO) != [])
    assert lines(caplog, logging.INFO) == ["PUT /v1/mounts/logs 422"]


async def test_a_path_cannot_forge_lines(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    await client.request("DELETE", "/v1/mounts/a%0ADELETE%20b%20204")
    await until(lambda: lines(caplog, logging.INFO) != [])
    assert lines(caplog, logging.INFO) == ["DELETE /v1/mounts/a%0ADELETE%20b%20204 422"]


async def test_who_left_before_the_answer_is_logged_without_a_status(
    service: FakeService, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    service.auto_end = None
    async with serving(service, socket_path), trio.open_nursery() as nursery:
        nursery.start_soon(Client(socket_path).request, "PUT", "/v1/mounts/logs", REQUEST)
        await until(lambda: service.waiters == 1)
        nursery.cancel_scope.cancel()
    assert lines(caplog, logging.INFO) == ["PUT /v1/mounts/logs left before the answer"]
