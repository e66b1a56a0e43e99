"""Programs on real mounts: each in a directory of its own, beside a local one; and what befalls a mount meanwhile."""

import os
import random
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from s3mgr.api import Client
from s3mgr.errors import ClientError
from tests.e2e.differential.choosing import leads_elsewhere, resolved
from tests.e2e.differential.comparing import (
    DIRECTORY_MODE,
    FILE_MODE,
    bucket_differences,
    differences,
    keys_below,
    picture,
)
from tests.e2e.differential.side import Side
from tests.e2e.differential.steps import RECENT_NS, Step, describe
from tests.e2e.lab import Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket
from tests.servers.troubled import FarRelay, Trouble, far_relay_before

T = TypeVar("T")

FLUSH_LIMIT_S: Final = 120.0
MIB: Final = 1 << 20


class Kind(NamedTuple):
    """A kind of mount.

    Write mode; seconds that names are believed; whether the kernel gathers writes there, and so keeps the times of files;
    whether programs work in large files. The last kind has the smallest parts and the least room for what is staged, so that much is sent while it is written.
    """

    write_mode: str
    ttl_s: int
    gathers: bool
    is_large: bool = False

    def __str__(self) -> str:
        words = [self.write_mode, str(self.ttl_s)]
        if self.is_large:
            words.append("large")
        if not self.gathers:
            words.append("direct")
        return "-".join(words)

    @property
    def options(self) -> str:
        """What it is mounted with."""
        options = (
            f"attributes=full,write_mode={self.write_mode},metadata_ttl_s={self.ttl_s},"
            f"negative_ttl_s={0 if self.write_mode == 'writeback' else self.ttl_s},"
            f"writeback_cache={'on' if self.gathers else 'off'},uid=0,gid=0"
        )
        return (
            f"{options},part_size_bytes={5 * MIB},staging_size_bytes={64 * MIB}"
            if self.is_large
            else options
        )


KINDS: Final = (
    Kind("close", 30, gathers=True),
    Kind("close", 0, gathers=False),
    Kind("writeback", 30, gathers=False),
    Kind("writeback", 0, gathers=True),
)
LARGE_KINDS: Final = (
    Kind("close", 30, gathers=True, is_large=True),
    Kind("writeback", 0, gathers=False, is_large=True),
)


class Difference(Exception):
    """Mount and local directory do not agree after a step, of which `number` is the place."""

    number = 0


@dataclass(frozen=True)
class Site:
    """A mount, a local directory beside it, and the ways to both ends of S3."""

    daemon: Daemon
    name: str
    kind: Kind
    bucket: str
    client: Any
    relay: FarRelay
    mount: Path
    local: Path

    @property
    def believes_absence(self) -> bool:
        """Whether the kernel keeps for a while that a name is not there."""
        return "negative_ttl_s=0" not in self.kind.options

    def remount(self) -> None:
        """Unmount, which uploads everything, and mount again."""
        self.daemon.run("unmount", self.name)
        self.daemon.mount(self.relay.endpoint, self.bucket, self.name, "-o", self.kind.options)

    def invalidate(self) -> None:
        """Have everything be asked again."""
        self._asked(lambda api: api.invalidate_mount(self.name))

    def _asked(self, call: Callable[[Client], T]) -> T:
        """Ask the daemon until a worker lives long enough to answer."""

        def answer() -> list[T]:
            try:
                return [call(self.daemon.api)]
            except ClientError:
                return []

        return wait_for(f"'{self.name}' answers", answer, limit_s=FLUSH_LIMIT_S)[0]

    def flush(self) -> None:
        """Wait until S3 has everything."""
        report = self._asked(lambda api: api.flush_mount(self.name, timeout_s=FLUSH_LIMIT_S))
        if report.remaining_files or report.remaining_operations or report.conflicts:
            raise Difference(f"a flush did not leave S3 with everything: {report}")


class Log:
    """What the daemon and the workers of a site log from now on."""

    def __init__(self, site: Site) -> None:
        self._daemon: Final = site.daemon
        self._before: Final = {path: path.stat().st_size for path in self._files()}

    def _files(self) -> list[Path]:
        return [self._daemon.log, *(self._daemon.state_dir / "logs").glob("*.log")]

    def lines(self) -> list[str]:
        """Return the lines, those of each file together."""
        lines = []
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._before.get(path, 0))
                lines += file.read().decode(errors="replace").splitlines()
        return lines


class Course:
    """One program's run.

    Args:
        directory: where it works, below both roots; a name of its own.
    """

    def __init__(self, site: Site, directory: str) -> None:
        self._site = site
        self._prefix = f"{directory}/"
        for root in (site.local, site.mount):
            (root / directory).mkdir()
        self._local = site.local / directory
        self._mount = site.mount / directory
        self._here = Side(self._local, is_mount=False, gathers=site.kind.gathers)
        self._there = Side(self._mount, is_mount=True, gathers=site.kind.gathers)
        self._killer: threading.Thread | None = None
        self._was_killed = False
        self.steps: list[Step] = []
        """What was done, with all that its drafts left open: doing it again is the same program."""
        self.refused: set[int] = set()
        """Calls that failed, as they should, by their number: most of them have changed nothing."""
        self.done: Counter[str] = Counter()
        """Steps by name; and by ``ok`` and ``errno`` how calls went."""

    def run(self, program: Sequence[Step]) -> None:
        """Do all steps, or drafts of them. Raises Difference, with the step's number."""
        try:
            for number, draft in enumerate(program):
                step = resolved(draft, self._here)
                self.steps.append(step)
                try:
                    if not self._do(step):
                        self.refused.add(number)
                except Difference as difference:
                    found = Difference(f"step {number}, {step}: {difference}")
                    found.number = number
                    raise found from difference
        finally:
            self._end_killer()
            for side in (self._here, self._there):
                side.close_all()

    def _do(self, step: Step) -> bool:
        self.done[step.name] += 1
        if step.is_event:
            method: Any = getattr(self, f"_{step.name}")  # Any: one method an event
            try:
                method(*step.arguments)
            except (OSError, AssertionError) as error:
                raise Difference(f"{type(error).__name__}: {error}") from error
            return True
        expected, found = self._here.do(step), self._there.do(step)
        self.done[expected[0]] += 1
        if expected != found:
            raise Difference(f"local {describe(expected)}, mount {describe(found)}")
        return expected[0] == "ok"

    def _close_all(self) -> None:
        expected, found = self._here.close_all(), self._there.close_all()
        if expected != found:
            raise Difference(f"closing: local {expected}, mount {found}")

    # What befalls a mount

    def _kill(self, delay_ms: int) -> None:
        """Kill the worker a little later, in the middle of something."""
        self._end_killer()
        self._was_killed = True
        pid = self._site.daemon.worker_pid(self._site.name)

        def kill() -> None:
            time.sleep(delay_ms / 1e3)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        self._killer = threading.Thread(target=kill)
        self._killer.start()

    def _end_killer(self) -> None:
        if self._killer is not None:
            self._killer.join()
            self._killer = None

    def _remount(self) -> None:
        self._end_killer()
        self._close_all()
        self._site.remount()
        self._was_killed = False

    def _expire(self) -> None:
        self._site.invalidate()

    def _trouble(self, what: Trouble, requests: int) -> None:
        self._site.relay.trouble(what, requests)

    def _checkpoint(self) -> None:
        self._close_all()
        self._site.flush()
        wrong = differences(picture(self._local), picture(self._mount))
        wrong += bucket_differences(self._local, self._site.client, self._site.bucket, self._prefix)
        if wrong:
            raise Difference("\n  ".join(["trees or bucket differ:", *wrong]))

    def _outside(self, what: str, path: str, number: int) -> None:
        """Let another client write or delete an object, and the mount hear of it; locally, somebody replaces or removes it."""
        target = self._local / path
        if leads_elsewhere(self._local, path):
            return
        if what == "delete" and not os.path.lexists(target):
            return
        if self._was_killed and self._site.believes_absence:
            # Which names the kernel was told are not there, the next worker does not know; they have to run out.
            self._remount()
        self._close_all()
        self._site.flush()
        key = self._prefix + path
        if what == "delete":
            self._site.client.delete_object(Bucket=self._site.bucket, Key=key)
            target.unlink()
        else:
            numbers = random.Random(number)  # noqa: S311
            data = f"{number} of {key}".encode() + numbers.randbytes(numbers.choice((0, 9000)))
            metadata = _some_attributes(numbers) if "attributes" in what else {}
            self._site.client.put_object(
                Bucket=self._site.bucket, Key=key, Body=data, Metadata=metadata
            )
            _replace(self._local, target, data, metadata)
        self._site.invalidate()
        self._drop_implied(target)

    def _drop_implied(self, target: Path) -> None:
        """Remove local directories that only an object below had made, and that another client removed."""
        markers = keys_below(self._site.client, self._site.bucket, self._prefix)
        for parent in target.parents:
            key = f"{self._prefix}{parent.relative_to(self._local)}/"
            if parent == self._local or os.listdir(parent) or key in markers:
                return
            parent.rmdir()


def _some_attributes(numbers: random.Random) -> dict[str, str]:
    return {
        "mode": str(stat.S_IFREG | numbers.choice((0o600, 0o644, 0o755))),
        "uid": str(numbers.choice((0, 1000))),
        "gid": "1001",
        "mtime": f"{numbers.randrange(RECENT_NS // 10**9)}.{numbers.randrange(10**9):09d}",
    }


def _replace(root: Path, target: Path, data: bytes, metadata: dict[str, str]) -> None:
    """Make the new file that another writer's object is, and the directories that it implies."""
    for parent in reversed(target.parents):
        if parent.is_relative_to(root) and not parent.exists():
            parent.mkdir()
            os.chown(parent, 0, 0)
            parent.chmod(DIRECTORY_MODE)
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    os.chown(target, int(metadata.get("uid", 0)), int(metadata.get("gid", 0)))
    target.chmod(stat.S_IMODE(int(metadata.get("mode", FILE_MODE))))
    if "mtime" in metadata:
        seconds, _, fraction = metadata["mtime"].partition(".")
        time_ns = int(seconds) * 10**9 + int(fraction)
        os.utime(target, ns=(time_ns, time_ns))


class Sites:
    """Makes sites: one daemon, one relay, and a new bucket for each."""

    def __init__(self, daemon: Daemon, relay: FarRelay, behind: Endpoint, lab: Lab) -> None:
        self._daemon = daemon
        self._relay = relay
        self._behind = behind
        self._lab = lab
        self._made = 0

    @contextmanager
    def site(self, kind: Kind) -> Iterator[Site]:
        """Mount a new bucket; what a difference left behind in it is thrown away at the end."""
        self._made += 1
        name = f"{kind}-{self._made}"
        client = self._behind.boto3()
        bucket = make_bucket(client)
        local = self._lab.directory(f"local-{name}")
        try:
            mount = self._daemon.mount(self._relay.endpoint, bucket, name, "-o", kind.options)
            yield Site(self._daemon, name, kind, bucket, client, self._relay, mount, local)
        finally:
            self._daemon.run("unmount", name, "--discard", "--force", check=False)
            remove_bucket(client, bucket)
            client.close()


@contextmanager
def sites(lab: Lab, endpoint: Endpoint) -> Iterator[Sites]:
    """Start a daemon, and a relay before *endpoint*."""
    with far_relay_before(endpoint) as relay:
        yield Sites(lab.daemon(), relay, endpoint, lab)
