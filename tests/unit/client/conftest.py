"""Fixtures of the client's tests: a fake daemon, and the command run in this process or as one of its own."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from s3mgr.cli import main
from s3mgrd.api.server import serve_api
from tests.fakes.service import FakeService

from .fake_daemon import FakeDaemon, running

PROGRAM = [sys.executable, "-c", "import sys; from s3mgr.cli import main; sys.exit(main())"]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
Command = Callable[..., Awaitable[Result]]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep the person's own settings out, and work in an empty directory."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "S3MGR_", "_S3MGR")) or name in ("NO_COLOR", "XDG_RUNTIME_DIR"):
            monkeypatch.delenv(name)
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A fake daemon that S3MGR_HOST names."""
    with running(tmp_path / "d.sock") as fake:
        monkeypatch.setenv("S3MGR_HOST", fake.host)
        yield fake


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def call(*args: str) -> Result:
        capsys.readouterr()
        code = main(args)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process, as a terminal does; it is gone after the test.

    Whoever started the tests in the background of a script has SIGINT ignored by all of their processes.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **more: object) -> subprocess.Popen[str]:
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        process: subprocess.Popen[str] = subprocess.Popen(
            ["env", "--default-signal=INT", *PROGRAM, *args], **{**options, **more}
        )  # type: ignore[call-overload]  # chosen by tests
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeService]:
    """The real API over a fake domain with one mount; S3MGR_HOST names it."""
    service, shutdown, path = FakeService(), trio.Event(), tmp_path / "api.sock"
    service.add_mount("logs")
    monkeypatch.setenv("S3MGR_HOST", f"unix://{path}")
    async with trio.open_nursery() as nursery:
        start = partial(serve_api, service, path, admin_uid=0, admin_group=None, shutdown=shutdown)
        await nursery.start(start)
        yield service
        shutdown.set()


@pytest.fixture
def command(run: Run) -> Command:
    """Run the command in a thread, beside the server."""

    async def call(*args: str) -> Result:
        return await trio.to_thread.run_sync(partial(run, *args))

    return call
