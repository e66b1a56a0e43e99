"""What processes have open, as /proc tells."""

import os
from collections.abc import Iterator
from contextlib import suppress


def held_by(pid: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield the descriptors of a process (None: this one), and what each is open on.

    Links are read and nothing is opened. What the process, or another thread, closes meanwhile is left out.

    Raises:
        OSError: the process is gone, or is somebody else's.
    """
    directory = f"/proc/{'self' if pid is None else pid}/fd"
    for fd in os.listdir(directory):
        with suppress(FileNotFoundError):
            yield int(fd), os.readlink(f"{directory}/{fd}")
