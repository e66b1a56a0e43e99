"""One daemon per state directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3mgrd.errors import Conflict, Denied, Unavailable
from s3mgrd.state.lock import holder, instance_lock, prepare_directory

HOLD = """
import sys
from s3mgrd.state.lock import instance_lock
with instance_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(state_dir: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_daemon_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with start_holder(tmp_path) as process:
        try:
            assert holder(str(tmp_path)) == process.pid
            with (
                pytest.raises(Conflict, match=f"process {process.pid}"),
                instance_lock(str(tmp_path)),
            ):
                pass
        finally:
            process.kill()
    assert holder(str(tmp_path)) is None
    with instance_lock(str(tmp_path)):
        pass  # gone with its holder, however that ended


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert holder(str(tmp_path)) is None
    assert os.listdir(tmp_path) == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Workers outlive their supervisor, and must not keep the next one out."""
    read, write = os.pipe()
    with instance_lock(str(tmp_path)):
        child = subprocess.Popen(
            ["sh", "-c", "read line"], stdin=read, close_fds=False
        )  # inherits what is inheritable
    try:
        with instance_lock(str(tmp_path)):
            pass
    finally:
        os.close(read)
        os.close(write)
        child.wait(10)


def test_directories_are_made_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    prepare_directory(str(path), what="state_dir")
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    prepare_directory(str(path), what="state_dir")
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((Unavailable, Denied), match="state_dir"):
        prepare_directory(str(tmp_path / "file"), what="state_dir")
