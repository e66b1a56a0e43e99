"""What is read ahead: of readers that go forwards, backwards, in strides, and at random."""

import pytest

from s3mgrd.fs.reading.patterns import (
    FIRST_FACTOR,
    FIRST_WINDOW,
    MAX_WINDOW,
    MIB,
    Stream,
    step_bytes,
)
from tests.unit.fs.conftest import settings

KIB = 1 << 10
SIZE = 1 << 40


def reads(stream: Stream, offsets: list[int], length: int, *, limit: int = 1 << 30) -> bool:
    is_ordered = False
    for offset in offsets:
        is_ordered = stream.follow(offset, offset + length, limit=limit)
    return is_ordered


def ahead(stream: Stream, stop: int, size: int = SIZE) -> list[tuple[int, int]]:
    return list(stream.ahead(stop, size, step=2 * MIB))


@pytest.mark.parametrize(
    ("length", "windows"),
    [
        (16 * KIB, [FIRST_WINDOW, 4 * MIB, 16 * MIB, MAX_WINDOW, MAX_WINDOW]),
        (MIB, [16 * MIB, MAX_WINDOW, MAX_WINDOW]),
    ],
)
def test_a_reader_from_the_beginning_gets_a_window_that_grows_fast(
    length: int, windows: list[int]
) -> None:
    """Who asks for much at once wants more of it; the kernel asks for twice a MiB before the first answer is there."""
    stream, found = Stream(), []
    for number in range(len(windows)):
        assert stream.follow(number * length, (number + 1) * length, limit=1 << 30)
        found.append(stream.window)
    assert found == windows


def test_the_window_stays_within_the_memory_there_is() -> None:
    stream = Stream()
    reads(stream, [n * MIB for n in range(30)], MIB, limit=5 * MIB)
    assert stream.window == 5 * MIB


def test_requests_are_small_until_the_window_is_full() -> None:
    stream = Stream()
    reads(stream, [0], MIB, limit=64 * MIB)
    assert ahead(stream, MIB) == [(n * MIB, (n + 1) * MIB) for n in range(1, 17)]
    reads(stream, [MIB], MIB, limit=64 * MIB)
    assert ahead(stream, 2 * MIB) == [(n * MIB, (n + 2) * MIB) for n in range(2, 66, 2)]


def test_what_was_asked_for_is_not_told_again_until_the_reader_jumps() -> None:
    stream = Stream()
    reads(stream, [0, MIB], MIB, limit=8 * MIB)
    stream.reached = 9 * MIB
    assert ahead(stream, 2 * MIB) == [(9 * MIB, 10 * MIB)]
    reads(stream, [900 * MIB, 901 * MIB], MIB, limit=2 * MIB)
    assert ahead(stream, 902 * MIB) == [(902 * MIB, 903 * MIB), (903 * MIB, 904 * MIB)]


def test_a_small_window_is_cut_into_several_requests() -> None:
    stream = Stream()
    reads(stream, [0, MIB], MIB, limit=4 * MIB)
    assert ahead(stream, 2 * MIB) == [(n * MIB, (n + 1) * MIB) for n in range(2, 6)]


@pytest.mark.parametrize(
    ("memory_limit", "transfers", "size"), [(96, 24, 2), (96, 16, 3), (1024, 1, 4), (16, 256, 1)]
)
def test_requests_are_as_large_as_memory_and_connections_allow(
    memory_limit: int, transfers: int, size: int
) -> None:
    chosen = settings(memory_limit_bytes=memory_limit * MIB, concurrency=transfers)
    assert step_bytes(chosen) == size * MIB


def test_parts_that_come_in_any_order_are_one_reader() -> None:
    stream = Stream()
    assert reads(stream, [0, 2 * MIB, MIB, 4 * MIB, 3 * MIB], MIB)
    assert stream.window >= 4 * MIB


@pytest.mark.parametrize("offset", [1, 100 * MIB])
def test_a_first_read_elsewhere_is_random(offset: int) -> None:
    stream = Stream()
    assert not stream.follow(offset, offset + 4096, limit=1 << 30)
    assert ahead(stream, offset + 4096) == []


def test_a_jump_loses_the_window_and_order_gains_it_again() -> None:
    stream = Stream()
    reads(stream, [n * MIB for n in range(8)], MIB)
    assert not stream.follow(900 * MIB, 901 * MIB, limit=1 << 30)
    assert stream.window == 0
    assert stream.follow(901 * MIB, 902 * MIB, limit=1 << 30)
    assert stream.window == FIRST_FACTOR * MIB


def test_random_reads_are_never_read_ahead_of() -> None:
    stream = Stream()
    for offset in [700, 33, 512, 90, 800, 244, 1000, 10]:
        assert not stream.follow(offset * MIB, offset * MIB + 4096, limit=1 << 30)


def test_ranges_ahead_meet_those_of_another_reader() -> None:
    one, other = Stream(), Stream()
    reads(one, [n * MIB for n in range(6)], MIB)
    reads(other, [n * MIB for n in range(6)], MIB)
    first = {stop for _, stop in ahead(one, 6 * MIB)}
    second = {stop for _, stop in ahead(other, 6 * MIB + 12345)}
    assert {stop for stop in second if stop <= max(first)} == first  # the other is ahead a bit


def test_nothing_is_wanted_beyond_the_end() -> None:
    stream = Stream()
    reads(stream, [n * MIB for n in range(6)], MIB)
    ranges = ahead(stream, 6 * MIB, 7 * MIB + 5)
    assert ranges[-1][1] == 7 * MIB + 5
    assert ahead(stream, 7 * MIB + 5, 7 * MIB + 5) == []


def test_a_backward_reader_gets_what_lies_before() -> None:
    stream = Stream()
    assert reads(stream, [n * MIB for n in range(900, 890, -1)], MIB)
    ranges = ahead(stream, 892 * MIB)
    assert ranges[0][1] == 891 * MIB, "next to where it is"
    assert all(stop <= 891 * MIB for _, stop in ranges)
    assert sum(stop - start for start, stop in ranges) > 4 * MIB
    assert reads(stream, [0], MIB) is not None
    assert all(start >= 0 for start, _ in ahead(stream, MIB))


def test_a_reader_in_equal_strides_gets_the_next_ones() -> None:
    stream = Stream()
    stride, length = 100 * MIB, 64 * KIB
    assert reads(stream, [7 + n * stride for n in range(5)], length)
    ranges = ahead(stream, 7 + 4 * stride + length)
    assert ranges[0] == (7 + 5 * stride, 7 + 5 * stride + length)
    assert all(start % stride == 7 and stop - start == length for start, stop in ranges)
    assert len(ranges) > 4


def test_strides_end_where_the_object_does() -> None:
    stream = Stream()
    reads(stream, [n * 100 * MIB for n in range(5)], 64 * KIB)
    assert ahead(stream, 0, 450 * MIB) == []
