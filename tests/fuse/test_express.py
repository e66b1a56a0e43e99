"""The way past pyfuse3: the slot through which it starts sessions is found for certain, or left alone."""

import ctypes
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyfuse3
import pytest

from s3mgrd.worker import express
from s3mgrd.worker.slots import Unexpected, find_slot

SYMBOL = express.SYMBOLS[0]


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
    monkeypatch.setattr(express, "SYMBOLS", (b"fuse_session_begin",))
    nobody: Any = None
    with caplog.at_level(logging.WARNING):
        assert not express.install(nobody)
    assert "by another name" in caplog.text
    assert ctypes.c_uint64.from_address(find_slot(module, SYMBOL)).value == before


def test_it_can_be_done_here_also_where_the_loader_protects_the_slot() -> None:
    """In a process of its own, since it cannot be undone; `BIND_NOW` is what hardened builds ask for."""
    program = "from s3mgrd.worker import express as e; assert e.install(None) and len(e._kept) == 1"
    for variables in ({}, {"LD_BIND_NOW": "1"}):
        subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | variables)


def test_handlers_are_where_the_header_of_libfuse_has_them(tmp_path: Path) -> None:
    """The compiler says where; it is here because pyfuse3 was built."""
    places = {
        "lookup": express._LOOKUP,
        "getattr": express._GETATTR,
        "open": express._OPEN,
        "read": express._READ,
        "write_buf": express._WRITE_BUF,
        "flush": express._FLUSH,
        "release": express._RELEASE,
        "opendir": express._OPENDIR,
        "releasedir": express._RELEASEDIR,
        "readdirplus": express._READDIRPLUS,
    }
    checks = "".join(
        f"_Static_assert(offsetof(struct fuse_lowlevel_ops, {name}) == {place} * 8, "
        f'"{name} is elsewhere");\n'
        for name, place in places.items()
    )
    source = tmp_path / "places.c"
    checks += (
        f"_Static_assert(offsetof(struct fuse_file_info, fh) == {express._FH_OFFSET}, "
        '"fh is elsewhere");\n'
    )
    for name, place in (("count", 0), ("idx", 8), ("off", 16), ("buf[0].size", 24),
                        ("buf[0].flags", 32), ("buf[0].mem", 40)):  # fmt: skip
        checks += (
            f"_Static_assert(offsetof(struct fuse_bufvec, {name}) == {place}, "
            f'"{name} is elsewhere");\n'
        )
    assert express._BUFFERS.size == 48
    source.write_text(
        "#define FUSE_USE_VERSION 32\n#include <stddef.h>\n#include <fuse3/fuse_lowlevel.h>\n"
        + checks
    )
    done = subprocess.run(
        ["cc", "-D_FILE_OFFSET_BITS=64", "-fsyntax-only", source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
