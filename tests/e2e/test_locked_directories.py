"""A worker dies while the kernel makes it wait: for the lock of a directory that a program holds, who waits for the worker."""

import os
import sys

import pytest

from tests.e2e.lab import SCRIPTS, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.gate import gate_before
from tests.servers.plugin import make_bucket, remove_bucket

MAKE = """
import os, sys
print(flush=True)
os.mkdir(sys.argv[1])
"""


def _waits_in_kernel(pid: int, function: str) -> bool:
    """Whether a thread of a process, or of one in its group, is inside that function of the kernel."""
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            if os.getpgid(int(entry)) != pid:
                continue
            for thread in os.listdir(f"/proc/{entry}/task"):
                with open(f"/proc/{entry}/task/{thread}/stack") as stack:
                    if f"{function}+" in stack.read():
                        return True
        except (ProcessLookupError, FileNotFoundError):
            continue
    return False


def test_a_worker_that_dies_in_the_wait_for_a_directory_is_replaced(
    lab: Lab, ministack: Endpoint
) -> None:
    """Nothing of it may keep it from ending: the program that has the lock waits for the next worker's answer."""
    client = ministack.boto3()
    bucket = make_bucket(client)
    try:
        with gate_before(ministack) as gate:
            client.put_object(Bucket=bucket, Key="d/known", Body=b"1")
            daemon = lab.daemon()
            mount = daemon.mount(
                gate.endpoint,
                bucket,
                "m",
                "-o",
                "metadata_ttl_s=3600,negative_ttl_s=0,retry_deadline_s=600",
            )
            assert os.listdir(mount) == ["d"]
            assert (mount / "d" / "known").stat().st_size == 1
            daemon.run("invalidate", "m", "d/new")
            gate.shut()  # nothing is known of the name: mkdir asks, in vain, with the directory locked
            maker = lab.program(sys.executable, "-S", "-c", MAKE, mount / "d" / "new")
            assert maker.stdout is not None
            maker.stdout.readline()
            wait_for("mkdir waits", lambda: _has_lock(maker.pid))
            told = lab.program(
                SCRIPTS / "s3mgr", "--host", f"unix://{daemon.socket}", "invalidate", "m", "d/known"
            )
            worker = daemon.worker_pid()
            wait_for(
                "the kernel is told of a name in that directory",
                lambda: _waits_in_kernel(worker, "fuse_reverse_inval_entry"),
            )
            killed = daemon.kill_worker()
            daemon.wait_replaced(killed)
            gate.open()
            assert maker.wait(60) == 0
            assert told.wait(60) == 0
            assert (mount / "d" / "new").is_dir()
            wait_for(
                "nothing is left of the worker that died",
                lambda: not any(_group(entry) == killed for entry in os.listdir("/proc")),
            )
    finally:
        remove_bucket(client, bucket)
        client.close()


def _has_lock(pid: int) -> bool:
    with open(f"/proc/{pid}/stack") as stack:
        return "fuse_lookup_name" in stack.read()


def _group(entry: str) -> int | None:
    try:
        return os.getpgid(int(entry))
    except (ValueError, ProcessLookupError):
        return None


if not os.access("/proc/self/stack", os.R_OK):
    pytest.skip("only root may see where in the kernel a process waits", allow_module_level=True)
