"""The lock files satisfy pyproject.toml, are complete and hashed, and name no index and no place."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

CHECKOUT: Final = Path(__file__).parents[3]
LOCKS: Final = CHECKOUT / "packaging" / "requirements"
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())

PINNED: Final = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+))? \\$")
HASH: Final = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")

# Each lock: does it hold the project's own dependencies, and which groups?
CONTENTS: Final[dict[str, tuple[bool, tuple[str, ...]]]] = {
    "build": (False, ("build",)),
    "daemon": (True, ()),
    "demo": (True, ("demo",)),
    "test": (True, ("build", "test", "dev")),
}


def _locked(name: str) -> dict[NormalizedName, Version]:
    """Return what the lock *name* installs on this machine."""
    matches = (PINNED.match(line) for line in (LOCKS / f"{name}.lock").read_text().splitlines())
    return {
        canonicalize_name(match["name"]): Version(match["version"])
        for match in matches
        if match and (not match["marker"] or Marker(match["marker"]).evaluate())
    }


def _group(name: str) -> list[Requirement]:
    found = []
    for entry in PYPROJECT["dependency-groups"][name]:
        if isinstance(entry, str):
            found.append(Requirement(entry))
        else:
            found.extend(_group(entry["include-group"]))
    return found


def _wanted(name: str) -> list[Requirement]:
    with_project, groups = CONTENTS[name]
    wanted = [requirement for group in groups for requirement in _group(group)]
    if with_project:
        project = PYPROJECT["project"]
        listed = [*project["dependencies"], *project["optional-dependencies"]["daemon"]]
        wanted.extend(Requirement(text) for text in listed)
    return wanted


def test_every_lock_file_is_known_here() -> None:
    """A lock that no test looks at could rot."""
    assert {path.stem for path in LOCKS.iterdir()} == set(CONTENTS)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_lock_holds_nothing_but_pinned_versions_and_hashes(name: str) -> None:
    """No index, no link, no local path, no host: only names, versions, markers and hashes."""
    comment, *lines = (LOCKS / f"{name}.lock").read_text().splitlines()
    assert comment == "# Made by packaging/lock from pyproject.toml; not to be edited."
    assert [line for line in lines if not PINNED.match(line) and not HASH.match(line)] == []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if PINNED.match(line):
            assert HASH.match(following), f"no hash: {line}"


@pytest.mark.parametrize("name", CONTENTS)
def test_a_lock_is_what_pyproject_asks_for_and_all_that_this_needs(name: str) -> None:
    """Walk from pyproject.toml through what the installed packages require: all is locked, in range, and no more."""
    locked = _locked(name)
    pending = [(requirement, "pyproject.toml") for requirement in _wanted(name)]
    seen: set[tuple[NormalizedName, str]] = set()
    wrong = []
    while pending:
        requirement, source = pending.pop()
        package = canonicalize_name(requirement.name)
        if package not in locked:
            wrong.append(f"{requirement} of {source} is not locked")
        elif not requirement.specifier.contains(locked[package], prereleases=True):
            wrong.append(f"{requirement} of {source} is locked as {locked[package]}")
        for extra in ("", *requirement.extras):
            if (package, extra) in seen:
                continue
            seen.add((package, extra))
            needs = [Requirement(text) for text in metadata.requires(requirement.name) or ()]
            applying = [n for n in needs if not n.marker or n.marker.evaluate({"extra": extra})]
            pending.extend((need, requirement.name) for need in applying)
    assert wrong == []
    assert set(locked) - {package for package, _ in seen} == set()


@pytest.mark.parametrize("name", CONTENTS)
def test_a_lock_agrees_with_the_lock_of_everything(name: str) -> None:
    """One environment grows from one lock to the next without exchanging packages."""
    everything = _locked("test")
    assert {n: v for n, v in _locked(name).items() if everything.get(n) != v} == {}


def test_the_build_backend_is_locked() -> None:
    """What is built here is built without isolation, by what the build lock has."""
    locked = _locked("build")
    for text in PYPROJECT["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_the_environment_is_the_locked_one() -> None:
    """The tests speak of what is locked, not of what happens to be installed."""
    installed = {canonicalize_name(d.name): Version(d.version) for d in metadata.distributions()}
    installed.pop(canonicalize_name("s3mgr"))
    assert installed == _locked("test")
