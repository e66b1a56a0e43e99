"""Worker processes: start, privileges, conversation, adoption, and the death of everybody involved."""

import os
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from s3mgr.schema import MountSpec
from s3mgrd.errors import (
    CredentialsRejected,
    Defect,
    InvalidConfig,
    NotFound,
    NotMounted,
    TimedOut,
    TooLarge,
    Unavailable,
    Unsupported,
    WorkerLost,
)
from s3mgrd.mounts.ports import WorkerExit
from s3mgrd.worker import spawn, workdirs
from s3mgrd.worker.privileges import find_identity
from s3mgrd.worker.protocol import (
    Configure,
    CredentialGrant,
    Flush,
    GetCache,
    GetStats,
    Invalidate,
    Ok,
    Report,
    SessionEnded,
    StatusEvent,
    Stop,
)
from s3mgrd.worker.spawn import WorkerProcesses
from s3mgrd.worker.zygote_messages import ResolveCredentials
from tests.descriptors import held_by
from tests.fuse.lab import Lab

PROMPT_S = 10.0


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def zygotes() -> list[int]:
    """Find the zygotes that this process started."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            parent = status_of(int(entry))["PPid"]
        except (FileNotFoundError, ProcessLookupError, KeyError):
            continue
        if b"s3mgrd.worker.zygote" in command and int(parent) == os.getpid():
            found.append(int(entry))
    return found


def configure(lab: Lab, *, profile: str | None = None) -> Configure:
    return Configure(
        name="m",
        spec=lab.spec("m", profile=profile),
        credentials=None,
        connection_id="id-of-m",
        probe=False,
        supervisor_uid=os.getuid(),
    )


async def test_a_worker_of_root_has_no_privilege_left(lab: Lab) -> None:
    """Own user, no groups, no capability in any set, no way to gain one, no dump, its own session."""
    groups = os.getgroups()
    os.setgroups([1, 2])
    try:
        workers = await lab.supervisor()
        worker = await lab.keep(lab.worker(workers, "m"))
    finally:
        os.setgroups(groups)
    status = status_of(worker.pid)
    nobody = find_identity("nobody")
    assert status["Uid"].split() == [str(nobody.uid)] * 4
    assert status["Gid"].split() == [str(nobody.gid)] * 4
    assert status["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Umask"] == "0077"
    assert os.getsid(worker.pid) == worker.pid
    assert os.readlink(f"/proc/{worker.pid}/cwd") == "/"
    limits = read(f"/proc/{worker.pid}/limits")
    assert limits.split(b"Max core file size")[1].split()[:2] == [b"0", b"0"]
    assert read(f"/proc/{worker.pid}/comm") == b"s3mgr:m\n"


async def test_an_ordinary_daemon_s_worker_is_that_user_without_a_way_up(
    lab: Lab,
) -> None:
    async with lab.new_workers(worker_user=None) as workers, lab.worker(workers, "m") as worker:
        status = status_of(worker.pid)
        assert status["Uid"].split() == [str(os.getuid())] * 4
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


async def test_a_worker_inherits_nothing_but_its_own_descriptors(lab: Lab) -> None:
    """Not the zygote's socket, not another mount's, and no variable that holds a secret."""
    os.environ["AWS_SECRET_ACCESS_KEY"] = "very secret"
    os.environ["NOTIFY_SOCKET"] = "/run/nowhere"
    try:
        workers = await lab.supervisor()
        async with lab.worker(workers, "other"), lab.worker(workers, "m") as worker:
            targets = dict(held_by(worker.pid))
            assert targets[0] == "/dev/null"
            assert targets[1] == targets[2] == workers.log_path("m")
            others = [target for fd, target in targets.items() if fd > 2]
            assert not [t for t in others if "other" in t or "/dev/fuse" in t]
            of_the_zygote = dict(held_by(zygotes()[0])).values()
            assert not {t for t in others if t.startswith("socket:")} & set(of_the_zygote)
            environment = read(f"/proc/{worker.pid}/environ")
            assert b"very secret" not in environment
            assert b"NOTIFY_SOCKET" not in environment
            assert b"secret" not in read(f"/proc/{worker.pid}/cmdline")
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["NOTIFY_SOCKET"]


async def test_a_worker_s_files_are_its_own_and_nobody_else_s(lab: Lab) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m"):
        nobody = find_identity("nobody").uid
        for path in (lab.state_dir / "mounts" / "m", lab.cache_dir / "m"):
            status = path.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, nobody)
        journal = (lab.state_dir / "mounts" / "m" / "journal").stat()
        assert (stat.S_IMODE(journal.st_mode), journal.st_uid) == (0o600, nobody)
        sock = (lab.state_dir / "run" / "m.sock").stat()
        assert (stat.S_IMODE(sock.st_mode), sock.st_uid) == (0o600, os.getuid())
        log = os.stat(workers.log_path("m"))
        assert (stat.S_IMODE(log.st_mode), log.st_uid) == (0o640, os.getuid())
        assert read(workers.log_path("m")) == b"worker of m is up\n"


async def test_files_of_a_former_worker_user_are_taken_over(lab: Lab) -> None:
    """Links that the former user may have planted are not followed."""
    workers = await lab.supervisor()
    directory = lab.state_dir / "mounts" / "m"
    (directory / "deep").mkdir(parents=True)
    (directory / "deep" / "file").touch()
    secret = lab.base / "secret"
    secret.touch()
    (directory / "link").symlink_to(secret)
    os.link(secret, directory / "hard-link")
    async with lab.worker(workers, "m"):
        nobody = find_identity("nobody").uid
        assert (directory / "deep" / "file").stat().st_uid == nobody
        assert secret.stat().st_uid == 0


async def test_requests_are_answered_or_fail_as_the_error_they_name(lab: Lab) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m") as worker:
        assert not worker.serving
        reply = await worker.request(GetStats())
        assert isinstance(reply, Report)
        assert b'"uptime_s":1.5' in reply.body
        with pytest.raises(NotFound, match="nothing cached below 'a'") as failure:
            await worker.request(GetCache(path="a"))
        assert failure.value.hint == "look elsewhere"
        with pytest.raises(TooLarge):
            await worker.request(Invalidate(path="huge"))
        with pytest.raises(TooLarge):
            await worker.request(Invalidate(path="x" * (200 << 10)))
        with pytest.raises(Defect, match="nobody foresaw"):
            await worker.request(GetCache(path="defect"))
        with pytest.raises(NotMounted):
            await worker.descriptors()
        assert isinstance(await worker.request(GetStats()), Report)
    assert b"RuntimeError: a defect" in read(workers.log_path("m"))


async def test_a_slow_request_does_not_hold_up_others_and_may_be_given_up(lab: Lab) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m") as worker:
        with trio.move_on_after(0.05) as scope:
            await worker.request(Flush(timeout_s=0.2))
        assert scope.cancelled_caught
        assert isinstance(await worker.request(GetStats()), Report)
        assert isinstance(await worker.request(Flush(timeout_s=0.2)), Report)


async def test_a_request_to_a_worker_that_dies_says_so(lab: Lab) -> None:
    """The bare error, not a group: callers catch it around the whole conversation."""
    workers = await lab.supervisor()
    with pytest.raises(WorkerLost):  # noqa: PT012 - what comes out of the context is the point
        async with lab.worker(workers, "m") as worker:
            worker.kill()
            await worker.request(Flush(timeout_s=60))
    worker.kill()  # nothing


async def test_the_exit_of_a_worker_is_known_by_status_or_signal(lab: Lab) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m") as worker:
        assert worker.memory_bytes() in range(1 << 20, 200 << 20)
        assert await worker.request(Stop()) == Ok()
        assert await worker.wait() == WorkerExit(0, None)
        assert worker.memory_bytes() is None
    async with lab.worker(workers, "m") as worker:
        os.kill(worker.pid, signal.SIGSEGV)
        assert await worker.wait() == WorkerExit(None, signal.SIGSEGV)
        assert [event async for event in worker.events] == []


async def test_a_worker_that_ends_at_its_start_is_reported_with_its_log(lab: Lab) -> None:
    workers = await lab.supervisor()
    with pytest.raises(Unavailable, match="ended at its start") as failure:
        async with workers.start("stillborn"):
            pytest.fail("it was born")
    assert workers.log_path("stillborn") in failure.value.hint


async def test_the_first_status_and_the_end_of_the_session_are_reported(lab: Lab) -> None:
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection)
        assert await worker.events.receive() == StatusEvent(health="ok", message="configured")
        await connection.unmount()
        assert await worker.events.receive() == SessionEnded()
        assert await worker.request(Stop()) == Ok()


async def test_a_worker_gets_credentials_from_its_supervisor_only(lab: Lab) -> None:
    workers = await lab.supervisor()
    asked = trio.Event()

    async def source() -> CredentialGrant:
        asked.set()
        return CredentialGrant(access_key="A", secret_key="S")

    async def none() -> CredentialGrant:
        raise CredentialsRejected("there are none", hint="give some")

    async with lab.worker(workers, "m") as worker:
        with pytest.raises(Unavailable, match="not ready"):
            await worker.request(configure(lab, profile="p"))
        worker.set_credentials_source(none)
        with pytest.raises(CredentialsRejected) as failure:
            await worker.request(configure(lab, profile="p"))
        assert failure.value.hint == "give some"
        worker.set_credentials_source(source)
        await worker.request(configure(lab, profile="p"))
        assert asked.is_set()


async def test_a_later_supervisor_adopts_a_serving_worker(lab: Lab) -> None:
    """The first supervisor dies; the worker serves on, and the next finds it with all it needs."""
    first = await lab.supervisor()
    connection = await lab.mount("m")
    read = "import os, sys; print(os.pread(os.open(sys.argv[1], 0), 8, 80).hex())"
    async with lab.worker(first, "m") as worker:
        await lab.serve(worker, connection)
        pid = worker.pid
    connection.close()
    user = lab.program(read, f"{lab.base}/mnt/m/data")
    assert await lab.output(user) == "5000000000000000"
    second = await lab.supervisor()
    async with second.adopt("m") as adopted:
        assert adopted is not None
        assert (adopted.pid, adopted.serving, adopted.ended) == (pid, True, False)
        described, fuse_fd, ring_fd = await adopted.descriptors()
        assert described.connection_id == "id-of-m"
        assert await adopted.events.receive() == StatusEvent(health="ok", message="configured")
        taken = await lab.kernel.adopt(
            lab.spec("m"), name="m", descriptors=described, fuse_fd=fuse_fd, ring_fd=ring_fd
        )
        await taken.unmount()
        with trio.fail_after(PROMPT_S):
            await taken.ended()
            assert await adopted.events.receive() == SessionEnded()
        taken.close()
    async with second.adopt("m") as adopted:
        assert adopted is not None
        assert (adopted.serving, adopted.ended) == (False, True)
        await adopted.request(Stop())
        assert (await adopted.wait()).signal is None
    async with second.adopt("m") as adopted:
        assert adopted is None


async def test_a_worker_that_names_another_user_s_process_is_not_adopted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker could have its supervisor kill anything."""
    workers = await lab.supervisor()
    async with lab.worker(workers, "m"):
        pass
    monkeypatch.setattr(spawn, "_uid_of", lambda pid: 0 if pid else None)
    with pytest.raises(Unavailable, match="not its own"):
        async with workers.adopt("m"):
            pytest.fail("it was adopted")


async def test_a_worker_of_another_protocol_refuses(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m"):
        pass
    monkeypatch.setattr(spawn, "PROTOCOL_VERSION", 999)
    with pytest.raises(Unsupported, match="999"):
        async with workers.adopt("m"):
            pytest.fail("it was adopted")


async def test_only_root_and_the_supervisor_s_user_may_connect(lab: Lab) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m") as worker:
        run_dir = lab.state_dir / "run"
        os.chmod(run_dir, 0o711)  # noqa: S103 - the directory keeps strangers out; see that the worker does, too
        os.chmod(run_dir / "m.sock", 0o666)  # noqa: S103
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(BaseException):
                os.chdir(run_dir)
                os.setresuid(12345, 12345, 12345)
                signal.alarm(int(PROMPT_S))
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    sock.connect("m.sock")
                    try:
                        code = 0 if sock.recv(10) == b"" else 2
                    except ConnectionResetError:
                        code = 0
            os._exit(code)
        _, ended = await trio.to_thread.run_sync(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(ended) == 0
        assert isinstance(await worker.request(GetStats()), Report)


async def test_the_death_of_the_zygote_harms_no_worker(lab: Lab) -> None:
    """Living workers serve on, their exits are known, and new ones come from a new zygote."""
    workers = await lab.supervisor()
    async with lab.worker(workers, "a") as first, lab.worker(workers, "b") as second:
        (zygote,) = zygotes()
        os.kill(zygote, signal.SIGKILL)
        async with lab.worker(workers, "c") as third:
            assert third.pid not in (first.pid, second.pid)
            for worker in (first, second, third):
                assert isinstance(await worker.request(GetStats()), Report)
        assert await first.request(Stop()) == Ok()
        assert await first.wait() == WorkerExit(0, None)
        second.kill()
        assert await second.wait() == WorkerExit(None, signal.SIGKILL)


async def test_the_zygote_ends_with_its_supervisor_and_workers_do_not(lab: Lab) -> None:
    async with lab.new_workers() as workers, lab.worker(workers, "m") as worker:
        (zygote,) = zygotes()
        assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    # The worker, an orphan now, is this process's child, and its command line is still the zygote's.
    assert zygotes() == [worker.pid]


async def test_a_state_directory_may_have_a_very_long_path(lab: Lab, tmp_path: Path) -> None:
    """Longer than a unix socket's address can be."""
    deep = tmp_path.joinpath(*["a-rather-long-directory-name"] * 8)
    workers = WorkerProcesses(
        deep / "state",
        deep / "cache",
        "nobody",
        entry="tests.fuse.demo_worker:run",
        warm=(),
        resolver="tests.fuse.demo_worker:resolve",
    )
    name = "n" * 63
    async with workers:
        async with workers.start(name) as worker:
            lab.pids.add(worker.pid)
        async with workers.adopt(name) as adopted:
            assert adopted is not None
            assert adopted.pid == worker.pid


async def test_credentials_are_resolved_in_a_process_of_their_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon's user, with the daemon's AWS_* variables, which the zygote does not have."""
    workers = await lab.supervisor()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from the environment")
    grant = await workers.credentials(lab.spec("m", profile="good"))
    assert grant.access_key == "from the environment"
    assert grant.secret_key == f"of uid {os.getuid()}"
    assert grant.expires_at is not None


@pytest.mark.parametrize(
    ("profile", "kind", "text"),
    [
        (None, CredentialsRejected, "there are none"),
        ("defect", CredentialsRejected, "the resolver failed"),
        ("hang", TimedOut, "did not answer in time"),
    ],
)
async def test_credentials_that_cannot_be_resolved_are_a_clear_error(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    profile: str | None,
    kind: type[Exception],
    text: str,
) -> None:
    workers = await lab.supervisor()
    if profile == "hang":
        monkeypatch.setattr(spawn, "RESOLVE_TIMEOUT_S", 0.1)
    with pytest.raises(kind, match=text):
        await workers.credentials(lab.spec("m", profile=profile))


async def test_sixteen_workers_start_at_once_and_end_on_their_own(lab: Lab) -> None:
    workers = await lab.supervisor()
    pids: set[int] = set()

    async def live(number: int) -> None:
        async with lab.worker(workers, f"m{number}") as worker:
            pids.add(worker.pid)
            await worker.request(GetStats())

    with trio.fail_after(PROMPT_S):
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(live, number)
    assert len(pids) == 16


async def test_everything_of_a_mount_can_be_forgotten(lab: Lab) -> None:
    workers = await lab.supervisor()
    async with lab.worker(workers, "m") as worker, lab.worker(workers, "other"):
        await worker.request(Stop())
        await worker.wait()
    await workers.forget("m")
    left = [p for base in (lab.state_dir, lab.cache_dir) for p in base.rglob("*")]
    assert not [p for p in left if p.name == "m" or p.name.startswith("m.")]
    assert [p for p in left if p.name == "journal"] == [
        lab.state_dir / "mounts" / "other" / "journal"
    ]
    await workers.forget("m")


def test_an_unknown_worker_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="does not exist"):
        WorkerProcesses(tmp_path, tmp_path, "no-such-user-here")
    with pytest.raises(InvalidConfig, match="must not run as root"):
        WorkerProcesses(tmp_path, tmp_path, "root")


def test_a_log_over_its_limit_is_copied_and_cut(tmp_path: Path) -> None:
    """Whoever has it open appends to what is left."""
    path = tmp_path / "m.log"
    assert not workdirs.rotate_log(path, 10)
    with path.open("ab", buffering=0) as log:
        log.write(b"x" * 10)
        assert not workdirs.rotate_log(path, 10)
        log.write(b"y")
        assert workdirs.rotate_log(path, 10)
        log.write(b"new")
    assert path.read_bytes() == b"new"
    assert (tmp_path / "m.log.1").read_bytes() == b"x" * 10 + b"y"


def test_a_spec_never_shows_in_a_request_to_the_zygote() -> None:
    request = ResolveCredentials(
        id=1,
        spec=MountSpec(bucket="b", mountpoint="/m"),
        environment={"AWS_SECRET_ACCESS_KEY": "very secret"},
    )
    assert "secret" not in repr(request)
