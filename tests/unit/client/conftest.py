"""Fixtures of the client's tests: a fake daemon, and the command run in this process or as one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3mgr.cli import main

from .fake_daemon import FakeDaemon, running

PROGRAM = [sys.executable, "-c", "import sys; from s3mgr.cli import main; sys.exit(main())"]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


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
    """Start the command as a process; it is gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **more: object) -> subprocess.Popen[str]:
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        process: subprocess.Popen[str] = subprocess.Popen([*PROGRAM, *args], **{**options, **more})  # type: ignore[call-overload]  # chosen by tests
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
