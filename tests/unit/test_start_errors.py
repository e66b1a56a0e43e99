"""A daemon that cannot start says why in one line and what to do in another, and never shows a trace."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from s3mgr import __version__


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "s3mgrd", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ},
    )


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    return [
        "--state-dir",
        f"{tmp_path}/state",
        "--cache-dir",
        f"{tmp_path}/cache",
        "--socket",
        f"{tmp_path}/s.sock",
    ]


def lines_of(result: "subprocess.CompletedProcess[str]") -> list[str]:
    errors = result.stderr.splitlines()
    assert "Traceback" not in result.stderr, result.stderr
    assert errors[0].startswith("s3mgrd: ")
    assert errors[1].startswith("hint: ")
    assert len(errors) == 2
    return errors


def test_version_and_help() -> None:
    assert run("--version").stdout == f"s3mgrd {__version__}\n"
    assert "--cleanup" in run("--help").stdout


def test_a_wrong_flag_and_a_wrong_key_exit_with_2(tmp_path: Path) -> None:
    result = run("--bogus")
    assert result.returncode == 2
    assert "--bogus" in lines_of(result)[0]
    (tmp_path / "c.toml").write_text("drain_timeout = 5")
    result = run("--config", str(tmp_path / "c.toml"))
    assert result.returncode == 2
    first, hint = lines_of(result)
    assert "'drain_timeout'" in first
    assert "'drain_timeout_s'" in hint


def test_a_damaged_state_is_refused(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.db").write_bytes(b"")
    result = run(*flags)
    assert result.returncode == 1
    first, hint = lines_of(result)
    assert "truncated" in first
    assert "restore" in hint
    assert (tmp_path / "state" / "state.db").read_bytes() == b""


def test_a_foreign_state_is_refused(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    db = sqlite3.connect(tmp_path / "state" / "state.db")
    db.execute("create table x (y)")
    db.close()
    result = run(*flags)
    assert result.returncode == 1
    assert "another program" in lines_of(result)[0]


def test_a_state_directory_that_cannot_be_made_is_named(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    result = run(*flags)
    assert result.returncode == 1
    assert str(tmp_path / "state") in result.stderr
    assert "Traceback" not in result.stderr


def test_cleanup_with_nothing_to_clean_is_a_success(flags: list[str]) -> None:
    result = run(*flags, "--cleanup")
    assert (result.returncode, result.stderr) == (0, "")


def test_cleanup_needs_no_valid_configuration(tmp_path: Path) -> None:
    """It is wanted above all where the daemon cannot start. Where keepers are is not known then."""
    (tmp_path / "c.toml").write_text("nonsense")
    result = run("--config", str(tmp_path / "c.toml"), "--cleanup")
    assert result.returncode == 0
    assert "is not valid TOML" in result.stderr
    assert "keepers" in result.stderr
