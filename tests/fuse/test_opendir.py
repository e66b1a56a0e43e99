"""The slot through which pyfuse3 replies to opendir: found for certain, or left alone."""

import ctypes
import logging
import os
import platform
import subprocess
import sys

import pyfuse3
import pytest

from s3mgrd.worker import opendir
from s3mgrd.worker.opendir import Unexpected, cache_readdir_bit, find_slot


@pytest.mark.parametrize(
    ("version", "bit"),
    [
        ((3, 5, 0), 6),
        ((3, 14, 0), 6),
        ((3, 14, 1), 7),
        ((3, 16, 2), 7),
        ((3, 17, 0), 6),
        ((3, 18, 1), 6),
    ],
)
def test_the_bit_is_where_that_version_of_libfuse_has_it(
    version: tuple[int, ...], bit: int
) -> None:
    """`parallel_direct_writes` stood before it for two years; include/fuse_common.h of each release says so."""
    assert cache_readdir_bit(version) == 1 << bit


@pytest.mark.parametrize("version", [(2, 9, 9), (3, 4, 2), (4, 0, 0)])
def test_a_libfuse_that_nobody_looked_at_is_left_alone(version: tuple[int, ...]) -> None:
    """Its bits may mean anything."""
    with pytest.raises(Unexpected):
        cache_readdir_bit(version)


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
        find_slot(ctypes.PyDLL(pyfuse3.__file__))


def test_where_it_cannot_be_done_the_log_says_so_and_nothing_is_touched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Directories are then read anew each time."""
    slot = find_slot(module := ctypes.PyDLL(pyfuse3.__file__))
    before = ctypes.c_uint64.from_address(slot).value
    monkeypatch.setattr(opendir, "_kept", [])
    monkeypatch.setattr(opendir, "_version", lambda _: (9, 9))
    with caplog.at_level(logging.WARNING):
        assert not opendir.install()
    assert "libfuse 9.9 is not known" in caplog.text
    assert ctypes.c_uint64.from_address(find_slot(module)).value == before


def test_it_can_be_done_here_also_where_the_loader_protects_the_slot() -> None:
    """In a process of its own, since it cannot be undone; `BIND_NOW` is what hardened builds ask for."""
    program = "from s3mgrd.worker import opendir as o; assert o.install() and o.install() and len(o._kept) == 1"
    for variables in ({}, {"LD_BIND_NOW": "1"}):
        subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | variables)
