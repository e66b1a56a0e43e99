"""radosgw: a real, independent S3 that verifies signatures. One monitor, one OSD in memory, one gateway.

Needs Debian's ``radosgw ceph-mon ceph-osd ceph-common``; about 15 s to start. Everything runs in the foreground as
a child of the tests, on loopback, and keeps its files in one directory.
"""

import fcntl
import http.client
import os
import secrets
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers import process
from tests.servers.endpoint import Endpoint

START_LIMIT_S = 120.0
PORTS_EACH = 64
"""A block of ports for one cluster: gateway, monitor, and what the OSD binds."""
PORT_RANGE = range(20_000, 32_000, PORTS_EACH)
"""Below the ephemeral ports, or a client's socket could sit on one."""
LOCKS = Path("/tmp/s3mgr-test-ports")

CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
# with "none" the gateway never comes up
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
run dir = {dir}
admin socket = {dir}/$name.asok
log file = {dir}/$name.log
pid file = {dir}/$name.pid
mon cluster log file = {dir}/cluster.log
ms bind port min = {osd_port_min}
ms bind port max = {osd_port_max}
mon data = {dir}/mon
osd data = {dir}/osd0
keyring = {dir}/keyring
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 1
[osd]
osd objectstore = memstore
memstore device bytes = 6442450944
[client.rgw.0]
# 44 ms a request without tcp_nodelay
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw dns name = localhost
rgw crypt require ssl = false
"""


@contextmanager
def _ports() -> Iterator[int]:
    """Reserve a block of ports among all test runs of this machine; yields the first."""
    LOCKS.mkdir(exist_ok=True)
    for port in PORT_RANGE:
        lock = os.open(LOCKS / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for each in range(port, port + PORTS_EACH):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", each))
        except OSError:
            os.close(lock)
            continue
        try:
            yield port
        finally:
            os.close(lock)
        return
    raise RuntimeError("no block of free ports for radosgw")


def _wait_until(is_ready: Callable[[], bool], servers: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not is_ready():
        dead = next((s for s in servers if s.poll() is not None), None)
        if dead is not None or time.monotonic() > deadline:
            raise RuntimeError(f"radosgw did not start: {dead.args if dead else 'too slow'!r}")
        time.sleep(0.1)  # other processes are polled; nothing tells us


class _Cluster:
    """The cluster's directory and the commands that act on it."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.keyring = directory / "keyring"
        self.env = {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
            "HOME": str(directory),
            "CEPH_CONF": str(directory / "ceph.conf"),
        }

    def run(self, *command: str) -> str:
        """Run one command to its end and return its output."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=START_LIMIT_S
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        return done.stdout

    def add_key(self, name: str, *caps: str) -> None:
        """Make a key in the cluster and add it to the keyring."""
        key = self.run("ceph", "auth", "get-or-create", name, *caps)
        with self.keyring.open("a") as keyring:
            keyring.write(key)

    def prepare(self) -> None:
        """Write what the monitor needs."""
        directory = self.directory
        for part in ("mon", "osd0"):
            (directory / part).mkdir()
        fsid = str(uuid.uuid4())
        monitor = f"[v2:127.0.0.1:{self.port + 1}]"
        (directory / "ceph.conf").write_text(
            CONFIG.format(
                dir=directory,
                fsid=fsid,
                port=self.port,
                mon_port=self.port + 1,
                osd_port_min=self.port + 2,
                osd_port_max=self.port + PORTS_EACH - 1,
            )
        )
        keyring = str(self.keyring)
        allow = ("allow *",) * 3
        self.run(
            "ceph-authtool",
            "--create-keyring",
            keyring,
            "--gen-key",
            "-n",
            "mon.",
            "--cap",
            "mon",
            "allow *",
        )
        caps = [
            word
            for pair in zip(("mon", "osd", "mgr"), allow, strict=True)
            for word in ("--cap", *pair)
        ]
        self.run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *caps)
        monmap = str(directory / "monmap")
        self.run(
            "monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", monitor, monmap
        )
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)


@contextmanager
def run_radosgw(directory: Path) -> Iterator[Endpoint]:
    """Run one with its files in *directory*; it serves when the context is entered."""
    with ExitStack() as cleanup:
        port = cleanup.enter_context(_ports())
        cluster = _Cluster(directory, port)
        servers: list[subprocess.Popen[bytes]] = []

        def serve(*command: str) -> None:
            log = directory / f"{command[0]}.out"
            servers.append(process.start(command, log=log, env=cluster.env))
            cleanup.callback(process.stop, servers[-1])

        cluster.prepare()
        serve("ceph-mon", "-f", "-i", "a")
        osd = str(uuid.uuid4())
        cluster.run("ceph", "osd", "new", osd)  # waits for the monitor
        cluster.add_key(
            "osd.0", "mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"
        )
        cluster.add_key("client.rgw.0", "mon", "allow *", "osd", "allow *", "mgr", "allow *")
        cluster.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        serve("ceph-osd", "-f", "-i", "0")
        _wait_until(lambda: "1 up" in cluster.run("ceph", "osd", "stat"), servers)
        serve("radosgw", "-f", "-n", "client.rgw.0")
        access_key = "S3MGR" + secrets.token_hex(6).upper()
        secret_key = secrets.token_urlsafe(30)
        cluster.run(
            "radosgw-admin",
            "user",
            "create",
            "--uid=s3mgr",
            "--display-name=s3mgr",
            f"--access-key={access_key}",
            f"--secret-key={secret_key}",
        )
        _wait_until(lambda: _answers(port), servers)
        yield Endpoint("radosgw", f"http://127.0.0.1:{port}", access_key, secret_key)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
