"""The plugin that makes a skipped test fail, seen in a pytest of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parents[3]

# What is skipped, by the way to do it: the module and the reason that must be shown.
SKIPPING: Final = {
    "mark": ("@pytest.mark.skip(reason='not today')\ndef test_it(): pass\n", "not today"),
    "condition": (
        "@pytest.mark.skipif(True, reason='not here')\ndef test_it(): pass\n",
        "not here",
    ),
    "call": ("def test_it(): pytest.skip('not now')\n", "not now"),
    "fixture": (
        "@pytest.fixture\ndef thing(): pytest.skip('no thing')\ndef test_it(thing): pass\n",
        "no thing",
    ),
    "missing_module": (
        "pytest.importorskip('no_such_module_at_all')\ndef test_it(): pass\n",
        "no_such_module_at_all",
    ),
}
NOT_SKIPPING: Final = (
    "def test_good(): pass\n@pytest.mark.xfail(strict=True)\ndef test_expected(): assert False\n"
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run over a module of each kind: starting pytest is what takes the time."""
    directory = tmp_path_factory.mktemp("no-skips")
    modules = {name: code for name, (code, _) in SKIPPING.items()} | {"fine": NOT_SKIPPING}
    for name, code in modules.items():
        (directory / f"test_{name}.py").write_text(f"import pytest\n{code}")
    alone = ["-c", "/dev/null", "--rootdir", str(directory), "-p", "no:cacheprovider"]
    options = ["-p", "tests.plugins.no_skips", "-ra", "--continue-on-collection-errors"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *alone, *options, str(directory)],
        check=False,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", SKIPPING)
def test_a_skip_fails_and_says_what_was_skipped(
    outcome: subprocess.CompletedProcess[str], kind: str
) -> None:
    """Whatever the way to skip, the summary has the test as failed, with the reason."""
    summary = outcome.stdout.partition("short test summary info")[2].splitlines()
    assert outcome.returncode != 0
    (line,) = [line for line in summary if f"test_{kind}.py" in line]
    assert line.startswith(("FAILED", "ERROR"))
    told = [x for x in outcome.stdout.splitlines() if "no skip" in x and f"test_{kind}.py" in x]
    assert told  # twice where the summary is not cut to the width of a terminal
    assert all(SKIPPING[kind][1] in line for line in told)


def test_what_passes_and_what_is_expected_to_fail_stays_so(
    outcome: subprocess.CompletedProcess[str],
) -> None:
    """An expected failure is reported as skipped inside pytest, but it did run."""
    assert "1 passed" in outcome.stdout
    assert "1 xfailed" in outcome.stdout
    assert " skipped" not in outcome.stdout.splitlines()[-1]
