"""Memory of processes: proportional set size, sampled."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
SAMPLE_INTERVAL_S: Final = 0.05


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of *pid*: pages that several processes share count in part; 0: it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(
        (int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0
    )


def parent_of(pid: int) -> int:
    """Return the parent of *pid*; 0: it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children(pid: int) -> list[int]:
    """Return the living children of *pid*."""
    numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
    return [number for number in numbers if parent_of(number) == pid]


def descendants(pid: int) -> list[int]:
    """Return *pid* and all living processes that descend from it."""
    by_parent: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            by_parent.setdefault(parent_of(int(entry)), []).append(int(entry))
    found = [pid]
    for number in found:  # grows while it is gone through
        found += by_parent.get(number, [])
    return found


@contextmanager
def peaks(
    find: Mapping[str, Callable[[], int]],
    *,
    tree_of: Callable[[], int] | None = None,
    interval_s: float = SAMPLE_INTERVAL_S,
) -> Iterator[dict[str, int]]:
    """Sample processes while the context runs; yields the peaks by name, complete when it has ended.

    Args:
        find: by name, what returns the pid to look at now: a worker may be replaced.
        tree_of: returns a process; also sample what it and all that descend from it take together, as "all".
        interval_s: between two samples.
    """
    highest = dict.fromkeys(find, 0)
    if tree_of is not None:
        highest["all"] = 0
    end = threading.Event()

    def sample() -> None:
        while True:
            for name, pid in find.items():
                highest[name] = max(highest[name], pss_bytes(pid()))
            if tree_of is not None:
                highest["all"] = max(highest["all"], sum(map(pss_bytes, descendants(tree_of()))))
            if end.wait(interval_s):
                return

    thread = threading.Thread(target=sample, name="memory samples", daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        end.set()
        thread.join()
