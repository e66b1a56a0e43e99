"""Every failure: its line, its hint, its exit code; and what must never be seen."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from s3mgr.cli.exits import _HINTS, _PROBLEMS, ExitCode, clause, combined, exit_code
from s3mgr.errors import ClientError, ProblemError
from s3mgr.schema import FieldError, ProblemType

from .conftest import Run
from .fake_daemon import Answer, FakeDaemon, make_mount, make_operation, make_problem

Spawn = Callable[..., subprocess.Popen[str]]


def test_each_problem_has_an_exit_code() -> None:
    """A problem that the daemon learns must be given its code here."""
    assert set(_PROBLEMS) == {slug.value for slug in ProblemType}
    assert set(_HINTS) <= set(_PROBLEMS)


def test_each_error_has_an_exit_code() -> None:
    """Only errors that the table names deliberately may end with 1."""
    plain = {
        class_.__name__
        for class_ in ClientError.__subclasses__()
        if class_ is not ProblemError and exit_code(class_("x")) is ExitCode.FAILURE
    }
    assert plain == {"BadAnswer"}


@pytest.mark.parametrize(
    ("slug", "status", "code"),
    [
        ("invalid-request", 400, 2),
        ("invalid-spec", 422, 2),
        ("not-found", 404, 4),
        ("method-not-allowed", 405, 1),
        ("name-conflict", 409, 6),
        ("mountpoint-busy", 409, 6),
        ("mountpoint-invalid", 422, 2),
        ("spec-conflict", 409, 6),
        ("not-mounted", 409, 6),
        ("conflict", 409, 6),
        ("precondition-failed", 412, 6),
        ("dirty-data", 409, 8),
        ("not-permitted", 403, 5),
        ("unauthenticated", 401, 5),
        ("bucket-unreachable", 502, 1),
        ("bucket-not-found", 404, 4),
        ("credentials-rejected", 502, 5),
        ("body-too-large", 413, 2),
        ("request-timeout", 408, 7),
        ("unsupported", 501, 1),
        ("draining", 503, 3),
        ("not-ready", 503, 3),
        ("mount-failed", 502, 1),
        ("internal", 500, 1),
        ("from-the-future", 418, 1),
    ],
)
def test_the_exit_code_of_each_problem(
    daemon: FakeDaemon, run: Run, slug: str, status: int, code: int
) -> None:
    daemon.refuse("PUT", "/v1/mounts/x", make_problem(slug, status, "It is so.", hint="Do that."))
    result = run("mount", "bucket", "mnt", "--name", "x")
    assert result.code == code
    assert result.out == ""
    assert result.err == "s3mgr: cannot mount 'x': it is so\nhint: Do that.\n"


MISTAKES = [
    ("mountpoint missing", "mountpoint-invalid", "/m does not exist.", "Create it: mkdir -p /m"),
    ("mountpoint no directory", "mountpoint-invalid", "/m is not a directory.", ""),
    ("mountpoint not empty", "mountpoint-invalid", "/m is not empty.", "Choose another."),
    ("mountpoint inside ours", "mountpoint-invalid", "/m is inside the mount 'a'.", ""),
    ("already mounted", "mountpoint-busy", "Something is mounted on /m already.", ""),
    ("bucket missing", "bucket-not-found", "Bucket 'b' not found.", ""),
    ("wrong key", "credentials-rejected", "S3 does not know the access key.", ""),
    ("skewed clock", "credentials-rejected", "The clock is 20 min off.", "Set it."),
    ("endpoint refused", "bucket-unreachable", "http://x refused the connection.", ""),
    ("wrong region", "invalid-spec", "The bucket is in eu-west-1.", "Use --region eu-west-1."),
    ("name taken", "name-conflict", "The name 'x' is taken.", ""),
]


@pytest.mark.parametrize(
    ("slug", "detail", "hint"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES]
)
def test_a_users_mistake_gets_one_line_and_one_hint(
    daemon: FakeDaemon, run: Run, slug: str, detail: str, hint: str
) -> None:
    daemon.refuse("PUT", "/v1/mounts/x", make_problem(slug, 422, detail, hint=hint))
    result = run("mount", "b", "mnt", "--name", "x")
    said, advised = result.err.splitlines()
    assert said == f"s3mgr: cannot mount 'x': {clause(detail)}"
    assert advised == f"hint: {hint or _HINTS[slug]}"


def test_wrong_fields_are_named(daemon: FakeDaemon, run: Run) -> None:
    errors = [FieldError(pointer="/spec/options/uid", detail="Expected `int`")]
    problem = make_problem("invalid-spec", 422, "The request is wrong.", errors=errors)
    daemon.refuse("PUT", "/v1/mounts/x", problem)
    result = run("mount", "b", "mnt", "--name", "x")
    assert "cannot mount 'x': the request is wrong; uid: Expected `int`\n" in result.err


def test_what_the_daemon_says_cannot_drive_the_terminal(daemon: FakeDaemon, run: Run) -> None:
    problem = make_problem("internal", 500, "Broken \x1b]0;title\x07 and\nmore.")
    daemon.refuse("GET", "/v1/mounts", problem)
    result = run("ls")
    assert "\x1b" not in result.err
    assert "broken \\x1b]0;title\\x07 and more\n" in result.err


class TestNoDaemon:
    def test_no_socket(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "none.sock"
        result = run("ls", "--host", f"unix://{path}")
        assert result.code == 3
        assert result.err == (
            f"s3mgr: cannot list the mounts: the daemon is not running: there is no socket {path}\n"
            f"hint: start it with --socket {path}, or correct --host / S3MGR_HOST\n"
        )

    def test_a_socket_that_nobody_serves(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "dead.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        result = run("ls", "--host", f"unix:{path}")
        assert result.code == 3
        assert f"the daemon is not running: nobody listens on the socket {path}\n" in result.err

    @pytest.mark.parametrize(
        ("uid", "hint"),
        [
            (0, "start it: systemctl start s3mgr"),
            (1000, "start it: sudo systemctl start s3mgr, or run your own: s3mgrd"),
        ],
    )
    def test_the_systems_daemon(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, hint: str
    ) -> None:
        system = str(tmp_path / "system.sock")
        monkeypatch.setattr("s3mgr.transport.SYSTEM_SOCKET", system)
        monkeypatch.setattr("os.geteuid", lambda: uid)
        result = run("ls")
        assert result.code == 3
        assert f"there is no socket {system}\nhint: {hint}\n" in result.err

    def test_a_users_own_daemon_that_died(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        (tmp_path / "s3mgr").mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "s3mgr/s3mgr.sock"))
        result = run("ls")
        assert result.code == 3
        assert result.err.endswith("hint: start it: s3mgrd\n")

    def test_no_permission(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_args: object) -> None:
            raise PermissionError(13, "Permission denied")

        # Root, who may run these tests, is refused nothing.
        monkeypatch.setattr("s3mgr.transport._connect_unix", refuse)
        result = run("ls")
        assert result.code == 5
        assert result.err == (
            f"s3mgr: cannot list the mounts: no permission on the socket {daemon.path}\n"
            "hint: use sudo, or join its group and log in again: sudo usermod -aG s3mgr $USER\n"
        )

    @pytest.mark.parametrize(
        ("host", "text"),
        [
            ("https://far.example", "only unix sockets are supported"),
            ("tcp://127.0.0.1:1", "only unix sockets are supported"),
            ("unix://relative", "the path of the socket must be absolute"),
            ("unix:", "the path of the socket must be absolute"),
        ],
    )
    def test_an_address_that_cannot_be(self, run: Run, host: str, text: str) -> None:
        result = run("--host", host, "ls")
        assert (result.code, text in result.err) == (2, True)

    def test_the_address_is_taken_before_and_after_the_command(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("S3MGR_HOST", "unix:///nowhere")
        assert run("ls").code == 3
        assert run("--host", daemon.host, "ls").code == 0
        assert run("ls", "--host", daemon.host).code == 0


class TestStrangers:
    """Somebody else answers on the socket."""

    @pytest.mark.parametrize(
        ("status", "body", "text"),
        [
            (200, b"hello", "cannot understand the daemon's answer"),
            (200, b'{"items": 3, "cursor": 1}', "cannot understand the daemon's answer"),
            (200, b'{"items": []}', "cannot understand the daemon's answer"),
            (200, b"\xff\xfe", "cannot understand the daemon's answer"),
            (502, b"<html>Bad gateway</html>", "the daemon answered 502 without saying why"),
            (301, b"", "the daemon answered 301 without saying why"),
        ],
    )
    def test_answers_of_another_shape(
        self, daemon: FakeDaemon, run: Run, status: int, body: bytes, text: str
    ) -> None:
        daemon.answer("GET", "/v1/mounts", Answer(status, body))
        result = run("ls")
        assert (result.code, text in result.err) == (1, True)

    def test_an_accepted_request_without_an_operation(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.answer("PUT", "/v1/mounts/b", Answer(202, make_operation("running")))
        result = run("mount", "b", "m")
        assert (result.code, "did not say under which operation" in result.err) == (1, True)


class TestTalk:
    def test_colour_is_a_choice(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        daemon.add(make_mount())
        assert "\x1b" not in run("show", "logs").out
        assert "\x1b[32mmounted" in run("--color", "always", "show", "logs").out
        assert "\x1b" in run("show", "nope", "--color", "always").err
        monkeypatch.setattr("s3mgr.cli.output.is_terminal", lambda _stream: True)
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in run("show", "logs").out
        assert "\x1b" in run("show", "logs", "--color", "always").out

    def test_verbose_names_requests_but_no_secret(self, daemon: FakeDaemon, run: Run) -> None:
        result = run("mount", "b", "m", "-v", "--access-key", "AKIAKEY", "--secret-key", "s3cr3t")
        assert result.code == 0
        assert "s3mgr: PUT /v1/mounts/b?wait_s=30.0 201 " in result.err
        assert " request-1\n" in result.err
        assert "s3cr3t" not in result.err + result.out

    def test_debug_shows_the_trace_and_no_secret(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.refuse("PUT", "/v1/mounts/b", make_problem("internal", 500, "It broke."))
        keys = ("--access-key", "AKIAKEY", "--secret-key", "s3cr3t")
        result = run("--debug", "mount", "b", "m", *keys)
        assert "Traceback (most recent call last):" in result.err
        assert "ProblemError" in result.err
        assert "s3cr3t" not in result.err
        assert "Traceback" not in run("mount", "b", "m", *keys).err

    @pytest.mark.parametrize(
        ("args", "text"),
        [
            (("lss",), "there is no command 'lss'; did you mean 'ls'?"),
            (("xyzzy",), "there is no command 'xyzzy'\nhint: see s3mgr --help"),
            (("show",), "missing argument 'NAME|DIR'\nhint: see s3mgr show --help"),
            (("ls", "--json", "--format", "csv"), "--json and --format exclude each other"),
            (("cache", "x", "--limit", "-1"), "invalid value for '--limit'"),
            ((), "Usage: s3mgr"),
        ],
    )
    def test_usage_errors(self, run: Run, args: tuple[str, ...], text: str) -> None:
        result = run(*args)
        assert (result.code, result.out) == (2, "")
        assert text in result.err


@pytest.mark.parametrize(
    ("codes", "total", "code"),
    [
        ([], 0, 0),
        ([0, 0], 2, 0),
        ([4, 4], 2, 4),
        ([4, 5], 2, 8),
        ([0, 4], 2, 8),
        ([6], 1, 6),
    ],
)
def test_several_mounts_one_code(codes: list[int], total: int, code: int) -> None:
    assert combined([ExitCode(c) for c in codes], total=total) == code


class TestProcess:
    """What only a process of its own shows."""

    def test_ctrl_c_detaches_and_says_how_to_go_on(self, daemon: FakeDaemon, spawn: Spawn) -> None:
        daemon.add(make_mount())
        headers = {"Location": "/v1/operations/op-1"}
        daemon.answer("DELETE", "/v1/mounts/logs", Answer(202, make_operation("running"), headers))
        daemon.operations = [make_operation("running")]
        process = spawn("unmount", "logs")
        daemon.wait_for("GET", "/v1/operations/op-1")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert err == (
            "s3mgr: draining 'logs': no longer waiting; the daemon carries on\n"
            "hint: follow it: s3mgr show logs\n"
        )

    def test_ctrl_c_elsewhere_just_ends(self, daemon: FakeDaemon, spawn: Spawn) -> None:
        daemon.add(make_mount())
        process = spawn("logs", "logs", "-f")
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, "")

    def test_a_reader_that_leaves_is_no_error(self, daemon: FakeDaemon, spawn: Spawn) -> None:
        daemon.add(*(make_mount(f"m{n}", message="x" * 1000) for n in range(200)))
        read, write = os.pipe()
        os.close(read)
        process = spawn("ls", stdout=write)
        os.close(write)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (141, "")

    def test_a_full_disk_behind_stdout_is_an_error(self, daemon: FakeDaemon, spawn: Spawn) -> None:
        with open("/dev/full", "w") as full:
            process = spawn("ls", stdout=full)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert err == "s3mgr: cannot write to standard output: No space left on device\n"

    def test_a_closed_stdout_is_an_error_only_for_data(
        self, daemon: FakeDaemon, spawn: Spawn
    ) -> None:
        def close_stdout() -> None:
            os.close(1)

        process = spawn("ls", stdout=None, preexec_fn=close_stdout)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert err == "s3mgr: cannot write to standard output: Bad file descriptor\n"
        process = spawn("mount", "b", "m", "-q", stdout=None, preexec_fn=close_stdout)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")

    def test_a_terminal_that_lacks_a_character_is_no_error(
        self, daemon: FakeDaemon, spawn: Spawn
    ) -> None:
        daemon.add(make_mount(mountpoint="/mnt/日"))
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        process = spawn("ls", "--format", "{mountpoint}", env=environment)
        out, _ = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, "/mnt/\\u65e5\n")

    def test_a_working_directory_that_is_gone_is_told(
        self, daemon: FakeDaemon, spawn: Spawn, tmp_path: Path
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        process = spawn("mount", "b", "m", cwd=gone, preexec_fn=gone.rmdir)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 2
        assert "the working directory no longer exists\nhint: give an absolute path\n" in err

    @pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
    def test_discard_asks_on_a_terminal(
        self, daemon: FakeDaemon, spawn: Spawn, answer: str, *, gone: bool
    ) -> None:
        daemon.add(make_mount(dirty_bytes=2048, dirty_files=1))
        ours, theirs = os.openpty()
        try:
            process = spawn("unmount", "logs", "--discard", stdin=theirs, stderr=theirs)
            os.close(theirs)
            os.write(ours, answer.encode())
            process.wait(timeout=20)
            said = os.read(ours, 65536).decode()
        finally:
            os.close(ours)
        assert "'logs': S3 does not have 2.0 KiB in 1 file yet" in said
        assert process.returncode == (0 if gone else 130)
        assert bool(daemon.mounts) is not gone
