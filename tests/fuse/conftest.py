"""Fixtures of the process side: a laboratory with real mounts and a real zygote, and nothing left behind."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.fuse.lab import Lab, detach, kill_all


@pytest.fixture
async def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> AsyncIterator[Lab]:
    """Give a laboratory whose workers, programs and mounts are gone afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with ExitStack() as stack:
        laboratory = Lab(tmp_path, stack, nursery)
        stack.callback(detach, tmp_path)
        stack.callback(kill_all, laboratory.pids)
        yield laboratory
