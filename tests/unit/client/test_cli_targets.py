"""Names and directories on the command line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from s3mgr.cli.targets import absolute_directory, find_mount, free_name, suggest_name
from s3mgr.errors import InvalidRequest
from s3mgr.schema.mounts import NAME_PATTERN

from .fake_daemon import make_mount


@pytest.mark.parametrize(
    ("bucket", "prefix", "name"),
    [
        ("logs", "", "logs"),
        ("logs", "a/b/", "logs-a-b"),
        ("My_Bucket", "", "my_bucket"),
        ("b", "Früh/ jahr/", "b-fr-h-jahr"),
        ("__", "", "mount"),
        ("日本", "", "mount"),
        ("b" * 63, "x/", "b" * 63),
        ("b" * 62, "x/", "b" * 62),
    ],
)
def test_a_name_from_bucket_and_prefix_fits_the_pattern(
    bucket: str, prefix: str, name: str
) -> None:
    assert suggest_name(bucket, prefix) == name
    assert re.match(NAME_PATTERN, name)


def test_numbers_make_names_unique_within_the_pattern() -> None:
    long = "n" * 63
    taken = {long}
    for _ in range(12):
        name = free_name(long, taken)
        assert name not in taken
        assert re.match(NAME_PATTERN, name)
        taken.add(name)
    assert free_name("a", {"b"}) == "a"
    assert free_name("a", {"a", "a-2"}) == "a-3"


def test_a_directory_is_made_absolute_without_touching_what_is_mounted(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = clean_environment
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    (here / "real/mnt").mkdir()
    (here / "to-mnt").symlink_to("link/mnt")
    (here / "loop").symlink_to("loop")
    touched: list[object] = []
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, _recording(getattr(os, name), touched))
    for text in ("real/mnt", "link/mnt", "./link//mnt/", "real/../link/mnt", f"{here}/to-mnt"):
        assert absolute_directory(text) == f"{here}/real/mnt"
    assert absolute_directory(".") == str(here)
    assert absolute_directory("/") == "/"
    assert absolute_directory("not/there") == f"{here}/not/there"
    with pytest.raises(InvalidRequest, match="too many levels"):
        absolute_directory("loop")
    monkeypatch.undo()
    assert f"{here}/real" in touched
    assert f"{here}/real/mnt" not in touched


def _recording(
    function: Callable[..., os.stat_result], seen: list[object]
) -> Callable[..., os.stat_result]:
    def call(path: object, **more: object) -> os.stat_result:
        seen.append(path)
        return function(path, **more)

    return call


def test_a_name_comes_before_a_directory_of_that_name(clean_environment: Path) -> None:
    here = clean_environment
    by_name = make_mount("data", mountpoint="/mnt/elsewhere")
    by_path = make_mount("other", mountpoint=f"{here}/data")
    assert find_mount("data", [by_path, by_name]) is by_name
    assert find_mount("./data", [by_name, by_path]) is by_path
    assert find_mount("data", [by_path]) is by_path
    assert find_mount("data/sub", [by_path]) is None
