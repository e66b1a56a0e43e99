"""Small new files, which lie in one log: nothing acknowledged is lost, nothing that is gone comes back."""

import errno
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.fuse import syscalls
from s3mgrd.journal import directory as directory_module
from s3mgrd.journal import shared
from s3mgrd.journal.directory import StagingDirectory
from s3mgrd.journal.small import MAX_WRITES, SMALL_BYTES
from s3mgrd.journal.staging import Description, StagedFile

NOTE = Description(path="d/a", base_key=None, base_etag=None, base_size=0, condition="always")


class Site:
    """One staging directory, used by one worker after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staging = self._open()

    def _open(self) -> StagingDirectory:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        return StagingDirectory(self._fd)

    def next_worker(self) -> None:
        """Go on as after kill -9: what the kernel has is there, what the worker knew is not."""
        for segment in self.staging._shared._segments:
            os.close(segment.fd)
        os.close(self._fd)
        self.staging = self._open()

    def lose_power(self) -> None:
        """Go on with no more of the log than was synced."""
        for segment in self.staging._shared._segments:
            os.ftruncate(segment.fd, segment.synced)
        self.next_worker()

    def make(self, inode: int, *writes: tuple[int, bytes]) -> StagedFile:
        file = self.staging.create_small(inode)
        file.describe(NOTE)
        for offset, data in writes:
            write(file, offset, data)
        return file

    def log(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name.startswith(shared.PREFIX))

    def own(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if not name.startswith(shared.PREFIX))


def write(file: StagedFile, offset: int, data: bytes) -> None:
    file.put(offset, data)
    file.record(offset, len(data))


def write_pieces(file: StagedFile) -> None:
    for offset in range(MAX_WRITES + 1):
        write(file, offset, b"x")


def content(file: StagedFile) -> bytes:
    return file.read(0, file.size)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.staging.close()


def test_a_small_file_needs_no_file_of_its_own(site: Site) -> None:
    file = site.make(7, (0, b"hello"), (10, b"there"), (3, b"P"))
    file.set_mtime_ns(123)
    assert site.own() == []
    assert site.staging.inodes() == {7}
    site.next_worker()
    again = site.staging.open(7, 0)
    assert content(again) == b"helPo\0\0\0\0\0there"
    assert list(again.extents) == [(0, 5), (10, 15)]
    assert (again.description, again.mtime_ns(), again.is_changed) == (NOTE, 123, True)


@pytest.mark.parametrize(
    "use",
    [
        lambda file: write(file, SMALL_BYTES - 1, b"xy"),
        lambda file: file.truncate(3),
        lambda file: file.data_fd,
        write_pieces,
    ],
    ids=["grows", "is truncated", "is sent", "is written in pieces"],
)
def test_what_the_log_cannot_do_gives_a_file_files_of_its_own(site: Site, use: object) -> None:
    """With the same bytes, note and time; the next worker finds them there and nowhere else."""
    assert callable(use)
    file = site.make(7, (0, b"hello"), (10, b"there"))
    use(file)
    assert site.own() == ["7", "7.log"]
    expected = content(file), list(file.extents), file.description
    file.close()
    site.next_worker()
    again = site.staging.open(7, 0)
    assert not again.is_small
    assert (content(again), list(again.extents), again.description) == expected
    again.close()


def test_a_worker_that_dies_at_any_byte_of_the_log_loses_nothing_acknowledged(
    site: Site, tmp_path: Path
) -> None:
    """What was told to be done is there after each cut, and what was not is not half there."""
    log = tmp_path / "shared.0"
    told: list[tuple[int, dict[int, bytes]]] = [(0, {})]
    now: dict[int, bytes] = {}

    def acknowledged() -> None:
        told.append((log.stat().st_size, dict(now)))

    for inode, data in ((1, b"one"), (2, b"two" * 5), (3, b"")):
        file = site.make(inode)
        now[inode] = b""
        acknowledged()
        if data:
            write(file, 0, data)
            now[inode] = data
            acknowledged()
    site.staging.remove(2)
    del now[2]
    acknowledged()
    whole = log.read_bytes()
    for cut in range(len(whole) + 1):
        other = tmp_path / "other"
        other.mkdir()
        (other / "shared.0").write_bytes(whole[:cut])
        after = Site(other)
        expected = max((size, files) for size, files in told if size <= cut)[1]
        found = {n: content(after.staging.open(n, 0)) for n in after.staging.inodes()}
        assert found == expected, cut
        after.make(99, (0, b"fresh"))
        after.next_worker()
        assert content(after.staging.open(99, 0)) == b"fresh"
        assert after.staging.inodes() == {*expected, 99}
        after.staging.close()
        shutil.rmtree(other)


def test_zeros_that_a_power_loss_left_are_the_end_of_the_log(site: Site, tmp_path: Path) -> None:
    site.make(1, (0, b"one"))
    with (tmp_path / "shared.0").open("ab") as log:
        log.write(bytes(4096))
    site.next_worker()
    assert site.staging.inodes() == {1}
    site.make(2, (0, b"two"))
    site.next_worker()
    assert content(site.staging.open(2, 0)) == b"two"


def test_a_byte_that_the_disk_changed_costs_one_file(site: Site, tmp_path: Path) -> None:
    """And that one is not taken for whole."""
    for inode in (1, 2, 3):
        site.make(inode, (0, b"content of %d" % inode))
    log = tmp_path / "shared.0"
    log.write_bytes(log.read_bytes().replace(b"content of 2", b"content oF 2"))
    site.next_worker()
    assert site.staging.inodes() == {1, 2, 3}
    with pytest.raises(OSError, match="changed on the disk") as caught:
        site.staging.open(2, 0)
    assert caught.value.errno == errno.EIO
    assert content(site.staging.open(3, 0)) == b"content of 3"
    site.next_worker()
    with pytest.raises(OSError, match="changed on the disk"):
        site.staging.adopt(2, 0)
    site.staging.remove(2)
    site.next_worker()
    assert site.staging.inodes() == {1, 3}


HEAD = {"checksum": (0, 4), "inode": (4, 4), "time": (8, 8), "record length": (20, 4)} | {
    "data length": (24, 4),
    "checksum of the data": (28, 4),
}


@pytest.mark.parametrize("field", HEAD)
@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_head_that_the_disk_changed_costs_one_file(
    tmp_path: Path, field: str, value: int
) -> None:
    """Whatever it says then, the other files are whole, the one is not taken for whole, and the log goes on."""
    offset, length = HEAD[field]
    for byte in range(length):
        directory = tmp_path / str(byte)
        directory.mkdir()
        site = Site(directory)
        site.make(1, (0, b"first"))
        file = site.make(2, (0, b"second"))
        log = directory / "shared.0"
        position = log.stat().st_size + offset + byte
        write(file, 6, b" and more")
        write(file, 15, b" and more")
        site.make(3, (0, b"third"))
        whole = bytearray(log.read_bytes())
        whole[position] = value if whole[position] != value else value ^ 2
        log.write_bytes(whole)
        site.next_worker()
        for inode, data in ((1, b"first"), (3, b"third")):
            assert content(site.staging.open(inode, 0)) == data
        with pytest.raises(OSError, match="changed on the disk"):
            site.staging.open(2, 0)
        site.make(4, (0, b"fourth"))
        site.next_worker()
        assert content(site.staging.open(4, 0)) == b"fourth"
        assert site.staging.inodes() == {1, 2, 3, 4}
        site.staging.close()


def test_a_sector_that_the_disk_lost_costs_the_files_in_it(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "shared.0"
    site.make(1, (0, b"first"))
    start = log.stat().st_size
    site.make(2, (0, b"second"))
    site.make(3, (0, b"third"))
    site.make(4, (0, b"fourth"))
    whole = log.read_bytes()
    lost = whole.index(b"third")
    log.write_bytes(whole[:start] + bytes(lost - start) + whole[lost:])
    site.next_worker()
    assert "cannot be read: the disk changed shared.0" in caplog.text
    assert site.staging.inodes() == {1, 4}
    assert content(site.staging.open(1, 0)) == b"first"
    assert content(site.staging.open(4, 0)) == b"fourth"


def test_a_file_whose_beginning_cannot_be_read_is_not_taken_for_whole(
    site: Site, tmp_path: Path
) -> None:
    site.make(1, (0, b"first"))
    log = tmp_path / "shared.0"
    start = log.stat().st_size
    site.make(2, (0, b"second"))
    whole = bytearray(log.read_bytes())
    whole[start] ^= 1  # the note of what it is to become
    log.write_bytes(whole)
    site.next_worker()
    with pytest.raises(OSError, match="changed on the disk"):
        site.staging.open(2, 0)
    assert content(site.staging.open(1, 0)) == b"first"


def test_the_name_of_the_version_is_not_needed(site: Site, tmp_path: Path) -> None:
    site.make(1, (0, b"first"))
    log = tmp_path / "shared.0"
    whole = log.read_bytes()
    log.write_bytes(b"\0" + whole[1:])
    site.next_worker()
    assert content(site.staging.open(1, 0)) == b"first"
    assert log.read_bytes() == whole


def test_what_a_file_holds_is_not_taken_for_the_log(site: Site, tmp_path: Path) -> None:
    """A copy of a log, in a file whose writing was cut short by a power loss."""
    site.make(1, (0, b"first"))
    log = tmp_path / "shared.0"
    copy = log.read_bytes()
    site.staging.remove(1)
    file = site.make(2)
    before = log.stat().st_size
    write(file, 0, copy)
    whole = log.read_bytes()
    for cut in range(before, len(whole)):
        log.write_bytes(whole[:cut])
        site.next_worker()
        assert site.staging.inodes() == {2}
        assert content(site.staging.open(2, 0)) == b""


def test_the_first_version_of_the_log_is_read_and_gone_on_with_in_the_next(
    site: Site, tmp_path: Path
) -> None:
    """A worker of the version before left it."""
    site.make(1, (0, b"first"))
    file = site.make(2, (0, b"second"))
    file.describe(None)
    site.staging.remove(1)
    log = tmp_path / "shared.0"
    whole, position, first = log.read_bytes(), len(shared.MAGIC), b""
    while position < len(whole):
        _, inode, time_ns, said, data, _ = shared._HEAD.unpack_from(whole, position)
        position += shared._HEAD.size
        body = whole[position : position + data + (0 if said == shared._GONE else said)]
        rest = shared._FIRST_HEAD.pack(0, inode, time_ns, said, data)[4:] + body
        first += zlib.crc32(rest).to_bytes(4, "little") + rest
        position += len(body)
    log.write_bytes(first + b"torn")
    site.next_worker()
    assert site.staging.inodes() == {2}
    assert content(site.staging.open(2, 0)) == b"second"
    site.make(3, (0, b"third"))
    assert (site.log(), log.read_bytes()) == (["shared.0", "shared.1"], first)
    site.next_worker()
    assert content(site.staging.open(2, 0)) == b"second"
    site.staging.remove(2)
    assert site.log() == ["shared.1"]
    assert content(site.staging.open(3, 0)) == b"third"


def test_a_file_that_cannot_be_read_does_not_keep_the_log(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its bytes stay, for who knows what they were."""
    monkeypatch.setattr(shared, "SEGMENT_BYTES", 300)
    file = site.make(1, (0, b"begin "), (6, b"middle "), (13, b"end"))
    file.describe(None)
    log = tmp_path / "shared.0"
    log.write_bytes(log.read_bytes().replace(b"middle", b"muddle"))
    site.next_worker()
    for inode in range(2, 5):
        site.make(inode, (0, b"x" * 200))
        site.staging.remove(inode)
    assert len(site.log()) <= 1
    assert (tmp_path / "1").read_bytes() == b"begin end"
    assert 1 in site.staging.inodes()


def test_the_end_of_a_segment_that_cannot_be_read_is_told_of(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "SEGMENT_BYTES", 300)
    for inode in (1, 2, 3):
        site.make(inode, (0, b"x" * 200))
    log = tmp_path / "shared.0"
    whole = log.read_bytes()
    log.write_bytes(whole[:-10])
    site.next_worker()
    assert "cannot be read: the disk changed shared.0" in caplog.text
    assert content(site.staging.open(3, 0)) == b"x" * 200
    assert len(log.read_bytes()) == len(whole) - 10


def test_segments_go_when_nobody_needs_them_and_nothing_comes_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says that a file is gone may lie in a later segment than the file: that one stays as long."""
    monkeypatch.setattr(shared, "SEGMENT_BYTES", 300)
    site.make(1, (0, b"kept"))
    for inode in range(2, 5):
        site.make(inode, (0, b"x" * 200))
        site.staging.remove(inode)
    assert len(site.log()) > 1
    site.next_worker()
    assert site.staging.inodes() == {1}
    site.staging.open(1, 0).truncate(2)
    site.make(20, (0, b"y" * 400))
    site.staging.remove(20)
    site.next_worker()
    assert len(site.log()) <= 1
    assert content(site.staging.open(1, 0)) == b"ke"


def test_a_file_that_stays_for_long_leaves_the_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SEGMENT_BYTES", 300)
    site.make(1, (0, b"stays"))
    for inode in range(2, 30):
        site.make(inode, (0, b"x" * 200))
        site.staging.remove(inode)
    assert site.own() == ["1", "1.log"]
    assert len(site.log()) <= shared.KEPT_SEGMENTS + 1
    site.next_worker()
    assert content(site.staging.open(1, 0)) == b"stays"


def test_too_many_small_files_have_files_of_their_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "MAX_SMALL", 2)
    for inode in (1, 2, 3):
        site.make(inode, (0, b"x")).close()
    assert site.own() == ["3", "3.log"]
    assert site.staging.inodes() == {1, 2, 3}


def test_a_full_disk_leaves_a_file_where_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    file = site.make(7, (0, b"hello"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            file.truncate(2)
        patched.setattr(os, "pwritev", full)
        file.put(5, b"!")
        with pytest.raises(OSError, match="No space"):
            file.record(5, 1)
    assert (content(file), file.size, site.own()) == (b"hello", 5, [])
    write(file, 5, b"?")
    site.next_worker()
    assert content(site.staging.open(7, 0)) == b"hello?"


def test_a_number_that_a_rolled_back_change_used_begins_anew(site: Site) -> None:
    site.make(7, (0, b"never was"))
    site.make(7, (0, b"new"))
    site.next_worker()
    assert content(site.staging.open(7, 0)) == b"new"


def test_what_was_synced_in_the_log_is_synced_where_it_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = site.make(7, (0, b"promised"))
    file.sync()
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    file.truncate(4)
    assert [Path(name).name for name in synced] == ["7", "7.log"]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_power_loss_brings_nothing_back_in_the_place_of_what_was_synced_since(
    site: Site, is_replaced: bool
) -> None:
    file = site.make(7, (0, b"first"))
    file.sync()
    if is_replaced:
        site.staging.remove(7)
        file = site.staging.create(7, 0)
        file.describe(NOTE)
    else:
        file.truncate(0)
    write(file, 0, b"second")
    file.sync()
    site.staging.sync()
    file.close()
    site.lose_power()
    again = site.staging.open(7, 0)
    assert content(again) == b"second"
    again.close()


def test_a_file_that_leaves_the_log_between_a_put_and_its_record_has_both(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a full disk does not take is not acknowledged."""
    file = site.make(7, (0, b"one"))
    file.put(3, b"two")
    assert file.data_fd >= 0  # as when another file wants its room in the log

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            file.record(3, 3)
    assert content(file) == b"one"
    write(file, 3, b"two")
    file.close()
    site.next_worker()
    again = site.staging.open(7, 0)
    assert content(again) == b"onetwo"
    again.close()


def test_a_put_that_was_given_up_does_not_overwrite_a_later_one(site: Site) -> None:
    file = site.make(7)
    file.put(0, b"never")
    assert file.data_fd >= 0  # as when another file wants its room in the log
    write(file, 0, b"whole")
    assert content(file) == b"whole"
    file.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Site]:
    """A staging directory on a file system of its own, which is soon full."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    path = tmp_path / "disk"
    path.mkdir()
    syscalls.mount("disk", str(path), "tmpfs", 0, "size=1m")
    made = Site(path)
    try:
        yield made
    finally:
        made.staging.close()
        syscalls.unmount(str(path), lazy=True)


def fill(path: Path) -> None:
    """Take all the room that is left on a disk."""
    fd = os.open(path / "9999999.filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    size = 1 << 20
    while size:
        try:
            os.write(fd, bytes(size))
        except OSError:
            size //= 2
    os.close(fd)


@pytest.mark.parametrize("segment_bytes", [shared.SEGMENT_BYTES, 8192])
def test_what_goes_from_a_full_disk_does_not_come_back(
    small_disk: Site, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """However much is written until it takes no more, by us or by others, and over workers."""
    monkeypatch.setattr(shared, "SEGMENT_BYTES", segment_bytes)
    site = small_disk

    def make_as_many_as_there_is_room_for() -> None:
        for inode in range(1, 100_000):
            write(site.make(inode), 0, b"x" * (inode % 3000))

    with pytest.raises(OSError, match="No space"):
        make_as_many_as_there_is_room_for()
    fill(site.path)
    # One that was made in half is no more than the others.
    made = site.staging.inodes()
    assert len(made) > 100
    kept = {inode for inode in made if inode % 4 == 0}
    for inode in sorted(made - kept):
        if inode % 4 == 1:
            site.staging.remove(inode)
    site.next_worker()
    for inode in sorted(made - kept):
        site.staging.remove(inode)
    site.next_worker()
    assert site.staging.inodes() == kept
    for inode in sorted(kept)[:-1]:
        assert content(site.staging.open(inode, 0)) == b"x" * (inode % 3000)


def test_a_disk_that_sets_no_room_aside_is_good_enough(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(shared, "allocate", cannot)
    site.make(7, (0, b"hello"))
    site.make(8, (0, b"there"))
    site.staging.remove(8)
    site.next_worker()
    assert site.staging.inodes() == {7}
    assert content(site.staging.open(7, 0)) == b"hello"
