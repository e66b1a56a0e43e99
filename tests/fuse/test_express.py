"""The way past pyfuse3: slots are found for certain, or left alone; requests are read as the kernel's header has them."""

import ctypes
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from struct import Struct
from typing import Any, Final

import pyfuse3
import pytest

from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fuse import abi
from s3mgrd.worker import receiving
from s3mgrd.worker.express import Lane
from s3mgrd.worker.slots import Unexpected, find_slot

SYMBOL: Final = receiving.RECEIVE
UNIQUE: Final = 7 | abi.UNIQUE_RESEND
THREAD: Final = 99


def test_the_slot_holds_the_function_that_it_is_for() -> None:
    """Other functions of libfuse are found as well, each in a slot of its own."""
    module = ctypes.PyDLL(pyfuse3.__file__)
    slots = set()
    for name in ("fuse_reply_err", "fuse_reply_attr", "fuse_reply_entry"):
        slot = find_slot(module, name.encode())
        address = ctypes.cast(getattr(module, name), ctypes.c_void_p).value
        assert ctypes.c_uint64.from_address(slot).value == address
        slots.add(slot)
    assert len(slots) == 3


def test_what_a_module_does_not_call_has_no_slot() -> None:
    """Then there is nothing to replace."""
    with pytest.raises(Unexpected, match="0 slots"):
        find_slot(ctypes.PyDLL(pyfuse3.__file__), b"fuse_reply_ioctl")


def test_an_unknown_machine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relocations have other numbers."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Unexpected, match="riscv64"):
        find_slot(ctypes.PyDLL(pyfuse3.__file__), SYMBOL)


def test_where_it_cannot_be_done_the_log_says_so_and_nothing_is_touched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests then go to pyfuse3, as they always could."""
    slot = find_slot(module := ctypes.PyDLL(pyfuse3.__file__), SYMBOL)
    before = ctypes.c_uint64.from_address(slot).value
    monkeypatch.setattr(receiving, "HAND_OVER", b"fuse_session_begin")
    monkeypatch.setattr(receiving, "_kept", [])
    with caplog.at_level(logging.WARNING):
        assert receiving.install() is None
    assert "libfuse cannot be told" in caplog.text
    assert ctypes.c_uint64.from_address(find_slot(module, SYMBOL)).value == before


def test_it_can_be_done_here_also_where_the_loader_protects_the_slot() -> None:
    """In a process of its own, since it cannot be undone; `BIND_NOW` is what hardened builds ask for."""
    program = (
        "from s3mgrd.worker import receiving as r; assert r.install() is r.install() is not None"
    )
    for variables in ({}, {"LD_BIND_NOW": "1"}):
        subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | variables)


def test_requests_are_read_as_the_headers_have_them(tmp_path: Path) -> None:
    """The compiler says where each field is; it is here because pyfuse3 was built."""
    sizes: dict[str, Struct] = {
        "fuse_in_header": abi.IN_HEADER,
        "fuse_out_header": abi.OUT_HEADER,
        "fuse_open_in": abi.OPEN_IN,
        "fuse_create_in": abi.CREATE_IN,
        "fuse_mkdir_in": abi.MKDIR_IN,
        "fuse_write_in": abi.WRITE_IN,
    }
    places = {
        ("fuse_release_in", "fh"): 0,
        ("fuse_flush_in", "fh"): 0,
        ("fuse_read_in", "offset"): 8,
        ("fuse_read_in", "size"): 16,
        ("fuse_setattr_in", "mtime"): 40,
        ("fuse_setattr_in", "ctimensec"): abi.SETATTR_IN.size - 8,
        ("fuse_setattr_in", "mode"): abi.SETATTR_IN.size - 4,
    }
    constants = {f"FUSE_{opcode.name}": int(opcode) for opcode in abi.Opcode} | {
        name: getattr(abi, name) for name in vars(abi) if name.startswith("FATTR_")
    }
    checks = [f"sizeof(struct {name}) == {struct.size}" for name, struct in sizes.items()]
    checks += [f"offsetof(struct {name}, {field}) == {n}" for (name, field), n in places.items()]
    checks += [f"{name} == {value}" for name, value in constants.items()]
    checks += [f"sizeof(struct fuse_getxattr_in) == {abi.GETXATTR_NAME_OFFSET}"]
    of_libfuse = {"size": receiving.SIZE_OFFSET, "mem": receiving.MEMORY_OFFSET}
    checks += [f"offsetof(struct fuse_buf, {name}) == {n}" for name, n in of_libfuse.items()]
    source = tmp_path / "places.c"
    source.write_text(
        "#define FUSE_USE_VERSION 32\n#include <stddef.h>\n#include <fuse3/fuse_lowlevel.h>\n"
        "#include <linux/fuse.h>\n"
        + "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
    )
    done = subprocess.run(
        ["cc", "-D_FILE_OFFSET_BITS=64", "-fsyntax-only", source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Asked:
    """Stands for `Express`: notes what it is asked, and gives one answer to everything."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.calls: list[tuple[object, ...]] = []
        self.kept: Callable[[], object] | None = None

    @property
    def requests(self) -> list[tuple[object, ...]]:
        return [call for call in self.calls if call != ("answered",)]

    def when_kept(self, reply: Callable[[], object]) -> None:
        self.kept = reply

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*args: object) -> object:
            copies = [bytes(a) if isinstance(a, memoryview) else a for a in args]
            self.calls.append((name, *copies))
            return self.answer

        return call


def a_request(opcode: int, body: bytes = b"", *, inode: int = 5) -> memoryview:
    """Write a request as the kernel does."""
    size = abi.IN_HEADER.size + len(body)
    return memoryview(
        abi.IN_HEADER.pack(size, opcode, UNIQUE, inode, 1000, 100, THREAD, 0, 0) + body
    )


Make = Callable[[object], tuple[Lane, Asked, int]]


@pytest.fixture
def lane() -> Iterator[Make]:
    """Make lanes that have an answer, with what they ask, and where their replies can be read."""
    with ExitStack() as opened:

        def make(answer: object) -> tuple[Lane, Asked, int]:
            read, write = os.pipe()
            opened.callback(os.close, read)
            opened.callback(os.close, write)
            asked = Asked(answer)
            express: Any = asked
            return Lane(express, write), asked, read

        yield make


CALLER = (1000, 100, THREAD, 0o640)
BODIES: Final = {
    abi.Opcode.LOOKUP: (b"a b\0", ("lookup", 5, b"a b")),
    abi.Opcode.GETATTR: (bytes(16), ("getattr", 5)),
    abi.Opcode.SETATTR: (
        abi.SETATTR_IN.pack(0x460, 0, 3, 0, 0, 0, 11, 12, 0, 13, 14, 0) + bytes(16),
        ("setattr", 5, AttributeChange(mtime_ns=11_000_000_013, ctime_ns=12_000_000_014)),
    ),
    abi.Opcode.MKDIR: (abi.MKDIR_IN.pack(0o666, 0o027) + b"d\0", ("mkdir", 5, b"d", CALLER)),
    abi.Opcode.CREATE: (
        abi.CREATE_IN.pack(os.O_WRONLY, 0o666, 0o027, 0) + b"f\0extension",
        ("create", 5, b"f", os.O_WRONLY, CALLER),
    ),
    abi.Opcode.UNLINK: (b"f\0", ("unlink", 5, b"f", THREAD)),
    abi.Opcode.RENAME: (
        abi.RENAME_IN.pack(6) + b"old\0new\0",
        ("rename", 5, b"old", 6, b"new", 0, THREAD),
    ),
    abi.Opcode.RENAME2: (
        abi.RENAME2_IN.pack(6, 1, 0) + b"old\0new\0",
        ("rename", 5, b"old", 6, b"new", 1, THREAD),
    ),
    abi.Opcode.GETXATTR: (bytes(8) + b"security.x\0", ("getxattr", b"security.x")),
    abi.Opcode.OPEN: (abi.OPEN_IN.pack(os.O_RDWR, 0), ("open", 5, os.O_RDWR)),
    abi.Opcode.READ: (abi.READ_IN.pack(3, 4096, 512) + bytes(20), ("read", 3, 4096, 512)),
    abi.Opcode.WRITE: (
        abi.WRITE_IN.pack(3, 4096, 5, 0, 0, 0, 0) + b"bytes",
        ("write", 3, 4096, b"bytes"),
    ),
    abi.Opcode.FLUSH: (abi.HANDLE_IN.pack(3) + bytes(16), ("flush", 3)),
    abi.Opcode.RELEASE: (abi.HANDLE_IN.pack(3) + bytes(16), ("release", 3)),
    abi.Opcode.OPENDIR: (abi.OPEN_IN.pack(0, 0), ("opendir", 5)),
    abi.Opcode.RELEASEDIR: (abi.HANDLE_IN.pack(3) + bytes(16), ("releasedir", 3)),
    abi.Opcode.READDIRPLUS: (abi.READ_IN.pack(3, 77, 4096) + bytes(20), ("readdir", 3, 77, 4096)),
}


@pytest.mark.parametrize("opcode", BODIES, ids=lambda opcode: opcode.name)
def test_a_request_is_asked_with_all_it_says_and_answered_under_its_own_number(
    opcode: abi.Opcode, lane: Make
) -> None:
    """The mark of a request that the kernel sends again belongs to its number. Nobody waits for RELEASE: it is kept first."""
    body, expected = BODIES[opcode]
    answers, asked, replies = lane(b"answer")
    assert answers(a_request(opcode, body))
    assert asked.calls == [expected, ("answered",), *asked.calls[2:]]
    if opcode == abi.Opcode.RELEASE:
        assert asked.kept is not None
        os.set_blocking(replies, False)
        with pytest.raises(BlockingIOError):
            os.read(replies, 1)
        asked.kept()
    assert os.read(replies, 100) == abi.OUT_HEADER.pack(22, 0, UNIQUE) + b"answer"


@pytest.mark.parametrize("opcode", BODIES, ids=lambda opcode: opcode.name)
def test_what_is_not_answered_is_left_to_libfuse(opcode: abi.Opcode, lane: Make) -> None:
    """Nothing is written."""
    answers, _, replies = lane(None)
    assert not answers(a_request(opcode, BODIES[opcode][0]))
    os.set_blocking(replies, False)
    with pytest.raises(BlockingIOError):
        os.read(replies, 1)


def test_an_errno_and_pieces_are_answers_too(lane: Make) -> None:
    """Bytes of a file are sent from where they lie."""
    request = a_request(abi.Opcode.READ, abi.READ_IN.pack(3, 0, 9))
    answers, _, replies = lane(2)
    assert answers(request)
    assert os.read(replies, 100) == abi.OUT_HEADER.pack(16, -2, UNIQUE)
    answers, _, replies = lane([memoryview(b"some "), memoryview(b"more")])
    assert answers(request)
    assert os.read(replies, 100) == abi.OUT_HEADER.pack(25, 0, UNIQUE) + b"some more"


@pytest.mark.parametrize(
    ("valid", "change"),
    [
        (abi.FATTR_MODE, AttributeChange(mode=0o4640)),
        (abi.FATTR_MODE | 0x640, AttributeChange(mode=0o4640, ctime_ns=12_000_000_014)),
        (0x30, AttributeChange(atime_ns=-9_999_999_988, mtime_ns=11_000_000_013)),
    ],
)
def test_modes_and_times_are_read_as_the_kernel_says_them(
    lane: Make, valid: int, change: AttributeChange
) -> None:
    """Also from before 1970."""
    answers, asked, _ = lane(b"answer")
    body = abi.SETATTR_IN.pack(valid, 0, 3, 0, 0, -10, 11, 12, 12, 13, 14, 0o104640)
    assert answers(a_request(abi.Opcode.SETATTR, body))
    assert asked.requests == [("setattr", 5, change)]


def test_a_setattr_of_owners_sizes_and_the_present_is_left_to_libfuse(lane: Make) -> None:
    """Nor is one that sets nothing, with which privileges go, answered here."""
    for valid in (0, 0x400, 0x402, 0x405, 0x468, 0xB0, 0x130):
        answers, asked, _ = lane(b"answer")
        body = abi.SETATTR_IN.pack(valid, 0, 3, 0, 0, 0, 11, 12, 0, 13, 14, 0)
        assert not answers(a_request(abi.Opcode.SETATTR, body))
        assert not asked.requests


def test_a_request_nobody_knows_and_a_short_write_are_left_to_libfuse(lane: Make) -> None:
    """It says what is wrong with them."""
    answers, asked, _ = lane(b"answer")
    assert not answers(a_request(4711))
    assert not answers(a_request(abi.Opcode.WRITE, abi.WRITE_IN.pack(3, 0, 9, 0, 0, 0, 0) + b"8"))
    assert not asked.requests


@pytest.mark.parametrize(
    ("opcode", "name"), [(abi.Opcode.OPENDIR, "interrupted"), (abi.Opcode.CREATE, "not_created")]
)
def test_an_answer_that_nobody_takes_any_more_is_taken_back(
    opcode: abi.Opcode, name: str, lane: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked was killed: the kernel says ENOENT to the reply, and will never close what it opened."""

    def gone(*_: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    answers, asked, _ = lane(b"answer")
    monkeypatch.setattr("s3mgrd.worker.express.os.write", gone)
    assert answers(a_request(opcode, BODIES[opcode][0]))
    assert asked.calls[1] == (name, b"answer")


def test_a_request_that_vanished_is_done_with() -> None:
    """Its caller was killed between the look and the read, which therefore must not block."""
    program = (
        "import os, sys; from s3mgrd.worker import receiving\n"
        "receiver, (read, write) = receiving.install(), os.pipe()\n"
        "os.set_blocking(read, False)\n"
        "assert receiver.take(read, None) is None\n"
        "os.write(write, b'request')\n"
        "assert not receiver.take(read, lambda request: bytes(request) != b'request')\n"
        "os.write(write, b'request')\n"
        "assert receiver.take(read, lambda request: bytes(request) == b'request')\n"
        "assert receiver.take(write, None) is False\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
