"""A command line must start at once: CPU time, and what is imported."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import s3mgr

from .conftest import PROGRAM
from .fake_daemon import FakeDaemon

# The promise for `s3mgr version`. CPU time of the process, so that a busy machine does not matter much; the least of several
# runs, since caches and clock frequencies only ever make it slower.
VERSION_CPU_S = 0.150
RUNS = 5

# What no command needs before it talks to the daemon.
HEAVY = ("msgspec", "http.client", "dotenv", "ssl", "asyncio", "email", "trio", "s3mgr.schema")


def cpu_seconds(*args: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*PROGRAM, *args], check=True, stdout=subprocess.DEVNULL, timeout=20)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_starts_within_its_budget() -> None:
    assert min(cpu_seconds("version") for _ in range(RUNS)) < VERSION_CPU_S


def modules_after(*args: str) -> set[str]:
    code = (
        "import sys\nfrom s3mgr.cli import main\nmain(sys.argv[1:])\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=20, check=True
    )
    return set(done.stderr.split())


def test_version_and_help_import_nothing_heavy() -> None:
    for args in (("version",), ("--help",), ("mount", "--help")):
        assert modules_after(*args).isdisjoint(HEAVY), args


def test_a_command_imports_no_other_command(daemon: FakeDaemon) -> None:
    loaded = {name for name in modules_after("ls") if name.startswith("s3mgr.cli.commands.")}
    assert loaded == {"s3mgr.cli.commands.ls"}
    assert "dotenv" not in modules_after("ls")


def test_the_client_never_imports_the_daemon() -> None:
    for file in Path(os.path.dirname(s3mgr.__file__)).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not [name for name in names if name.split(".")[0] == "s3mgrd"], file
