"""Each path of the file system under each fault of a network, one by one: a table of what came of it.

Run: ``python -m tests.bench.faultpaths --endpoint URL [--share 0.1] [--large-mib 24]``. The endpoint is a server that injects faults, as for
`tests.bench.faults`, which does everything in one go and larger. Here every cell is one path under one fault in one write mode, cold. What a
cell may say: *right* (every byte and name as it must be, also in the bucket in the end), or an error of the table of docs/semantics.md
where the fault is one that nothing can get over: an outage longer than ``retry_deadline_s``, after which the same must work, and damaged
bytes of a large object, of which S3 says a checksum only as a whole. *unnoticed* are damaged bytes of ranges, of which S3 says none. Anything
else is *WRONG*, and the exit status 1.
"""

import argparse
import errno
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.bench.faults import CHECKED_BYTES, inject
from tests.bench.meter import MIB
from tests.e2e.lab import Daemon, Lab
from tests.servers.endpoint import Endpoint

FAULTS: Final = ("503", "reset", "truncate", "hang", "corrupt", "outage")
MODES: Final = ("close", "writeback")
OPTIONS: Final = "read_timeout_s=1,part_size_bytes=5242880"
DEADLINE_S: Final = 2
"""What retries may take where there is an outage."""
SMALL_FILES: Final = 12
RANDOM_READS: Final = 16
RANDOM_BYTES: Final = 128 << 10
UNVERIFIABLE: Final = frozenset({"random_read"})
"""Where damage cannot be noticed: no S3 says checksums of ranges, and the object is not read to its end."""
GIVEN_UP: Final = frozenset({errno.EIO, errno.ETIMEDOUT})
"""What a program may be told when the retries ran out, or damage was noticed."""


@dataclass(frozen=True, slots=True)
class Ground:
    """A mount, what its bucket held before, and what it must hold in the end, by key."""

    daemon: Daemon
    mount: Path
    random: Random
    large_bytes: int
    held: dict[str, bytes]
    wanted: dict[str, bytes]

    def write(self, key: str, data: bytes) -> None:
        """Write a file as a whole."""
        self.wanted[key] = data
        (self.mount / key).write_bytes(data)

    def compare(self, key: str) -> None:
        """Read a file as a whole."""
        assert (self.mount / key).read_bytes() == self.wanted[key], f"other bytes in {key}"


def seq_read(ground: Ground) -> None:
    """Read a large object from its first byte to its last."""
    ground.compare("seq_read/large")


def random_read(ground: Ground) -> None:
    """Read at random of a large object."""
    data = ground.held["random_read/large"]
    with (ground.mount / "random_read/large").open("rb", buffering=0) as file:
        for _ in range(RANDOM_READS):
            start = ground.random.randrange(len(data) - 1)
            found = os.pread(file.fileno(), RANDOM_BYTES, start)
            assert found == data[start : start + RANDOM_BYTES], f"other bytes at {start}"


def small_read(ground: Ground) -> None:
    """Read small files."""
    for number in range(SMALL_FILES):
        ground.compare(f"small_read/{number:02}")


def list_names(ground: Ground) -> None:
    """Walk a tree and stat everything."""
    found = {
        str(Path(base, name).relative_to(ground.mount)): os.stat(Path(base, name)).st_size
        for base, _, names in os.walk(ground.mount / "list", onerror=_raise)
        for name in names
    }
    assert found == {k: len(v) for k, v in ground.held.items() if k.startswith("list/")}, found


def _raise(error: OSError) -> None:
    raise error


def warm(ground: Ground) -> None:
    """Bring files into the block cache, and read them there."""
    done = ground.daemon.run("cache", "warm", "m", "warm", check=False)
    if done.returncode:
        raise OSError(errno.EIO, done.stderr.strip())
    ground.compare("warm/some")


def stream(ground: Ground) -> None:
    """Write a large file, which is uploaded meanwhile."""
    ground.write("stream/large", ground.random.randbytes(ground.large_bytes))


def small_write(ground: Ground) -> None:
    """Write small files."""
    for number in range(SMALL_FILES):
        ground.write(f"small_write/{number:02}", ground.random.randbytes(5000 + number))


def edit(ground: Ground) -> None:
    """Change 4 KiB within a large object."""
    data = ground.wanted["edit/large"]
    half = len(data) // 2
    ground.wanted["edit/large"] = data[:half] + b"e" * 4096 + data[half + 4096 :]
    with (ground.mount / "edit/large").open("r+b") as file:
        file.seek(half)
        file.write(b"e" * 4096)


def append(ground: Ground) -> None:
    """Append to a large object; once, though it is tried again."""
    data = ground.held["append/large"] + b"a" * 1024
    ground.wanted["append/large"] = data
    if (ground.mount / "append/large").stat().st_size < len(data):
        with (ground.mount / "append/large").open("ab") as file:
            file.write(b"a" * 1024)


def rename(ground: Ground) -> None:
    """Rename a file and a directory."""
    for old, new in (("rename/file", "rename/moved"), ("rename/dir", "rename/other")):
        if (ground.mount / old).exists():
            (ground.mount / old).rename(ground.mount / new)
        for key in [k for k in ground.wanted if k == old or k.startswith(f"{old}/")]:
            ground.wanted[new + key.removeprefix(old)] = ground.wanted.pop(key)


def remove(ground: Ground) -> None:
    """Remove files."""
    for key in [k for k in ground.wanted if k.startswith("remove/")]:
        (ground.mount / key).unlink(missing_ok=True)
        del ground.wanted[key]


PATHS: Final[dict[str, Callable[[Ground], None]]] = {
    "seq_read": seq_read,
    "random_read": random_read,
    "small_read": small_read,
    "list": list_names,
    "warm": warm,
    "stream": stream,
    "small_write": small_write,
    "edit": edit,
    "append": append,
    "rename": rename,
    "remove": remove,
}


def _filled(random: Random, large_bytes: int) -> dict[str, bytes]:
    """Think of what the bucket holds before: each path has keys of its own, so that each is cold."""
    large = ["seq_read/large", "random_read/large", "edit/large", "append/large"]
    small = [f"small_read/{n:02}" for n in range(SMALL_FILES)]
    small += [f"list/{n}/{m}/file" for n in range(3) for m in range(3)]
    small += ["rename/file", *(f"rename/dir/{n}" for n in range(6))]
    small += [*(f"remove/{n}" for n in range(6)), "warm/some"]
    return {key: random.randbytes(large_bytes) for key in large} | {
        key: random.randbytes(random.randrange(1, 60_000)) for key in small
    }


def _cell(ground: Ground, path: str, endpoint: Endpoint, fault: str, share: float) -> str:
    """Go one path under a fault; returns what came of it."""
    told = "right"
    kind, share = ("503", 1.0) if fault == "outage" else (fault, share)
    inject(endpoint, kind, share)
    try:
        PATHS[path](ground)
    except AssertionError as error:
        is_known = fault == "corrupt" and path in UNVERIFIABLE
        return "unnoticed" if is_known else f"WRONG: {error}"
    except OSError as error:
        told = errno.errorcode.get(error.errno or 0, str(error))
        if error.errno not in GIVEN_UP or fault not in ("outage", "corrupt"):
            return f"WRONG: {error}"
    finally:
        inject(endpoint, None)
    if told != "right":
        try:
            PATHS[path](ground)
        except (OSError, AssertionError) as error:
            return f"WRONG: {told}, and afterwards: {error}"
    return told


def _check_bucket(client: Any, ground: Ground, bucket: str) -> dict[str, str]:  # noqa: ANN401 boto3 is untyped
    """Compare what S3 has in the end; returns what is wrong, by path."""
    wrong: dict[str, str] = {}
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    keys = {entry["Key"] for entry in listed if not entry["Key"].endswith("/")}
    for key in keys ^ set(ground.wanted):
        wrong[key.partition("/")[0]] = f"WRONG: {key} is {'there' if key in keys else 'missing'}"
    for key in keys & set(ground.wanted):
        if client.get_object(Bucket=bucket, Key=key)["Body"].read() != ground.wanted[key]:
            wrong[key.partition("/")[0]] = f"WRONG: S3 has other bytes in {key}"
    return wrong


def go(
    daemon: Daemon, endpoint: Endpoint, fault: str, mode: str, share: float, large_bytes: int
) -> dict[str, str]:
    """Go all paths under one fault with one write mode; returns what came of each."""
    client = endpoint.boto3()
    bucket = f"s3mgr-bench-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    random = Random(f"{fault} {mode}")  # noqa: S311 the same bytes each time
    # In ranges of larger objects, of which S3 says no checksum, damage cannot be noticed.
    held = _filled(random, CHECKED_BYTES if fault == "corrupt" else large_bytes)
    for key, data in held.items():
        client.put_object(Bucket=bucket, Key=key, Body=data, ChecksumAlgorithm="CRC64NVME")
    for path in ("stream", "small_write", "remove"):
        client.put_object(Bucket=bucket, Key=f"{path}/", Body=b"")
    options = f"{OPTIONS},write_mode={mode}"
    if fault == "outage":
        options += f",retry_deadline_s={DEADLINE_S}"
    mount = daemon.mount(endpoint, bucket, "m", "-o", options)
    ground = Ground(daemon, mount, random, large_bytes, held, dict(held))
    try:
        cells = {path: _cell(ground, path, endpoint, fault, share) for path in PATHS}
        daemon.flush("m")
        return cells | _check_bucket(client, ground, bucket)
    finally:
        inject(endpoint, None)
        daemon.run("unmount", "m", "--discard", "--yes", check=False)
        client.close()


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", metavar="URL", required=True)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--large-mib", type=int, default=24)
    parser.add_argument("--fault", action="append", choices=FAULTS, default=[])
    chosen = parser.parse_args()
    endpoint = Endpoint("ministack", chosen.endpoint, "bench", "bench-secret")
    lab, bad = Lab(), []
    print("| fault | write_mode | " + " | ".join(PATHS) + " |")
    print("|---|---|" + "---|" * len(PATHS))
    try:
        daemon = lab.daemon()
        for fault in chosen.fault or FAULTS:
            for mode in MODES:
                cells = go(daemon, endpoint, fault, mode, chosen.share, chosen.large_mib * MIB)
                bad += [f"{fault}, {mode}, {p}: {c}" for p, c in cells.items() if "WRONG" in c]
                shown = (cells[path].partition(":")[0] for path in PATHS)
                print(f"| {fault} | {mode} | " + " | ".join(shown) + " |", flush=True)
    finally:
        lab.end()
    print(*bad, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
