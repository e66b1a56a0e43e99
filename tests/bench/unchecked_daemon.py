"""The daemon with workers that compute, send and compare no checksums; run as ``python -m tests.bench.unchecked_daemon``.

Only to measure what checksums cost (`tests.bench.checksums`): nothing of the product can turn them off. All else is as in the daemon.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import s3mgrd.daemon
from s3mgrd import __main__ as program
from s3mgrd.fs.reading import comparing
from s3mgrd.fs.reading.sums import Sums
from s3mgrd.journal import staging
from s3mgrd.journal.entered import Run
from s3mgrd.s3 import calls, reading
from s3mgrd.s3.algorithms import Algorithm
from s3mgrd.s3.checksums import UploadChecksums
from s3mgrd.worker.spawn import DEFAULT_WARM, WorkerProcesses

if TYPE_CHECKING:
    from tests.e2e.lab import Daemon, Lab


def start_unchecked(lab: "Lab") -> "Daemon":
    """Start such a daemon."""
    daemon = lab.daemon("unchecked", start=False)
    daemon.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    daemon.program = (sys.executable, "-m", "tests.bench.unchecked_daemon")
    return daemon.start()


class NoUploadChecksums(UploadChecksums):
    """Sends none, and has no payload hashed instead."""

    def __init__(self, endpoint: str, *, known: bool) -> None:
        super().__init__(endpoint, known=known)
        self.support = "supported"

    @property
    def sent(self) -> None:
        return None

    def verifies(self, algorithm: Algorithm | None) -> bool:
        return True


class NoSums(Sums):
    """Compares nothing."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type] # passed on
        self.is_over = True


def sum_up_nothing(offset: int, data: bytes | memoryview) -> list[Run]:
    """Stand for `s3mgrd.journal.entered.sum_up`."""
    return []


def drop_checksums() -> None:
    """Have the workers that are forked from this process do without."""
    vars(calls)["UploadChecksums"] = NoUploadChecksums
    vars(staging)["sum_up"] = sum_up_nothing
    vars(reading)["read_checksum"] = lambda _: None
    vars(comparing)["Sums"] = NoSums


if __name__ == "__main__":
    vars(s3mgrd.daemon)["WorkerProcesses"] = partial(
        WorkerProcesses, warm=(*DEFAULT_WARM, "tests.bench.unchecked_daemon:drop_checksums")
    )
    sys.exit(program.run(sys.argv[1:]))
