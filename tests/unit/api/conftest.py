"""A served fake, a client, and the rule that nothing may be logged as an error unnoticed."""

import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from s3mgrd.api.server import serve_api
from s3mgrd.api.settings import ApiSettings
from tests.fakes.service import FakeService
from tests.unit.api.client import TIMEOUT_S, Client


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a directory that other users may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="s3mgr-api-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def socket_path(directory: Path) -> Path:
    return directory / "api.sock"


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@asynccontextmanager
async def serving(
    service: FakeService,
    path: Path,
    *,
    settings: ApiSettings | None = None,
    admin_uid: int = 0,
    admin_group: str | None = None,
) -> AsyncIterator[trio.Event]:
    """Serve *service*; yields the event that stops the server, and stops it at the end."""
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve_api,
                service,
                path,
                admin_uid=admin_uid,
                admin_group=admin_group,
                shutdown=shutdown,
                settings=settings,
            )
        )
        yield shutdown
        shutdown.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds for something that happens in the server and tells nobody."""
    with trio.fail_after(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # what changes has no event to wait for
            await trio.sleep(0.001)


@pytest.fixture
async def client(service: FakeService, socket_path: Path) -> AsyncIterator[Client]:
    """Serve the fake and give a client of root."""
    async with serving(service, socket_path):
        yield Client(socket_path)


@pytest.fixture
def expected_errors() -> set[str]:
    """Names of loggers that may log errors in this test."""
    return set()


@pytest.fixture(autouse=True)
def no_unexpected_errors(
    caplog: pytest.LogCaptureFixture, expected_errors: set[str]
) -> Iterator[None]:
    """Fail a test during which an error was logged that it did not expect."""
    yield
    logged = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert [r.getMessage() for r in logged if r.name not in expected_errors] == []
