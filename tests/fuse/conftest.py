"""Fixtures of the process side: a laboratory with real mounts and a real zygote, and nothing left behind."""

import os
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
    # The zygote imports the test's worker.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    with ExitStack() as stack:
        laboratory = Lab(tmp_path, stack, nursery)
        try:
            yield laboratory
        finally:
            # First of all the mounts: who waits in one for an answer cannot even be killed.
            kill_all(laboratory.pids)
            detach(tmp_path)
