"""One bucket, mounted by s3mgr and by s3fs-fuse: each shows what the other wrote, modes, owners, times, links, xattrs."""

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from s3mgrd.fuse import syscalls
from s3mgrd.fuse.mountinfo import read_mountinfo
from tests.e2e.lab import Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

MTIME_NS: Final = 1_234_567_890_987_654_321


@dataclass(frozen=True)
class Site:
    """A bucket mounted by both. `client` is boto3's."""

    daemon: Daemon
    client: Any  # boto3 is untyped
    bucket: str
    ours: Path
    theirs: Path

    def settle(self) -> None:
        """Have S3 get what is ours, and ourselves ask S3 anew. s3fs asks always.

        What changes now has another date: S3 tells whole seconds, and a change of metadata has the same ETag.
        """
        self.daemon.flush("m")
        self.daemon.api.invalidate_mount("m")
        second = int(time.time())
        wait_for("another second", lambda: int(time.time()) > second)

    def metadata(self, key: str) -> dict[str, str]:
        """Return an object's user metadata."""
        found: dict[str, str] = self.client.head_object(Bucket=self.bucket, Key=key)["Metadata"]
        return found


@pytest.fixture(scope="module", params=["lazy", "full"])
def site(request: pytest.FixtureRequest, ministack: Endpoint, module_lab: Lab) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    name = f"s3fs-{request.param}"
    theirs = module_lab.directory(name)
    passwords = module_lab.base / f"{name}.passwd"
    passwords.write_text(f"{ministack.access_key}:{ministack.secret_key}\n")
    passwords.chmod(0o600)
    daemon = module_lab.daemon(f"d-{request.param}")
    module_lab.program(
        "s3fs",
        *(bucket, theirs, "-f"),
        *("-o", f"url={ministack.url},endpoint={ministack.region},passwd_file={passwords}"),
        *("-o", "use_path_request_style,use_xattr,max_stat_cache_size=0"),
    )
    try:
        wait_for("s3fs has mounted", lambda: is_mounted(theirs))
        ours = daemon.mount(ministack, bucket, "m", "-o", f"attributes={request.param}")
        yield Site(daemon, client, bucket, ours, theirs)
    finally:
        if is_mounted(theirs):
            syscalls.unmount(str(theirs), lazy=True)
        daemon.run("unmount", "m", "--discard", check=False)
        remove_bucket(client, bucket)
        client.close()


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there."""
    return any(entry.mountpoint == str(path) for entry in read_mountinfo())


def make(directory: Path) -> None:
    """Make one of each kind, with attributes of its own."""
    file = directory / "file"
    file.write_text("content")
    os.chown(file, 1234, 5678)
    file.chmod(0o640)
    os.setxattr(file, "user.one", b"\x00\xff value")
    os.setxattr(file, "user.two", b"2")
    os.utime(file, ns=(MTIME_NS, MTIME_NS))
    (directory / "empty").touch(mode=0o600)
    os.symlink("some/where else", directory / "link")
    os.lchown(directory / "link", 7, 8)
    os.mkfifo(directory / "fifo", 0o620)
    below = directory / "dir"
    below.mkdir()
    below.chmod(0o1750)
    os.chown(below, 11, 12)
    os.setxattr(below, "user.dir", b"of a directory")
    (below / "inside").write_text("deep")


def described(directory: Path) -> dict[str, tuple[object, ...]]:
    """Describe what `make` made."""
    found: dict[str, tuple[object, ...]] = {}
    for name in ("file", "empty", "link", "fifo", "dir", "dir/inside"):
        path = directory / name
        info = path.lstat()
        is_plain = stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)
        found[name] = (
            stat.filemode(info.st_mode),
            info.st_uid,
            info.st_gid,
            info.st_size if stat.S_ISREG(info.st_mode) else 0,
            info.st_mtime_ns if name == "file" else 0,
            sorted((x, os.getxattr(path, x)) for x in os.listxattr(path)) if is_plain else [],
            os.readlink(path) if stat.S_ISLNK(info.st_mode) else "",
            path.read_text() if stat.S_ISREG(info.st_mode) else "",
        )
    return found


def test_what_s3fs_writes_is_shown(site: Site) -> None:
    (site.theirs / "by-s3fs").mkdir(mode=0o755)
    make(site.theirs / "by-s3fs")
    site.settle()
    assert sorted(os.listdir(site.ours / "by-s3fs")) == ["dir", "empty", "fifo", "file", "link"]
    assert described(site.ours / "by-s3fs") == described(site.theirs / "by-s3fs")
    assert described(site.ours / "by-s3fs")["file"][:5] == ("-rw-r-----", 1234, 5678, 7, MTIME_NS)


def test_what_we_write_is_shown_by_s3fs(site: Site) -> None:
    (site.ours / "by-us").mkdir(mode=0o755)
    make(site.ours / "by-us")
    site.settle()
    assert sorted(os.listdir(site.theirs / "by-us")) == ["dir", "empty", "fifo", "file", "link"]
    assert described(site.theirs / "by-us") == described(site.ours / "by-us")
    assert described(site.theirs / "by-us")["dir"][:3] == ("drwxr-x--T", 11, 12)


def test_each_changes_what_the_other_wrote(site: Site) -> None:
    """And what the one changes last, the other shows."""
    for first, second, name in ((site.ours, site.theirs, "a"), (site.theirs, site.ours, "b")):
        (first / name).write_text("one")
        os.setxattr(first / name, "user.first", b"1")
        site.settle()
        assert (second / name).read_text() == "one"
        (second / name).chmod(0o711)
        os.setxattr(second / name, "user.second", b"2")
        os.utime(second / name, ns=(MTIME_NS, MTIME_NS))
        site.settle()
        for path in (first / name, second / name):
            info = path.stat()
            assert (stat.filemode(info.st_mode), info.st_mtime_ns) == ("-rwx--x--x", MTIME_NS)
            assert {x: os.getxattr(path, x) for x in os.listxattr(path)} == {
                "user.first": b"1",
                "user.second": b"2",
            }
            assert path.read_text() == "one"


def test_directories_change_by_either(site: Site) -> None:
    for first, second, name in ((site.ours, site.theirs, "da"), (site.theirs, site.ours, "db")):
        (first / name).mkdir()
        (first / name / "inside").write_text("x")
        site.settle()
        assert os.listdir(second / name) == ["inside"]
        (second / name).chmod(0o711)
        os.setxattr(second / name, "user.second", b"2")
        site.settle()
        os.listdir(first / name)
        site.settle()
        os.listdir(first)
        for path in (first / name, second / name):
            assert stat.filemode(path.stat().st_mode) == "drwx--x--x"
            assert os.getxattr(path, "user.second") == b"2"


def test_a_rename_and_an_edit_by_either_keep_the_others_attributes(site: Site) -> None:
    for first, second, name in ((site.ours, site.theirs, "c"), (site.theirs, site.ours, "d")):
        (first / name).write_text("one")
        (first / name).chmod(0o604)
        os.setxattr(first / name, "user.first", b"1")
        site.settle()
        (second / name).rename(second / f"{name}2")
        with (second / f"{name}2").open("a") as file:
            file.write(" more")
        site.settle()
        path = first / f"{name}2"
        assert path.read_text() == "one more"
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
        assert os.getxattr(path, "user.first") == b"1"


def test_the_metadata_is_the_same_to_the_letter(site: Site) -> None:
    """What s3fs writes of a file is what we write of it."""
    for directory, name in ((site.theirs, "letter-theirs"), (site.ours, "letter-ours")):
        path = directory / name
        path.write_text("content")
        path.chmod(0o640)
        os.chown(path, 1, 2)
        os.setxattr(path, "user.a", bytes(range(256)))
        os.setxattr(path, "user.B-c_d.e~f", b"?>?>")
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    site.settle()
    theirs, ours = site.metadata("letter-theirs"), site.metadata("letter-ours")
    names = {"mode", "uid", "gid", "mtime", "atime", "xattr"}
    assert {n: ours[n] for n in names} == {n: theirs[n] for n in names}
    assert ours.keys() == theirs.keys()


def test_other_tools_objects(site: Site) -> None:
    """Rclone's mtime, Hadoop's markers, plain objects of boto3 and mountpoint-s3."""
    put = site.client.put_object
    put(Bucket=site.bucket, Key="tools/rclone", Body=b"1", Metadata={"mtime": "1354040105.1234"})
    put(Bucket=site.bucket, Key="tools/plain", Body=b"22", ContentType="text/plain")
    put(Bucket=site.bucket, Key="tools/mountpoint/", Body=b"")
    put(Bucket=site.bucket, Key="tools/old_$folder$", Body=b"")
    put(Bucket=site.bucket, Key="tools/old/inside", Body=b"")
    site.settle()
    directory = site.ours / "tools"
    assert sorted(os.listdir(directory)) == ["mountpoint", "old", "old_$folder$", "plain", "rclone"]
    assert (directory / "mountpoint").is_dir()
    assert (directory / "old").is_dir()
    assert (directory / "old_$folder$").is_file()
    plain = (directory / "plain").stat()
    modified = site.client.head_object(Bucket=site.bucket, Key="tools/plain")["LastModified"]
    assert int(plain.st_mtime) == int(modified.timestamp())
    assert stat.filemode(plain.st_mode) == "-rw-r--r--"
    if "attributes=full" in site.daemon.run("show", "m").stdout or site.theirs.name.endswith(
        "full"
    ):
        assert (directory / "rclone").stat().st_mtime_ns == 1_354_040_105_123_400_000


def test_s3fs_is_the_version_tested() -> None:
    """Debian's; another may write another format."""
    version = subprocess.run(["s3fs", "--version"], capture_output=True, text=True, check=True)
    assert "V1." in version.stdout
