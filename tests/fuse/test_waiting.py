"""How pyfuse3's tasks wait: quick while requests come quickly, never wrong about whether there is one."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from s3mgrd.worker import waiting
from s3mgrd.worker.waiting import Watch


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give a connection of which one can write requests of one byte into the other end."""
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


class Pyfuse:
    """Waits as pyfuse3 does, and counts how often."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waits = 0
        self.is_over = False

    async def wait(self) -> bool:
        self.waits += 1
        if self.is_over:
            await trio.lowlevel.checkpoint()
            return False
        await trio.lowlevel.wait_readable(self.fd)
        return True


async def test_a_request_that_is_there_is_not_waited_for(pipe: tuple[int, int]) -> None:
    """Neither epoll nor the scheduler is asked."""
    pyfuse = Pyfuse(pipe[0])
    watch = Watch(pipe[0], pyfuse.wait)
    os.write(pipe[1], b"12")
    assert await watch()
    os.read(pipe[0], 1)
    assert await watch()
    assert pyfuse.waits == 0


async def test_a_request_that_another_task_took_is_not_announced(pipe: tuple[int, int]) -> None:
    """A read of what is not there would stop the worker."""
    pyfuse = Pyfuse(pipe[0])
    watch = Watch(pipe[0], pyfuse.wait)
    taken: list[bool] = []

    async def task() -> None:
        taken.append(await watch())

    async def wait() -> bool:
        await Pyfuse.wait(pyfuse)
        if pyfuse.waits == 1:
            os.read(pipe[0], 1)  # the other was faster
        return True

    watch = Watch(pipe[0], wait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        os.write(pipe[1], b"1")
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        os.write(pipe[1], b"2")
    assert taken == [True]
    assert pyfuse.waits == 2


async def test_the_end_of_the_session_is_the_end_of_waiting(pipe: tuple[int, int]) -> None:
    """pyfuse3's task ends then."""
    pyfuse = Pyfuse(pipe[0])
    pyfuse.is_over = True
    assert not await Watch(pipe[0], pyfuse.wait)()


async def test_others_have_their_turn_however_many_requests_there_are(
    pipe: tuple[int, int],
) -> None:
    """Uploads and listings go on while a program stats a million files."""
    watch = Watch(pipe[0], Pyfuse(pipe[0]).wait)
    os.write(pipe[1], b"1")
    had_turn = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set, had_turn)
        while not had_turn.is_set():
            assert await watch()  # no other checkpoint in this loop


async def test_everything_is_settled_before_somebody_else_has_a_turn(pipe: tuple[int, int]) -> None:
    """Requests that were answered in between may have left something for later."""
    has_left = False
    turns = 0

    def take() -> bool | None:
        nonlocal has_left
        try:
            request = os.read(pipe[0], 1)
        except BlockingIOError:
            return None
        has_left = True
        return request != b"!"

    def settle() -> None:
        nonlocal has_left
        has_left = False

    async def other() -> None:
        nonlocal turns
        while True:
            assert not has_left
            turns += 1
            await trio.lowlevel.checkpoint()

    os.set_blocking(pipe[0], False)
    watch = Watch(pipe[0], Pyfuse(pipe[0]).wait, take, settle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(20):
            os.write(pipe[1], b"1" * 2000 + b"!")
            assert await watch()
            assert not has_left, "libfuse is about to get one"
        before = turns
        nursery.start_soon(watch)
        os.write(pipe[1], b"1")
        while turns < before + 20:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def _set(event: trio.Event) -> None:
    event.set()


async def test_patience_begins_with_a_quick_request_and_ends_with_a_slow_one(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an idle mount costs nothing, and a busy machine little."""
    now = [100.0]
    passing = SimpleNamespace(sched_yield=lambda: now.__setitem__(0, now[0] + 20e-6))
    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(waiting, "os", passing)
    after_s = [1.0]

    async def wait() -> bool:
        await trio.lowlevel.checkpoint()
        now[0] += after_s[0]
        os.write(pipe[1], b"1")
        return True

    watch = Watch(pipe[0], wait)

    async def took_s() -> float:
        begun = now[0]
        assert await watch()
        os.read(pipe[0], 1)
        return now[0] - begun

    assert await took_s() == pytest.approx(1.0)
    after_s[0] = 10e-6
    assert await took_s() == pytest.approx(10e-6)  # no patience yet
    assert await took_s() == pytest.approx(waiting.PATIENCE_S + 10e-6, abs=21e-6)
    after_s[0] = 1.0
    await took_s()
    assert await took_s() == pytest.approx(1.0)


async def test_a_request_that_is_answered_at_once_is_not_announced(pipe: tuple[int, int]) -> None:
    """pyfuse3's task learns only of those that somebody has to receive."""
    taken: list[bytes] = []

    def take() -> bool:
        taken.append(os.read(pipe[0], 1))
        return taken[-1] != b"3"

    watch = Watch(pipe[0], Pyfuse(pipe[0]).wait, take)
    os.write(pipe[1], b"123")
    assert await watch()
    assert taken == [b"1", b"2", b"3"]


async def test_others_have_their_turn_however_many_requests_are_answered_at_once(
    pipe: tuple[int, int],
) -> None:
    """The loop that answers is not the caller's, and bounded all the same."""
    os.write(pipe[1], b"1")
    had_turn = trio.Event()
    watch = Watch(pipe[0], Pyfuse(pipe[0]).wait, lambda: not had_turn.is_set())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set, had_turn)
        assert await watch()
