"""Secrets are seen by nobody: not in a process list, an environment, a log or an answer; at rest by the daemon's user alone."""

import os
import re
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.e2e.wire import ask
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

NOBODY = 65534
DEBUG_LINE = re.compile(r" DEBUG ")


def what_processes_show(pids: list[int]) -> dict[str, str]:
    """Command line, environment and names of every process given, by where it stands."""
    shown = {}
    for pid in pids:
        for name in ("cmdline", "environ", "comm"):
            with suppress(OSError):
                shown[f"/proc/{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes().decode()
    return shown


def what_answers_say(daemon: Daemon) -> dict[str, str]:
    """Everything that the API gives of a mount, and what the commands print."""
    routes = [
        "/v1/mounts",
        "/v1/mounts/m",
        "/v1/mounts/m/stats",
        "/v1/mounts/m/cache",
        "/v1/mounts/m/logs?lines=1000",
        "/v1/operations",
        "/v1/info",
        "/openapi.json",
    ]
    said = {route: ask(daemon, "GET", route).body.decode() for route in routes}
    for arguments in (("ls", "--json"), ("show", "m"), ("show", "m", "--json"), ("logs", "m")):
        said["s3mgr " + " ".join(arguments)] = daemon.run(*arguments).stdout
    with daemon.api.events(since=0) as events:
        last = daemon.api.list_mounts().cursor
        for event in events:
            said[f"event {event.cursor}"] = repr(event)
            if event.cursor >= last:
                break
    return said


def find(secrets: list[str], texts: dict[str, str]) -> list[str]:
    return [place for place, text in texts.items() if any(secret in text for secret in secrets)]


@pytest.mark.parametrize("way", ["environment", "flags", "file", ".env"])
def test_no_secret_is_shown_anywhere(lab: Lab, radosgw: Endpoint, way: str) -> None:
    """However the keys came; with the most talkative log there is, errors included."""
    daemon = lab.daemon(log_level="debug")
    client = radosgw.boto3()
    bucket = make_bucket(client)
    directory = daemon.mountpoint("m")
    directory.mkdir()
    home = daemon.base / "home"
    command = ["mount", bucket, str(directory), "--name", "m", "--endpoint", radosgw.url, "--debug"]
    environ = {}
    match way:
        case "environment":
            environ = {
                "AWS_ACCESS_KEY_ID": radosgw.access_key,
                "AWS_SECRET_ACCESS_KEY": radosgw.secret_key,
            }
        case "flags":
            command += ["--access-key", radosgw.access_key, "--secret-key", radosgw.secret_key]
        case "file":
            (home / "key").write_text(radosgw.secret_key + "\n")
            command += ["--access-key", radosgw.access_key, "--secret-key-file", "key"]
        case _:
            (home / ".env").write_text(
                f"AWS_ACCESS_KEY_ID={radosgw.access_key}\nAWS_SECRET_ACCESS_KEY={radosgw.secret_key}\n"
            )
            (home / ".env").chmod(0o600)
    try:
        done = daemon.run(*command, environ=environ)
        (directory / "file").write_bytes(b"x" * 100_000)
        daemon.run("restart", "m")
        assert (directory / "file").read_bytes() == b"x" * 100_000
        # Keys that are refused, a request that cannot be read, and a token: each shows up in messages, if at all.
        for keys in (
            {"access_key": "refused", "secret_key": radosgw.secret_key},
            {"access_key": "k", "secret_key": radosgw.secret_key, "session_token": "TOKEN-9876"},
            {"access_key": "k", "secret_key": [radosgw.secret_key]},
            {"access_key": "k", "secret_key": "s", radosgw.secret_key: 1},
        ):
            refused = ask(
                daemon,
                "PUT",
                "/v1/mounts/other",
                {
                    "spec": {
                        "bucket": bucket,
                        "mountpoint": str(lab.base),
                        "endpoint": radosgw.url,
                    },
                    "credentials": keys,
                },
            )
            assert refused.status >= 400
            if radosgw.secret_key not in keys:
                assert radosgw.secret_key not in refused.body.decode()
        texts = dict(daemon.logs()) | what_processes_show(daemon.pids()) | what_answers_say(daemon)
        texts["stderr"], texts["stdout"] = done.stderr, done.stdout
        assert find([radosgw.secret_key, "TOKEN-9876"], texts) == []
        logs = "".join(text for _, text in daemon.logs())
        assert DEBUG_LINE.search(logs)
        assert len(texts) > 20
        daemon.run("unmount", "m")
    finally:
        daemon.end()
        remove_bucket(client, bucket)
        client.close()


def test_state_is_closed_to_everybody_else(daemon: Daemon, ministack: Endpoint) -> None:
    """The keys of a persisted mount lie in the state directory: nobody gets there, nor to what is in it."""
    client = ministack.boto3()
    bucket = make_bucket(client)
    try:
        daemon.mount(ministack, bucket)
        state = daemon.state_dir
        holders = [
            path
            for path in state.rglob("*")
            if path.is_file() and ministack.secret_key.encode() in path.read_bytes()
        ]
        assert holders, "where is it, then?"
        for path in (state, *holders):
            status = path.stat()
            assert (status.st_uid, status.st_mode & 0o077) == (os.geteuid(), 0), path
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for path in (state, state / "state.db", state / "run", *holders):
            done = subprocess.run(
                [
                    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
                    *("cat" if path.is_file() else "ls", str(path)),
                ],
                capture_output=True,
                check=False,
            )
            assert done.returncode != 0, path
        # The worker has its keys from its socket; its own files do not hold them.
        assert not [path for path in holders if "mounts" in path.relative_to(state).parts]
        daemon.run("unmount", "m")
    finally:
        remove_bucket(client, bucket)
        client.close()
