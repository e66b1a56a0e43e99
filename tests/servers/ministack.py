"""MiniStack: fast, in Python, conditional writes; verifies no signature.

Its application is served by hypercorn on loopback. Its own launcher is not used: it listens on every interface.
"""

import http.client
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import process
from tests.servers.endpoint import Endpoint

START_LIMIT_S = 60.0


@contextmanager
def run_ministack(
    directory: Path, app: str = "tests.servers.ministack_app:app"
) -> Iterator[Endpoint]:
    """Run one with its files in *directory*; it has answered when the context is entered. *app*: or another application."""
    log = directory / "ministack.log"
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        # Inherited while it listens: whoever connects too early waits in the backlog, nobody else can get the port.
        port = listener.getsockname()[1]
        env = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "GATEWAY_PORT": str(port),
            "SERVICES": "s3",
            "S3_PERSIST": "0",
            "LOG_LEVEL": "WARNING",
            "DOCKER_HOST": f"unix://{directory}/no-docker",
        }
        server = process.start(
            [
                sys.executable,
                "-m",
                "hypercorn",
                *("--workers", "0"),  # in that process, not in a child of it
                "--bind",
                f"fd://{listener.fileno()}",
                app,
            ],
            log=log,
            env=env,
            pass_fds=[listener.fileno()],
        )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError as exc:
            raise RuntimeError(f"MiniStack did not start:\n{process.log_tail(log)}") from exc
        finally:
            connection.close()
        yield Endpoint(
            "ministack", f"http://127.0.0.1:{port}", "test", "test-secret", pid=server.pid
        )
    finally:
        process.stop(server, patience_s=3.0)
