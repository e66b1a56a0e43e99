"""Lets a reply to OPENDIR say that the kernel may keep the entries, which pyfuse3 3.5 cannot.

libfuse can: `fuse_file_info` has `cache_readdir` and `keep_cache`, and `fuse_reply_open` sends them. pyfuse3's handler
of opendir takes a number from the file system, puts it into `fuse_file_info.fh` and calls `fuse_reply_open` through a slot
of its global offset table. `install` puts a function of ours into that slot. A handle's number carries the wish in two
bits (`s3mgrd.fs.handles`), which this function turns into the flags and takes out.

The alternatives: a compiled module of our own, which every architecture would have to build; and to answer ENOSYS to
opendir, which makes the kernel keep every listing for ever, and readdir arrive without a handle.

Nothing is guessed. The slot is found by its relocation in the ELF file as it is loaded, it must hold the address of
libfuse's function, and the place of the bits is known by libfuse's version. Where anything is not as expected, nothing is
touched, and listings are asked for each time.
"""

import ctypes
import logging
import mmap
import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyfuse3

from s3mgrd.fs.handles import CACHES_ENTRIES, KEEPS_ENTRIES

log = logging.getLogger(__name__)

SYMBOL: Final = b"fuse_reply_open"
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

# struct fuse_file_info: int flags; 32 bits, these among them; 64 bits of padding less 32; uint64_t fh.
_BITS_OFFSET: Final = 4
_FH_OFFSET: Final = 16
_KEEP_CACHE: Final = 1 << 2


class Unexpected(Exception):
    """Something is not as it must be for the slot to be replaced."""


_kept: list[object] = []
"""What the replaced slot points to; it must never be collected."""


def install() -> bool:
    """Replace the slot in this process, once; whether handles' bits mean something from now on."""
    if _kept:
        return True
    try:
        _kept.append(_replace())
    except (Unexpected, OSError, AttributeError) as exc:
        log.warning(
            "the kernel cannot keep directories' entries here, so they are read anew each time: %s",
            exc,
        )
        return False
    return True


def _replace() -> object:
    module = ctypes.PyDLL(pyfuse3.__file__)
    cache_readdir = cache_readdir_bit(_version(module))
    address = ctypes.cast(module.fuse_reply_open, ctypes.c_void_p).value
    slot = find_slot(module)
    if address is None or ctypes.c_uint64.from_address(slot).value != address:
        raise Unexpected("the slot of fuse_reply_open holds something else")
    # PYFUNCTYPE: both directions keep the interpreter's lock, as pyfuse3's own call does.
    prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    original = prototype(address)

    def reply(request: int, info: int) -> int:
        handle = ctypes.c_uint64.from_address(info + _FH_OFFSET)
        wish = handle.value & (CACHES_ENTRIES | KEEPS_ENTRIES)
        if wish:
            handle.value &= ~wish
            bits = ctypes.c_uint32.from_address(info + _BITS_OFFSET)
            bits.value |= cache_readdir if wish & CACHES_ENTRIES else 0
            bits.value |= _KEEP_CACHE if wish & KEEPS_ENTRIES else 0
        return int(original(request, info))

    replacement = prototype(reply)
    _write(slot, ctypes.cast(replacement, ctypes.c_void_p).value or address)
    return replacement, original, module


def cache_readdir_bit(version: tuple[int, ...]) -> int:
    """Return where `cache_readdir` is in the bits of `fuse_file_info`; 3.14.1 to 3.16 have another before it."""
    if not (3, 5) <= version < (4,):
        raise Unexpected(f"libfuse {'.'.join(map(str, version))} is not known")
    return 1 << 7 if (3, 14, 1) <= version < (3, 17) else 1 << 6


def _version(module: ctypes.PyDLL) -> tuple[int, ...]:
    module.fuse_pkgversion.restype = ctypes.c_char_p
    text = (module.fuse_pkgversion() or b"").decode(errors="replace")
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise Unexpected(f"libfuse calls its version {text!r}")
    return tuple(int(part or 0) for part in found.groups())


def find_slot(module: ctypes.PyDLL, symbol: bytes = SYMBOL) -> int:
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


def _write(slot: int, value: int) -> None:
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
