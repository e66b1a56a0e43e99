"""Completion: shell code, names from the daemon, silence about trouble, and a budget."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from s3mgr.cli.completion import BUDGET_S, known_mounts

from .conftest import PROGRAM, Run
from .fake_daemon import Answer, FakeDaemon, Request, make_mount, make_problem


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_writes_code_for_the_shell(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"_S3MGR_COMPLETE={shell}_complete" in result.out
    assert "s3mgr" in result.out


def test_the_bash_code_is_valid(run: Run) -> None:
    subprocess.run(["bash", "-n"], input=run("completion", "bash").out, text=True, check=True)


def test_directories_are_the_shells_business(daemon: FakeDaemon) -> None:
    assert complete("s3mgr mount bucket /m", 3, kinds=True) == (["dir,/m"], "")
    assert complete("s3mgr mount --secret-key-file k", 3, kinds=True) == (["file,k"], "")


def complete(words: str, cword: int, *, kinds: bool = False) -> tuple[list[str], str]:
    """Ask as bash would."""
    environment = {
        **os.environ,
        "_S3MGR_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(cword),
    }
    code = "import sys; from s3mgr.cli import main; sys.argv[0] = 's3mgr'; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    lines = done.stdout.split()
    return lines if kinds else [line.partition(",")[2] for line in lines], done.stderr


def test_commands_and_options(daemon: FakeDaemon) -> None:
    assert complete("s3mgr un", 1) == (["unmount"], "")
    assert complete("s3mgr unmount --la", 2) == (["--lazy"], "")


def test_names_and_directories_of_mounts(daemon: FakeDaemon) -> None:
    daemon.add(make_mount("data"), make_mount("data-2"), make_mount("logs"))
    assert complete("s3mgr show d", 2) == (["data", "data-2"], "")
    assert complete("s3mgr unmount data d", 3) == (["data-2"], "")
    assert complete("s3mgr cache /mnt/l", 2) == (["/mnt/logs"], "")


def test_actions_then_mounts_then_files(daemon: FakeDaemon) -> None:
    """The action may be left out, so mounts are offered beside actions."""
    daemon.add(make_mount("wares"), make_mount("logs"))
    assert complete("s3mgr cache wa", 2) == (["warm", "wares"], "")
    assert complete("s3mgr cache warm l", 3) == (["logs"], "")
    assert complete("s3mgr cache warm logs fi", 4, kinds=True) == (["file,fi"], "")
    assert complete("s3mgr queue logs fi", 3, kinds=True) == (["file,fi"], "")


def test_the_address_on_the_command_line_is_used(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3MGR_HOST", "unix:///nowhere")
    daemon.add(make_mount("data"))
    assert complete(f"s3mgr --host {daemon.host} show d", 4) == (["data"], "")


def test_failure_is_silent(daemon: FakeDaemon, tmp_path: Path) -> None:
    assert known_mounts(f"unix://{tmp_path}/none") == []
    assert known_mounts("http://x") == []
    daemon.answer("GET", "/v1/mounts", Answer(200, b"nonsense"))
    assert complete("s3mgr show d", 2) == ([], "")
    daemon.refuse("GET", "/v1/mounts", make_problem("not-permitted", 403, "No."))
    assert complete("s3mgr show d", 2) == ([], "")


def test_a_daemon_that_dawdles_is_not_waited_for(daemon: FakeDaemon) -> None:
    release = threading.Event()

    def dawdle(_request: Request) -> Answer:
        release.wait(20)
        return Answer(500)

    daemon.script["GET", "/v1/mounts"] = dawdle
    begun = time.monotonic()
    try:
        assert known_mounts(daemon.host) == []
    finally:
        release.set()
    # Twice the budget: the machine may be busy, the answer would take twenty seconds.
    assert time.monotonic() - begun < 2 * BUDGET_S + 1


def test_the_program_is_the_one_that_the_code_calls() -> None:
    assert PROGRAM[0] == sys.executable
