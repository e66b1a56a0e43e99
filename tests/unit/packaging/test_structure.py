"""The shape of the source: modules that can be read in one go."""

from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[3]
MAX_LINES: Final = 600
REASON: Final = "# over 600 lines because "


def _modules() -> list[Path]:
    places = ("client", "daemon", "tests", "packaging")
    return sorted(path for place in places for path in (CHECKOUT / place).rglob("*.py"))


def test_a_module_of_over_600_lines_says_why_at_its_top() -> None:
    """Past that size a module is split, or its first line is the reason why not."""
    modules = _modules()
    assert modules
    too_long = [
        str(path.relative_to(CHECKOUT))
        for path in modules
        if len(lines := path.read_text().splitlines()) > MAX_LINES
        and not lines[0].startswith(REASON)
    ]
    assert too_long == []


def test_no_module_is_a_drawer_for_everything() -> None:
    """A name that says nothing collects what belongs elsewhere."""
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [str(path) for path in _modules() if path.name in drawers] == []
