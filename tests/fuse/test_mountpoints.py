"""Where may be mounted: every refusal, word for word enough that a user can act on it."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mgrd.errors import MountpointBusy, MountpointInvalid
from s3mgrd.fuse import syscalls
from s3mgrd.fuse.connection import FuseKernel
from s3mgrd.fuse.mountinfo import (
    MountEntry,
    MountWatch,
    parse_mountinfo,
    read_mountinfo,
    topmost,
)
from s3mgrd.fuse.mountpoints import open_mountpoint
from tests.descriptors import held_by

USER = 4242


def nothing(base: Path) -> Path:
    return base / "missing"


def no_parent(base: Path) -> Path:
    return base / "missing" / "deeper"


def file(base: Path) -> Path:
    (base / "file").touch()
    return base / "file"


def below_file(base: Path) -> Path:
    (base / "file").touch()
    return base / "file" / "dir"


def unix_socket(base: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(base / "socket"))
    return base / "socket"


def link(base: Path) -> Path:
    (base / "real").mkdir()
    (base / "link").symlink_to("real")
    return base / "link"


def dangling_link(base: Path) -> Path:
    (base / "link").symlink_to("nowhere")
    return base / "link"


def through_link(base: Path) -> Path:
    (base / "real" / "dir").mkdir(parents=True)
    (base / "link").symlink_to(base / "real")
    return base / "link" / "dir"


def not_empty(base: Path) -> Path:
    (base / "full").mkdir()
    (base / "full" / "file").touch()
    return base / "full"


def parent_parts(base: Path) -> Path:
    (base / "dir").mkdir()
    return Path(f"{base}/dir/../dir")


REFUSALS: list[tuple[Callable[[Path], Path], str, str]] = [
    (nothing, r"mountpoint '.*/missing' does not exist", "mkdir -p {}"),
    (no_parent, r"directory '.*/missing' does not exist", "mkdir -p"),
    (file, r"'.*/file' is not a directory", "another mountpoint"),
    (below_file, r"'.*/file' is not a directory", "another mountpoint"),
    (unix_socket, r"'.*/socket' is not a directory", "another mountpoint"),
    (link, r"'.*/link' is a symbolic link", "it leads to: {base}/real"),
    (dangling_link, r"is a symbolic link", "it leads to: {base}/nowhere"),
    (
        through_link,
        r"leads through '.*/link', which is a symbolic link",
        "it leads to: {base}/real/dir",
    ),
    (not_empty, r"'.*/full' is not empty", "empty directory"),
    (parent_parts, r"not an absolute path without '\.\.'", "full path"),
    (lambda _: Path("relative/dir"), r"not an absolute path", "full path"),
    (lambda _: Path("/"), r"cannot mount on /", "below it"),
    (lambda base: base / ("x" * 256), r"cannot look at", ""),
]


@pytest.mark.parametrize(
    ("make", "text", "hint"),
    REFUSALS,
    ids=lambda value: getattr(value, "__name__", str(value)[:40]),
)
async def test_what_cannot_be_mounted_on_is_refused_with_a_hint(
    tmp_path: Path, make: Callable[[Path], Path], text: str, hint: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(MountpointInvalid, match=text) as failure:
        await FuseKernel(user_mode=False).check_mountpoint(str(path), owner_uid=0)
    assert hint.format(path, base=tmp_path) in failure.value.hint


async def test_an_empty_directory_is_accepted(tmp_path: Path) -> None:
    await FuseKernel(user_mode=False).check_mountpoint(str(tmp_path), owner_uid=0)
    await FuseKernel(user_mode=False).check_mountpoint(f"{tmp_path}//./", owner_uid=0)


async def test_contents_are_accepted_when_they_are_asked_for(tmp_path: Path) -> None:
    path = str(not_empty(tmp_path))
    await FuseKernel(user_mode=False).check_mountpoint(path, owner_uid=0, nonempty=True)


@pytest.mark.parametrize(
    ("owner", "mode", "text"),
    [
        (USER + 1, 0o777, f"belongs to uid {USER + 1}, not to uid {USER}"),
        (0, 0o1777, f"belongs to uid 0, not to uid {USER}"),
        (USER, 0o555, "not writable by its owner"),
        (USER, 0o700, None),
    ],
)
def test_an_ordinary_user_needs_a_directory_of_their_own(
    tmp_path: Path, owner: int, mode: int, text: str | None
) -> None:
    os.chown(tmp_path, owner, owner)
    tmp_path.chmod(mode)
    if text is None:
        os.close(open_mountpoint(str(tmp_path), owner_uid=USER))
    else:
        with pytest.raises(MountpointInvalid, match=text):
            open_mountpoint(str(tmp_path), owner_uid=USER)


@contextmanager
def tmpfs(path: Path) -> Iterator[None]:
    syscalls.mount("none", str(path), "tmpfs", 0, "")
    try:
        yield
    finally:
        syscalls.unmount(str(path), lazy=True)


def test_a_foreign_mount_is_named(tmp_path: Path) -> None:
    with tmpfs(tmp_path), pytest.raises(MountpointBusy, match=r"something else .* \(tmpfs\)"):
        open_mountpoint(str(tmp_path), owner_uid=0)


def test_a_directory_inside_a_foreign_mount_is_accepted(tmp_path: Path) -> None:
    with tmpfs(tmp_path):
        (tmp_path / "dir").mkdir()
        os.close(open_mountpoint(str(tmp_path / "dir"), owner_uid=0))


def test_the_descriptor_is_the_directory_itself(tmp_path: Path) -> None:
    """A mount made on it lands there, whatever the path has become meanwhile."""
    (tmp_path / "dir").mkdir()
    fd = open_mountpoint(str(tmp_path / "dir"), owner_uid=0)
    (tmp_path / "dir").rename(tmp_path / "moved")
    (tmp_path / "dir").symlink_to("/")
    assert os.path.samestat(os.fstat(fd), (tmp_path / "moved").stat())
    assert stat.S_ISDIR(os.fstat(fd).st_mode)
    os.close(fd)


def held_along(path: Path) -> list[str]:
    """What this process has open of *path*, the directories above it and what is below; threads of other tests have none of it."""
    return sorted(
        target
        for _, target in held_by()
        if path.is_relative_to(target) or Path(target).is_relative_to(path)
    )


def test_refusals_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = held_along(tmp_path)
    for make in (no_parent, file, through_link):
        base = tmp_path / str(make)[:20].strip("<").replace(" ", "-")
        base.mkdir()
        with pytest.raises(MountpointInvalid):
            open_mountpoint(str(make(base)), owner_uid=0)
    assert held_along(tmp_path) == before


def escape(text: str) -> bytes:
    """Write a field as the kernel does: blanks, newlines and backslashes in octal."""
    raw = text.encode("utf-8", "surrogateescape")
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in raw)


field = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
number = st.integers(0, 1 << 31)


@given(
    ids=st.tuples(number, number, st.integers(0, 255), st.integers(0, 1 << 20)),
    texts=st.tuples(field, field, field, field, field, field),
    optional=st.lists(st.sampled_from([b"shared:1", b"master:7", b"unbindable"]), max_size=3),
)
def test_any_line_the_kernel_may_write_is_read_back(
    ids: tuple[int, int, int, int], texts: tuple[str, ...], optional: list[bytes]
) -> None:
    mount_id, parent_id, major, minor = ids
    root, mountpoint, options, fs_type, source, super_options = texts
    head = b"%d %d %d:%d" % (mount_id, parent_id, major, minor)
    fields = [head, *map(escape, (root, mountpoint, options)), *optional, b"-"]
    fields += map(escape, (fs_type, source, super_options))
    parsed = parse_mountinfo(b" ".join(fields) + b"\nnonsense\n\n")
    assert parsed == [
        MountEntry(
            mount_id,
            parent_id,
            f"{major}:{minor}",
            root,
            mountpoint,
            options,
            fs_type,
            source,
            super_options,
        )
    ]


@given(st.binary(max_size=300))
def test_nonsense_is_no_entry_and_no_error(text: bytes) -> None:
    parse_mountinfo(text)


def test_the_real_table_is_read() -> None:
    entries = read_mountinfo()
    root = topmost(entries, "/")
    assert root is not None
    assert topmost(entries, "/proc").fs_type == "proc"  # type: ignore[union-attr] # it is there


def test_the_topmost_of_stacked_mounts_is_found(tmp_path: Path) -> None:
    with tmpfs(tmp_path):
        lower = topmost(read_mountinfo(), str(tmp_path))
        with tmpfs(tmp_path):
            upper = topmost(read_mountinfo(), str(tmp_path))
            assert lower is not None
            assert upper is not None
            assert upper.parent_id == lower.mount_id
        assert topmost(read_mountinfo(), str(tmp_path)) == lower


async def test_the_watch_wakes_at_each_change_and_reads_once_between(tmp_path: Path) -> None:
    with MountWatch() as watch:
        first = watch.subscribe()
        with trio.fail_after(5):
            await first.wait()  # the state at the start
        assert watch.entries() is watch.entries()
        for _ in range(3):
            changed = watch.subscribe()
            assert topmost(watch.entries(), str(tmp_path)) is None
            with tmpfs(tmp_path), trio.fail_after(5):
                await changed.wait()
                gone = watch.subscribe()
                assert topmost(watch.entries(), str(tmp_path)) is not None
            with trio.fail_after(5):
                await gone.wait()


async def test_the_watch_ends_its_thread_with_its_last_user() -> None:
    import threading

    # The thread of an earlier test's watch may still be ending: only what begins here is counted.
    before = set(threading.enumerate())

    def begun() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "mount-watch"} - before

    watch = MountWatch()
    with watch:
        (thread,) = begun()
        with watch:
            assert begun() == {thread}
        assert begun() == {thread}
    with trio.fail_after(5):
        while thread.is_alive():
            await trio.lowlevel.checkpoint()
