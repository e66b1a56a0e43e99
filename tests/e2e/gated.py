"""A daemon and a bucket with a gate between them: what a mount asks S3 for can be counted, held up and cut off."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3mgr.schema import MountStats
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint
from tests.servers.gate import Gate, gate_before
from tests.servers.plugin import make_bucket, remove_bucket

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class GatedSite:
    """A daemon, a bucket behind a gate, and its client, which goes around the gate."""

    daemon: Daemon
    client: Any
    bucket: str
    gate: Gate

    def put(self, key: str, body: bytes) -> bytes:
        """Write as somebody else does."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        return body

    def mount(self, name: str, *options: str) -> Path:
        """Mount what is below the prefix NAME/; each of *options* is an ``-o``."""
        words = [word for option in options for word in ("-o", option)]
        return self.daemon.mount(self.gate.endpoint, f"{self.bucket}/{name}", name, *words)

    def stats(self, name: str) -> MountStats:
        """Return the counters of a mount's worker."""
        return self.daemon.api.mount_stats(name)

    def gets(self, name: str) -> int:
        """How many objects, or parts of objects, the worker asked S3 for."""
        return sum(found.count for found in self.stats(name).s3 if found.name == "GetObject")


@contextmanager
def gated_site(lab: Lab, endpoint: Endpoint, **config: float) -> Iterator[GatedSite]:
    """Give a site whose gate is open; nothing of it is left afterwards."""
    client = endpoint.boto3()
    bucket = make_bucket(client)
    daemon = lab.daemon("d", start=True, **config)
    try:
        with gate_before(endpoint) as gate:
            yield GatedSite(daemon, client, bucket, gate)
            gate.open()
            daemon.run("unmount", "--all", check=False)
    finally:
        remove_bucket(client, bucket)
        client.close()


def read_uncached(path: Path) -> bytes:
    """Read a file past what the kernel keeps of it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        parts: list[bytes] = []
        while part := os.pread(fd, PIECE_BYTES, sum(map(len, parts))):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
