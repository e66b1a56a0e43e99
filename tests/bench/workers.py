"""What mounts cost that nobody uses: memory of each further worker, processor time of all.

Run: ``python -m tests.bench.workers [--mounts 16]``. Starts a MiniStack and mounts one bucket again and again.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.bench.meter import MIB, children, pss_bytes
from tests.e2e.lab import Daemon, Lab
from tests.servers.ministack import run_ministack
from tests.servers.plugin import make_bucket, remove_bucket

SHOWN: Final = (1, 2, 4, 8, 16, 32, 64)
SETTLE_S: Final = 3.0
"""After a mount: what it does in the beginning is done."""
IDLE_S: Final = 10.0
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the processor time that *pid* has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def workers_of(daemon: Daemon) -> dict[str, int]:
    """Return the pids of all workers by the mount's name."""
    mounts = daemon.api.list_mounts().items
    return {m.name: m.status.worker_pid for m in mounts if m.status.worker_pid is not None}


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mounts", type=int, default=16)
    chosen = parser.parse_args()
    lab = Lab()
    with tempfile.TemporaryDirectory() as directory, run_ministack(Path(directory)) as endpoint:
        client = endpoint.boto3()
        bucket = make_bucket(client)
        client.put_object(Bucket=bucket, Key="file", Body=b"x")
        try:
            daemon = lab.daemon()
            assert daemon.process is not None
            supervisor = daemon.process.pid
            print(
                f"{'mounts':>6} {'supervisor':>11} {'zygote':>7} {'workers':>8} {'each':>6}  MiB (PSS)"
            )
            for number in range(1, chosen.mounts + 1):
                mount = daemon.mount(endpoint, bucket, f"m-{number}")
                assert (mount / "file").read_bytes() == b"x"
                if number in SHOWN or number == chosen.mounts:
                    time.sleep(SETTLE_S)
                    (zygote,) = children(supervisor)
                    total = sum(pss_bytes(pid) for pid in workers_of(daemon).values()) / MIB
                    print(
                        f"{number:6} {pss_bytes(supervisor) / MIB:11.1f} {pss_bytes(zygote) / MIB:7.1f} "
                        f"{total:8.1f} {total / number:6.1f}",
                        flush=True,
                    )
            pids = [supervisor, *workers_of(daemon).values()]
            before = [cpu_s(pid) for pid in pids]
            time.sleep(IDLE_S)
            used = [(cpu_s(pid) - b) / IDLE_S for pid, b in zip(pids, before, strict=True)]
            print(
                f"idle: supervisor {used[0]:.2%} of a core, all workers {sum(used[1:]):.2%}, "
                f"each {sum(used[1:]) / chosen.mounts:.3%}"
            )
        finally:
            lab.end()
            remove_bucket(client, bucket)
            client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
