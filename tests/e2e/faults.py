"""Every path of the file system, with contents that are known, for tests and measurements with a network that fails.

`work` uses a mount as programs do and compares all that it reads; `check_bucket` compares what S3 has in the end.
"""

import os
from pathlib import Path
from random import Random
from typing import Any, Final

MIB: Final = 1 << 20
SMALL_FILES: Final = 12


class Contents:
    """What the mount must hold: bytes by path."""

    def __init__(self, seed: int) -> None:
        self.random: Final = Random(seed)  # noqa: S311 the same work each time
        self.files: Final[dict[str, bytes]] = {}

    def make(self, path: str, size: int) -> bytes:
        """Think of a file's bytes."""
        data = self.files[path] = self.random.randbytes(size)
        return data


def work(mount: Path, contents: Contents, *, large_bytes: int) -> None:
    """Write, edit, append, copy, rename and remove; raises OSError where the mount gives up."""
    files = contents.files
    (mount / "small").mkdir()
    for number in range(SMALL_FILES):
        name = f"small/{number:02}"
        (mount / name).write_bytes(contents.make(name, contents.random.randrange(1, 60_000)))
    (mount / "large").write_bytes(contents.make("large", large_bytes))
    with (mount / "large").open("r+b") as file:
        file.seek(large_bytes // 2)
        file.write(b"edited")
        half = large_bytes // 2
        files["large"] = files["large"][:half] + b"edited" + files["large"][half + 6 :]
    with (mount / "small/00").open("ab") as file:
        file.write(b"appended")
        files["small/00"] += b"appended"
    (mount / "copied").write_bytes((mount / "small/01").read_bytes())
    files["copied"] = files["small/01"]
    (mount / "small/02").rename(mount / "renamed")
    files["renamed"] = files.pop("small/02")
    (mount / "small").rename(mount / "moved")
    for path in [p for p in files if p.startswith("small/")]:
        files["moved/" + path.removeprefix("small/")] = files.pop(path)
    (mount / "moved/03").unlink()
    del files["moved/03"]


def look(mount: Path, contents: Contents, *, only_small: bool = False) -> None:
    """List everything and compare every byte, and ranges at random; raises OSError where the mount gives up."""
    found = {
        str(Path(base, name).relative_to(mount))
        for base, _, names in os.walk(mount)
        for name in names
    }
    assert found == set(contents.files)
    for path, data in sorted(contents.files.items()):
        if only_small and len(data) > MIB:
            continue
        assert (mount / path).read_bytes() == data, f"other bytes in {path}"
        with (mount / path).open("rb", buffering=0) as file:
            for _ in range(4):
                start = contents.random.randrange(len(data))
                assert os.pread(file.fileno(), 5000, start) == data[start : start + 5000], path


def check_bucket(client: Any, bucket: str, contents: Contents) -> None:  # noqa: ANN401 boto3 is untyped
    """Compare what S3 has."""
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    keys = {entry["Key"] for entry in listed if not entry["Key"].endswith("/")}
    assert keys == set(contents.files)
    for key, data in contents.files.items():
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == data, (
            f"other bytes in {key}"
        )
