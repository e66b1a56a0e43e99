"""What systemd is asked to hold, and what is made of what it gives back."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgrd.fdstore import FUSE, RING, SystemdStore, name_of, parse_name
from s3mgrd.notify import FIRST_PASSED_FD, Notifier
from s3mgrd.worker.protocol import Descriptors

DESCRIBED = Descriptors(
    connection_id="1d3c9f2e-0000-4000-8000-0123456789ab",
    flags=0xFFFF_FFFF,
    flags2=0x8000_0001,
    max_write=1 << 20,
    minor=45,
)


class Systemd:
    """The manager's end of the notification socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def told(self) -> list[tuple[str, int]]:
        """The messages so far, and how many descriptors came with each."""
        messages: list[tuple[str, int]] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
            except BlockingIOError:
                return messages
            messages.append((data.decode(), len(fds)))
            for fd in fds:
                os.close(fd)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    manager = Systemd(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def null() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def names_of(mount: str, described: Descriptors = DESCRIBED) -> list[str]:
    return [name_of(FUSE, mount, described), name_of(RING, mount, described)]


def given(systemd: Systemd, *names: str) -> tuple[SystemdStore, list[int]]:
    """A store whose daemon was started with descriptors of these names."""
    fds = [null() for _ in names]
    return SystemdStore(Notifier(systemd.path, None, list(zip(names, fds, strict=True)))), fds


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_name_says_all_and_is_one_that_systemd_takes() -> None:
    """At most 255 bytes of ASCII without control characters and colons (fdname_is_valid)."""
    name = name_of(RING, "m" * 63, DESCRIBED)
    assert parse_name(name) == (RING, "m" * 63, DESCRIBED)
    assert len(name) <= 255
    assert name.isascii()
    assert name.isprintable()
    assert ":" not in name


@pytest.mark.parametrize(
    "name", ["", "stored", "fuse,m,id,1,2,3", "fuse,m,id,1,2,3,z", "x,m,i,1,2,3,4"]
)
def test_other_names_are_none_of_ours(name: str) -> None:
    assert parse_name(name) is None


async def test_a_connection_is_stored_once_and_removed(systemd: Systemd) -> None:
    store = SystemdStore(Notifier(systemd.path, None))
    fuse, ring = null(), null()
    await store.put("m", DESCRIBED, fuse, ring)
    await store.put("m", DESCRIBED, fuse, ring)
    name, second = names_of("m")
    assert systemd.told() == [
        (f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", 1),
        (f"FDSTORE=1\nFDNAME={second}\nFDPOLL=0", 1),
    ]
    assert is_open(fuse)
    await store.remove("m")
    await store.remove("m")
    assert systemd.told() == [
        (f"FDSTOREREMOVE=1\nFDNAME={name}", 0),
        (f"FDSTOREREMOVE=1\nFDNAME={second}", 0),
    ]
    os.close(fuse)
    os.close(ring)


async def test_what_systemd_gives_back_is_taken_once_and_stays_stored(systemd: Systemd) -> None:
    store, fds = given(systemd, *names_of("m"))
    assert store.take("other") is None
    taken = store.take("m")
    assert taken == (DESCRIBED, *fds)
    assert store.take("m") is None
    await store.put("m", DESCRIBED, *fds)
    assert systemd.told() == []
    for fd in fds:
        os.close(fd)


async def test_a_connection_that_was_found_otherwise_is_not_kept_open_twice(
    systemd: Systemd,
) -> None:
    """A worker lived, or a keeper: what systemd gave is closed, what it holds stays."""
    store, fds = given(systemd, *names_of("m"))
    found = null(), null()
    await store.put("m", DESCRIBED, *found)
    assert not any(map(is_open, fds))
    assert systemd.told() == []
    for fd in found:
        os.close(fd)


async def test_another_connection_takes_the_place_of_the_one_before(systemd: Systemd) -> None:
    store, fds = given(systemd, *names_of("m"))
    other = Descriptors(connection_id="other", flags=1, flags2=2, max_write=3, minor=4)
    found = null(), null()
    await store.put("m", other, *found)
    assert not any(map(is_open, fds))
    assert [text.partition("\n")[0] for text, _ in systemd.told()] == [
        *["FDSTOREREMOVE=1"] * 2,
        *["FDSTORE=1"] * 2,
    ]
    for fd in found:
        os.close(fd)


@pytest.mark.parametrize(
    "names",
    [
        names_of("m")[:1],
        names_of("m")[1:],
        [
            *names_of("m"),
            *names_of("m", Descriptors(connection_id="2", flags=1, flags2=1, max_write=1, minor=1)),
        ],
    ],
    ids=["no ring", "no connection", "two connections"],
)
async def test_half_a_connection_and_two_are_none(systemd: Systemd, names: list[str]) -> None:
    store, fds = given(systemd, *names)
    assert store.take("m") is None
    await store.remove("m")
    assert not any(map(is_open, fds))
    assert len(systemd.told()) == len(names)


async def test_a_connection_that_has_ended_is_not_taken(systemd: Systemd) -> None:
    """It tells so by an error condition, as a pipe does that nobody reads."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    fuse, ring = names_of("m")
    store = SystemdStore(Notifier(systemd.path, None, [(fuse, write_fd), (ring, null())]))
    assert store.take("m") is None
    await store.remove("m")
    assert not is_open(write_fd)


async def test_what_belongs_to_no_mount_is_closed_and_removed(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    store, fds = given(systemd, *names_of("m"), *names_of("gone"), "stored")
    await store.keep_only(["m"])
    assert [is_open(fd) for fd in fds] == [True, True, False, False, False]
    assert [text.partition("\n")[2] for text, _ in systemd.told()] == [
        f"FDNAME={name}" for name in (*names_of("gone"), "stored")
    ]
    assert store.take("m") is not None
    for fd in fds[:2]:
        os.close(fd)


async def test_without_systemd_nothing_is_stored() -> None:
    store = SystemdStore(Notifier(None, None))
    await store.put("m", DESCRIBED, -1, -1)
    assert store.take("m") is None
    await store.remove("m")


def test_descriptors_that_are_meant_for_another_process_are_none_of_ours() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "stored", "FDSTORE": "8"}
    assert Notifier.from_environment(environ).take_descriptors() == []
    assert environ == {}


def test_descriptors_are_passed_from_the_third_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no child inherits them."""
    first = null()
    monkeypatch.setattr("s3mgrd.notify.FIRST_PASSED_FD", first)
    os.set_inheritable(first, True)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}
    notifier = Notifier.from_environment(environ)
    assert notifier.take_descriptors() == [("a", first)]
    assert notifier.take_descriptors() == []
    assert not os.get_inheritable(first)
    os.close(first)
    assert FIRST_PASSED_FD == 3
