"""The tail of a worker's log: bounded, resumable, never half a line."""

import os
from pathlib import Path

import pytest

from s3mgr.schema import FlushReport
from s3mgrd.errors import NotFound, Unavailable
from s3mgrd.mounts import reports
from s3mgrd.mounts.reports import decode_report, read_tail
from s3mgrd.worker.protocol import Ok, Report


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "x.log"
    path.write_text("one\ntwo\nthree\n")
    return path


def test_the_last_lines_and_what_comes_after_them(log: Path) -> None:
    tail = read_tail(str(log), 2, None)
    assert tail.lines == ["two", "three"]
    assert read_tail(str(log), 2, tail.offset).lines == []
    with log.open("a") as stream:
        stream.write("four\nfi")
    tail = read_tail(str(log), 2, tail.offset)
    assert tail.lines == ["four"]
    with log.open("a") as stream:
        stream.write("ve\n")
    assert read_tail(str(log), 2, tail.offset).lines == ["five"]


def test_a_log_that_was_rotated_is_read_from_its_start(log: Path) -> None:
    assert read_tail(str(log), 10, 10_000).lines == ["one", "two", "three"]


def test_a_long_log_is_read_from_near_its_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_TAIL_BYTES", 8)
    assert read_tail(str(log), 100, None).lines == ["three"]
    assert read_tail(str(log), 100, 0).lines == ["three"]


def test_an_empty_log_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"")
    assert read_tail(str(path), 5, None).lines == []
    path.write_bytes(b"\xff\n")
    assert read_tail(str(path), 5, None).lines == ["�"]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_tail(str(tmp_path / "absent"), 1, None)
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(Unavailable):
        read_tail(str(tmp_path / "link"), 1, None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unavailable):
        read_tail(str(tmp_path / "pipe"), 1, None)


def test_answers_that_are_no_report_are_refused() -> None:
    for reply in (Ok(), Report(body=b"{}"), Report(body=b"x")):
        with pytest.raises(Unavailable):
            decode_report(reply, FlushReport)
