"""What root's worker gives up, in two steps.

`become_worker` runs first thing in the forked child. Afterwards the process is the worker user without groups and has
one capability left, CAP_DAC_READ_SEARCH (where the daemon has that; else CAP_DAC_OVERRIDE): the state directory may lie
below directories that only root may enter, and the worker opens its own files there. `renounce` gives that up too, and
the chance to ever gain anything (no_new_privs); the worker calls it once its files are open and before it reads a byte
from the kernel connection or the network.

Changing the user makes the process undumpable as well: workers share a user, and must not trace each other.
"""

import ctypes
import os
import pwd
import resource
from dataclasses import dataclass
from typing import Final

from s3mgrd.errors import InvalidConfig

# linux/prctl.h, linux/capability.h
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_VERSION_3: Final = 0x20080522
MAX_CAPABILITIES: Final = 64

MAX_OPEN_FILES: Final = 65536

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and group that a worker runs as."""

    uid: int
    gid: int


def find_identity(user: str) -> Identity:
    """Look the worker user up. Raises `InvalidConfig` when there is none."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError as exc:
        raise InvalidConfig(
            f"the worker user {user!r} does not exist",
            hint=f"create it (useradd --system --no-user-group --gid nogroup --no-create-home {user}) "
            "or set worker_user",
        ) from exc
    if entry.pw_uid == 0:
        raise InvalidConfig("workers must not run as root", hint="set worker_user to another user")
    return Identity(entry.pw_uid, entry.pw_gid)


def become_worker(identity: Identity | None) -> None:
    """Turn this freshly forked, single-threaded process into a worker's.

    Args:
        identity: whom to become; None when the daemon is an ordinary user, whose workers run as that user.

    Raises:
        OSError: a step was refused; the process must not go on.
    """
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    _set_limits()
    if identity is None:
        return
    keep = next((c for c in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if _permitted() & 1 << c), None)
    _drop_bounding_set()
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    _set_capabilities(0 if keep is None else 1 << keep)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def renounce() -> None:
    """Give up the last capability, and every way to gain one. Cannot be undone; harmless when repeated.

    Capabilities belong to threads: call it before the process starts any.
    """
    _set_capabilities(0)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def name_process(name: str) -> None:
    """Set what ps and top show as this process's name; the kernel cuts it after 15 bytes."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def _set_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory holds keys and other people's data
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _prctl(option: int, argument: int) -> None:
    unsigned = ctypes.c_ulong
    if _libc.prctl(option, unsigned(argument), unsigned(0), unsigned(0), unsigned(0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")


def _drop_bounding_set() -> None:
    """Empty the set of what an exec could ever give back; without CAP_SETPCAP, no_new_privs must do."""
    for capability in range(MAX_CAPABILITIES):
        if _libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0) != 1:
            continue
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except PermissionError:
            return


def _permitted() -> int:
    header = _CapHeader(CAP_VERSION_3, 0)
    data = (_CapData * 2)()
    if _libc.capget(ctypes.byref(header), data) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capget: {os.strerror(error)}")
    return int(data[0].permitted | data[1].permitted << 32)


def _set_capabilities(mask: int) -> None:
    """Make *mask* the effective and permitted set, and the inheritable one empty."""
    header = _CapHeader(CAP_VERSION_3, 0)
    data = (_CapData * 2)()
    for word in range(2):
        bits = mask >> 32 * word & 0xFFFF_FFFF
        data[word] = _CapData(bits, bits, 0)
    if _libc.capset(ctypes.byref(header), data) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capset: {os.strerror(error)}")
