"""The S3 that a measurement talks to: how it is told things, and how its requests are counted.

Three kinds: one that counts by itself, has a network of its own and makes an object from nothing (``/_bench/…``); one of
the tests', behind a relay that has a network and counts; and any other S3, of which nothing but its objects is known.
"""

import http.client
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.servers.distance import NEAR, REGION, Distance, distance_before
from tests.servers.endpoint import Endpoint
from tests.servers.ministack import run_ministack

FACTOR: Final = 0x9E3779B97F4A7C15


class Network:
    """The way to an S3: nothing is counted, and nothing made from nothing. `name`: what readers of a table are told."""

    name = "as it is"

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Final = endpoint

    def near(self, *, is_near: bool) -> None:
        """Lift the network while a bucket is filled, and have it back."""

    def reset(self) -> None:
        """Count from nothing."""

    def requests(self) -> int | None:
        """Return the requests since `reset`; None: nobody counts."""
        return None

    def make_huge(self, bucket: str, key: str, size: int) -> bool:
        """Have the server make an object from nothing, of `from_nothing`'s bytes; whether it can."""
        return False


class Relayed(Network):
    """The way through a relay."""

    name = "MiniStack, 10 to 30 ms away, 90 MB/s a connection"

    def __init__(self, relay: Distance) -> None:
        super().__init__(relay.endpoint)
        self._relay: Final = relay
        self._network: Final = relay.network

    def near(self, *, is_near: bool) -> None:
        self._relay.network = NEAR if is_near else self._network

    def reset(self) -> None:
        self._relay.reset()

    def requests(self) -> int | None:
        return sum(self._relay.counts().values())


class Counting(Network):
    """The way to a server for measurements."""

    name = "a server for measurements, with its network"

    def ask(self, what: str) -> dict[str, dict[str, int]]:
        """Tell it something; returns its counters.

        Raises:
            OSError, ValueError: it is another server.
        """
        try:
            with urllib.request.urlopen(f"{self.endpoint.url}/_bench/{what}") as answer:  # noqa: S310 what the user gave
                counters: dict[str, dict[str, int]] = json.load(answer)
        except (urllib.error.URLError, http.client.HTTPException) as error:
            raise OSError(str(error)) from error
        return counters

    def near(self, *, is_near: bool) -> None:
        self.ask("latency?off" if is_near else "latency?on")

    def reset(self) -> None:
        self.ask("reset")

    def requests(self) -> int | None:
        return sum(row["requests"] for row in self.ask("stats").values())

    def make_huge(self, bucket: str, key: str, size: int) -> bool:
        self.ask(f"big?bucket={bucket}&key={key}&size={size}")
        return True


def from_nothing(offset: int, length: int) -> bytes:
    """Return what an object made from nothing has at an offset, a multiple of 8."""
    words = range(offset // 8, (offset + length) // 8)
    return b"".join((n * FACTOR & (1 << 64) - 1).to_bytes(8, "little") for n in words)


@contextmanager
def reached(url: str | None, access_key: str, secret_key: str) -> Iterator[Network]:
    """Find out what is at *url*; None: start a server of the tests', with the network of a region before it."""
    if url is None:
        with (
            tempfile.TemporaryDirectory() as directory,
            run_ministack(Path(directory)) as behind,
            distance_before(behind, REGION) as relay,
        ):
            yield Relayed(relay)
        return
    # What is known of an S3 that is given is what its URL says: none of the tests' servers.
    counting = Counting(Endpoint("ministack", url.rstrip("/"), access_key, secret_key))
    try:
        counting.ask("stats")
    except (OSError, ValueError):
        yield Network(counting.endpoint)
        return
    yield counting
