"""The documents that people start from speak of what there is."""

import re
import subprocess
from pathlib import Path
from typing import Final, get_args

import pytest

from s3mgr.schema import MountState
from s3mgrd.config import Config
from s3mgrd.mounts.machine import Reason

CHECKOUT: Final = Path(__file__).parents[3]
README: Final = CHECKOUT / "README.md"
OPERATIONS: Final = CHECKOUT / "docs" / "operations.md"

TABLE_ROW: Final = re.compile(r"^\| (?P<states>`[^|]*) \| (?P<reasons>[^|]*) \|", re.MULTILINE)
LINK: Final = re.compile(r"\]\((?P<target>[^)#:]*)(?:#(?P<heading>[^)]*))?\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
DOCUMENTS: Final = [README, CHECKOUT / "CHANGELOG.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def _code(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def _state_table() -> list[tuple[set[str], set[str]]]:
    section = OPERATIONS.read_text().partition("## Every state")[2].partition("\n## ")[0]
    return [(_code(row["states"]), _code(row["reasons"])) for row in TABLE_ROW.finditer(section)]


def test_every_state_and_reason_is_explained_and_none_that_is_not() -> None:
    """Who looks a state up in the table finds it."""
    table = _state_table()
    assert set().union(*(states for states, _ in table)) == set(get_args(MountState))
    assert set().union(*(reasons for _, reasons in table)) == {reason.value for reason in Reason}


def _anchors(document: Path) -> set[str]:
    """Return the anchors that are written, and those that headings get: lower case, no punctuation, hyphens for blanks."""
    text = document.read_text()
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return set(re.findall(r'<a id="([^"]+)">', text)) | {slug.replace(" ", "-") for slug in slugs}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """A link to a document that was renamed, or to a heading that was reworded, is of no use."""
    lost = []
    for match in LINK.finditer(document.read_text()):
        target = document.parent / match["target"] if match["target"] else document
        if not target.exists() or (match["heading"] and match["heading"] not in _anchors(target)):
            lost.append(match[0])
    assert lost == []


def test_links_are_found() -> None:
    """The test above would be content with none."""
    for document in (README, OPERATIONS):
        assert any(match["target"] for match in LINK.finditer(document.read_text()))


@pytest.mark.parametrize("document", [README, OPERATIONS], ids=lambda path: path.name)
def test_programs_that_are_named_are_there_and_executable(document: Path) -> None:
    """Each ./packaging/… command can be run as written."""
    commands = set(re.findall(r"\./(packaging/[a-z-]+)", document.read_text()))
    assert commands
    assert [name for name in commands if not (CHECKOUT / name).stat().st_mode & 0o111] == []


def test_the_example_configuration_has_keys_that_exist() -> None:
    """A reader pastes it and the daemon must accept it."""
    (example,) = re.findall(r"```toml\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    keys = {line.partition("=")[0].strip() for line in example.splitlines() if "=" in line}
    assert keys
    assert keys <= set(Config.__struct_fields__)


def test_scripts_are_valid_for_the_plain_shell() -> None:
    """A bare Debian has dash for sh, and no bash to forgive."""
    scripts = [p for p in (CHECKOUT / "packaging").iterdir() if p.is_file()]
    shell = [p for p in scripts if p.suffix == ".sh" or p.read_bytes().startswith(b"#!/bin/sh\n")]
    assert {"setup", "demo", "test", "install", "steps.sh"} <= {p.name for p in shell}
    for script in shell:
        subprocess.run(["/bin/sh", "-n", script], check=True)
