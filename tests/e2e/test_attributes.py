"""Attributes through real programs on a real mount: what they show, what they cost in requests, what another mount sees."""

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.lab import Daemon, Lab, run, shell
from tests.e2e.posix import next_tick_ns
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

FILES: Final = 12
S: Final = 1_000_000_000
YEAR_2262_NS: Final = (1 << 63) - 1
READS: Final = frozenset({"ListObjectsV2"})
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Site:
    """A bucket mounted twice: what the first mount writes, the second learns from S3."""

    daemon: Daemon
    bucket: str
    mount: Path
    other: Path
    source: Path

    def spent(self, script: str, *arguments: str | Path) -> dict[str, int]:
        """Run a script and return the requests that it cost until S3 has everything, listings aside."""
        before = self._calls()
        shell(script, *arguments, cwd=self.mount)
        self.daemon.flush("m")
        return {
            name: count - before.get(name, 0)
            for name, count in self._calls().items()
            if count != before.get(name, 0) and name not in READS
        }

    def _calls(self) -> dict[str, int]:
        return {call.name: call.count for call in self.daemon.api.mount_stats("m").s3}

    def handled(self, operation: str) -> int:
        """Count the kernel's requests of one kind."""
        counts = self.daemon.api.mount_stats("m").fuse
        return next((count.count for count in counts if count.name == operation), 0)

    def see(self, path: str) -> Path:
        """Return *path* in the second mount, which asks S3 anew."""
        self.daemon.flush("m")
        self.daemon.api.invalidate_mount("other")
        return self.other / path


@pytest.fixture(scope="module")
def site(ministack: Endpoint, module_lab: Lab) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon()
    source = module_lab.directory("source")
    make_tree(source)
    try:
        mount = daemon.mount(ministack, bucket, "m")
        other = daemon.mount(ministack, bucket, "other", "-o", "attributes=full")
        site = Site(daemon, bucket, mount, other, source)
        site.spent(
            "ls; echo x >first; sync first; chmod 600 first"
        )  # S3's conditions are found out
        yield site
    finally:
        for name in ("m", "other"):
            daemon.run("unmount", name, "--discard", check=False)
        remove_bucket(client, bucket)
        client.close()


def make_tree(source: Path) -> None:
    """Make files of several owners, modes and times, with extended attributes, and links and directories."""
    for number in range(FILES):
        directory = source / f"d{number % 3}"
        directory.mkdir(exist_ok=True)
        path = directory / f"f{number}"
        path.write_text(f"content {number}\n")
        os.setxattr(path, "user.number", str(number).encode())
        os.chown(path, 1000 + number, 2000 + number)
        path.chmod([0o644, 0o600, 0o755, 0o4711, 0o444][number % 5])
        os.utime(path, ns=(number * S, (1_500_000_000 + number) * S + 123_456_789))
    (source / "link").symlink_to("d0/f0")
    os.setxattr(source / "d0", "user.dir", b"yes")
    (source / "d0").chmod(0o2750)
    for directory in (*source.glob("d*"), source):
        os.utime(directory, ns=(S, 1_400_000_000 * S))


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Return everything that cp -a, rsync -aX and tar keep of each file below *root*."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        is_link = stat.S_ISLNK(info.st_mode)
        xattrs = [] if is_link else sorted(os.listxattr(path))
        found[str(path.relative_to(root))] = (
            stat.filemode(info.st_mode),
            info.st_uid,
            info.st_gid,
            None if is_link or stat.S_ISDIR(info.st_mode) else info.st_mtime_ns,
            [(name, os.getxattr(path, name)) for name in xattrs],
            os.readlink(path) if is_link else path.read_bytes() if path.is_file() else None,
        )
    return found


COPYSTAT: Final = """
import os, shutil, sys
source, target = sys.argv[1:]
for parent, directories, files in os.walk(source):
    for name in directories + files:
        path = os.path.join(parent, name)
        copy = os.path.join(target, os.path.relpath(path, source))
        info = os.lstat(path)
        os.chown(copy, info.st_uid, info.st_gid, follow_symlinks=False)
        shutil.copystat(path, copy, follow_symlinks=False)
"""
"""What backup tools do: everything by path, one after the other."""

# What real programs cost


@pytest.mark.parametrize(
    ("name", "script", "changed", "copied"),
    [
        ("cp", 'cp -a "$1" cp', 0, 0),
        ("tar", 'mkdir tar; tar -C "$1" --xattrs -cf - . | tar --xattrs -C tar -xpf -', 0, 0),
        ("rsync", 'rsync -aX "$1/" rsync', FILES, FILES),
        ("inplace", 'rsync -aX --inplace "$1/" inplace', FILES, 0),
        ("later", 'cp -r "$1" later; python3 -c "$2" "$1" later', FILES, 0),
    ],
)
def test_programs_that_keep_attributes(
    site: Site, name: str, script: str, changed: int, copied: int
) -> None:
    """One PUT a file, with all attributes where they are set before close, and one copy where they come later.

    rsync writes beside the name and renames: the copy to the name is that one.
    """
    spent = site.spent(script, site.source, COPYSTAT)
    assert described(site.mount / name) == described(site.source)
    assert described(site.see(name)) == described(site.source)
    # The link may have been made in S3 before its time was set.
    assert 0 <= spent.pop("CopyObject", 0) - changed <= (changed > 0)
    assert (spent.pop("DeleteObjects", 0) > 0) == (copied > 0)
    puts = spent.pop("PutObject")
    directories = 4
    # A directory's marker is written at first, and again with the attributes that it gets at the end.
    assert FILES + 1 + directories <= puts <= FILES + 1 + 3 * directories
    assert spent == {}


@pytest.mark.parametrize(
    "script",
    ['rsync -aXi "$1/" again', 'rsync -aXi --checksum "$1/" again', 'cp -au "$1/." again'],
)
def test_nothing_is_sent_for_what_is_there(site: Site, script: str) -> None:
    """A second run finds names, sizes, times, modes, owners and xattrs as it would leave them."""
    shell('mkdir -p again; rsync -aX "$1/" again', site.source, cwd=site.mount)
    site.daemon.flush("m")
    spent = site.spent(script, site.source)
    assert spent.keys() <= {"GetObject", "PutObject"}
    # cp sets the directories' attributes again, which they have: nothing is sent for them either.
    assert spent.get("PutObject", 0) == 0


def test_four_changes_of_a_file_that_s3_has_are_one_copy(site: Site) -> None:
    site.spent("mkdir four; for n in 1 2 3 4 5 6; do echo $n >four/$n; done")
    spent = site.spent(
        """
        python3 -c '
import os, sys
for name in sys.argv[1:]:
    os.chmod(name, 0o600)
    os.chown(name, 5, 6)
    os.utime(name, ns=(1, 2))
    os.setxattr(name, "user.a", b"1")
' four/*
        """
    )
    assert spent == {"CopyObject": 6}
    seen = site.see("four/6")
    info = seen.stat()
    assert (stat.filemode(info.st_mode), info.st_uid, info.st_gid) == ("-rw-------", 5, 6)
    assert (info.st_atime_ns, info.st_mtime_ns) == (1, 2)
    assert os.getxattr(seen, "user.a") == b"1"


def test_writing_and_listing_ask_for_no_extended_attribute_each(site: Site) -> None:
    """security.capability is not asked for before each write, and POSIX ACLs once a listing."""
    path = site.mount / "written"
    path.write_bytes(b"")
    before = site.handled("getxattr")
    with path.open("r+b", buffering=0) as file:
        for number in range(200):
            file.write(b"%d" % number)
    assert site.handled("getxattr") - before <= 1
    shell("mkdir many; for n in $(seq 50); do : >many/$n; done", cwd=site.mount)
    before = site.handled("getxattr")
    assert len(run("ls", "-l", site.mount / "many").splitlines()) == 51
    assert site.handled("getxattr") - before <= 2


# Extended attributes


def test_flags_and_limits_of_extended_attributes(site: Site) -> None:
    path = site.mount / "flags"
    path.write_text("x")
    os.mkdir(site.mount / "flags.d")
    for subject in (path, site.mount / "flags.d"):
        check_errno(errno.ENODATA, os.setxattr, subject, "user.a", b"1", os.XATTR_REPLACE)
        os.setxattr(subject, "user.a", b"1", os.XATTR_CREATE)
        check_errno(errno.EEXIST, os.setxattr, subject, "user.a", b"2", os.XATTR_CREATE)
        os.setxattr(subject, "user.a", b"value", os.XATTR_REPLACE)
        assert os.listxattr(subject) == ["user.a"]
        size = LIBC.getxattr(os.fsencode(subject), b"user.a", None, 0)
        assert size == 5
        buffer = ctypes.create_string_buffer(4)
        assert LIBC.getxattr(os.fsencode(subject), b"user.a", buffer, 4) == -1
        assert ctypes.get_errno() == errno.ERANGE
        assert LIBC.listxattr(os.fsencode(subject), buffer, 4) == -1
        assert ctypes.get_errno() == errno.ERANGE
        os.removexattr(subject, "user.a")
        check_errno(errno.ENODATA, os.removexattr, subject, "user.a")
        check_errno(errno.ENODATA, os.getxattr, subject, "user.a")
        check_errno(errno.ENOSPC, os.setxattr, subject, "user.a", b"x" * 2048)
        check_errno(errno.E2BIG, os.setxattr, subject, "user.a", b"x" * 70_000)
        check_errno(errno.ERANGE, os.setxattr, subject, "user." + "a" * 251, b"")
        for name in ("security.foo", "trusted.foo", "system.foo"):
            check_errno(errno.EOPNOTSUPP, os.setxattr, subject, name, b"1")
            check_errno(errno.EOPNOTSUPP, os.getxattr, subject, name)
        assert os.listxattr(subject) == []


def check_errno(number: int, function: object, *arguments: object) -> None:
    """Call *function* and expect it to fail with *number*."""
    assert callable(function)
    with pytest.raises(OSError, match="Errno") as caught:
        function(*arguments)
    assert caught.value.errno == number, arguments


def test_links_and_special_files_have_no_extended_attributes(site: Site) -> None:
    """As everywhere on Linux: the kernel refuses them."""
    os.symlink("x", site.mount / "xl")
    os.mkfifo(site.mount / "xp")
    for name in ("xl", "xp"):
        with pytest.raises(PermissionError):
            os.setxattr(site.mount / name, "user.a", b"1", follow_symlinks=False)


# Times


@pytest.mark.parametrize(
    ("given_ns", "kept_ns"),
    [
        (0, 0),
        (1, 1),
        (1_234_567_890_123_456_789, 1_234_567_890_123_456_789),
        (-1, -1),
        (-S, -S),
        (-2_208_988_800 * S + 5, -2_208_988_800 * S + 5),
        (YEAR_2262_NS, YEAR_2262_NS),
        (253_402_300_799 * S, YEAR_2262_NS),
    ],
)
def test_times_have_nanoseconds_before_1970_and_after(
    site: Site, given_ns: int, kept_ns: int
) -> None:
    """What 64 bits of nanoseconds cannot hold is clamped, as ext4 clamps at its own end.

    But the kernel, which keeps the modification times of files where it gathers writes, believes what was set.
    """
    path = site.mount / f"time{given_ns}"
    path.write_text("x")
    os.utime(path, ns=(given_ns, given_ns))
    for subject, mtime_ns in ((path, given_ns), (site.see(path.name), kept_ns)):
        info = subject.stat()
        assert (info.st_atime_ns, info.st_mtime_ns) == (kept_ns, mtime_ns)


def test_reading_and_touching_the_access_time_cost_nothing(site: Site) -> None:
    site.spent("echo x >atime")
    before = (site.mount / "atime").stat()
    spent = site.spent("cat atime >/dev/null; touch -a -d 2001-02-03 atime; cat atime >/dev/null")
    assert spent.keys() <= {"GetObject"}
    after = (site.mount / "atime").stat()
    assert after.st_atime == 981158400.0
    assert after.st_mtime_ns == before.st_mtime_ns


def test_the_change_time_is_the_mounts_own(site: Site) -> None:
    path = site.mount / "ctime"
    path.write_text("x")
    os.utime(path, ns=(0, 0))
    first = path.stat().st_ctime_ns
    next_tick_ns()
    path.chmod(0o600)
    second = path.stat().st_ctime_ns
    assert 0 < first < second
    path.rename(site.mount / "ctime2")
    assert (site.mount / "ctime2").stat().st_ctime_ns >= second


# Special files, privileges, space


def test_special_files_exist_in_both_mounts(site: Site) -> None:
    os.mkfifo(site.mount / "fifo", 0o640)
    os.mknod(site.mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(site.mount / "disk", stat.S_IFBLK | 0o660, os.makedev(4095, 1_048_575))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(site.mount / "sock"))
    for name, letter, device in (
        ("fifo", "p", 0),
        ("null", "c", os.makedev(1, 3)),
        ("disk", "b", os.makedev(4095, 1_048_575)),
        ("sock", "s", 0),
    ):
        for path in (site.mount / name, site.see(name)):
            info = path.lstat()
            assert stat.filemode(info.st_mode)[0] == letter
            assert info.st_rdev == device
    with pytest.raises(PermissionError):  # nodev
        (site.mount / "null").read_bytes()
    # A pipe works within one mount: it is the kernel's.
    assert shell("echo through >fifo & cat fifo; wait", cwd=site.mount) == "through\n"


def test_owners_and_writers_take_privileges_away(site: Site) -> None:
    path = site.mount / "setuid"
    path.write_text("x")
    path.chmod(0o6755)
    os.chown(path, 1, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6757)
    shell('setpriv --reuid 65534 --clear-groups sh -c "echo more >>$1"', path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o757
    assert stat.S_IMODE(site.see("setuid").stat().st_mode) == 0o757


def test_as_much_can_be_written_as_the_local_disk_takes(site: Site) -> None:
    """S3 has no size, but what is written lies on that disk until S3 has it; df shows nothing as used."""
    info = os.statvfs(site.mount)
    assert info.f_blocks * info.f_frsize == info.f_bfree * info.f_frsize == 1 << 50
    disk = os.statvfs(site.daemon.state_dir)
    # Others use that disk, too, meanwhile.
    available, disk_available = info.f_bavail * info.f_frsize, disk.f_bavail * disk.f_frsize
    assert abs(available - disk_available) < disk.f_blocks * disk.f_frsize // 10
    size, used, percent = run("df", "--output=size,used,pcent", site.mount).splitlines()[1].split()
    assert (int(size), int(used), percent) == (1 << 40, 0, "0%")
    assert info.f_favail == info.f_files > 0
    assert info.f_namemax == 255
