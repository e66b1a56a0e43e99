"""What the kernel was told to be absent, as the next worker finds it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.cache.nodes import ROOT, Inode
from s3mgrd.fs import absence
from s3mgrd.fs.absence import FILES, ToldAbsent

D = Inode(7)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[ToldAbsent]:
    made = reopened(tmp_path)
    yield made
    made.close()


def reopened(directory: Path, connection: str = "c") -> ToldAbsent:
    """Return what the next worker goes on with."""
    told = ToldAbsent.open(directory)
    told.adopt(connection)
    return told


def found(directory: Path, connection: str = "c") -> dict[tuple[Inode, str], int]:
    told = reopened(directory, connection)
    told.close()
    return told.ends


def test_the_next_worker_knows_each_name_with_its_latest_end(
    told: ToldAbsent, tmp_path: Path
) -> None:
    """Also after it has written itself."""
    assert told.note(ROOT, "a", 10, 0)
    assert told.note(D, "ü\n", 20, 0)
    assert told.note(ROOT, "a", 30, 0)
    assert found(tmp_path) == {(ROOT, "a"): 30, (D, "ü\n"): 20}
    second = reopened(tmp_path)
    second.note(D, "c", 40, 0)
    second.close()
    assert found(tmp_path) == {(ROOT, "a"): 30, (D, "ü\n"): 20, (D, "c"): 40}


def test_another_connection_was_told_nothing(told: ToldAbsent, tmp_path: Path) -> None:
    """Nor is it told so when the first one's name comes again."""
    told.note(ROOT, "a", 10, 0)
    assert found(tmp_path, "other") == {}
    assert found(tmp_path) == {}


def test_one_name_or_all_of_some_directories_are_taken_once(told: ToldAbsent) -> None:
    """Whoever takes them tells the kernel."""
    for directory, name in ((ROOT, "a"), (D, "a"), (D, "b")):
        told.note(directory, name, 10, 0)
    assert told.take({D}, "a") == [(D, "a")]
    assert told.take({D}, "a") == []
    assert sorted(told.take({ROOT, D})) == [(ROOT, "a"), (D, "b")]


@pytest.mark.parametrize("cut", range(1, 19))
def test_a_record_that_was_cut_off_is_none_and_harms_none(
    told: ToldAbsent, tmp_path: Path, cut: int
) -> None:
    """Wherever it was cut; what is written next is read again."""
    told.note(ROOT, "whole", 10, 0)
    whole = (tmp_path / FILES[0]).stat().st_size
    told.note(ROOT, "cut", 20, 0)
    os.truncate(tmp_path / FILES[0], whole + cut)
    second = reopened(tmp_path)
    assert second.ends == {(ROOT, "whole"): 10}
    second.note(ROOT, "next", 30, 0)
    second.close()
    assert found(tmp_path) == {(ROOT, "whole"): 10, (ROOT, "next"): 30}


def test_the_files_stay_small_however_much_is_told(
    told: ToldAbsent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has expired is left out, what holds is not."""
    monkeypatch.setattr(absence, "LEAST_BYTES", 1000)
    told._limit = 1000
    for now in range(300):
        assert told.note(ROOT, f"name-{now}", now + 10, now)
        sizes = [(tmp_path / name).stat().st_size for name in FILES]
        assert sum(sizes) < 1100
        assert min(sizes) == 0
        assert found_beside(tmp_path).keys() >= {
            (ROOT, f"name-{now}"),
            (ROOT, f"name-{max(0, now - 5)}"),
        }


def found_beside(directory: Path) -> dict[tuple[Inode, str], int]:
    """Return what a worker would find if this one died now."""
    copy = directory / "copy"
    copy.mkdir(exist_ok=True)
    for name in FILES:
        (copy / name).write_bytes((directory / name).read_bytes())
    return found(copy)


def test_a_worker_that_died_while_it_rewrote_has_lost_nothing(
    told: ToldAbsent, tmp_path: Path
) -> None:
    """Then both files say something."""
    told.note(ROOT, "a", 10, 0)
    other = tmp_path / FILES[1]
    other.write_bytes((tmp_path / FILES[0]).read_bytes())
    told.note(ROOT, "b", 20, 0)
    for _ in range(2):
        assert found(tmp_path) == {(ROOT, "a"): 10, (ROOT, "b"): 20}
        assert other.stat().st_size == 0


def test_there_is_a_limit_beyond_which_the_kernel_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until something has expired."""
    monkeypatch.setattr(absence, "MAX_ABSENT", 2)
    told = ToldAbsent()
    told.adopt("c")
    assert told.note(ROOT, "a", 10, 0)
    assert told.note(ROOT, "b", 20, 0)
    assert not told.note(ROOT, "c", 30, 9)
    assert told.note(ROOT, "b", 30, 9)
    assert told.note(ROOT, "c", 30, 10)


def test_on_a_full_disk_the_kernel_is_told_nothing(tmp_path: Path) -> None:
    """What would be lost with this worker is not said."""
    full = os.open("/dev/full", os.O_RDWR)
    told = ToldAbsent((full, os.dup(full)))
    told.adopt("c")
    assert not told.note(ROOT, "a", 10, 0)
    assert told.ends == {}
    told.close()
