"""Waiting for the daemon's long work: progress on a terminal, Ctrl-C that detaches, a deadline."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from s3mgr.cli.context import report, settings
from s3mgr.cli.exits import AlreadyReported, CommandFailed, ExitCode
from s3mgr.cli.output import counted, human_duration, human_size, is_terminal, printable
from s3mgr.errors import ProblemError

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import Operation, Progress

# Work that is done sooner shows no progress: a line that flashes by only disturbs.
PROGRESS_AFTER_S: Final = 0.3
# The first answer is awaited this long inside the request; most work ends within it.
FIRST_WAIT_S: Final = 0.3
# The daemon answers at once when the work ends; in between only the progress is of interest.
_LOOK_S: Final = 0.5
# A daemon that is stopping answers every look at once.
_PAUSE_S: Final = 0.05
# Rates are taken over this long at least, so that a burst does not promise too much.
_RATE_WINDOW_S: Final = 1.0


def wait_operation(
    client: "Client",
    operation_id: str,
    *,
    label: str,
    timeout_s: float,
    resume: str,
) -> "Operation":
    """Wait until an operation has ended well.

    Args:
        client: the daemon.
        operation_id: which operation.
        label: what happens, e.g. ``draining 'logs'``; shown with the progress and when time is up.
        timeout_s: give up waiting after this.
        resume: a command that shows how it went on; said when the waiting ends early.

    Raises:
        ProblemError: it ended badly.
        CommandFailed: it was cancelled, or time is up (exit code 7).
        AlreadyReported: Ctrl-C; the daemon carries on.
    """
    begun = time.monotonic()
    deadline = begun + timeout_s
    meter = _Meter(label, begun)
    look_s = min(PROGRESS_AFTER_S, timeout_s)
    with detaching(label, resume), meter:
        while True:
            operation = client.get_operation(operation_id, wait_s=look_s)
            now = time.monotonic()
            if operation.state != "running":
                break
            meter.show(operation.progress, now)
            if now >= deadline:
                raise CommandFailed(
                    f"{label}: not done in time; the daemon carries on",
                    hint=f"follow it: {resume}",
                    code=ExitCode.TIMED_OUT,
                )
            look_s = min(_LOOK_S, deadline - now)
            time.sleep(_PAUSE_S)
    if operation.error is not None:
        raise ProblemError(operation.error)
    if operation.state != "succeeded":
        raise CommandFailed(f"{label}: {operation.state}", hint=f"see its state: {resume}")
    return operation


@contextmanager
def detaching(label: str, resume: str) -> Iterator[None]:
    """Let Ctrl-C end the waiting but not the work, and say how to follow it."""
    try:
        yield
    except KeyboardInterrupt:
        if is_terminal(sys.stderr):
            click.echo("", err=True)  # leaves the line with ^C and the progress
        report(
            f"{label}: no longer waiting; the daemon carries on",
            f"follow it: {resume}",
            color=settings().color,
        )
        raise AlreadyReported(ExitCode.INTERRUPTED) from None


class _Meter:
    """One line on stderr that says how far the work is; nothing where nobody looks."""

    def __init__(self, label: str, begun: float) -> None:
        self._label = label
        self._begun = begun
        self._enabled = is_terminal(sys.stderr) and not settings().quiet
        self._first: tuple[float, int] | None = None
        self._shown = False

    def __enter__(self) -> None:
        return

    def __exit__(self, *_exc: object) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, progress: "Progress | None", now: float) -> None:
        """Draw the line anew."""
        if not self._enabled or now - self._begun < PROGRESS_AFTER_S:
            return
        text = self._label + "…"
        if progress is not None:
            if self._first is None:
                self._first = (now, progress.done)
            text += " " + self._figures(progress, now)
        click.echo(f"\r{printable(text)}\x1b[K", nl=False, err=True)
        self._shown = True

    def _figures(self, progress: "Progress", now: float) -> str:
        is_bytes = progress.unit == "bytes"

        def amount(value: float) -> str:
            return human_size(value) if is_bytes else counted(int(value), "file")

        if progress.total is None:
            return f"{amount(progress.done)} done"
        left = max(0, progress.total - progress.done)
        text = f"{amount(left)} left"
        then, done = self._first or (now, progress.done)
        if now - then >= _RATE_WINDOW_S and progress.done > done:
            rate = (progress.done - done) / (now - then)
            text += f", {amount(rate)}/s, {human_duration(left / rate)} to go"
        return text
