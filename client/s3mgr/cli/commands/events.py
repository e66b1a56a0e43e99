"""``s3mgr events``: watch what changes."""

import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import click

from s3mgr.cli.context import attempting, common_options, make_client, say
from s3mgr.cli.output import printable, timestamp
from s3mgr.errors import DaemonUnreachable

if TYPE_CHECKING:
    from s3mgr.api import Client
    from s3mgr.schema import Event

# A restart of the daemon takes less; after that its absence is the answer.
RECONNECT_TRIES: Final = 10
RECONNECT_PAUSE_S: Final = 0.5


@click.command(short_help="Watch what changes.")
@click.option(
    "--since",
    type=click.IntRange(min=0),
    metavar="CURSOR",
    help="Begin after this event; 0 for the oldest that is stored. Default: with what comes next.",
)
@click.option("--json", "as_json", is_flag=True, help="Write each event as one line of JSON.")
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="Stop after this many events."
)
@common_options()
def command(*, since: int | None, as_json: bool, count: int | None) -> None:
    """Write events as they happen, until Ctrl-C.

    The connection is made anew where it breaks, without losing an event. An event of the type reset says that older
    ones are no longer stored: list the mounts again.
    """
    with attempting("cannot watch events"):
        for number, event in enumerate(follow(make_client(), since), start=1):
            click.echo(_json_line(event) if as_json else _line(event))
            sys.stdout.flush()
            if number == count:
                return


def follow(client: "Client", since: int | None) -> "Iterator[Event]":
    """Yield events for ever, connecting again after what was seen last.

    Raises:
        DaemonUnreachable: the daemon is away for longer than a restart takes.
    """
    # Where nothing is asked for, begin at a cursor of our own, so that a break loses nothing.
    cursor = client.list_mounts().cursor if since is None else since
    failures = 0
    while True:
        try:
            with client.events(since=cursor) as events:
                for event in events:
                    failures = 0
                    cursor = event.cursor
                    yield event
        except DaemonUnreachable:
            failures += 1
            if failures > RECONNECT_TRIES:
                raise
        else:
            failures += 1
            if failures > RECONNECT_TRIES:
                raise DaemonUnreachable("the daemon ends every stream of events at once")
        if failures == 1:
            say("the stream of events ended; connecting again")
        time.sleep(RECONNECT_PAUSE_S)


def _json_line(event: "Event") -> str:
    import msgspec

    return msgspec.json.encode(event).decode()


def _line(event: "Event") -> str:
    parts = [timestamp(event.time), str(event.cursor), event.type]
    if event.mount is not None:
        parts.append(event.mount)
    parts += [f"{name}={value}" for name, value in _told(event.data)]
    return printable(" ".join(parts))


def _told(data: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield what a person wants to know of an event; everything is in the JSON."""
    for name, value in data.items():
        if not isinstance(value, Mapping):
            if value not in (None, ""):
                yield name, value
            continue
        for inner in ("kind", "state", "detail", "error"):
            found = value.get(inner)
            if isinstance(found, Mapping):
                found = found.get("detail")
            if found not in (None, ""):
                yield f"{name}.{inner}", found
