"""The plugin that makes a skipped test fail; each case runs a pytest of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parents[3]

CASES: Final = {
    "a mark": (
        "@pytest.mark.skip(reason='not today')\ndef test_it(): pass\n",
        "not today",
    ),
    "a condition": (
        "@pytest.mark.skipif(True, reason='not here')\ndef test_it(): pass\n",
        "not here",
    ),
    "a call": ("def test_it(): pytest.skip('not now')\n", "not now"),
    "a fixture": (
        "@pytest.fixture\ndef thing(): pytest.skip('no thing')\ndef test_it(thing): pass\n",
        "no thing",
    ),
    "a missing module": (
        "pytest.importorskip('no_such_module_at_all')\ndef test_it(): pass\n",
        "no_such_module_at_all",
    ),
}


def _pytest(tmp_path: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_case.py").write_text(f"import pytest\n{code}")
    arguments = ["-p", "tests.plugins.no_skips", "-p", "no:cacheprovider", "-ra", *options]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            "/dev/null",
            "--rootdir",
            tmp_path,
            *arguments,
            tmp_path,
        ],
        check=False,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("code", "reason"), CASES.values(), ids=CASES.keys())
def test_a_skip_fails_and_says_what_was_skipped(tmp_path: Path, code: str, reason: str) -> None:
    """Whatever the way to skip, the run fails and its output has the reason."""
    done = _pytest(tmp_path, code)
    assert done.returncode != 0, done.stdout
    assert "no skip is allowed here" in done.stdout
    assert reason in done.stdout


def test_what_passes_and_what_is_expected_to_fail_stays_so(tmp_path: Path) -> None:
    """An expected failure is reported as skipped inside pytest, but it did run."""
    code = (
        "def test_good(): pass\n"
        "@pytest.mark.xfail(strict=True)\ndef test_expected(): assert False\n"
    )
    done = _pytest(tmp_path, code)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 xfailed" in done.stdout
