"""The documents that are made from the program are up to date, and the reference is complete."""

import subprocess
import sys
from pathlib import Path

from s3mgr.cli import reference
from s3mgr.cli.app import COMMANDS
from s3mgr.cli.exits import ExitCode
from s3mgr.environment import VARIABLES

CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_documents_are_what_the_program_says() -> None:
    done = subprocess.run(
        [sys.executable, CHECKOUT / "packaging/docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_has_every_command_and_exit_code() -> None:
    program = reference()
    assert tuple(command.name for command in program.commands) == COMMANDS
    assert [code for code, _ in program.exit_codes] == [int(code) for code in ExitCode]
    for command in program.commands:
        assert command.summary.endswith("."), command.name
        assert command.description, command.name
        assert all(option.help for option in command.options), command.name


def test_the_usage_of_mount_has_what_people_look_for() -> None:
    mount = reference().commands[0]
    assert mount.usage == "s3mgr mount [OPTIONS] BUCKET[/PREFIX] DIR"
    declared = {word for option in mount.options for word in option.declaration.split()}
    assert declared >= {
        *("--name", "--endpoint", "--region", "--profile", "--anonymous", "--read-only", "--debug"),
        *("--access-key", "--secret-key", "--secret-key-file", "--session-token", "-o"),
        *("--persist", "--no-persist", "--wait", "--no-wait", "--timeout"),
    }


def test_each_variable_that_is_read_is_described() -> None:
    text = " ".join(f"{name} {meaning}" for name, meaning in reference().variables)
    for name in (*VARIABLES, "S3MGR_HOST", "NO_COLOR", "XDG_RUNTIME_DIR"):
        assert name in text, name
