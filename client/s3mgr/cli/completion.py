"""Completing names of mounts: asks the daemon, for a moment, and never says a word about failure."""

import threading
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from s3mgr.cli.context import Settings
from s3mgr.errors import ClientError

# A person who pressed Tab notices more.
BUDGET_S: Final = 0.3


def complete_mounts(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the mounts that *incomplete* may mean, by name, or by mountpoint once it looks like a path."""
    settings = ctx.find_object(Settings)
    given = _already_given(ctx)
    known = known_mounts(settings.host if settings is not None else None)
    items = [(name, path) for name, path in known if name not in given and path not in given]
    if "/" in incomplete:
        return [CompletionItem(path) for _, path in items if path.startswith(incomplete)]
    return [CompletionItem(name, help=path) for name, path in items if name.startswith(incomplete)]


def known_mounts(host: str | None) -> list[tuple[str, str]]:
    """Ask the daemon for names and mountpoints; an empty list after `BUDGET_S` or on any failure."""
    from s3mgr.api import Client  # before the clock starts

    found: list[tuple[str, str]] = []

    def ask() -> None:
        try:
            client = Client.connect(host, timeout_s=BUDGET_S)
            found.extend(
                (mount.name, mount.spec.mountpoint) for mount in client.list_mounts().items
            )
        except (ClientError, OSError, ValueError):
            return  # a completion that complains would garble the command line

    # A thread, because a daemon that trickles its answer could defeat a timeout per read.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(BUDGET_S)
    return [] if thread.is_alive() else found


def _already_given(ctx: click.Context) -> set[str]:
    given: set[Any] = set()  # Any: whatever the command's parameters hold
    for value in ctx.params.values():
        given.update(value if isinstance(value, tuple) else (value,))
    return {value for value in given if isinstance(value, str)}
