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


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == LOGGER and record.levelno == level
    ]


async def test_a_mutation_is_logged_with_principal_id_route_status_and_time(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST)
    await until(lambda: lines(caplog, logging.INFO) != [])
    (line,) = lines(caplog, logging.INFO)
    assert line.startswith("PUT /v1/mounts/logs 201 ")
    assert " ms uid=0 route=/v1/mounts/{name} request=" + answer.headers["x-request-id"] in line
    record = next(record for record in caplog.records if record.name == LOGGER)
    assert record.__dict__["access"]["status"] == 201


async def test_reading_is_logged_for_debugging_only(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    await client.get("/v1/mounts")
    await client.get("/none")
    await until(lambda: len(lines(caplog, logging.DEBUG)) == 2)
    assert lines(caplog, logging.DEBUG)[0].startswith("GET /v1/mounts 200 ")
    assert " route=- " in lines(caplog, logging.DEBUG)[1]
    assert lines(caplog, logging.INFO) == []


async def test_a_refused_mutation_is_logged_too(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    await client.request("PUT", "/v1/mounts/logs", {"nonsense": 1})
    await until(lambda: lines(caplog, logging.INFO) != [])
    assert lines(caplog, logging.INFO)[0].startswith("PUT /v1/mounts/logs 422 ")


async def test_a_path_cannot_forge_lines(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    await client.request("DELETE", "/v1/mounts/a%0ADELETE%20/v1/mounts/b%20204")
    await until(lambda: lines(caplog, logging.INFO) != [])
    (line,) = lines(caplog, logging.INFO)
    assert "\n" not in line
    assert line.startswith("DELETE /v1/mounts/a%0ADELETE%20/v1/mounts/b%20204 ")


async def test_who_left_before_the_answer_is_logged_without_a_status(
    service: FakeService, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    service.auto_end = None
    async with serving(service, socket_path), trio.open_nursery() as nursery:
        nursery.start_soon(Client(socket_path).request, "PUT", "/v1/mounts/logs", REQUEST)
        await until(lambda: service.waiters == 1)
        nursery.cancel_scope.cancel()
    assert lines(caplog, logging.INFO)[0].startswith("PUT /v1/mounts/logs none ")
