"""The systemd units are valid, and hold nothing that hides mounts or stops fusermount3."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parents[3]
SYSTEM_UNIT: Final = CHECKOUT / "s3mgr.service"
USER_UNIT: Final = CHECKOUT / "packaging" / "systemd" / "s3mgr-user.service"
DROP_INS: Final = tuple((CHECKOUT / "packaging" / "systemd").glob("*.conf"))

# systemd makes a mount namespace for a service that has any of these (systemd.exec(5), PrivateMounts=), and what is
# mounted inside is not seen outside. A name that ends in * stands for all that begin so.
HIDING_MOUNTS: Final = (
    "BindLogSockets",
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "Extension*",
    "InaccessiblePaths",
    "JoinsNamespaceOf",
    "MountAPIVFS",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateBPF",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivatePIDs",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory*",
    "RootHash*",
    "RootImage*",
    "RootVerity",
    "TemporaryFileSystem",
)

# In a user's service these set no_new_privs, and a set-user-ID fusermount3 is then no use (systemd.exec(5)).
NO_NEW_PRIVILEGES: Final = (
    "CapabilityBoundingSet",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "NoNewPrivileges",
    "ProtectClock",
    "ProtectHostname",
    "Restrict*",
    "SystemCall*",
)


def _directives(unit: Path) -> list[tuple[str, str]]:
    lines = unit.read_text().replace("\\\n", " ").splitlines()
    assignments = (line.partition("=") for line in lines if line[:1] not in ("#", ";", "[", ""))
    return [(name.strip(), value.strip()) for name, _, value in assignments]


def _matching(unit: Path, forbidden: tuple[str, ...]) -> list[str]:
    names = [name for name, _ in _directives(unit)]
    prefixes = tuple(name.removesuffix("*") for name in forbidden if name.endswith("*"))
    return [name for name in names if name in forbidden or name.startswith(prefixes)]


def _verify(unit: Path, tmp_path: Path, *options: str) -> str:
    """Return the complaints of systemd-analyze about *unit*, with the daemon found where it is installed here."""
    program = Path(sys.executable).parent / "s3mgrd"
    assert program.exists()
    copy = tmp_path / unit.name
    copy.write_text(
        unit.read_text().replace("=s3mgrd", f"={program}").replace("=-s3mgrd", f"=-{program}")
    )
    for drop_in in DROP_INS if unit == SYSTEM_UNIT else ():
        directory = tmp_path / f"{unit.name}.d"
        directory.mkdir(exist_ok=True)
        shutil.copy(drop_in, directory)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *options, str(copy)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


def test_systemd_accepts_the_system_unit_with_its_drop_ins(tmp_path: Path) -> None:
    """Unknown keys, bad values and missing programs are complaints."""
    assert _verify(SYSTEM_UNIT, tmp_path) == ""


def test_systemd_accepts_the_user_unit(tmp_path: Path) -> None:
    """As above, for the manager of a user."""
    assert _verify(USER_UNIT, tmp_path, "--user") == ""


def test_systemd_would_complain(tmp_path: Path) -> None:
    """The two tests above can fail."""
    broken = tmp_path / "broken" / "s3mgr.service"
    broken.parent.mkdir()
    broken.write_text(SYSTEM_UNIT.read_text().replace("[Service]", "[Service]\nNoSuchKey=1"))
    assert "NoSuchKey" in _verify(broken, tmp_path)


@pytest.mark.parametrize("unit", [SYSTEM_UNIT, USER_UNIT, *DROP_INS], ids=lambda unit: unit.name)
def test_no_directive_hides_mounts(unit: Path) -> None:
    """A mount that only the daemon sees is of no use to anybody."""
    assert _matching(unit, HIDING_MOUNTS) == []


@pytest.mark.parametrize("name", [name.replace("*", "Any") for name in HIDING_MOUNTS])
def test_a_directive_that_hides_mounts_is_found(name: str, tmp_path: Path) -> None:
    """The test above can fail."""
    unit = tmp_path / "bad.service"
    unit.write_text(f"[Service]\nType=notify\n  {name} = yes\n")
    assert _matching(unit, HIDING_MOUNTS) == [name]


def test_read_only_directories_are_not_asked_for_either() -> None:
    """RuntimeDirectory=name::ro and its relatives mount the directory again, in a namespace."""
    values = [value for name, value in _directives(SYSTEM_UNIT) if name.endswith("Directory")]
    assert values
    assert [value for value in values if ":" in value] == []


def test_the_user_unit_leaves_fusermount_its_privilege() -> None:
    """Without set-user-ID fusermount3 an ordinary user can mount nothing."""
    assert _matching(USER_UNIT, NO_NEW_PRIVILEGES) == []


def test_the_root_daemon_may_mount() -> None:
    """NoNewPrivileges= is fine for root as long as CAP_SYS_ADMIN and the mount system calls are left."""
    directives = dict(_directives(SYSTEM_UNIT))
    assert "CAP_SYS_ADMIN" in directives["CapabilityBoundingSet"].split()
    assert "@mount" in directives["SystemCallFilter"].split()
    assert directives["DeviceAllow"] == "/dev/fuse rw"
