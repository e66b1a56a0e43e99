"""Which calls fail, and with which errno: tables over every call that takes a name, on one real mount."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.lab import Lab
from tests.e2e.posix import (
    ALICE,
    BOB,
    FREE,
    MAKERS,
    NO_DIRECTORIES,
    NO_LINKS,
    TYPES,
    User,
    make,
    make_file,
    refusal,
    remove,
)
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket

Call = Callable[[Path], object]

MAKING: Final[dict[str, Call]] = {
    "open": lambda p: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda p: os.mknod(p, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "symlink": lambda p: os.symlink("target", p),
    "rename to": lambda p: _rename_new(p),
}
USING: Final[dict[str, Call]] = {
    "open": lambda p: os.close(os.open(p, os.O_RDONLY | os.O_NONBLOCK)),
    "stat": os.stat,
    "chmod": lambda p: os.chmod(p, 0o640),
    "chown": lambda p: os.chown(p, 7, 7),
    "truncate": lambda p: os.truncate(p, 10),
    "utimes": lambda p: os.utime(p, ns=(1, 2)),
    "listdir": os.listdir,
}
NAMING: Final[dict[str, Call]] = {
    "lstat": os.lstat,
    "lchown": lambda p: os.lchown(p, 7, 7),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "readlink": os.readlink,
    "rename": lambda p: os.rename(p, p.parent / "renamed"),
}
ALL: Final = MAKING | {f"{name} existing": call for name, call in (USING | NAMING).items()}


def _rename_new(path: Path) -> None:
    source = Path(_root[0]) / "rename-source"
    source.touch()
    try:
        os.rename(source, path)
    finally:
        source.unlink(missing_ok=True)


_root: list[str] = []
"""The mount of this module, for the calls above that need a second name."""


@pytest.fixture(scope="module")
def mount(ministack: Endpoint, module_lab: Lab) -> Iterator[Path]:
    daemon = module_lab.daemon()
    root = daemon.mount(ministack, make_bucket(ministack.boto3()), "m", "-o", "attributes=full")
    _root.append(str(root))
    yield root
    daemon.flush()
    assert daemon.show().status.state == "mounted"
    _root.clear()


@pytest.fixture
def place(mount: Path) -> Iterator[Path]:
    """Give a directory of the mount where everybody may write."""
    directory = mount / "place"
    directory.mkdir()
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("kind", NO_DIRECTORIES)
def test_nothing_lies_below_what_is_no_directory(place: Path, kind: str) -> None:
    make(kind, place / "thing")
    wanted = errno.ENOENT if kind == "symlink" else errno.ENOTDIR
    for name, call in ALL.items():
        assert refusal(call, place / "thing" / "below") == wanted, name


def test_what_is_not_there_is_not_found(place: Path) -> None:
    for name, call in (USING | NAMING).items():
        assert refusal(call, place / "absent") == errno.ENOENT, name
    for name, call in ALL.items():
        assert refusal(call, place / "absent" / "x") == errno.ENOENT, name


def test_links_that_go_in_circles_are_refused(place: Path) -> None:
    os.symlink("right", place / "left")
    os.symlink("left", place / "right")
    for name, call in USING.items():
        assert refusal(call, place / "left") == errno.ELOOP, name
    for name, call in ALL.items():
        assert refusal(call, place / "left" / "x") == errno.ELOOP, name


def test_names_have_255_bytes_and_no_more(place: Path) -> None:
    for name, call in MAKING.items():
        longest = place / ("n" * 255)
        assert refusal(call, longest) == FREE, name
        remove(longest)
    for name, call in ALL.items():
        assert refusal(call, place / ("n" * 256)) == errno.ENAMETOOLONG, name
        below = place / ("n" * 256) / "x"
        assert refusal(call, below) == errno.ENAMETOOLONG, name


def test_a_path_over_4095_bytes_is_refused(place: Path) -> None:
    text = f"{place}/{'./' * 2100}x"
    for name, call in ALL.items():
        if name != "rename existing":  # it wants a Path, which leaves the dots out
            call_on_text: Callable[[str], object] = call  # type: ignore[assignment] # os takes both
            assert refusal(call_on_text, text) == errno.ENAMETOOLONG, name


@pytest.mark.parametrize("kind", TYPES)
def test_what_exists_is_not_made_again(place: Path, kind: str) -> None:
    make(kind, place / "thing")
    before = (place / "thing").lstat()
    for name, call in MAKING.items():
        if name != "rename to":
            assert refusal(call, place / "thing") == errno.EEXIST, name
    assert (place / "thing").lstat() == before


@pytest.mark.parametrize("kind", NO_DIRECTORIES)
def test_only_directories_are_removed_by_rmdir_and_listed(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing")
    assert refusal(os.rmdir, thing) == errno.ENOTDIR
    if kind != "symlink":
        assert refusal(os.listdir, thing) == errno.ENOTDIR
    assert refusal(os.open, thing, os.O_DIRECTORY) in (errno.ENOTDIR, errno.ENOENT)
    assert refusal(os.unlink, thing) == FREE
    assert os.listdir(place) == []


@pytest.mark.parametrize("kind", TYPES)
def test_a_directory_with_anything_in_it_is_not_removed(place: Path, kind: str) -> None:
    full = make("directory", place / "full")
    other = make("directory", place / "other")
    inside = make(kind, full / "inside")
    for call in (
        lambda: os.rmdir(full),
        lambda: os.rename(other, full),
    ):
        assert refusal(call) == errno.ENOTEMPTY
    remove(inside)
    assert refusal(os.rename, other, full) == FREE
    assert refusal(os.rmdir, full) == FREE


def test_directories_are_not_files(place: Path) -> None:
    directory = make("directory", place / "d")
    assert refusal(os.unlink, directory) == errno.EISDIR
    assert refusal(os.truncate, directory, 0) == errno.EISDIR
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT):
        assert refusal(os.open, directory, flags) == errno.EISDIR, flags
    assert refusal(os.rmdir, f"{directory}/.") == errno.EINVAL
    assert refusal(os.rmdir, f"{make('directory', directory / 'e')}/..") == errno.ENOTEMPTY


@pytest.mark.parametrize("old", TYPES)
@pytest.mark.parametrize("new", TYPES)
def test_rename_replaces_only_its_like(place: Path, old: str, new: str) -> None:
    source, target = make(old, place / "old"), make(new, place / "new")
    inode = source.lstat().st_ino
    wanted = FREE
    if (old == "directory") != (new == "directory"):
        wanted = errno.ENOTDIR if old == "directory" else errno.EISDIR
    assert refusal(os.rename, source, target) == wanted
    assert sorted(os.listdir(place)) == (["new"] if wanted == FREE else ["new", "old"])
    assert (target.lstat().st_ino == inode) == (wanted == FREE)


def test_a_directory_is_not_moved_into_itself(place: Path) -> None:
    inner = place / "a" / "b" / "c"
    inner.mkdir(parents=True)
    for target in (place / "a" / "x", inner / "x", inner):
        assert refusal(os.rename, place / "a", target) == errno.EINVAL
    assert refusal(os.rename, inner, place / "a") == errno.ENOTEMPTY
    assert refusal(os.rename, place / "a", place / "a") == FREE


def test_another_file_system_is_another_one(place: Path, tmp_path: Path) -> None:
    make_file(place / "here")
    make_file(tmp_path / "there")
    assert refusal(os.rename, place / "here", tmp_path / "x") == errno.EXDEV
    assert refusal(os.rename, tmp_path / "there", place / "x") == errno.EXDEV


@pytest.mark.parametrize("kind", NO_DIRECTORIES)
def test_hard_links_are_refused_as_on_fat(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing")
    assert refusal(lambda: os.link(thing, place / "x", follow_symlinks=False)) == errno.EPERM
    assert os.listdir(place) == ["thing"]


def test_open_has_its_own_refusals(place: Path) -> None:
    make_file(place / "file")
    os.symlink("file", place / "link")
    fifo = make("fifo", place / "fifo")
    assert refusal(os.open, place / "link", os.O_NOFOLLOW) == errno.ELOOP
    assert refusal(os.open, fifo, os.O_WRONLY | os.O_NONBLOCK) == errno.ENXIO
    assert refusal(os.open, make("socket", place / "s"), os.O_RDONLY) == errno.ENXIO
    # Mounts are nodev.
    assert refusal(os.open, make("char", place / "c"), os.O_RDONLY) == errno.EACCES
    assert refusal(os.open, make("block", place / "b"), os.O_RDONLY) == errno.EACCES


def test_what_runs_is_not_written(place: Path) -> None:
    """And goes on running: an attempt to truncate it must not reach its pages."""
    program = place / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            for flags in (
                os.O_WRONLY,
                os.O_RDWR,
                os.O_RDONLY | os.O_TRUNC,
                os.O_WRONLY | os.O_TRUNC,
            ):
                assert refusal(os.open, program, flags) == errno.ETXTBSY, flags
            assert refusal(os.truncate, program, 1) == errno.ETXTBSY
            assert process.poll() is None
        finally:
            process.kill()
    assert program.read_bytes() == Path("/bin/sleep").read_bytes()


def test_times_and_sizes_that_cannot_be_are_refused(place: Path) -> None:
    make_file(place / "file")
    assert refusal(os.truncate, place / "file", -1) == errno.EINVAL
    fifo = make("fifo", place / "fifo")
    assert refusal(os.truncate, fifo, 0) == errno.EINVAL
    assert refusal(os.truncate, place / "file", 1 << 62) in (errno.EFBIG, errno.EINVAL)
    assert refusal(os.readlink, place / "file") == errno.EINVAL
    assert refusal(os.symlink, "", place / "empty") == errno.ENOENT
    assert refusal(os.symlink, "x" * 4096, place / "long") == errno.ENAMETOOLONG


# Who may


@pytest.mark.parametrize("bits", [0o000, 0o600, 0o400, 0o200])
def test_who_may_not_search_a_directory_reaches_nothing_in_it(place: Path, bits: int) -> None:
    inner = make("directory", place / "inner", ALICE)
    make_file(inner / "x")
    inner.chmod(bits)
    for name, call in (USING | NAMING).items():
        assert refusal(call, inner / "x", user=ALICE) == errno.EACCES, name
    for name, call in MAKING.items():
        if name != "rename to":
            assert refusal(call, inner / "new", user=ALICE) == errno.EACCES, name
    inner.chmod(0o755)


def test_who_may_not_write_a_directory_changes_no_name_in_it(place: Path) -> None:
    inner = make("directory", place / "inner", ALICE)
    for kind in TYPES:
        make(kind, inner / kind, ALICE)
    make("file", place / "mine", ALICE)
    inner.chmod(0o555)
    for kind in TYPES:
        path = inner / kind
        call = os.rmdir if kind == "directory" else os.unlink
        assert refusal(call, path, user=ALICE) == errno.EACCES
        assert refusal(os.rename, path, place / "out", user=ALICE) == errno.EACCES
    assert refusal(os.rename, place / "mine", inner / "in", user=ALICE) == errno.EACCES
    for name, maker in MAKERS.items():
        if name not in (
            "block",
            "char",
            "socket",
        ):  # the first two are root's; bind says EACCES through /proc
            assert refusal(maker, inner / "new", user=ALICE) == errno.EACCES, name
    inner.chmod(0o755)


@pytest.mark.parametrize("kind", ["block", "char"])
def test_devices_are_roots_to_make(place: Path, kind: str) -> None:
    assert refusal(lambda: MAKERS[kind](place / "thing"), user=ALICE) == errno.EPERM


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("directory_owner", "owner", "wanted"),
    [(BOB, BOB, errno.EPERM), (BOB, ALICE, FREE), (ALICE, BOB, FREE)],
    ids=["nothing is hers", "the thing is hers", "the directory is hers"],
)
def test_sticky_directories_protect_what_is_others(
    place: Path, kind: str, directory_owner: User, owner: User, wanted: int
) -> None:
    sticky = make("directory", place / "sticky", directory_owner)
    sticky.chmod(0o1777)
    thing = make(kind, sticky / "thing", owner)
    call = os.rmdir if kind == "directory" else os.unlink
    # Moving a directory changes its "..", which is its owner's right alone.
    moved = errno.EACCES if kind == "directory" and (owner, wanted) == (BOB, FREE) else wanted
    assert refusal(os.rename, thing, place / "moved", user=ALICE) == moved
    if moved == FREE:
        (place / "moved").rename(thing)
    own = make("directory" if kind == "directory" else "file", place / "own", ALICE)
    assert refusal(os.rename, own, thing, user=ALICE) == wanted
    if wanted == FREE:
        remove(thing)
        make(kind, thing, owner)
    assert refusal(call, thing, user=ALICE) == wanted


@pytest.mark.parametrize("kind", NO_LINKS)
def test_only_the_owner_changes_mode_and_times(place: Path, kind: str) -> None:
    thing = make(kind, place / "thing", ALICE)
    thing.chmod(0o644)
    before = thing.lstat()
    assert refusal(os.chmod, thing, 0o600, user=BOB) == errno.EPERM
    assert refusal(lambda: os.utime(thing, ns=(1, 2)), user=BOB) == errno.EPERM
    assert refusal(os.utime, thing, user=BOB) == errno.EACCES
    assert thing.lstat() == before
    thing.chmod(0o666)
    assert refusal(os.utime, thing, user=BOB) == FREE
    assert refusal(lambda: os.utime(thing, ns=(1, 2)), user=BOB) == errno.EPERM
    assert refusal(lambda: os.utime(thing, ns=(1, 2)), user=ALICE) == FREE


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("user", "uid", "gid", "wanted"),
    [
        (ALICE, -1, -1, FREE),
        (ALICE, ALICE.uid, 3003, FREE),
        (ALICE, -1, BOB.gid, errno.EPERM),
        (ALICE, BOB.uid, -1, errno.EPERM),
        (BOB, -1, BOB.gid, errno.EPERM),
        (BOB, BOB.uid, -1, errno.EPERM),
    ],
)
def test_owners_give_to_groups_of_their_own_only(
    place: Path, kind: str, user: User, uid: int, gid: int, wanted: int
) -> None:
    thing = make(kind, place / "thing", ALICE)
    before = thing.lstat()
    assert refusal(os.lchown, thing, uid, gid, user=user) == wanted
    after = thing.lstat()
    if wanted:
        assert after == before
    else:
        assert (after.st_uid, after.st_gid) == (ALICE.uid, gid if gid != -1 else ALICE.gid)


@pytest.mark.parametrize(
    ("bits", "flags", "wanted"),
    [
        (0o400, os.O_RDONLY, FREE),
        (0o400, os.O_WRONLY, errno.EACCES),
        (0o400, os.O_RDWR, errno.EACCES),
        (0o400, os.O_RDONLY | os.O_TRUNC, errno.EACCES),
        (0o200, os.O_RDONLY, errno.EACCES),
        (0o200, os.O_WRONLY | os.O_TRUNC, FREE),
        (0o077, os.O_RDONLY, errno.EACCES),
        (0o600, os.O_RDWR, FREE),
    ],
)
def test_the_owners_bits_decide_for_the_owner(
    place: Path, bits: int, flags: int, wanted: int
) -> None:
    thing = make("file", place / "thing", ALICE)
    thing.write_bytes(b"kept")
    thing.chmod(bits)
    assert refusal(lambda: os.close(os.open(thing, flags)), user=ALICE) == wanted
    assert thing.read_bytes() == (b"" if flags & os.O_TRUNC and wanted == FREE else b"kept")
    assert refusal(os.truncate, thing, 2, user=BOB) == (FREE if bits & 0o002 else errno.EACCES)
