"""What programs do with open files, on one real mount: appending, holes, mappings, O_DIRECT, locks, and what S3 has of it."""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.lab import Daemon, Lab
from tests.e2e.posix import ALICE, BOB, FREE, User, refusal
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

PAGE: Final = mmap.PAGESIZE
RECORDS: Final = 200


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    client: Any
    bucket: str
    mount: Path

    def stored(self, key: str) -> bytes:
        body = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        assert isinstance(body, bytes)
        return body


@pytest.fixture(scope="module")
def site(ministack: Endpoint, module_lab: Lab) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon()
    yield Site(daemon, client, bucket, daemon.mount(ministack, bucket))
    daemon.run("unmount", "m")
    remove_bucket(client, bucket)
    client.close()


# Appending

APPENDER: Final = """
import os, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("ready", flush=True)
sys.stdin.read(1)
for number in range(count):
    record = f"{name}{number:06d}\\n".encode()
    assert os.write(fd, record) == len(record)
os.close(fd)
"""


def test_records_that_two_programs_append_are_all_there_and_whole(site: Site, lab: Lab) -> None:
    path = site.mount / "appended"
    programs = [
        lab.program(sys.executable, "-c", APPENDER, path, name, str(RECORDS)) for name in "ab"
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(b"!")
        program.stdin.flush()
    for program in programs:
        assert program.wait(60) == 0
    for data in (path.read_bytes(), site.stored("appended")):
        lines = data.decode().splitlines()
        for name in "ab":
            own = [line for line in lines if line.startswith(name)]
            assert own == [f"{name}{number:06d}" for number in range(RECORDS)]
        assert len(lines) == 2 * RECORDS


# Holes and sizes


def test_holes_are_data_to_who_asks_and_zeros_in_s3(site: Site) -> None:
    """S3 has no holes: the whole file is one piece of data, which POSIX allows."""
    path = site.mount / "sparse"
    with path.open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"begin", 0)
        os.pwrite(file.fileno(), b"end", 1 << 20)
    size = (1 << 20) + 3
    fd = os.open(path, os.O_RDONLY)
    try:
        for offset in (0, 4096, 1 << 19, size - 1):
            assert os.lseek(fd, offset, os.SEEK_DATA) == offset
            assert os.lseek(fd, offset, os.SEEK_HOLE) == size
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert refusal(os.lseek, fd, size, whence) == errno.ENXIO
        assert os.lseek(fd, 7, os.SEEK_SET) == os.lseek(fd, 0, os.SEEK_CUR) == 7
        assert os.lseek(fd, -3, os.SEEK_END) == 1 << 20
    finally:
        os.close(fd)
    assert site.stored("sparse") == b"begin" + bytes((1 << 20) - 5) + b"end"


def test_space_is_not_allocated_in_advance(site: Site) -> None:
    """fallocate(2) cannot promise anything; posix_fallocate(3) falls back to writing, and the size is right."""
    path = site.mount / "allocated"
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("wb") as file:
        for mode in (0, 1, 3):  # plain; KEEP_SIZE; KEEP_SIZE and PUNCH_HOLE
            begin, length = ctypes.c_int64(0), ctypes.c_int64(10_000)
            assert libc.fallocate(file.fileno(), mode, begin, length) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(file.fileno(), 0, 10_000)
    assert site.stored("allocated") == bytes(10_000)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_file_is_cut_and_grown_in_s3_too(site: Site, *, is_open: bool) -> None:
    path = site.mount / "cut"
    path.write_bytes(b"0123456789")
    for size, wanted in ((4, b"0123"), (6, b"0123\0\0"), (0, b""), (2, b"\0\0")):
        if is_open:
            with path.open("r+b") as file:
                file.truncate(size)
        else:
            os.truncate(path, size)
        assert path.read_bytes() == site.stored("cut") == wanted


# Mappings


def test_what_is_written_through_a_mapping_is_read_at_once_and_in_s3_after_msync_and_close(
    site: Site,
) -> None:
    path = site.mount / "mapped"
    path.write_bytes(bytes(4 * PAGE))
    with path.open("r+b", buffering=0) as file:
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[PAGE - 2 : PAGE + 2] = b"abcd"
            assert path.read_bytes()[PAGE - 2 : PAGE + 2] == b"abcd"
            mapped.flush()  # msync(MS_SYNC), which is fsync() to a file system
            assert site.stored("mapped")[PAGE - 2 : PAGE + 2] == b"abcd"
            mapped[3 * PAGE] = 0x7A
            assert os.pread(file.fileno(), 1, 3 * PAGE) == b"z"
        os.pwrite(file.fileno(), b"w", 2 * PAGE)
    wanted = bytearray(4 * PAGE)
    wanted[PAGE - 2 : PAGE + 2] = b"abcd"
    wanted[2 * PAGE : 2 * PAGE + 1], wanted[3 * PAGE : 3 * PAGE + 1] = b"w", b"z"
    assert path.read_bytes() == site.stored("mapped") == wanted


def test_a_private_mapping_changes_nothing(site: Site) -> None:
    path = site.mount / "private"
    path.write_bytes(b"p" * PAGE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0:3] = b"own"
        assert path.read_bytes()[:3] == b"ppp"
    assert site.stored("private") == b"p" * PAGE


# O_DIRECT


def test_direct_reads_and_writes_need_no_alignment_and_see_what_others_do(site: Site) -> None:
    path = site.mount / "direct"
    data = bytes(range(256)) * 50
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwrite(fd, data, 0) == len(data)
        assert os.pwrite(fd, b"odd", 4095) == 3
        assert os.pwrite(fd, b"tail", len(data) + 1) == 4
        wanted = data[:4095] + b"odd" + data[4098:] + b"\0tail"
        buffer = mmap.mmap(-1, 4 * PAGE)
        assert os.preadv(fd, [buffer], 0) == len(wanted)
        assert buffer[: len(wanted)] == wanted
        assert os.preadv(fd, [bytearray(7)], 4094) == 7
        assert os.pread(fd, 100, len(wanted) - 4) == b"tail"
        assert os.pread(fd, 100, len(wanted)) == b""
        assert path.read_bytes() == wanted  # through the page cache
        with path.open("r+b", buffering=0) as cached:
            cached.write(b"cached")
        assert os.pread(fd, 6, 0) == b"cached"
    finally:
        os.close(fd)
    assert site.stored("direct") == b"cached" + wanted[6:]


# Times


def test_reading_never_changes_the_access_time_nor_anything_in_s3(site: Site) -> None:
    """Whatever the mount options say: an upload or a copy for each file that is read would be no bargain."""
    path = site.mount / "read"
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(1_000_000_000, 2_000_000_000_000_000_000))
    site.daemon.flush()
    before, status = site.client.head_object(Bucket=site.bucket, Key="read"), path.stat()
    assert path.read_bytes() == b"x" * 1000
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:1] == b"x"
    os.listdir(site.mount)
    assert path.stat() == status
    assert site.daemon.show().status.pending_operations == 0
    site.daemon.flush()
    after = site.client.head_object(Bucket=site.bucket, Key="read")
    assert (after["Metadata"], after["LastModified"]) == (
        before["Metadata"],
        before["LastModified"],
    )


# Asking, waiting and locking


@pytest.mark.parametrize(
    ("user", "mode", "wanted"),
    [
        (ALICE, os.F_OK, FREE),
        (ALICE, os.R_OK | os.W_OK, FREE),
        (ALICE, os.X_OK, errno.EACCES),
        (BOB, os.R_OK, FREE),
        (BOB, os.W_OK, errno.EACCES),
        (BOB, os.R_OK | os.W_OK, errno.EACCES),
    ],
)
def test_access_answers_as_open_would(site: Site, user: User, mode: int, wanted: int) -> None:
    path = site.mount / "asked"
    path.write_bytes(b"")
    os.chown(path, ALICE.uid, ALICE.gid)
    path.chmod(0o644)
    answers: list[bool] = []
    refusal(lambda: answers.append(os.access(path, mode)), user=user)
    assert answers == [wanted == FREE]
    flags = {os.R_OK: os.O_RDONLY, os.W_OK: os.O_WRONLY, os.R_OK | os.W_OK: os.O_RDWR}
    if mode in flags:
        assert refusal(lambda: os.close(os.open(path, flags[mode])), user=user) == wanted
    assert not os.access(site.mount / "not there", os.F_OK)


def test_files_are_always_ready(site: Site) -> None:
    path = site.mount / "polled"
    with path.open("w+b") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]


LOCKER: Final = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
kind = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}[sys.argv[3]] | fcntl.LOCK_NB
try:
    if sys.argv[2] == "flock":
        fcntl.flock(fd, kind)
    else:
        fcntl.lockf(fd, kind, 10, int(sys.argv[2]))
except BlockingIOError:
    sys.exit(3)
"""


def _locks(path: Path, how: str, kind: str) -> bool:
    """Whether another process gets a lock: ``flock``, or one of fcntl's on 10 bytes from an offset on."""
    done = subprocess.run([sys.executable, "-c", LOCKER, path, how, kind], check=False)
    assert done.returncode in (0, 3)
    return done.returncode == 0


def test_locks_hold_between_programs_of_one_mount(site: Site) -> None:
    path = site.mount / "locked"
    path.write_bytes(bytes(100))
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not _locks(path, "flock", "shared")
        fcntl.flock(file, fcntl.LOCK_SH)
        assert _locks(path, "flock", "shared")
        assert not _locks(path, "flock", "exclusive")
        fcntl.flock(file, fcntl.LOCK_UN)
        assert _locks(path, "flock", "exclusive")

        fcntl.lockf(file, fcntl.LOCK_EX, 20, 30)
        assert _locks(path, "0", "exclusive")
        assert not _locks(path, "25", "exclusive")
        assert not _locks(path, "45", "shared")
        assert _locks(path, "50", "exclusive")
        fcntl.lockf(file, fcntl.LOCK_UN, 20, 30)
        assert _locks(path, "25", "exclusive")
        fcntl.lockf(file, fcntl.LOCK_EX)
    assert _locks(path, "0", "exclusive")  # closing lets go


# What cannot be


def test_files_without_a_name_cannot_be_made(site: Site) -> None:
    """Programs that want such a file try this first and then make one with a name."""
    assert refusal(os.open, site.mount, os.O_TMPFILE | os.O_RDWR) == errno.EOPNOTSUPP
    (site.mount / "linked").write_bytes(b"x")
    with (site.mount / "linked").open("rb") as file:
        opened = f"/proc/self/fd/{file.fileno()}"
        # With a descriptor os.link() follows the link.
        call = partial(os.link, opened, site.mount / "again", src_dir_fd=file.fileno())
        assert refusal(call) == errno.EPERM
    assert not (site.mount / "again").exists()
