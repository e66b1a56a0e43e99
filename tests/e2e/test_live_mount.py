"""What may be asked of a mount that programs are using: flush, invalidate, restart, stats, cache, options, events."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mgr.schema import Event
from tests.e2e.lab import Daemon, Lab, shell, wait_for
from tests.e2e.wire import ask
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

MIB = 1 << 20
READ_SLOWLY = """
import hashlib, sys, time
digest = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as file:
    while block := file.read(256 << 10):
        digest.update(block)
        print(len(block), flush=True)
print(digest.hexdigest(), flush=True)
"""


class Site:
    """One bucket, mounted as ``m``, and somebody else who uses the bucket."""

    def __init__(self, daemon: Daemon, endpoint: Endpoint, bucket: str) -> None:
        self.daemon = daemon
        self.endpoint = endpoint
        self.bucket = bucket
        self.client = endpoint.boto3()
        self.mount = daemon.mount(endpoint, bucket)

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def add(self, *keys: str, body: bytes) -> None:
        """Put objects that the mount shall see at once: nobody asked for their names, but perhaps for their neighbours'."""
        for key in keys:
            self.put(key, body)
        self.daemon.run("invalidate", "m")

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body


@pytest.fixture(scope="module")
def site(module_lab: Lab, ministack: Endpoint) -> Iterator[Site]:
    client = ministack.boto3()
    bucket = make_bucket(client)
    site = Site(module_lab.daemon(), ministack, bucket)
    try:
        yield site
    finally:
        site.daemon.run("unmount", "m")
        remove_bucket(client, bucket)


def test_flush_uploads_what_a_program_still_has_open(site: Site) -> None:
    with (site.mount / "open").open("wb", buffering=0) as file:
        file.write(b"written, not closed")
        assert site.daemon.show().status.dirty_files <= 1
        report = site.daemon.api.flush_mount("m", timeout_s=30)
        assert (report.remaining_files, report.remaining_bytes) == (0, 0)
        assert site.get("open") == b"written, not closed"
        file.write(b", and more")
    assert site.get("open") == b"written, not closed, and more"
    done = site.daemon.run("flush", "m")
    assert "everything" in done.stderr


def test_what_others_change_is_seen_at_once_after_invalidate(site: Site) -> None:
    """Contents, sizes, new names, names that were known to be absent, and names that are gone; at any depth."""
    site.add("inv/sub/file", "inv/sub/gone", body=b"old")
    directory = site.mount / "inv" / "sub"
    assert (directory / "file").read_bytes() == b"old"
    assert sorted(os.listdir(directory)) == ["file", "gone"]
    assert not (directory / "new").exists()
    site.put("inv/sub/file", b"changed by others")
    site.put("inv/sub/new", b"new")
    site.client.delete_object(Bucket=site.bucket, Key="inv/sub/gone")
    assert (directory / "file").read_bytes() == b"old"
    assert not (directory / "new").exists()
    with (directory / "gone").open("rb"):
        site.daemon.run("invalidate", "m", "inv")
        assert (directory / "file").read_bytes() == b"changed by others"
        assert (directory / "file").stat().st_size == 17
        assert (directory / "new").read_bytes() == b"new"
        assert not (directory / "gone").exists()
        assert sorted(os.listdir(directory)) == ["file", "new"]


def test_one_name_may_be_invalidated_by_itself(site: Site) -> None:
    """Also one that the mount has only heard of as absent, and by its path on this machine."""
    site.add("one/a", "one/b", body=b"old")
    directory = site.mount / "one"
    assert [(directory / n).read_bytes() for n in "ab"] == [b"old", b"old"]
    assert not (directory / "c").exists()
    for name in "abc":
        site.put(f"one/{name}", b"new!")
    site.daemon.run("invalidate", "m", str(directory / "a"))
    site.daemon.run("invalidate", "m", "one/c")
    assert (directory / "a").read_bytes() == b"new!"
    assert (directory / "c").read_bytes() == b"new!"


def test_programs_that_work_in_a_directory_stay_there_when_it_is_invalidated(site: Site) -> None:
    site.add("work/here/file", body=b"x")
    printed = shell(
        'cd "$1"; ls; "$2" -c pass; read -r line < "$3"; pwd -P; ls; cat file',
        *(site.mount / "work" / "here", sys.executable, _invalidated(site)),
    )
    assert printed == f"file\n{site.mount}/work/here\nfile\nx"


def _invalidated(site: Site) -> Path:
    """A pipe out of which a line comes once the mount was invalidated; which begins when somebody opens it."""
    pipe = site.daemon.base / "pipe"
    os.mkfifo(pipe)

    def run() -> None:
        with pipe.open("w") as end:
            site.daemon.run("invalidate", "m")
            end.write("done\n")
        pipe.unlink()

    threading.Thread(target=run, name="invalidates").start()
    return pipe


def test_a_restart_is_noticed_by_no_program(site: Site) -> None:
    """One reads, one has written and not closed, one has its working directory inside."""
    content = os.urandom(8 * MIB)
    site.add("restart/large", body=content)
    directory = site.mount / "restart"
    old = site.daemon.worker_pid()
    reader = subprocess.Popen(
        [sys.executable, "-c", READ_SLOWLY, str(directory / "large")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    with reader, (directory / "written").open("wb", buffering=0) as file:
        reader.stdout.readline()
        file.write(b"before")
        inode = os.fstat(file.fileno()).st_ino
        site.daemon.run("restart", "m")
        new = site.daemon.worker_pid()
        assert new != old
        file.write(b" and after")
        assert os.fstat(file.fileno()).st_ino == inode
        *_, digest = reader.stdout.read().splitlines()
    assert digest == hashlib.sha256(content).hexdigest()
    assert site.get("restart/written") == b"before and after"
    assert site.daemon.show().status.state == "mounted"


def test_stats_count_what_was_done(site: Site) -> None:
    before = site.daemon.api.mount_stats("m")
    body = os.urandom(100_000)
    (site.mount / "counted").write_bytes(body)
    os.sync()
    after = site.daemon.api.mount_stats("m")
    assert after.worker_pid == site.daemon.worker_pid()
    assert after.written_bytes - before.written_bytes == len(body)
    assert after.s3_sent_bytes - before.s3_sent_bytes == len(body)
    puts = [{c.name: c.count for c in s.s3}.get("PutObject", 0) for s in (before, after)]
    assert puts[1] - puts[0] == 1
    fuse = {c.name: c for c in after.fuse}
    assert {"lookup", "create", "write", "flush", "release"} <= fuse.keys()
    assert after.memory_bytes > MIB


def test_the_caches_are_shown_page_by_page(site: Site) -> None:
    names = sorted(f"name-{i:02}" for i in range(25))
    site.add(*(f"pages/{name}" for name in names), body=b"x" * 10)
    assert sorted(os.listdir(site.mount / "pages")) == names
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        report = site.daemon.api.mount_cache("m", path="pages", cursor=cursor, limit=10)
        seen += [item.path for item in report.items]
        pages += 1
        cursor = report.cursor
        if cursor is None:
            break
    assert (pages, sorted(seen)) == (3, [f"pages/{name}" for name in names])
    assert report.entries_total >= 26
    assert all(item.size_bytes == 10 and item.etag for item in report.items)
    one = site.daemon.api.mount_cache("m", path="pages/name-07", limit=10)
    assert [item.path for item in one.items] == ["pages/name-07"]
    totals = site.daemon.run("cache", "m", "--limit", "0")
    assert "name-07" not in totals.stdout
    listed = site.daemon.run("cache", "m", "pages", "--limit", "25")
    assert all(name in listed.stdout for name in names)


def test_live_options_take_effect_in_the_worker_and_in_the_next_one(site: Site) -> None:
    generation = site.daemon.show().generation
    answer = ask(
        site.daemon,
        "PATCH",
        "/v1/mounts/m",
        {"options": {"metadata_ttl_s": 0, "negative_ttl_s": 0}, "labels": {"team": "a"}},
        {"If-Match": f'"{generation}"'},
    )
    assert (answer.status, answer.headers["etag"]) == (200, f'"{generation + 1}"')
    wait_for(
        "the worker has the options",
        lambda: site.daemon.show().status.observed_generation == generation + 1,
    )
    try:
        for _ in range(2):
            assert not (site.mount / "live").exists()
            site.put("live", b"1")
            assert (site.mount / "live").read_bytes() == b"1"
            site.put("live", b"two")
            assert (site.mount / "live").read_bytes() == b"two"
            site.client.delete_object(Bucket=site.bucket, Key="live")
            assert not (site.mount / "live").exists()
            site.daemon.run("restart", "m")
        mount = site.daemon.show()
        assert (mount.spec.options.metadata_ttl_s, mount.spec.labels) == (0, {"team": "a"})
        stale = ask(
            site.daemon, "PATCH", "/v1/mounts/m", {"persist": True}, {"If-Match": f'"{generation}"'}
        )
        assert (stale.status, stale.slug) == (412, "precondition-failed")
    finally:
        back = {"options": {"metadata_ttl_s": 30, "negative_ttl_s": 30}, "labels": {"team": None}}
        assert ask(site.daemon, "PATCH", "/v1/mounts/m", back).json["spec"]["labels"] == {}


def test_the_events_tell_the_whole_story_of_a_mount(site: Site) -> None:
    daemon = site.daemon
    cursor = daemon.api.list_mounts().cursor
    live: list[Event] = []
    ready = threading.Event()

    def follow() -> None:
        with daemon.api.events(since=cursor) as events:
            ready.set()
            for event in events:
                live.append(event)
                operation = event.data.get("operation", {})
                if (operation.get("kind"), operation.get("state")) == ("unmount", "succeeded"):
                    return

    follower = threading.Thread(target=follow, name="follows events")
    follower.start()
    assert ready.wait(30)
    daemon.mount(site.endpoint, site.bucket, "story")
    daemon.wait_replaced(daemon.kill_worker("story"), "story")
    ask(daemon, "PATCH", "/v1/mounts/story", {"options": {"metadata_ttl_s": 5}})
    daemon.run("unmount", "story")
    follower.join(30)
    assert not follower.is_alive()

    assert [event.cursor for event in live] == sorted({event.cursor for event in live})
    story = [_words(event) for event in live if event.type != "operation.changed"]
    assert story == [
        "mount.added",
        "mount.state mounting connecting",
        "mount.state mounted ready",
        "mount.state degraded worker-restarting",
        "mount.state mounted resumed",
        "mount.changed",
        "mount.state draining unmounting",
        "mount.state unmounted asked",
        "mount.removed",
    ]
    operations = [e.data["operation"] for e in live if e.type == "operation.changed"]
    ended = [(o["kind"], o["state"]) for o in operations if o["state"] != "running"]
    assert ended == [("mount", "succeeded"), ("unmount", "succeeded")]
    # Whoever comes later gets the same from the store.
    with daemon.api.events(since=cursor) as events:
        again = [next(events) for _ in live]
    assert again == live


def _words(event: Event) -> str:
    if event.type != "mount.state":
        return event.type
    return f"{event.type} {event.data['state']} {event.data['reason']}"


def test_work_may_be_handed_in_and_asked_for_later(site: Site) -> None:
    daemon = site.daemon
    directory = daemon.mountpoint("later")
    directory.mkdir()
    body = {
        "spec": {
            "bucket": site.bucket,
            "mountpoint": str(directory),
            "endpoint": site.endpoint.url,
        },
        "credentials": {
            "access_key": site.endpoint.access_key,
            "secret_key": site.endpoint.secret_key,
        },
    }
    answer = ask(daemon, "PUT", "/v1/mounts/later", body, {"Prefer": "respond-async"})
    assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async")
    where = answer.headers["location"]
    done = ask(daemon, "GET", f"{where}?wait_s=30").json
    assert (done["kind"], done["target"], done["state"]) == ("mount", "later", "succeeded")
    assert directory.is_mount()
    listed = ask(daemon, "GET", "/v1/operations?mount=later").json["items"]
    assert [item["id"] for item in listed] == [done["id"]]
    gone = ask(daemon, "DELETE", "/v1/mounts/later", headers={"Prefer": "respond-async"})
    assert gone.status == 202
    assert ask(daemon, "GET", f"{gone.headers['location']}?wait_s=30").json["state"] == "succeeded"
    assert not directory.is_mount()
    assert ask(daemon, "DELETE", "/v1/mounts/later").status == 204
    assert ask(daemon, "GET", "/v1/operations/no-such").status == 404


def test_the_same_wish_twice_is_one_mount(site: Site) -> None:
    again = site.daemon.run(
        "mount", site.bucket, str(site.mount), "--name", "m", endpoint=site.endpoint
    )
    assert "is mounted already" in again.stderr
    pid = site.daemon.worker_pid()
    assert site.daemon.worker_pid() == pid
