"""What the worker does to the kernel connection before and around libfuse, and the messages it reads itself."""

import array
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import threading

import pytest
import trio

from s3mgrd.fs.kernel.repeats import Call
from s3mgrd.fuse import abi, syscalls, tuning
from s3mgrd.fuse.abi import Cap, Opcode, Resent
from s3mgrd.worker import receiving, session
from s3mgrd.worker.protocol import GetStats, Report, SessionEnded, StatusEvent
from s3mgrd.worker.ring import Ring
from tests.fuse.lab import Lab

WAIT_MS = 10_000


def request(
    opcode: int, body: bytes = b"", *, unique: int = 2, nodeid: int = 1, pid: int = 7
) -> bytes:
    size = abi.IN_HEADER.size + len(body)
    return abi.IN_HEADER.pack(size, opcode, unique, nodeid, 0, 0, pid, 0, 0) + body


AGAIN = 2 | abi.UNIQUE_RESEND


@pytest.mark.parametrize(
    ("opcode", "body", "expected"),
    [
        (Opcode.MKDIR, struct.pack("=II", 0o755, 0o22) + b"n\0", (Opcode.MKDIR, b"n", None)),
        (Opcode.MKNOD, bytes(16) + b"n\0", (Opcode.MKNOD, b"n", None)),
        (Opcode.CREATE, bytes(16) + b"n\0", (Opcode.CREATE, b"n", None)),
        (Opcode.SYMLINK, b"n\0target\0", (Opcode.SYMLINK, b"n", None)),
        (Opcode.LINK, struct.pack("=Q", 9) + b"n\0", (Opcode.LINK, b"n", None)),
        (Opcode.UNLINK, b"n\0", (Opcode.UNLINK, b"n", None)),
        (Opcode.RMDIR, b"n\xff\0", (Opcode.RMDIR, b"n\xff", None)),
        (Opcode.RENAME, struct.pack("=Q", 5) + b"a\0b\0", (Opcode.RENAME2, b"a", (5, b"b"))),
        (
            Opcode.RENAME2,
            struct.pack("=QII", 5, 1, 0) + b"a\0b\0",
            (Opcode.RENAME2, b"a", (5, b"b")),
        ),
        (Opcode.SETATTR, bytes(88), (Opcode.SETATTR, b"", None)),
        (Opcode.OPEN, bytes(8), (Opcode.OPEN, b"", None)),
        (15, bytes(40), (15, b"", None)),
    ],
)
def test_a_request_that_comes_again_is_known_by_what_it_names(
    opcode: int, body: bytes, expected: tuple[int, bytes, tuple[int, bytes] | None]
) -> None:
    op, name, target = expected
    message = request(opcode, body, unique=AGAIN, nodeid=3)
    assert abi.parse_resent(message) == Resent(op, 3, name, 7, target)
    assert abi.parse_resent(request(opcode, body)) is None


def test_forgets_are_read_one_and_many() -> None:
    assert abi.parse_forgets(request(Opcode.FORGET, struct.pack("=Q", 3), nodeid=9)) == [(9, 3)]
    batch = struct.pack("=IIQQQQ", 2, 0, 10, 1, 11, 2)
    assert abi.parse_forgets(request(Opcode.BATCH_FORGET, batch)) == [(10, 1), (11, 2)]
    assert abi.parse_forgets(request(Opcode.LOOKUP, b"n\0")) == []


def test_the_synthetic_init_reads_back_as_what_the_kernel_was_given() -> None:
    caps = tuning.wanted(writeback_cache=True)
    message = abi.init_request(
        minor=38, max_readahead=1 << 20, flags=caps & 0xFFFF_FFFF, flags2=caps >> 32, unique=5
    )
    assert abi.parse_init(message) == abi.InitRequest(5, 38, 1 << 20, caps)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", "short"),
        (request(Opcode.LOOKUP, bytes(64)), "expected FUSE_INIT"),
        (request(Opcode.INIT, struct.pack("=IIII", 8, 1, 0, 0)), "FUSE 8.1"),
    ],
)
def test_what_is_no_init_is_refused(message: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        abi.parse_init(message)


def test_the_init_of_an_old_kernel_has_no_second_flags() -> None:
    body = struct.pack("=IIII", 7, 31, 4096, Cap.ASYNC_READ)
    assert abi.parse_init(request(Opcode.INIT, body)).caps == Cap.ASYNC_READ


def test_every_structure_has_the_size_of_the_kernel_s() -> None:
    """fuse_in_header 40, fuse_out_header 16, fuse_init_in 64, fuse_init_out 64."""
    sizes = [s.size for s in (abi.IN_HEADER, abi.OUT_HEADER, abi.INIT_IN, abi.INIT_OUT)]
    assert sizes == [40, 16, 64, 64]


def test_every_capability_has_its_reason() -> None:
    for cap, reason in tuning.CAPABILITIES.items():
        assert bin(cap).count("1") == 1
        assert reason
    assert tuning.MAX_PAGES * tuning.PAGE_BYTES == tuning.MAX_WRITE_BYTES
    assert tuning.MAX_BACKGROUND < session.MAX_TASKS


def wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(WAIT_MS)


async def test_only_what_was_read_and_not_answered_counts_as_coming_again(lab: Lab) -> None:
    """A request that no worker saw is not among them; after the second asking all are there to be read."""
    connection = await lab.mount("m")
    fd, path = connection.fuse_fd, f"{lab.base}/mnt/m"
    reader = lab.program("import os, sys; os.mkdir(sys.argv[1])", f"{path}/read")
    answer_until(fd, Opcode.MKDIR)
    lab.program("import os, sys; os.listdir(sys.argv[1])", path)
    wait_readable(fd)
    left = session.collect_unanswered(fd)
    assert left.resent == [Resent(Opcode.MKDIR, 1, b"read", reader.pid)]
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    os.write(fd, abi.notify_resend())
    again = session.collect_unanswered(fd)
    assert len(again.resent) == 2


ASK_SIZE = "import os, sys; os.statvfs(sys.argv[1])"
"""Takes no lock that a call which is not answered may hold."""
STATFS = 17


@pytest.mark.parametrize("is_killed", [True, False])
async def test_whose_call_is_not_read_again_was_killed(lab: Lab, *, is_killed: bool) -> None:
    """Once there is nothing to read an equal call is no repeat, unless the repeat was read and begins later."""
    connection = await lab.mount("m")
    fd, path = connection.fuse_fd, f"{lab.base}/mnt/m"
    program = lab.program("import os, sys; os.mkdir(sys.argv[1])", f"{path}/made")
    answer_until(fd, Opcode.MKDIR)
    call = Call(Opcode.MKDIR, 1, b"made", program.pid)
    before = Ring(connection.ring_fd).begin(call)
    ring = Ring(connection.ring_fd)
    ring.resume(session.collect_unanswered(fd).resent)
    os.set_blocking(fd, False)
    receiver = receiving.install()
    assert receiver is not None
    os.write(fd, abi.notify_resend())
    receiver.expect(ring)
    if is_killed:
        program.kill()
        await trio.to_thread.run_sync(program.wait)
    lab.program(ASK_SIZE, path)
    read: list[int] = []

    def note(request: memoryview) -> bool:
        read.append(abi.IN_HEADER_BEGIN.unpack_from(request)[0])
        return True

    while STATFS not in read:
        wait_readable(fd)
        assert ring.awaited(call) == before.number
        assert receiver.take(fd, note)
    assert read == ([STATFS] if is_killed else [Opcode.MKDIR, STATFS])
    assert ring.awaited(call) == before.number
    assert receiver.take(fd, lambda _: True) is None
    assert (ring.oldest == before.number) is not is_killed
    assert ring.begin(call).repeated is not is_killed


ATTRIBUTES = struct.pack("=6Q10I", 1, 0, 0, 0, 0, 0, *[0] * 3, 0o40777, 2, 0, 0, 0, 4096, 0)
"""fuse_attr of a directory that everybody may write."""
GETATTR = 3


def take(fd: int) -> tuple[int, int]:
    """Wait for a request and return its kind and number."""
    wait_readable(fd)
    message = os.read(fd, tuning.MAX_WRITE_BYTES + abi.HEADER_ROOM)
    _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(message)
    return opcode, unique


def answer(fd: int, unique: int, body: bytes = b"", *, error: int = 0) -> None:
    os.write(fd, abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), -error, unique) + body)


def answer_until(fd: int, wanted: int) -> int:
    """Answer what leads up to a request of the kind *wanted*, take that, and leave it unanswered: its number.

    Names are absent, and everything that exists is a directory that everybody may write.
    """
    while True:
        opcode, unique = take(fd)
        if opcode == wanted:
            return unique
        if opcode == GETATTR:  # fuse_attr_out
            answer(fd, unique, struct.pack("=QII", 60, 0, 0) + ATTRIBUTES)
        else:
            answer(fd, unique, error=errno.ENOENT)


async def test_an_ended_connection_has_nothing_left(lab: Lab) -> None:
    connection = await lab.mount("m")
    syscalls.unmount(f"{lab.base}/mnt/m", lazy=False)
    with pytest.raises(OSError, match="No such device"):
        session.collect_unanswered(connection.fuse_fd)
    assert not fcntl.fcntl(connection.fuse_fd, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_read_that_finds_nothing_is_interrupted() -> None:
    """With the interpreter's lock held, as pyfuse3 reads; otherwise the whole worker would stop there."""
    read_fd, write_fd = os.pipe()
    libc = ctypes.PyDLL(None, use_errno=True)
    before = signal.getsignal(signal.SIGALRM)
    # pytest's own timeout uses the same timer.
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        with session.interrupted_regularly():
            buffer = array.array("b", bytes(1))
            result = libc.read(read_fd, ctypes.c_void_p(buffer.buffer_info()[0]), 1)
            assert (result, ctypes.get_errno()) == (-1, 4)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert signal.getsignal(signal.SIGALRM) is before
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        os.close(read_fd)
        os.close(write_fd)
    assert threading.current_thread() is threading.main_thread()


async def test_a_mount_that_goes_before_its_next_worker_comes_ends_the_session(lab: Lab) -> None:
    """Unmounted while no worker was there: the next one reports the end instead of failing."""
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    await connection.unmount()
    async with lab.worker(workers, "m") as worker:
        await lab.serve(worker, connection, resumed=True)
        events = [await worker.events.receive()]
        if isinstance(events[0], StatusEvent):
            events = [await worker.events.receive()]
        assert events == [SessionEnded()]
        assert isinstance(await worker.request(GetStats()), Report)


async def test_forgets_that_wait_reach_the_next_worker(lab: Lab) -> None:
    """They are not sent again, so what the look at unanswered requests reads of them must be passed on."""
    workers = await lab.supervisor()
    connection = await lab.mount("m")
    fd = connection.fuse_fd
    code = "import os, sys; print(os.path.exists(sys.argv[1]), os.path.exists(sys.argv[1]))"
    user = lab.program(code, f"{lab.base}/mnt/m/x")
    # The name is there, as inode 5, for no time at all, and then it is not: the kernel lets the inode go, and asks anew.
    entry_out = struct.pack("=4QII", 5, 0, 0, 60, 0, 0) + ATTRIBUTES
    answer(fd, answer_until(fd, Opcode.LOOKUP), entry_out)
    answer(fd, answer_until(fd, Opcode.LOOKUP), error=errno.ENOENT)
    async with lab.worker(workers, "m") as worker:
        wait_readable(fd)
        await lab.serve(worker, connection, resumed=True)
        assert await lab.output(user) == "True False"
        log = await trio.Path(workers.log_path("m")).read_text()
        assert "forget [(5, 1)]" in log.splitlines()
