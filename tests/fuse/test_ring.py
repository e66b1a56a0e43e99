"""The repeat ring alone: what the next worker learns from the memory that the dead one left."""

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from s3mgrd.errors import Corrupt
from s3mgrd.fs.kernel.repeats import Call
from s3mgrd.fuse.abi import Opcode, Resent
from s3mgrd.fuse.connection import make_ring
from s3mgrd.worker.protocol import RING_BYTES
from s3mgrd.worker.ring import CAPACITY, Ring
from s3mgrd.worker.session import MAX_TASKS

MKDIR, RENAME = Opcode.MKDIR, Opcode.RENAME2


@pytest.fixture
def memory() -> Iterator[int]:
    fd = make_ring()
    yield fd
    os.close(fd)


def mkdir(name: bytes = b"x", thread: int = 7, parent: int = 1) -> Resent:
    return Resent(MKDIR, parent, name, thread)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


def test_a_call_that_comes_again_has_the_former_number(memory: int) -> None:
    first = Ring(memory).begin(Call(MKDIR, 1, b"x", 7))
    second = Ring(memory)
    second.resume([mkdir()])
    again = second.begin(Call(MKDIR, 1, b"x", 7))
    assert (again.number, again.repeated) == (first.number, True)
    anew = second.begin(Call(MKDIR, 1, b"x", 7))
    assert anew.number > first.number
    assert not anew.repeated


def test_the_number_stays_the_same_over_any_number_of_deaths(memory: int) -> None:
    """A worker may die while it answers a repeat; the change was made under the first number."""
    number = Ring(memory).begin(Call(MKDIR, 1, b"x", 7)).number
    for _ in range(3):
        ring = Ring(memory)
        ring.resume([mkdir()])
        assert ring.begin(Call(MKDIR, 1, b"x", 7)).number == number


@pytest.mark.parametrize(
    "call",
    [
        (Opcode.RMDIR, 1, b"x", 7, None),
        (MKDIR, 2, b"x", 7, None),
        (MKDIR, 1, b"y", 7, None),
        (MKDIR, 1, b"x", 8, None),
        (MKDIR, 1, b"x", 7, (1, b"z")),
    ],
)
def test_any_other_call_is_a_new_one(
    memory: int, call: tuple[int, int, bytes, int, tuple[int, bytes] | None]
) -> None:
    Ring(memory).begin(Call(MKDIR, 1, b"x", 7))
    ring = Ring(memory)
    op, parent, name, thread, target = call
    ring.resume([mkdir(), Resent(op, parent, name, thread, target)])
    assert not ring.begin(Call(op, parent, name, thread, target)).repeated


def test_names_of_a_rename_cannot_run_into_each_other(memory: int) -> None:
    Ring(memory).begin(Call(RENAME, 1, b"ab", 7, (1, b"c")))
    ring = Ring(memory)
    ring.resume([Resent(RENAME, 1, b"a", 7, (1, b"bc"))])
    assert not ring.begin(Call(RENAME, 1, b"a", 7, (1, b"bc"))).repeated


def test_a_call_that_does_not_come_again_was_answered(memory: int) -> None:
    """The same call, made anew by the same thread, is no repeat."""
    Ring(memory).begin(Call(MKDIR, 1, b"x", 7))
    ring = Ring(memory)
    ring.resume([mkdir(b"other")])
    assert not ring.begin(Call(MKDIR, 1, b"x", 7)).repeated


def test_a_repeat_that_does_not_arrive_is_forgotten(memory: int) -> None:
    """Its caller was killed. An equal call is new, nothing is kept for the old one; what was read begins later."""
    ring = Ring(memory)
    for name in (b"gone", b"read", b"begun"):
        ring.begin(Call(MKDIR, 1, name, 0))
    ring = Ring(memory)
    ring.resume([mkdir(name, 0) for name in (b"gone", b"read", b"begun")])
    assert ring.awaited(Call(MKDIR, 1, b"gone", 0)) == ring.oldest == 1
    for name in (b"read", b"begun", b"unknown"):
        ring.arrived(mkdir(name, 0))
    assert ring.begin(Call(MKDIR, 1, b"begun", 0)).repeated
    ring.all_arrived()
    assert ring.awaited(Call(MKDIR, 1, b"gone", 0)) is None
    assert ring.oldest == 2
    assert not ring.begin(Call(MKDIR, 1, b"gone", 0)).repeated
    assert not ring.begin(Call(MKDIR, 1, b"begun", 0)).repeated
    assert ring.begin(Call(MKDIR, 1, b"read", 0)).repeated


async def test_an_answered_call_is_forgotten_in_the_next_turn(memory: int) -> None:
    ring = Ring(memory)
    intent = ring.begin(Call(MKDIR, 1, b"x", 7))
    ring.end(intent)
    # Not before the answer is written: the handler has not returned yet.
    assert Ring(memory).oldest == intent.number
    await settled()
    assert Ring(memory).oldest == intent.number + 1
    left = Ring(memory)
    left.resume([mkdir()])
    assert not left.begin(Call(MKDIR, 1, b"x", 7)).repeated


async def test_a_repeat_that_was_answered_is_forgotten_too(memory: int) -> None:
    Ring(memory).begin(Call(MKDIR, 1, b"x", 7))
    ring = Ring(memory)
    ring.resume([mkdir()])
    ring.end(ring.begin(Call(MKDIR, 1, b"x", 7)))
    await settled()
    assert Ring(memory).oldest == 2


def test_equal_calls_of_unknown_threads_are_counted(memory: int) -> None:
    """Thread 0 stands for many: as many calls are repeats as were begun, not more."""
    ring = Ring(memory)
    begun = [ring.begin(Call(MKDIR, 1, b"x", 0)).number for _ in range(2)]
    ring = Ring(memory)
    ring.resume([mkdir(thread=0)] * 3)
    intents = [ring.begin(Call(MKDIR, 1, b"x", 0)) for _ in range(3)]
    assert [intent.number for intent in intents[:2]] == begun
    assert [intent.repeated for intent in intents] == [True, True, False]


def test_of_equal_calls_the_newest_is_the_unanswered_one(memory: int) -> None:
    """A thread's earlier call was answered before it made the next, even if its slot was not free yet."""
    ring = Ring(memory)
    ring.begin(Call(MKDIR, 1, b"x", 7))
    newest = ring.begin(Call(MKDIR, 1, b"x", 7))
    ring = Ring(memory)
    ring.resume([mkdir()])
    assert ring.begin(Call(MKDIR, 1, b"x", 7)).number == newest.number
    assert ring.oldest == newest.number


def test_numbers_grow_over_workers_even_when_nothing_is_left(memory: int) -> None:
    first = Ring(memory)
    last = max(first.begin(Call(MKDIR, 1, b"%d" % i, 7)).number for i in range(5))
    second = Ring(memory)
    second.resume([])
    assert second.oldest == last + 1
    assert Ring(memory).begin(Call(MKDIR, 1, b"x", 7)).number == last + 1


async def test_there_is_room_for_every_task_and_it_comes_back(memory: int) -> None:
    assert CAPACITY > 4 * MAX_TASKS
    ring = Ring(memory)
    for _ in range(2):
        intents = [ring.begin(Call(MKDIR, 1, b"%d" % i, 7)) for i in range(CAPACITY)]
        with pytest.raises(RuntimeError):
            ring.begin(Call(MKDIR, 1, b"one more", 7))
        for intent in intents:
            ring.end(intent)
        await settled()


async def test_a_closed_ring_is_left_alone_by_what_was_to_be_forgotten(memory: int) -> None:
    ring = Ring(memory)
    ring.end(ring.begin(Call(MKDIR, 1, b"x", 7)))
    ring.close()
    await settled()


def test_other_memory_is_refused() -> None:
    fd = os.memfd_create("other")
    with pytest.raises(Corrupt, match="bytes long"):
        Ring(fd)
    os.truncate(fd, RING_BYTES)
    os.pwrite(fd, b"another version", 0)
    with pytest.raises(Corrupt, match="another version"):
        Ring(fd)
    os.close(fd)


call = st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([0, 1, 2]))


@given(begun=st.lists(call, max_size=20), resent=st.lists(call, max_size=20))
def test_a_repeat_was_both_begun_and_sent_again(
    begun: list[tuple[bytes, int]], resent: list[tuple[bytes, int]]
) -> None:
    """Never more repeats of a call than were begun, nor than the kernel sends, and never two with one number."""
    fd = make_ring()
    try:
        ring = Ring(fd)
        numbers = [ring.begin(Call(MKDIR, 1, name, thread)).number for name, thread in begun]
        ring.close()
        ring = Ring(fd)
        ring.resume([mkdir(name, thread) for name, thread in resent])
        found = [ring.begin(Call(MKDIR, 1, name, thread)) for name, thread in resent]
        for one in set(resent):
            repeats = [i for i, r in zip(found, resent, strict=True) if r == one and i.repeated]
            assert len(repeats) == min(begun.count(one), resent.count(one))
            assert {i.number for i in repeats} <= {
                n for n, b in zip(numbers, begun, strict=True) if b == one
            }
        assert len({intent.number for intent in found}) == len(found)
        ring.close()
    finally:
        os.close(fd)
