"""Finds the slot through which a loaded module calls a function of another library, and puts another function there.

Nothing is guessed: the slot is found by its relocation in the ELF file as it is loaded, and it must hold the address of that
function. Where anything is not as expected, `Unexpected` is raised and nothing was touched.
"""

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_RELOCATIONS: Final = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
"""By machine: the types GLOB_DAT and JUMP_SLOT."""
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = (
    0,
    2,
    5,
    6,
    7,
    8,
    23,
)
_DYNAMIC: Final = struct.Struct("<qQ")
_RELA: Final = struct.Struct("<QQq")
_SYMBOL_BYTES: Final = 24
_RTLD_DI_LINKMAP: Final = 2
_PROT_READ, _PROT_WRITE = 1, 2


class Unexpected(Exception):
    """Something is not as it must be for a slot to be replaced."""


def find_slot(module: ctypes.PyDLL, symbol: bytes) -> int:
    """Return the address of the slot through which a loaded module calls *symbol*. Raises `Unexpected`: there is not one."""
    machine = platform.machine()
    if machine not in _RELOCATIONS or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise Unexpected(f"the ELF of {machine} is not known")
    base, entries = _dynamic_section(module)

    def pointer(tag: int) -> int:
        value = entries.get(tag, 0)
        return (
            value if value >= base else value + base
        )  # the loader has made it absolute, or has not

    found = {
        base + offset
        for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ))
        if table in entries and size in entries
        for offset, info, _ in _RELA.iter_unpack(ctypes.string_at(pointer(table), entries[size]))
        if info & 0xFFFFFFFF in _RELOCATIONS[machine]
        and _symbol_name(pointer(_DT_SYMTAB), pointer(_DT_STRTAB), info >> 32) == symbol
    }
    if len(found) != 1:
        raise Unexpected(f"{len(found)} slots of {symbol.decode()}")
    return int(found.pop())


def _dynamic_section(module: ctypes.PyDLL) -> tuple[int, dict[int, int]]:
    """Return a module's load address and its dynamic entries by tag."""
    libc = ctypes.CDLL(None, use_errno=True)
    link_map = ctypes.c_void_p()
    libc.dlinfo(ctypes.c_void_p(module._handle), _RTLD_DI_LINKMAP, ctypes.byref(link_map))
    if link_map.value is None:
        raise Unexpected("the loader does not say where the module is")
    # struct link_map: l_addr, l_name, l_ld
    base, _, at = struct.unpack("<3Q", ctypes.string_at(link_map.value, 24))
    return base, dict(_entries(at))


def _entries(at: int) -> Iterator[tuple[int, int]]:
    while True:
        tag, value = _DYNAMIC.unpack(ctypes.string_at(at, _DYNAMIC.size))
        if tag == _DT_NULL:
            return
        yield tag, value
        at += _DYNAMIC.size


def _symbol_name(symbols: int, strings: int, index: int) -> bytes:
    (offset,) = struct.unpack("<I", ctypes.string_at(symbols + index * _SYMBOL_BYTES, 4))
    return ctypes.string_at(strings + offset)


def write_slot(slot: int, value: int) -> None:
    """Store *value* at *slot*, also where the loader has made the page read-only after it had filled it."""
    page = slot & -mmap.PAGESIZE
    is_writable = _is_writable(slot)
    if not is_writable:
        _protect(page, _PROT_READ | _PROT_WRITE)
    ctypes.c_uint64.from_address(slot).value = value
    if not is_writable:
        _protect(page, _PROT_READ)


def _is_writable(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights = line.split()[:2]
        first, last = (int(text, 16) for text in place.split("-"))
        if first <= address < last:
            return "w" in rights
    raise Unexpected("the slot is in no mapping")


def _protect(page: int, rights: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), rights) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
