"""Modes, owners, times, sizes and contents after every call that changes them; and the same again out of S3."""

import errno
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.e2e.posix import (
    ALICE,
    BOB,
    FREE,
    NO_DIRECTORIES,
    NO_LINKS,
    TYPE_BITS,
    TYPES,
    User,
    allowed,
    make,
    make_file,
    next_tick_ns,
    refusal,
    remove,
    times,
)
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket

Bits = Callable[[Path, int], object]

MAKING_WITH_BITS: dict[str, Bits] = {
    "open": lambda p, m: os.close(os.open(p, os.O_CREAT | os.O_WRONLY, m)),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda p, m: os.mknod(p, m | stat.S_IFREG),
}


@dataclass(frozen=True)
class Site:
    """A mount of a bucket, and what a second one takes."""

    daemon: Daemon
    endpoint: Endpoint
    bucket: str
    root: Path


@pytest.fixture(scope="module")
def site(ministack: Endpoint, module_lab: Lab) -> Iterator[Site]:
    daemon = module_lab.daemon()
    bucket = make_bucket(ministack.boto3())
    root = daemon.mount(ministack, bucket, "m", "-o", "attributes=full")
    yield Site(daemon, ministack, bucket, root)
    daemon.flush()
    assert daemon.show().status.state == "mounted"


@pytest.fixture
def place(site: Site) -> Iterator[Path]:
    """Give a directory of the mount where everybody may write."""
    directory = site.root / "place"
    directory.mkdir()
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


def _bits(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def no_mask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


# What is new


@pytest.mark.usefixtures("no_mask")
@pytest.mark.parametrize("call", MAKING_WITH_BITS)
@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o501])
def test_a_new_thing_has_the_mode_that_the_mask_leaves(place: Path, call: str, mask: int) -> None:
    for bits in (0o777, 0o755, 0o151, 0o000):
        os.umask(mask)
        MAKING_WITH_BITS[call](place / "new", bits)
        os.umask(0)
        assert _bits(place / "new") == bits & ~mask
        remove(place / "new")


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
def test_a_new_thing_is_its_makers_and_setgid_hands_the_group_down(place: Path, kind: str) -> None:
    allowed(lambda: make(kind, place / "one"), user=ALICE)
    status = (place / "one").lstat()
    assert (status.st_uid, status.st_gid) == (ALICE.uid, ALICE.gid)
    assert stat.S_IFMT(status.st_mode) == TYPE_BITS[kind]
    shared = make("directory", place / "shared", BOB)
    shared.chmod(0o2777)
    allowed(lambda: make(kind, shared / "two"), user=ALICE)
    status = (shared / "two").lstat()
    assert (status.st_uid, status.st_gid) == (ALICE.uid, BOB.gid)
    assert bool(status.st_mode & stat.S_ISGID) == (kind == "directory")


@pytest.mark.parametrize("kind", TYPES)
def test_making_moving_and_removing_touch_the_directories_and_failing_does_not(
    place: Path, kind: str
) -> None:
    one, two = make("directory", place / "one"), make("directory", place / "two")

    def touches(call: Callable[[], object], *directories: Path) -> None:
        before = [times(d) for d in (one, two)]
        next_tick_ns()
        call()
        for directory, old in zip((one, two), before, strict=True):
            new = times(directory)
            if directory in directories:
                assert new[0] > old[0]
                assert new[1] > old[1]
            else:
                assert new == old

    began_ns = next_tick_ns()
    touches(lambda: make(kind, one / "x"), one)
    status = (one / "x").lstat()
    assert began_ns <= min(status.st_mtime_ns, status.st_ctime_ns)
    touches(lambda: refusal(lambda: make_file(one / "x")))
    touches(lambda: os.rename(one / "x", two / "x"), one, two)
    touches(lambda: refusal(lambda: os.rename(one / "x", two / "y")))
    touches(lambda: os.rename(two / "x", two / "y"), two)
    touches(lambda: remove(two / "y"), two)
    touches(lambda: refusal(lambda: os.unlink(two / "y")))


# What is changed


@pytest.mark.parametrize("kind", NO_LINKS)
def test_chmod_changes_the_mode_and_ctime_alone(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing")
    for bits in (0o000, 0o4111, 0o2151, 0o1000, 0o7777, 0o644):
        before = thing.lstat()
        next_tick_ns()
        thing.chmod(bits)
        after = thing.lstat()
        assert after.st_mode == stat.S_IFMT(before.st_mode) | bits
        assert after.st_ctime_ns > before.st_ctime_ns
        assert (after.st_mtime_ns, after.st_uid) == (before.st_mtime_ns, before.st_uid)


def test_setgid_is_for_members_of_the_group(place: Path) -> None:
    thing = make("file", place / "thing", User(ALICE.uid, BOB.gid))
    allowed(lambda: thing.chmod(0o2755), user=ALICE)
    assert _bits(thing) == 0o755
    os.chown(thing, ALICE.uid, 3003)
    allowed(lambda: thing.chmod(0o2755), user=ALICE)
    assert _bits(thing) == 0o2755


@pytest.mark.parametrize("kind", TYPES)
def test_chown_changes_owner_group_and_ctime_of_the_thing_itself(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing")
    for uid, gid, wanted in ((7, 8, (7, 8)), (-1, 9, (7, 9)), (10, -1, (10, 9)), (0, 0, (0, 0))):
        before = thing.lstat()
        next_tick_ns()
        os.lchown(thing, uid, gid)
        after = thing.lstat()
        assert (after.st_uid, after.st_gid) == wanted
        assert after.st_ctime_ns > before.st_ctime_ns
        assert after.st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(("bits", "after"), [(0o6555, 0o555), (0o2755, 0o755), (0o644, 0o644)])
def test_a_program_given_away_loses_setuid_and_setgid(place: Path, bits: int, after: int) -> None:
    thing = make("file", place / "thing", ALICE)
    thing.chmod(bits)
    allowed(lambda: os.chown(thing, -1, 3003), user=ALICE)
    assert _bits(thing) == after


def test_a_program_written_by_another_loses_setuid_and_setgid(place: Path) -> None:
    thing = make("file", place / "thing", BOB)

    def write() -> None:
        with thing.open("r+b", buffering=0) as file:
            file.write(b"x")

    thing.chmod(0o6777)
    allowed(write, user=ALICE)
    assert _bits(thing) == 0o777


def test_a_program_cut_by_another_loses_setuid_and_setgid_but_not_by_root(place: Path) -> None:
    thing = make("file", place / "thing", BOB)
    thing.chmod(0o6777)
    os.truncate(thing, 10)
    thing.open("wb").close()
    assert _bits(thing) == 0o6777
    allowed(lambda: os.truncate(thing, 5), user=ALICE)
    assert _bits(thing) == 0o777


@pytest.mark.parametrize("kind", TYPES)
def test_times_are_kept_to_the_nanosecond(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing")
    for atime_ns, mtime_ns in (
        (1_000_000_001, 2_000_000_002),
        (0, 1),
        (-1_000_000_001, -1),
        (4_102_444_800_123_456_789, 8_000_000_000_000_000_007),
    ):
        before = thing.lstat()
        next_tick_ns()
        os.utime(thing, ns=(atime_ns, mtime_ns), follow_symlinks=False)
        after = thing.lstat()
        assert (after.st_atime_ns, after.st_mtime_ns) == (atime_ns, mtime_ns)
        assert after.st_ctime_ns > before.st_ctime_ns


def test_a_link_and_what_it_leads_to_are_two_things(place: Path) -> None:
    make_file(place / "file")
    os.symlink("file", place / "link")
    link = (place / "link").lstat()
    os.utime(place / "link", ns=(5, 6))
    os.chown(place / "link", 7, 8)
    os.chmod(place / "link", 0o600)
    status = (place / "file").lstat()
    assert (status.st_mtime_ns, status.st_uid, stat.S_IMODE(status.st_mode)) == (6, 7, 0o600)
    assert (place / "link").lstat() == link


@pytest.mark.parametrize("kind", TYPES)
def test_rename_keeps_everything_but_ctime(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing", ALICE)
    os.utime(thing, ns=(3, 4), follow_symlinks=False)
    before = thing.lstat()
    next_tick_ns()
    os.rename(thing, place / "moved")
    after = (place / "moved").lstat()
    kept = ("st_ino", "st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_atime_ns")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert after.st_ctime_ns > before.st_ctime_ns
    assert refusal(lambda: os.lstat(thing)) == errno.ENOENT


# Contents


def test_truncate_cuts_and_grows_by_zeros_and_changes_both_times(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"0123456789")
    for size, wanted in ((4, b"0123"), (8, b"0123\0\0\0\0"), (0, b""), (3, b"\0\0\0")):
        before = times(path)
        next_tick_ns()
        os.truncate(path, size)
        assert path.read_bytes() == wanted
        after = times(path)
        assert after[0] > before[0]
        assert after[1] > before[1]


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_o_trunc_empties_whatever_the_access(site: Site, place: Path, access: int) -> None:
    path = place / "file"
    path.write_bytes(b"0123456789")
    os.close(os.open(path, access | os.O_TRUNC))
    assert path.stat().st_size == 0
    client = site.endpoint.boto3()
    assert client.head_object(Bucket=site.bucket, Key="place/file")["ContentLength"] == 0


def test_holes_are_zeros_and_appends_go_to_the_end(place: Path) -> None:
    path = place / "file"
    one, two = (os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND) for _ in range(2))
    plain = os.open(path, os.O_RDWR)
    assert os.pwrite(plain, b"far", 1 << 20) == 3
    for fd in (one, two, one):
        os.write(fd, b"!")
    for fd in (one, two, plain):
        os.close(fd)
    assert path.read_bytes() == bytes(1 << 20) + b"far!!!"


def test_an_unlinked_file_lives_as_long_as_it_is_open(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"after!", 6)
    path.write_bytes(b"another")
    assert os.pread(fd, 100, 0) == b"beforeafter!"
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    assert (os.pread(fd, 100, 0), stat.S_IMODE(os.fstat(fd).st_mode)) == (b"bef", 0o600)
    os.close(fd)
    assert path.read_bytes() == b"another"


def test_a_shared_mapping_and_read_see_the_same(place: Path) -> None:
    path = place / "file"
    path.write_bytes(bytes(8192))
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[4095:4099] = b"abcd"
        assert os.pread(file.fileno(), 4, 4095) == b"abcd"
        os.pwrite(file.fileno(), b"XY", 100)
        assert mapped[100:102] == b"XY"
        mapped.flush()
    data = path.read_bytes()
    assert (data[100:102], data[4095:4099], len(data)) == (b"XY", b"abcd", 8192)


# Out of S3 again


@pytest.mark.parametrize("kind", TYPES)
def test_another_mount_of_the_bucket_shows_the_same(site: Site, place: Path, kind: str) -> None:
    """Type, mode, owners, times, device, target and contents are in S3, in nobody's memory."""
    thing = make(kind, place / "thing", ALICE)
    if kind == "file":
        thing.write_bytes(b"content")
    if kind != "symlink":
        thing.chmod(0o2754)
    os.utime(thing, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321), follow_symlinks=False)
    renamed = place / "renamed"
    os.rename(thing, renamed)
    site.daemon.flush()
    other = site.daemon.mount(site.endpoint, site.bucket, f"other-{kind}", "-o", "attributes=full")
    try:
        seen, wanted = (other / "place" / "renamed").lstat(), renamed.lstat()
        kept = ("st_mode", "st_uid", "st_gid", "st_size", "st_rdev", "st_mtime_ns", "st_atime_ns")
        for name in kept:
            assert getattr(seen, name) == getattr(wanted, name), name
        if kind == "symlink":
            assert os.readlink(other / "place" / "renamed") == "nowhere"
        if kind == "file":
            assert (other / "place" / "renamed").read_bytes() == b"content"
    finally:
        site.daemon.run("unmount", f"other-{kind}")


@pytest.mark.parametrize("kind", NO_DIRECTORIES)
def test_what_is_made_and_removed_leaves_nothing_in_s3(site: Site, place: Path, kind: str) -> None:
    make(kind, place / "thing")
    remove(place / "thing")
    assert refusal(lambda: os.lstat(place / "thing")) == errno.ENOENT != FREE
    site.daemon.flush()
    found = site.endpoint.boto3().list_objects_v2(Bucket=site.bucket, Prefix="place/thing")
    assert found["KeyCount"] == 0
