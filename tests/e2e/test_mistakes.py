"""Mistakes that people make: one line says what is wrong, one what to do, and nothing is left behind."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from s3mgrd.fuse import syscalls
from tests.e2e.lab import SCRIPTS, Daemon, Lab
from tests.servers.certificates import make_certificate
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket
from tests.servers.scripted import Answer, error
from tests.servers.threaded import run_scripted

NOBODY = 65534


@dataclass
class Scene:
    """A daemon with one mount, ``up``, and everything that can be got wrong around it."""

    daemon: Daemon
    endpoint: Endpoint
    bucket: str
    other: str
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def up(self) -> Path:
        return self.daemon.mountpoint("up")

    def directory(self) -> Path:
        """An empty directory that one may mount on."""
        directory = self.daemon.mountpoint("free")
        directory.mkdir(exist_ok=True)
        return directory

    def server(self, answer: Answer) -> str:
        """URL of a server that says the same to everything."""
        return self.stack.enter_context(run_scripted([answer])).url


@pytest.fixture(scope="module")
def stage(module_lab: Lab, ministack: Endpoint) -> Iterator[Scene]:
    daemon = module_lab.daemon()
    client = ministack.boto3()
    bucket, other = make_bucket(client), make_bucket(client)
    daemon.mount(ministack, bucket, "up")
    (daemon.mountpoint("up") / "sub").mkdir()
    try:
        yield Scene(daemon, ministack, bucket, other)
    finally:
        daemon.run("unmount", "up")
        for name in (bucket, other):
            remove_bucket(client, name)


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    with ExitStack() as stack:
        stage.stack = stack
        yield stage
    assert [m.name for m in stage.daemon.api.list_mounts().items] == ["up"]
    assert [entry.mountpoint for entry in stage.daemon.mounts()] == [str(stage.up)]


@dataclass(frozen=True)
class Mistake:
    """A command line, its exit code, and what it must say; ``{}`` fields are filled in by the test."""

    title: str
    arguments: Callable[[Scene], tuple[str | Path, ...]]
    code: int
    said: str
    hint: str


def mount(scene: Scene, directory: Path | None = None, *options: str) -> tuple[str | Path, ...]:
    return ("mount", scene.other, directory or scene.directory(), "--name", "x", *options)


def a_file(scene: Scene) -> Path:
    path = scene.daemon.base / "mnt" / "file"
    path.touch()
    return path


def a_full_directory(scene: Scene) -> Path:
    path = scene.daemon.mountpoint("full")
    path.mkdir(exist_ok=True)
    (path / "something").touch()
    return path


def a_foreign_mount(scene: Scene) -> Path:
    path = scene.daemon.mountpoint("foreign")
    path.mkdir(exist_ok=True)
    syscalls.mount("none", str(path), "tmpfs", 0, "")
    scene.stack.callback(syscalls.unmount, str(path), lazy=False)
    return path


def closed_port(scene: Scene) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def untrusted_server(scene: Scene) -> str:
    context, _ = make_certificate(scene.daemon.base)
    return scene.stack.enter_context(run_scripted([Answer()], tls=context)).url


def slow_clock() -> Answer:
    there = datetime.now(UTC) + timedelta(minutes=20, seconds=5)
    return error(
        "403 Forbidden",
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
        ServerTime=there.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


MISTAKES = [
    Mistake(
        "mountpoint missing",
        lambda s: mount(s, s.daemon.mountpoint("nowhere")),
        2,
        "mountpoint '{mnt}/nowhere' does not exist",
        "create it: mkdir -p {mnt}/nowhere",
    ),
    Mistake(
        "mountpoint not a directory",
        lambda s: mount(s, a_file(s)),
        2,
        "'{mnt}/file' is not a directory",
        "choose another mountpoint",
    ),
    Mistake(
        "mountpoint not empty",
        lambda s: mount(s, a_full_directory(s)),
        2,
        "mountpoint '{mnt}/full' is not empty",
        "mount on an empty directory: a mount would hide what is in this one",
    ),
    Mistake(
        "already mounted by us",
        lambda s: mount(s, s.up),
        6,
        "{mnt}/up is the mountpoint of 'up'",
        "Choose another directory, or remove it first: s3mgr unmount up",
    ),
    Mistake(
        "already mounted by somebody else",
        lambda s: mount(s, a_foreign_mount(s)),
        6,
        "something else is mounted on '{mnt}/foreign': none (tmpfs)",
        "unmount it first (umount {mnt}/foreign) or choose another mountpoint",
    ),
    Mistake(
        "inside another of our mounts",
        lambda s: mount(s, s.up / "sub"),
        2,
        "{mnt}/up/sub is inside {mnt}/up, where 'up' is mounted",
        "Mounts cannot be nested; choose a directory beside it.",
    ),
    Mistake(
        "bucket missing",
        lambda s: ("mount", "no-such-bucket", s.directory(), "--name", "x"),
        4,
        "bucket 'no-such-bucket' not found at {url}",
        "check the bucket's name and the endpoint, or create the bucket",
    ),
    Mistake(
        "impossible bucket",
        lambda s: ("mount", "No_Bucket!", s.directory(), "--name", "x"),
        2,
        "'No_Bucket!' cannot be the name of a bucket",
        "Bucket names have 3 to 63 lower-case letters, digits, '-' and '.', and start and end with a letter or digit.",
    ),
    Mistake(
        "skewed clock",
        lambda s: mount(s, None, "--endpoint", s.server(slow_clock())),
        5,
        "this machine's clock is 20 min behind http://127.0.0.1:",
        "set the clock, and keep it right with NTP",
    ),
    Mistake(
        "endpoint refused",
        lambda s: mount(s, None, "--endpoint", closed_port(s)),
        1,
        "refuses connections",
        "check that the S3 server runs there, and the port",
    ),
    Mistake(
        "endpoint unknown",
        lambda s: mount(s, None, "--endpoint", "http://no-such-host.invalid"),
        1,
        "the host name of http://no-such-host.invalid cannot be resolved",
        "check the endpoint's name and this machine's DNS",
    ),
    Mistake(
        "endpoint no URL",
        lambda s: mount(s, None, "--endpoint", "ftp://somewhere"),
        2,
        "the endpoint is no http or https URL",
        "Endpoints look like https://s3.example.org:9000, or aws.",
    ),
    Mistake(
        "endpoint not S3",
        lambda s: mount(
            s,
            None,
            "--endpoint",
            s.server(Answer(body=b"<html></html>", headers={"Content-Type": "text/html"})),
        ),
        2,
        "does not speak S3: it answered 200 with text/html",
        "check host and port of the endpoint; a console or web page has often another port",
    ),
    Mistake(
        "TLS: certificate not trusted",
        lambda s: mount(s, None, "--endpoint", untrusted_server(s)),
        1,
        "is not trusted: self-signed certificate",
        "add the authority to the system's certificates, or name its file in the daemon's AWS_CA_BUNDLE",
    ),
    Mistake(
        "TLS: the server has none",
        lambda s: mount(s, None, "--endpoint", s.endpoint.url.replace("http", "https")),
        1,
        "TLS failed: ",
        "{any}",
    ),
    Mistake(
        "wrong region",
        lambda s: mount(
            s,
            None,
            "--endpoint",
            s.server(
                error(
                    "400 Bad Request", "AuthorizationHeaderMalformed", "wrong", Region="eu-west-1"
                )
            ),
        ),
        2,
        "bucket '{other}' is not in region 'us-east-1' but in 'eu-west-1'",
        "mount it with --region eu-west-1",
    ),
    Mistake(
        "unknown option",
        lambda s: mount(s, None, "-o", "metadata_tll_s=3"),
        2,
        "unknown option 'metadata_tll_s'",
        "did you mean 'metadata_ttl_s'? the options are described by: s3mgr mount --help-options",
    ),
    Mistake(
        "option out of range",
        lambda s: mount(s, None, "-o", "concurrency=0"),
        2,
        "option 'concurrency' must be between 1 and 256, not 0",
        "the options are described by: s3mgr mount --help-options",
    ),
    Mistake(
        "option of another type",
        lambda s: mount(s, None, "-o", "read_only=perhaps"),
        2,
        "option 'read_only' must be true or false, not 'perhaps'",
        "the options are described by: s3mgr mount --help-options",
    ),
    Mistake(
        "write_mode=later",
        lambda s: mount(s, None, "-o", "write_mode=later"),
        2,
        "option 'write_mode' must be close or writeback, not 'later'",
        "the options are described by: s3mgr mount --help-options",
    ),
    Mistake(
        "name taken",
        lambda s: ("mount", s.other, s.directory(), "--name", "up"),
        6,
        "'up' is mounted with another bucket",
        "Unmount it first (s3mgr unmount up), or choose another name with --name.",
    ),
    Mistake(
        "impossible name",
        lambda s: ("mount", s.other, s.directory(), "--name", "Two Words"),
        2,
        "'Two Words' cannot be the name of a mount",
        "A name has up to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit.",
    ),
    Mistake(
        "half of the keys",
        lambda s: mount(s, None, "--access-key", "K"),
        2,
        "the secret of --access-key is missing",
        "give --secret-key-file FILE (- reads standard input), or put both halves into AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.title for m in MISTAKES])
def test_one_line_says_what_is_wrong_and_one_what_to_do(scene: Scene, mistake: Mistake) -> None:
    arguments = mistake.arguments(scene)
    done = scene.daemon.run(*map(str, arguments), endpoint=scene.endpoint, check=False)
    facts = {
        "mnt": str(scene.daemon.base / "mnt"),
        "url": scene.endpoint.url,
        "other": scene.other,
        "any": "",
    }
    assert done.stdout == ""
    said, hint = done.stderr.splitlines()
    assert said.startswith("s3mgr: cannot mount '")
    assert mistake.said.format(**facts) in said
    assert hint.startswith("hint: ")
    if mistake.hint != "{any}":
        assert hint == "hint: " + mistake.hint.format(**facts)
    assert done.returncode == mistake.code


@pytest.mark.parametrize(
    ("access_key", "secret_key", "said", "hint"),
    [
        (
            "nobody-has-this",
            "{secret}",
            "{url} does not know the access key",
            "check the access key, and that it belongs to this endpoint",
        ),
        (
            "{access}",
            "not-the-secret",
            "the secret key is wrong: {url} computed another signature",
            "check the secret key; it must be the one that belongs to the access key",
        ),
    ],
    ids=["wrong key", "wrong secret"],
)
def test_keys_that_a_server_rejects(
    daemon: Daemon, radosgw: Endpoint, access_key: str, secret_key: str, said: str, hint: str
) -> None:
    """A server that verifies signatures says which of the two is wrong."""
    facts = {"access": radosgw.access_key, "secret": radosgw.secret_key, "url": radosgw.url}
    keys = {
        "AWS_ACCESS_KEY_ID": access_key.format(**facts),
        "AWS_SECRET_ACCESS_KEY": secret_key.format(**facts),
    }
    directory = daemon.mountpoint("m")
    directory.mkdir()
    done = daemon.run(
        *("mount", "bucket", str(directory), "--endpoint", radosgw.url), environ=keys, check=False
    )
    assert done.stderr.splitlines() == [
        f"s3mgr: cannot mount 'bucket': {said.format(**facts)}",
        f"hint: {hint}",
    ]
    assert done.returncode == 5
    assert daemon.api.list_mounts().items == []


def test_no_keys_anywhere(lab: Lab, ministack: Endpoint) -> None:
    """What the daemon looked through is told, since that is what one must mend."""
    daemon = lab.daemon(start=False)
    daemon.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    daemon.start()
    directory = daemon.mountpoint("m")
    directory.mkdir()
    done = daemon.run(
        *("mount", "bucket", str(directory), "--endpoint", ministack.url), check=False
    )
    said, hint = done.stderr.splitlines()
    assert said == "s3mgr: cannot mount 'bucket': no credentials were given and the daemon has none"
    assert "AWS_ACCESS_KEY_ID in the daemon's environment" in hint
    assert f"{daemon.base}/home/.aws/credentials" in hint
    assert "--anonymous" in hint
    assert done.returncode == 5


def test_the_daemon_is_not_running(lab: Lab) -> None:
    """A socket that never was, and one that a daemon left."""
    daemon = lab.daemon(start=False)
    for left_behind in (False, True):
        if left_behind:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(daemon.socket))
        done = daemon.run("mount", "bucket", "/mnt", check=False)
        said, hint = done.stderr.splitlines()
        assert said.startswith("s3mgr: cannot mount 'bucket': the daemon is not running: ")
        assert str(daemon.socket) in said
        assert (
            hint == f"hint: start it with --socket {daemon.socket}, or correct --host / S3MGR_HOST"
        )
        assert done.returncode == 3


def as_nobody(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``s3mgr`` without any right but to find the program, which may lie where only root gets to."""
    return subprocess.run(
        [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
            str(SCRIPTS / "s3mgr"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd="/",
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "S3MGR_HOST": f"unix://{daemon.socket}",
        },
        check=False,
    )


def test_no_permission_on_the_socket(daemon: Daemon) -> None:
    daemon.socket.chmod(0o600)
    done = as_nobody(daemon, "ls")
    assert done.stderr.splitlines() == [
        f"s3mgr: cannot list the mounts: no permission on the socket {daemon.socket}",
        "hint: use sudo, or join its group and log in again: sudo usermod -aG s3mgr $USER",
    ]
    assert done.returncode == 5


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (("unmount", "up"), "cannot unmount 'up'"),
        (("flush", "up"), "cannot flush 'up'"),
        (("restart", "up"), "cannot restart 'up'"),
        (("invalidate", "up"), "cannot invalidate 'up'"),
        (("cache", "up"), "cannot show the cache of 'up'"),
        (("logs", "up"), "cannot show the log of 'up'"),
        (("mount", "bucket", "/mnt", "--name", "up"), "cannot mount 'up'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_somebody_elses_mount(scene: Scene, arguments: tuple[str, ...], label: str) -> None:
    """Everybody may see it, without secrets; its owner and administrators may do more."""
    listed = as_nobody(scene.daemon, "ls", "--format", "{name}")
    assert listed.stdout == "up\n"
    done = as_nobody(scene.daemon, *arguments)
    assert done.stderr.splitlines() == [
        f"s3mgr: {label}: 'up' belongs to another user",
        "hint: Use sudo, or have root add you to the administrators' group: usermod -aG s3mgr $USER (log in again).",
    ]
    assert done.returncode == 5


@pytest.mark.parametrize(
    "command", ["unmount", "show", "flush", "restart", "invalidate", "cache", "logs"]
)
def test_a_mount_that_does_not_exist(scene: Scene, command: str) -> None:
    done = scene.daemon.run(command, "nothing", check=False)
    said, hint = done.stderr.splitlines()
    assert said.endswith("there is no mount 'nothing'")
    assert hint == "hint: see what there is: s3mgr ls"
    assert done.returncode == 4
